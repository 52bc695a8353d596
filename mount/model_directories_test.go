//go:build linux

package mount

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Calls of the random test on open directories, which stay open while names
// come and go. In which order a file system lists names, and whether a listing
// that has begun shows what came or went since, is its own affair. A name that
// was there all the time must be listed, and once.

// openDir is a directory that is open in both trees and being read.
type openDir struct {
	fds    [2]int
	stable map[string]bool // names that are there since the reading began
	read   [2][]dirEntry   // what was read since
}

// dirEntry is a name in a directory. A reader that seeks to next goes on behind it.
type dirEntry struct {
	name string
	kind byte
	next int64
}

// touched says that a call is about name, wherever it is.
func (w *twins) touched(name string) {
	for _, d := range w.dirs {
		delete(d.stable, name)
	}
}

func (w *twins) openDirectory() {
	if len(w.dirs) == 3 {
		w.closeDirectory()
		return
	}
	path := []string{"m", "m", ".", w.path()}[w.rnd.IntN(4)]
	fds := [2]int{-1, -1}
	w.same("open directory "+path, func(root string, which int) string {
		fd, err := unix.Open(join(root, path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		fds[which] = fd
		return fmt.Sprint(err)
	})
	if fds[0] >= 0 {
		d := &openDir{fds: fds}
		w.dirs = append(w.dirs, d)
		w.list(d)
	}
}

func (w *twins) closeDirectory() {
	if len(w.dirs) == 0 {
		return
	}
	i := w.rnd.IntN(len(w.dirs))
	d := w.dirs[i]
	w.dirs = slices.Delete(w.dirs, i, i+1)
	w.same(fmt.Sprint("close directory ", d.fds), func(_ string, which int) string { return fmt.Sprint(unix.Close(d.fds[which])) })
}

// onDirectory makes a call on one of the open directories.
func (w *twins) onDirectory(what string, call func(d *openDir, which int) string) {
	if len(w.dirs) == 0 {
		w.openDirectory()
		return
	}
	d := w.dirs[w.rnd.IntN(len(w.dirs))]
	w.same(fmt.Sprint(what, " ", d.fds), func(_ string, which int) string { return call(d, which) })
}

// listDirectory reads a directory from its beginning to its end, and leaves the
// descriptors at the beginning.
func (w *twins) listDirectory() {
	if len(w.dirs) == 0 {
		w.openDirectory()
		return
	}
	w.list(w.dirs[w.rnd.IntN(len(w.dirs))])
}

func (w *twins) list(d *openDir) {
	size := 100 + w.rnd.IntN(4000)
	w.same(fmt.Sprint("list ", d.fds), func(_ string, which int) string {
		d.stable, d.read[which] = make(map[string]bool), nil
		list, err := listAll(d.fds[which], size)
		for _, e := range list {
			d.stable[e.name] = true
		}
		return describeList(list, err)
	})
}

func describeList(list []dirEntry, err error) string {
	var lines []string
	for _, e := range list {
		lines = append(lines, fmt.Sprintf("%s type %d", e.name, e.kind))
	}
	slices.Sort(lines)
	return fmt.Sprint(strings.Join(lines, ", "), " ", err)
}

// listAll reads all entries, size bytes at a time, and goes back to the
// beginning.
func listAll(fd, size int) (list []dirEntry, err error) {
	if _, err := unix.Seek(fd, 0, 0); err != nil {
		return nil, err
	}
	for {
		entries, err := readEntries(fd, size)
		list = append(list, entries...)
		if err != nil || len(entries) == 0 {
			_, seekErr := unix.Seek(fd, 0, 0)
			return list, errors.Join(err, seekErr)
		}
	}
}

// readEntries is getdents(2) with a buffer of size bytes.
func readEntries(fd, size int) (entries []dirEntry, err error) {
	p := make([]byte, size)
	n, err := unix.Getdents(fd, p)
	for p = p[:max(n, 0)]; len(p) > 0; {
		length := binary.NativeEndian.Uint16(p[16:])
		name, _, _ := strings.Cut(string(p[19:length]), "\x00")
		entries = append(entries, dirEntry{name: name, kind: p[18], next: int64(binary.NativeEndian.Uint64(p[8:]))})
		p = p[length:]
	}
	return entries, err
}

// readOn reads on where a directory was read last. Once that was the end,
// everything must have been listed.
func (w *twins) readOn() {
	size := 100 + w.rnd.IntN(700)
	w.onDirectory("read on", func(d *openDir, which int) string {
		entries, err := readEntries(d.fds[which], size)
		d.read[which] = append(d.read[which], entries...)
		times := make(map[string]int)
		for _, e := range d.read[which] {
			times[e.name]++
			if d.stable[e.name] && times[e.name] > 1 {
				return fmt.Sprintf("%s is listed twice", e.name)
			}
		}
		if err != nil {
			return fmt.Sprint(err)
		}
		if len(entries) > 0 {
			return ""
		}
		for name := range d.stable {
			if times[name] == 0 {
				return fmt.Sprintf("%s is not listed", name)
			}
		}
		return ""
	})
}

// seekDirectory goes back to behind some entry that was read: what followed
// then follows again.
func (w *twins) seekDirectory() {
	part := w.rnd.Float64()
	w.onDirectory("seekdir", func(d *openDir, which int) string {
		read := d.read[which]
		if len(read) == 0 {
			return ""
		}
		keep := int(part * float64(len(read)))
		d.read[which] = read[:keep+1]
		_, err := unix.Seek(d.fds[which], read[keep].next, 0)
		return fmt.Sprint(err)
	})
}

// makeInDirectory creates by a descriptor. The directory may have lost its name.
func (w *twins) makeInDirectory() {
	name, isDir := []string{"a", "b", "d"}[w.rnd.IntN(3)], w.rnd.IntN(2) == 0
	w.touched(name)
	w.onDirectory(fmt.Sprintf("make %s in", name), func(d *openDir, which int) string {
		if isDir {
			return fmt.Sprint(unix.Mkdirat(d.fds[which], name, 0o777))
		}
		return fmt.Sprint(unix.Mknodat(d.fds[which], name, unix.S_IFREG|0o666, 0))
	})
}
