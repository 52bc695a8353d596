package volume

import (
	"context"
	"io"

	"github.com/cairnfs/cairn/cas/manifest"
)

// What the bytes of an extent are, for each way of using them: read into memory,
// appended to a tree that is being written, or as an edit of one that is stored.

// readExtent fills p with the first bytes of e.
func (v *Volume) readExtent(ctx context.Context, e extent, p []byte) error {
	switch {
	case e.mem != nil:
		copy(p, e.mem)
		return nil
	case e.kind == zeros:
		clear(p)
		return nil
	case e.kind == shared:
		_, err := e.tree.ReadAt(ctx, p, e.pos)
		if err == io.EOF {
			err = nil // with all of p: the tree has e.n bytes there
		}
		return err
	default:
		return v.o.Journal.ReadAt(p, e.at, e.pos)
	}
}

// appendExtent appends the bytes of e to w.
func (v *Volume) appendExtent(ctx context.Context, w *manifest.Writer, e extent) error {
	switch e.kind {
	case zeros:
		return w.WriteZeros(ctx, e.n)
	case shared:
		return w.AppendTree(ctx, e.tree.Root(), e.pos, e.n)
	}
	p := e.mem
	if p == nil {
		p = make([]byte, e.n)
		if err := v.readExtent(ctx, e, p); err != nil {
			return err
		}
	}
	return w.Write(ctx, p)
}

// editOf returns e as a change of a tree.
func (v *Volume) editOf(e extent) manifest.Edit {
	edit := manifest.Edit{Off: e.off, Len: e.n}
	switch e.kind {
	case written:
		edit.Data = extentReader{v, e}
	case shared:
		root := e.tree.Root()
		edit.Tree, edit.TreeOff = &root, e.pos
	}
	return edit
}

// extentReader reads an extent by offsets of the file.
type extentReader struct {
	v *Volume
	e extent
}

func (r extentReader) ReadAt(p []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(p)), r.e.end()-off)))
	if n > 0 {
		if err := r.v.readExtent(context.Background(), r.e.slice(off, off+int64(n)), p[:n]); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
