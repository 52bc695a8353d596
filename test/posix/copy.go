//go:build linux

package posix

import (
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// copy_file_range(2), sendfile(2) and splice(2).

// copyRange is copy_file_range(2) until n bytes are copied or none is. It
// returns how many were.
func (c *check) copyRange(from int, at int64, to int, pos int64, n int) int {
	c.Helper()
	total := 0
	for total < n {
		a, b := at+int64(total), pos+int64(total)
		m, err := unix.CopyFileRange(from, &a, to, &b, n-total, 0)
		c.ok(err)
		if m == 0 {
			break
		}
		total += m
		equal(c, "offset after the copy", a, at+int64(total))
		equal(c, "offset after the copy", b, pos+int64(total))
	}
	return total
}

// patterned is n bytes that differ from place to place.
func patterned(n int) string {
	p := make([]byte, n)
	x := uint32(1)
	for i := range p {
		x = x*1664525 + 1013904223
		p[i] = byte(x >> 24)
	}
	return string(p)
}

func copyRanges(r *rules) {
	const size = 3 << 20
	text := patterned(size)
	r.rule("copy_file_range copies a whole file", func(c *check) {
		from, to := c.open(c.file("from", text), unix.O_RDONLY), c.open(c.path("to"), unix.O_CREAT|unix.O_RDWR)
		equal(c, "copied", c.copyRange(from, 0, to, 0, size), size)
		c.holds(c.path("to"), text)
		c.holds(c.path("from"), text)
	})
	r.rule("copy_file_range copies any part to any place", func(c *check) {
		from, to := c.open(c.file("from", text), unix.O_RDONLY), c.open(c.path("to"), unix.O_CREAT|unix.O_RDWR)
		want := []byte{}
		for _, p := range []struct{ at, pos, n int }{
			{0, 0, 100}, {1000, 50, 100000}, {4096, 8192, 4096}, {1, 70001, 1}, {500000, 1000000, 1234567}, {0, 4 << 20, 3 << 20}, {100, 3, size - 100},
		} {
			if grow := p.pos + p.n - len(want); grow > 0 {
				want = append(want, make([]byte, grow)...)
			}
			copy(want[p.pos:], text[p.at:p.at+p.n])
			equal(c, "copied", c.copyRange(from, int64(p.at), to, int64(p.pos), p.n), p.n)
			equal(c, "size", c.fstat(to).Size, int64(len(want)))
			c.same("copy", c.read(to, len(want)+1, 0), string(want))
		}
		c.ok(unix.Fsync(to))
		c.holds(c.path("to"), string(want))
	})
	r.rule("copy_file_range copies within a file", func(c *check) {
		fd := c.open(c.file("file", text), unix.O_RDWR)
		equal(c, "copied", c.copyRange(fd, 100, fd, 2<<20, 1000000), 1000000)
		equal(c, "copied", c.copyRange(fd, 0, fd, size, 1000), 1000)
		want := text[:2<<20] + text[100:1000100] + text[2<<20+1000000:] + text[:1000]
		c.holds(c.path("file"), want)
	})
	r.rule("copy_file_range takes what was just written and holes", func(c *check) {
		from, to := c.open(c.path("from"), unix.O_CREAT|unix.O_RDWR), c.open(c.path("to"), unix.O_CREAT|unix.O_RDWR)
		c.write(to, strings.Repeat("x", 2000000), 0)
		c.write(from, "start", 0)
		c.write(from, "end", 1000000)
		equal(c, "copied", c.copyRange(from, 0, to, 0, 1000003), 1000003)
		c.same("copy", c.read(to, 1000005, 0), "start"+zeros(999995)+"endxx")
		c.write(from, "START", 0)
		c.same("copy", c.read(to, 5, 0), "start")
	})
	r.rule("a copy and its source change on their own", func(c *check) {
		from, to := c.open(c.file("from", text), unix.O_RDWR), c.open(c.path("to"), unix.O_CREAT|unix.O_RDWR)
		c.copyRange(from, 0, to, 0, size)
		c.write(from, "changed", 1000)
		c.write(to, "other", 2000)
		c.ok(unix.Ftruncate(from, 1007))
		c.holds(c.path("to"), text[:2000]+"other"+text[2005:])
		c.holds(c.path("from"), text[:1000]+"changed")
	})
}

func copyOffsets(r *rules) {
	r.rule("copy_file_range without offsets uses and moves those of the files", func(c *check) {
		from, to := c.open(c.file("from", "0123456789"), unix.O_RDONLY), c.open(c.file("to", "abcdefghij"), unix.O_RDWR)
		c.seek(from, 2)
		c.seek(to, 5)
		for range 2 {
			n, err := unix.CopyFileRange(from, nil, to, nil, 2, 0)
			c.ok(err)
			equal(c, "copied", n, 2)
		}
		c.holds(c.path("to"), "abcde2345j")
		at := int64(0)
		_, err := unix.CopyFileRange(from, &at, to, nil, 1, 0)
		c.ok(err)
		c.holds(c.path("to"), "abcde23450")
		p := make([]byte, 1)
		_, err = unix.Read(from, p)
		c.ok(err)
		equal(c, "next byte", string(p), "6")
	})
	r.rule("copy_file_range changes mtime and ctime of the copy alone", func(c *check) {
		a, b := c.file("a", "content"), c.file("b", "x")
		from, to := c.open(a, unix.O_RDONLY), c.open(b, unix.O_RDWR)
		c.changes(func() { c.copyRange(from, 0, to, 0, 7) }, change{a, ""}, change{b, "mc"})
	})
}

func copyShort(r *rules) {
	r.rule("copy_file_range stops at the end of the source, and is 0 beyond", func(c *check) {
		from, to := c.open(c.file("from", "0123456789"), unix.O_RDONLY), c.open(c.path("to"), unix.O_CREAT|unix.O_RDWR)
		equal(c, "across the end", c.copyRange(from, 7, to, 0, 100), 3)
		equal(c, "at the end", c.copyRange(from, 10, to, 50, 100), 0)
		equal(c, "beyond", c.copyRange(from, 1<<40, to, 50, 100), 0)
		equal(c, "nothing", c.copyRange(from, 0, to, 50, 0), 0)
		c.holds(c.path("to"), "789")
	})
}

func copyRefuses(r *rules) {
	try := func(from int, at int64, to int, pos int64, n int) error {
		_, err := unix.CopyFileRange(from, &at, to, &pos, n, 0)
		return err
	}
	r.rule("copy_file_range of ranges that overlap in one file is EINVAL", func(c *check) {
		path := c.file("file", "0123456789")
		a, b := c.open(path, unix.O_RDWR), c.open(path, unix.O_RDWR)
		for _, fd := range []int{a, b} {
			c.want(unix.EINVAL, try(a, 0, fd, 3, 5))
			c.want(unix.EINVAL, try(a, 3, fd, 0, 5))
			c.want(unix.EINVAL, try(a, 0, fd, 0, 10))
			c.ok(try(a, 0, fd, 5, 5))
		}
		c.holds(path, "0123401234")
	})
	r.rule("copy_file_range needs a source to read and a copy to write: EBADF", func(c *check) {
		path, other := c.file("file", "x"), c.file("other", "y")
		ro, wo, rw := c.open(path, unix.O_RDONLY), c.open(path, unix.O_WRONLY), c.open(other, unix.O_RDWR)
		c.want(unix.EBADF, try(wo, 0, rw, 0, 1))
		c.want(unix.EBADF, try(rw, 0, ro, 0, 1))
		c.want(unix.EBADF, try(ro, 0, c.open(other, unix.O_WRONLY|unix.O_APPEND), 0, 1))
		c.want(unix.EBADF, try(999999, 0, rw, 0, 1))
	})
	r.rule("copy_file_range takes no directories and no pipes: EISDIR, EINVAL", func(c *check) {
		file := c.open(c.file("file", "x"), unix.O_RDWR)
		c.want(unix.EISDIR, try(c.open(c.directory("dir"), unix.O_RDONLY), 0, file, 0, 1))
		fifo := c.open(c.fifo("fifo"), unix.O_RDWR)
		_, err := unix.CopyFileRange(fifo, nil, file, nil, 1, 0)
		c.want(unix.EINVAL, err)
		_, err = unix.CopyFileRange(file, nil, fifo, nil, 1, 0)
		c.want(unix.EINVAL, err)
	})
	r.rule("copy_file_range has no flags: EINVAL", func(c *check) {
		from, to := c.open(c.file("a", "x"), unix.O_RDWR), c.open(c.file("b", "y"), unix.O_RDWR)
		_, err := unix.CopyFileRange(from, nil, to, nil, 1, 1<<8)
		c.want(unix.EINVAL, err)
	})
	r.rule("copy_file_range beyond the largest file is EFBIG, of ranges that overflow EOVERFLOW", func(c *check) {
		from, to := c.open(c.file("a", "x"), unix.O_RDWR), c.open(c.file("b", "y"), unix.O_RDWR)
		if limit := c.traits.MaxFileSize; limit < math.MaxInt64 {
			c.want(unix.EFBIG, try(from, 0, to, limit, 1))
		}
		c.want(unix.EOVERFLOW, try(from, 1, to, 0, -1))
		c.want(unix.EOVERFLOW, try(from, 0, to, 1, -1))
		c.holds(c.path("b"), "y")
	})
}

func copySendfile(r *rules) {
	r.rule("sendfile copies to files and pipes", func(c *check) {
		text := patterned(300000)
		from, to := c.open(c.file("from", text), unix.O_RDONLY), c.open(c.path("to"), unix.O_CREAT|unix.O_RDWR)
		at := int64(1000)
		for at < int64(len(text)) {
			n, err := unix.Sendfile(to, from, &at, len(text))
			c.ok(err)
			if n == 0 {
				break
			}
		}
		equal(c, "offset", at, int64(len(text)))
		c.holds(c.path("to"), text[1000:])
		pipe := make([]int, 2)
		c.ok(unix.Pipe2(pipe, unix.O_CLOEXEC))
		c.closes(pipe[0])
		c.closes(pipe[1])
		n, err := unix.Sendfile(pipe[1], from, nil, 1000)
		c.ok(err)
		p := make([]byte, 2000)
		m, err := unix.Read(pipe[0], p)
		c.ok(err)
		equal(c, "sent", m, n)
		c.same("pipe", string(p[:m]), text[:m])
	})
	r.rule("sendfile to a file with O_APPEND is EINVAL", func(c *check) {
		from, to := c.open(c.file("a", "x"), unix.O_RDONLY), c.open(c.file("b", "y"), unix.O_WRONLY|unix.O_APPEND)
		_, err := unix.Sendfile(to, from, nil, 1)
		c.want(unix.EINVAL, err)
		_, err = unix.Sendfile(from, from, nil, 1)
		c.want(unix.EBADF, err)
	})
}

func copySplice(r *rules) {
	r.rule("splice moves from a file into a pipe and from a pipe into a file", func(c *check) {
		text := patterned(200000)
		from, to := c.open(c.file("from", text), unix.O_RDONLY), c.open(c.path("to"), unix.O_CREAT|unix.O_RDWR)
		pipe := make([]int, 2)
		c.ok(unix.Pipe2(pipe, unix.O_CLOEXEC))
		c.closes(pipe[0])
		c.closes(pipe[1])
		at, pos := int64(123), int64(7)
		for at < int64(len(text)) {
			n, err := unix.Splice(from, &at, pipe[1], nil, 60000, 0)
			c.ok(err)
			if n == 0 {
				break
			}
			for n > 0 {
				m, err := unix.Splice(pipe[0], nil, to, &pos, int(n), 0)
				c.ok(err)
				n -= m
			}
		}
		c.holds(c.path("to"), zeros(7)+text[123:])
	})
	r.rule("splice into a file with O_APPEND is EINVAL, without a pipe too", func(c *check) {
		from, to := c.open(c.file("a", "x"), unix.O_RDONLY), c.open(c.file("b", "y"), unix.O_WRONLY|unix.O_APPEND)
		_, err := unix.Splice(from, nil, to, nil, 1, 0)
		c.want(unix.EINVAL, err)
		pipe := make([]int, 2)
		c.ok(unix.Pipe2(pipe, unix.O_CLOEXEC))
		c.closes(pipe[0])
		c.closes(pipe[1])
		_, err = unix.Write(pipe[1], []byte("z"))
		c.ok(err)
		_, err = unix.Splice(pipe[0], nil, to, nil, 1, 0)
		c.want(unix.EINVAL, err)
		c.holds(c.path("b"), "y")
	})
}
