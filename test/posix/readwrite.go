//go:build linux

package posix

import (
	"math"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// read(2), write(2), and their relatives with offsets, vectors and flags.

func rwOffsets(r *rules) {
	r.rule("read and write move the offset, pread and pwrite do not", func(c *check) {
		fd := c.open(c.file("file", "0123456789"), unix.O_RDWR)
		p := make([]byte, 3)
		for _, want := range []string{"012", "345"} {
			n, err := unix.Read(fd, p)
			c.ok(err)
			equal(c, "read", string(p[:n]), want)
			equal(c, "read elsewhere", c.read(fd, 2, 8), "89")
			c.write(fd, "ab", 0)
		}
		_, err := unix.Write(fd, []byte("X"))
		c.ok(err)
		c.holds(c.path("file"), "ab2345X789")
	})
	r.rule("descriptors of one open share the offset, those of two do not", func(c *check) {
		path := c.file("file", "0123456789")
		a := c.open(path, unix.O_RDONLY)
		b, err := unix.Dup(a)
		c.ok(err)
		c.closes(b)
		other := c.open(path, unix.O_RDONLY)
		p := make([]byte, 2)
		for i, fd := range []int{a, b, other} {
			n, err := unix.Read(fd, p)
			c.ok(err)
			equal(c, "read", string(p[:n]), []string{"01", "23", "01"}[i])
		}
	})
	r.rule("what one descriptor wrote all others read at once", func(c *check) {
		path := c.file("file", strings.Repeat("-", 10000))
		a, b := c.open(path, unix.O_RDWR), c.open(path, unix.O_RDONLY)
		for i := range int64(40) {
			text := strings.Repeat(string(rune('a'+i%26)), 100+int(i))
			c.write(a, text, i*251)
			c.same("file", c.read(b, len(text), i*251), text)
		}
	})
}

func rwEnds(r *rules) {
	r.rule("reading stops at the end of the file and is 0 beyond", func(c *check) {
		fd := c.open(c.file("file", "0123456789"), unix.O_RDONLY)
		equal(c, "across the end", c.read(fd, 100, 7), "789")
		equal(c, "at the end", c.read(fd, 100, 10), "")
		equal(c, "beyond", c.read(fd, 100, 1<<40), "")
		equal(c, "nothing", c.read(fd, 0, 0), "")
		fd = c.open(c.file("empty", ""), unix.O_RDONLY)
		equal(c, "an empty file", c.read(fd, 100, 0), "")
	})
	r.rule("writes of any size and alignment change what they cover and nothing else", func(c *check) {
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		want := []byte{}
		for i, w := range []struct{ at, n int }{
			{0, 1}, {4095, 2}, {1, 4095}, {4096, 4096}, {10000, 1}, {5000, 10000}, {131071, 2}, {65536, 70000}, {131072, 131072}, {262143, 1},
			{3, 300000}, {299999, 3}, {1 << 20, 1 << 20}, {1<<20 - 1, 3}, {4096, 1}, {8191, 1},
		} {
			if grow := w.at + w.n - len(want); grow > 0 {
				want = append(want, make([]byte, grow)...)
			}
			text := strings.Repeat(string(rune('a'+i)), w.n)
			copy(want[w.at:], text)
			c.write(fd, text, int64(w.at))
			equal(c, "size", c.fstat(fd).Size, int64(len(want)))
			c.same("file", c.read(fd, len(want)+1, 0), string(want))
		}
	})
	r.rule("writing nothing neither grows a file nor fails", func(c *check) {
		fd := c.open(c.file("file", "x"), unix.O_RDWR)
		n, err := unix.Pwrite(fd, nil, 100)
		c.ok(err)
		equal(c, "written", n, 0)
		equal(c, "size", c.fstat(fd).Size, 1)
	})
	r.rule("a write of many MiB is whole", func(c *check) {
		path := c.path("file")
		fd := c.open(path, unix.O_CREAT|unix.O_RDWR)
		var b strings.Builder
		for i := range 700000 {
			b.WriteString("line ")
			b.WriteByte(byte('0' + i%10))
			b.WriteByte(byte('0' + i/7%10))
			b.WriteByte('\n')
		}
		c.write(fd, b.String(), 0)
		c.same("file", c.read(fd, b.Len()+1, 0), b.String())
		c.holds(path, b.String())
	})
}

func rwAppend(r *rules) {
	r.rule("pwrite with O_APPEND appends, as Linux has it", func(c *check) {
		path := c.file("file", "01234")
		fd := c.open(path, unix.O_WRONLY|unix.O_APPEND)
		c.write(fd, "56", 1)
		c.holds(path, "0123456")
		c.write(fd, "7", 100)
		c.holds(path, "01234567")
	})
	r.rule("RWF_APPEND appends once, without O_APPEND", func(c *check) {
		path := c.file("file", "01234")
		fd := c.open(path, unix.O_RDWR)
		_, err := unix.Pwritev2(fd, [][]byte{[]byte("5"), []byte("6")}, 0, unix.RWF_APPEND)
		c.ok(err)
		c.holds(path, "0123456")
		c.write(fd, "x", 0)
		c.holds(path, "x123456")
	})
}

func rwVectors(r *rules) {
	parts := func(sizes ...int) (list [][]byte) {
		for _, n := range sizes {
			list = append(list, make([]byte, n))
		}
		return list
	}
	join := func(list [][]byte) string {
		s := ""
		for _, p := range list {
			s += string(p)
		}
		return s
	}
	r.rule("readv and writev are one read and one write", func(c *check) {
		path := c.path("file")
		fd := c.open(path, unix.O_CREAT|unix.O_RDWR)
		n, err := unix.Writev(fd, [][]byte{[]byte("01"), {}, []byte("234567"), []byte("89")})
		c.ok(err)
		equal(c, "written", n, 10)
		c.holds(path, "0123456789")
		list := parts(4, 0, 3, 20)
		n, err = unix.Preadv(fd, list, 1)
		c.ok(err)
		equal(c, "read", n, 9)
		equal(c, "read", join(list)[:9], "123456789")
		n, err = unix.Pwritev(fd, [][]byte{[]byte("x"), []byte("y")}, 4)
		c.ok(err)
		equal(c, "written", n, 2)
		c.holds(path, "0123xy6789")
	})
	r.rule("more than 1024 parts are EINVAL", func(c *check) {
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		many := make([][]byte, 1025)
		for i := range many {
			many[i] = []byte{'x'}
		}
		_, err := unix.Pwritev(fd, many, 0)
		c.want(unix.EINVAL, err)
		n, err := unix.Pwritev(fd, many[1:], 0)
		c.ok(err)
		equal(c, "written", n, 1024)
	})
}

func rwFlags(r *rules) {
	r.rule("RWF_DSYNC and RWF_SYNC write as others do", func(c *check) {
		path := c.file("file", "")
		fd := c.open(path, unix.O_RDWR)
		for i, flags := range []int{unix.RWF_DSYNC, unix.RWF_SYNC, unix.RWF_HIPRI} {
			n, err := unix.Pwritev2(fd, [][]byte{{byte('0' + i)}}, int64(i), flags)
			c.ok(err)
			equal(c, "written", n, 1)
		}
		c.holds(path, "012")
	})
	r.rule("preadv2 and pwritev2 at -1 use and move the offset", func(c *check) {
		fd := c.open(c.file("file", "0123456789"), unix.O_RDWR)
		p := make([]byte, 3)
		for _, want := range []string{"012", "345"} {
			n, err := unix.Preadv2(fd, [][]byte{p}, -1, 0)
			c.ok(err)
			equal(c, "read", string(p[:n]), want)
		}
		_, err := unix.Pwritev2(fd, [][]byte{[]byte("X")}, -1, 0)
		c.ok(err)
		c.holds(c.path("file"), "012345X789")
	})
	r.rule("unknown flags are EOPNOTSUPP", func(c *check) {
		fd := c.open(c.file("file", "x"), unix.O_RDWR)
		_, err := unix.Preadv2(fd, [][]byte{make([]byte, 1)}, 0, 1<<30)
		c.want(unix.EOPNOTSUPP, err)
		_, err = unix.Pwritev2(fd, [][]byte{make([]byte, 1)}, 0, 1<<30)
		c.want(unix.EOPNOTSUPP, err)
	})
	r.rule("posix_fadvise and readahead change nothing", func(c *check) {
		fd := c.open(c.file("file", "content"), unix.O_RDWR)
		for _, advice := range []int{unix.FADV_SEQUENTIAL, unix.FADV_RANDOM, unix.FADV_WILLNEED, unix.FADV_DONTNEED, unix.FADV_NOREUSE} {
			c.ok(unix.Fadvise(fd, 0, 0, advice))
		}
		_, _, errno := unix.Syscall(unix.SYS_READAHEAD, uintptr(fd), 0, 100)
		equal(c, "readahead", errno, 0)
		c.holds(c.path("file"), "content")
	})
}

func rwSparse(r *rules) {
	r.rule("what lies between two writes reads as zeros", func(c *check) {
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		c.write(fd, "end", 3000000)
		c.write(fd, "start", 0)
		c.same("file", c.read(fd, 4000000, 0), "start"+zeros(2999995)+"end")
		c.ok(unix.Fsync(fd))
		c.same("file", c.read(fd, 4000000, 0), "start"+zeros(2999995)+"end")
	})
	r.rule("offsets beyond 4 GiB are whole", func(c *check) {
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		offsets := []int64{1<<31 - 2, 1<<32 - 2, 1<<32 + 4096, 1 << 40}
		for i, at := range offsets {
			c.write(fd, strings.Repeat(string(rune('a'+i)), 4), at)
		}
		c.ok(unix.Fsync(fd))
		for i, at := range offsets {
			c.same("file", c.read(fd, 5, at-1), "\x00"+strings.Repeat(string(rune('a'+i)), 4))
		}
		equal(c, "size", c.fstat(fd).Size, 1<<40+4)
	})
}

func rwLimits(r *rules) {
	r.rule("the last byte of the largest file can be written and read", func(c *check) {
		limit := c.traits.MaxFileSize
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		c.write(fd, "x", limit-1)
		equal(c, "size", c.fstat(fd).Size, limit)
		c.same("file", c.read(fd, 3, limit-3), "\x00\x00x")
		c.ok(unix.Fsync(fd))
		c.same("file", c.read(fd, 2, limit-2), "\x00x")
		equal(c, "beyond", c.read(fd, 0, limit), "")
	})
	r.rule("a write at the largest size is EFBIG, one across it is short", func(c *check) {
		limit := c.traits.MaxFileSize
		fd := c.open(c.path("file"), unix.O_CREAT|unix.O_RDWR)
		_, err := unix.Pwrite(fd, []byte("xyz"), limit)
		if limit == math.MaxInt64 {
			// Where there is no offset for what follows, it is the offset
			// that is wrong.
			c.want(unix.EINVAL, err)
			_, err = unix.Pwrite(fd, []byte("xyz"), limit-2)
			c.want(unix.EINVAL, err)
			equal(c, "size", c.fstat(fd).Size, 0)
			return
		}
		c.want(unix.EFBIG, err)
		equal(c, "size", c.fstat(fd).Size, 0)
		n, err := unix.Pwrite(fd, []byte("xyz"), limit-2)
		c.ok(err)
		equal(c, "written", n, 2)
		equal(c, "size", c.fstat(fd).Size, limit)
		_, err = unix.Seek(fd, 0, unix.SEEK_END)
		c.ok(err)
		_, err = unix.Write(fd, []byte("x"))
		c.want(unix.EFBIG, err)
	})
	r.ruleApart("RLIMIT_FSIZE makes writes short and then EFBIG", func(c *check) {
		signal.Ignore(syscall.SIGXFSZ)
		path := c.file("file", strings.Repeat("x", 995))
		fd := c.open(path, unix.O_RDWR)
		c.ok(unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 1000, Max: 1000}))
		n, err := unix.Pwrite(fd, []byte("0123456789"), 995)
		c.ok(err)
		equal(c, "written", n, 5)
		_, err = unix.Pwrite(fd, []byte("y"), 1000)
		c.want(unix.EFBIG, err)
		c.want(unix.EFBIG, unix.Ftruncate(fd, 1001))
		c.want(unix.EFBIG, unix.Fallocate(fd, 0, 0, 1001))
		c.ok(unix.Ftruncate(fd, 1000))
		c.holds(path, strings.Repeat("x", 995)+"01234")
	})
}

func rwRefuses(r *rules) {
	r.rule("negative offsets are EINVAL", func(c *check) {
		fd := c.open(c.file("file", "x"), unix.O_RDWR)
		_, err := unix.Pread(fd, make([]byte, 1), -1)
		c.want(unix.EINVAL, err)
		_, err = unix.Pwrite(fd, []byte("x"), -1)
		c.want(unix.EINVAL, err)
	})
	r.rule("memory that is not there is EFAULT", func(c *check) {
		fd := c.open(c.file("file", "content"), unix.O_RDWR)
		for _, call := range []uintptr{unix.SYS_PREAD64, unix.SYS_PWRITE64} {
			_, _, errno := unix.Syscall6(call, uintptr(fd), 16, 7, 0, 0, 0)
			c.want(unix.EFAULT, errno)
		}
		c.holds(c.path("file"), "content")
	})
	r.rule("closed descriptors are EBADF", func(c *check) {
		_, err := unix.Read(999999, make([]byte, 1))
		c.want(unix.EBADF, err)
		_, err = unix.Write(999999, make([]byte, 1))
		c.want(unix.EBADF, err)
		c.want(unix.EBADF, unix.Close(999999))
	})
}
