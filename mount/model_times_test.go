//go:build linux

package mount

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// The random test compares which times each call changes. A time that a call
// changes on disk must change on the mount. The reverse can be asked only of a
// call before which the disk's clock, which may stand still for a tick of the
// kernel, has gone on.

// tick is longer than the coarsest clock of a kernel stands still.
const tick = 15 * time.Millisecond

type times struct {
	ino          uint64
	mtime, ctime unix.Timespec
}

// timesOf returns the times of all files that calls may be about.
func (w *twins) timesOf(which int) map[string]times {
	all := make(map[string]times)
	add := func(name string, st *unix.Stat_t) {
		all[name] = times{ino: st.Ino, mtime: st.Mtim, ctime: st.Ctim}
	}
	var st unix.Stat_t
	for _, path := range append([]string{".", "m"}, paths...) {
		if unix.Lstat(join(w.trees[which], path), &st) == nil {
			add(path, &st)
		}
	}
	for _, fds := range w.files {
		if unix.Fstat(fds[which], &st) == nil {
			add(fmt.Sprint("descriptor ", fds), &st)
		}
	}
	for _, d := range w.dirs {
		if unix.Fstat(d.fds[which], &st) == nil {
			add(fmt.Sprint("descriptor ", d.fds), &st)
		}
	}
	return all
}

// compareTimes compares what the last call changed. rested says that no change
// on disk can have gone unnoticed.
func (w *twins) compareTimes(rested bool) {
	w.t.Helper()
	before := w.times
	for which := range w.trees {
		w.times[which] = w.timesOf(which)
	}
	changed := func(which int, name string) (mtime, ctime, known bool) {
		a, known := before[which][name]
		b, still := w.times[which][name]
		return a.mtime != b.mtime, a.ctime != b.ctime, known && still && a.ino == b.ino
	}
	for name := range w.times[1] {
		diskM, diskC, known := changed(1, name)
		mountM, mountC, knownToo := changed(0, name)
		if !known || !knownToo {
			continue
		}
		if diskM && !mountM || diskC && !mountC || rested && (diskM != mountM || diskC != mountC) {
			w.differ(fmt.Sprintf("%s: mtime changed: %v, ctime changed: %v", name, mountM, mountC),
				fmt.Sprintf("%s: mtime changed: %v, ctime changed: %v", name, diskM, diskC))
		}
	}
}
