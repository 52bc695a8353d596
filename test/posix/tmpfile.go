//go:build linux

package posix

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// open(2) with O_TMPFILE, and link(2) of what it opens.

// temporary opens a file without a name in dir.
func (c *check) temporary(dir string, flags int) int {
	c.Helper()
	return c.open(dir, unix.O_TMPFILE|unix.O_RDWR|flags)
}

// procPath is a path to an open file, whatever its name.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// linkFD gives an open file a name.
func linkFD(fd int, path string) error {
	return unix.Linkat(unix.AT_FDCWD, procPath(fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
}

func openTemporary(r *rules) {
	r.rule("O_TMPFILE makes a file without a name", func(c *check) {
		for _, flags := range []int{0, unix.O_EXCL} {
			fd := c.temporary(c.dir, flags)
			st := c.fstat(fd)
			equal(c, "type", st.Mode&unix.S_IFMT, unix.S_IFREG)
			equal(c, "links", st.Nlink, 0)
			equal(c, "size", st.Size, 0)
			list, err := os.ReadDir(c.dir)
			c.ok(err)
			equal(c, "entries of the directory", len(list), 0)
		}
	})
	r.rule("O_TMPFILE files are files like others", func(c *check) {
		fd := c.temporary(c.dir, 0)
		c.write(fd, "content", 1000000)
		c.same("file", c.read(fd, 100, 999999), "\x00content")
		c.ok(unix.Ftruncate(fd, 1000003))
		c.ok(unix.Fchmod(fd, 0o640))
		c.ok(unix.Fchown(fd, 12, 13))
		c.ok(unix.Fsync(fd))
		st := c.fstat(fd)
		equal(c, "size", st.Size, 1000003)
		equal(c, "mode", st.Mode, unix.S_IFREG|0o640)
		equal(c, "owner", st.Uid, 12)
		equal(c, "group", st.Gid, 13)
	})
	r.rule("O_TMPFILE files opened through /proc are the same file", func(c *check) {
		fd := c.temporary(c.dir, 0)
		c.write(fd, "content", 0)
		again := c.open(procPath(fd), unix.O_RDONLY)
		c.same("file", c.read(again, 99, 0), "content")
		equal(c, "inode", c.fstat(again).Ino, c.fstat(fd).Ino)
	})
	r.rule("O_TMPFILE needs the right to write: EINVAL", func(c *check) {
		c.want(unix.EINVAL, openErr(c.dir, unix.O_TMPFILE|unix.O_RDONLY))
		c.ok(openErr(c.dir, unix.O_TMPFILE|unix.O_WRONLY))
	})
	r.rule("O_TMPFILE in what is no directory is ENOTDIR or ENOENT", func(c *check) {
		c.want(unix.ENOTDIR, openErr(c.file("file", ""), unix.O_TMPFILE|unix.O_RDWR))
		c.want(unix.ENOENT, openErr(c.path("none"), unix.O_TMPFILE|unix.O_RDWR))
		c.want(unix.ENOTDIR, openErr(c.path("file", "x"), unix.O_TMPFILE|unix.O_RDWR))
	})
	r.rule("O_TMPFILE needs a directory that the caller may write: EACCES", func(c *check) {
		c.directory("dir")
		c.as(alice(), func() {
			c.want(unix.EACCES, openErr("dir", unix.O_TMPFILE|unix.O_RDWR))
			c.ok(openErr(".", unix.O_TMPFILE|unix.O_RDWR))
		})
	})
	r.rule("O_TMPFILE files get mode, umask, owner and group as others do", func(c *check) {
		c.ok(unix.Chown(c.directory("dir"), 0, 4711))
		c.ok(unix.Chmod(c.path("dir"), 0o2777))
		c.as(alice(), func() {
			unix.Umask(0o027)
			fd, err := unix.Open("dir", unix.O_TMPFILE|unix.O_RDWR, 0o666)
			c.ok(err)
			defer unix.Close(fd)
			st := c.fstat(fd)
			equal(c, "mode", st.Mode&0o7777, 0o640)
			equal(c, "owner", st.Uid, uint32(alice().uid))
			equal(c, "group", st.Gid, 4711)
		})
	})
}

func openTemporaryNames(r *rules) {
	r.rule("an O_TMPFILE file gets a name by linkat", func(c *check) {
		fd := c.temporary(c.dir, 0)
		c.write(fd, "content", 0)
		c.ok(linkFD(fd, c.path("name")))
		equal(c, "links", c.fstat(fd).Nlink, 1)
		equal(c, "inode", c.stat(c.path("name")).Ino, c.fstat(fd).Ino)
		c.write(fd, "!", 7)
		c.close(fd)
		c.holds(c.path("name"), "content!")
	})
	r.rule("an O_TMPFILE file gets a name by AT_EMPTY_PATH", func(c *check) {
		fd := c.temporary(c.dir, 0)
		c.ok(unix.Linkat(fd, "", unix.AT_FDCWD, c.path("name"), unix.AT_EMPTY_PATH))
		equal(c, "links", c.fstat(fd).Nlink, 1)
	})
	r.rule("an O_TMPFILE file can get several names, in any directory, and lose them", func(c *check) {
		c.directory("dir")
		fd := c.temporary(c.dir, 0)
		c.write(fd, "x", 0)
		c.ok(linkFD(fd, c.path("a")))
		c.ok(linkFD(fd, c.path("dir", "b")))
		equal(c, "links", c.fstat(fd).Nlink, 2)
		c.ok(unix.Unlink(c.path("a")))
		c.ok(unix.Unlink(c.path("dir", "b")))
		equal(c, "links", c.fstat(fd).Nlink, 0)
		c.same("file", c.read(fd, 9, 0), "x")
	})
	r.rule("an O_TMPFILE|O_EXCL file gets no name: ENOENT", func(c *check) {
		fd := c.temporary(c.dir, unix.O_EXCL)
		c.want(unix.ENOENT, linkFD(fd, c.path("name")))
		c.want(unix.ENOENT, statErr(c.path("name")))
	})
	r.rule("an O_TMPFILE file does not replace a name: EEXIST", func(c *check) {
		path := c.file("file", "old")
		fd := c.temporary(c.dir, 0)
		c.want(unix.EEXIST, linkFD(fd, path))
		c.holds(path, "old")
		c.ok(linkFD(fd, c.path("new")))
	})
}
