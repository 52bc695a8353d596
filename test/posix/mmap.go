//go:build linux

package posix

import (
	"strings"

	"golang.org/x/sys/unix"
)

// mmap(2) and msync(2). All of it is done by processes of their own: a page that
// is not in memory stops the process until the file system has brought it.

const (
	pageSize = 4096
	readOnly = unix.PROT_READ
	writable = unix.PROT_READ | unix.PROT_WRITE
)

// mapped maps n bytes of a file until the end of the rule.
func (c *check) mapped(fd, n, prot, flags int) []byte {
	c.Helper()
	p, err := unix.Mmap(fd, 0, n, prot, flags)
	c.ok(err)
	c.Cleanup(func() { unix.Munmap(p) })
	return p
}

func mmapShared(r *rules) {
	r.ruleApart("what is stored in a shared mapping is read, at once and after msync", func(c *check) {
		path := c.file("file", strings.Repeat("-", 3*pageSize))
		fd := c.open(path, unix.O_RDWR)
		p := c.mapped(fd, 3*pageSize, writable, unix.MAP_SHARED)
		copy(p[pageSize-3:], "mapped")
		c.same("by the descriptor", c.read(fd, 8, pageSize-4), "-mapped-")
		c.ok(unix.Msync(p, unix.MS_SYNC))
		c.same("by another", c.read(c.open(path, unix.O_RDONLY), 8, pageSize-4), "-mapped-")
	})
	r.ruleApart("what is written is seen in mappings", func(c *check) {
		fd := c.open(c.file("file", strings.Repeat("-", 3*pageSize)), unix.O_RDWR)
		p := c.mapped(fd, 3*pageSize, readOnly, unix.MAP_SHARED)
		equal(c, "first byte", p[0], '-')
		c.write(fd, "written", pageSize-3)
		c.same("mapping", string(p[pageSize-4:pageSize+5]), "-written-")
	})
	r.ruleApart("two mappings of a file are one", func(c *check) {
		path := c.file("file", strings.Repeat("-", pageSize))
		p := c.mapped(c.open(path, unix.O_RDWR), pageSize, writable, unix.MAP_SHARED)
		q := c.mapped(c.open(path, unix.O_RDWR), pageSize, writable, unix.MAP_SHARED)
		copy(p, "one")
		copy(q[3:], "two")
		c.same("first", string(p[:7]), "onetwo-")
		c.same("second", string(q[:7]), "onetwo-")
	})
	r.ruleApart("mappings outlive the descriptor and the name", func(c *check) {
		path := c.file("file", strings.Repeat("-", 2*pageSize))
		other := c.open(path, unix.O_RDONLY)
		fd := c.open(path, unix.O_RDWR)
		p := c.mapped(fd, 2*pageSize, writable, unix.MAP_SHARED)
		c.close(fd)
		c.ok(unix.Unlink(path))
		copy(p[pageSize:], "still")
		c.ok(unix.Msync(p, unix.MS_SYNC))
		c.same("file", c.read(other, 6, pageSize), "still-")
	})
	r.ruleApart("storing in a shared mapping and msync change mtime and ctime", func(c *check) {
		path := c.file("file", strings.Repeat("-", pageSize))
		fd := c.open(path, unix.O_RDWR)
		p := c.mapped(fd, pageSize, writable, unix.MAP_SHARED)
		c.changes(func() {
			p[0] = 'x'
			c.ok(unix.Msync(p, unix.MS_SYNC))
		}, change{path, "mc"})
	})
	r.ruleApart("what is mapped, written and cut keeps its order through fsync", func(c *check) {
		path := c.path("file")
		fd := c.open(path, unix.O_CREAT|unix.O_RDWR)
		c.ok(unix.Ftruncate(fd, 64*pageSize))
		p := c.mapped(fd, 64*pageSize, writable, unix.MAP_SHARED)
		for i := range 64 {
			copy(p[i*pageSize:], "mapped")
			c.write(fd, "written", int64(i*pageSize+100))
		}
		c.ok(unix.Fsync(fd))
		want := strings.Repeat("mapped"+zeros(94)+"written"+zeros(pageSize-107), 64)
		c.holds(path, want)
		c.ok(unix.Ftruncate(fd, 10*pageSize+3))
		c.holds(path, want[:10*pageSize+3])
	})
}

func mmapPrivate(r *rules) {
	r.ruleApart("what is stored in a private mapping stays private", func(c *check) {
		path := c.file("file", strings.Repeat("-", pageSize))
		for _, flags := range []int{unix.O_RDONLY, unix.O_RDWR} {
			p := c.mapped(c.open(path, flags), pageSize, writable, unix.MAP_PRIVATE)
			copy(p, "private")
			c.same("mapping", string(p[:8]), "private-")
			c.ok(unix.Msync(p, unix.MS_SYNC))
			c.holds(path, strings.Repeat("-", pageSize))
		}
	})
}

func mmapEnds(r *rules) {
	r.ruleApart("beyond the end of the file the last page is zeros, which are not stored", func(c *check) {
		path := c.file("file", "content")
		fd := c.open(path, unix.O_RDWR)
		p := c.mapped(fd, pageSize, writable, unix.MAP_SHARED)
		c.same("mapping", string(p), "content"+zeros(pageSize-7))
		copy(p[7:], "beyond")
		c.ok(unix.Msync(p, unix.MS_SYNC))
		c.holds(path, "content")
		equal(c, "size", c.fstat(fd).Size, 7)
	})
	r.ruleApart("what was stored beyond the end does not show when the file grows, after msync", func(c *check) {
		path := c.file("file", "content")
		fd := c.open(path, unix.O_RDWR)
		p := c.mapped(fd, pageSize, writable, unix.MAP_SHARED)
		copy(p[7:], "beyond")
		c.ok(unix.Msync(p, unix.MS_SYNC))
		c.ok(unix.Ftruncate(fd, 200))
		want := "content" + zeros(193)
		if c.traits.MappedTails {
			want = "contentbeyond" + zeros(187)
		}
		c.same("mapping", string(p[:200]), want)
		c.holds(path, want)
	})
	r.ruleApart("a mapping sees the file grow within its pages", func(c *check) {
		path := c.file("file", "content")
		fd := c.open(path, unix.O_RDWR)
		p := c.mapped(fd, 4*pageSize, writable, unix.MAP_SHARED)
		c.write(fd, "far", 3*pageSize)
		c.same("mapping", string(p[3*pageSize:3*pageSize+4]), "far\x00")
		copy(p[2*pageSize:], "between")
		c.same("file", c.read(fd, 8, 2*pageSize), "between\x00")
	})
	r.ruleApart("what is cut is gone from mappings when the file grows again", func(c *check) {
		fd := c.open(c.file("file", strings.Repeat("x", 2*pageSize)), unix.O_RDWR)
		p := c.mapped(fd, 2*pageSize, readOnly, unix.MAP_SHARED)
		c.same("mapping", string(p), strings.Repeat("x", 2*pageSize))
		c.ok(unix.Ftruncate(fd, 100))
		c.ok(unix.Ftruncate(fd, 2*pageSize))
		c.same("mapping", string(p), strings.Repeat("x", 100)+zeros(2*pageSize-100))
	})
	r.ruleApart("a punched hole shows in mappings", func(c *check) {
		fd := c.open(c.file("file", strings.Repeat("x", 4*pageSize)), unix.O_RDWR)
		p := c.mapped(fd, 4*pageSize, readOnly, unix.MAP_SHARED)
		equal(c, "byte", p[2*pageSize], 'x')
		c.ok(unix.Fallocate(fd, punch, pageSize, 2*pageSize))
		c.same("mapping", string(p), strings.Repeat("x", pageSize)+zeros(2*pageSize)+strings.Repeat("x", pageSize))
	})
}

func mmapRefuses(r *rules) {
	r.ruleApart("a mapping needs a descriptor that reads, and for shared stores one that writes: EACCES", func(c *check) {
		path := c.file("file", strings.Repeat("-", pageSize))
		for _, m := range []struct{ open, prot, flags int }{
			{unix.O_RDONLY, writable, unix.MAP_SHARED}, {unix.O_WRONLY, readOnly, unix.MAP_SHARED}, {unix.O_WRONLY, readOnly, unix.MAP_PRIVATE},
			{unix.O_WRONLY, unix.PROT_WRITE, unix.MAP_SHARED},
		} {
			_, err := unix.Mmap(c.open(path, m.open), 0, pageSize, m.prot, m.flags)
			c.want(unix.EACCES, err)
		}
	})
	r.ruleApart("directories cannot be mapped: ENODEV", func(c *check) {
		_, err := unix.Mmap(c.open(c.directory("dir"), unix.O_RDONLY), 0, pageSize, readOnly, unix.MAP_SHARED)
		c.want(unix.ENODEV, err)
	})
	r.ruleApart("offsets within pages and lengths of nothing are EINVAL", func(c *check) {
		fd := c.open(c.file("file", strings.Repeat("-", pageSize)), unix.O_RDWR)
		_, err := unix.Mmap(fd, 1, pageSize, readOnly, unix.MAP_SHARED)
		c.want(unix.EINVAL, err)
		_, err = unix.Mmap(fd, 0, pageSize, readOnly, 0)
		c.want(unix.EINVAL, err)
	})
}
