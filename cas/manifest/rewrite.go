package manifest

// Changing a file means writing it anew, except that whatever an old tree holds
// from a given place on is taken over as soon as both agree on where they are:
// leaves, when the new content is cut where the old was; nodes on level n, when
// moreover no group is under way on the levels below n at the start of an old
// node. Chunker and groups restart at each end, so what is taken over is what
// writing its bytes would give.
//
// The last leaf and the last node of each level ended because the file did, not
// by their content. They are taken over only to end the new file as well.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cairnfs/cairn/cas"
)

// Edit replaces the bytes [Off, Off+Len) of a file.
type Edit struct {
	Off, Len int64
	// Data has the new bytes, at their offsets in the file.
	Data io.ReaderAt
	// Tree, if Data is nil, is a file whose bytes from TreeOff on are the new
	// ones; it must be in the same store. If both are nil the new bytes are
	// zeros. Neither costs more if they are many.
	Tree    *Root
	TreeOff int64
}

// AppendTo returns a Writer that goes on at the end of root, as if it had written
// all of it. It reads one node per level and the last leaf, whose bytes are cut
// again together with what follows.
//
// root must be a whole file; that of a tree with metadata goes on without it.
func AppendTo(ctx context.Context, store Store, f Format, root Root) (*Writer, error) {
	w := NewWriter(store, f)
	if w.err != nil {
		return nil, w.err
	}
	c, err := newCursor(ctx, store, root, root.Size-1)
	if err != nil {
		return nil, err
	}
	if err := w.takeOver(ctx, c, 0, root.Size, false); err != nil {
		return nil, err
	}
	if err := w.account(ctx, c, root); err != nil {
		return nil, err
	}
	return w, nil
}

// AppendTree appends the n bytes from off on of the file root, as Write would
// append their bytes; but what is cut and grouped in the same way is taken over as
// it is, so that the cost is that of two ends, whatever lies between them. The
// blocks of root must be in w's store. Errors: as Write, and ErrEdits if root has
// no such range.
func (w *Writer) AppendTree(ctx context.Context, root Root, off, n int64) error {
	if w.err != nil {
		return w.err
	}
	if off < 0 || n < 0 || n > root.Size-off {
		return fmt.Errorf("%w: %d bytes at %d of a file of %d", ErrEdits, n, off, root.Size)
	}
	if n == 0 {
		return nil
	}
	if err := w.materialise(ctx); err != nil {
		return w.fail(err)
	}
	c, err := newCursor(ctx, w.store, root, off)
	if err != nil {
		return err
	}
	if err := w.takeOver(ctx, c, off, off+n, false); err != nil {
		return err
	}
	return w.account(ctx, c, root)
}

// Rewrite returns the root of the file that has the given size and the bytes of
// base, with the edits applied; where base has no bytes there are zeros. base
// must be a whole file; metadata of it is left out. The edits may stand in any
// order, but must not overlap or reach beyond size, else ErrEdits.
//
// The cost is proportional to the edits: around each, it reads one node per
// level and the leaves from the one before its start to the first place behind
// its end where the chunks fall into step again, as a rule one or two leaves
// further, and writes as much. Zeros cost nothing, wherever they are. Blocks
// have been put on return, none is durable before the store's Sync.
func Rewrite(ctx context.Context, store Store, f Format, base Root, size int64, edits []Edit) (Root, error) {
	edits, err := sortEdits(edits, size)
	if err != nil {
		return Root{}, err
	}
	w := NewWriter(store, f)
	if w.err != nil {
		return Root{}, w.err
	}
	at := size - 1
	if len(edits) > 0 {
		at = edits[0].Off
	}
	c, err := newCursor(ctx, store, base, at)
	if err != nil {
		return Root{}, err
	}
	for _, e := range edits {
		if err := w.old(ctx, c, e.Off, false); err != nil {
			return Root{}, err
		}
		if err := w.apply(ctx, e); err != nil {
			return Root{}, err
		}
	}
	if err := w.old(ctx, c, size, true); err != nil {
		return Root{}, err
	}
	if err := w.account(ctx, c, base); err != nil {
		return Root{}, err
	}
	return w.Finish(ctx)
}

// apply appends the new bytes of e.
func (w *Writer) apply(ctx context.Context, e Edit) error {
	switch {
	case e.Data != nil:
		return w.readExactly(ctx, io.NewSectionReader(e.Data, e.Off, e.Len), e.Len)
	case e.Tree != nil:
		taken := w.taken // of the file that is rewritten
		w.taken = nil
		err := w.AppendTree(ctx, *e.Tree, e.TreeOff, e.Len)
		w.taken = taken
		return err
	default:
		return w.WriteZeros(ctx, e.Len)
	}
}

// sortEdits returns the edits that are not empty in the order of their offsets.
func sortEdits(edits []Edit, size int64) ([]Edit, error) {
	if size < 0 {
		return nil, fmt.Errorf("%w: new size %d", ErrEdits, size)
	}
	sorted := slices.DeleteFunc(slices.Clone(edits), func(e Edit) bool { return e.Len == 0 })
	slices.SortFunc(sorted, func(a, b Edit) int { return cmp.Compare(a.Off, b.Off) })
	for i, e := range sorted {
		if e.Off < 0 || e.Len < 0 || e.Len > size-e.Off {
			return nil, fmt.Errorf("%w: %d bytes at %d in a file of %d", ErrEdits, e.Len, e.Off, size)
		}
		if i > 0 && e.Off-sorted[i-1].Off < sorted[i-1].Len {
			return nil, fmt.Errorf("%w: those at %d and %d overlap", ErrEdits, sorted[i-1].Off, e.Off)
		}
	}
	return sorted, nil
}

// readExactly appends n bytes of r.
func (w *Writer) readExactly(ctx context.Context, r io.Reader, n int64) error {
	got, err := w.ReadFrom(ctx, r)
	if err == nil && got < n {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// old appends what the old file has from w's size up to the offset to, and zeros
// in place of what it has not. last says that nothing will follow.
func (w *Writer) old(ctx context.Context, c *cursor, to int64, last bool) error {
	if end := min(to, c.size); w.size < end {
		if err := w.takeOver(ctx, c, w.size, end, last && to == end); err != nil {
			return err
		}
	}
	return w.WriteZeros(ctx, to-w.size)
}

// takeOver appends the bytes [from, to) of the old file.
func (w *Writer) takeOver(ctx context.Context, c *cursor, from, to int64, last bool) error {
	if err := w.extend(to - from); err != nil {
		return err
	}
	for from < to {
		var err error
		if w.idle() {
			from, err = w.takeWhole(ctx, c, from, to, last)
		}
		if err == nil && from < to {
			from, err = w.takeBytes(ctx, c, from, to)
		}
		if err != nil {
			return w.fail(err)
		}
	}
	return w.fail(w.flush(ctx))
}

// takeWhole takes leaves and subtrees as they are, the largest possible ones, as
// long as they start at from and end at to or before. It returns how far it came.
// w must be idle, and is after that.
func (w *Writer) takeWhole(ctx context.Context, c *cursor, from, to int64, last bool) (int64, error) {
	for from < to {
		if err := c.seek(ctx, from); err != nil {
			return from, err
		}
		next, err := w.takeLargest(ctx, c, from, to, last)
		if err != nil || next == from {
			return from, err
		}
		from = next
	}
	return from, nil
}

// takeLargest takes the largest subtree on which c, having sought from, may
// stand. It returns where that ends, or from if there is none.
func (w *Writer) takeLargest(ctx context.Context, c *cursor, from, to int64, last bool) (int64, error) {
	for {
		l, start := c.link()
		end := start + l.size
		if start == from && end <= to {
			ended := end < c.size || last // by its content, or together with the new file
			if w.zeros == 0 && ended && w.accepts(l, c.level()) {
				return end, w.take(ctx, l, c.level(), start)
			}
			if hole, err := w.holes.has(l, c.level()); err != nil || hole {
				return end, errors.Join(err, w.writeZeros(ctx, l.size))
			}
		}
		if start != from || c.atLeaf() && w.zeros == 0 {
			return from, nil
		}
		if !c.atLeaf() {
			if err := c.descend(ctx); err != nil {
				return from, err
			}
			continue
		}
		// The hole is over: look again what may stand behind it.
		if err := errors.Join(w.settle(ctx), c.seek(ctx, from)); err != nil {
			return from, err
		}
	}
}

// take adds the leaf or subtree l, which starts at start in the old file.
func (w *Writer) take(ctx context.Context, l link, level int, start int64) error {
	if level == 0 {
		return w.addLeaf(ctx, l)
	}
	w.taken.add(start, start+l.size)
	return w.tree.add(ctx, level, l, 1)
}

// accepts reports whether the old link l may stand on the given level now.
func (w *Writer) accepts(l link, level int) bool {
	switch l.cid.Codec() {
	case cas.Raw:
		return true
	case cas.DagPB:
		return level > 0 && w.tree.idleBelow(level)
	default:
		return false // bytes within a node
	}
}

// takeBytes takes bytes of the old file, to be cut anew, up to a cut that the old
// file has as well, or up to to. It returns where in the old file that is, which
// may be before the last byte it read.
func (w *Writer) takeBytes(ctx context.Context, c *cursor, from, to int64) (int64, error) {
	var cuts []int64 // of the old file, among the bytes taken
	for from < to {
		if err := c.seek(ctx, from); err != nil {
			return from, err
		}
		hole, err := w.holes.at(ctx, c, from, to)
		if err != nil {
			return from, err
		}
		if hole > 0 {
			if err := w.writeZeros(ctx, hole); err != nil {
				return from, err
			}
			from += hole
			if w.idle() {
				return from, nil
			}
			continue
		}
		data, err := c.bytes(ctx)
		if err != nil {
			return from, err
		}
		l, start := c.link()
		if start == from {
			cuts = append(cuts, from)
		}
		data = data[from-start : min(start+l.size, to)-start]
		if err := w.materialise(ctx); err != nil {
			return from, err
		}
		if err := w.keep(ctx, data); err != nil {
			return from, err
		}
		from += int64(len(data))
		if back, err := w.recut(ctx, from, cuts); err != nil || w.idle() {
			return back, err
		}
	}
	return from, nil
}

// recut makes leaves of what is pending, the last bytes of which end at from in
// the old file. At a cut that is one of cuts it forgets the bytes behind: they
// can be taken over whole. It returns where w is then in the old file.
func (w *Writer) recut(ctx context.Context, from int64, cuts []int64) (int64, error) {
	for {
		ok, err := w.cutOne(ctx)
		if err != nil || !ok {
			return from, err
		}
		if at := from - int64(w.tail-w.head); slices.Contains(cuts, at) {
			w.tail = w.head
			return at, nil
		}
	}
}
