package volume

import (
	"errors"
	"math"

	"github.com/cairnfs/cairn/namespace"
)

// Advisory locks, as programs see them. What is decided about them is in
// locktable.go; they live in memory, as long as the handle they were taken
// through is open. If the volume is shared, the node holds in the cluster what its
// programs hold (sharedlocks.go): then the calls that lock may also fail with
// namespace.ErrSession and what the log says when no majority can be reached.

// MaxLockEnd is the last byte that a lock can cover.
const MaxLockEnd = math.MaxInt64

// Why a lock was not granted.
var (
	// ErrWouldBlock says that another owner has a lock that is in the way.
	ErrWouldBlock = errors.New("lock is held by another")
	// ErrDeadlock says that waiting for the lock would never end, because
	// its holder waits, directly or through others, for the same owner.
	ErrDeadlock = errors.New("waiting for the lock would be a deadlock")
	// ErrInterrupted says that a wait was given up.
	ErrInterrupted = errors.New("waiting for the lock was interrupted")
	// ErrTooManyLocks says that a limit is reached: 65536 locks of one file,
	// 1048576 of all, or 16384 requests that wait.
	ErrTooManyLocks = errors.New("too many locks")
)

// Lock is an advisory lock on the bytes of a file from Start to End, both
// included.
type Lock struct {
	Start, End uint64 // up to MaxLockEnd
	Write      bool   // one owner alone has it; else all who read may have it
	// Flock says that it is a lock of flock(2), which covers the whole file
	// and has nothing to do with those of fcntl(2).
	Flock bool
	// Owner is who has it. Locks of one owner are never in each other's way.
	// The kernel makes up the number: of a process for locks of fcntl(2), of
	// an open file description for those of flock(2) and for F_OFD_SETLK.
	Owner uint64
	PID   uint32 // which process took it, for whom it is in the way
}

// FindLock returns a lock that is in the way of l, the one that begins first.
// found is false if there is none.
func (h *Handle) FindLock(l Lock) (blocker Lock, found bool, err error) {
	r, err := h.lockRequest(l)
	if err != nil {
		return Lock{}, false, err
	}
	blocker, found = h.f.v.locks.find(r)
	if h.f.v.Shared() {
		return h.findShared(r, blocker, found)
	}
	return blocker, found, nil
}

// FindOwnLock returns the first lock that l's owner has in the range of l.
func (h *Handle) FindOwnLock(l Lock) (own Lock, found bool, err error) {
	r, err := h.lockRequest(l)
	if err != nil {
		return Lock{}, false, err
	}
	own, found = h.f.v.locks.own(r)
	return own, found, nil
}

// TryLock takes l. What its owner has in the same range becomes like l. Errors:
// ErrWouldBlock, ErrTooManyLocks, ErrClosed.
//
// If a lock of flock(2) that is shared cannot be made exclusive at once, it is
// lost, as flock(2) says and as it is on a local file system.
func (h *Handle) TryLock(l Lock) error {
	r, err := h.lockRequest(l)
	if err != nil {
		return err
	}
	if h.f.v.Shared() {
		return h.lockShared(nil, r, false)
	}
	return h.f.v.locks.try(r)
}

// WaitLock takes l as soon as it can be had, and gives up when cancel is closed.
// Errors: ErrDeadlock, ErrInterrupted, ErrTooManyLocks, ErrClosed.
//
// Who waits for a lock of flock(2) has given up the one he had: if two that
// share a lock both kept it until they had it for themselves, neither would.
func (h *Handle) WaitLock(cancel <-chan struct{}, l Lock) error {
	r, err := h.lockRequest(l)
	if err != nil {
		return err
	}
	r.graph = !l.Flock
	if h.f.v.Shared() {
		return h.lockShared(cancel, r, true)
	}
	return h.f.v.locks.wait(cancel, r)
}

// Unlock gives up what l's owner has in the range of l. It fails with
// ErrTooManyLocks only if that cuts a lock in two and there are too many.
func (h *Handle) Unlock(l Lock) error {
	r, err := h.lockRequest(l)
	if err != nil {
		return err
	}
	if h.f.v.Shared() {
		return h.unlockShared(r)
	}
	return h.f.v.locks.unlock(r)
}

// DropLocks takes from owner, who has closed a descriptor of the handle, all his
// locks of fcntl(2) on the file, whatever handles they were taken through.
func (h *Handle) DropLocks(owner uint64) {
	done := h.f.v.beforeLess(h.f.ino, owner)
	h.f.v.locks.flushed(h.f.ino, owner, &h.locks)
	done()
	h.droppedShared(false)
}

// lockRequest checks l and says through what it is asked for.
func (h *Handle) lockRequest(l Lock) (*lockRequest, error) {
	if l.Flock {
		l.Start, l.End = 0, MaxLockEnd
	}
	if l.Start > l.End || l.End > MaxLockEnd {
		return nil, namespace.ErrInvalid
	}
	return &lockRequest{Lock: l, space: lockSpace{h.f.ino, l.Flock}, via: &h.locks, done: make(chan error, 1)}, nil
}
