package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"

	"github.com/cairnfs/cairn/namespace"
)

func writeLock(owner, start, end uint64) Lock {
	return Lock{Start: start, End: end, Write: true, Owner: owner, PID: uint32(owner)}
}

func readLock(owner, start, end uint64) Lock {
	return Lock{Start: start, End: end, Owner: owner, PID: uint32(owner)}
}

// openOnAll makes a file and opens it on every node.
func (h *hub) openOnAll(name string) []*Handle {
	h.nodes[0].createFile(name, []byte("0"))
	var all []*Handle
	for _, m := range h.nodes {
		all = append(all, m.openFile(name, syscall.O_RDWR))
	}
	h.t.Cleanup(func() {
		for _, f := range all {
			f.Release()
		}
	})
	return all
}

// clusterLocks returns what the log says of the locks of an inode.
func (h *hub) clusterLocks(ino namespace.Ino) []namespace.Lock {
	h.t.Helper()
	m := h.nodes[0]
	m.must(m.Barrier(context.Background()))
	held, err := m.state.Locks(ino)
	m.must(err)
	return held
}

func TestALockExcludesProgramsOfOtherNodes(t *testing.T) {
	for _, flock := range []bool{false, true} {
		h := newHub(t, 2)
		fs := h.openOnAll("file")
		a, b := h.nodes[0], h.nodes[1]
		kind := func(l Lock) Lock { l.Flock = flock; return l }
		a.must(fs[0].TryLock(kind(writeLock(1, 0, 9))))
		b.wantErr(fs[1].TryLock(kind(readLock(1, 5, 20))), ErrWouldBlock)
		l, found, err := fs[1].FindLock(kind(readLock(1, 5, 20)))
		if err != nil || !found || !l.Write || l.PID != 0 || l.Start != 0 {
			t.Errorf("found %+v, %v, %v", l, found, err)
		}
		if _, found, _ := fs[1].FindOwnLock(kind(readLock(1, 5, 20))); found {
			t.Error("a refused lock is held")
		}
		// The other kind does not see it.
		other := readLock(1, 0, 9)
		other.Flock = !flock
		b.must(fs[1].TryLock(other))
		a.must(fs[0].Unlock(kind(writeLock(1, 0, 9))))
		b.must(fs[1].TryLock(kind(readLock(1, 5, 20))))
		a.must(fs[0].TryLock(kind(readLock(1, 0, 9))))
		a.wantErr(fs[0].TryLock(kind(writeLock(1, 0, 9))), ErrWouldBlock)
		own, found, _ := fs[0].FindOwnLock(kind(readLock(1, 0, 9)))
		if found == flock || found && own.Write { // flock(2) loses what it cannot upgrade
			t.Errorf("after a refused upgrade: %+v, %v", own, found)
		}
	}
}

func TestTheNodeHoldsTheStrongestOfWhatItsProgramsHold(t *testing.T) {
	h := newHub(t, 2)
	a := h.nodes[0]
	f := h.openOnAll("file")[0]
	g := a.openFile("file", syscall.O_RDWR)
	defer g.Release()
	expect := func(want ...span) {
		t.Helper()
		var got []span
		for _, l := range h.clusterLocks(f.Ino()) {
			if l.Session != a.Session() || l.Kind != namespace.LockRecord {
				t.Errorf("lock %+v", l)
			}
			got = append(got, span{l.Start, l.End, l.Mode})
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the node holds %v, want %v", got, want)
		}
	}
	a.must(f.TryLock(readLock(1, 0, 99)))
	a.must(g.TryLock(readLock(2, 50, 149)))
	expect(span{0, 149, namespace.Shared})
	a.must(f.TryLock(writeLock(1, 0, 9)))
	expect(span{0, 9, namespace.Exclusive}, span{10, 149, namespace.Shared})
	a.must(f.TryLock(readLock(1, 5, 9))) // weaker
	expect(span{0, 4, namespace.Exclusive}, span{5, 149, namespace.Shared})
	a.must(f.Unlock(readLock(1, 0, 59)))
	expect(span{50, 149, namespace.Shared})
	g.DropLocks(2)
	expect(span{60, 99, namespace.Shared})
	a.must(g.TryLock(readLock(3, 0, 0)))
	f.DropLocks(1)
	expect(span{0, 0, namespace.Shared})
	k := a.openFile("file", syscall.O_RDWR)
	a.must(k.TryLock(writeLock(4, 7, 7)))
	k.Release()
	expect(span{0, 0, namespace.Shared})
	g.DropLocks(3)
	expect()
	a.node.mu.Lock()
	defer a.node.mu.Unlock()
	if len(a.node.spaces) != 0 || len(a.node.signals) != 0 {
		t.Error("something is kept of locks that are gone")
	}
}

func TestAWaitEndsWhenAnotherNodeLetsGo(t *testing.T) {
	ends := map[string]func(m *member, f *Handle){
		"unlock":      func(m *member, f *Handle) { m.must(f.Unlock(writeLock(1, 0, 9))) },
		"close":       func(_ *member, f *Handle) { f.DropLocks(1) },
		"session end": func(m *member, _ *Handle) { m.loseSession() },
	}
	for what, end := range ends {
		t.Run(what, func(t *testing.T) {
			h := newHub(t, 2)
			fs := h.openOnAll("file")
			h.nodes[0].must(fs[0].TryLock(writeLock(1, 0, 9)))
			done := make(chan error, 1)
			go func() { done <- fs[1].WaitLock(nil, writeLock(1, 3, 3)) }()
			h.nodes[1].untilWaiting()
			end(h.nodes[0], fs[0])
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		})
	}
}

// untilWaiting returns when somebody on the node waits for a lock of another node.
func (m *member) untilWaiting() {
	m.t.Helper()
	eventually(m.t, "a wait for a lock", func() bool {
		m.node.mu.Lock()
		defer m.node.mu.Unlock()
		return len(m.node.signals) > 0
	})
}

func TestAWaitForAnotherNodeCanBeGivenUp(t *testing.T) {
	h := newHub(t, 2)
	fs := h.openOnAll("file")
	a, b := h.nodes[0], h.nodes[1]
	a.must(fs[0].TryLock(readLock(1, 0, 9)))
	b.must(fs[1].TryLock(readLock(1, 0, 9)))
	cancel, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- fs[1].WaitLock(cancel, writeLock(1, 0, 4)) }()
	b.untilWaiting()
	close(cancel)
	b.wantErr(<-done, ErrInterrupted)
	if l, found, _ := fs[1].FindOwnLock(readLock(1, 0, 9)); !found || l != readLock(1, 0, 9) {
		t.Errorf("what was held before is %+v, %v", l, found)
	}
	if held := h.clusterLocks(fs[0].Ino()); len(held) != 2 || held[0].Mode != namespace.Shared || held[1].Mode != namespace.Shared {
		t.Errorf("%+v", held)
	}
}

func TestTwoNodesThatMakeASharedFlockExclusiveBothGetIt(t *testing.T) {
	h := newHub(t, 2)
	fs := h.openOnAll("file")
	var wg sync.WaitGroup
	for i, m := range h.nodes {
		m.must(fs[i].TryLock(Lock{Flock: true, Owner: 1}))
	}
	for i, m := range h.nodes {
		wg.Go(func() {
			m.must(fs[i].WaitLock(nil, Lock{Flock: true, Write: true, Owner: 1}))
			m.must(fs[i].Unlock(Lock{Flock: true, Owner: 1}))
		})
	}
	wg.Wait()
}

// Each node counts in the file under a lock, without closing it.
func TestUnderALockEachNodeSeesWhatTheOthersWrote(t *testing.T) {
	const rounds = 25
	h := newHub(t, 3)
	fs := h.openOnAll("counter")
	var wg sync.WaitGroup
	for i, m := range h.nodes {
		wg.Go(func() {
			for range rounds {
				m.must(fs[i].WaitLock(nil, writeLock(1, 0, MaxLockEnd)))
				var n int
				if _, err := fmt.Sscan(string(m.content(fs[i])), &n); err != nil {
					t.Error(err)
				}
				m.put(fs[i], fmt.Append(nil, n+1), 0)
				m.must(fs[i].Unlock(writeLock(1, 0, MaxLockEnd)))
			}
		})
	}
	wg.Wait()
	h.nodes[0].shows("counter", fmt.Append(nil, rounds*3))
}

func TestALockSaysThatPagesAreStaleIfAnotherNodeWrote(t *testing.T) {
	h := newHub(t, 2)
	fs := h.openOnAll("file")
	a, b := h.nodes[0], h.nodes[1]
	a.must(fs[0].TryLock(writeLock(1, 0, 0)))
	stale := func(f *Handle) bool {
		version, stale := f.Stale()
		if stale {
			f.f.v.Dropped(f.Ino(), version)
		}
		return stale
	}
	if stale(fs[0]) {
		t.Error("stale although nobody wrote")
	}
	a.put(fs[0], []byte("1"), 0)
	a.must(fs[0].Unlock(writeLock(1, 0, 0)))
	if stale(fs[0]) {
		t.Error("stale for what was written here")
	}
	b.must(fs[1].TryLock(readLock(1, 0, 0)))
	if _, stale := fs[1].Stale(); !stale {
		t.Error("not stale although another node wrote")
	}
	if !stale(fs[1]) {
		t.Error("not stale any more although nothing was dropped")
	}
	if stale(fs[1]) {
		t.Error("stale although all was dropped")
	}
}

// Rule 7: past the deadline handles fail, and what was written goes to a file.
func TestALostSessionTakesLocksAndSavesWhatWasWritten(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("locked", []byte("locked"))
	a.createFile("dirty", pattern(2000, 1))
	a.createFile("clean", []byte("clean"))
	locked, dirty := a.openFile("locked", syscall.O_RDWR), a.openFile("dirty", syscall.O_RDWR)
	clean, once := a.openFile("clean", syscall.O_RDWR), a.openFile("clean", syscall.O_RDWR)
	a.must(locked.TryLock(writeLock(1, 0, 0)))
	a.must(once.TryLock(writeLock(2, 0, 0)))
	a.must(once.Unlock(writeLock(2, 0, 0)))
	a.put(dirty, []byte("not named"), 7)
	a.loseSession()
	for what, err := range map[string]error{
		"read": read(locked), "write": write(locked), "flush": locked.Flush(t.Context()), "fsync": locked.Fsync(t.Context(), true),
		"write dirty": write(dirty), "flush dirty": dirty.Flush(t.Context()), "fsync dirty": dirty.Fsync(t.Context(), true),
		"lock": clean.TryLock(readLock(1, 0, 0)), "write without a session": write(clean),
	} {
		if !errors.Is(err, namespace.ErrSession) {
			t.Errorf("%s: %v", what, err)
		}
	}
	saved, ok := a.recovery.Load(fmt.Sprintf("%d-dirty", dirty.Ino()))
	if want := overlay(pattern(2000, 1), []byte("not named"), 7); !ok || !bytes.Equal(saved.(*recovered).Bytes(), want) {
		t.Error("what was written was not saved")
	}
	a.must(read(clean))
	if got := a.content(dirty); !bytes.Equal(got, pattern(2000, 1)) {
		t.Errorf("shows %s", brief(got))
	}
	bl := b.openFile("locked", syscall.O_RDWR)
	b.must(bl.TryLock(writeLock(1, 0, 0)))
	a.newSession()
	if err := read(locked); !errors.Is(err, namespace.ErrSession) {
		t.Errorf("read under a new session: %v", err)
	}
	if err := write(dirty); !errors.Is(err, namespace.ErrSession) {
		t.Errorf("write under a new session: %v", err)
	}
	a.must(write(clean))
	a.must(write(once))
	a.must(clean.Flush(t.Context()))
	again := a.openFile("dirty", syscall.O_RDWR)
	a.must(write(again))
	a.closeFile(again)
	for _, f := range []*Handle{locked, dirty, clean, once, bl} {
		f.Release()
	}
	b.shows("dirty", overlay(pattern(2000, 1), []byte("x"), 0))
	a.expectNothingHeld()
}

func read(f *Handle) error {
	_, err := f.Read(context.Background(), make([]byte, 1), 0)
	return err
}

func write(f *Handle) error {
	_, err := f.Write(context.Background(), []byte("x"), 0)
	return err
}

// Rule 14: past the deadline changes fail at once.
// The node has not been told yet, but its cluster says that there is no session.
func TestALockIsNotTrustedOnceTheSessionIsOver(t *testing.T) {
	h := newHub(t, 2)
	a := h.nodes[0]
	f := h.openOnAll("file")[0]
	a.must(f.TryLock(writeLock(1, 0, 0)))
	a.put(f, []byte("late"), 0)
	a.session.Store(0)
	for what, err := range map[string]error{"read": read(f), "write": write(f), "flush": f.Flush(t.Context())} {
		if !errors.Is(err, namespace.ErrSession) {
			t.Errorf("%s: %v", what, err)
		}
	}
	a.newSession() // without a word
	if err := a.Volume.Sync(t.Context()); !errors.Is(err, namespace.ErrSession) {
		t.Errorf("what was written under the old session is named under the new one: %v", err)
	}
	if _, saved := a.recovery.Load(fmt.Sprintf("%d-file", f.Ino())); !saved {
		t.Error("what was written was not saved")
	}
	a.must(a.Volume.Sync(t.Context()))
}

// Rule 7: what a program changed in a mapping under a lock that it has lost is not written
// through another open file either: the kernel writes it through any of the inode.
func TestPagesAreNotWrittenForWhoHasLostALock(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("db", []byte("before"))
	locked, other := a.openFile("db", syscall.O_RDWR), a.openFile("db", syscall.O_RDWR)
	a.must(locked.TryLock(Lock{Owner: 1, Write: true, End: MaxLockEnd}))
	a.loseSession()
	a.newSession()
	b.createFile("other", nil) // so that b has applied it
	bh := b.openFile("db", syscall.O_RDWR)
	b.must(bh.TryLock(Lock{Owner: 2, Write: true, End: MaxLockEnd}))
	b.put(bh, []byte("by b"), 0)
	b.closeFile(bh)
	for _, w := range []*Handle{other, a.openFile("db", syscall.O_WRONLY)} {
		if _, err := w.WritePages(t.Context(), []byte("late"), 0); !errors.Is(err, namespace.ErrSession) {
			t.Errorf("pages are written after the lock was lost: %v", err)
		}
	}
	locked.Release()
	if _, err := other.WritePages(t.Context(), []byte("soon"), 0); err != nil {
		t.Errorf("pages are not written when who has lost the lock is gone: %v", err)
	}
	a.closeFile(other)
	b.shows("db", []byte("soonre"))
}

func TestLocksThatAreHeldWhenTheVolumeIsSharedAreBroughtToTheCluster(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	fs := h.openOnAll("file")
	a.cluster.Store(nil) // as before it was shared
	a.must(fs[0].TryLock(writeLock(1, 0, 9)))
	a.must(fs[0].TryLock(readLock(1, 20, 29)))
	b.must(fs[1].TryLock(writeLock(1, 100, 100)))
	a.Share(a)
	b.wantErr(fs[1].TryLock(readLock(1, 0, 0)), ErrWouldBlock)
	b.wantErr(fs[1].TryLock(writeLock(1, 25, 25)), ErrWouldBlock)
	b.must(fs[1].TryLock(readLock(1, 25, 25)))
}

func TestLocksThatAnotherNodeHasWhenTheVolumeIsSharedAreLost(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	fs := h.openOnAll("file")
	b.must(fs[1].TryLock(writeLock(1, 0, 0)))
	b.must(a.Barrier(t.Context()))
	a.cluster.Store(nil)
	a.must(fs[0].TryLock(writeLock(1, 0, 9)))
	a.Share(a)
	if err := read(fs[0]); !errors.Is(err, namespace.ErrSession) {
		t.Errorf("read through the handle that had it: %v", err)
	}
	if _, found, _ := fs[0].FindOwnLock(writeLock(1, 0, 9)); found {
		t.Error("it is still held")
	}
}

func TestALockWhoseReleaseWasNotAnsweredIsGivenBackLater(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	fs := h.openOnAll("file")
	a.must(fs[0].TryLock(writeLock(1, 0, 9)))
	a.setCut(true)
	a.must(fs[0].Unlock(writeLock(1, 0, 9)))
	a.setCut(false)
	b.wantErr(fs[1].TryLock(writeLock(1, 0, 9)), ErrWouldBlock)
	a.must(a.lowerLocks(t.Context()))
	b.must(fs[1].TryLock(writeLock(1, 0, 9)))
	// And a claim of which nothing was heard is not kept.
	a.setDeaf(true)
	if err := fs[0].TryLock(writeLock(1, 20, 29)); !errors.Is(err, errNoMajority) {
		t.Errorf("%v", err)
	}
	a.setDeaf(false)
	a.must(a.lowerLocks(t.Context()))
	b.must(fs[1].TryLock(writeLock(1, 20, 29)))
}

func TestAFileThatProgramsShareInMemoryIsOpenForWritingOnOneNode(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("db-shm", make([]byte, 32<<10))
	one := a.openFile("db-shm", syscall.O_RDWR)
	two := a.openFile("db-shm", syscall.O_RDWR)
	ino := b.find("db-shm")
	for _, flags := range []uint32{syscall.O_RDWR, syscall.O_RDONLY} {
		if _, err := b.Open(t.Context(), ino, flags); err != ErrWouldBlock {
			t.Errorf("opened with %#x on another node: %v", flags, err)
		}
	}
	a.put(one, []byte("index"), 0)
	one.Release()
	if _, err := b.Open(t.Context(), ino, syscall.O_RDWR); err != ErrWouldBlock {
		t.Errorf("opened on another node: %v", err)
	}
	two.Release()
	f := b.openFile("db-shm", syscall.O_RDWR)
	if got := b.content(f); !bytes.HasPrefix(got, []byte("index")) {
		t.Errorf("shows %s", brief(got))
	}
	f.Release()
}
