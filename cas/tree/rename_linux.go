package tree

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// renameNew renames old to new, both in dir. It fails with fs.ErrExist if there
// is something at new.
func renameNew(dir *os.Root, old, new string) error {
	err := rename2(dir, old, new, unix.RENAME_NOREPLACE)
	if !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	return renameIfFree(dir, old, new)
}

// exchange swaps two entries of dir. It fails with errors.ErrUnsupported if the
// file system cannot, with fs.ErrNotExist if one does not exist.
func exchange(dir *os.Root, a, b string) error {
	return rename2(dir, a, b, unix.RENAME_EXCHANGE)
}

func rename2(dir *os.Root, old, new string, flags uint) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	err = unix.Renameat2(int(d.Fd()), old, int(d.Fd()), new, flags)
	switch err {
	case nil:
		return nil
	case unix.EINVAL, unix.ENOSYS:
		err = errors.ErrUnsupported
	}
	return &fs.PathError{Op: "rename", Path: new, Err: err}
}
