//go:build linux

package posix

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// link(2): further names of a file.

func linkNames(r *rules) {
	r.rule("link gives a file another name and counts it", func(c *check) {
		a, b := c.file("a", "content"), c.path("b")
		c.ok(unix.Link(a, b))
		equal(c, "a and b", c.stat(a), c.stat(b))
		equal(c, "links", c.stat(a).Nlink, 2)
		c.holds(b, "content")
		c.ok(unix.Unlink(a))
		equal(c, "links", c.stat(b).Nlink, 1)
		c.holds(b, "content")
	})
	r.rule("link joins directories", func(c *check) {
		a := c.file("a", "content")
		b := c.directory("dir") + "/b"
		c.ok(unix.Link(a, b))
		fd := c.open(b, unix.O_RDWR)
		c.write(fd, "C", 0)
		c.holds(a, "Content")
		c.ok(unix.Fchmod(fd, 0o600))
		equal(c, "mode", c.mode(a), 0o600)
	})
	r.rule("link takes FIFOs and sockets", func(c *check) {
		c.ok(unix.Link(c.fifo("fifo"), c.path("fifo 2")))
		equal(c, "links", c.stat(c.path("fifo")).Nlink, 2)
	})
	r.rule("link of a link names the link, or with AT_SYMLINK_FOLLOW its target", func(c *check) {
		file, link := c.file("file", ""), c.symlink("file", "link")
		c.ok(unix.Link(link, c.path("to link")))
		equal(c, "inode", c.stat(c.path("to link")).Ino, c.stat(link).Ino)
		equal(c, "links of the link", c.stat(link).Nlink, 2)
		c.ok(unix.Linkat(unix.AT_FDCWD, link, unix.AT_FDCWD, c.path("to file"), unix.AT_SYMLINK_FOLLOW))
		equal(c, "inode", c.stat(c.path("to file")).Ino, c.stat(file).Ino)
	})
	r.rule("link stops at the limit of names: EMLINK", func(c *check) {
		limit := c.traits.MaxLinks
		beyond := limit > 0
		if !beyond {
			limit = 2000
		}
		file, dir := c.file("file", ""), c.open(c.dir, unix.O_PATH)
		for i := 1; i < limit; i++ {
			if err := unix.Linkat(dir, "file", dir, fmt.Sprint(i), 0); err != nil {
				c.Fatalf("name %d: %v", i+1, err)
			}
		}
		equal(c, "links", int(c.stat(file).Nlink), limit)
		if beyond {
			c.want(unix.EMLINK, unix.Link(file, c.path("one more")))
			c.ok(unix.Unlink(c.path("1")))
			c.ok(unix.Link(file, c.path("one more")))
		}
	})
}

func linkRefuses(r *rules) {
	r.rule("link does not replace a name, of any type: EEXIST", func(c *check) {
		file := c.file("file", "")
		for _, path := range []string{file, c.file("other", ""), c.directory("dir"), c.symlink("none", "link"), c.fifo("fifo")} {
			c.want(unix.EEXIST, unix.Link(file, path))
		}
		equal(c, "links", c.stat(file).Nlink, 1)
	})
	r.rule("link of a directory is EPERM", func(c *check) {
		c.want(unix.EPERM, unix.Link(c.directory("dir"), c.path("new")))
		c.want(unix.ENOENT, statErr(c.path("new")))
	})
	r.rule("link needs a file and a directory that exist: ENOENT, ENOTDIR", func(c *check) {
		file := c.file("file", "")
		c.want(unix.ENOENT, unix.Link(c.path("none"), c.path("new")))
		c.want(unix.ENOENT, unix.Link(file, c.path("none", "new")))
		c.want(unix.ENOENT, unix.Link(file, ""))
		c.want(unix.ENOENT, unix.Link("", c.path("new")))
		c.want(unix.ENOTDIR, unix.Link(file+"/x", c.path("new")))
		c.want(unix.ENOTDIR, unix.Link(file, file+"/new"))
		c.want(unix.ENAMETOOLONG, unix.Link(file, c.path(strings.Repeat("n", 256))))
		c.want(unix.ELOOP, unix.Link(c.symlink("loop", "loop")+"/x", c.path("new")))
		c.want(unix.EINVAL, unix.Linkat(unix.AT_FDCWD, file, unix.AT_FDCWD, c.path("new"), unix.AT_REMOVEDIR))
	})
	r.rule("link needs the right to write in the directory of the new name: EACCES", func(c *check) {
		c.directory("dir")
		c.as(alice(), func() {
			c.ok(unix.Mknod("file", unix.S_IFREG|0o644, 0))
			c.want(unix.EACCES, unix.Link("file", "dir/new"))
		})
	})
	r.rule("link of an open file without a name is ENOENT", func(c *check) {
		path := c.file("file", "")
		fd := c.open(path, unix.O_RDWR)
		c.ok(unix.Unlink(path))
		c.want(unix.ENOENT, linkFD(fd, c.path("again")))
	})
}
