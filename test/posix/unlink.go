//go:build linux

package posix

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// unlink(2): removing names, and files that are open without one.

func unlinkRemoves(r *rules) {
	r.rule("unlink removes a name of any type but a directory's", func(c *check) {
		c.file("kept", "")
		for _, path := range []string{c.file("file", ""), c.fifo("fifo"), c.symlink("kept", "link"), c.symlink("none", "dangling")} {
			c.ok(unix.Unlink(path))
			c.want(unix.ENOENT, statErr(path))
		}
		equal(c, "type of the target", c.stat(c.path("kept")).Mode&unix.S_IFMT, unix.S_IFREG)
		equal(c, "entries", len(c.entries(c.dir)), 3)
	})
	r.rule("a removed name can be used again", func(c *check) {
		path := c.file("name", "old")
		fd := c.open(path, unix.O_RDWR)
		c.ok(unix.Unlink(path))
		c.file("name", "new")
		c.holds(path, "new")
		c.same("old file", c.read(fd, 9, 0), "old")
		c.ok(unix.Unlink(path))
		c.directory("name")
	})
}

func unlinkRefuses(r *rules) {
	r.rule("unlink of a directory is EISDIR", func(c *check) {
		c.want(unix.EISDIR, unix.Unlink(c.directory("dir")))
		c.want(unix.EISDIR, unix.Unlinkat(unix.AT_FDCWD, c.path("dir"), 0))
		c.want(unix.EISDIR, unix.Unlink(c.dir+"/."))
	})
	r.rule("unlink needs a name that exists: ENOENT, ENOTDIR", func(c *check) {
		file := c.file("file", "")
		c.want(unix.ENOENT, unix.Unlink(c.path("none")))
		c.want(unix.ENOENT, unix.Unlink(""))
		c.want(unix.ENOENT, unix.Unlink(c.path("none", "x")))
		c.want(unix.ENOTDIR, unix.Unlink(file+"/x"))
		c.want(unix.ENOTDIR, unix.Unlink(file+"/"))
		c.want(unix.ENAMETOOLONG, unix.Unlink(c.path(strings.Repeat("n", 256))))
		c.want(unix.ELOOP, unix.Unlink(c.symlink("loop", "loop")+"/x"))
		c.want(unix.EINVAL, unix.Unlinkat(unix.AT_FDCWD, file, 0x4000))
	})
	r.rule("unlink needs the right to write in the directory, none to the file", func(c *check) {
		c.directory("dir")
		c.file("dir/file", "")
		c.file("file", "")
		c.ok(unix.Chmod(c.path("file"), 0))
		c.as(alice(), func() {
			c.want(unix.EACCES, unix.Unlink("dir/file"))
			c.ok(unix.Unlink("file"))
		})
	})
}

func unlinkOpenFiles(r *rules) {
	r.rule("a file that is open without a name has no links and keeps its content", func(c *check) {
		path := c.file("file", "content")
		fd := c.open(path, unix.O_RDWR)
		reader := c.open(path, unix.O_RDONLY)
		c.ok(unix.Unlink(path))
		equal(c, "links", c.fstat(fd).Nlink, 0)
		equal(c, "size", c.fstat(fd).Size, 7)
		c.same("file", c.read(reader, 99, 0), "content")
	})
	r.rule("a file that is open without a name can be written, cut and synced", func(c *check) {
		path := c.file("file", "content")
		fd, reader := c.open(path, unix.O_RDWR), c.open(path, unix.O_RDONLY)
		c.ok(unix.Unlink(path))
		long := strings.Repeat("0123456789abcdef", 100000)
		c.write(fd, long, 7)
		c.same("file", c.read(reader, 2000000, 0), "content"+long)
		c.ok(unix.Fsync(fd))
		c.ok(unix.Ftruncate(fd, 3))
		equal(c, "size", c.fstat(reader).Size, 3)
		c.ok(unix.Ftruncate(fd, 5))
		c.same("file", c.read(reader, 99, 0), "con\x00\x00")
		c.ok(unix.Fchmod(fd, 0o600))
		equal(c, "mode", c.fstat(reader).Mode&0o7777, 0o600)
		c.ok(unix.Fsetxattr(fd, "user.x", []byte("y"), 0))
		c.ok(unix.Futimes(fd, []unix.Timeval{{Sec: 1}, {Sec: 2}}))
		equal(c, "mtime", c.fstat(reader).Mtim.Sec, 2)
	})
	r.rule("a file that is replaced stays with those who have it open", func(c *check) {
		path := c.file("file", "old")
		fd := c.open(path, unix.O_RDWR)
		c.ok(unix.Rename(c.file("next", "new"), path))
		equal(c, "links", c.fstat(fd).Nlink, 0)
		c.write(fd, "!", 3)
		c.same("old file", c.read(fd, 99, 0), "old!")
		c.holds(path, "new")
	})
	r.rule("a file that is open without a name can be opened through /proc", func(c *check) {
		path := c.file("file", "content")
		fd := c.open(path, unix.O_RDWR)
		c.ok(unix.Unlink(path))
		again, err := os.Open(procPath(fd))
		c.ok(err)
		defer again.Close()
		c.same("file", c.read(int(again.Fd()), 99, 0), "content")
	})
}
