//go:build linux

package posix

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// setxattr(2), getxattr(2), listxattr(2), removexattr(2) and xattr(7).

// xattr returns the value of an extended attribute.
func (c *check) xattr(path, name string) string {
	c.Helper()
	p := make([]byte, 70000)
	n, err := unix.Lgetxattr(path, name, p)
	if err != nil {
		c.Errorf("getxattr %s: %v", name, err)
		return ""
	}
	return string(p[:n])
}

// xattrs returns the sorted names of the user's extended attributes.
func (c *check) xattrs(path string) []string {
	c.Helper()
	p := make([]byte, 70000)
	n, err := unix.Llistxattr(path, p)
	c.ok(err)
	var list []string
	for name := range bytes.SplitSeq(p[:n], []byte{0}) {
		if bytes.HasPrefix(name, []byte("user.")) {
			list = append(list, string(name))
		}
	}
	slices.Sort(list)
	return list
}

func xattrValues(r *rules) {
	r.rule("values are any bytes, of files and directories", func(c *check) {
		for _, path := range []string{c.file("file", ""), c.directory("dir")} {
			for i, value := range []string{"", "x", "\x00\xff\n", strings.Repeat("v", min(c.traits.XattrSpace-500, 1<<16))} {
				name := fmt.Sprint("user.name", i)
				c.ok(unix.Setxattr(path, name, []byte(value), 0))
				c.same(name, c.xattr(path, name), value)
				c.ok(unix.Removexattr(path, name))
			}
		}
	})
	r.rule("names are listed until they are removed", func(c *check) {
		path := c.file("file", "")
		want := []string{}
		for i := range 20 {
			name := fmt.Sprintf("user.name.%02d", i)
			c.ok(unix.Setxattr(path, name, []byte("v"), 0))
			want = append(want, name)
		}
		if got := c.xattrs(path); !slices.Equal(got, want) {
			c.Errorf("names are %q", got)
		}
		c.ok(unix.Removexattr(path, want[3]))
		if got := c.xattrs(path); !slices.Equal(got, slices.Delete(want, 3, 4)) {
			c.Errorf("names are %q", got)
		}
	})
	r.rule("attributes belong to the inode", func(c *check) {
		path := c.file("file", "")
		fd := c.open(path, unix.O_RDONLY)
		c.ok(unix.Fsetxattr(fd, "user.a", []byte("1"), 0))
		c.ok(unix.Link(path, c.path("link")))
		c.ok(unix.Rename(path, c.path("moved")))
		equal(c, "by link", c.xattr(c.path("link"), "user.a"), "1")
		equal(c, "by new name", c.xattr(c.path("moved"), "user.a"), "1")
		p := make([]byte, 10)
		n, err := unix.Fgetxattr(fd, "user.a", p)
		c.ok(err)
		equal(c, "by descriptor", string(p[:n]), "1")
		c.ok(unix.Fremovexattr(fd, "user.a"))
		equal(c, "names", len(c.xattrs(c.path("link"))), 0)
	})
	r.rule("a name has up to 255 bytes", func(c *check) {
		path, name := c.file("file", ""), "user."+strings.Repeat("n", 250)
		c.ok(unix.Setxattr(path, name, []byte("v"), 0))
		equal(c, "value", c.xattr(path, name), "v")
		c.want(unix.ERANGE, unix.Setxattr(path, name+"n", []byte("v"), 0))
		c.want(unix.ERANGE, unix.Setxattr(path, "", []byte("v"), 0))
		_, err := unix.Getxattr(path, name+"n", nil)
		c.want(unix.ERANGE, err)
		c.want(unix.ERANGE, unix.Removexattr(path, name+"n"))
	})
}

func xattrFlags(r *rules) {
	r.rule("XATTR_CREATE refuses what exists, XATTR_REPLACE what does not: EEXIST, ENODATA", func(c *check) {
		path := c.file("file", "")
		c.want(unix.ENODATA, unix.Setxattr(path, "user.a", []byte("1"), unix.XATTR_REPLACE))
		c.ok(unix.Setxattr(path, "user.a", []byte("1"), unix.XATTR_CREATE))
		c.want(unix.EEXIST, unix.Setxattr(path, "user.a", []byte("2"), unix.XATTR_CREATE))
		equal(c, "value", c.xattr(path, "user.a"), "1")
		c.ok(unix.Setxattr(path, "user.a", []byte("3"), unix.XATTR_REPLACE))
		equal(c, "value", c.xattr(path, "user.a"), "3")
		c.want(unix.EINVAL, unix.Setxattr(path, "user.a", []byte("4"), 1<<10))
	})
	r.rule("a buffer of nothing asks for the size, one too small is ERANGE", func(c *check) {
		path := c.file("file", "")
		c.ok(unix.Setxattr(path, "user.a", []byte("12345"), 0))
		n, err := unix.Getxattr(path, "user.a", nil)
		c.ok(err)
		equal(c, "size", n, 5)
		_, err = unix.Getxattr(path, "user.a", make([]byte, 4))
		c.want(unix.ERANGE, err)
		n, err = unix.Listxattr(path, nil)
		c.ok(err)
		if n < len("user.a")+1 {
			c.Errorf("size of the list is %d", n)
		}
		_, err = unix.Listxattr(path, make([]byte, 3))
		c.want(unix.ERANGE, err)
	})
}

func xattrRefuses(r *rules) {
	r.rule("an attribute that is not there is ENODATA, a file ENOENT", func(c *check) {
		path := c.file("file", "")
		_, err := unix.Getxattr(path, "user.none", make([]byte, 10))
		c.want(unix.ENODATA, err)
		c.want(unix.ENODATA, unix.Removexattr(path, "user.none"))
		_, err = unix.Getxattr(c.path("none"), "user.a", make([]byte, 10))
		c.want(unix.ENOENT, err)
		c.want(unix.ENOENT, unix.Setxattr(c.path("none"), "user.a", nil, 0))
		_, err = unix.Listxattr(c.path("none"), nil)
		c.want(unix.ENOENT, err)
	})
	r.rule("a value of more than 64 KiB is E2BIG", func(c *check) {
		path := c.file("file", "")
		c.want(unix.E2BIG, unix.Setxattr(path, "user.a", make([]byte, 1<<16+1), 0))
		equal(c, "names", len(c.xattrs(path)), 0)
	})
	r.rule("a value that finds no space is ENOSPC and leaves the others", func(c *check) {
		path := c.file("file", "")
		c.ok(unix.Setxattr(path, "user.a", []byte("1"), 0))
		err := unix.Setxattr(path, "user.b", make([]byte, 1<<16), 0)
		if c.traits.XattrSpace <= 1<<16 {
			c.want(unix.ENOSPC, err)
			equal(c, "names", len(c.xattrs(path)), 1)
		} else {
			c.ok(err)
		}
		equal(c, "value", c.xattr(path, "user.a"), "1")
	})
	r.rule("names need a namespace that there is: EOPNOTSUPP", func(c *check) {
		path := c.file("file", "")
		for _, name := range []string{"name", "none.name"} {
			c.want(unix.EOPNOTSUPP, unix.Setxattr(path, name, []byte("v"), 0))
			_, err := unix.Getxattr(path, name, make([]byte, 10))
			c.want(unix.EOPNOTSUPP, err)
		}
	})
}

func xattrNamespaces(r *rules) {
	r.rule("user attributes are of files and directories only: EPERM", func(c *check) {
		c.file("file", "")
		for _, path := range []string{c.symlink("file", "link"), c.fifo("fifo")} {
			c.want(unix.EPERM, unix.Lsetxattr(path, "user.a", []byte("1"), 0))
			_, err := unix.Lgetxattr(path, "user.a", make([]byte, 10))
			c.want(unix.ENODATA, err)
			equal(c, "names", len(c.xattrs(path)), 0)
		}
	})
	r.rule("user attributes follow the permissions of the content: EACCES", func(c *check) {
		c.ok(unix.Setxattr(c.owned("file", alice(), staff, 0o644), "user.a", []byte("1"), 0))
		c.ok(unix.Setxattr(c.owned("secret", alice(), staff, 0o600), "user.a", []byte("1"), 0))
		c.as(bob(), func() {
			equal(c, "value", c.xattr("file", "user.a"), "1")
			c.want(unix.EACCES, unix.Setxattr("file", "user.a", []byte("2"), 0))
			c.want(unix.EACCES, unix.Removexattr("file", "user.a"))
			_, err := unix.Getxattr("secret", "user.a", make([]byte, 10))
			c.want(unix.EACCES, err)
		})
		c.as(alice(), func() { c.ok(unix.Setxattr("file", "user.a", []byte("2"), 0)) })
	})
	r.rule("user attributes of a directory with S_ISVTX are set by its owner: EPERM", func(c *check) {
		c.ownedDir("dir", alice(), staff, 0o1777)
		c.as(bob(), func() { c.want(unix.EPERM, unix.Setxattr("dir", "user.a", []byte("1"), 0)) })
		c.as(alice(), func() { c.ok(unix.Setxattr("dir", "user.a", []byte("1"), 0)) })
	})
	r.rule("trusted attributes are root's and hidden from others", func(c *check) {
		path := c.owned("file", alice(), staff, 0o777)
		c.ok(unix.Setxattr(path, "trusted.a", []byte("1"), 0))
		equal(c, "value", c.xattr(path, "trusted.a"), "1")
		c.as(alice(), func() {
			_, err := unix.Getxattr("file", "trusted.a", make([]byte, 10))
			c.want(unix.ENODATA, err)
			c.want(unix.EPERM, unix.Setxattr("file", "trusted.a", []byte("2"), 0))
			c.want(unix.EPERM, unix.Removexattr("file", "trusted.a"))
			p := make([]byte, 1000)
			n, err := unix.Listxattr("file", p)
			c.ok(err)
			equal(c, "listed", strings.Contains(string(p[:n]), "trusted."), false)
		})
	})
	r.rule("trusted attributes are of links, too", func(c *check) {
		link := c.symlink("none", "link")
		c.ok(unix.Lsetxattr(link, "trusted.a", []byte("1"), 0))
		equal(c, "value", c.xattr(link, "trusted.a"), "1")
	})
}
