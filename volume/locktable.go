package volume

import (
	"context"
	"iter"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairnfs/cairn/namespace"
)

// Bounds of the table. A lock takes 40 bytes, a wait one of mount's goroutines.
const (
	maxFileLocks = 64 << 10 // of one file
	maxLocks     = 1 << 20
	maxLockWaits = 16 << 10
	maxLockWalk  = 256 << 10 // locks looked at to find a deadlock
)

// closingTime is how long a lock is waited for that is about to go. The kernel
// says that an open file is closed when close(2) has returned, or nearly, so
// another process may be faster with its request than the news that the lock it
// asks for is free. Descriptors are closed for other reasons, too: children that
// inherited one end. Then the answer comes that much later, and is the same.
const closingTime = 50 * time.Millisecond

// lockTable decides who has which advisory lock. It is a table of numbers in
// memory, without any I/O.
//
// A request is granted if no other owner has a lock that is in its way; what
// others only wait for does not count. A reader can therefore overtake a writer
// that waits, as on Linux: if it could not, requests would be held up by what
// no program can see and no deadlock detection follow. When a lock goes, those
// who wait for it are asked in the order in which they came, and the first that
// can have theirs get it before any new request.
//
// Deadlocks are found between locks of fcntl(2), of any number of files, when a
// request is about to wait. An owner waits if any of his threads does; that a
// thread which does not wait might have freed the lock is not considered, as
// nowhere. FUSE does not say which of these locks are those of F_OFD_SETLK, of
// which Linux detects no deadlock. So a circle of them, which is always within
// one file since their owner is an open file, gets the error as well, where
// Linux would let it wait for ever.
type lockTable struct {
	mu      sync.Mutex
	files   map[lockSpace]*fileLocks  // those with locks or waits
	waiting map[uint64][]*lockRequest // by owner, of those that count for deadlocks
	held    int                       // locks
	queued  int                       // requests that wait
	closed  bool
}

// lockSpace is within what locks can be in each other's way: those of flock(2)
// and those of fcntl(2) of one file never are.
type lockSpace struct {
	ino   namespace.Ino
	flock bool
}

// fileLocks are the locks of a lockSpace.
type fileLocks struct {
	space  lockSpace
	owners map[uint64][]heldLock // of each owner in order, without overlaps
	held   int                   // over all owners
	queue  []*lockRequest        // those who wait, in order of arrival
}

// heldLock is a range that an owner has locked.
type heldLock struct {
	start, end uint64
	write      bool
	pid        uint32
	via        *lockPath
}

// lockPath is the open file through which locks are taken. It is what they end
// with at the latest. That makes an end of them which the number of the owner
// could not be: the kernel uses the number again, maybe before it has said that
// the old open file is closed.
type lockPath struct {
	used    bool // locks may have been taken
	closing bool // and a descriptor was closed since, maybe the last

	session atomic.Uint64 // of a shared volume: under which locks were taken, 0: none
	lost    atomic.Bool   // a session ended that locks were taken under
	fenced  *atomic.Int64 // of the file: how many have lost locks; nil: nobody counts
}

// lose takes note that locks were lost.
func (l *lockPath) lose() {
	if !l.lost.Swap(true) && l.fenced != nil {
		l.fenced.Add(1)
	}
}

// lockRequest asks for a lock.
type lockRequest struct {
	Lock
	space lockSpace
	via   *lockPath
	graph bool       // waiting for it counts for deadlocks
	done  chan error // room for one; gets the outcome of a wait

	doomed chan struct{} // closed when the wait would never end; nil: nobody would know
	taken  bool          // the table has granted it; guarded by its mu
}

func newLockTable() *lockTable {
	return &lockTable{files: make(map[lockSpace]*fileLocks), waiting: make(map[uint64][]*lockRequest)}
}

// find returns the lock that is in the way of r and begins first.
func (t *lockTable) find(r *lockRequest) (Lock, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var first Lock
	found := false
	for owner, h := range t.files[r.space].blockers(r) {
		if !found || h.start < first.Start {
			first = Lock{Start: h.start, End: h.end, Write: h.write, Flock: r.Flock, Owner: owner, PID: h.pid}
			found = true
		}
	}
	return first, found
}

// own returns the first lock that the owner of r has in its range.
func (t *lockTable) own(r *lockRequest) (Lock, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[r.space]; f != nil {
		for _, h := range f.owners[r.Owner] {
			if h.start <= r.End && r.Start <= h.end {
				return Lock{Start: h.start, End: h.end, Write: h.write, Flock: r.Flock, Owner: r.Owner, PID: h.pid}, true
			}
		}
	}
	return Lock{}, false
}

// try grants r or returns ErrWouldBlock, at once or after closingTime if what is
// in the way may have gone with an open file.
func (t *lockTable) try(r *lockRequest) error {
	err, closing := t.attempt(r)
	if !closing {
		return err
	}
	ctx, stop := context.WithTimeout(context.Background(), closingTime)
	defer stop()
	if err = t.wait(ctx.Done(), r); err == ErrInterrupted {
		err = ErrWouldBlock
	}
	return err
}

// attempt is try at once. closing says that all that is in the way of r was taken
// through open files that are maybe closed already.
func (t *lockTable) attempt(r *lockRequest) (err error, closing bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.file(r.space)
	defer t.tidy(f)
	if err = t.acquire(f, r); err != ErrWouldBlock {
		return err, false
	}
	for _, h := range f.blockers(r) {
		if !h.via.closing {
			return err, false
		}
	}
	return err, true
}

// wait returns when r is granted, or an error if that was not to be.
func (t *lockTable) wait(cancel <-chan struct{}, r *lockRequest) error {
	if err := t.enqueue(r); err != ErrWouldBlock {
		return err
	}
	select {
	case err := <-r.done:
		return err
	case <-cancel:
		return t.giveUp(r, ErrInterrupted)
	case <-r.doomed:
		return t.giveUp(r, ErrDeadlock)
	}
}

// giveUp takes r out of the queue and returns why, or its outcome if there is one by
// now.
func (t *lockTable) giveUp(r *lockRequest, why error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case err := <-r.done:
		return err
	default:
	}
	f := t.files[r.space]
	f.queue = slices.DeleteFunc(f.queue, func(q *lockRequest) bool { return q == r })
	t.left(r)
	t.tidy(f)
	return why
}

// enqueue grants r, or puts it in the queue and returns ErrWouldBlock.
func (t *lockTable) enqueue(r *lockRequest) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.file(r.space)
	defer t.tidy(f)
	err := t.acquire(f, r)
	switch {
	case err != ErrWouldBlock:
		return err
	case r.graph && t.deadlock(f, r):
		return ErrDeadlock
	case t.queued == maxLockWaits:
		return ErrTooManyLocks
	}
	t.queued++
	f.queue = append(f.queue, r)
	if r.graph {
		t.waiting[r.Owner] = append(t.waiting[r.Owner], r)
	}
	return ErrWouldBlock
}

// left is called when r has left the queue.
func (t *lockTable) left(r *lockRequest) {
	t.queued--
	if !r.graph {
		return
	}
	rest := slices.DeleteFunc(t.waiting[r.Owner], func(q *lockRequest) bool { return q == r })
	if len(rest) == 0 {
		delete(t.waiting, r.Owner)
	} else {
		t.waiting[r.Owner] = rest
	}
}

// unlock takes the range of r from its owner.
func (t *lockTable) unlock(r *lockRequest) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[r.space]
	if f == nil {
		return nil
	}
	defer t.tidy(f)
	return t.set(f, r, false)
}

// flushed takes from an owner all locks of fcntl(2) on a file, because he closed
// a descriptor of it, the one of via.
func (t *lockTable) flushed(ino namespace.Ino, owner uint64, via *lockPath) {
	t.mu.Lock()
	defer t.mu.Unlock()
	via.closing = via.used
	f := t.files[lockSpace{ino, false}]
	if f == nil {
		return
	}
	defer t.tidy(f)
	t.drop(f, owner, func(heldLock) bool { return true })
	t.wake(f)
}

// released takes all locks away that were taken through via, which is closed.
func (t *lockTable) released(ino namespace.Ino, via *lockPath) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !via.used {
		return
	}
	for _, flock := range []bool{false, true} {
		f := t.files[lockSpace{ino, flock}]
		if f == nil {
			continue
		}
		for owner := range f.owners {
			t.drop(f, owner, func(h heldLock) bool { return h.via == via })
		}
		t.wake(f)
		t.tidy(f)
	}
}

// close ends all waits, and grants nothing any more.
func (t *lockTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, f := range t.files {
		for _, r := range f.queue {
			t.left(r)
			r.done <- ErrClosed
		}
		f.queue = nil
		t.tidy(f)
	}
}

// The rest is called with t.mu held.

// file returns the locks of a space; tidy forgets them if there are none.
func (t *lockTable) file(s lockSpace) *fileLocks {
	f := t.files[s]
	if f == nil {
		f = &fileLocks{space: s, owners: make(map[uint64][]heldLock)}
		t.files[s] = f
	}
	return f
}

func (t *lockTable) tidy(f *fileLocks) {
	if len(f.owners) == 0 && len(f.queue) == 0 {
		delete(t.files, f.space)
	}
}

// acquire grants r if it can be had now.
func (t *lockTable) acquire(f *fileLocks, r *lockRequest) error {
	if t.closed {
		return ErrClosed
	}
	r.via.used, r.via.closing = true, false
	if !f.blocked(r) {
		return t.set(f, r, true)
	}
	if r.Flock {
		t.drop(f, r.Owner, func(heldLock) bool { return true })
		t.wake(f)
	}
	return ErrWouldBlock
}

// set gives the range of r to its owner, or takes it from him, and wakes those
// who can have theirs now.
func (t *lockTable) set(f *fileLocks, r *lockRequest, lock bool) error {
	weaker, err := t.replace(f, r, lock)
	if weaker {
		t.wake(f)
	}
	return err
}

// replace is set without waking anybody. weaker says that somebody might be.
func (t *lockTable) replace(f *fileLocks, r *lockRequest, lock bool) (weaker bool, err error) {
	locks := f.owners[r.Owner]
	from, to, pieces, weaker := substitute(locks, heldLock{r.Start, r.End, r.Write, r.PID, r.via}, lock)
	more := len(pieces) - (to - from)
	if more > 0 && (t.held+more > maxLocks || f.held+more > maxFileLocks) {
		return false, ErrTooManyLocks
	}
	r.taken = lock
	f.keep(r.Owner, slices.Replace(locks, from, to, pieces...))
	f.held += more
	t.held += more
	return weaker, nil
}

// drop takes from an owner the locks that match.
func (t *lockTable) drop(f *fileLocks, owner uint64, match func(heldLock) bool) {
	locks := f.owners[owner]
	before := len(locks)
	locks = slices.DeleteFunc(locks, match)
	f.keep(owner, locks)
	f.held -= before - len(locks)
	t.held -= before - len(locks)
}

// wake grants, in order of arrival, what nothing is in the way of any more.
func (t *lockTable) wake(f *fileLocks) {
	for again := true; again; {
		again = false
		f.queue = slices.DeleteFunc(f.queue, func(r *lockRequest) bool {
			if f.blocked(r) {
				return false
			}
			t.left(r)
			weaker, err := t.replace(f, r, true)
			r.done <- err
			again = again || weaker
			return true
		})
	}
}

// deadlock reports whether somebody who is in the way of r waits for r's owner,
// directly or through others. If the walk is too long, it finds nothing.
func (t *lockTable) deadlock(f *fileLocks, r *lockRequest) bool {
	steps := 0
	seen := make(map[uint64]bool)
	var next []uint64
	reach := func(f *fileLocks, r *lockRequest) {
		steps += f.held
		for owner := range f.blockers(r) {
			if !seen[owner] {
				seen[owner] = true
				next = append(next, owner)
			}
		}
	}
	reach(f, r)
	for len(next) > 0 && !seen[r.Owner] {
		owner := next[0]
		next = next[1:]
		for _, w := range t.waiting[owner] {
			if steps > maxLockWalk {
				return false
			}
			reach(t.files[w.space], w)
		}
	}
	return seen[r.Owner]
}

// keep makes locks those of owner.
func (f *fileLocks) keep(owner uint64, locks []heldLock) {
	if len(locks) == 0 {
		delete(f.owners, owner)
	} else {
		f.owners[owner] = locks
	}
}

func (f *fileLocks) blocked(r *lockRequest) bool {
	for range f.blockers(r) {
		return true
	}
	return false
}

// blockers returns who is in the way of r, and of each the first lock that is.
// f may be nil.
func (f *fileLocks) blockers(r *lockRequest) iter.Seq2[uint64, heldLock] {
	return func(yield func(uint64, heldLock) bool) {
		if f == nil {
			return
		}
		for owner, locks := range f.owners {
			if owner == r.Owner {
				continue
			}
			for _, h := range locks[firstFrom(locks, r.Start):] {
				if h.start > r.End {
					break
				}
				if r.Write || h.write {
					if !yield(owner, h) {
						return
					}
					break
				}
			}
		}
	}
}

// firstFrom returns the index of the first of locks that ends at pos or later.
func firstFrom(locks []heldLock, pos uint64) int {
	return sort.Search(len(locks), func(i int) bool { return locks[i].end >= pos })
}

// substitute works out how the range of h becomes locked like h, or unlocked, in
// the locks of one owner: locks[from:to] become pieces. Neighbours that are
// alike become one. weaker says that some byte was locked more than it is then.
func substitute(locks []heldLock, h heldLock, lock bool) (from, to int, pieces []heldLock, weaker bool) {
	from = firstFrom(locks, h.start)
	for to = from; to < len(locks) && locks[to].start <= h.end; to++ {
		weaker = weaker || !lock || locks[to].write && !h.write
	}
	if from > 0 && locks[from-1].end+1 == h.start {
		from--
	}
	if to < len(locks) && locks[to].start == h.end+1 {
		to++
	}
	if from == to {
		if lock {
			pieces = append(pieces, h)
		}
		return from, to, pieces, weaker
	}
	alike := func(o heldLock) bool { return lock && o.write == h.write && o.via == h.via }
	before, after := locks[from], locks[to-1]
	start, end := h.start, h.end
	if before.start < start {
		if alike(before) {
			h.start = before.start
		} else {
			before.end = min(before.end, start-1)
			pieces = append(pieces, before)
		}
	}
	rest := after.end > end
	if rest && alike(after) {
		h.end, rest = after.end, false
	}
	if lock {
		pieces = append(pieces, h)
	}
	if rest {
		after.start = max(after.start, end+1)
		pieces = append(pieces, after)
	}
	return from, to, pieces, weaker
}
