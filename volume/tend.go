package volume

import (
	"context"
	"time"

	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
)

// Background work: streams are drained while files are still being written,
// what nobody synced is synced, what was written in place is folded into trees,
// and inodes without a name are reaped.

// drain asks for the end of f to be streamed, and keeps f until that is done.
// When the workers are behind, the writer goes on: admit stops it when memory
// runs out.
func (v *Volume) drain(f *file) {
	v.mu.Lock()
	f.opens++
	v.mu.Unlock()
	select {
	case v.drains <- f:
	default:
		v.release(f)
	}
}

func (v *Volume) drainLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-v.drains:
			f.move.Lock()
			if err := f.drainTail(context.WithoutCancel(ctx)); err != nil {
				v.o.Logger.Warn("cannot store written data yet", "inode", f.ino, "err", err)
			}
			f.move.Unlock()
			v.release(f)
		}
	}
}

// admit lets a write into f pass once there is memory for it.
func (v *Volume) admit(ctx context.Context, f *file) error {
	if v.mem.Load() < memoryMax {
		return nil
	}
	f.move.Lock()
	defer f.move.Unlock()
	if err := f.drainTail(ctx); err != nil {
		return err
	}
	if v.mem.Load() < memoryMax {
		return nil
	}
	return f.keep(ctx, true)
}

// tend runs until ctx ends.
func (v *Volume) tend(ctx context.Context) {
	tick := time.NewTicker(v.o.SyncInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		work := context.WithoutCancel(ctx)
		for _, err := range []error{v.foldOld(work), v.foldOldPatches(), v.nameAccesses(work), v.Sync(work), v.reapIdle(work), v.lowerLocks(work)} {
			if err != nil {
				v.o.Logger.Warn("background work failed, it is tried again", "err", err)
			}
		}
	}
}

// foldOld commits files that have been unclean for long, or much.
func (v *Volume) foldOld(ctx context.Context) error {
	var failed error
	for _, f := range v.unclean() {
		f.mu.Lock()
		due := f.dirty.bytes > foldMax || v.o.Now().Sub(f.since) > foldAfter
		f.mu.Unlock()
		if due {
			f.move.Lock()
			if err := f.commit(ctx); err != nil {
				failed = err
			}
			f.move.Unlock()
		}
		v.release(f)
	}
	return failed
}

// ReapIdle removes files without a name that nobody has open any more. If the volume is
// shared, it is for others to see to it.
func (v *Volume) ReapIdle(ctx context.Context) error { return v.reapIdle(ctx) }

// reapIdle reaps the orphans that are not open and unknown to the kernel.
func (v *Volume) reapIdle(ctx context.Context) error {
	if v.Shared() {
		return nil // whoever leads asks all nodes, see Holds
	}
	v.mu.Lock()
	var idle []namespace.Ino
	for ino, forgotten := range v.orphans {
		if forgotten && v.files[ino] == nil {
			idle = append(idle, ino)
		}
	}
	v.mu.Unlock()
	return v.reap(ctx, idle)
}

// reap removes inodes that have no name and are not open, for good.
func (v *Volume) reap(ctx context.Context, inos []namespace.Ino) error {
	for len(inos) > 0 {
		n := min(len(inos), reapBatch)
		ops := make([]namespace.Op, n)
		for i, ino := range inos[:n] {
			ops[i] = &namespace.Reap{Ino: ino}
		}
		if _, err := v.propose(ctx, ops...); err != nil {
			return err
		}
		v.mu.Lock()
		for _, ino := range inos[:n] {
			delete(v.orphans, ino)
		}
		v.mu.Unlock()
		inos = inos[n:]
	}
	return nil
}

// TrimJournal calls trim with the oldest record that an open or unclean file
// still needs, or with limit if that is older. No record is being read
// meanwhile.
func (v *Volume) TrimJournal(limit journal.Seq, trim func(keep journal.Seq) error) error {
	v.mu.Lock()
	for _, f := range v.files {
		f.mu.Lock()
		if f.first != 0 {
			limit = min(limit, f.first)
		}
		f.mu.Unlock()
	}
	v.mu.Unlock()
	v.trimming.Lock()
	defer v.trimming.Unlock()
	return trim(limit)
}
