//go:build linux

package mount

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Calls of the random test on names and attributes.

// onPath makes a call on any path.
func (w *twins) onPath(what string, call func(path string) error) {
	w.t.Helper()
	w.on(w.path(), what, call)
}

func (w *twins) on(path, what string, call func(path string) error) {
	w.t.Helper()
	w.same(what+" "+path, func(root string, _ int) string { return fmt.Sprint(call(join(root, path))) })
}

// onPaths makes a call on two paths, mostly of the same kind.
func (w *twins) onPaths(what string, call func(a, b string) error) {
	w.t.Helper()
	dir := w.rnd.IntN(2) == 0
	a, b := w.pathFor(dir), w.pathFor(dir)
	w.same(fmt.Sprintf("%s %s %s", what, a, b), func(root string, _ int) string {
		return fmt.Sprint(call(join(root, a), join(root, b)))
	})
}

// mode draws permissions. If the test is not root's, its own stay. Setgid comes
// with the right to execute: without, it once stood for something else, and who
// loses it by what is not settled.
func (w *twins) mode() uint32 {
	mode := []uint32{0o755, 0o777, 0o1777, 0o2775, 0o700, w.rnd.Uint32N(0o10000), 0o4755, 0o6777}[w.rnd.IntN(8)]
	if unix.Geteuid() != 0 {
		mode |= 0o700
	}
	if mode&0o10 == 0 {
		mode &^= 0o2000
	}
	return mode
}

func (w *twins) makeDirectory() {
	mode := w.mode() &^ 0o6000 // which mkdir(2) does not know
	w.on(w.pathFor(true), fmt.Sprintf("mkdir %o", mode), func(path string) error { return unix.Mkdir(path, mode) })
}

func (w *twins) makeNode() {
	kind := []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFREG}[w.rnd.IntN(3)]
	w.on(w.pathFor(false), fmt.Sprintf("mknod %o", kind), func(path string) error { return unix.Mknod(path, kind|0o664, 0) })
}

func (w *twins) makeSymlink() {
	target := []string{"a", "b", "d", "d/a", "e", "nothing", "a/"}[w.rnd.IntN(7)]
	w.on(w.pathFor(false), "symlink "+target, func(path string) error { return unix.Symlink(target, path) })
}

func (w *twins) makeLink() { w.onPaths("link", unix.Link) }

func (w *twins) unlink() { w.onPath("unlink", unix.Unlink) }

func (w *twins) removeDirectory() { w.onPath("rmdir", unix.Rmdir) }

func (w *twins) rename() {
	flags := []uint{0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_EXCHANGE}[w.rnd.IntN(5)]
	w.onPaths(fmt.Sprintf("rename flags %d", flags), func(a, b string) error {
		return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, flags)
	})
}

func (w *twins) changeMode() {
	mode := w.mode()
	w.onPath(fmt.Sprintf("chmod %o", mode), func(path string) error { return unix.Chmod(path, mode) })
}

func (w *twins) changeOwner() {
	ids := []int{-1, 0, 1000, 1001}
	uid, gid := ids[w.rnd.IntN(4)], ids[w.rnd.IntN(4)]
	if uid == -1 && gid == -1 {
		uid = 0 // POSIX leaves open whether a change of neither changes times
	}
	w.onPath(fmt.Sprintf("lchown %d:%d", uid, gid), func(path string) error { return unix.Lchown(path, uid, gid) })
}

func (w *twins) truncatePath() {
	size := int64(w.size())
	w.onPath(fmt.Sprintf("truncate %d", size), func(path string) error { return unix.Truncate(path, size) })
}

// setTimesBelow is more than any time that calls set, in seconds since 1970.
const setTimesBelow = 1e6

func (w *twins) setTimes() {
	ts := []unix.Timespec{{Sec: int64(w.step), Nsec: 1}, {Sec: int64(w.step), Nsec: 2}}
	switch w.rnd.IntN(4) {
	case 0:
		ts[0].Nsec, ts[1].Nsec = unix.UTIME_NOW, unix.UTIME_NOW
	case 1:
		ts[1].Nsec = unix.UTIME_OMIT
	}
	w.onPath(fmt.Sprint("utimens ", ts), func(path string) error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW)
	})
}

var xattrNames = []string{"user.a", "user.b", "user.c", "trusted.a"}

func (w *twins) setXattr() {
	name, value, flags := xattrNames[w.rnd.IntN(len(xattrNames))], make([]byte, w.rnd.IntN(100)), w.rnd.IntN(3)
	w.onPath(fmt.Sprintf("setxattr %s flags %d", name, flags), func(path string) error {
		return unix.Lsetxattr(path, name, value, flags)
	})
}

func (w *twins) removeXattr() {
	name := xattrNames[w.rnd.IntN(len(xattrNames))]
	w.onPath("removexattr "+name, func(path string) error { return unix.Lremovexattr(path, name) })
}

// access asks for the rights of the user who makes the call.
func (w *twins) access() {
	mode := w.rnd.Uint32N(8)
	w.onPath(fmt.Sprint("faccessat ", mode), func(path string) error {
		return unix.Faccessat2(unix.AT_FDCWD, path, mode, unix.AT_EACCESS)
	})
}

func (w *twins) statPath() {
	path, flags := w.path(), []int{0, unix.AT_SYMLINK_NOFOLLOW}[w.rnd.IntN(2)]
	w.same(fmt.Sprintf("fstatat %s flags %#x", path, flags), func(root string, _ int) string {
		var st unix.Stat_t
		err := unix.Fstatat(unix.AT_FDCWD, join(root, path), &st, flags)
		return fmt.Sprint(err, " ", attributes(&st))
	})
}
