//go:build linux

package fsx

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// windowSize is how much of a file, from its beginning, stays mapped.
const windowSize = 4 << 20

// Ways in which a file is open, all at once.
const (
	plain    = iota
	appends  // O_APPEND
	syncs    // O_DSYNC
	direct   // O_DIRECT
	writes   // O_WRONLY, from creat(2) on if the file was made anew
	openWays // how many there are
)

var openFlags = [openWays]int{
	plain:   unix.O_RDWR,
	appends: unix.O_WRONLY | unix.O_APPEND,
	syncs:   unix.O_RDWR | unix.O_DSYNC,
	direct:  unix.O_RDWR | unix.O_DIRECT,
	writes:  unix.O_WRONLY,
}

// file is a file of the file system under test and what it must hold.
type file struct {
	t     *tester
	name  string
	path  string
	model *model
	fds   [openWays]int // -1 if closed; direct is -1 where there is none
	// window maps the beginning of the file. Only what lies before the end of
	// the file may be touched.
	window []byte
	dirty  bool // something was written through window and not synced
}

func createFile(t *tester, dir, name string) (*file, error) {
	f := &file{t: t, name: name, path: filepath.Join(dir, name), fds: [openWays]int{-1, -1, -1, -1, -1}}
	if err := unix.Unlink(f.path); err != nil && err != unix.ENOENT {
		return nil, fmt.Errorf("remove %s: %w", f.path, err)
	}
	return f, f.create()
}

// create makes the file and opens it.
func (f *file) create() (err error) {
	f.model = newModel()
	f.fds[writes], err = unix.Open(f.path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o644)
	if err != nil {
		f.fds[writes] = -1
		return fmt.Errorf("create %s: %w", f.path, err)
	}
	return f.open()
}

// open opens the file in the ways in which it is not open.
func (f *file) open() error {
	for way, fd := range f.fds {
		if fd >= 0 {
			continue
		}
		fd, err := unix.Open(f.path, openFlags[way]|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			f.fds[way] = fd
		case way != direct || err != unix.EINVAL:
			return fmt.Errorf("open %s with flags %#x: %w", f.path, openFlags[way], err)
		}
	}
	if f.window == nil {
		var err error
		f.window, err = unix.Mmap(f.fds[plain], 0, windowSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("map %s: %w", f.path, err)
		}
	}
	return nil
}

// close closes the file, if it is open.
func (f *file) close() error {
	var errs []error
	if f.window != nil {
		errs = append(errs, unix.Munmap(f.window))
		f.window, f.dirty = nil, false
	}
	for way, fd := range f.fds {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
			f.fds[way] = -1
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close %s: %w", f.path, err)
	}
	return nil
}

// remove closes and removes the file.
func (f *file) remove() error {
	err := f.close()
	if e := unix.Unlink(f.path); e != nil {
		err = errors.Join(err, fmt.Errorf("remove %s: %w", f.path, e))
	}
	return err
}

func (f *file) truncate(size int64) error {
	f.t.note(f, "truncate to %#x", size)
	if err := unix.Ftruncate(f.fds[plain], size); err != nil {
		return fmt.Errorf("truncate: %w", err)
	}
	f.model.resize(size)
	return nil
}

// compareSize compares the size that the kernel knows or, if ask, that the file
// system says when it is asked.
func (f *file) compareSize(ask bool) error {
	flags := unix.AT_EMPTY_PATH
	if ask {
		flags |= unix.AT_STATX_FORCE_SYNC
	}
	var st unix.Statx_t
	if err := unix.Statx(f.fds[plain], "", flags, unix.STATX_SIZE, &st); err != nil {
		return fmt.Errorf("statx %s: %w", f.path, err)
	}
	if st.Size != uint64(f.model.size) {
		return fmt.Errorf("%s has %#x bytes, want %#x", f.name, st.Size, f.model.size)
	}
	return nil
}

// compare compares p, which was read at off, to what must be there.
func (f *file) compare(p []byte, off int64, how string) error {
	i := f.model.difference(p, off)
	if i < 0 {
		return nil
	}
	want := make([]byte, min(16, len(p)-i))
	f.model.read(want, off+int64(i))
	return fmt.Errorf("%s: %s of %#x bytes at %#x: the first wrong byte is at %#x: there is % x, want % x",
		f.name, how, len(p), off, off+int64(i), p[i:i+len(want)], want)
}

// compareRange reads [off, off+n) and compares.
func (f *file) compareRange(off, n int64) error {
	p := f.t.buffer(n)
	got, err := unix.Pread(f.fds[plain], p, off)
	if err != nil {
		return fmt.Errorf("read of %#x bytes at %#x: %w", n, off, err)
	}
	want := max(0, min(n, f.model.size-off))
	if int64(got) != want {
		return fmt.Errorf("%s: read of %#x bytes at %#x returns %#x, want %#x", f.name, n, off, got, want)
	}
	return f.compare(p[:got], off, "read")
}

// compareAll compares all bytes of the file. Of a file of many GiB it reads the
// beginning, the end, all that must hold something, and a sample of the rest.
func (f *file) compareAll() error {
	const step = 1 << 20
	near := min(f.model.size, windowSize)
	for off := int64(0); off < near; off += step {
		if err := f.compareRange(off, min(step, near-off)); err != nil {
			return err
		}
	}
	if f.model.size > near {
		for piece := range f.model.pieces {
			if err := f.compareRange(piece*pieceSize, pieceSize); err != nil {
				return err
			}
		}
		for range 4 {
			if err := f.compareRange(f.t.rnd.Int64N(f.model.size), pieceSize); err != nil {
				return err
			}
		}
	}
	return f.compareRange(max(0, f.model.size-100), 200)
}
