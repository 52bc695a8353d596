package volume

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace"
)

// Handle is an open regular file. Release ends it; all other methods may be
// called at the same time. Moving bytes down is not interrupted when the
// caller is: a tree that is half written could only be thrown away.
type Handle struct {
	f     *file
	flags uint32   // of open(2)
	locks lockPath // of the volume's lockTable

	// Of a shared volume.
	keep     bool                // what KeepCache says
	version  uint64              // of the content when it was opened
	answered atomic.Bool         // to the kernel, which has not asked for anything through it yet
	losses   uint64              // of the file, when it was opened
	sole     namespace.SessionID // under which the node alone has the file open, 0: it need not
}

func (f *file) handle(flags uint32) *Handle {
	return &Handle{f: f, flags: flags, locks: lockPath{fenced: &f.fenced}}
}

// Ino returns the inode that is open.
func (h *Handle) Ino() namespace.Ino { return h.f.ino }

// KeepCache reports whether pages that the kernel holds of the file are still
// right. In a group of one they are: nobody but this kernel writes. In a shared volume
// they are if the content is still the one that it was when the kernel last dropped
// them, but for what was written here.
func (h *Handle) KeepCache() bool { return h.keep || !h.f.v.Shared() }

// Answered says that the kernel is about to be answered with the handle, and drops its
// pages unless KeepCache. Of what is opened otherwise it does not know.
func (h *Handle) Answered() {
	h.answered.Store(true)
	if !h.KeepCache() {
		h.f.refill.drops()
	}
}

// Read fills p from off on and returns the number of bytes, which is less than
// len(p) only where the file ends.
func (h *Handle) Read(ctx context.Context, p []byte, off int64) (int, error) {
	for {
		was := h.f.basis()
		if h.f.v.Shared() {
			h.f.refill.reading(off, int64(len(p)))
			if err := h.beforeRead(ctx); err != nil {
				return 0, err
			}
		}
		n, err := h.f.read(ctx, p, off)
		if !errors.Is(err, cas.ErrNotFound) || h.f.basis() == was && !h.f.news.any() {
			return n, err
		}
		// The content was replaced meanwhile, and what it was is gone.
	}
}

// Write stores p at off, at the end if the handle was opened with O_APPEND, and
// returns len(p). With O_SYNC or O_DSYNC it is durable on return. The handle
// does not keep p.
func (h *Handle) Write(ctx context.Context, p []byte, off int64) (int, error) {
	return h.WriteAs(ctx, p, off, h.flags)
}

// WriteAs is Write with the flags that the descriptor has by now, of which O_APPEND
// counts: fcntl(2) sets and clears it.
func (h *Handle) WriteAs(ctx context.Context, p []byte, off int64, flags uint32) (int, error) {
	to := atOffset
	if flags&syscall.O_APPEND != 0 {
		to = atEnd
	}
	return h.write(ctx, p, off, to)
}

// WritePages is Write of pages that were changed in memory: at off, whatever the
// handle was opened with, and only as far as the file goes, also if it became shorter
// since they were changed. Those beyond are gone, which is no error. Nobody knows through
// which open file they were mapped: while one of the inode has lost a lock, none are
// written.
func (h *Handle) WritePages(ctx context.Context, p []byte, off int64) (int, error) {
	return h.write(ctx, p, off, inside)
}

func (h *Handle) write(ctx context.Context, p []byte, off int64, to where) (int, error) {
	if err := h.alive(); err != nil {
		return 0, err
	}
	if err := h.f.write(context.WithoutCancel(ctx), p, off, to, h); err != nil {
		return 0, err
	}
	if err := h.changed(ctx); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Syncs reports whether the handle was opened with O_SYNC or O_DSYNC, so that each
// change through it is durable on return.
func (h *Handle) Syncs() bool { return h.flags&(syscall.O_SYNC|syscall.O_DSYNC) != 0 }

// changed makes a change durable that was made through the handle, if it syncs.
func (h *Handle) changed(ctx context.Context) error {
	if !h.Syncs() {
		return nil
	}
	return h.Fsync(ctx, h.flags&syscall.O_SYNC != syscall.O_SYNC)
}

// Flush runs at each close(2) of a descriptor. What streams is committed, what
// is small is committed, what was written here and there into a large file
// stays dirty until it is folded in the background; in a shared volume it is committed,
// too. A handle that can only read has nothing to flush.
func (h *Handle) Flush(ctx context.Context) error {
	if h.flags&syscall.O_ACCMODE == syscall.O_RDONLY {
		return nil
	}
	if err := h.alive(); err != nil {
		return err
	}
	if err := h.f.settle(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	return h.kept()
}

// Fsync returns when the file's content, size and name are durable.
func (h *Handle) Fsync(ctx context.Context, dataOnly bool) error {
	if err := h.alive(); err != nil {
		return err
	}
	if err := h.f.secure(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	if err := h.kept(); err != nil {
		return err
	}
	return h.f.v.o.Log.Sync(ctx)
}

// Release ends the handle and the locks that were taken through it.
func (h *Handle) Release() {
	done := h.f.v.beforeLess(h.f.ino, anyOwner)
	h.f.v.locks.released(h.f.ino, &h.locks)
	done()
	h.releaseShared()
	if h.locks.lost.Load() {
		h.f.fenced.Add(-1)
	}
	h.f.v.release(h.f)
}
