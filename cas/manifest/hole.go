package manifest

import (
	"context"
	"fmt"
	"slices"

	"github.com/cairnfs/cairn/cas"
)

// A hole is a run of zero bytes. From the first chunk that starts in it, it is
// cut into leaves of maximal length, all the same one. So the length of a hole
// matters only through its logarithm: leaves, and the nodes above them, are
// counted by division.

// WriteZeros appends n zero bytes. That takes O(1), and O(log n) once something
// else follows. Errors: as Write.
func (w *Writer) WriteZeros(ctx context.Context, n int64) error {
	if w.err != nil {
		return w.err
	}
	if n < 0 {
		return fmt.Errorf("manifest: write of %d zeros", n)
	}
	if err := w.extend(n); err != nil {
		return err
	}
	return w.fail(w.writeZeros(ctx, n))
}

func (w *Writer) writeZeros(ctx context.Context, n int64) error {
	for w.head < w.tail && n > 0 {
		have := w.tail - w.head
		k := int(min(n, int64(w.tree.maxChunk-have)))
		if err := w.reserve(ctx, k, 0); err != nil {
			return err
		}
		clear(w.buf[w.tail : w.tail+k])
		w.tail += k
		n -= int64(k)
		if have+k < w.tree.maxChunk {
			break
		}
		length := w.tree.chunker.Cut(w.pending())
		if err := w.emit(ctx, w.buf[w.head:w.head+length]); err != nil {
			return err
		}
		if w.head += length; length >= have {
			w.zeros = int64(w.tail - w.head)
			w.head = w.tail
		}
	}
	w.zeros += n
	return w.flush(ctx)
}

// settle moves the full leaves among pending zeros into the tree. Zeros that come
// from several calls are counted together until then.
func (w *Writer) settle(ctx context.Context) error {
	full := w.zeros / int64(w.tree.maxChunk)
	if full == 0 {
		return nil
	}
	w.zeros %= int64(w.tree.maxChunk)
	if !w.holeStored {
		b, err := cas.NewBlock(cas.Raw, make([]byte, w.tree.maxChunk))
		if err != nil {
			return err
		}
		if err := w.store.Put(ctx, b); err != nil {
			return err
		}
		w.holeStored = true
		if len(w.holes) == 0 {
			w.holes = []link{w.holeLeaf(b.CID())}
		}
	}
	return w.tree.add(ctx, 0, w.holes[0], full)
}

// materialise turns pending zeros into leaves and the rest of them into bytes.
func (w *Writer) materialise(ctx context.Context) error {
	if w.zeros == 0 {
		return nil
	}
	if err := w.settle(ctx); err != nil {
		return err
	}
	n := int(w.zeros)
	if err := w.reserve(ctx, n, 0); err != nil {
		return err
	}
	clear(w.buf[w.tail : w.tail+n])
	w.tail, w.zeros = w.tail+n, 0
	return nil
}

func (w *Writer) holeLeaf(c cas.CID) link {
	return link{c, int64(w.tree.maxChunk), int64(w.tree.maxChunk)}
}

// isHole reports whether l, on the given level of a tree of the same Format, is
// a leaf or node of nothing but full leaves of zeros, as far as that can be told
// by its CID: grouped from a start of their own.
func (w *Writer) isHole(l link, level int) (bool, error) {
	if l.size%int64(w.tree.maxChunk) != 0 || level < 0 {
		return false, nil
	}
	if len(w.holes) == 0 {
		w.holes = append(w.holes, w.holeLeaf(cas.Sum(cas.Raw, make([]byte, w.tree.maxChunk))))
	}
	for len(w.holes) <= level {
		below := w.holes[len(w.holes)-1]
		n := w.tree.untilEnd(0, below.cid)
		if below.size > l.size/int64(n) {
			return false, nil // nor is any higher one that small
		}
		_, up, err := nodeOf(slices.Repeat([]link{below}, n), nil)
		if err != nil {
			return false, err
		}
		w.holes = append(w.holes, up)
	}
	return w.holes[level] == l, nil
}
