package tree

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// setTime sets the modification time of an entry, of a link that of the link
// itself. The last element of name is never followed.
func setTime(root *os.Root, name string, mtime time.Time) error {
	dir, err := root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	t, err := unix.TimeToTimespec(mtime)
	if err != nil {
		return err
	}
	base := path.Base(name)
	err = unix.UtimesNanoAt(int(dir.Fd()), base, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &fs.PathError{Op: "set time", Path: name, Err: err}
	}
	return nil
}

// removeTree removes an entry with everything below it, if it exists, including
// directories that do not permit it yet.
func removeTree(root *os.Root, name string) error {
	err := root.RemoveAll(name)
	if err == nil {
		return nil
	}
	sub, openErr := root.OpenRoot(name)
	if openErr != nil {
		return err
	}
	walkErr := fs.WalkDir(sub.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if d == nil || !d.IsDir() {
			return err
		}
		return sub.Chmod(name, 0o700)
	})
	return errors.Join(walkErr, sub.Close(), root.RemoveAll(name))
}

// renameIfFree renames old to new unless there is something at new. Whatever
// appears there between look and rename is replaced; this is for systems that
// cannot do better.
func renameIfFree(dir *os.Root, old, new string) error {
	if _, err := dir.Lstat(new); err == nil {
		return &fs.PathError{Op: "rename", Path: new, Err: fs.ErrExist}
	}
	return dir.Rename(old, new)
}

// replace renames old to new, both in dir, whatever is at new. What was there is
// at old afterwards, or gone.
func replace(dir *os.Root, old, new string) error {
	err := exchange(dir, old, new)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return renameNew(dir, old, new)
	case !errors.Is(err, errors.ErrUnsupported):
		return err
	}
	if err := dir.Rename(old, new); err == nil {
		return nil
	}
	// A directory is in the way: it takes two steps.
	aside := old + "-old"
	if err := dir.Rename(new, aside); err != nil {
		return err
	}
	if err := dir.Rename(old, new); err != nil {
		return errors.Join(err, dir.Rename(aside, new))
	}
	return removeTree(dir, aside)
}
