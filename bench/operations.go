package bench

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// What the client can do. Each operation says how many bytes it moved or how many
// operations it did. Reads and writes are plain system calls, since the poller
// that package os uses for files that support it would be measured too.

// The names of operations in requests.
const (
	opWrite      = "write"       // a new file of Size bytes with content Seed, and fsync
	opDrop       = "drop"        // the kernel's cache of a file
	opRead       = "read"        // a file of Size bytes from start to end
	opReadRandom = "read-random" // Count times 4 KiB, each from another place
	opCreate     = "create"      // Count empty files in a directory
	opStat       = "stat"        // Count times, of the first Files files that opCreate made
	opRemove     = "remove"      // a file
	opSync       = "sync"        // a directory

	opWriteRandom = "write-random" // Count times 4 KiB with content Seed, each in another place, and fsync
	opAppendSync  = "append-fsync" // Count times 4 KiB with content Seed to a new file, and fsync
	opCreateSync  = "create-fsync" // Count files in a directory, each with 4 KiB and fsync

	opUntar      = "untar"       // the tar file From, of Count entries, into a new directory
	opFind       = "find"        // attributes of the Count entries of a tree
	opReadTree   = "read-tree"   // the files of a tree of Count entries
	opRemoveTree = "remove-tree" // a tree of Count entries
)

func operation(name string) func(request) (done, error) {
	switch name {
	case opWrite:
		return writeFile
	case opDrop:
		return dropFile
	case opRead:
		return readFile
	case opReadRandom:
		return readRandom
	case opCreate:
		return createFiles
	case opStat:
		return statFiles
	case opRemove:
		return removeFile
	case opSync:
		return syncDir
	case opWriteRandom:
		return writeRandom
	case opAppendSync:
		return appendSync
	case opCreateSync:
		return createSync
	case opUntar:
		return untar
	case opFind:
		return find
	case opReadTree:
		return readTree
	case opRemoveTree:
		return removeTree
	}
	return clusterOperation(name)
}

// rawFile is a file descriptor as io.Reader, io.ReaderAt and io.Writer.
type rawFile struct {
	fd   int
	name string
}

func openRaw(name string, flags int) (*rawFile, error) {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return &rawFile{fd, name}, nil
}

func (f *rawFile) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: f.name, Err: err}
}

func (f *rawFile) Read(p []byte) (int, error) {
	n, err := unix.Read(f.fd, p)
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return max(n, 0), f.fail("read", err)
}

func (f *rawFile) Write(p []byte) (int, error) {
	n, err := unix.Write(f.fd, p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return max(n, 0), f.fail("write", err)
}

func (f *rawFile) Close() error { return f.fail("close", unix.Close(f.fd)) }

func writeFile(req request) (done, error) {
	f, err := openRaw(req.Path, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY)
	if err != nil {
		return done{}, err
	}
	err = newContent(req.Seed).writeTo(f, req.Size)
	if err == nil {
		err = f.fail("fsync", unix.Fsync(f.fd))
	}
	return done{Bytes: req.Size}, errors.Join(err, f.Close())
}

func dropFile(req request) (done, error) {
	f, err := openRaw(req.Path, unix.O_RDONLY)
	if err != nil {
		return done{}, err
	}
	return done{}, errors.Join(f.fail("drop cache", dropCache(f.fd)), f.Close())
}

func readFile(req request) (done, error) {
	f, err := openRaw(req.Path, unix.O_RDONLY)
	if err != nil {
		return done{}, err
	}
	defer f.Close()
	buf := make([]byte, pieceSize)
	total := int64(0)
	for {
		n, err := f.Read(buf)
		total += int64(n)
		if err == io.EOF {
			break
		} else if err != nil {
			return done{}, err
		}
	}
	if total != req.Size {
		return done{}, fmt.Errorf("%d bytes instead of %d", total, req.Size)
	}
	return done{Bytes: total}, nil
}

// page is how much small reads and writes move, in bytes.
const page = 4 << 10

func readRandom(req request) (done, error) {
	f, err := openRaw(req.Path, unix.O_RDONLY)
	if err != nil {
		return done{}, err
	}
	defer f.Close()
	if err := f.fail("advise", adviseRandom(f.fd)); err != nil {
		return done{}, err
	}
	buf := make([]byte, page)
	for off := range scattered(req) {
		if n, err := unix.Pread(f.fd, buf, off); err != nil || n != page {
			return done{}, fmt.Errorf("%d of %d bytes at %d: %w", n, page, off, f.fail("read", err))
		}
	}
	return done{Ops: req.Count}, nil
}

func writeRandom(req request) (done, error) {
	f, err := openRaw(req.Path, unix.O_WRONLY)
	if err != nil {
		return done{}, err
	}
	defer f.Close()
	c := newContent(req.Seed)
	for off := range scattered(req) {
		if n, err := unix.Pwrite(f.fd, c.pageAt(off), off); err != nil || n != page {
			return done{}, fmt.Errorf("%d of %d bytes at %d: %w", n, page, off, f.fail("write", err))
		}
	}
	return done{Ops: req.Count}, f.fail("fsync", unix.Fsync(f.fd))
}

// scattered are the offsets of Count pages in a file of Size bytes. Steps of the
// golden section, coprime to the number of pages, come to every page once and to
// neighbours long after one another.
func scattered(req request) iter.Seq[int64] {
	return func(yield func(int64) bool) {
		pages := req.Size / page
		step := coprime(pages*618/1000, pages)
		at := int64(req.Seed % uint64(pages))
		for range req.Count {
			if !yield(at * page) {
				return
			}
			at = (at + step) % pages
		}
	}
}

// coprime returns the least number from a on that shares no factor with b.
func coprime(a, b int64) int64 {
	for ; ; a++ {
		x, y := a, b
		for y != 0 {
			x, y = y, x%y
		}
		if x == 1 {
			return a
		}
	}
}

func nameOf(req request, i int64) string {
	return filepath.Join(req.Path, fmt.Sprintf("file-%d-%06d", req.Seed, i))
}

func createFiles(req request) (done, error) {
	for i := range req.Count {
		f, err := openRaw(nameOf(req, i), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY)
		if err != nil {
			return done{}, err
		}
		if err := f.Close(); err != nil {
			return done{}, err
		}
	}
	return done{Ops: req.Count}, nil
}

func statFiles(req request) (done, error) {
	names := make([]string, req.Files)
	for i := range names {
		names[i] = nameOf(req, int64(i))
	}
	var st unix.Stat_t
	for i := range req.Count {
		name := names[i%int64(len(names))]
		if err := unix.Lstat(name, &st); err != nil {
			return done{}, &os.PathError{Op: "stat", Path: name, Err: err}
		}
	}
	return done{Ops: req.Count}, nil
}

func removeFile(req request) (done, error) { return done{}, os.Remove(req.Path) }

func syncDir(req request) (done, error) {
	f, err := openRaw(req.Path, unix.O_RDONLY)
	if err != nil {
		return done{}, err
	}
	return done{}, errors.Join(f.fail("fsync", unix.Fsync(f.fd)), f.Close())
}

func appendSync(req request) (done, error) {
	f, err := openRaw(req.Path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_APPEND)
	if err != nil {
		return done{}, err
	}
	defer f.Close()
	c := newContent(req.Seed)
	return timed(req.Count, func(i int64) error { return f.writeSync(c.pageAt(i * page)) })
}

func createSync(req request) (done, error) {
	c := newContent(req.Seed)
	return timed(req.Count, func(i int64) error {
		f, err := openRaw(nameOf(req, i), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY)
		if err != nil {
			return err
		}
		return errors.Join(f.writeSync(c.pageAt(i*page)), f.Close())
	})
}

func (f *rawFile) writeSync(p []byte) error {
	if _, err := f.Write(p); err != nil {
		return err
	}
	return f.fail("fsync", unix.Fsync(f.fd))
}

// timed calls do n times and takes the median of the times.
func timed(n int64, do func(i int64) error) (done, error) {
	times := make([]time.Duration, n)
	for i := range times {
		start := time.Now()
		if err := do(int64(i)); err != nil {
			return done{}, err
		}
		times[i] = time.Since(start)
	}
	slices.Sort(times)
	return done{Ops: n, P50: times[n/2].Seconds()}, nil
}
