package volume

import (
	"context"
	"fmt"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
)

// How bytes move down, from the dirty layer into blocks and names. Everything
// here runs with file.move held and takes file.mu for moments only, so that
// reads and writes go on meanwhile.

// drainTail streams what is dirty at the end of the base into its tree, until
// less than streamMin is left there.
func (f *file) drainTail(ctx context.Context) error {
	for {
		f.mu.Lock()
		if f.streamable() < streamMin {
			f.mu.Unlock()
			return nil
		}
		if f.base.patches != nil {
			f.mu.Unlock()
			f.v.foldSoon(f) // a stream can begin where the tree ends
			return nil
		}
		run := f.dirty.stream(f.base.length)
		for _, e := range run {
			f.dirty.remove(e)
			f.frozen.add(e)
		}
		older := !f.dirty.empty()
		f.mu.Unlock()
		if err := f.feed(ctx, run); err != nil {
			f.thaw(err)
			return err
		}
		f.base.stream.ahead = older
	}
}

// feed appends run, which is frozen and begins at the end of the base, to the
// file's stream, and begins one if there is none.
func (f *file) feed(ctx context.Context, run []extent) error {
	if err := f.ensureStream(ctx); err != nil {
		return err
	}
	s := f.base.stream
	for _, e := range run {
		if err := s.append(ctx, f.v, e); err != nil {
			return err
		}
		f.mu.Lock()
		f.base.length = e.end()
		f.drop(&f.frozen, e)
		f.mu.Unlock()
	}
	return nil
}

// ensureStream makes the base one that can grow at its end.
func (f *file) ensureStream(ctx context.Context) error {
	b := f.base
	if b.stream != nil {
		return nil
	}
	f.relyNow()
	var (
		blocks = &waiting{Store: f.v.o.Store}
		w      *manifest.Writer
		err    error
	)
	switch {
	case b.reader != nil:
		root := b.root
		if b.length < root.Size {
			if root, err = manifest.Rewrite(ctx, f.v.o.Store, f.v.o.Format, root, b.length, nil); err != nil {
				return err
			}
		}
		if w, err = manifest.AppendTo(ctx, blocks, f.v.o.Format, root); err != nil {
			return err
		}
	default:
		w = manifest.NewWriter(blocks, f.v.o.Format)
		if err := w.Write(ctx, b.inline); err != nil {
			return err
		}
	}
	f.mu.Lock()
	f.base = base{stream: &stream{w: w, blocks: blocks}, length: b.length, from: b.length}
	f.mu.Unlock()
	return nil
}

// drop forgets e, whose bytes have moved down. Called with mu held.
func (f *file) drop(m *extents, e extent) {
	m.remove(e)
	f.v.mem.Add(-int64(cap(e.mem)))
	f.v.buffers.put(e.mem)
}

// thaw puts what is frozen back beneath what was written since, because moving
// it down failed with err.
func (f *file) thaw(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.dirty.mem + f.frozen.mem
	f.dirty.under(&f.frozen)
	f.frozen = f.v.noExtents()
	f.v.mem.Add(f.dirty.mem - before) // what newer writes hide is gone
	if s := f.base.stream; s != nil {
		s.ahead = true
	}
	if f.frozenTail >= 0 {
		f.tail, f.frozenTail = f.frozenTail, -1
	}
	f.err = err
}

// commit folds everything written so far into the base and names the result.
func (f *file) commit(ctx context.Context) error {
	if f.v.Shared() {
		return f.commitShared(ctx)
	}
	return f.commitOnce(ctx)
}

// commitOnce fails if another node has named content meanwhile.
func (f *file) commitOnce(ctx context.Context) error {
	step := f.v.step()
	f.mu.Lock()
	if !f.changed && f.dirty.empty() && f.base.stream == nil {
		f.tail = -1
		f.mu.Unlock()
		return nil
	}
	f.rely(step)
	f.freeze()
	size, last := f.size, f.last
	f.mu.Unlock()

	content, err := f.fold(ctx, size)
	if err != nil {
		f.thaw(err)
		return fmt.Errorf("store the content of inode %d: %w", f.ino, err)
	}
	content.Folded = uint64(max(f.folded, last))
	if err := f.name(ctx, content, size); err != nil {
		f.thaw(err)
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.base = f.v.baseOf(content)
	f.folded = journal.Seq(content.Folded)
	f.landed()
	return nil
}

// freeze makes what is dirty what is moved down. Called with mu held.
func (f *file) freeze() {
	f.frozen, f.dirty = f.dirty, f.v.noExtents()
	f.frozenTail, f.tail = f.tail, -1
	f.frozenTouched, f.frozenLater = f.touched, f.later.n
}

// landed forgets what was frozen, which the base has by now. Called with mu held.
func (f *file) landed() {
	f.v.mem.Add(-f.frozen.mem)
	f.frozen = f.v.noExtents()
	f.first, f.logged = 0, nil
	f.err, f.frozenTail = nil, -1
	f.changed = f.touched != f.frozenTouched || f.later.n != f.frozenLater // what came meanwhile is for the next commit
	if !f.changed {
		f.under = 0
	}
}

// name tells the namespace of new content.
func (f *file) name(ctx context.Context, c namespace.Content, size int64) error {
	f.mu.Lock()
	wrote := f.wrote // not a time that was set, which the namespace has
	f.mu.Unlock()
	op := &namespace.SetContent{Ino: f.ino, Base: f.committed.Version, Content: c, Size: size, Mtime: wrote}
	if f.v.Shared() {
		return f.nameShared(ctx, op, size, c)
	}
	res, err := f.nameWith(ctx, op)
	if err != nil {
		return fmt.Errorf("name the content of inode %d: %w", f.ino, err)
	}
	f.committed = res.Inodes[len(res.Inodes)-1]
	return nil
}

// settle is what close(2) does: commit, unless that would mean to rewrite parts
// of a large file, which is left to the background as long as that succeeds.
func (f *file) settle(ctx context.Context) error {
	f.move.Lock()
	defer f.move.Unlock()
	f.mu.Lock()
	later := f.orphan || !f.v.Shared() && f.base.reader != nil && !f.dirty.empty() && f.err == nil
	f.mu.Unlock()
	if later {
		return nil
	}
	return f.commit(ctx)
}

// secure brings everything written so far to where the next sync of the log
// makes it durable: into the namespace, or as records into the journal.
func (f *file) secure(ctx context.Context) error {
	f.move.Lock()
	defer f.move.Unlock()
	if f.v.Shared() {
		return f.secureShared(ctx)
	}
	if err := f.drainTail(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	whole := f.base.reader == nil && f.base.stream == nil &&
		(f.size <= namespace.MaxInline || f.dirty.loose > journalMax)
	f.mu.Unlock()
	if whole {
		return f.commit(ctx)
	}
	return f.keep(ctx, false)
}

// keep brings what is dirty into the journal, and before it into the namespace what
// a restart must find there as well. See record for spill.
func (f *file) keep(ctx context.Context, spill bool) error {
	if err := f.nameBelow(ctx); err != nil {
		return err
	}
	// A restart must not find what was written and miss who may read it.
	if err := f.nameLater(ctx); err != nil {
		return err
	}
	return f.record(spill)
}

// nameBelow names the stream that what is dirty lies on: a restart that finds the
// records and not what is below them would make a file with a hole in it.
func (f *file) nameBelow(ctx context.Context) error {
	if f.v.Shared() {
		return nil // a restart does not look at the records
	}
	f.mu.Lock()
	unnamed := f.base.stream != nil && f.base.length > f.committed.Content.Length
	// A tree of the stream alone must lack what was written last only. With anything
	// dirty but its end it may lack what is older than that, and what the journal has
	// would be replayed over it.
	alone := f.first == 0 && unnamed && !f.base.stream.ahead && len(f.dirty.run(f.base.length)) == f.dirty.byEnd.Len()
	f.mu.Unlock()
	switch {
	case !unnamed:
		return nil
	case alone:
		return f.nameStream(ctx)
	}
	return f.commit(ctx)
}

// nameStream names what the stream holds so far.
func (f *file) nameStream(ctx context.Context) error {
	root, err := f.base.stream.snapshot(ctx)
	if err != nil {
		return err
	}
	c := contentOf(root)
	c.Folded = uint64(f.folded)
	return f.name(ctx, c, max(root.Size, f.committed.Size))
}

// record writes the dirty extents that are in no record yet to the journal, as
// one group that a restart takes whole or not at all: their order is that of
// offsets, not that in which they were written. With spill the memory of all
// extents is freed.
func (f *file) record(spill bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.dirty.mem
	defer func() { f.v.mem.Add(f.dirty.mem - before) }()
	var loose []extent
	for _, e := range f.dirty.all() {
		if e.seq != 0 {
			continue
		}
		if e.kind != written {
			loose = append(loose, e)
			continue
		}
		f.dirty.remove(e)
		for from := e.off; from < e.end(); {
			part := e.slice(from, from+min(recordMax, e.end()-from))
			f.dirty.add(part)
			loose = append(loose, part)
			from = part.end()
		}
	}
	for i := range loose {
		e := &loose[i]
		rec := rangeRecord{Ino: f.ino, Off: e.off, Mtime: f.wrote, First: i == 0, More: i+1 < len(loose), Spill: f.v.Shared()}
		p := rec.describe(e)
		var err error
		if e.seq, e.at, err = f.v.appendRange(&rec, p); err != nil {
			return fmt.Errorf("journal inode %d at %d: %w", f.ino, e.off, err)
		}
	}
	// Only now: a restart takes nothing of a group that is not complete.
	for _, e := range loose {
		if e.kind == written {
			e.pos = rangeHeaderSize
		}
		f.dirty.put(e)
		f.recorded(e.seq)
		f.logs(e)
	}
	if spill {
		for _, e := range f.dirty.all() {
			if e.mem != nil {
				f.dirty.remove(e)
				e.mem = nil
				f.dirty.add(e)
			}
		}
	}
	return nil
}

func (f *file) recorded(seq journal.Seq) {
	if !f.v.Shared() {
		f.last = seq // the others are not replayed
	}
	if f.first == 0 {
		f.first = seq
	}
}

// cid returns the file's CID, and stores and names what it needs for that.
func (f *file) cid(ctx context.Context) (cas.CID, error) {
	f.move.Lock()
	defer f.move.Unlock()
	if err := f.commit(ctx); err != nil {
		return cas.CID{}, err
	}
	f.mu.Lock()
	b, size := f.base, f.size
	f.mu.Unlock()
	over := b.patches
	if over == nil {
		over = &extents{}
	}
	root, err := f.v.tree(ctx, &b, over, size)
	return root.CID, err
}
