//go:build linux

package fsx

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Operations on memory: mappings of a file, and reads and writes past the page
// cache, which want memory and offsets that are whole pages.

const pageSize = 4096

// mapped calls fn with [off, off+n) of the file, which must lie within it, as
// memory: of the mapping that stays, or of a new one.
func (t *tester) mapped(f *file, off, n int64, fn func(p []byte)) error {
	if off+n <= windowSize && t.rnd.IntN(2) == 0 {
		fn(f.window[off : off+n])
		return nil
	}
	start := off &^ (pageSize - 1)
	p, err := unix.Mmap(f.fds[plain], start, int(off+n-start), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %#x at %#x: %w", off+n-start, start, err)
	}
	fn(p[off-start:])
	if t.rnd.IntN(3) == 0 {
		if err := unix.Msync(p, unix.MS_SYNC); err != nil {
			return fmt.Errorf("msync: %w", err)
		}
	}
	return unix.Munmap(p)
}

func (t *tester) readMapped(f *file) error {
	off := t.offset(f)
	n := min(t.length(), f.model.size-off)
	if n <= 0 {
		return nil
	}
	t.note(f, "read %#x at %#x from a mapping", n, off)
	var wrong error
	err := t.mapped(f, off, n, func(p []byte) { wrong = f.compare(p, off, "mapping") })
	if err != nil {
		return err
	}
	return wrong
}

// writeMapped extends the file before, if it must.
func (t *tester) writeMapped(f *file) error {
	off, n := t.offset(f), t.length()
	if off+n > f.model.size {
		if err := f.truncate(off + n); err != nil {
			return err
		}
	}
	src := t.bytes(n)
	t.note(f, "write %#x at %#x to a mapping", n, off)
	err := t.mapped(f, off, n, func(p []byte) { copy(p, src) })
	f.dirty = true
	f.model.write(src, off)
	if err == nil && t.rnd.IntN(4) == 0 {
		return f.syncWindow()
	}
	return err
}

// syncWindow writes back what was written to the mapping that stays.
func (f *file) syncWindow() error {
	if err := unix.Msync(f.window, unix.MS_SYNC); err != nil {
		return fmt.Errorf("msync: %w", err)
	}
	f.dirty = false
	return nil
}

// pages returns n bytes of memory that begin at a page. The caller unmaps them.
func pages(n int64) ([]byte, error) {
	return unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
}

// wholePages draws a place and a number of bytes that are whole pages.
func (t *tester) wholePages(f *file) (off, n int64) {
	return t.offset(f) &^ (pageSize - 1), (t.length() + pageSize - 1) &^ (pageSize - 1)
}

func (t *tester) readDirect(f *file) error {
	off, n := t.wholePages(f)
	if f.fds[direct] < 0 {
		return unix.EOPNOTSUPP
	}
	t.note(f, "read %#x at %#x with O_DIRECT", n, off)
	p, err := pages(n)
	if err != nil {
		return err
	}
	defer unix.Munmap(p)
	got, err := unix.Pread(f.fds[direct], p, off)
	if err := complete(got, int(max(0, min(n, f.model.size-off))), err); err != nil {
		return err
	}
	return f.compare(p[:got], off, "direct read")
}

func (t *tester) writeDirect(f *file) error {
	off, n := t.wholePages(f)
	src := t.bytes(n)
	if f.fds[direct] < 0 {
		return unix.EOPNOTSUPP
	}
	t.note(f, "write %#x at %#x with O_DIRECT", n, off)
	p, err := pages(n)
	if err != nil {
		return err
	}
	defer unix.Munmap(p)
	copy(p, src)
	got, err := unix.Pwrite(f.fds[direct], p, off)
	f.model.write(p[:max(got, 0)], off)
	return complete(got, len(p), err)
}
