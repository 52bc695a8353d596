package volume

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
)

// file is the content of one regular file while it is open or not yet wholly in
// the namespace. Its bytes lie in layers, the upper hiding the lower:
//
//	dirty    what was written and not moved on yet
//	frozen   what is being moved down right now; immutable
//	base     what is stored: a tree, a few inline bytes, or the unfinished
//	         tree of a stream that appends to it; and patches above it
//	zeros    from the end of the base to the size
//
// Bytes move down in two ways. A stream takes what is appended at the end of
// the base and cuts it into blocks while the file is still being written.
// A commit folds all that is dirty into the base and names the result. In
// between, fsync and memory pressure write dirty extents to the journal, from
// which a restart puts them back.
//
// Two locks: mu guards the fields and is held for memory copies only; move is
// held by whoever moves bytes down, truncates or commits, across I/O. move is
// taken before mu.
type file struct {
	v   *Volume
	ino namespace.Ino

	opens int // handles, and operations under way or queued; guarded by v.mu

	move sync.Mutex

	mu     sync.Mutex
	dirty  extents
	frozen extents
	base   base
	size   int64
	mtime  int64 // of the last write, truncate or utimens, nanoseconds
	wrote  int64 // of the last write; 0: none yet
	ctime  int64
	later  later
	// changed says that size, mtime or content differ from the namespace.
	changed bool
	since   time.Time   // when it began to differ
	folded  journal.Seq // records up to this one are contained in the committed content
	last    journal.Seq // newest record of this file
	first   journal.Seq // oldest record the file may need after a restart; 0: none
	touched uint64      // counts writes
	orphan  bool        // has no name any more; written under v.mu, too

	committed namespace.Inode // as of the last command of ours; guarded by move
	err       error           // why the last attempt to move bytes down failed; guarded by mu

	promises // of the stores, for what has no name yet
	sharing  // of a volume that is shared
}

// base is the stored layer of a file: exactly one of inline, reader and stream
// is set, or none for an empty file.
type base struct {
	inline []byte
	reader *manifest.Reader
	stream *stream
	root   manifest.Root // what reader reads
	length int64         // bytes of it that count
	// patches are the bytes above it that the namespace has, nil if there are none;
	// below says to which content they belong.
	patches *extents
	below   uint64
	from    int64 // of a stream: where what was written here begins
}

// stream is a tree that is still growing at its end.
type stream struct {
	mu     sync.Mutex // a Writer serves one goroutine at a time
	w      *manifest.Writer
	blocks *waiting // what w writes to
	// ahead says that it may have bytes which were written after some that are dirty.
	// Guarded by file.move.
	ahead bool
}

// append appends the bytes of e. If there was no space for what came before, it
// fails and takes nothing.
func (s *stream) append(ctx context.Context, v *Volume, e extent) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.blocks.settle(ctx); err != nil {
		return err
	}
	return v.appendExtent(ctx, s.w, e)
}

// snapshot returns the root of what was written so far, all of it stored.
func (s *stream) snapshot(ctx context.Context) (manifest.Root, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	root, err := s.w.Snapshot(ctx)
	if err == nil {
		err = s.blocks.settle(ctx)
	}
	return root, err
}

// newFile returns the file of n. Patches are taken over when it is used first: there
// may be many.
func (v *Volume) newFile(n namespace.Inode) *file {
	f := &file{
		v: v, ino: n.Ino, dirty: v.noExtents(), frozen: v.noExtents(), base: v.baseOf(n.Content), size: n.Size, mtime: n.Mtime, ctime: n.Ctime,
		folded: journal.Seq(n.Content.Folded), orphan: n.Nlink == 0, committed: n,
		sharing: sharing{tail: -1, frozenTail: -1},
	}
	if n.Patches.First != 0 {
		f.base.below = unread
		f.news.add()
	}
	return f
}

// unread is the below of a base whose patches have not been read: by then they may have
// been folded into other content, with the same version.
const unread = 1<<64 - 1

func (v *Volume) noExtents() extents { return extents{pool: &v.buffers} }

func (v *Volume) baseOf(c namespace.Content) base {
	b := base{length: c.Length}
	switch {
	case len(c.Inline) > 0:
		b.inline, b.length = c.Inline, int64(len(c.Inline))
	case c.Root.Defined():
		b.root = manifest.Root{CID: c.Root, Size: c.TreeSize, Holes: c.Holes}
		b.reader = v.reader(b.root)
	}
	return b
}

// patchedBase is baseOf with patches above the content.
func (v *Volume) patchedBase(n namespace.Inode, patches []namespace.Range) base {
	b := v.baseOf(n.Content)
	b.patches, b.below = (*extents)(nil).lay(patches), n.Patches.Below
	return b
}

// end returns where the base ends, before the zeros.
func (b *base) end() int64 {
	end := b.length
	if b.patches != nil {
		last, _ := b.patches.end()
		end = max(end, last)
	}
	return end
}

// readAt fills p with the bytes of the base at off, zeros from its end on.
func (b *base) readAt(ctx context.Context, p []byte, off int64) error {
	if b.patches == nil {
		return b.readBelow(ctx, p, off)
	}
	var err error
	pos, end := off, off+int64(len(p))
	gap := func(to int64) {
		if err == nil && pos < to {
			err = b.readBelow(ctx, p[pos-off:to-off], pos)
		}
	}
	b.patches.each(off, end, func(e extent) bool {
		e = e.slice(max(e.off, off), min(e.end(), end))
		gap(e.off)
		copy(p[e.off-off:], e.mem)
		pos = e.end()
		return err == nil
	})
	gap(end)
	return err
}

// readBelow is readAt of what lies below the patches.
func (b *base) readBelow(ctx context.Context, p []byte, off int64) error {
	n := int(max(0, min(int64(len(p)), b.length-off)))
	clear(p[n:])
	if n == 0 {
		return nil
	}
	var err error
	switch {
	case b.stream != nil:
		b.stream.mu.Lock()
		_, err = b.stream.w.ReadAt(ctx, p[:n], off)
		b.stream.mu.Unlock()
	case b.reader != nil:
		_, err = b.reader.ReadAt(ctx, p[:n], off)
	default:
		copy(p[:n], b.inline[off:])
	}
	if err == io.EOF {
		err = nil
	}
	return err
}

// read fills p from off on and returns how much of it lies before the end of
// the file.
func (f *file) read(ctx context.Context, p []byte, off int64) (int, error) {
	type piece struct {
		p   []byte
		off int64
		e   *extent // where the bytes are; nil: in the base
	}
	f.mu.Lock()
	if off >= f.size {
		f.mu.Unlock()
		return 0, nil
	}
	p = p[:min(int64(len(p)), f.size-off)]
	var (
		rest []piece // what cannot be copied under the lock
		scan func(layer int, from, to int64)
	)
	scan = func(layer int, from, to int64) {
		if layer == 2 {
			rest = append(rest, piece{p: p[from-off : to-off], off: from})
			return
		}
		m := &f.dirty
		if layer == 1 {
			m = &f.frozen
		}
		m.each(from, to, func(e extent) bool {
			e = e.slice(max(e.off, from), min(e.end(), to))
			if e.off > from {
				scan(layer+1, from, e.off)
			}
			switch {
			case e.mem != nil:
				copy(p[e.off-off:], e.mem)
			case e.kind == zeros:
				clear(p[e.off-off : e.end()-off])
			default:
				rest = append(rest, piece{p: p[e.off-off : e.end()-off], off: e.off, e: &e})
			}
			from = e.end()
			return true
		})
		if from < to {
			scan(layer+1, from, to)
		}
	}
	if f.dirty.empty() && f.frozen.empty() {
		rest = append(rest, piece{p: p, off: off})
	} else {
		scan(0, off, off+int64(len(p)))
	}
	b := f.base
	if slices.ContainsFunc(rest, func(r piece) bool { return r.e != nil && r.e.kind == written }) {
		// The records must stay in the journal while they are read, even
		// if the file is folded in between.
		f.v.trimming.RLock()
		defer f.v.trimming.RUnlock()
	}
	f.mu.Unlock()
	for _, r := range rest {
		var err error
		if r.e != nil {
			err = f.v.readExtent(ctx, *r.e, r.p)
		} else {
			err = b.readAt(ctx, r.p, r.off)
		}
		if err != nil {
			return 0, fmt.Errorf("read inode %d at %d: %w", f.ino, r.off, err)
		}
	}
	return len(p), nil
}

// where says what the offset of a write means.
type where int

const (
	atOffset where = iota
	atEnd          // nothing: the bytes follow those that the file has
	inside         // what it says, and bytes beyond the end of the file are dropped
)

// write puts p into the dirty layer and returns once it is there. by is that of place.
func (f *file) write(ctx context.Context, p []byte, off int64, to where, by *Handle) error {
	if err := f.v.checkRoom(); err != nil {
		return err
	}
	if err := f.v.admit(ctx, f); err != nil {
		return err
	}
	if err := f.place(ctx, off, int64(len(p)), to == atEnd, by); err != nil {
		return err
	}
	switch to {
	case atEnd:
		off = f.size
	case inside:
		if f.fenced.Load() > 0 {
			f.mu.Unlock()
			return namespace.ErrSession
		}
		if p = p[:min(int64(len(p)), max(0, f.size-off))]; len(p) == 0 {
			f.mu.Unlock()
			return nil
		}
	}
	if off < 0 || off > maxSize-int64(len(p)) {
		f.mu.Unlock()
		return ErrTooBig
	}
	before := f.dirty.mem
	for len(p) > 0 {
		n := min(len(p), maxExtent)
		f.dirty.write(p[:n], off)
		p, off = p[n:], off+int64(n)
	}
	f.v.mem.Add(f.dirty.mem - before)
	f.size = max(f.size, off)
	f.touch(f.v.now())
	// A stream is worth its while once this much waits at the end of the base.
	ready := f.dirty.bytes >= streamMin && f.streamable() >= streamMin
	f.mu.Unlock()
	if ready {
		f.v.drain(f)
	}
	return nil
}

// touch marks the content as changed at t.
func (f *file) touch(t int64) {
	f.mtime, f.ctime, f.wrote = t, t, t
	f.later.mask &^= namespace.AttrMtime
	f.touched++
	if !f.changed {
		f.changed, f.since = true, time.Unix(0, t)
	}
	if c := f.v.shared(); c != nil && f.under == 0 {
		f.under = c.Session()
	}
}

// streamable returns how many written bytes follow the end of the base without a
// gap.
func (f *file) streamable() int64 {
	var n int64
	if f.frozen.empty() {
		for _, e := range f.dirty.stream(f.base.end()) {
			if e.kind == written {
				n += e.n
			}
		}
	}
	return n
}

// attr lays what is not committed yet over the namespace's record.
func (f *file) attr(a *Attr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a.Size, a.Blocks = f.size, blocks(min(f.allocated(), f.size), f.size)
	if f.changed {
		a.Mtime = f.mtime
		a.Ctime = max(a.Ctime, f.ctime)
	}
	f.later.lay(a)
}

// allocated returns how many bytes are in none of the holes that are known, and
// rather too many: those that hide others are counted again, and a hole over a base
// that has holes itself may be nothing new. Called with mu held.
func (f *file) allocated() int64 {
	n := outsideHoles(f.base.length, f.base.root.Size, f.base.root.Holes)
	if f.base.patches != nil {
		n += f.base.patches.bytes
	}
	n += f.dirty.bytes + f.dirty.refer + f.frozen.bytes + f.frozen.refer
	punched := &f.dirty // or what is frozen, but not the same bytes twice
	if punched.holes == 0 {
		punched = &f.frozen
	}
	if f.base.root.Holes == 0 && punched.holes > 0 {
		punched.each(0, f.base.length, func(e extent) bool {
			if e.kind == zeros {
				n -= min(e.end(), f.base.length) - e.off
			}
			return true
		})
	}
	return n
}

// clean reports whether the namespace knows everything about the file.
func (f *file) clean() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return !f.changed && f.dirty.empty() && f.frozen.empty() && f.base.stream == nil
}
