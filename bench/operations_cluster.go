package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What the client does in the mounts of several nodes.

// The names of operations in requests.
const (
	opMakeWays    = "make-ways"    // Files directories for opCreateWays
	opCreateWays  = "create-ways"  // Count empty files, at the same time in Files directories
	opVisible     = "visible"      // Count times: write a file in Path, and look for what was written in From
	opWriteSync   = "write-fsync"  // a file with 4 KiB and fsync, again until it succeeds
	opSyncRandom  = "sync-random"  // Count times 4 KiB with content Seed, each in another place and with fsync
	opChangeParts = "change-parts" // Count bytes of a file of Size bytes, in pieces, and fsync
)

func clusterOperation(name string) func(request) (done, error) {
	switch name {
	case opMakeWays:
		return makeWays
	case opCreateWays:
		return createWays
	case opVisible:
		return visible
	case opWriteSync:
		return writeUntilSynced
	case opSyncRandom:
		return syncRandom
	case opChangeParts:
		return changeParts
	}
	return nil
}

func wayOf(req request, i int64) string {
	return filepath.Join(req.Path, fmt.Sprintf("way-%d-%d", req.Seed, i))
}

func makeWays(req request) (done, error) {
	for i := range req.Files {
		if err := os.Mkdir(wayOf(req, i), 0o755); err != nil {
			return done{}, err
		}
	}
	return done{Ops: req.Files}, nil
}

// manyCalls lets n system calls wait at the same time without the runtime having to
// notice that they do.
func manyCalls(n int) (undo func()) {
	before := runtime.GOMAXPROCS(max(n, runtime.GOMAXPROCS(0)))
	return func() { runtime.GOMAXPROCS(before) }
}

// createWays creates files in directories of their own, since the kernel lets one
// create at a time into a directory.
func createWays(req request) (done, error) {
	defer manyCalls(int(req.Files))()
	errs := make([]error, req.Files)
	var tasks sync.WaitGroup
	for i := range req.Files {
		tasks.Go(func() {
			part := req
			part.Path, part.Count = wayOf(req, i), req.Count/req.Files
			_, errs[i] = createFiles(part)
		})
	}
	tasks.Wait()
	each := req.Count / req.Files
	return done{Ops: each * req.Files}, errors.Join(errs...)
}

// seenTime is how long what was written may take to be seen elsewhere.
const seenTime = 20 * time.Second

// visible writes the numbers from 1 on to a file, each time anew, while another
// goroutine opens and reads it in another mount, again and again, until it finds the
// number. What counts is from the return of close to the return of that read, or
// nothing if that came first.
func visible(req request) (done, error) {
	defer manyCalls(4)()
	name := fmt.Sprintf("visible-%d", req.Seed)
	here, there := filepath.Join(req.Path, name), filepath.Join(req.From, name)
	type sight struct {
		at  time.Time
		err error
	}
	times := make([]time.Duration, req.Count)
	for i := range times {
		number := uint64(i + 1)
		seen := make(chan sight, 1)
		go func() {
			at, err := lookFor(there, number)
			seen <- sight{at, err}
		}()
		err := writeNumber(here, number)
		closed := time.Now()
		s := <-seen
		if err := errors.Join(err, s.err); err != nil {
			return done{}, err
		}
		times[i] = max(s.at.Sub(closed), time.Microsecond) // 0 would be none
	}
	return quantiles(times), nil
}

func writeNumber(name string, number uint64) error {
	f, err := openRaw(name, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY)
	if err != nil {
		return err
	}
	_, err = f.Write(binary.LittleEndian.AppendUint64(nil, number))
	return errors.Join(err, f.Close())
}

// lookFor returns when it has read the number.
func lookFor(name string, number uint64) (time.Time, error) {
	var buf [8]byte
	for start := time.Now(); ; {
		f, err := openRaw(name, unix.O_RDONLY)
		n := 0
		if err == nil {
			n, err = unix.Read(f.fd, buf[:])
			err = errors.Join(err, f.Close())
		}
		now := time.Now()
		switch {
		case err == nil && n == len(buf) && binary.LittleEndian.Uint64(buf[:]) == number:
			return now, nil
		case err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ESTALE):
			return now, err
		case now.Sub(start) > seenTime:
			return now, fmt.Errorf("%s: not what was written elsewhere, after %v", name, seenTime)
		}
	}
}

// quantiles returns the median and the 99th percentile of times.
func quantiles(times []time.Duration) done {
	slices.Sort(times)
	n := len(times)
	return done{Ops: int64(n), P50: times[n/2].Seconds(), P99: times[n*99/100].Seconds()}
}

// How long writes are tried while a cluster has no leader, and how often.
const (
	leaderTime = 2 * time.Minute
	retryPause = 5 * time.Millisecond
)

// writeUntilSynced writes files, each under a name of its own since it is not known
// what became of the one before, until an fsync succeeds.
func writeUntilSynced(req request) (done, error) {
	data := newContent(req.Seed).at(0)[:page]
	start := time.Now()
	for i := int64(0); ; i++ {
		f, err := openRaw(nameOf(req, i), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY)
		if err == nil {
			err = f.writeSync(data)
			err = errors.Join(err, f.Close())
		}
		if err == nil {
			return done{Ops: 1}, nil
		}
		if time.Since(start) > leaderTime {
			return done{}, err
		}
		time.Sleep(retryPause)
	}
}

// syncRandom does to a file what databases do.
func syncRandom(req request) (done, error) {
	f, err := openRaw(req.Path, unix.O_WRONLY)
	if err != nil {
		return done{}, err
	}
	defer f.Close()
	c := newContent(req.Seed)
	times := make([]time.Duration, 0, req.Count)
	for off := range scattered(req) {
		start := time.Now()
		if n, err := unix.Pwrite(f.fd, c.pageAt(off), off); err != nil || n != page {
			return done{}, fmt.Errorf("%d of %d bytes at %d: %w", n, page, off, f.fail("write", err))
		}
		if err := unix.Fsync(f.fd); err != nil {
			return done{}, f.fail("fsync", err)
		}
		times = append(times, time.Since(start))
	}
	return quantiles(times), nil
}

// changeParts writes pieces of up to a MiB, as far from one another as they can be.
func changeParts(req request) (done, error) {
	f, err := openRaw(req.Path, unix.O_WRONLY)
	if err != nil {
		return done{}, err
	}
	c := newContent(req.Seed)
	pieces := (req.Count + pieceSize - 1) / pieceSize
	for i := range pieces {
		n := min(pieceSize, req.Count-i*pieceSize)
		off := req.Size / (2 * pieces) * (2*i + 1) / page * page
		var buf pieceWriter
		if err = c.copyTo(&buf, off, min(n, req.Size-off)); err != nil {
			break
		}
		if _, err = unix.Pwrite(f.fd, buf, off); err != nil {
			err = f.fail("write", err)
			break
		}
	}
	if err == nil {
		err = f.fail("fsync", unix.Fsync(f.fd))
	}
	return done{Bytes: req.Size}, errors.Join(err, f.Close())
}

// pieceWriter gathers the bytes of a piece.
type pieceWriter []byte

// Write implements io.Writer.
func (w *pieceWriter) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}
