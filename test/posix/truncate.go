//go:build linux

package posix

import (
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// truncate(2) and ftruncate(2).

func truncateSizes(r *rules) {
	r.rule("truncate cuts and grows, and what it grows by reads as zeros", func(c *check) {
		path := c.file("file", "0123456789")
		for _, step := range []struct {
			size int64
			want string
		}{{5, "01234"}, {8, "01234\x00\x00\x00"}, {8, "01234\x00\x00\x00"}, {0, ""}, {3, "\x00\x00\x00"}} {
			c.ok(unix.Truncate(path, step.size))
			equal(c, "size", c.stat(path).Size, step.size)
			c.holds(path, step.want)
		}
	})
	r.rule("what was cut does not come back, whatever the size", func(c *check) {
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		const size = 1 << 20
		full := strings.Repeat("x", size)
		for _, cut := range []int64{1, 511, 4095, 4096, 4097, 65536, 300001, size - 1} {
			c.write(fd, full, 0)
			c.ok(unix.Ftruncate(fd, cut))
			c.ok(unix.Ftruncate(fd, size))
			c.same("file", c.read(fd, size+1, 0), full[:cut]+zeros(int(size-cut)))
		}
	})
	r.rule("what was cut before a sync does not come back after it", func(c *check) {
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		c.write(fd, strings.Repeat("x", 200000), 0)
		c.ok(unix.Fsync(fd))
		c.ok(unix.Ftruncate(fd, 70001))
		c.ok(unix.Fsync(fd))
		c.write(fd, "end", 150000)
		c.ok(unix.Fsync(fd))
		c.same("file", c.read(fd, 200000, 0), strings.Repeat("x", 70001)+zeros(150000-70001)+"end")
	})
	r.rule("ftruncate leaves the offset", func(c *check) {
		path := c.file("file", "0123456789")
		fd := c.open(path, unix.O_RDWR)
		_, err := unix.Seek(fd, 8, unix.SEEK_SET)
		c.ok(err)
		c.ok(unix.Ftruncate(fd, 2))
		_, err = unix.Write(fd, []byte("x"))
		c.ok(err)
		c.holds(path, "01"+zeros(6)+"x")
	})
	r.rule("a file can have the largest size and no larger: EFBIG", func(c *check) {
		path, limit := c.file("file", "x"), c.traits.MaxFileSize
		c.ok(unix.Truncate(path, limit))
		equal(c, "size", c.stat(path).Size, limit)
		if limit < math.MaxInt64 {
			c.want(unix.EFBIG, unix.Truncate(path, limit+1))
			equal(c, "size", c.stat(path).Size, limit)
		}
		fd := c.open(path, unix.O_RDONLY)
		c.same("start", c.read(fd, 3, 0), "x\x00\x00")
		c.same("end", c.read(fd, 3, limit-3), zeros(3))
		c.ok(unix.Truncate(path, 1))
		c.holds(path, "x")
	})
}

func truncateRefuses(r *rules) {
	r.rule("truncate of a directory is EISDIR, of a FIFO EINVAL", func(c *check) {
		c.want(unix.EISDIR, unix.Truncate(c.directory("dir"), 0))
		c.want(unix.EINVAL, unix.Ftruncate(c.open(c.path("dir"), unix.O_RDONLY), 0))
		c.want(unix.EINVAL, unix.Truncate(c.fifo("fifo"), 0))
		c.want(unix.EINVAL, unix.Ftruncate(c.open(c.path("fifo"), unix.O_RDWR), 0))
	})
	r.rule("a negative size is EINVAL", func(c *check) {
		path := c.file("file", "x")
		c.want(unix.EINVAL, unix.Truncate(path, -1))
		c.want(unix.EINVAL, unix.Truncate(path, math.MinInt64))
		c.want(unix.EINVAL, unix.Ftruncate(c.open(path, unix.O_RDWR), -1))
		c.holds(path, "x")
	})
	r.rule("ftruncate needs a descriptor for writing: EINVAL, or EBADF for none", func(c *check) {
		c.want(unix.EINVAL, unix.Ftruncate(c.open(c.file("file", "x"), unix.O_RDONLY), 0))
		c.want(unix.EBADF, unix.Ftruncate(999999, 0))
	})
	r.rule("truncate needs a file that exists and that the caller may write", func(c *check) {
		c.want(unix.ENOENT, unix.Truncate(c.path("none"), 0))
		c.want(unix.ENOENT, unix.Truncate(c.symlink("none", "link"), 0))
		c.want(unix.ENOTDIR, unix.Truncate(c.file("file", "x")+"/x", 0))
		c.as(alice(), func() { c.want(unix.EACCES, unix.Truncate("file", 0)) })
		c.holds(c.path("file"), "x")
	})
}

func truncateTimes(r *rules) {
	r.rule("ftruncate to the size a file has changes its times", func(c *check) {
		path := c.file("file", "content")
		fd := c.open(path, unix.O_RDWR)
		c.changes(func() { c.ok(unix.Ftruncate(fd, 7)) }, change{path, "mc"})
	})
}
