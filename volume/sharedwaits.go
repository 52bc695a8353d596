package volume

import (
	"cmp"
	"context"
	"errors"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/cairnfs/cairn/namespace"
)

// Deadlocks of locks of fcntl(2) between nodes. The lock table finds a circle of
// programs that are all on this node at once. One that goes through other nodes is
// found in the log (see namespace.AwaitLock): a program that has waited for
// suspectAfter, for whom ever, and holds something, is said there to wait, and gets
// ErrDeadlock if that closes a circle. So the answer takes some more than
// suspectAfter from when the last of them waits; a wait that is short, or of a program
// that holds nothing, costs nothing.
//
// What is said of a program must never be more than it has, else others would be told
// of a deadlock that is none: before it unlocks something, or has it in a weaker mode,
// its waits are taken back, and said again a moment later. What it gets meanwhile, by
// other threads, is added as late as that.
//
// Not found are circles through a program with more than namespace.MaxWaitRanges
// ranges, while more than namespace.MaxWaits programs wait, and those that flock(2) is
// part of, as on one node. Locks of F_OFD_SETLK cannot be told from others; see
// lockTable.

// suspectAfter is how long a program waits before the log is told.
const suspectAfter = 200 * time.Millisecond

// anyOwner stands for all owners of locks. The kernel's numbers are hashes.
const anyOwner = 0

// lockWaits are the programs of this node that wait. The zero value is empty.
type lockWaits struct {
	mu   sync.Mutex
	last uint64
	all  map[uint64]*lockWait // by number
}

// lockWait is a request that waits.
type lockWait struct {
	v      *Volume
	id     uint64
	r      *lockRequest
	before []heldLock // what its owner had of its range
	timer  *time.Timer

	mu      sync.Mutex // held while something is said
	session namespace.SessionID
	said    *namespace.Wait // what the log has, or may have; nil: nothing
	over    bool
}

// await begins a wait; end ends it.
func (v *Volume) await(r *lockRequest, before []heldLock) *lockWait {
	w := &lockWait{v: v, r: r, before: before}
	if !r.graph {
		return w
	}
	r.doomed = make(chan struct{})
	w.mu.Lock()
	defer w.mu.Unlock()
	v.waits.mu.Lock()
	defer v.waits.mu.Unlock()
	if v.waits.all == nil {
		v.waits.all = make(map[uint64]*lockWait)
	}
	v.waits.last++
	w.id = v.waits.last
	v.waits.all[w.id] = w
	w.timer = time.AfterFunc(suspectAfter, w.suspect)
	return w
}

// suspect tells the log of the wait, and of what has changed since.
func (w *lockWait) suspect() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return
	}
	switch err := w.say(w.describe()); {
	case errors.Is(err, namespace.ErrDeadlock):
		w.over = true
		close(w.r.doomed)
		return
	case err != nil:
		w.v.o.Logger.Debug("a deadlock would not be found", "inode", w.r.space.ino, "err", err)
	}
	w.timer.Reset(lockAgain)
}

// say tells the log what is to be known of the wait, nil if nothing. Called with mu
// held.
func (w *lockWait) say(wait *namespace.Wait) error {
	session := w.v.shared().Session()
	switch {
	case session == 0 && w.said != nil:
		return namespace.ErrSession // it may go on
	case session != 0 && session != w.session:
		w.said, w.session = nil, session // it went with the session
	}
	if session == 0 || !w.v.o.State.MayQueue() || wait == nil && w.said == nil || wait != nil && reflect.DeepEqual(wait, w.said) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockAgain)
	defer cancel()
	res, err := w.v.propose(ctx, &namespace.AwaitLock{Session: session, ID: w.id, Wait: wait})
	switch {
	case err == nil:
		w.said = wait
	case res.Err == nil:
		w.said = new(namespace.Wait) // nobody knows what
	}
	return err
}

// describe returns what is to be known of the wait, nil if it is in nobody's way or too
// much.
func (w *lockWait) describe() *namespace.Wait {
	has, ahead := w.v.locks.holdings(w, w.v.waits.of(w.r.Owner))
	if len(has) == 0 && !ahead || len(has) > namespace.MaxWaitRanges {
		return nil
	}
	return &namespace.Wait{
		Owner: w.r.Owner, Ahead: ahead, Has: has,
		Wants: namespace.LockedRange{Ino: w.r.space.ino, Start: w.r.Start, End: w.r.End, Write: w.r.Write},
	}
}

// end is called when the request has its outcome.
func (w *lockWait) end() {
	if w.timer == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.timer.Stop()
	w.takeBack()
}

// takeBack tells the log that the wait is over. If that fails it is tried again by
// endWaits. Called with mu held.
func (w *lockWait) takeBack() {
	if err := w.say(nil); err != nil {
		w.v.o.Logger.Debug("the log has a wait for a lock that is over", "inode", w.r.space.ino, "err", err)
	}
	if w.over && w.said == nil {
		w.v.waits.mu.Lock()
		delete(w.v.waits.all, w.id)
		w.v.waits.mu.Unlock()
	}
}

// endWaits tries again to take back waits that are over.
func (v *Volume) endWaits() {
	for _, w := range v.waits.of(anyOwner) {
		w.mu.Lock()
		if w.over {
			w.takeBack()
		}
		w.mu.Unlock()
	}
}

// forgetWaits is called when the session has ended, with which all went that the log was
// told of.
func (v *Volume) forgetWaits() {
	for _, w := range v.waits.of(anyOwner) {
		w.mu.Lock()
		w.said = nil
		if w.over {
			w.takeBack()
		}
		w.mu.Unlock()
	}
}

// of returns the waits of an owner, in order.
func (t *lockWaits) of(owner uint64) []*lockWait {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*lockWait
	for _, w := range t.all {
		if owner == anyOwner || w.r.Owner == owner {
			all = append(all, w)
		}
	}
	slices.SortFunc(all, func(a, b *lockWait) int { return cmp.Compare(a.id, b.id) })
	return all
}

// beforeLess takes back what was said of an owner who is about to have less of ino.
// Call what it returns when he has.
func (v *Volume) beforeLess(ino namespace.Ino, owner uint64) (done func()) {
	all := v.waits.of(owner)
	for _, w := range all {
		w.mu.Lock()
		if w.said != nil && (w.said.Wants.Ino == 0 || slices.ContainsFunc(w.said.Has, func(r namespace.LockedRange) bool { return r.Ino == ino })) {
			w.takeBack()
		}
	}
	return func() {
		for _, w := range all {
			w.mu.Unlock()
		}
	}
}

// holdings returns what the owner of w holds by locks of fcntl(2), but for what was
// granted to him here and not in the cluster yet, and whether w was and somebody here
// waits behind it. pending are all his waits.
func (t *lockTable) holdings(w *lockWait, pending []*lockWait) (has []namespace.LockedRange, ahead bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for s, f := range t.files {
		locks := slices.Clone(f.owners[w.r.Owner])
		if s.flock || len(locks) == 0 {
			continue
		}
		put := func(h heldLock, lock bool) {
			from, to, pieces, _ := substitute(locks, h, lock)
			locks = slices.Replace(locks, from, to, pieces...)
		}
		for _, p := range pending {
			if p.r.space != s || !p.r.taken {
				continue
			}
			put(heldLock{start: p.r.Start, end: p.r.End}, false)
			for _, h := range p.before {
				put(h, true)
			}
		}
		for _, h := range locks {
			has = append(has, namespace.LockedRange{Ino: s.ino, Start: h.start, End: h.end, Write: h.write})
		}
	}
	slices.SortFunc(has, func(a, b namespace.LockedRange) int {
		return cmp.Or(cmp.Compare(a.Ino, b.Ino), cmp.Compare(a.Start, b.Start))
	})
	f := t.files[w.r.space]
	return has, w.r.taken && f != nil && len(f.queue) > 0
}
