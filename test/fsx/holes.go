//go:build linux

package fsx

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	maxSteps = 64 // that a walk takes
	maxAsked = 3  // times that a walk asks again
)

// holes walks over data and holes from somewhere on. Bytes that wait in a mapping
// are written back before: nobody tells a file system outside the kernel of them.
func (t *tester) holes(f *file) error {
	if f.dirty {
		if err := f.syncWindow(); err != nil {
			return err
		}
	}
	off := t.offset(f)
	t.note(f, "walk over data and holes from %#x", off)
	return walk(f.model, off, func(off int64, whence int) (int64, error) {
		return unix.Seek(f.fds[plain], off, whence)
	})
}

// walk asks seek, which is lseek(2), where data and holes begin, from off on.
// Holes must hold zeros. What is called data may hold zeros too: a file system
// may know no holes but the one at the end of every file. It may store the file anew
// between two questions, with other holes, so answers that contradict each other are
// asked for again.
func walk(m *model, off int64, seek func(off int64, whence int) (int64, error)) error {
	asked := 0
	for range maxSteps {
		data, err := seek(off, unix.SEEK_DATA)
		if err != nil && err != unix.ENXIO {
			return fmt.Errorf("SEEK_DATA from %#x: %w", off, err)
		}
		none := err != nil
		if none {
			data = max(m.size, off)
		} else if data < off || data >= m.size {
			return fmt.Errorf("SEEK_DATA from %#x is %#x", off, data)
		}
		if at := m.data(off, data-off); at >= 0 {
			return fmt.Errorf("SEEK_DATA from %#x is %#x (none: %v), but there are bytes at %#x", off, data, none, at)
		}
		hole, err := seek(off, unix.SEEK_HOLE)
		switch {
		case off >= m.size:
			if err != unix.ENXIO {
				return fmt.Errorf("SEEK_HOLE from %#x, beyond the end, is %#x, %v", off, hole, err)
			}
			return nil
		case err != nil:
			return fmt.Errorf("SEEK_HOLE from %#x: %w", off, err)
		case data > off && hole != off && asked < maxAsked:
			asked++
			continue
		case data > off && hole != off:
			return fmt.Errorf("SEEK_HOLE from %#x is %#x, but data begins at %#x only", off, hole, data)
		case data == off && (hole <= off || hole > m.size):
			return fmt.Errorf("SEEK_HOLE from %#x, in data, is %#x", off, hole)
		}
		if none {
			return nil
		}
		off = max(data, hole)
	}
	return nil
}
