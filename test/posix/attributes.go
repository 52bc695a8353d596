//go:build linux

package posix

import (
	"strings"

	"golang.org/x/sys/unix"
)

// stat(2) and statx(2).

func attrInode(r *rules) {
	r.rule("an inode keeps its number through all that happens to it", func(c *check) {
		path := c.file("file", "x")
		st := c.stat(path)
		fd := c.open(path, unix.O_RDWR)
		c.write(fd, "more", 1)
		c.ok(unix.Fsync(fd))
		c.ok(unix.Rename(path, c.path("moved")))
		c.ok(unix.Link(c.path("moved"), c.path("linked")))
		for _, now := range []unix.Stat_t{c.fstat(fd), c.stat(c.path("moved")), c.stat(c.path("linked"))} {
			equal(c, "inode", now.Ino, st.Ino)
			equal(c, "device", now.Dev, st.Dev)
		}
		c.ok(unix.Unlink(c.path("moved")))
		c.ok(unix.Unlink(c.path("linked")))
		equal(c, "inode", c.fstat(fd).Ino, st.Ino)
	})
	r.rule("inodes have numbers of their own, on one device", func(c *check) {
		seen := make(map[uint64]string)
		for _, path := range []string{c.dir, c.file("file", ""), c.directory("dir"), c.symlink("file", "link"), c.fifo("fifo")} {
			st := c.stat(path)
			equal(c, "device", st.Dev, c.stat(c.dir).Dev)
			if seen[st.Ino] != "" || st.Ino == 0 {
				c.Errorf("%s has inode %d, as has %q", path, st.Ino, seen[st.Ino])
			}
			seen[st.Ino] = path
		}
	})
	r.rule("stat through a descriptor and through a path agree", func(c *check) {
		path := c.file("file", "x")
		fd := c.open(path, unix.O_RDWR)
		c.write(fd, strings.Repeat("x", 3000000), 0)
		equal(c, "size by path", c.stat(path).Size, 3000000)
		equal(c, "size by descriptor", c.fstat(fd).Size, 3000000)
		c.ok(unix.Fsync(fd))
		equal(c, "stat", c.fstat(fd), c.stat(path))
	})
	r.rule("stat of what is missing is ENOENT or ENOTDIR, of no descriptor EBADF", func(c *check) {
		var st unix.Stat_t
		c.want(unix.ENOENT, unix.Stat(c.path("none"), &st))
		c.want(unix.ENOENT, unix.Stat(c.symlink("none", "link"), &st))
		c.want(unix.ENOENT, unix.Stat("", &st))
		c.want(unix.ENOTDIR, unix.Stat(c.file("file", "")+"/x", &st))
		c.want(unix.EBADF, unix.Fstat(999999, &st))
		c.ok(unix.Lstat(c.path("link"), &st))
	})
}

func attrLinks(r *rules) {
	r.rule("a directory has two links and one for each directory in it", func(c *check) {
		dir := c.directory("dir")
		equal(c, "links when empty", c.stat(dir).Nlink, 2)
		c.file("dir/file", "")
		c.symlink("x", "dir/link")
		equal(c, "links with files", c.stat(dir).Nlink, 2)
		for i, name := range []string{"a", "b", "c"} {
			c.directory("dir", name)
			equal(c, "links", int(c.stat(dir).Nlink), 3+i)
		}
		c.ok(unix.Rename(c.path("dir", "a"), c.path("a")))
		equal(c, "links after one moved out", c.stat(dir).Nlink, 4)
		c.ok(unix.Rename(c.path("dir", "b"), c.path("dir", "c")))
		equal(c, "links after one replaced another", c.stat(dir).Nlink, 3)
		c.ok(rename2(c.path("dir", "c"), c.path("dir", "file"), unix.RENAME_EXCHANGE))
		equal(c, "links after one was exchanged with a file", c.stat(dir).Nlink, 3)
		c.ok(unix.Rmdir(c.path("dir", "file")))
		equal(c, "links after all are gone", c.stat(dir).Nlink, 2)
	})
}

func attrBlocks(r *rules) {
	r.rule("a file with content occupies blocks, an empty one none", func(c *check) {
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		equal(c, "blocks when empty", c.fstat(fd).Blocks, 0)
		c.write(fd, strings.Repeat("x", 1<<20), 0)
		c.ok(unix.Fsync(fd))
		st := c.fstat(fd)
		if st.Blocks < 1 || st.Blocks > 2*(2<<20)/512 {
			c.Errorf("1 MiB occupies %d blocks of 512 bytes", st.Blocks)
		}
		if st.Blksize < 512 || st.Blksize&(st.Blksize-1) != 0 {
			c.Errorf("block size is %d", st.Blksize)
		}
		c.ok(unix.Ftruncate(fd, 0))
		equal(c, "blocks after truncation", c.fstat(fd).Blocks, 0)
	})
	r.rule("a file of holes occupies fewer blocks than its size", func(c *check) {
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		c.ok(unix.Ftruncate(fd, 1<<30))
		c.write(fd, "x", 1<<29)
		c.ok(unix.Fsync(fd))
		st := c.fstat(fd)
		equal(c, "size", st.Size, 1<<30)
		if st.Blocks > 1<<29/512 {
			c.Errorf("1 GiB of holes occupies %d blocks", st.Blocks)
		}
	})
}

func attrStatx(r *rules) {
	statx := func(c *check, path string) unix.Statx_t {
		c.Helper()
		var st unix.Statx_t
		c.ok(unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st))
		return st
	}
	r.rule("statx and stat agree", func(c *check) {
		path := c.file("file", "content")
		x, st := statx(c, path), c.stat(path)
		equal(c, "basic stats told", x.Mask&unix.STATX_BASIC_STATS, unix.STATX_BASIC_STATS)
		equal(c, "inode", x.Ino, st.Ino)
		equal(c, "size", int64(x.Size), st.Size)
		equal(c, "mode", uint32(x.Mode), st.Mode)
		equal(c, "links", uint64(x.Nlink), uint64(st.Nlink))
		equal(c, "mtime", x.Mtime.Sec, st.Mtim.Sec)
		equal(c, "mtime", int64(x.Mtime.Nsec), st.Mtim.Nsec)
		equal(c, "device", unix.Mkdev(x.Dev_major, x.Dev_minor), st.Dev)
	})
	r.rule("statx tells the time of birth, which stays, if there is one", func(c *check) {
		path := c.file("file", "")
		x := statx(c, path)
		equal(c, "told", x.Mask&unix.STATX_BTIME != 0, c.traits.BirthTime)
		if !c.traits.BirthTime {
			return
		}
		c.later(unix.Timespec{Sec: x.Btime.Sec, Nsec: int64(x.Btime.Nsec)})
		c.file("file", "content")
		c.ok(unix.Chmod(path, 0o600))
		equal(c, "birth", statx(c, path).Btime, x.Btime)
	})
	r.rule("statx of a descriptor is that of the file", func(c *check) {
		path := c.file("file", "content")
		var x unix.Statx_t
		c.ok(unix.Statx(c.open(path, unix.O_RDONLY), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &x))
		equal(c, "inode", x.Ino, c.stat(path).Ino)
		c.want(unix.EINVAL, unix.Statx(unix.AT_FDCWD, path, 1<<30, unix.STATX_BASIC_STATS, &x))
		c.want(unix.ENOENT, unix.Statx(unix.AT_FDCWD, c.path("none"), 0, unix.STATX_BASIC_STATS, &x))
	})
}
