//go:build linux

package posix

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// symlink(2), readlink(2), and how paths follow links (path_resolution(7)).

func symlinkMakes(r *rules) {
	r.rule("a link holds its target as it was given", func(c *check) {
		for i, target := range []string{"a", "../../no/where", "/", "//a//./b/", "with\nbytes \xff\x01", strings.Repeat("x", 59), strings.Repeat("y", 60), strings.Repeat("z/", 1000)} {
			link := c.symlink(target, fmt.Sprint(i))
			buf := make([]byte, 4096)
			n, err := unix.Readlink(link, buf)
			c.ok(err)
			c.same("link", string(buf[:n]), target)
			st := c.stat(link)
			equal(c, "size", st.Size, int64(len(target)))
			equal(c, "mode", st.Mode, unix.S_IFLNK|0o777)
			equal(c, "links", st.Nlink, 1)
		}
	})
	r.rule("a target may be as long as a path: 4095 bytes", func(c *check) {
		target := strings.Repeat("x", 4095)
		link := c.symlink(target, "link")
		buf := make([]byte, 5000)
		n, err := unix.Readlink(link, buf)
		c.ok(err)
		c.same("link", string(buf[:n]), target)
		c.want(unix.ENAMETOOLONG, unix.Symlink(target+"x", c.path("longer")))
	})
	r.rule("readlink cuts what the buffer has no space for", func(c *check) {
		link := c.symlink("0123456789", "link")
		buf := []byte("xxxxx")
		n, err := unix.Readlink(link, buf[:4])
		c.ok(err)
		equal(c, "bytes", n, 4)
		equal(c, "buffer", string(buf), "0123x")
	})
	r.rule("a new link is the caller's", func(c *check) {
		c.as(alice(), func() {
			c.ok(unix.Symlink("x", "link"))
			equal(c, "owner", c.stat("link").Uid, uint32(alice().uid))
			equal(c, "group", c.stat("link").Gid, uint32(alice().gid))
		})
	})
}

func symlinkRefuses(r *rules) {
	r.rule("symlink does not replace a name, of any type: EEXIST", func(c *check) {
		for _, path := range []string{c.file("file", ""), c.directory("dir"), c.fifo("fifo"), c.symlink("none", "link")} {
			c.want(unix.EEXIST, unix.Symlink("x", path))
		}
	})
	r.rule("symlink needs a target, a name, and a directory to put it in", func(c *check) {
		c.want(unix.ENOENT, unix.Symlink("", c.path("new")))
		c.want(unix.ENOENT, unix.Symlink("x", ""))
		c.want(unix.ENOENT, unix.Symlink("x", c.path("none", "new")))
		c.want(unix.ENOTDIR, unix.Symlink("x", c.file("file", "")+"/new"))
		c.want(unix.ENAMETOOLONG, unix.Symlink("x", c.path(strings.Repeat("n", 256))))
		c.want(unix.ELOOP, unix.Symlink("x", c.symlink("loop", "loop")+"/new"))
		c.directory("dir")
		c.as(alice(), func() { c.want(unix.EACCES, unix.Symlink("x", "dir/new")) })
	})
	r.rule("readlink of what is no link is EINVAL", func(c *check) {
		buf := make([]byte, 10)
		for _, path := range []string{c.file("file", ""), c.directory("dir"), c.fifo("fifo")} {
			_, err := unix.Readlink(path, buf)
			c.want(unix.EINVAL, err)
		}
		_, err := unix.Readlink(c.path("none"), buf)
		c.want(unix.ENOENT, err)
		_, err = unix.Readlink(c.path("file", "x"), buf)
		c.want(unix.ENOTDIR, err)
	})
}

func symlinkFollows(r *rules) {
	r.rule("40 links are followed, 41 are ELOOP", func(c *check) {
		c.file("0", "here")
		for i := 1; i <= 41; i++ {
			c.symlink(fmt.Sprint(i-1), fmt.Sprint(i))
		}
		c.holds(c.path("40"), "here")
		var st unix.Stat_t
		c.want(unix.ELOOP, unix.Stat(c.path("41"), &st))
		c.want(unix.ELOOP, openErr(c.path("41"), unix.O_RDONLY))
	})
	r.rule("links that go round are ELOOP", func(c *check) {
		a := c.symlink("b", "a")
		c.symlink("a", "b")
		var st unix.Stat_t
		for _, err := range []error{
			unix.Stat(a, &st), openErr(a, unix.O_CREAT|unix.O_RDWR), unix.Chmod(a, 0o644), unix.Truncate(a, 0),
			unix.Chown(a, 0, 0), unix.Access(a, unix.F_OK), unix.Chdir(a), statErr(a + "/x"),
		} {
			c.want(unix.ELOOP, err)
		}
	})
	r.rule("relative links start where they are", func(c *check) {
		c.directory("dir")
		c.file("dir/file", "inside")
		c.file("file", "outside")
		c.symlink("file", "dir/a")
		c.symlink("../file", "dir/b")
		c.symlink("dir", "to dir")
		c.holds(c.path("to dir", "a"), "inside")
		c.holds(c.path("to dir", "b"), "outside")
	})
	r.rule("\"..\" after a link is the parent of its target", func(c *check) {
		c.directory("a")
		c.directory("a", "b")
		c.symlink("a/b", "link")
		equal(c, "inode", c.stat(c.dir+"/link/..").Ino, c.stat(c.path("a")).Ino)
	})
	r.rule("a link counts as its target for what changes files", func(c *check) {
		file, link := c.file("file", "content"), c.symlink("file", "link")
		c.ok(unix.Chmod(link, 0o600))
		equal(c, "mode", c.mode(file), 0o600)
		c.ok(unix.Truncate(link, 3))
		c.holds(file, "con")
		c.ok(unix.Chown(link, 12, 13))
		equal(c, "owner of the file", c.stat(file).Uid, 12)
		equal(c, "owner of the link", c.stat(link).Uid, 0)
		c.ok(unix.Lchown(link, 14, 15))
		equal(c, "owner of the file", c.stat(file).Uid, 12)
		equal(c, "owner of the link", c.stat(link).Uid, 14)
		equal(c, "group of the link", c.stat(link).Gid, 15)
	})
}
