package volume

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/cairnfs/cairn/namespace"
)

// Rule 7: a close or fsync that was under way when the session ended, and finds that
// what it was to make durable has been given up, says so.
func TestASyncThatTheEndOfTheSessionOvertakesFails(t *testing.T) {
	syncs := map[string]func(*Handle) error{
		"flush": func(h *Handle) error { return h.Flush(context.Background()) },
		"fsync": func(h *Handle) error { return h.Fsync(context.Background(), false) },
	}
	for name, sync := range syncs {
		t.Run(name, func(t *testing.T) {
			h := newHub(t, 2)
			m := h.nodes[0]
			m.createFile("file", []byte("before"))
			f := m.openFile("file", syscall.O_RDWR)
			defer f.Release()
			m.put(f, []byte("AFTER"), 0)
			file := f.f
			file.move.Lock() // as the one who folds it has it
			done := make(chan error, 1)
			go func() { done <- sync(f) }()
			time.Sleep(20 * time.Millisecond) // if it waits for move only later, it fails all the more
			ended := make(chan struct{})
			go func() { defer close(ended); m.loseSession() }()
			eventually(t, "what was written is to be given up", func() bool { return file.losses.Load() > 0 })
			file.move.Unlock()
			if err := <-done; !errors.Is(err, namespace.ErrSession) {
				t.Errorf("returned %v", err)
			}
			<-ended
			m.newSession()
			m.shows("file", []byte("before"))
		})
	}
}

// Rule 7: whoever held a lock when the session ended changes nothing by any call any more,
// even if the call began before.
func TestWhatTheEndOfTheSessionOvertakesChangesNothing(t *testing.T) {
	ctx := context.Background()
	changes := map[string]func(f, src *Handle) error{
		"write":    func(f, _ *Handle) error { return write(f) },
		"zero":     func(f, _ *Handle) error { return f.Zero(ctx, 0, 4, false) },
		"allocate": func(f, _ *Handle) error { return f.Allocate(ctx, 0, 100_000, false) },
		"truncate": func(f, _ *Handle) error {
			_, err := f.SetAttr(ctx, SetAttr{Valid: SetSize})
			return err
		},
		"copy": func(f, src *Handle) error {
			_, err := f.CopyRange(ctx, 0, src, 0, 10)
			return err
		},
		"share": func(f, src *Handle) error {
			_, err := f.CopyRange(ctx, 0, src, 0, 50_000)
			return err
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			h := newHub(t, 2)
			m := h.nodes[0]
			m.createFile("source", pattern(60_000, 1))
			m.createFile("file", []byte("before"))
			f, src := m.openFile("file", syscall.O_RDWR), m.openFile("source", syscall.O_RDONLY)
			defer f.Release()
			defer src.Release()
			m.must(f.TryLock(writeLock(1, 0, 0)))
			f.f.news.add()
			f.f.move.Lock() // as the one who folds it has it
			done := make(chan error, 1)
			go func() { done <- change(f, src) }()
			time.Sleep(20 * time.Millisecond) // if it begins only later, it fails all the more
			m.loseSession()
			m.newSession()
			f.f.move.Unlock()
			if err := <-done; !errors.Is(err, namespace.ErrSession) {
				t.Errorf("returned %v", err)
			}
			if err := change(f, src); !errors.Is(err, namespace.ErrSession) {
				t.Errorf("under the next session: %v", err)
			}
			m.must(m.Volume.Sync(ctx))
			h.nodes[1].shows("file", []byte("before"))
		})
	}
}

// Rule 7: a session that was about to end may go on. What its programs gave up meanwhile
// is given back then.
func TestWhatIsGivenUpWhileTheSessionIsUncertainIsGivenBackLater(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	fs := h.openOnAll("file")
	a.createFile("db-shm", make([]byte, 32<<10))
	sole := a.openFile("db-shm", syscall.O_RDWR)
	ino := b.find("db-shm")
	a.must(fs[0].TryLock(writeLock(1, 0, 0)))
	b.must(fs[1].TryLock(writeLock(1, 1, 1)))
	cancel, waited := make(chan struct{}), make(chan error, 1)
	go func() { waited <- fs[0].WaitLock(cancel, writeLock(1, 1, 1)) }()
	a.untilSuspected()

	session := a.session.Load()
	a.session.Store(0)
	close(cancel)
	if err := <-waited; err == nil {
		t.Error("the lock was granted")
	}
	fs[0].DropLocks(1)
	sole.Release()
	a.session.Store(session)
	a.must(a.lowerLocks(t.Context()))

	h.nobodyWaits()
	b.must(fs[1].TryLock(writeLock(1, 0, 0)))
	f, err := b.Open(t.Context(), ino, syscall.O_RDWR)
	b.must(err)
	f.Release()
}
