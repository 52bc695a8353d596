//go:build linux

package posix

import (
	"math"

	"golang.org/x/sys/unix"
)

// lseek(2).

func seekOffsets(r *rules) {
	r.rule("lseek goes from the start, the offset and the end, and beyond it", func(c *check) {
		fd := c.open(c.file("file", "0123456789"), unix.O_RDWR)
		for _, s := range []struct {
			off    int64
			whence int
			want   int64
		}{{3, unix.SEEK_SET, 3}, {2, unix.SEEK_CUR, 5}, {-5, unix.SEEK_CUR, 0}, {-4, unix.SEEK_END, 6}, {0, unix.SEEK_END, 10}, {90, unix.SEEK_CUR, 100}, {1 << 40, unix.SEEK_SET, 1 << 40}} {
			got, err := unix.Seek(fd, s.off, s.whence)
			c.ok(err)
			equal(c, "offset", got, s.want)
		}
		equal(c, "size", c.fstat(fd).Size, 10)
		c.seek(fd, 12)
		_, err := unix.Write(fd, []byte("x"))
		c.ok(err)
		c.holds(c.path("file"), "0123456789\x00\x00x")
	})
	r.rule("SEEK_END knows what others have written and cut", func(c *check) {
		path := c.file("file", "0123456789")
		a, b := c.open(path, unix.O_RDWR), c.open(path, unix.O_RDWR)
		c.write(b, "x", 99)
		end, err := unix.Seek(a, 0, unix.SEEK_END)
		c.ok(err)
		equal(c, "end", end, 100)
		c.ok(unix.Ftruncate(b, 4))
		end, err = unix.Seek(a, 0, unix.SEEK_END)
		c.ok(err)
		equal(c, "end", end, 4)
	})
	r.rule("offsets that are negative or too large and unknown whence are EINVAL, pipes ESPIPE", func(c *check) {
		fd := c.open(c.file("file", "x"), unix.O_RDWR)
		_, err := unix.Seek(fd, -1, unix.SEEK_SET)
		c.want(unix.EINVAL, err)
		_, err = unix.Seek(fd, -2, unix.SEEK_END)
		c.want(unix.EINVAL, err)
		_, err = unix.Seek(fd, 0, 99)
		c.want(unix.EINVAL, err)
		if limit := c.traits.MaxFileSize; limit < math.MaxInt64 {
			_, err = unix.Seek(fd, limit+1, unix.SEEK_SET)
			c.want(unix.EINVAL, err)
		}
		_, err = unix.Seek(c.open(c.fifo("fifo"), unix.O_RDWR), 0, unix.SEEK_CUR)
		c.want(unix.ESPIPE, err)
		_, err = unix.Seek(999999, 0, unix.SEEK_CUR)
		c.want(unix.EBADF, err)
		at, err := unix.Seek(fd, 0, unix.SEEK_CUR)
		c.ok(err)
		equal(c, "offset", at, 0)
	})
}

// seeks checks one SEEK_DATA or SEEK_HOLE.
func (c *check) seeks(fd int, from int64, whence int, want int64) {
	c.Helper()
	got, err := unix.Seek(fd, from, whence)
	c.ok(err)
	name := map[int]string{unix.SEEK_DATA: "data", unix.SEEK_HOLE: "hole"}[whence]
	equal(c, name+" from an offset", got, want)
}

// seeksNear is seeks for the place where a hole ends, which may come earlier, or
// begins, which may come later.
func (c *check) seeksNear(fd int, from int64, whence int, want int64) {
	c.Helper()
	got, err := unix.Seek(fd, from, whence)
	c.ok(err)
	low, high := want, want+c.traits.HoleEdge
	if whence == unix.SEEK_DATA {
		low, high = want-c.traits.HoleEdge, want
	}
	if got < low || got > high {
		c.Errorf("from %d, %v: %d, want %d to %d", from, map[int]string{unix.SEEK_DATA: "data", unix.SEEK_HOLE: "hole"}[whence], got, low, high)
	}
}

func seekData(r *rules) {
	r.rule("a file of data has its hole at the end", func(c *check) {
		const size = 300001
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		c.write(fd, patterned(size), 0)
		for _, synced := range []bool{false, true} {
			if synced {
				c.ok(unix.Fsync(fd))
			}
			for _, from := range []int64{0, 1, 100000, size - 1} {
				c.seeks(fd, from, unix.SEEK_DATA, from)
				c.seeks(fd, from, unix.SEEK_HOLE, size)
			}
		}
	})
	r.rule("SEEK_DATA and SEEK_HOLE set the offset", func(c *check) {
		fd := c.open(c.file("file", "0123456789"), unix.O_RDWR)
		c.seeks(fd, 4, unix.SEEK_DATA, 4)
		_, err := unix.Write(fd, []byte("x"))
		c.ok(err)
		c.seeks(fd, 4, unix.SEEK_HOLE, 10)
		_, err = unix.Write(fd, []byte("y"))
		c.ok(err)
		c.holds(c.path("file"), "0123x56789y")
	})
	r.rule("from the end of the file on there is neither data nor hole: ENXIO", func(c *check) {
		fd := c.open(c.file("file", "0123456789"), unix.O_RDWR)
		empty := c.open(c.file("empty", ""), unix.O_RDONLY)
		for _, whence := range []int{unix.SEEK_DATA, unix.SEEK_HOLE} {
			for _, from := range []int64{10, 11, 1 << 40, -1} {
				_, err := unix.Seek(fd, from, whence)
				c.want(unix.ENXIO, err)
			}
			_, err := unix.Seek(empty, 0, whence)
			c.want(unix.ENXIO, err)
		}
	})
}

// unit is the size of the data and holes of a rule: that from which on holes must
// show.
func (c *check) unit() int64 { return max(c.traits.HoleSize, 4096) }

func seekHoles(r *rules) {
	r.rule("data is never taken for a hole", func(c *check) {
		unit := c.unit()
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		c.ok(unix.Ftruncate(fd, 8*unit))
		for _, at := range []int64{3*unit + 5, 6*unit - 1} {
			c.write(fd, "x", at)
		}
		for _, synced := range []bool{false, true} {
			if synced {
				c.ok(unix.Fsync(fd))
			}
			for _, data := range []int64{3*unit + 5, 6*unit - 1} {
				for from := int64(0); from <= data; from += unit / 4 {
					at, err := unix.Seek(fd, from, unix.SEEK_DATA)
					c.ok(err)
					if at > data {
						c.Fatalf("data at %d is not found from %d: %d", data, from, at)
					}
				}
				c.seeks(fd, data, unix.SEEK_DATA, data)
			}
		}
	})
	r.rule("holes of the size and alignment that counts are found", func(c *check) {
		unit, edge := c.unit(), c.traits.HoleEdge
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		block := patterned(int(unit))
		c.write(fd, block, 2*unit)
		c.write(fd, block, 5*unit)
		c.ok(unix.Ftruncate(fd, 8*unit))
		for _, synced := range []bool{false, true} {
			if synced {
				c.ok(unix.Fsync(fd))
			}
			c.seeks(fd, 0, unix.SEEK_HOLE, 0)
			c.seeksNear(fd, 0, unix.SEEK_DATA, 2*unit)
			c.seeksNear(fd, 2*unit, unix.SEEK_HOLE, 3*unit)
			c.seeksNear(fd, 3*unit+edge, unix.SEEK_DATA, 5*unit)
			c.seeks(fd, 4*unit, unix.SEEK_HOLE, 4*unit)
			c.seeksNear(fd, 5*unit, unix.SEEK_HOLE, 6*unit)
			_, err := unix.Seek(fd, 6*unit+edge, unix.SEEK_DATA)
			c.want(unix.ENXIO, err)
		}
	})
	r.rule("a file of one hole has no data: ENXIO", func(c *check) {
		unit := c.unit()
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		c.ok(unix.Ftruncate(fd, 10*unit))
		_, err := unix.Seek(fd, 0, unix.SEEK_DATA)
		c.want(unix.ENXIO, err)
		c.seeks(fd, 5*unit+1, unix.SEEK_HOLE, 5*unit+1)
	})
}

func seekPunched(r *rules) {
	r.rule("a punched hole is a hole", func(c *check) {
		unit := c.unit()
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		c.write(fd, patterned(int(8*unit)), 0)
		c.ok(unix.Fsync(fd))
		c.ok(unix.Fallocate(fd, punch, 2*unit, 3*unit))
		for _, synced := range []bool{false, true} {
			if synced {
				c.ok(unix.Fsync(fd))
			}
			c.seeksNear(fd, 0, unix.SEEK_HOLE, 2*unit)
			c.seeksNear(fd, 2*unit+c.traits.HoleEdge, unix.SEEK_DATA, 5*unit)
			c.seeks(fd, 5*unit, unix.SEEK_HOLE, 8*unit)
		}
	})
	r.rule("data written into a hole is data", func(c *check) {
		unit := c.unit()
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		c.ok(unix.Ftruncate(fd, 6*unit))
		c.ok(unix.Fsync(fd))
		c.write(fd, patterned(int(unit)), 3*unit)
		c.seeks(fd, 3*unit, unix.SEEK_DATA, 3*unit)
		at, err := unix.Seek(fd, 0, unix.SEEK_DATA)
		c.ok(err)
		if at > 3*unit {
			c.Errorf("data at %d is found at %d", 3*unit, at)
		}
	})
}
