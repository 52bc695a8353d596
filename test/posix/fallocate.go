//go:build linux

package posix

import (
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// fallocate(2).

const (
	keepSize = unix.FALLOC_FL_KEEP_SIZE
	punch    = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	zero     = unix.FALLOC_FL_ZERO_RANGE
)

func fallocateGrows(r *rules) {
	r.rule("fallocate grows a file to the end of the range, with zeros, and cuts nothing", func(c *check) {
		path := c.file("file", "content")
		fd := c.open(path, unix.O_RDWR)
		c.ok(unix.Fallocate(fd, 0, 0, 5))
		equal(c, "size", c.fstat(fd).Size, 7)
		c.ok(unix.Fallocate(fd, 0, 3, 100))
		c.holds(path, "content"+zeros(96))
		c.ok(unix.Fallocate(fd, 0, 1000000, 1))
		equal(c, "size", c.fstat(fd).Size, 1000001)
		c.same("start", c.read(fd, 9, 0), "content\x00\x00")
	})
	r.rule("FALLOC_FL_KEEP_SIZE keeps the size", func(c *check) {
		path := c.file("file", "content")
		fd := c.open(path, unix.O_RDWR)
		c.ok(unix.Fallocate(fd, keepSize, 0, 1<<20))
		c.ok(unix.Fallocate(fd, keepSize, 1<<20, 1<<20))
		equal(c, "size", c.fstat(fd).Size, 7)
		c.holds(path, "content")
		c.ok(unix.Ftruncate(fd, 10))
		c.holds(path, "content\x00\x00\x00")
	})
	r.rule("what is allocated can be written", func(c *check) {
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		const size = 1 << 20
		c.ok(unix.Fallocate(fd, 0, 0, size))
		if c.traits.Reserves && c.fstat(fd).Blocks < size/512 {
			c.Errorf("%d bytes are allocated as %d blocks of 512", size, c.fstat(fd).Blocks)
		}
		c.write(fd, "middle", size/2)
		c.ok(unix.Fsync(fd))
		c.same("file", c.read(fd, size+1, 0), zeros(size/2)+"middle"+zeros(size/2-6))
	})
	r.rule("fallocate works on a file without a name", func(c *check) {
		path := c.file("file", "content")
		fd := c.open(path, unix.O_RDWR)
		c.ok(unix.Unlink(path))
		c.ok(unix.Fallocate(fd, 0, 0, 100))
		equal(c, "size", c.fstat(fd).Size, 100)
		c.ok(unix.Fallocate(fd, punch, 2, 3))
		c.same("file", c.read(fd, 7, 0), "co\x00\x00\x00nt")
	})
}

func fallocatePunches(r *rules) {
	const size = 1 << 20
	full := strings.Repeat("x", size)
	r.rule("a punched range reads as zeros, of any size and alignment, and nothing else does", func(c *check) {
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		for _, p := range [][2]int{{0, 1}, {1, 4095}, {0, 4096}, {4096, 8192}, {5000, 3}, {4095, 2}, {100000, 300000}, {65536, 65536}, {size - 1, 1}, {0, size}} {
			for _, synced := range []bool{false, true} {
				c.write(fd, full, 0)
				if synced {
					c.ok(unix.Fsync(fd))
				}
				c.ok(unix.Fallocate(fd, punch, int64(p[0]), int64(p[1])))
				equal(c, "size", c.fstat(fd).Size, size)
				want := full[:p[0]] + zeros(p[1]) + full[p[0]+p[1]:]
				c.same("file", c.read(fd, size+1, 0), want)
				c.holds(c.path("file"), want)
			}
		}
	})
	r.rule("a hole that reaches beyond the end keeps the size", func(c *check) {
		path := c.file("file", "content")
		fd := c.open(path, unix.O_RDWR)
		c.ok(unix.Fallocate(fd, punch, 4, 1<<20))
		c.holds(path, "cont\x00\x00\x00")
		c.ok(unix.Fallocate(fd, punch, 1<<20, 1<<20))
		equal(c, "size", c.fstat(fd).Size, 7)
		c.ok(unix.Fallocate(fd, punch, 1, c.traits.MaxFileSize-1))
		c.holds(path, "c"+zeros(6))
	})
	r.rule("a hole can be written again", func(c *check) {
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		c.write(fd, full, 0)
		c.ok(unix.Fallocate(fd, punch, 10000, 500000))
		c.write(fd, "again", 200000)
		c.ok(unix.Fsync(fd))
		c.same("file", c.read(fd, size, 0), full[:10000]+zeros(190000)+"again"+zeros(500000-190005)+full[510000:])
	})
	r.rule("holes give blocks back", func(c *check) {
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		c.write(fd, patterned(4<<20), 0)
		c.ok(unix.Fsync(fd))
		before := c.fstat(fd).Blocks
		c.ok(unix.Fallocate(fd, punch, 0, 4<<20))
		c.ok(unix.Fsync(fd))
		if after := c.fstat(fd).Blocks; after >= before {
			c.Errorf("had %d blocks, has %d", before, after)
		}
	})
}

func fallocateZeroes(r *rules) {
	r.rule("FALLOC_FL_ZERO_RANGE zeroes and grows, or is EOPNOTSUPP", func(c *check) {
		path := c.file("file", "0123456789")
		fd := c.open(path, unix.O_RDWR)
		err := unix.Fallocate(fd, zero, 2, 3)
		if !c.traits.ZeroRange {
			c.want(unix.EOPNOTSUPP, err)
			c.want(unix.EOPNOTSUPP, unix.Fallocate(fd, zero|keepSize, 2, 3))
			c.holds(path, "0123456789")
			return
		}
		c.ok(err)
		c.holds(path, "01\x00\x00\x0056789")
		c.ok(unix.Fallocate(fd, zero, 8, 4))
		c.holds(path, "01\x00\x00\x00567"+zeros(4))
		c.ok(unix.Fallocate(fd, zero, 100, 1))
		equal(c, "size", c.fstat(fd).Size, 101)
	})
	r.rule("FALLOC_FL_ZERO_RANGE with KEEP_SIZE keeps the size", func(c *check) {
		path := c.file("file", "0123456789")
		fd := c.open(path, unix.O_RDWR)
		err := unix.Fallocate(fd, zero|keepSize, 7, 100000)
		if !c.traits.ZeroRange {
			c.want(unix.EOPNOTSUPP, err)
			return
		}
		c.ok(err)
		c.holds(path, "0123456\x00\x00\x00")
		c.ok(unix.Fallocate(fd, zero|keepSize, 100, 100))
		equal(c, "size", c.fstat(fd).Size, 10)
	})
	r.rule("a zeroed range of any size and alignment is zero, and nothing else", func(c *check) {
		const size = 1 << 20
		full := strings.Repeat("x", size)
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		for _, p := range [][2]int{{0, 1}, {1, 4095}, {4096, 8192}, {4095, 2}, {100000, 300000}, {size - 1, 1}, {0, size}} {
			c.write(fd, full, 0)
			err := unix.Fallocate(fd, zero, int64(p[0]), int64(p[1]))
			if !c.traits.ZeroRange {
				c.want(unix.EOPNOTSUPP, err)
				continue
			}
			c.ok(err)
			c.same("file", c.read(fd, size+1, 0), full[:p[0]]+zeros(p[1])+full[p[0]+p[1]:])
		}
	})
}

func fallocateMoves(r *rules) {
	r.rule("ranges are collapsed and inserted, or it is EOPNOTSUPP", func(c *check) {
		const unit = 64 << 10
		a, b, d := strings.Repeat("a", unit), strings.Repeat("b", unit), strings.Repeat("d", unit)
		path := c.file("file", a+b+d)
		fd := c.open(path, unix.O_RDWR)
		collapse, insert := unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, unit, unit), error(nil)
		if !c.traits.MovesRanges {
			insert = unix.Fallocate(fd, unix.FALLOC_FL_INSERT_RANGE, unit, unit)
			c.want(unix.EOPNOTSUPP, collapse)
			c.want(unix.EOPNOTSUPP, insert)
			c.holds(path, a+b+d)
			return
		}
		c.ok(collapse)
		c.holds(path, a+d)
		c.ok(unix.Fallocate(fd, unix.FALLOC_FL_INSERT_RANGE, unit, unit))
		c.holds(path, a+zeros(unit)+d)
		c.want(unix.EINVAL, unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 2*unit, unit))
		c.want(unix.EINVAL, unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 1, unit))
		c.want(unix.EINVAL, unix.Fallocate(fd, unix.FALLOC_FL_INSERT_RANGE, 3*unit, unit))
	})
}

func fallocateRefuses(r *rules) {
	r.rule("an empty or negative range is EINVAL", func(c *check) {
		fd := c.open(c.file("file", "x"), unix.O_RDWR)
		for _, mode := range []uint32{0, keepSize, punch} {
			for _, p := range [][2]int64{{0, 0}, {0, -1}, {-1, 1}, {-1, 0}} {
				c.want(unix.EINVAL, unix.Fallocate(fd, mode, p[0], p[1]))
			}
		}
	})
	r.rule("a range beyond the largest file is EFBIG", func(c *check) {
		fd, limit := c.open(c.file("file", "x"), unix.O_RDWR), c.traits.MaxFileSize
		c.want(unix.EFBIG, unix.Fallocate(fd, 0, limit, 1))
		c.want(unix.EFBIG, unix.Fallocate(fd, 0, 1, math.MaxInt64))
		c.want(unix.EFBIG, unix.Fallocate(fd, 0, math.MaxInt64, math.MaxInt64))
		equal(c, "size", c.fstat(fd).Size, 1)
	})
	r.rule("modes that do not go together are EOPNOTSUPP", func(c *check) {
		fd := c.open(c.file("file", "content"), unix.O_RDWR)
		for _, mode := range []uint32{
			unix.FALLOC_FL_PUNCH_HOLE, punch | zero, punch | unix.FALLOC_FL_COLLAPSE_RANGE, unix.FALLOC_FL_COLLAPSE_RANGE | unix.FALLOC_FL_INSERT_RANGE, 1 << 20,
		} {
			c.want(unix.EOPNOTSUPP, unix.Fallocate(fd, mode, 0, 4096))
		}
		c.holds(c.path("file"), "content")
	})
	r.rule("fallocate needs a regular file that is open for writing", func(c *check) {
		c.want(unix.EBADF, unix.Fallocate(c.open(c.file("file", "x"), unix.O_RDONLY), 0, 0, 1))
		c.want(unix.EBADF, unix.Fallocate(c.open(c.directory("dir"), unix.O_RDONLY), 0, 0, 1))
		c.want(unix.EBADF, unix.Fallocate(999999, 0, 0, 1))
		c.want(unix.ESPIPE, unix.Fallocate(c.open(c.fifo("fifo"), unix.O_RDWR), 0, 0, 1))
	})
}
