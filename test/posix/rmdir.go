//go:build linux

package posix

import (
	"strings"

	"golang.org/x/sys/unix"
)

// rmdir(2): removing directories, and those that are open without a name.

func rmdirRemoves(r *rules) {
	r.rule("rmdir removes an empty directory and its link to the parent", func(c *check) {
		before := c.stat(c.dir).Nlink
		dir := c.directory("dir")
		c.ok(unix.Rmdir(dir))
		c.want(unix.ENOENT, statErr(dir))
		equal(c, "links of the parent", c.stat(c.dir).Nlink, before)
		c.directory("dir")
		c.ok(unix.Rmdir(dir + "/"))
	})
	r.rule("rmdir needs no right to the directory itself", func(c *check) {
		c.ok(unix.Chmod(c.directory("dir"), 0))
		c.as(alice(), func() { c.ok(unix.Rmdir("dir")) })
	})
}

func rmdirRefuses(r *rules) {
	r.rule("rmdir of a directory with entries is ENOTEMPTY", func(c *check) {
		dir := c.directory("dir")
		for _, name := range []string{"dir/file", "dir/..."} {
			path := c.file(name, "")
			c.want(unix.ENOTEMPTY, unix.Rmdir(dir))
			c.ok(unix.Unlink(path))
		}
		c.directory("dir", "sub")
		c.want(unix.ENOTEMPTY, unix.Rmdir(dir))
		c.want(unix.ENOTEMPTY, unix.Rmdir(dir+"/sub/.."))
	})
	r.rule("rmdir of anything but a directory is ENOTDIR", func(c *check) {
		c.directory("dir")
		for _, path := range []string{c.file("file", ""), c.fifo("fifo"), c.symlink("dir", "link"), c.path("link") + "/"} {
			c.want(unix.ENOTDIR, unix.Rmdir(path))
		}
		c.want(unix.ENOTDIR, unix.Rmdir(c.path("file", "x")))
	})
	r.rule("rmdir of \".\" is EINVAL, of \"..\" ENOTEMPTY", func(c *check) {
		dir := c.directory("dir")
		c.want(unix.EINVAL, unix.Rmdir(dir+"/."))
		c.want(unix.ENOTEMPTY, unix.Rmdir(dir+"/.."))
	})
	r.rule("rmdir needs a name that exists: ENOENT", func(c *check) {
		c.want(unix.ENOENT, unix.Rmdir(c.path("none")))
		c.want(unix.ENOENT, unix.Rmdir(""))
		c.want(unix.ENOENT, unix.Rmdir(c.path("none", "x")))
		c.want(unix.ENAMETOOLONG, unix.Rmdir(c.path(strings.Repeat("n", 256))))
		c.want(unix.ELOOP, unix.Rmdir(c.symlink("loop", "loop")+"/x"))
	})
	r.rule("rmdir needs the right to write in the parent: EACCES", func(c *check) {
		c.directory("dir")
		c.directory("dir", "sub")
		c.as(alice(), func() { c.want(unix.EACCES, unix.Rmdir("dir/sub")) })
	})
}

func rmdirOpenDirectories(r *rules) {
	r.rule("nothing can be made in a removed directory: ENOENT", func(c *check) {
		dir := c.directory("dir")
		fd := c.open(dir, unix.O_RDONLY)
		file := c.file("file", "")
		c.ok(unix.Rmdir(dir))
		_, err := unix.Openat(fd, "new", unix.O_CREAT|unix.O_RDWR, 0o644)
		c.want(unix.ENOENT, err)
		c.want(unix.ENOENT, unix.Mkdirat(fd, "new", 0o755))
		c.want(unix.ENOENT, unix.Symlinkat("x", fd, "new"))
		c.want(unix.ENOENT, unix.Mknodat(fd, "new", unix.S_IFIFO, 0))
		c.want(unix.ENOENT, unix.Linkat(unix.AT_FDCWD, file, fd, "new", 0))
		c.want(unix.ENOENT, unix.Renameat(unix.AT_FDCWD, file, fd, "new"))
		_, err = unix.Openat(fd, "none", unix.O_RDONLY, 0)
		c.want(unix.ENOENT, err)
	})
	r.rule("a removed directory has no links, and listing it is ENOENT", func(c *check) {
		dir := c.directory("dir")
		fd := c.open(dir, unix.O_RDONLY)
		c.ok(unix.Rmdir(dir))
		equal(c, "links", c.fstat(fd).Nlink, 0)
		_, err := unix.Getdents(fd, make([]byte, 4096))
		c.want(unix.ENOENT, err)
		c.ok(unix.Fchmod(fd, 0o700))
		equal(c, "mode", c.fstat(fd).Mode&0o7777, 0o700)
		c.ok(unix.Fsync(fd))
	})
	r.rule("a directory replaced by rename is a removed directory", func(c *check) {
		old := c.directory("old")
		fd := c.open(old, unix.O_RDONLY)
		c.ok(unix.Rename(c.directory("new"), old))
		equal(c, "links", c.fstat(fd).Nlink, 0)
		c.want(unix.ENOENT, unix.Mkdirat(fd, "sub", 0o755))
	})
	r.rule("the working directory can be removed, and is ENOENT then", func(c *check) {
		c.directory("dir")
		c.apart(0, func() {
			c.ok(unix.Chdir("dir"))
			c.ok(unix.Rmdir("../dir"))
			_, err := unix.Getcwd(make([]byte, 4096))
			c.want(unix.ENOENT, err)
			c.want(unix.ENOENT, openErr("new", unix.O_CREAT|unix.O_RDWR))
			equal(c, "links", c.stat(".").Nlink, 0)
		})
	})
}
