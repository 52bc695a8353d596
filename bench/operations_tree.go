package bench

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What the client can do with a tree of files, as the programs of these names do:
// listing a directory, then working on its entries relative to it. Each counts
// entries, the tree's own directory not among them.

// untar extracts the tar file From into a new directory.
func untar(req request) (done, error) {
	if err := os.Mkdir(req.Path, 0o755); err != nil {
		return done{}, err
	}
	in, err := os.Open(req.From)
	if err != nil {
		return done{}, err
	}
	defer in.Close()
	program, err := exec.LookPath("tar")
	if err != nil {
		return done{Ops: req.Count, Note: "without tar, which is not installed"}, extract(in, req.Path)
	}
	cmd := exec.Command(program, "-x", "-f", "-", "-C", req.Path)
	cmd.Stdin = in
	// Whoever waits for the client's standard error to end waits for tar too,
	// should both be killed.
	cmd.ExtraFiles = []*os.File{os.Stderr}
	if out, err := cmd.CombinedOutput(); err != nil {
		return done{}, fmt.Errorf("tar: %w %s", err, bytes.TrimSpace(out))
	}
	return done{Ops: req.Count}, nil
}

// extract does what tar does with the files that writeTree makes.
func extract(in io.Reader, dir string) error {
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		name := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			err = os.Mkdir(name, 0o755)
		} else {
			err = extractFile(r, name)
		}
		if err == nil {
			err = os.Chtimes(name, h.ModTime, h.ModTime)
		}
		if err != nil {
			return err
		}
	}
}

func extractFile(from io.Reader, name string) error {
	f, err := openRaw(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// list calls visit for each entry of a directory, which at is open for; in the
// current directory if at is nil.
func list(at *os.File, name string, visit func(dir *os.File, e os.DirEntry) error) error {
	fd, path := unix.AT_FDCWD, name
	if at != nil {
		fd, path = int(at.Fd()), filepath.Join(at.Name(), name)
	}
	fd, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := visit(dir, e); err != nil {
			return err
		}
	}
	return nil
}

// each calls visit for each entry of a tree, a directory before what is in it.
func each(root string, visit func(dir *os.File, e os.DirEntry) error) error {
	var descend func(*os.File, os.DirEntry) error
	descend = func(dir *os.File, e os.DirEntry) error {
		err := visit(dir, e)
		if err == nil && e.IsDir() {
			err = list(dir, e.Name(), descend)
		}
		return err
	}
	return list(nil, root, descend)
}

// counted is what an operation on a tree did, which must be what was asked for.
func counted(n int64, req request, err error) (done, error) {
	if err == nil && n != req.Count {
		err = fmt.Errorf("%d entries instead of %d", n, req.Count)
	}
	return done{Ops: n}, err
}

// find asks for the attributes of every entry.
func find(req request) (done, error) {
	n := int64(0)
	var st unix.Stat_t
	err := each(req.Path, func(dir *os.File, e os.DirEntry) error {
		n++
		return failAt(dir, e, "stat", unix.Fstatat(int(dir.Fd()), e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW))
	})
	return counted(n, req, err)
}

// readTree reads every file.
func readTree(req request) (done, error) {
	n := int64(0)
	buf := make([]byte, 128<<10)
	err := each(req.Path, func(dir *os.File, e os.DirEntry) error {
		n++
		if e.IsDir() {
			return nil
		}
		fd, err := unix.Openat(int(dir.Fd()), e.Name(), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return failAt(dir, e, "open", err)
		}
		f := rawFile{fd, e.Name()}
		for err == nil {
			_, err = f.Read(buf)
		}
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return failAt(dir, e, "read", errors.Join(err, f.Close()))
	})
	return counted(n, req, err)
}

// removeTree removes everything in a directory, and it.
func removeTree(req request) (done, error) {
	n := int64(0)
	var remove func(*os.File, os.DirEntry) error
	remove = func(dir *os.File, e os.DirEntry) error {
		n++
		flags := 0
		if e.IsDir() {
			if err := list(dir, e.Name(), remove); err != nil {
				return err
			}
			flags = unix.AT_REMOVEDIR
		}
		return failAt(dir, e, "remove", unix.Unlinkat(int(dir.Fd()), e.Name(), flags))
	}
	err := list(nil, req.Path, remove)
	if err == nil {
		err = os.Remove(req.Path)
	}
	return counted(n, req, err)
}

func failAt(dir *os.File, e os.DirEntry, op string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: filepath.Join(dir.Name(), e.Name()), Err: err}
}
