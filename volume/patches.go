package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cairnfs/cairn/namespace"
)

// Small changes that are synced in a shared volume.
//
// An fsync must leave what was written where other nodes find it. To name content for
// it costs the cutting, hashing, storing and pushing of all that surrounds the change.
// So a small change of a large file is named as it is: a patch, which the log carries.
// Patches lie above what is stored of a file, below what was written here and is not
// named yet.
//
// Now and then they are folded into the tree: by a node that has made some, when they
// are many or it made the first of them long ago; and by the node that leads, when
// nobody has made one for a while. The later, the more of them lie in the same blocks.
// That is background work which holds no lock of the file: patches that come meanwhile
// stay, and whoever folds too late folds nothing. When there are too many, because
// folding does not keep pace, an fsync names content.

const (
	// defaultPatchMax is up to how many dirty bytes an fsync makes a patch.
	defaultPatchMax = namespace.MaxPatch
	// Patches are folded once there are so many, or they take so many bytes, or the
	// first was made so long ago. Writers still have room while that is done.
	defaultPatchFold = namespace.MaxPatches / 2
	patchFoldCost    = namespace.MaxPatchCost / 2
	patchFoldAfter   = 2 * time.Minute
	// patchIdle is after which time without a patch it is nobody's file any more.
	patchIdle = 60 * time.Second
	// maxAbandoned is how many such files are folded at a time.
	maxAbandoned = 16
)

// patching is what a volume knows of the patches that were made here.
type patching struct {
	mu    sync.Mutex
	since map[namespace.Ino]time.Time // of the first since the last fold
	last  namespace.Ino               // abandoned files up to it were looked at
	folds chan *file
}

// made takes note of a patch.
func (p *patching) made(ino namespace.Ino, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.since[ino]; !ok {
		p.note(ino, at)
	}
}

func (p *patching) note(ino namespace.Ino, at time.Time) {
	if p.since == nil {
		p.since = make(map[namespace.Ino]time.Time)
	}
	p.since[ino] = at
}

// folded says that the patches of an inode were folded at an instant, but for some if
// left is set.
func (p *patching) folded(ino namespace.Ino, left bool, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.since, ino)
	if left {
		p.note(ino, at)
	}
}

// old returns the inodes that were patched before an instant.
func (p *patching) old(before time.Time) []namespace.Ino {
	p.mu.Lock()
	defer p.mu.Unlock()
	var inos []namespace.Ino
	for ino, since := range p.since {
		if since.Before(before) {
			inos = append(inos, ino)
		}
	}
	return inos
}

// pass says that abandoned files up to ino were looked at, and returns up to which they
// were before.
func (p *patching) pass(ino namespace.Ino) (before namespace.Ino) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before, p.last = p.last, ino
	return before
}

// lay returns m with the ranges above it. m, which may be nil, stays as it is; so
// must what is returned.
func (m *extents) lay(ranges []namespace.Range) *extents {
	if len(ranges) == 0 {
		return m
	}
	over := &extents{}
	if m != nil {
		*over = extents{byEnd: *m.byEnd.Copy(), mem: m.mem, bytes: m.bytes, loose: m.loose}
	}
	for _, r := range ranges {
		over.put(extent{off: r.Off, n: int64(len(r.Data)), mem: r.Data})
	}
	return over
}

// ranges returns the bytes of m, all of which are in memory.
func (m *extents) ranges() []namespace.Range {
	if m == nil {
		return nil
	}
	var ranges []namespace.Range
	for _, e := range m.all() {
		ranges = append(ranges, namespace.Range{Off: e.off, Data: e.mem})
	}
	return ranges
}

// patchable reports whether what is dirty can be named by a patch. Called with move
// and mu held.
func (f *file) patchable() bool {
	m := &f.dirty
	switch {
	case !f.v.o.State.MayPatch(), f.base.reader == nil, f.size < f.committed.Size:
		return false
	case f.last > f.folded:
		return false // records of a group of one, which only naming content ends
	case m.bytes == 0 || m.bytes > f.v.o.patchMax || m.refer > 0 || m.holes > 0:
		return false
	}
	return m.byEnd.Len() <= namespace.MaxPatchRanges
}

// patchOnce is commitOnce for an fsync, which names a small change as a patch.
func (f *file) patchOnce(ctx context.Context) error {
	f.mu.Lock()
	if !f.patchable() {
		f.mu.Unlock()
		return f.commitOnce(ctx)
	}
	f.freeze()
	size, wrote := f.size, f.wrote
	f.mu.Unlock()

	ranges, err := f.frozenRanges(ctx)
	if err != nil {
		f.thaw(err)
		return fmt.Errorf("patch the content of inode %d: %w", f.ino, err)
	}
	below := f.base.below
	if f.committed.Patches.First == 0 {
		below = f.committed.Version
	}
	op := &namespace.PatchContent{Ino: f.ino, Base: f.committed.Version, Ranges: ranges, Size: size, Mtime: wrote}
	if err := f.nameShared(ctx, op, size, f.committed.Content); err != nil {
		f.thaw(err)
		if errors.Is(err, namespace.ErrPatches) {
			f.v.foldSoon(f)
			return f.commitOnce(ctx)
		}
		return err
	}
	f.mu.Lock()
	f.base.patches, f.base.below = f.base.patches.lay(ranges), below
	f.landed()
	f.mu.Unlock()
	f.v.patching.made(f.ino, f.v.o.Now())
	if p := &f.committed.Patches; int(p.Count) >= f.v.o.patchFold || p.Cost >= patchFoldCost {
		f.v.foldSoon(f)
	}
	return nil
}

// frozenRanges returns a copy of what is frozen.
func (f *file) frozenRanges(ctx context.Context) ([]namespace.Range, error) {
	f.mu.Lock()
	frozen, bytes := f.frozen.all(), f.frozen.bytes
	f.mu.Unlock()
	p := make([]byte, bytes)
	ranges := make([]namespace.Range, 0, len(frozen))
	for _, e := range frozen {
		data := p[:e.n:e.n]
		p = p[e.n:]
		if err := f.v.readExtent(ctx, e, data); err != nil {
			return nil, err
		}
		ranges = append(ranges, namespace.Range{Off: e.off, Data: data})
	}
	return ranges, nil
}

// foldSoon asks for the patches of f to be folded, and keeps f until that is done.
func (v *Volume) foldSoon(f *file) {
	if !f.folding.CompareAndSwap(false, true) {
		return
	}
	v.mu.Lock()
	f.opens++
	v.mu.Unlock()
	select {
	case v.patching.folds <- f:
	default: // too many: they are folded when they are old
		f.folding.Store(false)
		v.release(f)
	}
}

// foldLoop folds patches until ctx ends.
func (v *Volume) foldLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-v.patching.folds:
			f.folding.Store(false)
			if err := f.foldPatches(ctx); err != nil && ctx.Err() == nil {
				v.o.Logger.Warn("patches are folded later", "inode", f.ino, "err", err)
			}
			v.release(f)
		}
	}
}

// foldPatches makes one tree of what is stored of the file and the patches above. What
// has no name any more will go with all it has, and patches below a stream when that is
// named.
func (f *file) foldPatches(ctx context.Context) error {
	// A round of collection waits: what is stored here has a name when it goes on.
	f.v.copying.RLock()
	defer f.v.copying.RUnlock()
	step := f.v.step()
	b, n, err := f.patched(ctx)
	if err != nil {
		return err
	}
	if n.Patches.First == 0 || n.Nlink == 0 || b.stream != nil {
		f.v.patching.folded(f.ino, false, time.Time{})
		return nil
	}
	over := b.patches
	if over == nil { // all were cut away
		over = &extents{}
	}
	c, err := f.v.content(ctx, &b, over, n.Size)
	if err != nil {
		return fmt.Errorf("fold the patches of inode %d: %w", f.ino, err)
	}
	c.Folded = n.Content.Folded
	fold := &namespace.FoldContent{Ino: f.ino, Below: b.below, UpTo: n.Version, Content: c}
	_, err = f.v.proposeCommand(ctx, &namespace.Command{Time: f.v.now(), Promised: step, Ops: []namespace.Op{fold}})
	switch {
	case errors.Is(err, namespace.ErrConflict) || errors.Is(err, namespace.ErrPromise) || errors.Is(err, namespace.ErrNotFound):
	case err != nil:
		return fmt.Errorf("fold the patches of inode %d: %w", f.ino, err)
	}
	if _, n, err = f.patched(ctx); err != nil {
		return err
	}
	f.v.patching.folded(f.ino, n.Patches.First != 0, f.v.o.Now()) // some may have come meanwhile
	return nil
}

// patched returns what is stored of the file as the namespace knows it, and the inode
// of that.
func (f *file) patched(ctx context.Context) (base, namespace.Inode, error) {
	f.move.Lock()
	defer f.move.Unlock()
	if f.news.any() {
		if err := f.refresh(ctx); err != nil {
			return base{}, namespace.Inode{}, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.base, f.committed, nil
}

// foldOldPatches has patches folded that were made here long ago.
func (v *Volume) foldOldPatches() error {
	var failed error
	for _, ino := range v.patching.old(v.o.Now().Add(-patchFoldAfter)) {
		if err := v.foldIno(ino); err != nil {
			failed = err
		}
	}
	return failed
}

// foldIno has the patches of an inode folded, if it has any.
func (v *Volume) foldIno(ino namespace.Ino) error {
	f, err := v.acquire(ino)
	if errors.Is(err, namespace.ErrNotFound) {
		v.patching.folded(ino, false, time.Time{})
		return nil
	}
	if err != nil {
		return err
	}
	v.foldSoon(f)
	v.release(f)
	return nil
}

// FoldAbandoned has patches folded that nobody adds to any more: of files whose node
// went away, or has closed them. It is for the node that leads. Each call goes on where
// the one before ended, since some may not be folded: what has no name, or lacks a block.
func (v *Volume) FoldAbandoned() error {
	if !v.o.State.MayPatch() {
		return nil
	}
	var abandoned []namespace.Ino
	before, after := v.now()-int64(patchIdle), v.patching.pass(0)
	err := v.o.State.Patched(func(ino namespace.Ino, newest int64) bool {
		if newest < before && ino > after {
			abandoned = append(abandoned, ino)
		}
		return len(abandoned) < maxAbandoned
	})
	if err != nil {
		return err
	}
	if len(abandoned) == maxAbandoned {
		v.patching.pass(abandoned[maxAbandoned-1])
	}
	for _, ino := range abandoned {
		if err := v.foldIno(ino); err != nil {
			return err
		}
	}
	return nil
}
