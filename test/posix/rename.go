//go:build linux

package posix

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// rename(2) and renameat2(2).

// rename2 is renameat2(2) of paths.
func rename2(from, to string, flags uint) error {
	return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags)
}

func renameMoves(r *rules) {
	r.rule("rename moves what is of any type", func(c *check) {
		c.directory("there")
		for name, path := range map[string]string{
			"file": c.file("file", "x"), "dir": c.directory("dir"), "link": c.symlink("none", "link"), "fifo": c.fifo("fifo"),
		} {
			before := c.stat(path)
			c.ok(unix.Rename(path, c.path("there", name)))
			c.want(unix.ENOENT, statErr(path))
			after := c.stat(c.path("there", name))
			equal(c, "inode of "+name, after.Ino, before.Ino)
			equal(c, "mode of "+name, after.Mode, before.Mode)
			equal(c, "links of "+name, after.Nlink, before.Nlink)
			equal(c, "mtime of "+name, after.Mtim, before.Mtim)
		}
		c.holds(c.path("there", "file"), "x")
	})
	r.rule("rename keeps open files open", func(c *check) {
		path := c.file("a", "content")
		fd := c.open(path, unix.O_RDWR)
		c.ok(unix.Rename(path, c.path("b")))
		c.write(fd, "C", 0)
		c.holds(c.path("b"), "Content")
	})
	r.rule("rename to another name of the same file does nothing", func(c *check) {
		a, b := c.file("a", "x"), c.path("b")
		c.ok(unix.Link(a, b))
		c.ok(unix.Rename(a, b))
		c.ok(unix.Rename(a, a))
		equal(c, "links", c.stat(a).Nlink, 2)
		equal(c, "inode", c.stat(b).Ino, c.stat(a).Ino)
		dir := c.directory("dir")
		c.ok(unix.Rename(dir, dir))
	})
	r.rule("rename of one of several names leaves the others", func(c *check) {
		a, b := c.file("a", "x"), c.path("b")
		c.ok(unix.Link(a, b))
		c.ok(unix.Rename(a, c.path("c")))
		c.want(unix.ENOENT, statErr(a))
		equal(c, "links", c.stat(b).Nlink, 2)
		equal(c, "inode", c.stat(c.path("c")).Ino, c.stat(b).Ino)
	})
}

func renameReplaces(r *rules) {
	r.rule("rename replaces a file by a file of any type", func(c *check) {
		for _, path := range []string{c.file("file", "new"), c.symlink("none", "link"), c.fifo("fifo")} {
			old := c.file("old", "old")
			ino := c.stat(path).Ino
			c.ok(unix.Rename(path, old))
			equal(c, "inode", c.stat(old).Ino, ino)
		}
	})
	r.rule("rename replaces links, not what they point to", func(c *check) {
		target, link := c.file("target", "target"), c.symlink("target", "link")
		c.ok(unix.Rename(c.file("new", "new"), link))
		c.holds(link, "new")
		c.holds(target, "target")
	})
	r.rule("rename takes a link from the file it replaces", func(c *check) {
		a, b := c.file("a", "a"), c.path("b")
		c.ok(unix.Link(a, b))
		c.ok(unix.Rename(c.file("new", "new"), a))
		equal(c, "links", c.stat(b).Nlink, 1)
		c.holds(b, "a")
		c.holds(a, "new")
	})
	r.rule("rename replaces an empty directory by a directory", func(c *check) {
		before := c.stat(c.dir).Nlink
		full := c.directory("full")
		c.file("full/file", "x")
		empty := c.directory("empty")
		c.ok(unix.Rename(full, empty))
		c.holds(c.path("empty", "file"), "x")
		c.want(unix.ENOENT, statErr(full))
		if links := c.stat(c.dir).Nlink; links > before+1 {
			c.Errorf("parent has %d links, had %d and got one directory", links, before)
		}
	})
}

func renameRefuses(r *rules) {
	r.rule("rename onto a directory with entries is ENOTEMPTY", func(c *check) {
		dir, full := c.directory("dir"), c.directory("full")
		c.file("full/file", "")
		c.want(unix.ENOTEMPTY, unix.Rename(dir, full))
		c.want(unix.ENOTEMPTY, unix.Rename(full, c.dir))
		equal(c, "type", c.stat(dir).Mode&unix.S_IFMT, unix.S_IFDIR)
	})
	r.rule("rename of a directory onto a file is ENOTDIR, of a file onto a directory EISDIR", func(c *check) {
		dir, file := c.directory("dir"), c.file("file", "x")
		c.want(unix.ENOTDIR, unix.Rename(dir, file))
		c.want(unix.ENOTDIR, unix.Rename(dir, c.symlink("dir", "link")))
		c.want(unix.EISDIR, unix.Rename(file, dir))
		c.want(unix.EISDIR, unix.Rename(c.path("link"), dir))
		c.holds(file, "x")
	})
	r.rule("rename of a directory into itself is EINVAL", func(c *check) {
		dir := c.directory("dir")
		deep := c.directory("dir", "sub")
		c.want(unix.EINVAL, unix.Rename(dir, dir+"/new"))
		c.want(unix.EINVAL, unix.Rename(dir, deep+"/new"))
		c.want(unix.EINVAL, unix.Rename(dir, deep))
		c.want(unix.ENOTEMPTY, unix.Rename(deep, dir))
	})
	r.rule("rename of \".\" or \"..\" is EBUSY", func(c *check) {
		dir := c.directory("dir")
		for _, dots := range []string{dir + "/.", dir + "/.."} {
			c.want(unix.EBUSY, unix.Rename(dots, c.path("new")))
			c.want(unix.EBUSY, unix.Rename(c.file("file", ""), dots))
		}
	})
	r.rule("rename needs names that exist: ENOENT, ENOTDIR", func(c *check) {
		file := c.file("file", "")
		c.want(unix.ENOENT, unix.Rename(c.path("none"), c.path("new")))
		c.want(unix.ENOENT, unix.Rename(c.path("none"), file))
		c.want(unix.ENOENT, unix.Rename(file, c.path("none", "new")))
		c.want(unix.ENOENT, unix.Rename(file, ""))
		c.want(unix.ENOENT, unix.Rename("", file))
		c.want(unix.ENOTDIR, unix.Rename(file+"/x", c.path("new")))
		c.want(unix.ENOTDIR, unix.Rename(file, file+"/new"))
		c.want(unix.ENOTDIR, unix.Rename(file+"/", c.path("new")))
		c.want(unix.ENOTDIR, unix.Rename(file, c.path("new")+"/"))
		c.want(unix.ENAMETOOLONG, unix.Rename(file, c.path(strings.Repeat("n", 256))))
		c.want(unix.ELOOP, unix.Rename(c.symlink("loop", "loop")+"/x", c.path("new")))
	})
	r.rule("rename needs the right to write in both directories: EACCES", func(c *check) {
		c.directory("dir")
		c.file("dir/file", "")
		c.as(alice(), func() {
			c.want(unix.EACCES, unix.Rename("dir/file", "new"))
			c.ok(unix.Mknod("mine", unix.S_IFREG|0o644, 0))
			c.want(unix.EACCES, unix.Rename("mine", "dir/new"))
			c.want(unix.EACCES, unix.Rename("mine", "dir/file"))
		})
	})
	r.rule("rename to another parent needs the right to write in the directory that moves: EACCES", func(c *check) {
		c.directory("dir")
		c.ok(unix.Mkdir(c.path("there"), 0o777))
		c.ok(unix.Chmod(c.path("there"), 0o777))
		c.as(alice(), func() {
			c.want(unix.EACCES, unix.Rename("dir", "there/dir"))
			c.ok(unix.Rename("dir", "renamed"))
		})
	})
}

func renameFlags(r *rules) {
	r.rule("RENAME_NOREPLACE refuses a name that exists, of any type: EEXIST", func(c *check) {
		file := c.file("file", "file")
		for _, path := range []string{c.file("other", "other"), c.directory("dir"), c.symlink("none", "link"), c.fifo("fifo"), file} {
			c.want(unix.EEXIST, rename2(file, path, unix.RENAME_NOREPLACE))
		}
		c.holds(c.path("other"), "other")
		c.ok(rename2(file, c.path("new"), unix.RENAME_NOREPLACE))
		c.holds(c.path("new"), "file")
		c.want(unix.ENOENT, rename2(file, c.path("newer"), unix.RENAME_NOREPLACE))
	})
	r.rule("RENAME_EXCHANGE swaps what is of any type", func(c *check) {
		dir, file, link := c.directory("dir"), c.file("file", "file"), c.symlink("none", "link")
		c.file("dir/inside", "inside")
		c.ok(rename2(dir, file, unix.RENAME_EXCHANGE))
		c.holds(c.path("file", "inside"), "inside")
		c.holds(dir, "file")
		c.ok(rename2(dir, link, unix.RENAME_EXCHANGE))
		c.holds(link, "file")
		equal(c, "type", c.stat(dir).Mode&unix.S_IFMT, unix.S_IFLNK)
		c.ok(rename2(link, link, unix.RENAME_EXCHANGE))
	})
	r.rule("RENAME_EXCHANGE moves \"..\" and links between parents", func(c *check) {
		a, b := c.directory("a"), c.directory("b")
		dir, file := c.directory("a", "dir"), c.file("b/file", "file")
		c.ok(rename2(dir, file, unix.RENAME_EXCHANGE))
		equal(c, "\"..\"", c.stat(b+"/file/..").Ino, c.stat(b).Ino)
		c.holds(a+"/dir", "file")
		c.ok(unix.Unlink(a + "/dir"))
		c.ok(unix.Rmdir(a))
		c.ok(unix.Rmdir(b + "/file"))
	})
	r.rule("RENAME_EXCHANGE needs both names: ENOENT", func(c *check) {
		file := c.file("file", "file")
		c.want(unix.ENOENT, rename2(file, c.path("none"), unix.RENAME_EXCHANGE))
		c.want(unix.ENOENT, rename2(c.path("none"), file, unix.RENAME_EXCHANGE))
		c.holds(file, "file")
	})
	r.rule("RENAME_EXCHANGE of a directory with what is below it is EINVAL", func(c *check) {
		dir := c.directory("dir")
		sub := c.directory("dir", "sub")
		c.want(unix.EINVAL, rename2(dir, sub, unix.RENAME_EXCHANGE))
		c.want(unix.EINVAL, rename2(sub, dir, unix.RENAME_EXCHANGE))
	})
	r.rule("flags that exclude each other or do not exist are EINVAL", func(c *check) {
		a, b := c.file("a", "a"), c.file("b", "b")
		c.want(unix.EINVAL, rename2(a, b, unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE))
		c.want(unix.EINVAL, rename2(a, b, unix.RENAME_WHITEOUT|unix.RENAME_EXCHANGE))
		c.want(unix.EINVAL, rename2(a, b, 1<<10))
		c.holds(b, "b")
	})
	r.rule("RENAME_WHITEOUT leaves a whiteout, or is EINVAL where there are none", func(c *check) {
		a := c.file("a", "a")
		err := rename2(a, c.path("b"), unix.RENAME_WHITEOUT)
		if !c.traits.Whiteouts {
			c.want(unix.EINVAL, err)
			c.holds(a, "a")
			return
		}
		c.ok(err)
		equal(c, "type", c.stat(a).Mode&unix.S_IFMT, unix.S_IFCHR)
		equal(c, "device", c.stat(a).Rdev, 0)
		c.ok(os.Remove(a))
	})
}

func renameDirectories(r *rules) {
	r.rule("a directory that moves has a new \"..\"", func(c *check) {
		here, there := c.directory("here"), c.directory("there")
		dir := c.directory("here", "dir")
		fd := c.open(dir, unix.O_RDONLY)
		links := c.stat(here).Nlink
		c.ok(unix.Rename(dir, there+"/dir"))
		var st unix.Stat_t
		c.ok(unix.Fstatat(fd, "..", &st, 0))
		equal(c, "\"..\" by an open descriptor", st.Ino, c.stat(there).Ino)
		equal(c, "\"..\" by path", c.stat(there+"/dir/..").Ino, c.stat(there).Ino)
		for _, e := range c.list(fd, 4096) {
			if e.name == ".." {
				equal(c, "\"..\" by readdir", e.ino, c.stat(there).Ino)
			}
		}
		equal(c, "links of the new parent", c.stat(there).Nlink, links)
		c.ok(unix.Rmdir(here))
	})
	r.rule("what is in a directory that moves, moves with it", func(c *check) {
		c.directory("a")
		c.directory("a", "b")
		path := c.file("a/b/file", "x")
		fd := c.open(path, unix.O_RDWR)
		dir := c.open(c.path("a", "b"), unix.O_PATH)
		c.ok(unix.Rename(c.path("a"), c.path("moved")))
		c.want(unix.ENOENT, statErr(path))
		c.write(fd, "y", 0)
		c.holds(c.path("moved", "b", "file"), "y")
		c.ok(unix.Mkdirat(dir, "new", 0o755))
		equal(c, "type", c.stat(c.path("moved", "b", "new")).Mode&unix.S_IFMT, unix.S_IFDIR)
	})
	r.rule("directories can change places level by level", func(c *check) {
		c.directory("a")
		c.directory("a", "b")
		c.directory("a", "b", "c")
		c.ok(unix.Rename(c.path("a", "b", "c"), c.path("c")))
		c.ok(unix.Rename(c.path("a"), c.path("c", "a")))
		c.want(unix.EINVAL, unix.Rename(c.path("c"), c.path("c", "a", "b", "c")))
		equal(c, "inode of \"../..\"", c.stat(c.path("c", "a", "b")+"/../..").Ino, c.stat(c.path("c")).Ino)
	})
}
