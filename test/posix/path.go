//go:build linux

package posix

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Names and paths (path_resolution(7)).

func pathNames(r *rules) {
	r.rule("a name is any bytes but NUL and slash", func(c *check) {
		names := []string{"\xff\xfe", "\x01\x7f", "a\nb", " ", "...", "-rf", "\xc3\xa9", "e\xcc\x81", "Case", "case", "~", "a:b*?\"<>|\\"}
		for _, name := range names {
			c.file(name, name)
		}
		found := make(map[string]bool)
		for _, e := range c.entries(c.dir) {
			found[e.name] = true
		}
		for _, name := range names {
			c.holds(c.path(name), name)
			if !found[name] {
				c.Errorf("%q is not listed", name)
			}
		}
		equal(c, "entries", len(found), len(names)+2)
	})
	r.rule("every single byte is a name", func(c *check) {
		n := 0
		for b := 1; b < 256; b++ {
			if name := string([]byte{byte(b)}); name != "/" && name != "." {
				c.ok(unix.Mknod(c.dir+"/"+name, unix.S_IFREG|0o600, 0))
				n++
			}
		}
		equal(c, "entries", len(c.entries(c.dir)), n+2)
	})
}

func pathLengths(r *rules) {
	r.rule("a name has up to 255 bytes, 256 are ENAMETOOLONG", func(c *check) {
		name := strings.Repeat("é", 127) + "x"
		path := c.file(name, "long")
		c.holds(path, "long")
		found := false
		for _, e := range c.entries(c.dir) {
			found = found || e.name == name
		}
		equal(c, "listed", found, true)
		var st unix.Stat_t
		for _, err := range []error{
			openErr(path+"x", unix.O_CREAT|unix.O_RDWR), openErr(path+"x", unix.O_RDONLY), unix.Mkdir(path+"x", 0o755),
			unix.Stat(path+"x", &st), statErr(path + "x/y"), unix.Truncate(path+"x", 0), unix.Chmod(path+"x", 0),
			unix.Rename(path, path+"x"), unix.Symlink("x", path+"x"), unix.Link(path, path+"x"),
		} {
			c.want(unix.ENAMETOOLONG, err)
		}
	})
	r.rule("a path has up to 4095 bytes, 4096 are ENAMETOOLONG", func(c *check) {
		c.file("file", "x")
		fill := func(n int) string { return c.dir + strings.Repeat("/", n-len(c.dir)-len("file")) + "file" }
		c.holds(fill(4095), "x")
		c.want(unix.ENAMETOOLONG, statErr(fill(4096)))
		c.want(unix.ENAMETOOLONG, openErr(fill(4096), unix.O_RDONLY))
		c.want(unix.ENAMETOOLONG, unix.Mkdir(fill(5000), 0o755))
	})
	r.rule("a tree may be deeper than a path is long", func(c *check) {
		const depth = 100
		name := strings.Repeat("d", 200)
		fd := c.open(c.dir, unix.O_PATH)
		for range depth {
			c.ok(unix.Mkdirat(fd, name, 0o755))
			next, err := unix.Openat(fd, name, unix.O_PATH|unix.O_CLOEXEC, 0)
			c.ok(err)
			c.closes(next)
			fd = next
		}
		file, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
		c.ok(err)
		c.closes(file)
		c.write(file, "deep", 0)
		for range depth {
			up, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_CLOEXEC, 0)
			c.ok(err)
			c.closes(up)
			fd = up
		}
		equal(c, "inode of the top", c.fstat(fd).Ino, c.stat(c.dir).Ino)
	})
}

func pathSlashes(r *rules) {
	r.rule("repeated slashes and \".\" count for nothing", func(c *check) {
		c.directory("dir")
		c.file("dir/file", "x")
		c.holds(c.dir+"//dir/././//file", "x")
		equal(c, "inode", c.stat(c.dir+"/dir/../dir/.").Ino, c.stat(c.path("dir")).Ino)
	})
	r.rule("a slash at the end wants a directory: ENOTDIR", func(c *check) {
		file := c.file("file", "x") + "/"
		var st unix.Stat_t
		for _, err := range []error{
			unix.Stat(file, &st), unix.Lstat(file, &st), openErr(file, unix.O_RDONLY), unix.Chmod(file, 0o600),
			unix.Truncate(file, 0), unix.Access(file, unix.F_OK), unix.Link(file, c.path("new")), unix.Unlink(file),
		} {
			c.want(unix.ENOTDIR, err)
		}
		c.holds(c.path("file"), "x")
	})
	r.rule("a slash at the end follows a link to a directory", func(c *check) {
		dir, link := c.directory("dir"), c.symlink("dir", "link")
		equal(c, "inode", c.stat(link+"/").Ino, c.stat(dir).Ino)
		c.ok(openErr(link+"/", unix.O_NOFOLLOW|unix.O_DIRECTORY))
	})
	r.rule("a slash at the end of a name that is to be made is for mkdir only", func(c *check) {
		c.want(unix.EISDIR, openErr(c.path("new")+"/", unix.O_CREAT|unix.O_RDWR))
		c.want(unix.ENOENT, unix.Mknod(c.path("new")+"/", unix.S_IFREG|0o644, 0))
		c.want(unix.ENOENT, unix.Symlink("x", c.path("new")+"/"))
		c.want(unix.ENOENT, unix.Link(c.file("file", ""), c.path("new")+"/"))
		c.ok(unix.Rename(c.directory("dir"), c.path("moved")+"/"))
	})
}

func pathDirectories(r *rules) {
	r.rule("a file on the way is ENOTDIR, nothing on the way ENOENT", func(c *check) {
		c.file("file", "")
		c.symlink("file", "link")
		c.symlink("none", "dangling")
		var st unix.Stat_t
		for path, want := range map[string]error{
			"file/x": unix.ENOTDIR, "link/x": unix.ENOTDIR, "file/..": unix.ENOTDIR, "file/.": unix.ENOTDIR,
			"none/x": unix.ENOENT, "dangling/x": unix.ENOENT, "none/..": unix.ENOENT,
		} {
			if err := unix.Stat(c.dir+"/"+path, &st); err != want {
				c.Errorf("%s: error is %v, want %v", path, err, want)
			}
		}
	})
	r.rule("\"..\" and \".\" are the parent and the directory", func(c *check) {
		dir := c.directory("dir")
		sub := c.directory("dir", "sub")
		equal(c, "inode of \".\"", c.stat(sub+"/.").Ino, c.stat(sub).Ino)
		equal(c, "inode of \"..\"", c.stat(sub+"/..").Ino, c.stat(dir).Ino)
	})
	r.rule("the working directory can be in the tree and move with it", func(c *check) {
		c.directory("a")
		c.directory("a", "b")
		c.apart(0, func() {
			c.ok(unix.Chdir("a/b"))
			c.ok(unix.Rename(c.path("a"), c.path("moved")))
			buf := make([]byte, 4096)
			n, err := unix.Getcwd(buf)
			c.ok(err)
			if got := string(buf[:n-1]); !strings.HasSuffix(got, "/moved/b") {
				c.Errorf("working directory is %q", got)
			}
			equal(c, "\"..\"", c.stat("..").Ino, c.stat(c.path("moved")).Ino)
		})
	})
}

func pathHandles(r *rules) {
	open := func(c *check, handle unix.FileHandle) (int, error) {
		c.Helper()
		fd, err := unix.OpenByHandleAt(c.open(c.dir, unix.O_RDONLY), handle, unix.O_RDWR|unix.O_CLOEXEC)
		if err == nil {
			c.closes(fd)
		}
		return fd, err
	}
	r.rule("a handle opens a file wherever it is", func(c *check) {
		path := c.file("file", "content")
		handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
		c.ok(err)
		again, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
		c.ok(err)
		equal(c, "handle", string(again.Bytes()), string(handle.Bytes()))
		c.ok(unix.Rename(path, c.directory("dir")+"/moved"))
		fd, err := open(c, handle)
		c.ok(err)
		c.same("file", c.read(fd, 99, 0), "content")
	})
	r.rule("a handle of a file that is gone is ESTALE", func(c *check) {
		path := c.path("file")
		c.ok(unix.Mknod(path, unix.S_IFREG|0o644, 0))
		handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
		c.ok(err)
		c.ok(unix.Unlink(path))
		_, err = open(c, handle)
		c.want(unix.ESTALE, err)
	})
}
