package volume

import (
	"math"
	"runtime"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/namespace"
)

func (r *rig) wantErr(err, want error) {
	r.t.Helper()
	if err != want {
		r.t.Fatalf("error is %v, want %v", err, want)
	}
}

func TestLocksAreOfTheFileNotOfItsNameOrHandle(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	defer r.close()
	one := r.create("file")
	two := r.open(one.Ino())
	all := Lock{End: MaxLockEnd, Write: true, Owner: 1, PID: 42}
	other := Lock{Start: 7, End: 7, Owner: 2}
	r.must(one.TryLock(all))
	r.must(r.Unlink(t.Context(), namespace.RootIno, "file"))
	r.wantErr(two.TryLock(other), ErrWouldBlock)
	if l, found, err := two.FindLock(other); err != nil || !found || l != all {
		t.Fatalf("found %+v, %v, %v", l, found, err)
	}
	two.DropLocks(2)
	r.wantErr(two.TryLock(other), ErrWouldBlock)
	two.DropLocks(1) // whatever handle it was taken through
	r.must(two.TryLock(other))
	r.must(two.Unlock(other))
	r.must(one.TryLock(all))
	one.Release()
	r.must(two.TryLock(other))
	two.Release()
	if len(r.locks.files) != 0 {
		t.Fatal("locks are left without a handle")
	}
}

func TestLocksBeyondTheLastByteAreRefused(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	defer r.close()
	h := r.create("file")
	defer h.Release()
	for _, l := range []Lock{{Start: 2, End: 1}, {End: MaxLockEnd + 1}, {Start: math.MaxUint64, End: math.MaxUint64}} {
		r.wantErr(h.TryLock(l), namespace.ErrInvalid)
		r.wantErr(h.WaitLock(nil, l), namespace.ErrInvalid)
		r.wantErr(h.Unlock(l), namespace.ErrInvalid)
		_, _, err := h.FindLock(l)
		r.wantErr(err, namespace.ErrInvalid)
		l.Flock = true // covers everything, whatever the range
		r.must(h.TryLock(l))
		r.must(h.Unlock(l))
	}
}

func TestClosingTheVolumeEndsWaits(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("file")
	r.must(h.TryLock(Lock{Write: true, Owner: 1}))
	outcome := make(chan error, 1)
	go func() { outcome <- h.WaitLock(nil, Lock{Write: true, Owner: 2}) }()
	s := lockScript{lockTable: r.locks, t: t}
	for s.waiters() == 0 {
		runtime.Gosched()
	}
	r.close()
	r.wantErr(<-outcome, ErrClosed)
	h.Release()
	s.empty()
}

func TestOwnLocksAreFoundInTheirRange(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("file")
	r.must(h.TryLock(Lock{Start: 10, End: 19, Write: true, Owner: 1, PID: 7}))
	for _, c := range []struct {
		start, end, owner uint64
		found             bool
	}{{0, 9, 1, false}, {0, 10, 1, true}, {19, 30, 1, true}, {20, 30, 1, false}, {0, MaxLockEnd, 2, false}} {
		l, found, err := h.FindOwnLock(Lock{Start: c.start, End: c.end, Owner: c.owner})
		if err != nil || found != c.found || found && (l.Start != 10 || l.End != 19 || !l.Write || l.PID != 7) {
			t.Errorf("%+v: %+v, %v, %v", c, l, found, err)
		}
	}
	h.Release()
	r.close()
}
