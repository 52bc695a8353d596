//go:build linux

package posix

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// open(2): what the flags do. Permissions and times have groups of their own.

func openCreates(r *rules) {
	r.rule("O_CREAT makes an empty regular file of the caller", func(c *check) {
		fd := c.open(c.path("new"), unix.O_CREAT|unix.O_WRONLY)
		st := c.fstat(fd)
		equal(c, "type", st.Mode&unix.S_IFMT, unix.S_IFREG)
		equal(c, "size", st.Size, 0)
		equal(c, "links", st.Nlink, 1)
		equal(c, "owner", st.Uid, 0)
		equal(c, "group", st.Gid, 0)
	})
	r.rule("O_CREAT opens what exists and leaves it as it is", func(c *check) {
		path := c.file("file", "content")
		c.ok(unix.Chmod(path, 0o600))
		before := c.stat(path)
		fd := c.open(path, unix.O_CREAT|unix.O_RDWR)
		equal(c, "file", c.fstat(fd), before)
		c.holds(path, "content")
	})
	r.rule("the mode of a new file counts for later opens only", func(c *check) {
		c.as(alice(), func() {
			fd, err := unix.Open("new", unix.O_CREAT|unix.O_RDWR, 0)
			c.ok(err)
			defer unix.Close(fd)
			c.write(fd, "x", 0)
			c.same("file", c.read(fd, 9, 0), "x")
			c.want(unix.EACCES, openErr("new", unix.O_RDONLY))
		})
	})
	r.rule("a missing file is ENOENT without O_CREAT", func(c *check) {
		for _, flags := range []int{unix.O_RDONLY, unix.O_RDWR | unix.O_TRUNC, unix.O_WRONLY | unix.O_APPEND, unix.O_PATH} {
			c.want(unix.ENOENT, openErr(c.path("none"), flags))
		}
		c.want(unix.ENOENT, openErr("", unix.O_RDONLY))
	})
	r.rule("a missing directory on the way is ENOENT, a file ENOTDIR, with O_CREAT too", func(c *check) {
		file := c.file("file", "")
		for _, flags := range []int{unix.O_RDONLY, unix.O_CREAT | unix.O_RDWR} {
			c.want(unix.ENOENT, openErr(c.path("none", "new"), flags))
			c.want(unix.ENOTDIR, openErr(file+"/new", flags))
		}
	})
	r.rule("O_CREAT follows a dangling link and makes its target", func(c *check) {
		link := c.symlink("target", "link")
		c.want(unix.ENOENT, openErr(link, unix.O_RDWR))
		c.open(link, unix.O_CREAT|unix.O_RDWR)
		equal(c, "type of the target", c.stat(c.path("target")).Mode&unix.S_IFMT, unix.S_IFREG)
		equal(c, "type of the link", c.stat(link).Mode&unix.S_IFMT, unix.S_IFLNK)
	})
}

func openExclusively(r *rules) {
	const create = unix.O_CREAT | unix.O_EXCL | unix.O_RDWR
	r.rule("O_EXCL makes what does not exist", func(c *check) {
		c.ok(openErr(c.path("new"), create))
		c.want(unix.EEXIST, openErr(c.path("new"), create))
	})
	r.rule("O_EXCL refuses what exists, of any type", func(c *check) {
		for _, path := range []string{c.file("file", "x"), c.directory("dir"), c.fifo("fifo"), c.symlink("file", "link")} {
			c.want(unix.EEXIST, openErr(path, create))
		}
		c.holds(c.path("file"), "x")
	})
	r.rule("O_EXCL does not follow links, not even dangling ones", func(c *check) {
		c.want(unix.EEXIST, openErr(c.symlink("none", "link"), create))
		c.want(unix.ENOENT, statErr(c.path("none")))
		c.want(unix.EEXIST, openErr(c.symlink("loop", "loop"), create))
	})
}

func openTruncates(r *rules) {
	r.rule("O_TRUNC empties a file and keeps the inode", func(c *check) {
		path := c.file("file", "content")
		before := c.stat(path)
		c.open(path, unix.O_WRONLY|unix.O_TRUNC)
		after := c.stat(path)
		equal(c, "size", after.Size, 0)
		equal(c, "inode", after.Ino, before.Ino)
		equal(c, "mode", after.Mode, before.Mode)
	})
	r.rule("O_TRUNC shows to those who have the file open", func(c *check) {
		path := c.file("file", "content")
		fd := c.open(path, unix.O_RDWR)
		c.same("file", c.read(fd, 99, 0), "content")
		c.open(path, unix.O_WRONLY|unix.O_TRUNC)
		c.same("file", c.read(fd, 99, 0), "")
		c.write(fd, "x", 3)
		c.holds(path, zeros(3)+"x")
	})
	r.rule("O_TRUNC without the right to write is EACCES and cuts nothing", func(c *check) {
		path := c.file("file", "content")
		c.as(alice(), func() {
			c.want(unix.EACCES, openErr("file", unix.O_RDONLY|unix.O_TRUNC))
			c.want(unix.EACCES, openErr("file", unix.O_WRONLY|unix.O_TRUNC))
		})
		c.holds(path, "content")
	})
	r.rule("O_TRUNC does nothing to a FIFO and is EISDIR for a directory", func(c *check) {
		c.open(c.fifo("fifo"), unix.O_RDWR|unix.O_TRUNC)
		c.want(unix.EISDIR, openErr(c.directory("dir"), unix.O_RDONLY|unix.O_TRUNC))
	})
}

func openAppends(r *rules) {
	r.rule("O_APPEND writes at the end wherever the offset is", func(c *check) {
		path := c.file("file", "12345")
		fd := c.open(path, unix.O_RDWR|unix.O_APPEND)
		p := make([]byte, 2)
		_, err := unix.Read(fd, p)
		c.ok(err)
		equal(c, "read from the start", string(p), "12")
		_, err = unix.Write(fd, []byte("67"))
		c.ok(err)
		at, err := unix.Seek(fd, 0, unix.SEEK_CUR)
		c.ok(err)
		equal(c, "offset after a write", at, 7)
		_, err = unix.Seek(fd, 0, unix.SEEK_SET)
		c.ok(err)
		_, err = unix.Write(fd, []byte("89"))
		c.ok(err)
		c.holds(path, "123456789")
	})
	r.rule("O_APPEND sees what others have appended or cut", func(c *check) {
		path := c.file("file", "")
		a, b := c.open(path, unix.O_WRONLY|unix.O_APPEND), c.open(path, unix.O_WRONLY|unix.O_APPEND)
		want := ""
		for i := range 20 {
			for _, fd := range []int{a, b} {
				text := fmt.Sprintf("%d of %d, ", i, fd)
				_, err := unix.Write(fd, []byte(text))
				c.ok(err)
				want += text
			}
		}
		c.holds(path, want)
		c.ok(unix.Truncate(path, 3))
		_, err := unix.Write(a, []byte("!"))
		c.ok(err)
		c.holds(path, want[:3]+"!")
	})
	r.rule("O_APPEND can be set and cleared by fcntl", func(c *check) {
		path := c.file("file", "12345")
		fd := c.open(path, unix.O_WRONLY)
		for _, step := range []struct {
			flags int
			text  string
		}{{unix.O_APPEND, "6"}, {0, "7"}} {
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, step.flags)
			c.ok(err)
			_, err = unix.Seek(fd, 0, unix.SEEK_SET)
			c.ok(err)
			_, err = unix.Write(fd, []byte(step.text))
			c.ok(err)
		}
		c.holds(path, "723456")
		// Also if it was opened with it.
		fd = c.open(path, unix.O_WRONLY|unix.O_APPEND)
		_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFL, 0)
		c.ok(err)
		_, err = unix.Pwrite(fd, []byte("8"), 1)
		c.ok(err)
		c.holds(path, "783456")
	})
}

func openKinds(r *rules) {
	r.rule("O_DIRECTORY takes directories only", func(c *check) {
		c.ok(openErr(c.directory("dir"), unix.O_DIRECTORY))
		c.ok(openErr(c.symlink("dir", "link"), unix.O_DIRECTORY))
		c.want(unix.ENOTDIR, openErr(c.file("file", ""), unix.O_DIRECTORY))
		c.want(unix.ENOTDIR, openErr(c.symlink("file", "to file"), unix.O_DIRECTORY))
		c.want(unix.ENOTDIR, openErr(c.fifo("fifo"), unix.O_DIRECTORY))
	})
	r.rule("O_NOFOLLOW is ELOOP for a link, but not on the way", func(c *check) {
		c.directory("dir")
		c.file("dir/file", "")
		for _, path := range []string{c.symlink("dir/file", "a"), c.symlink("none", "b"), c.symlink("dir", "c")} {
			c.want(unix.ELOOP, openErr(path, unix.O_NOFOLLOW))
			c.want(unix.ELOOP, openErr(path, unix.O_NOFOLLOW|unix.O_CREAT|unix.O_RDWR))
		}
		c.ok(openErr(c.path("c", "file"), unix.O_NOFOLLOW))
	})
	r.rule("a directory is opened for reading only, and not by read", func(c *check) {
		dir := c.directory("dir")
		for _, flags := range []int{unix.O_WRONLY, unix.O_RDWR, unix.O_RDONLY | unix.O_CREAT} {
			c.want(unix.EISDIR, openErr(dir, flags))
		}
		fd := c.open(dir, unix.O_RDONLY)
		_, err := unix.Read(fd, make([]byte, 10))
		c.want(unix.EISDIR, err)
		_, err = unix.Pread(fd, make([]byte, 10), 0)
		c.want(unix.EISDIR, err)
		_, err = unix.Write(fd, []byte("x"))
		c.want(unix.EBADF, err)
	})
	r.rule("a descriptor reads and writes as it was opened, else EBADF", func(c *check) {
		path := c.file("file", "x")
		_, err := unix.Write(c.open(path, unix.O_RDONLY), []byte("y"))
		c.want(unix.EBADF, err)
		_, err = unix.Read(c.open(path, unix.O_WRONLY), make([]byte, 1))
		c.want(unix.EBADF, err)
	})
	r.rule("O_DIRECT reads and writes whole blocks", func(c *check) {
		block, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		c.ok(err)
		defer func() { c.ok(unix.Munmap(block)) }()
		path := c.path("file")
		fd := c.open(path, unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT)
		buffered := c.open(path, unix.O_RDWR)
		for i := range block {
			block[i] = byte('a' + i%7)
		}
		n, err := unix.Pwrite(fd, block, 4096)
		c.ok(err)
		equal(c, "written", n, len(block))
		c.same("buffered", c.read(buffered, 3*4096, 0), zeros(4096)+string(block))
		c.write(buffered, "buffered", 4096)
		n, err = unix.Pread(fd, block[:4096], 4096)
		c.ok(err)
		equal(c, "read", n, 4096)
		c.same("direct", string(block[:10]), "bufferedbc")
	})
	r.rule("O_NOATIME is for the owner, EPERM for others", func(c *check) {
		path := c.file("file", "")
		c.ok(openErr(path, unix.O_RDONLY|unix.O_NOATIME))
		c.as(alice(), func() { c.want(unix.EPERM, openErr("file", unix.O_RDONLY|unix.O_NOATIME)) })
	})
}

func openPath(r *rules) {
	r.rule("O_PATH needs no right to the file and gives none", func(c *check) {
		path := c.file("file", "x")
		c.ok(unix.Chmod(path, 0))
		c.as(alice(), func() {
			fd, err := unix.Open("file", unix.O_PATH, 0)
			c.ok(err)
			defer unix.Close(fd)
			equal(c, "inode", c.fstat(fd).Ino, c.stat("file").Ino)
			_, err = unix.Read(fd, make([]byte, 1))
			c.want(unix.EBADF, err)
			_, err = unix.Write(fd, []byte("y"))
			c.want(unix.EBADF, err)
			c.want(unix.EBADF, unix.Ftruncate(fd, 0))
			c.want(unix.EBADF, unix.Fchmod(fd, 0o777))
			c.want(unix.EBADF, unix.Fchown(fd, 1, 1))
			c.want(unix.EBADF, unix.Fsync(fd))
		})
	})
	r.rule("O_PATH|O_NOFOLLOW opens the link itself", func(c *check) {
		link := c.symlink("somewhere", "link")
		fd := c.open(link, unix.O_PATH|unix.O_NOFOLLOW)
		equal(c, "type", c.fstat(fd).Mode&unix.S_IFMT, unix.S_IFLNK)
		buf := make([]byte, 100)
		n, err := unix.Readlinkat(fd, "", buf)
		c.ok(err)
		equal(c, "target", string(buf[:n]), "somewhere")
	})
	r.rule("O_PATH of a directory serves the calls that take one", func(c *check) {
		fd := c.open(c.directory("dir"), unix.O_PATH)
		c.ok(unix.Mkdirat(fd, "sub", 0o755))
		var st unix.Stat_t
		c.ok(unix.Fstatat(fd, "sub", &st, 0))
		c.ok(unix.Unlinkat(fd, "sub", unix.AT_REMOVEDIR))
		_, err := unix.Getdents(fd, make([]byte, 1000))
		c.want(unix.EBADF, err)
	})
	r.rule("a path relative to what is no directory is ENOTDIR", func(c *check) {
		fd := c.open(c.file("file", ""), unix.O_RDONLY)
		_, err := unix.Openat(fd, "x", unix.O_CREAT|unix.O_RDWR, 0o644)
		c.want(unix.ENOTDIR, err)
		_, err = unix.Openat(999999, "x", unix.O_RDONLY, 0)
		c.want(unix.EBADF, err)
	})
}

func openFIFO(r *rules) {
	r.rule("a FIFO without a reader is ENXIO for O_WRONLY|O_NONBLOCK", func(c *check) {
		path := c.fifo("fifo")
		c.want(unix.ENXIO, openErr(path, unix.O_WRONLY|unix.O_NONBLOCK))
		c.open(path, unix.O_RDONLY|unix.O_NONBLOCK)
		c.ok(openErr(path, unix.O_WRONLY|unix.O_NONBLOCK))
	})
	r.rule("what is written to a FIFO is read at its other end", func(c *check) {
		path := c.fifo("fifo")
		out := c.open(path, unix.O_RDONLY|unix.O_NONBLOCK)
		in := c.open(path, unix.O_WRONLY)
		_, err := unix.Write(in, []byte("through"))
		c.ok(err)
		p := make([]byte, 100)
		n, err := unix.Read(out, p)
		c.ok(err)
		equal(c, "read", string(p[:n]), "through")
		_, err = unix.Read(out, p)
		c.want(unix.EAGAIN, err)
		_, err = unix.Seek(out, 0, unix.SEEK_SET)
		c.want(unix.ESPIPE, err)
		_, err = unix.Pread(out, p, 0)
		c.want(unix.ESPIPE, err)
		equal(c, "size", c.stat(path).Size, 0)
	})
}
