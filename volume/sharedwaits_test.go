package volume

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cairnfs/cairn/namespace"
)

// waitLock waits for a lock and says how that ended.
func waitLock(f *Handle, l Lock) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f.WaitLock(nil, l) }()
	return done
}

// outcomes waits for one of two outcomes, and calls give for the other one to come.
func outcomes(t *testing.T, one, two <-chan error, giveOne, giveTwo func()) {
	t.Helper()
	start := time.Now()
	var first, second error
	select {
	case first = <-one:
		giveOne()
		second = <-two
	case first = <-two:
		giveTwo()
		second = <-one
	}
	if first != ErrDeadlock || second != nil {
		t.Errorf("one is told %v, the other %v", first, second)
	}
	t.Logf("after %v", time.Since(start))
}

func TestADeadlockOfProgramsOnTwoNodesIsFound(t *testing.T) {
	h := newHub(t, 2)
	fs := h.openOnAll("file")
	a, b := h.nodes[0], h.nodes[1]
	a.must(fs[0].TryLock(writeLock(1, 0, 9)))
	b.must(fs[1].TryLock(writeLock(1, 10, 19)))
	one, two := waitLock(fs[0], writeLock(1, 10, 19)), waitLock(fs[1], writeLock(1, 5, 5))
	outcomes(t, one, two, func() { fs[0].DropLocks(1) }, func() { fs[1].DropLocks(1) })
	h.nobodyWaits()
}

// nobodyWaits fails the test unless the log knows of no wait, by registering many.
func (h *hub) nobodyWaits() {
	h.t.Helper()
	for _, m := range h.nodes {
		if all := m.waits.of(anyOwner); len(all) > 0 {
			h.t.Errorf("%s: %d waits are kept", m.peer, len(all))
		}
		for id := range uint64(namespace.MaxWaits / len(h.nodes)) {
			_, err := m.propose(h.t.Context(), &namespace.AwaitLock{Session: m.Session(), ID: 1<<40 + id, Wait: &namespace.Wait{}})
			m.must(err)
		}
	}
}

// The circle goes through three nodes, two files and a program that waits for another
// one on its own node.
func TestADeadlockThroughSeveralNodesAndFilesIsFound(t *testing.T) {
	h := newHub(t, 3)
	xs, ys := h.openOnAll("x"), h.openOnAll("y")
	a, b, c := h.nodes[0], h.nodes[1], h.nodes[2]
	a.must(xs[0].TryLock(writeLock(1, 0, 0)))
	a.must(ys[0].TryLock(writeLock(2, 0, 0)))
	b.must(xs[1].TryLock(readLock(1, 5, 9)))
	c.must(ys[2].TryLock(writeLock(1, 5, 5)))
	waits := []<-chan error{
		waitLock(xs[0], readLock(2, 0, 0)),  // for a's other program
		waitLock(xs[0], writeLock(1, 7, 7)), // for b
		waitLock(ys[1], readLock(1, 5, 5)),  // for c
		waitLock(ys[2], writeLock(1, 0, 0)), // for a's second
	}
	release := []func(){
		func() { ys[0].DropLocks(2) }, func() { xs[0].DropLocks(1) }, func() { xs[1].DropLocks(1) }, func() { ys[2].DropLocks(1) },
	}
	deadlocks := 0
	for range waits {
		for i, w := range waits {
			select {
			case err := <-w:
				if err == ErrDeadlock {
					deadlocks++
				} else if err != nil {
					t.Error(err)
				}
				release[i]()
				xs[i%3].DropLocks(1)
				ys[i%3].DropLocks(1)
				waits[i] = nil
			default:
			}
		}
		time.Sleep(lockAgain / 2)
	}
	for i, w := range waits {
		if w != nil {
			t.Errorf("wait %d is not over", i)
		}
	}
	if deadlocks != 1 {
		t.Errorf("%d programs are told of a deadlock", deadlocks)
	}
	h.nobodyWaits()
}

// Two programs of each node: nodes wait for each other, programs do not.
func TestNodesThatWaitForEachOtherAreNoDeadlockOfPrograms(t *testing.T) {
	h := newHub(t, 2)
	fs := h.openOnAll("file")
	a, b := h.nodes[0], h.nodes[1]
	a.must(fs[0].TryLock(writeLock(1, 0, 0)))
	a.must(fs[0].TryLock(writeLock(2, 50, 50)))
	b.must(fs[1].TryLock(writeLock(1, 1, 1)))
	b.must(fs[1].TryLock(writeLock(2, 60, 60)))
	one, two := waitLock(fs[0], writeLock(2, 1, 1)), waitLock(fs[1], writeLock(2, 0, 0))
	select {
	case err := <-one:
		t.Errorf("the first wait ends with %v", err)
	case err := <-two:
		t.Errorf("the second wait ends with %v", err)
	case <-time.After(2 * lockAgain):
	}
	a.must(fs[0].Unlock(writeLock(1, 0, 0)))
	b.must(fs[1].Unlock(writeLock(1, 1, 1)))
	a.must(<-one)
	b.must(<-two)
	h.nobodyWaits()
}

// What another thread of a program that waits lets go is not said to be held.
func TestWhatAThreadUnlocksWhileAnotherWaitsIsNotInTheWay(t *testing.T) {
	for what, less := range map[string]func(*member, *Handle, *Handle){
		"unlock":    func(m *member, f, _ *Handle) { m.must(f.Unlock(writeLock(1, 0, 0))) },
		"close":     func(m *member, _, g *Handle) { g.Release() },
		"read lock": func(m *member, f, _ *Handle) { m.must(f.TryLock(readLock(1, 0, 0))) },
	} {
		t.Run(what, func(t *testing.T) {
			h := newHub(t, 3)
			fs := h.openOnAll("file")
			a, b, c := h.nodes[0], h.nodes[1], h.nodes[2]
			g := a.openFile("file", syscall.O_RDWR)
			via := fs[0]
			if what == "close" {
				via = g
			} else {
				defer g.Release()
			}
			a.must(via.TryLock(writeLock(1, 0, 0)))
			b.must(fs[1].TryLock(writeLock(1, 5, 5)))
			one := waitLock(fs[0], writeLock(1, 5, 5))
			a.untilSuspected()
			less(a, via, g)
			if what == "read lock" { // who wants to read need not wait, who wants to write does
				b.must(fs[1].TryLock(readLock(1, 0, 0)))
				two := waitLock(fs[1], writeLock(1, 0, 0))
				outcomes(t, one, two, func() { fs[0].DropLocks(1) }, func() { fs[1].DropLocks(1) })
				return
			}
			// Another one has it now, and who waits for that one waits for nobody else.
			c.must(fs[2].WaitLock(nil, writeLock(1, 0, 0)))
			two := waitLock(fs[1], writeLock(1, 0, 0))
			select {
			case err := <-one:
				t.Errorf("the first wait ends with %v", err)
			case err := <-two:
				t.Errorf("the second wait ends with %v", err)
			case <-time.After(2 * lockAgain):
			}
			c.must(fs[2].Unlock(writeLock(1, 0, 0)))
			b.must(<-two)
			b.must(fs[1].Unlock(writeLock(1, 5, 5)))
			a.must(<-one)
			h.nobodyWaits()
		})
	}
}

// untilSuspected returns when the log knows of a wait on the node.
func (m *member) untilSuspected() {
	m.t.Helper()
	eventually(m.t, "the log is told", func() bool {
		for _, w := range m.waits.of(anyOwner) {
			w.mu.Lock()
			said := w.said
			w.mu.Unlock()
			if said != nil {
				return true
			}
		}
		return false
	})
}

func TestAWaitIsForgottenWithItsSession(t *testing.T) {
	h := newHub(t, 2)
	fs := h.openOnAll("file")
	a, b := h.nodes[0], h.nodes[1]
	a.must(fs[0].TryLock(writeLock(1, 0, 0)))
	b.must(fs[1].TryLock(writeLock(1, 1, 1)))
	one := waitLock(fs[0], writeLock(1, 1, 1))
	a.untilSuspected()
	a.loseSession()
	b.must(fs[1].WaitLock(nil, writeLock(1, 0, 0))) // no deadlock
	b.must(fs[1].Unlock(writeLock(1, 0, 1)))
	if err := <-one; err == nil || err == ErrDeadlock {
		t.Errorf("the wait of an ended session ends with %v", err)
	}
	a.newSession()
	h.nobodyWaits()
}

// Programs on all nodes lock a few bytes in any order and hold what they have: nobody
// waits for ever, and who locks in order is never told of a deadlock.
func TestProgramsThatLockInAnyOrderAllGetOn(t *testing.T) {
	const places, rounds, most = 4, 12, 1000
	h := newHub(t, 3)
	fs := h.openOnAll("file")
	var (
		wg        sync.WaitGroup
		deadlocks atomic.Int64
		holder    [places]atomic.Int64
	)
	for i, m := range h.nodes {
		for owner := uint64(1); owner <= 2; owner++ {
			rnd := rand.New(rand.NewPCG(uint64(i), owner))
			me := int64(i)<<8 | int64(owner)
			wg.Go(func() {
				for r := 0; r < rounds/slowdown || r < most && deadlocks.Load() == 0; r++ {
					for _, at := range rnd.Perm(places)[:2] {
						err := fs[i].WaitLock(nil, writeLock(owner, uint64(at), uint64(at)))
						if err == ErrDeadlock {
							deadlocks.Add(1)
							break
						}
						m.must(err)
						if !holder[at].CompareAndSwap(0, me) {
							t.Errorf("byte %d is held twice", at)
						}
						time.Sleep(time.Duration(rnd.IntN(3)) * time.Millisecond)
					}
					for at := range holder {
						holder[at].CompareAndSwap(me, 0)
					}
					m.must(fs[i].Unlock(writeLock(owner, 0, places)))
				}
			})
		}
	}
	wg.Wait()
	t.Logf("%d deadlocks", deadlocks.Load())
	if deadlocks.Load() == 0 {
		t.Error("there was no deadlock to be found")
	}
	h.nobodyWaits()
}

func TestWhoLocksInOrderIsNeverToldOfADeadlock(t *testing.T) {
	const places, rounds = 3, 5
	h := newHub(t, 3)
	fs := h.openOnAll("file")
	var wg sync.WaitGroup
	for i, m := range h.nodes {
		for owner := uint64(1); owner <= 2; owner++ {
			wg.Go(func() {
				for range rounds / slowdown {
					for at := range uint64(places) {
						m.must(fs[i].WaitLock(nil, writeLock(owner, at, at)))
						time.Sleep(50 * time.Millisecond) // so that the others suspect something
					}
					m.must(fs[i].Unlock(writeLock(owner, 0, places)))
				}
			})
		}
	}
	wg.Wait()
	h.nobodyWaits()
}
