package volume

import (
	"context"
	"errors"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
)

// Operations on ranges of files that move no bytes: zeroing, allocating, sharing,
// and finding holes. They put extents into the dirty layer that have no bytes of
// their own, and so cost the same whatever their length.

const (
	// maxRanges bounds the extents without bytes of one file: with more, its
	// content is folded at once.
	maxRanges = 64 << 10
	// defaultShareMin is from which length on bytes are shared instead of copied.
	// Around the ends of what is shared chunks are cut anew anyway.
	defaultShareMin = 128 << 10
	// copyPiece is how many bytes are copied at a time.
	copyPiece = 1 << 20
)

// Zero makes [off, off+n) zeros, as a hole. With keepSize the file ends where it
// did, else at off+n or behind it.
func (h *Handle) Zero(ctx context.Context, off, n int64, keepSize bool) error {
	if err := h.alive(); err != nil {
		return err
	}
	if err := h.zero(context.WithoutCancel(ctx), off, n, keepSize); err != nil {
		return err
	}
	return h.changed(ctx)
}

func (h *Handle) zero(ctx context.Context, off, n int64, keepSize bool) error {
	if off < 0 || n < 0 || off > maxSize-n {
		return ErrTooBig
	}
	f := h.f
	return f.change(ctx, h, func() {
		if keepSize {
			n = min(n, f.size-off)
		}
		if n > 0 {
			f.dirty.put(extent{off: off, n: n, kind: zeros})
		}
	})
}

// Allocate sees that there is space for [off, off+n), and that the file reaches
// to off+n at least unless keepSize is set. The space is not set aside: blocks are
// stored by their hash, so nobody knows beforehand which ones need any. That it
// would suffice at present is what ErrNoSpace denies. The file counts as changed, as
// on other file systems.
func (h *Handle) Allocate(ctx context.Context, off, n int64, keepSize bool) error {
	if off < 0 || n < 0 || off > maxSize-n {
		return ErrTooBig
	}
	if err := h.alive(); err != nil {
		return err
	}
	f := h.f
	usage, err := f.v.o.Usage()
	if err != nil {
		return err
	}
	if uint64(f.lacks(off, n)) > usage.Avail {
		return cas.ErrNoSpace
	}
	err = f.change(context.WithoutCancel(ctx), h, func() {
		if end := off + n; end > f.size && !keepSize {
			f.dirty.put(extent{off: f.size, n: end - f.size, kind: zeros})
		}
	})
	if err != nil {
		return err
	}
	return h.changed(ctx)
}

// lacks returns how many of the n bytes from off on there are no bytes for: those
// beyond the end, and before it no more than are in holes.
func (f *file) lacks(off, n int64) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	within := max(0, min(n, f.size-off))
	return n - within + min(within, f.size-min(f.allocated(), f.size))
}

// change lets put change the dirty layer, with mu held. by is that of place. If it fails nothing has
// changed, as the kernel believes, which keeps its pages then.
func (f *file) change(ctx context.Context, by *Handle, put func()) error {
	if err := f.foldMany(ctx); err != nil {
		return err
	}
	if err := f.place(ctx, 0, maxSize, false, by); err != nil {
		return err
	}
	defer f.mu.Unlock()
	before := f.dirty.mem
	put()
	f.v.mem.Add(f.dirty.mem - before)
	if end, ok := f.dirty.end(); ok {
		f.size = max(f.size, end)
	}
	f.touch(f.v.now())
	return nil
}

// foldMany folds the content if there are too many extents.
func (f *file) foldMany(ctx context.Context) error {
	f.mu.Lock()
	many := f.dirty.byEnd.Len() > maxRanges
	f.mu.Unlock()
	if !many {
		return nil
	}
	f.move.Lock()
	defer f.move.Unlock()
	return f.commit(ctx)
}

// CopyRange replaces the n bytes of h from off on by those of src from srcOff on,
// and returns how many there were: less than n only where src ends. Long ranges are
// shared: the content of src is stored, and h refers to it. The two may be the same
// file if the ranges do not overlap.
func (h *Handle) CopyRange(ctx context.Context, off int64, src *Handle, srcOff, n int64) (int64, error) {
	if err := errors.Join(h.alive(), src.beforeRead(ctx)); err != nil {
		return 0, err
	}
	n, err := h.copyRange(context.WithoutCancel(ctx), off, src, srcOff, n)
	if err != nil {
		return n, err
	}
	return n, h.changed(ctx)
}

func (h *Handle) copyRange(ctx context.Context, off int64, src *Handle, srcOff, n int64) (int64, error) {
	if off < 0 || srcOff < 0 || n < 0 || off > maxSize-n {
		return 0, ErrTooBig
	}
	if err := h.f.v.checkRoom(); err != nil {
		return 0, err
	}
	if n < h.f.v.o.shareMin {
		return h.copyBytes(ctx, off, src.f, srcOff, n)
	}
	copied := false
	// Patches are copied as bytes.
	named, err := h.f.copyFrom(ctx, src.f, func(b base, size int64) error {
		n = min(n, size-srcOff)
		if b.reader == nil || n < h.f.v.o.shareMin {
			return nil
		}
		copied = true
		return h.f.change(ctx, h, func() { h.f.share(off, &b, srcOff, n) })
	})
	if err != nil {
		return 0, err
	}
	if !named || !copied {
		return h.copyBytes(ctx, off, src.f, srcOff, max(n, 0))
	}
	return n, nil
}

// share puts n bytes of b from srcOff on into the dirty layer at off: what is in its tree
// as a part of that. Called with mu held.
func (f *file) share(off int64, b *base, srcOff, n int64) {
	inTree := max(0, min(n, b.length-srcOff))
	if inTree > 0 {
		f.dirty.put(extent{off: off, n: inTree, kind: shared, tree: b.reader, pos: srcOff})
	}
	if inTree < n {
		f.dirty.put(extent{off: off + inTree, n: n - inTree, kind: zeros})
	}
	if b.patches == nil {
		return
	}
	b.patches.each(srcOff, srcOff+n, func(e extent) bool {
		e = e.slice(max(e.off, srcOff), min(e.end(), srcOff+n))
		f.dirty.write(e.mem, off+e.off-srcOff)
		return true
	})
}

// stored brings all that was written into the stored layer, and returns that and
// the size of the file. The namespace knows it by then.
func (f *file) stored(ctx context.Context) (base, int64, error) {
	f.move.Lock()
	defer f.move.Unlock()
	if err := f.commit(ctx); err != nil {
		return base{}, 0, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.base, f.committed.Size, nil
}

func (h *Handle) copyBytes(ctx context.Context, off int64, src *file, srcOff, n int64) (int64, error) {
	p := make([]byte, min(n, copyPiece))
	done := int64(0)
	for done < n {
		got, err := src.read(ctx, p[:min(n-done, copyPiece)], srcOff+done)
		if err != nil || got == 0 {
			return done, err
		}
		if err := h.f.write(ctx, p[:got], off+done, atOffset, h); err != nil {
			return done, err
		}
		done += int64(got)
	}
	return done, nil
}

// Seek returns the first offset from off on that lies in data, or in a hole if
// hole is set; the end of the file is a hole. Beyond the end, and where no data
// follows, it is ErrNoData. Bytes that were not written are a hole, written zeros
// may be one.
func (h *Handle) Seek(ctx context.Context, off int64, hole bool) (int64, error) {
	f := h.f
	if err := f.fresh(ctx); err != nil {
		return 0, err
	}
	f.mu.Lock()
	size := f.size
	s := seeker{v: f.v, layers: []extents{f.dirty.snapshot(), f.frozen.snapshot()}, stored: f.base, hole: hole, at: off}
	if f.base.patches != nil {
		s.layers = append(s.layers, f.base.patches.snapshot())
	}
	f.mu.Unlock()
	if off < 0 || off >= size {
		return 0, ErrNoData
	}
	if err := s.layer(ctx, 0, size); err != nil {
		return 0, err
	}
	if !hole && s.at == size {
		return 0, ErrNoData
	}
	return s.at, nil
}

// seeker goes from at to the next data or hole through the layers of a file, as
// they were when it began.
type seeker struct {
	v      *Volume
	layers []extents // the upper first
	stored base
	hole   bool // what is looked for
	at     int64
	done   bool // found at at
}

// part passes over what lies up to the offset to and is a hole or is not.
func (s *seeker) part(to int64, hole bool) {
	if s.done = hole == s.hole; !s.done {
		s.at = to
	}
}

// layer looks at [at, to) from the given layer down.
func (s *seeker) layer(ctx context.Context, layer int, to int64) error {
	if layer == len(s.layers) {
		return s.base(ctx, to)
	}
	var err error
	s.layers[layer].each(s.at, to, func(e extent) bool {
		if s.at < e.off {
			err = s.layer(ctx, layer+1, e.off)
		}
		if err == nil && !s.done {
			err = s.extent(ctx, e, min(e.end(), to))
		}
		return err == nil && !s.done
	})
	if err != nil || s.done || s.at == to {
		return err
	}
	return s.layer(ctx, layer+1, to)
}

func (s *seeker) extent(ctx context.Context, e extent, to int64) error {
	if e.kind == shared {
		return s.tree(ctx, e.tree, e.off-e.pos, to)
	}
	s.part(to, e.kind == zeros)
	return nil
}

func (s *seeker) base(ctx context.Context, to int64) error {
	b := &s.stored
	if end := min(b.length, to); s.at < end {
		if b.reader == nil {
			s.part(end, false)
		} else if err := s.tree(ctx, b.reader, 0, end); err != nil {
			return err
		}
	}
	if !s.done && s.at < to {
		s.part(to, true)
	}
	return nil
}

// tree looks at [at, to), which lies in a tree whose byte 0 is at start.
func (s *seeker) tree(ctx context.Context, tree *manifest.Reader, start, to int64) error {
	next := tree.NextData
	if s.hole {
		next = tree.NextHole
	}
	off, err := next(ctx, s.v.o.Format, s.at-start)
	if err != nil {
		return err
	}
	s.at = start + min(off, to-start) // the tree may be longer than what follows in any file
	s.done = s.at < to
	return nil
}
