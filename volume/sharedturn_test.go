package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace"
)

// slowStore stores as slowly as it is told.
type slowStore struct {
	cas.Store
	delay time.Duration
}

func (s *slowStore) Put(ctx context.Context, blocks ...cas.Block) error {
	time.Sleep(s.delay)
	return s.Store.Put(ctx, blocks...)
}

// Rule 8: after three refusals a writer is served in order. One node is far slower
// than the others, so that something has always been named before it is ready.
func TestAfterThreeRefusalsAWriterIsServedInOrder(t *testing.T) {
	const (
		nodes  = 5
		slot   = 5000 // more than is kept inline: a commit stores blocks
		rounds = 12
	)
	h := newHub(t, nodes)
	slow := h.nodes[nodes-1]
	slow.o.Store = &slowStore{slow.o.Store, 20 * time.Millisecond}
	h.nodes[0].createFile("file", make([]byte, slot*nodes))
	var (
		wg   sync.WaitGroup
		done atomic.Int32
		most [nodes]int // refusals of one commit
	)
	want := make([]byte, slot*nodes)
	for i, m := range h.nodes {
		wg.Go(func() {
			defer done.Add(1)
			f := m.openFile("file", syscall.O_RDWR)
			defer f.Release()
			// The fast ones go on until the slow one is through.
			for r := 0; r < rounds || m != slow && done.Load() == 0; r++ {
				p := pattern(slot, byte(i*50+r))
				copy(want[i*slot:], p)
				m.put(f, p, int64(i*slot))
				before := m.refusals.Load()
				m.must(f.Fsync(context.Background(), true))
				most[i] = max(most[i], int(m.refusals.Load()-before))
			}
		})
	}
	wg.Wait()
	for i, m := range h.nodes {
		if most[i] > maxRefusals {
			t.Errorf("%s was refused %d times in a row", m.peer, most[i])
		}
		m.shows("file", want)
	}
	t.Logf("refusals of one commit, at most: %v", most)
}

// Whoever has the turn and lives without using it delays the others for turnTime.
func TestANodeThatDoesNotUseItsTurnIsPutOut(t *testing.T) {
	h := newHub(t, 3)
	a, b, c := h.nodes[0], h.nodes[1], h.nodes[2]
	for _, m := range h.nodes {
		m.o.turnTime = 100 * time.Millisecond
	}
	a.createFile("file", []byte("0123456789"))
	ino := a.find("file")
	h.append(&namespace.TakeTurn{Session: a.Session(), Ino: ino})
	a.must(a.Barrier(t.Context()))
	var wg sync.WaitGroup
	for i, m := range []*member{b, c} {
		wg.Go(func() {
			f := m.openFile("file", syscall.O_RDWR)
			m.put(f, []byte("new"), int64(i*5))
			m.closeFile(f)
		})
	}
	wg.Wait()
	a.shows("file", []byte("new34new89"))
	// Its next attempt counts as any other.
	f := a.openFile("file", syscall.O_RDWR)
	a.put(f, []byte("A"), 9)
	a.closeFile(f)
	c.shows("file", []byte("new34new8A"))
	h.nobodyQueues(ino)
}

// nobodyQueues fails the test if somebody is in the queue for the content.
func (h *hub) nobodyQueues(ino namespace.Ino) {
	h.t.Helper()
	m := h.nodes[0]
	m.must(m.Barrier(context.Background()))
	if queue, err := m.state.Turns(ino); err != nil || len(queue) > 0 {
		h.t.Errorf("in the queue are %v, %v", queue, err)
	}
}

// Rule 8. Whoever dies with the turn delays the others until its session ends.
func TestATurnEndsWithTheSession(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("file", []byte("0123456789"))
	ino := a.find("file")
	h.append(&namespace.TakeTurn{Session: a.Session(), Ino: ino})
	b.must(b.Barrier(t.Context()))
	f := b.openFile("file", syscall.O_RDWR)
	b.put(f, []byte("new"), 0)
	done := make(chan error, 1)
	go func() { done <- f.Flush(t.Context()) }()
	b.untilWaiting()
	// Meanwhile the file can be read and opened there.
	if got := b.content(f); string(got) != "new3456789" {
		t.Errorf("shows %s", brief(got))
	}
	b.openFile("file", syscall.O_RDONLY).Release()
	a.loseSession()
	b.must(<-done)
	f.Release()
	a.newSession()
	a.shows("file", []byte("new3456789"))
	h.nobodyQueues(ino)
}

func TestATruncationWaitsForItsTurn(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("file", []byte("0123456789"))
	ino := a.find("file")
	f := a.openFile("file", syscall.O_RDWR)
	a.put(f, []byte("A"), 0)
	h.append(&namespace.TakeTurn{Session: a.Session(), Ino: ino})
	b.must(b.Barrier(t.Context()))
	done := make(chan error, 1)
	go func() {
		_, err := b.SetAttr(context.Background(), ino, SetAttr{Valid: SetSize, Size: 3})
		done <- err
	}()
	b.untilWaiting()
	a.closeFile(f)
	b.must(<-done)
	a.shows("file", []byte("A12"))
	h.nobodyQueues(ino)
}

// What cannot be stored must not hold up the others.
func TestAWriterThatFailsGivesItsTurnUp(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("file", make([]byte, 100_000))
	ino := a.find("file")
	broken := errors.New("broken disk")
	good := a.o.Store
	f := a.openFile("file", syscall.O_RDWR)
	a.put(f, pattern(90_000, 1), 0) // too much for a patch
	h.append(&namespace.TakeTurn{Session: b.Session(), Ino: ino})
	a.must(a.Barrier(t.Context()))
	a.o.Store = failingStore{good, broken}
	done := make(chan error, 1)
	go func() { done <- f.Fsync(context.Background(), true) }()
	a.untilWaiting()
	g := b.openFile("file", syscall.O_RDWR)
	b.put(g, []byte("b"), 99_000)
	b.must(g.Fsync(t.Context(), true))
	if err := <-done; !errors.Is(err, broken) {
		t.Errorf("what cannot be stored is named: %v", err)
	}
	h.nobodyQueues(ino)
	b.closeFile(g)
	a.o.Store = good
	a.closeFile(f)
	b.shows("file", overlay(overlay(make([]byte, 100_000), pattern(90_000, 1), 0), []byte("b"), 99_000))
}

type failingStore struct {
	cas.Store
	err error
}

func (s failingStore) Put(context.Context, ...cas.Block) error { return s.err }

// Appends, writes in place and truncations of all nodes at once, with sessions that
// end: everything that was named is there, and nobody waits for ever.
func TestTurnsAreTakenByAllKindsOfChanges(t *testing.T) {
	const records = 40
	h := newHub(t, 3)
	for _, m := range h.nodes {
		m.o.turnTime = 200 * time.Millisecond
	}
	h.nodes[0].createFile("log", []byte("start\n"))
	var wg sync.WaitGroup
	for i, m := range h.nodes {
		wg.Go(func() {
			f := m.openFile("log", syscall.O_RDWR|syscall.O_APPEND)
			for r := range records {
				m.put(f, record(i, r), 0)
				m.must(f.Fsync(context.Background(), true))
				if r%10 == i {
					_, err := m.SetAttr(context.Background(), m.find("log"), SetAttr{Valid: SetMode, Mode: 0o600})
					m.must(err)
				}
			}
			m.closeFile(f)
		})
		wg.Go(func() {
			f := m.openFile("log", syscall.O_WRONLY)
			defer f.Release()
			for range records {
				m.put(f, []byte("START"[i:i+1]), int64(i))
				m.must(f.Flush(context.Background()))
			}
		})
	}
	wg.Wait()
	for _, m := range h.nodes {
		f := m.openFile("log", syscall.O_RDONLY)
		content := m.content(f)
		if !bytes.HasPrefix(content, []byte("STArt\n")) {
			t.Errorf("%s shows %s", m.peer, brief(content))
		}
		checkRecords(t, content, len(h.nodes), records)
		h.nobodyQueues(f.Ino())
		f.Release()
	}
}

func BenchmarkThreeNodesWriteOneFile(b *testing.B) {
	h := newHub(b, 3)
	const slot = 5000
	h.nodes[0].createFile("file", make([]byte, 3*slot))
	var (
		wg   sync.WaitGroup
		left atomic.Int64
		done [3]int
	)
	left.Store(int64(b.N))
	b.ResetTimer()
	for i, m := range h.nodes {
		wg.Go(func() {
			f := m.openFile("file", syscall.O_RDWR)
			defer f.Release()
			for left.Add(-1) >= 0 {
				m.put(f, pattern(slot, byte(done[i])), int64(i*slot))
				m.must(f.Fsync(context.Background(), true))
				done[i]++
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.Logf("commits by node %v", fmt.Sprint(done))
}
