package manifest

import (
	"context"
	"slices"

	"github.com/cairnfs/cairn/cas"
)

// tree builds the levels above the leaves from left to right. It holds the group
// under way on each level, and nothing else: groups that have ended are stored
// and stand as one link in the group above.
//
// Items may be added on any level as long as the levels below have no group
// under way. That is how a whole subtree of an old file is taken over: a group
// restarts empty after each end, so what the old tree grouped from the same
// starting point would come out the same.
//
// Invariants: no group under way satisfies the condition of its end; the highest
// level is not empty, unless nothing was added at all.
type tree struct {
	shape
	put    cas.Putter
	levels []group
	buf    []byte // for encoding nodes that are stored at once
}

// group is the group under way on one level.
type group struct {
	links []link
	size  int64 // bytes of content below
}

// add appends n items equal to l on the given level, in O(log n).
func (t *tree) add(ctx context.Context, level int, l link, n int64) error {
	for n > 0 {
		for len(t.levels) <= level {
			// What lies behind the end is empty, but may have room for links.
			t.levels = slices.Grow(t.levels, 1)[:len(t.levels)+1]
		}
		g := &t.levels[level]
		room := int64(t.untilEnd(len(g.links), l.cid))
		if full := n / room; full > 1 && len(g.links) == 0 {
			up, err := t.store(ctx, slices.Repeat([]link{l}, int(room)))
			if err != nil {
				return err
			}
			if err := t.add(ctx, level+1, up, full); err != nil {
				return err
			}
			n -= full * room
			continue
		}
		k := min(n, room)
		for range k {
			g.links = append(g.links, l)
		}
		g.size += k * l.size
		if n -= k; k < room {
			continue
		}
		up, err := t.store(ctx, g.links)
		if err != nil {
			return err
		}
		g.links, g.size = g.links[:0], 0
		if err := t.add(ctx, level+1, up, 1); err != nil {
			return err
		}
	}
	return nil
}

// store puts the node with the given children and returns the link to it.
func (t *tree) store(ctx context.Context, links []link) (link, error) {
	b, l, err := nodeOf(links, t.buf[:0])
	if err != nil {
		return link{}, err
	}
	t.buf = b.Data()
	return l, t.put.Put(ctx, b)
}

// nodeOf encodes the node with the given children into buf, or into a buffer of
// its own if that is nil.
func nodeOf(links []link, buf []byte) (cas.Block, link, error) {
	n := fileNode(links)
	if buf == nil {
		buf = make([]byte, 0, 64+56*len(links))
	}
	b, tsize, err := n.block(buf)
	return b, link{b.CID(), n.size, tsize}, err
}

// idleBelow reports whether no level below the given one has a group under way.
func (t *tree) idleBelow(level int) bool {
	for i := range min(level, len(t.levels)) {
		if len(t.levels[i].links) > 0 {
			return false
		}
	}
	return true
}

// seal returns the link to the root that the tree would have if it ended after
// the given further leaves. It stores the nodes this takes, together with blocks,
// in one Put. The tree itself does not change.
func (t *tree) seal(ctx context.Context, leaves []link, blocks []cas.Block) (link, error) {
	items := leaves
	for level := 0; ; level++ {
		if level < len(t.levels) {
			items = slices.Concat(t.levels[level].links, items)
		}
		if level >= len(t.levels)-1 && len(items) <= 1 {
			break
		}
		var up []link
		for len(items) > 0 {
			n := t.firstGroup(items)
			b, l, err := nodeOf(items[:n], nil)
			if err != nil {
				return link{}, err
			}
			blocks, up, items = append(blocks, b), append(up, l), items[n:]
		}
		items = up
	}
	if len(items) == 0 {
		b, l, err := nodeOf(nil, nil)
		if err != nil {
			return link{}, err
		}
		blocks, items = append(blocks, b), []link{l}
	}
	if len(blocks) > 0 {
		if err := t.put.Put(ctx, blocks...); err != nil {
			return link{}, err
		}
	}
	return items[0], nil
}

// firstGroup returns how many of the items make the first group.
func (t *tree) firstGroup(items []link) int {
	for i := range items {
		if t.untilEnd(i, items[i].cid) == 1 {
			return i + 1
		}
	}
	return len(items)
}
