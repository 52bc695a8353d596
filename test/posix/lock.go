//go:build linux

package posix

import (
	"golang.org/x/sys/unix"
)

// fcntl(2) and flock(2), as far as one process can see.

// lock is an advisory lock of n bytes from at on.
func lock(fd, cmd int, kind int16, at, n int64) error {
	return unix.FcntlFlock(uintptr(fd), cmd, &unix.Flock_t{Type: kind, Start: at, Len: n})
}

func lockRanges(r *rules) {
	r.rule("locks of overlapping ranges exclude each other unless both are for reading: EAGAIN", func(c *check) {
		path := c.file("file", "content")
		a, b := c.open(path, unix.O_RDWR), c.open(path, unix.O_RDWR)
		c.ok(lock(a, unix.F_OFD_SETLK, unix.F_WRLCK, 10, 10))
		c.want(unix.EAGAIN, lock(b, unix.F_OFD_SETLK, unix.F_WRLCK, 19, 1))
		c.want(unix.EAGAIN, lock(b, unix.F_OFD_SETLK, unix.F_RDLCK, 0, 0))
		c.want(unix.EAGAIN, lock(b, unix.F_SETLK, unix.F_WRLCK, 5, 6))
		c.ok(lock(b, unix.F_OFD_SETLK, unix.F_WRLCK, 20, 1))
		c.ok(lock(a, unix.F_OFD_SETLK, unix.F_RDLCK, 10, 10))
		c.ok(lock(b, unix.F_OFD_SETLK, unix.F_RDLCK, 0, 15))
		c.ok(lock(a, unix.F_OFD_SETLK, unix.F_UNLCK, 10, 10))
		c.ok(lock(b, unix.F_OFD_SETLK, unix.F_WRLCK, 10, 10))
	})
	r.rule("F_GETLK tells which lock is in the way", func(c *check) {
		path := c.file("file", "content")
		a, b := c.open(path, unix.O_RDWR), c.open(path, unix.O_RDWR)
		c.ok(lock(a, unix.F_OFD_SETLK, unix.F_WRLCK, 10, 10))
		l := unix.Flock_t{Type: unix.F_WRLCK}
		c.ok(unix.FcntlFlock(uintptr(b), unix.F_OFD_GETLK, &l))
		equal(c, "type", l.Type, unix.F_WRLCK)
		equal(c, "start", l.Start, 10)
		equal(c, "length", l.Len, 10)
		l = unix.Flock_t{Type: unix.F_WRLCK, Start: 20}
		c.ok(unix.FcntlFlock(uintptr(b), unix.F_OFD_GETLK, &l))
		equal(c, "type", l.Type, unix.F_UNLCK)
	})
	r.rule("closing a file gives its locks back", func(c *check) {
		path := c.file("file", "content")
		a, b := c.open(path, unix.O_RDWR), c.open(path, unix.O_RDWR)
		c.ok(lock(a, unix.F_OFD_SETLK, unix.F_WRLCK, 0, 0))
		c.want(unix.EAGAIN, lock(b, unix.F_OFD_SETLK, unix.F_WRLCK, 0, 0))
		c.close(a)
		c.ok(lock(b, unix.F_OFD_SETLK, unix.F_WRLCK, 0, 0))
	})
	r.rule("a lock needs the file open for what it is for: EBADF", func(c *check) {
		path := c.file("file", "content")
		c.want(unix.EBADF, lock(c.open(path, unix.O_RDONLY), unix.F_SETLK, unix.F_WRLCK, 0, 0))
		c.want(unix.EBADF, lock(c.open(path, unix.O_WRONLY), unix.F_SETLK, unix.F_RDLCK, 0, 0))
		c.want(unix.EINVAL, lock(c.open(path, unix.O_RDWR), unix.F_SETLK, 99, 0, 0))
		c.want(unix.EINVAL, lock(c.open(path, unix.O_RDWR), unix.F_SETLK, unix.F_WRLCK, -1, 0))
	})
}

func lockFiles(r *rules) {
	r.rule("flock excludes others of the same file: EWOULDBLOCK", func(c *check) {
		path := c.file("file", "")
		a, b := c.open(path, unix.O_RDONLY), c.open(path, unix.O_RDONLY)
		c.ok(unix.Flock(a, unix.LOCK_EX))
		c.want(unix.EWOULDBLOCK, unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB))
		c.want(unix.EWOULDBLOCK, unix.Flock(b, unix.LOCK_SH|unix.LOCK_NB))
		c.ok(unix.Flock(a, unix.LOCK_SH))
		c.ok(unix.Flock(b, unix.LOCK_SH|unix.LOCK_NB))
		c.want(unix.EWOULDBLOCK, unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB))
		c.ok(unix.Flock(a, unix.LOCK_UN))
		c.ok(unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB))
		c.close(b)
		c.ok(unix.Flock(a, unix.LOCK_EX|unix.LOCK_NB))
		c.want(unix.EINVAL, unix.Flock(a, 0))
	})
	r.rule("flock of a directory works", func(c *check) {
		dir := c.directory("dir")
		a, b := c.open(dir, unix.O_RDONLY), c.open(dir, unix.O_RDONLY)
		c.ok(unix.Flock(a, unix.LOCK_EX|unix.LOCK_NB))
		c.want(unix.EWOULDBLOCK, unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB))
	})
}
