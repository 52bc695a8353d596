package volume

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairnfs/cairn/namespace"
)

// Locks of a shared volume. The lock table decides between the programs of this
// node, as if there were no others. Then the node claims in the cluster, for every
// byte, the strongest mode in which its programs have it, before a program is told
// that it has the lock; and when they have less, it names what was written to the file
// and gives the rest back. A program that has been granted its lock by the table and
// waits for other nodes holds it towards those of this node meanwhile.
//
// Deadlocks between nodes are found by sharedwaits.go. A flock(2) that is made
// exclusive gives up the shared one first, as on one node; F_GETLK names no process of
// another node.

// lockAgain is after which time a lock that another node has is asked for again,
// although nothing was heard of it.
const lockAgain = time.Second

// soleSuffix ends the names of files that programs share in memory, which works
// within one node only: the index of SQLite's write-ahead log.
const soleSuffix = "-shm"

// maxSole bounds the inodes that are known to have such a name.
const maxSole = 64 << 10

// nodeTable is what the node has of locks towards the cluster. Its zero value is
// empty.
type nodeTable struct {
	mu      sync.Mutex
	spaces  map[lockSpace]*nodeLocks
	signals map[namespace.Ino]*signal

	names map[namespace.Ino]bool // inodes with a name that ends in soleSuffix
	sole  struct {
		sync.Mutex // held while others agree
		held       map[namespace.Ino]*soleHold
	}
}

// nodeLocks is a lockSpace of which the node holds something, or is about to.
type nodeLocks struct {
	mu     sync.Mutex  // one claim at a time
	refs   int         // guarded by nodeTable.mu
	held   bool        // guarded by mu
	behind atomic.Bool // what is held is to be proposed again: an outcome is unknown
}

// signal tells those who wait for a lock of an inode that it may be free.
type signal struct {
	ch   chan struct{}
	refs int
}

// enter returns the locks of s, for one at a time; leave ends that.
func (t *nodeTable) enter(s lockSpace) *nodeLocks {
	t.mu.Lock()
	nl := t.spaces[s]
	if nl == nil {
		if t.spaces == nil {
			t.spaces = make(map[lockSpace]*nodeLocks)
		}
		nl = &nodeLocks{}
		t.spaces[s] = nl
	}
	nl.refs++
	t.mu.Unlock()
	nl.mu.Lock()
	return nl
}

func (t *nodeTable) leave(s lockSpace, nl *nodeLocks) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if nl.refs--; nl.refs == 0 && !nl.held && !nl.behind.Load() {
		delete(t.spaces, s)
	}
	nl.mu.Unlock()
}

// has reports whether the node may hold something of s.
func (t *nodeTable) has(s lockSpace) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.spaces[s] != nil
}

// sessionEnded has everything that was claimed compared again.
func (t *nodeTable) sessionEnded() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, nl := range t.spaces {
		nl.behind.Store(true)
	}
	for _, s := range t.signals {
		close(s.ch)
	}
	t.signals = nil
}

// watch returns a channel that is closed when a lock of ino is let go by any node.
func (t *nodeTable) watch(ino namespace.Ino) (ch <-chan struct{}, stop func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.signals[ino]
	if s == nil {
		if t.signals == nil {
			t.signals = make(map[namespace.Ino]*signal)
		}
		s = &signal{ch: make(chan struct{})}
		t.signals[ino] = s
	}
	s.refs++
	return s.ch, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if s.refs--; s.refs == 0 && t.signals[ino] == s {
			delete(t.signals, ino)
		}
	}
}

func (t *nodeTable) wake(c *namespace.Change) {
	if !c.All && len(c.Unlocked) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for ino, s := range t.signals {
		if c.All || slices.Contains(c.Unlocked, ino) {
			close(s.ch)
			delete(t.signals, ino)
		}
	}
}

func (s lockSpace) kind() namespace.LockKind {
	if s.flock {
		return namespace.LockFile
	}
	return namespace.LockRecord
}

// lockShared is TryLock or WaitLock.
func (h *Handle) lockShared(cancel <-chan struct{}, r *lockRequest, wait bool) error {
	v := h.f.v
	h.arrived()
	if v.shared().Session() == 0 {
		return namespace.ErrSession
	}
	before := v.locks.heldIn(r) // another thread that locks the same bytes meanwhile may see it come back
	defer v.await(r, before).end()
	err := h.lockHere(cancel, r, before, wait)
	if err != nil {
		if r.Flock {
			h.lower(r.space, r.Start, r.End) // a shared one may have been given up
		}
		return err
	}
	if err = h.claimFor(cancel, r, wait); err == nil {
		return nil
	}
	if r.Flock {
		before = nil
	}
	v.locks.restore(r, before)
	h.lower(r.space, r.Start, r.End)
	if errors.Is(err, namespace.ErrLocked) {
		return ErrWouldBlock
	}
	return err
}

// lockHere has the table grant r, whose owner had some of its range before.
func (h *Handle) lockHere(cancel <-chan struct{}, r *lockRequest, before []heldLock, wait bool) error {
	v := h.f.v
	if !r.Write && slices.ContainsFunc(before, func(h heldLock) bool { return h.write }) {
		done := v.beforeLess(r.space.ino, r.Owner)
		err := v.locks.try(r)
		done()
		if !wait || err != ErrWouldBlock {
			return err
		}
	}
	if wait {
		return v.locks.wait(cancel, r)
	}
	return v.locks.try(r)
}

// claimFor claims what r, which the table has granted, takes in the cluster.
func (h *Handle) claimFor(cancel <-chan struct{}, r *lockRequest, wait bool) error {
	v := h.f.v
	for {
		free, stop := v.node.watch(r.space.ino)
		session := v.shared().Session()
		raised, err := v.claim(context.Background(), h.f, r.space, r.Start, r.End, claimAll)
		if err == nil {
			stop()
			return h.granted(r, session, raised)
		}
		if !wait || !errors.Is(err, namespace.ErrLocked) {
			stop()
			return err
		}
		if r.Flock {
			if _, err := v.claim(context.Background(), h.f, r.space, r.Start, r.End, claimOthers(r.Owner)); err != nil {
				v.o.Logger.Warn("a lock is given back later", "inode", r.space.ino, "err", err)
			}
		}
		again := time.NewTimer(lockAgain)
		select {
		case <-free:
		case <-again.C:
		case <-cancel:
			err = ErrInterrupted
		case <-r.doomed:
			err = ErrDeadlock
		case <-v.quit:
			err = ErrClosed
		}
		again.Stop()
		stop()
		if !errors.Is(err, namespace.ErrLocked) {
			return err
		}
	}
}

// granted takes over what others wrote under the lock, if it is new to this node.
func (h *Handle) granted(r *lockRequest, session namespace.SessionID, raised bool) error {
	r.via.session.Store(uint64(session))
	if r.via.lost.Load() || h.f.v.shared().Session() != session {
		return namespace.ErrSession
	}
	if !raised {
		return nil
	}
	return h.f.takeOver(context.Background())
}

// unlockShared is Unlock. If what was written cannot be named the error says so, and
// the node holds the lock until it is.
func (h *Handle) unlockShared(r *lockRequest) error {
	done := h.f.v.beforeLess(r.space.ino, r.Owner)
	err := h.f.v.locks.unlock(r)
	done()
	if err != nil {
		return err
	}
	if !h.f.v.node.has(r.space) {
		return nil
	}
	_, err = h.f.v.claim(context.Background(), h.f, r.space, r.Start, r.End, claimLess)
	return err
}

// lower gives back to the cluster what no program has any more.
func (h *Handle) lower(s lockSpace, from, to uint64) {
	v := h.f.v
	if !v.node.has(s) {
		return
	}
	if _, err := v.claim(context.Background(), h.f, s, from, to, claimLess); err != nil {
		v.o.Logger.Warn("a lock is given back later", "inode", s.ino, "err", err)
	}
}

// droppedShared gives back what went with a descriptor, or with the handle.
func (h *Handle) droppedShared(handle bool) {
	if !h.f.v.Shared() {
		return
	}
	h.lower(lockSpace{h.f.ino, false}, 0, MaxLockEnd)
	if handle {
		h.lower(lockSpace{h.f.ino, true}, 0, MaxLockEnd)
	}
}

// releaseShared is what Release does besides.
func (h *Handle) releaseShared() {
	if !h.f.v.Shared() {
		return
	}
	h.arrived()
	h.droppedShared(true)
	h.releaseSole()
}

// findShared is FindLock: a lock of another node may begin before the one found here.
func (h *Handle) findShared(r *lockRequest, first Lock, found bool) (Lock, bool, error) {
	v := h.f.v
	c := v.shared()
	if err := c.Barrier(context.Background()); err != nil {
		v.o.Logger.Debug("locks of other nodes may be outdated", "err", err)
	}
	held, err := v.o.State.Locks(r.space.ino)
	if err != nil {
		return Lock{}, false, err
	}
	own := c.Session()
	for _, l := range held {
		if l.Session == own || l.Kind != r.space.kind() || l.Start > r.End || r.Start > l.End ||
			!r.Write && l.Mode != namespace.Exclusive {
			continue
		}
		if !found || l.Start < first.Start {
			first = Lock{Start: l.Start, End: min(l.End, MaxLockEnd), Write: l.Mode == namespace.Exclusive, Flock: r.Flock}
			found = true
		}
	}
	return first, found, nil
}

// claiming says what a claim is to do.
type claiming struct {
	raise   bool
	without bool // as if owner had nothing
	owner   uint64
}

var (
	claimAll  = claiming{raise: true}
	claimLess = claiming{}
)

func claimOthers(owner uint64) claiming { return claiming{without: true, owner: owner} }

// claim makes the node hold of [from, to] in the cluster what its programs hold. What
// is more goes in one command; before anything is given back, what was written to f is
// named. raised says that the node has got more.
func (v *Volume) claim(ctx context.Context, f *file, s lockSpace, from, to uint64, how claiming) (raised bool, err error) {
	nl := v.node.enter(s)
	defer v.node.leave(s, nl)
	session := v.shared().Session()
	if session == 0 {
		nl.behind.Store(true) // it may go on
		return false, namespace.ErrSession
	}
	again := nl.behind.Load()
	if again {
		from, to = 0, MaxLockEnd
	}
	have, err := v.nodeHolds(s, session)
	if err != nil {
		return false, err
	}
	more, less := differ(v.locks.strongest(s, how), have, from, to, again)
	if how.raise && len(more) > 0 {
		nl.held = true
		if err := v.setRanges(ctx, nl, s, session, more); err != nil {
			return false, err
		}
		raised = true
	}
	if len(less) > 0 {
		if err := f.flush(ctx); err != nil {
			nl.behind.Store(true)
			if how.raise {
				return raised, nil // what was asked for is there
			}
			return raised, err
		}
		for ops := range slices.Chunk(less, namespace.MaxOps) {
			if err := v.setRanges(ctx, nl, s, session, ops); err != nil {
				nl.behind.Store(true)
				v.o.Logger.Warn("a lock is given back later", "inode", s.ino, "err", err)
				return raised, nil
			}
		}
	}
	if again && (how.raise || len(more) == 0) {
		nl.behind.Store(false)
	}
	have, err = v.nodeHolds(s, session)
	nl.held = err != nil || len(have) > 0
	return raised, nil
}

// nodeHolds returns what the node holds of s in the cluster, in order.
func (v *Volume) nodeHolds(s lockSpace, session namespace.SessionID) ([]span, error) {
	locks, err := v.o.State.Locks(s.ino)
	var have []span
	for _, l := range locks {
		if l.Session == session && l.Kind == s.kind() {
			have = append(have, span{l.Start, l.End, l.Mode})
		}
	}
	return have, err
}

// setRanges proposes to hold the spans as they say.
func (v *Volume) setRanges(ctx context.Context, nl *nodeLocks, s lockSpace, session namespace.SessionID, spans []span) error {
	if len(spans) > namespace.MaxOps {
		return ErrTooManyLocks
	}
	ops := make([]namespace.Op, len(spans))
	for i, p := range spans {
		ops[i] = &namespace.LockRange{
			Session: session, Ino: s.ino, Kind: s.kind(), Start: p.start, End: p.end, Mode: p.mode,
		}
	}
	res, err := v.propose(ctx, ops...)
	if err != nil && res.Err == nil {
		nl.behind.Store(true)
	}
	return err
}

// lowerLocks tries again what could not be given back.
func (v *Volume) lowerLocks(ctx context.Context) error {
	if !v.Shared() {
		return nil
	}
	v.endWaits()
	v.node.mu.Lock()
	var behind []lockSpace
	for s, nl := range v.node.spaces {
		if nl.behind.Load() {
			behind = append(behind, s)
		}
	}
	v.node.mu.Unlock()
	var failed error
	for _, s := range behind {
		f, err := v.acquire(s.ino)
		if errors.Is(err, namespace.ErrNotFound) {
			v.node.forget(s)
			continue
		}
		if err != nil {
			return err
		}
		if _, err := v.claim(ctx, f, s, 0, MaxLockEnd, claimAll); err != nil {
			failed = err
		}
		v.release(f)
	}
	return errors.Join(failed, v.lowerSole(ctx))
}

// forget drops the locks of an inode that is gone.
func (t *nodeTable) forget(s lockSpace) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if nl := t.spaces[s]; nl != nil && nl.refs == 0 {
		delete(t.spaces, s)
	}
}

// bringLocks claims what programs have locked while the volume was not shared.
func (v *Volume) bringLocks(ctx context.Context) {
	for _, s := range v.locks.spaces() {
		f, err := v.acquire(s.ino)
		if err == nil {
			_, err = v.claim(ctx, f, s, 0, MaxLockEnd, claimAll)
			v.release(f)
		}
		if err != nil {
			v.o.Logger.Error("locks of programs are lost, other nodes have them or do not answer", "inode", s.ino, "err", err)
			v.locks.expireSpace(s)
			continue
		}
		v.locks.each(s, func(h heldLock) { h.via.session.Store(uint64(v.shared().Session())) })
	}
}

// noteName remembers inodes that only one node may have open for writing.
func (v *Volume) noteName(ino namespace.Ino, name string) {
	if ino == 0 || !strings.HasSuffix(name, soleSuffix) {
		return
	}
	t := &v.node
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.names == nil || len(t.names) >= maxSole {
		t.names = make(map[namespace.Ino]bool)
	}
	t.names[ino] = true
}

func (t *nodeTable) named(ino namespace.Ino) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.names[ino]
}
