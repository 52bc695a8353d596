//go:build linux

package fsx

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"golang.org/x/sys/unix"
)

// operation is something that can be done to a file: it draws its arguments,
// makes the system call, changes the model, and compares what it read.
type operation struct {
	name   string
	weight int
	do     func(*tester, *file) error
}

// operations lists all operations. A change of this list changes what a seed
// stands for.
var operations = []operation{
	{"read", 12, (*tester).read},
	{"read vector", 3, (*tester).readVector},
	{"read direct", 3, (*tester).readDirect},
	{"read mapped", 8, (*tester).readMapped},
	{"write", 16, (*tester).write},
	{"write vector", 4, (*tester).writeVector},
	{"write direct", 3, (*tester).writeDirect},
	{"write mapped", 8, (*tester).writeMapped},
	{"append", 6, (*tester).append},
	{"truncate", 7, (*tester).truncate},
	{"allocate", 2, func(t *tester, f *file) error { return t.allocate(f, 0) }},
	{"allocate beyond the end", 2, func(t *tester, f *file) error { return t.allocate(f, unix.FALLOC_FL_KEEP_SIZE) }},
	{"punch hole", 5, func(t *tester, f *file) error {
		return t.allocate(f, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE)
	}},
	{"zero range", 3, func(t *tester, f *file) error { return t.allocate(f, unix.FALLOC_FL_ZERO_RANGE) }},
	{"zero range within the size", 2, func(t *tester, f *file) error {
		return t.allocate(f, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE)
	}},
	{"copy", 5, (*tester).copy},
	{"holes", 5, (*tester).holes},
	{"sync", 2, (*tester).sync},
	{"drop pages", 3, (*tester).dropPages},
	{"reopen", 2, (*tester).reopen},
	{"open and truncate", 1, (*tester).openAndTruncate},
	{"make anew", 1, (*tester).makeAnew},
}

// remountOneIn is how rarely a remount takes the place of an operation.
const remountOneIn = 500

func (t *tester) draw() operation {
	if t.rnd.IntN(remountOneIn) == 0 {
		return operation{"remount", 0, (*tester).remount}
	}
	sum := 0
	for _, op := range operations {
		sum += op.weight
	}
	n := t.rnd.IntN(sum)
	for _, op := range operations {
		if n -= op.weight; n < 0 {
			return op
		}
	}
	panic("weights do not add up")
}

// offset draws a place in a file, or somewhat beyond its end: mostly near a
// boundary of pages or of 64 KiB.
func (t *tester) offset(f *file) int64 {
	off := t.rnd.Int64N(t.limit)
	if f.model.size > 0 && t.rnd.IntN(2) == 0 {
		off = t.rnd.Int64N(min(f.model.size, t.limit))
	}
	if t.far && t.rnd.IntN(3) == 0 {
		off += int64(1)<<(30+t.rnd.IntN(3)) - t.limit/2
		if t.rnd.IntN(8) == 0 {
			off += 1 << 40
		}
	}
	switch t.rnd.IntN(8) {
	case 0:
		off = off &^ 4095
	case 1:
		off = off&^4095 + t.rnd.Int64N(5) - 2
	case 2:
		off = off &^ 65535
	case 3:
		off = off&^65535 + t.rnd.Int64N(5) - 2
	case 4:
		off = f.model.size - t.rnd.Int64N(3)
	}
	return max(off, 0)
}

// length draws how many bytes to read or write, at least one: mostly few, at
// times some pages.
func (t *tester) length() int64 {
	switch t.rnd.IntN(8) {
	case 0:
		return 1 + t.rnd.Int64N(max(1, t.limit/2))
	case 1:
		return 4096 * (1 + t.rnd.Int64N(16))
	case 2, 3:
		return 1 + t.rnd.Int64N(16<<10)
	default:
		return 1 + t.rnd.Int64N(5000)
	}
}

// buffer returns n bytes of memory that are the caller's until the next call.
func (t *tester) buffer(n int64) []byte {
	if int64(len(t.buf)) < n {
		t.buf = make([]byte, n)
	}
	return t.buf[:n]
}

// bytes returns n new bytes to write: mostly of a kind that occurs nowhere else,
// so that bytes in a wrong place or from an older write are noticed.
func (t *tester) bytes(n int64) []byte {
	p := t.buffer(n)
	switch t.rnd.IntN(10) {
	case 0:
		clear(p)
	case 1:
		b := byte(t.rnd.Uint32())
		for i := range p {
			p[i] = b
		}
	default:
		fill(p, t.rnd.Uint64())
	}
	return p
}

// fill makes p random.
func fill(p []byte, seed uint64) {
	src := rand.NewPCG(seed, 1)
	for len(p) >= 8 {
		v := src.Uint64()
		p[0], p[1], p[2], p[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
		p[4], p[5], p[6], p[7] = byte(v>>32), byte(v>>40), byte(v>>48), byte(v>>56)
		p = p[8:]
	}
	for i := range p {
		p[i] = byte(src.Uint64())
	}
}

// complete returns err, or an error if not all bytes were read or written.
func complete(n, want int, err error) error {
	if err == nil && n != want {
		return fmt.Errorf("%#x bytes done, want %#x", n, want)
	}
	return err
}

func (t *tester) read(f *file) error {
	off, n := t.offset(f), t.length()
	t.note(f, "read %#x at %#x", n, off)
	return f.compareRange(off, n)
}

// vectors cuts p into up to four parts.
func (t *tester) vectors(p []byte) [][]byte {
	var parts [][]byte
	for range t.rnd.IntN(4) {
		n := t.rnd.IntN(len(p) + 1)
		parts, p = append(parts, p[:n]), p[n:]
	}
	return append(parts, p)
}

func (t *tester) readVector(f *file) error {
	off, n := t.offset(f), t.length()
	p := t.buffer(n)
	parts := t.vectors(p)
	t.note(f, "read %#x at %#x into %d parts", n, off, len(parts))
	got, err := unix.Preadv(f.fds[plain], parts, off)
	if err := complete(got, int(max(0, min(n, f.model.size-off))), err); err != nil {
		return err
	}
	return f.compare(p[:got], off, "read into parts")
}

func (t *tester) write(f *file) error {
	way := []int{plain, plain, plain, plain, plain, plain, writes, writes, writes, syncs}[t.rnd.IntN(10)]
	off := t.offset(f)
	p := t.bytes(t.length())
	t.note(f, "write %#x at %#x, open way %d", len(p), off, way)
	n, err := unix.Pwrite(f.fds[way], p, off)
	f.model.write(p[:max(n, 0)], off)
	return complete(n, len(p), err)
}

func (t *tester) writeVector(f *file) error {
	off := t.offset(f)
	p := t.bytes(t.length())
	parts := t.vectors(p)
	t.note(f, "write %#x at %#x from %d parts", len(p), off, len(parts))
	n, err := unix.Pwritev(f.fds[plain], parts, off)
	f.model.write(p[:max(n, 0)], off)
	return complete(n, len(p), err)
}

func (t *tester) append(f *file) error {
	if f.model.size > t.limit && !t.far {
		return f.truncate(t.rnd.Int64N(t.limit))
	}
	p := t.bytes(t.length())
	t.note(f, "append %#x", len(p))
	n, err := unix.Write(f.fds[appends], p)
	f.model.write(p[:max(n, 0)], f.model.size)
	return complete(n, len(p), err)
}

func (t *tester) truncate(f *file) error {
	size := t.offset(f)
	if t.rnd.IntN(10) == 0 {
		size = 0
	}
	return f.truncate(size)
}

// allocate is fallocate(2) in one of its modes.
func (t *tester) allocate(f *file, mode uint32) error {
	off, n := t.offset(f), t.length()
	t.note(f, "fallocate mode %#x: %#x at %#x", mode, n, off)
	if err := unix.Fallocate(f.fds[plain], mode, off, n); err != nil {
		return err
	}
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 {
		f.model.zero(off, n)
	}
	if mode&unix.FALLOC_FL_KEEP_SIZE == 0 {
		f.model.size = max(f.model.size, off+n)
	}
	return nil
}

// copy copies a range within the file, or from the other. The kernel may copy
// less than it is asked to, but not nothing.
func (t *tester) copy(f *file) error {
	src := t.files[t.rnd.IntN(2)]
	from, to, n := t.offset(src), t.offset(f), t.length()
	if src == f {
		n = min(n, max(from-to, to-from))
		if n == 0 {
			return nil
		}
	}
	want := max(0, min(n, src.model.size-from))
	t.note(f, "copy %#x at %#x of %s to %#x", n, from, src.name, to)
	rest := want
	for {
		rfrom, rto := from+want-rest, to+want-rest
		got, err := unix.CopyFileRange(src.fds[plain], &rfrom, f.fds[plain], &rto, int(n-(want-rest)), 0)
		if err != nil {
			return err
		}
		if got == 0 && rest == 0 {
			return nil
		}
		if got <= 0 || int64(got) > rest {
			return fmt.Errorf("copied %#x, want at most %#x and at least a byte", got, rest)
		}
		p := t.buffer(int64(got))
		src.model.read(p, from+want-rest)
		f.model.write(p, to+want-rest)
		if rest -= int64(got); rest == 0 {
			return nil
		}
	}
}

func (t *tester) sync(f *file) error {
	if t.rnd.IntN(2) == 0 {
		t.note(f, "fsync")
		return unix.Fsync(f.fds[plain])
	}
	t.note(f, "fdatasync")
	return unix.Fdatasync(f.fds[writes])
}

// dropPages makes the kernel forget what it has of the file, as far as it was
// written back.
func (t *tester) dropPages(f *file) error {
	t.note(f, "drop pages")
	return unix.Fadvise(f.fds[plain], 0, 0, unix.FADV_DONTNEED)
}

func (t *tester) reopen(f *file) error {
	t.note(f, "close and open")
	if err := f.close(); err != nil {
		return err
	}
	return f.open()
}

func (t *tester) openAndTruncate(f *file) error {
	t.note(f, "open with O_TRUNC")
	fd, err := unix.Open(f.path, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f.model.resize(0)
	return unix.Close(fd)
}

// makeAnew removes the file and creates another of the same name.
func (t *tester) makeAnew(f *file) error {
	t.note(f, "remove and create")
	if err := f.remove(); err != nil {
		return err
	}
	return f.create()
}

// remount closes both files, has the file system mounted anew, and compares.
func (t *tester) remount(f *file) error {
	t.note(f, "remount")
	if err := errors.Join(t.files[0].close(), t.files[1].close()); err != nil {
		return err
	}
	if t.o.Remount != nil {
		if err := t.o.Remount(); err != nil {
			return err
		}
	}
	if err := errors.Join(t.files[0].open(), t.files[1].open()); err != nil {
		return err
	}
	return t.compareAll()
}
