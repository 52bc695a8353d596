package volume

import (
	"context"

	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/namespace"
)

// How layers of a file become content: a few bytes kept with the inode, or a tree.

// fold makes content of size bytes out of the base and what is frozen. Called with
// move held.
func (f *file) fold(ctx context.Context, size int64) (namespace.Content, error) {
	if f.base.stream != nil && size > namespace.MaxInline {
		root, err := f.foldStream(ctx, size)
		return contentOf(root), err
	}
	over := &f.frozen
	if f.base.patches != nil {
		f.mu.Lock()
		frozen := f.frozen.snapshot()
		f.mu.Unlock()
		over = &frozen
		over.under(f.base.patches)
	}
	return f.v.content(ctx, &f.base, over, size)
}

func contentOf(root manifest.Root) namespace.Content {
	return namespace.Content{Root: root.CID, TreeSize: root.Size, Length: root.Size, Holes: root.Holes}
}

// foldStream is fold of what a stream appends to.
func (f *file) foldStream(ctx context.Context, size int64) (manifest.Root, error) {
	f.mu.Lock()
	run := f.frozen.run(f.base.length)
	f.mu.Unlock()
	if err := f.feed(ctx, run); err != nil {
		return manifest.Root{}, err
	}
	root, err := f.base.stream.snapshot(ctx)
	if err != nil {
		return root, err
	}
	return f.v.rewrite(ctx, root, f.v.edits(&f.base, &f.frozen, size), size)
}

// content stores content of size bytes: what is over b, and b where nothing is. The
// patches of b count as far as they are part of over.
func (v *Volume) content(ctx context.Context, b *base, over *extents, size int64) (namespace.Content, error) {
	if size <= namespace.MaxInline {
		p := make([]byte, size)
		if err := v.readOver(ctx, p, b, over); err != nil {
			return namespace.Content{}, err
		}
		return namespace.Content{Inline: p, Length: size}, nil
	}
	root, err := v.tree(ctx, b, over, size)
	if err != nil {
		return namespace.Content{}, err
	}
	return contentOf(root), nil
}

// tree is content as a tree, however short it is.
func (v *Volume) tree(ctx context.Context, b *base, over *extents, size int64) (manifest.Root, error) {
	if b.reader == nil {
		return v.build(ctx, b, over, size)
	}
	return v.rewrite(ctx, b.root, v.edits(b, over, size), size)
}

func (v *Volume) rewrite(ctx context.Context, root manifest.Root, edits []manifest.Edit, size int64) (manifest.Root, error) {
	if len(edits) == 0 && root.Size == size {
		return root, nil
	}
	return manifest.Rewrite(ctx, v.o.Store, v.o.Format, root, size, edits)
}

// build makes the tree of a file that has none yet.
func (v *Volume) build(ctx context.Context, b *base, over *extents, size int64) (manifest.Root, error) {
	w, ok := v.writers.Get().(*manifest.Writer)
	if !ok {
		w = manifest.NewWriter(v.o.Store, v.o.Format)
	}
	pos := int64(0)
	gap := func(to int64) error {
		if have := min(b.length, to); pos < have {
			if err := w.Write(ctx, b.inline[pos:have]); err != nil {
				return err
			}
			pos = have
		}
		return w.WriteZeros(ctx, to-pos)
	}
	for _, e := range over.all() {
		if err := gap(e.off); err != nil {
			return manifest.Root{}, err
		}
		if err := v.appendExtent(ctx, w, e); err != nil {
			return manifest.Root{}, err
		}
		pos = e.end()
	}
	if err := gap(size); err != nil {
		return manifest.Root{}, err
	}
	root, err := w.Finish(ctx)
	if err == nil {
		w.Reset()
		v.writers.Put(w)
	}
	return root, err
}

// edits describes what is over b, and the zeros that hide the end of a tree of which
// less than the whole counts, as changes of that tree.
func (v *Volume) edits(b *base, over *extents, size int64) []manifest.Edit {
	var edits []manifest.Edit
	zero := func(from, to int64) {
		from, to = max(from, b.length), min(to, b.root.Size, size)
		if from < to {
			edits = append(edits, manifest.Edit{Off: from, Len: to - from})
		}
	}
	pos := int64(0)
	for _, e := range over.all() {
		zero(pos, e.off)
		edits = append(edits, v.editOf(e))
		pos = e.end()
	}
	zero(pos, size) // of a stream none: it has no root yet
	return edits
}

// readOver fills p, the beginning of a file, with what is over b, and b where nothing
// is.
func (v *Volume) readOver(ctx context.Context, p []byte, b *base, over *extents) error {
	if err := b.readAt(ctx, p, 0); err != nil {
		return err
	}
	for _, e := range over.overlapping(0, int64(len(p))) {
		e = e.slice(e.off, min(e.end(), int64(len(p))))
		if err := v.readExtent(ctx, e, p[e.off:e.end()]); err != nil {
			return err
		}
	}
	return nil
}
