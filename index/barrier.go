package index

import (
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The barrier sits in the file system that Pebble is given, at the moment when a
// flush creates its first sorted table. At that point the memtable is complete and
// nothing of it is on disk, and Pebble holds none of its mutexes, so that an fsync
// of any length delays neither reads nor commits. Pebble's event listener would
// be the obvious place, but it is called under the database's mutex.

// flushCategory marks files that a flush of memtables creates; compactions, which
// only rewrite what is durable already, have another.
const flushCategory vfs.DiskWriteCategory = "pebble-memtable-flush"

// markerPrefix is how the names of files begin that say which manifest counts.
const markerPrefix = "marker."

// barrierFS calls before ahead of every sorted table that a flush creates.
//
// It makes the names in the directory durable ahead of every marker, too. Pebble
// creates a manifest, syncs it, creates the marker that names it, and only then syncs
// the directory; a power loss in between may leave the marker without the manifest,
// and a database that does not open.
type barrierFS struct {
	vfs.FS
	before func() error
}

func (b *barrierFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if category == flushCategory && strings.HasSuffix(name, ".sst") {
		if err := b.before(); err != nil {
			return nil, err
		}
	}
	if strings.HasPrefix(b.PathBase(name), markerPrefix) {
		if err := syncDir(b.FS, b.PathDir(name)); err != nil {
			return nil, err
		}
	}
	return b.FS.Create(name, category)
}

func syncDir(fs vfs.FS, name string) error {
	dir, err := fs.OpenDir(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (b *barrierFS) Unwrap() vfs.FS { return b.FS }

// Pause between attempts to flush after failures: it doubles from the first to
// the last.
const (
	firstPause = 10 * time.Millisecond
	lastPause  = 5 * time.Second
)

var errClosed = errors.New("index is closed")

// flushWatch follows whether flushes succeed. Pebble retries a failed flush at
// once and for ever, and its own Flush waits all that time; flushWatch slows the
// retries down and lets callers see the failure.
type flushWatch struct {
	closed chan struct{}

	mu       sync.Mutex
	last     error         // of the flush that ended last; not yet known to be a failure
	failed   error         // of the flush that ended last, nil if it succeeded
	failures int           // in a row
	next     chan struct{} // closed at the next failure
}

func newFlushWatch() *flushWatch {
	return &flushWatch{closed: make(chan struct{}), next: make(chan struct{})}
}

// flushEnd is called by Pebble when a flush has ended, holding Pebble's mutex. A
// flush that had nothing to write also reports an error here.
func (w *flushWatch) flushEnd(info pebble.FlushInfo) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = info.Err
	if info.Err == nil {
		w.failed, w.failures = nil, 0
	}
}

// backgroundError is called by Pebble, holding its mutex, when a flush or a
// compaction has failed; for a flush it follows flushEnd with the same error.
func (w *flushWatch) backgroundError(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !errors.Is(err, w.last) {
		return
	}
	w.failed = err
	w.failures++
	close(w.next)
	w.next = make(chan struct{})
}

// watch returns a channel that is closed when the next flush fails.
func (w *flushWatch) watch() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.next
}

// failure returns why the last flush failed, nil if it did not.
func (w *flushWatch) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

// backOff waits as long as the failures so far suggest, or until close.
func (w *flushWatch) backOff() error {
	w.mu.Lock()
	n := w.failures
	w.mu.Unlock()
	if n == 0 {
		return nil
	}
	pause := lastPause
	if n < 10 {
		pause = min(lastPause, firstPause<<(n-1))
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-w.closed:
		return errClosed
	}
}

// close ends the waiting: flushes that failed before are not tried again.
func (w *flushWatch) close() { close(w.closed) }
