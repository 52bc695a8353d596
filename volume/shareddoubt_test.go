package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/cairnfs/cairn/namespace"
)

// doubtedLog is a file in which a node appends.
func doubtedLog(t *testing.T) (h *hub, w *Handle) {
	h = newHub(t, 2)
	h.nodes[0].createFile("log", []byte("start\n"))
	return h, h.nodes[0].openFile("log", syscall.O_WRONLY|syscall.O_APPEND)
}

func (h *hub) showsRecords(n int) {
	h.t.Helper()
	want := []byte("start\n")
	for i := range n {
		want = append(want, record(0, i)...)
	}
	for _, m := range h.nodes {
		m.shows("log", want)
	}
}

// Rule 6: of two attempts of which nobody knows what became of them, the first may have
// been lost and the second have counted.
func TestOfSeveralUnknownAppendsTheOneThatCountedIsKnown(t *testing.T) {
	h, w := doubtedLog(t)
	a := h.nodes[0]
	a.put(w, record(0, 0), 0)
	a.setCut(true)
	if err := w.Flush(t.Context()); !errors.Is(err, errNoMajority) {
		t.Fatalf("a flush of one who is cut off: %v", err)
	}
	a.setCut(false)
	a.put(w, record(0, 1), 0)
	a.setDeaf(true)
	if err := w.Flush(t.Context()); !errors.Is(err, errNoMajority) {
		t.Fatalf("a flush without an answer: %v", err)
	}
	a.setDeaf(false)
	a.closeFile(w)
	h.showsRecords(2)
}

// Rule 6: an append is not taken for a truncation that would have left the file as long.
func TestAnUnknownAppendIsToldFromAnUnknownTruncation(t *testing.T) {
	h, w := doubtedLog(t)
	a := h.nodes[0]
	a.setCut(true)
	size := int64(len("start\n") + len(record(0, 0)))
	if _, err := a.SetAttr(t.Context(), w.Ino(), SetAttr{Valid: SetSize, Size: size}); !errors.Is(err, errNoMajority) {
		t.Fatalf("a truncation by one who is cut off: %v", err)
	}
	a.setCut(false)
	a.put(w, record(0, 0), 0)
	a.setDeaf(true)
	if err := w.Flush(t.Context()); !errors.Is(err, errNoMajority) {
		t.Fatalf("a flush without an answer: %v", err)
	}
	a.setDeaf(false)
	a.put(w, record(0, 1), 0)
	a.closeFile(w)
	h.showsRecords(2)
}

// Rule 6: a session that is about to end may go on.
func TestAnUnknownAppendCountsWhileTheSessionIsUncertain(t *testing.T) {
	h, w := doubtedLog(t)
	a := h.nodes[0]
	a.put(w, record(0, 0), 0)
	session := a.session.Load()
	uncertain := func(*namespace.Change) { a.session.Store(0) }
	a.observing.Store(&uncertain)
	a.setDeaf(true)
	if err := w.Flush(t.Context()); !errors.Is(err, errNoMajority) {
		t.Fatalf("a flush without an answer: %v", err)
	}
	a.setDeaf(false)
	a.observing.Store(nil)
	a.session.Store(session)
	a.put(w, record(0, 1), 0)
	a.closeFile(w)
	h.showsRecords(2)
}

// Rule 6: who takes over what the namespace has, before observers were told of it, knows
// what of it is his own.
func TestAnUnknownAppendIsThereOnceForWhoSeesItFirst(t *testing.T) {
	h, w := doubtedLog(t)
	a := h.nodes[0]
	a.must(a.Barrier(t.Context()))
	a.put(w, record(0, 0), 0)
	release := make(chan struct{})
	late := func(*namespace.Change) { <-release }
	a.observing.Store(&late)
	a.setHasty(true)
	if err := w.Flush(t.Context()); !errors.Is(err, errNoMajority) {
		t.Fatalf("a flush without an answer: %v", err)
	}
	a.setHasty(false)
	before := w.f.version.Load()
	eventually(t, "the append", func() bool {
		n, err := a.state.Inode(w.Ino())
		return err == nil && n.Version != before
	})
	opened := make(chan error, 1)
	go func() {
		r, err := a.Volume.open(context.Background(), w.Ino(), syscall.O_RDONLY)
		if err == nil {
			r.Release()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		opened <- err
	case <-time.After(50 * time.Millisecond): // it waits for the observers
	}
	a.observing.Store(nil)
	close(release)
	a.must(<-opened)
	a.put(w, record(0, 1), 0)
	a.closeFile(w)
	h.showsRecords(2)
}

// Rule 6: who takes over a snapshot cannot tell whether an append of his is part of it.
// It must not come twice, and the program must know.
func TestAnAppendThatMayBePartOfASnapshotIsGivenUp(t *testing.T) {
	for _, counts := range []bool{true, false} {
		t.Run(fmt.Sprint("counts: ", counts), func(t *testing.T) {
			h, w := doubtedLog(t)
			a, b := h.nodes[0], h.nodes[1]
			a.unseen.Store(true)
			a.put(w, record(0, 0), 0)
			a.setHasty(true)
			a.setCut(!counts)
			if err := w.Flush(t.Context()); !errors.Is(err, errNoMajority) {
				t.Fatalf("a flush without an answer: %v", err)
			}
			a.setHasty(false)
			a.setCut(false)
			want := []byte("start\n")
			if counts {
				want = append(want, record(0, 0)...)
			}
			other := b.openFile("log", syscall.O_WRONLY|syscall.O_APPEND)
			b.put(other, record(1, 0), 0)
			b.closeFile(other)
			want = append(want, record(1, 0)...)
			a.must(a.Barrier(t.Context()))
			a.unseen.Store(false)
			a.Observe(&namespace.Change{All: true, Step: true})
			if err := w.Flush(t.Context()); !errors.Is(err, namespace.ErrSession) {
				t.Errorf("a flush of what may have been appended: %v", err)
			}
			w.Release()
			for _, m := range h.nodes {
				m.shows("log", want)
			}
			saved, ok := a.recovery.Load(fmt.Sprintf("%d-log", w.Ino()))
			if !ok || !bytes.Equal(saved.(*recovered).Bytes(), append([]byte("start\n"), record(0, 0)...)) {
				t.Errorf("saved: %v", saved)
			}
		})
	}
}

func (m *member) setHasty(hasty bool) {
	m.hub.mu.Lock()
	defer m.hub.mu.Unlock()
	m.hasty = hasty
}

// Rule 6: what is written over an append while that is being named is not taken for a
// part of it.
func TestAWriteOverAnAppendThatIsBeingNamedIsKept(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	want := pattern(100_000, 1)
	a.createFile("file", want)
	app, rw := a.openFile("file", syscall.O_WRONLY|syscall.O_APPEND), a.openFile("file", syscall.O_RDWR)
	a.put(app, []byte("append"), 0)
	stall := make(chan struct{})
	h.blocks.stall.Store(&stall)
	a.setDeaf(true)
	flushed := make(chan error, 1)
	go func() { flushed <- app.Flush(context.Background()) }()
	eventually(t, "a commit", func() bool {
		app.f.mu.Lock()
		defer app.f.mu.Unlock()
		return app.f.frozenTail >= 0
	})
	wrote := make(chan error, 1)
	go func() {
		_, err := rw.Write(context.Background(), []byte("P"), 100_002)
		wrote <- err
	}()
	select {
	case err := <-wrote:
		wrote <- err
	case <-time.After(50 * time.Millisecond): // it waits for the commit
	}
	h.blocks.stall.Store(nil)
	close(stall)
	if err := <-flushed; !errors.Is(err, errNoMajority) {
		t.Fatalf("a flush without an answer: %v", err)
	}
	err := <-wrote
	a.setDeaf(false)
	want = append(want, "append"...)
	if err == nil {
		want[100_002] = 'P'
	} else if !errors.Is(err, errNoMajority) {
		t.Fatal(err)
	}
	a.closeFile(app)
	a.closeFile(rw)
	a.shows("file", want)
	b.shows("file", want)
}
