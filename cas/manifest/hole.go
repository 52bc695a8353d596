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
	}
	hole := w.holes.leaf()
	w.inHoles += full * hole.size
	return w.tree.add(ctx, 0, hole, full)
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

// holes knows the leaf of nothing but zeros, and the nodes of nothing but that.
type holes struct {
	*shape
	links []link // a full leaf, a node of those, a node of these, …; made when asked for
}

// leaf returns the link to a full leaf of zeros.
func (h *holes) leaf() link {
	if len(h.links) == 0 {
		size := int64(h.maxChunk)
		h.links = append(h.links, link{cas.Sum(cas.Raw, make([]byte, size)), size, size})
	}
	return h.links[0]
}

// has reports whether l, on the given level of a tree of the same Format, is a
// leaf or node of nothing but full leaves of zeros, as far as that can be told
// by its CID: grouped from a start of their own.
func (h *holes) has(l link, level int) (bool, error) {
	if l.size%int64(h.maxChunk) != 0 || level < 0 {
		return false, nil
	}
	h.leaf()
	for len(h.links) <= level {
		below := h.links[len(h.links)-1]
		n := h.untilEnd(0, below.cid)
		if below.size > l.size/int64(n) {
			return false, nil // nor is any higher one that small
		}
		_, up, err := nodeOf(slices.Repeat([]link{below}, n), nil)
		if err != nil {
			return false, err
		}
		h.links = append(h.links, up)
	}
	return h.links[level] == l, nil
}

// at moves c, which has sought from, to the largest hole that starts there and
// ends at to or before. If there is none it returns 0, and c stands on a leaf.
func (h *holes) at(ctx context.Context, c *cursor, from, to int64) (int64, error) {
	for {
		l, start := c.link()
		if start == from && start+l.size <= to {
			if hole, err := h.has(l, c.level()); err != nil || hole {
				return l.size, err
			}
		}
		if c.atLeaf() {
			return 0, nil
		}
		if err := c.descend(ctx); err != nil {
			return 0, err
		}
	}
}

// span returns the end of the leaf or hole in which from lies, at most to, and
// whether it is a hole.
func (h *holes) span(ctx context.Context, c *cursor, from, to int64) (end int64, hole bool, err error) {
	if err := c.seek(ctx, from); err != nil {
		return 0, false, err
	}
	if l, start := c.link(); start < from { // in the middle of a leaf
		hole, err := h.has(l, c.level())
		return min(start+l.size, to), hole, err
	}
	if n, err := h.at(ctx, c, from, to); err != nil || n > 0 {
		return from + n, true, err
	}
	l, start := c.link()
	return min(start+l.size, to), false, nil
}

// count returns how many bytes of [from, to) lie in holes. It reads the nodes
// above them and no leaf.
func (h *holes) count(ctx context.Context, c *cursor, from, to int64) (int64, error) {
	var n int64
	for from < to {
		end, hole, err := h.span(ctx, c, from, to)
		if err != nil {
			return 0, err
		}
		if hole {
			n += end - from
		}
		from = end
	}
	return n, nil
}

// ranges are ranges of a file, in order, that do not touch each other.
type ranges []byteRange

type byteRange struct{ from, to int64 }

// add appends a range that begins at the end of the last one or behind it.
func (s *ranges) add(from, to int64) {
	if n := len(*s); n > 0 && (*s)[n-1].to == from {
		(*s)[n-1].to = to
		return
	}
	*s = append(*s, byteRange{from, to})
}

// between returns what of [0, size) is in none of s.
func (s ranges) between(size int64) ranges {
	var gaps ranges
	at := int64(0)
	for _, r := range s {
		if at < r.from {
			gaps = append(gaps, byteRange{at, r.from})
		}
		at = r.to
	}
	if at < size {
		gaps = append(gaps, byteRange{at, size})
	}
	return gaps
}

func (s ranges) bytes() (n int64) {
	for _, r := range s {
		n += r.to - r.from
	}
	return n
}

// account adds the holes of the subtrees that were taken whole out of the tree
// root, on which c stands. It looks at them or at the rest of the tree, whichever
// is less, and at nothing if there are no holes in it.
func (w *Writer) account(ctx context.Context, c *cursor, root Root) error {
	taken := w.taken
	w.taken = nil
	if root.Holes == 0 || len(taken) == 0 {
		return nil
	}
	total, sign, look := int64(0), int64(1), taken
	if gaps := taken.between(root.Size); gaps.bytes() < taken.bytes() {
		total, sign, look = root.Holes, -1, gaps
	}
	for _, r := range look {
		n, err := w.holes.count(ctx, c, r.from, r.to)
		if err != nil {
			return w.fail(err)
		}
		total += sign * n
	}
	w.inHoles += max(total, 0)
	return nil
}
