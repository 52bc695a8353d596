package manifest

import (
	"context"
	"slices"

	"github.com/cairnfs/cairn/cas"
)

// cursor walks over an old tree, loading only the nodes on its way. It stands on
// a link: a leaf, or a whole subtree that it has not looked into.
type cursor struct {
	store  cas.Getter
	size   int64   // of the file
	path   []frame // from the root's links downwards
	height int     // of the tree: how many frames lead to a leaf

	nodes []loaded // the node last loaded at each depth
	leaf  loaded   // the leaf last read
	buf   []byte   // of leaf
}

// frame is one node on the path and the place in it.
type frame struct {
	links []link
	ends  []int64 // in the file
	start int64   // in the file
	i     int
	data  []byte // content of a link without CID
}

// loaded is a block once read.
type loaded struct {
	cid  cas.CID
	node *node
	data []byte
}

// newCursor returns a cursor over root. The height of the tree is measured near
// the offset at, where the cursor will go anyway.
func newCursor(ctx context.Context, store cas.Getter, root Root, at int64) (*cursor, error) {
	c := &cursor{store: store, size: root.Size}
	if root.Size < 0 || root.Size > 0 && !root.CID.Defined() ||
		root.Size == 0 && root.CID.Codec() == cas.Raw && root.CID != cas.Sum(cas.Raw, nil) {
		return nil, badNode(root.CID, "file said to have %d bytes", root.Size)
	}
	if root.CID.Codec() == cas.Raw {
		c.path = []frame{{links: []link{{root.CID, root.Size, root.Size}}, ends: []int64{root.Size}}}
	} else if root.CID.Defined() {
		if err := c.enter(ctx, root.link(), 0); err != nil {
			return nil, err
		}
	}
	if root.Size == 0 {
		return c, nil
	}
	at = min(max(at, 0), root.Size-1)
	if err := c.seek(ctx, at); err != nil {
		return nil, err
	}
	for !c.atLeaf() {
		if err := c.descend(ctx); err != nil {
			return nil, err
		}
	}
	c.height = len(c.path)
	return c, nil
}

func (c *cursor) top() *frame { return &c.path[len(c.path)-1] }

// link returns the link that c stands on and the offset where its content starts.
func (c *cursor) link() (l link, start int64) {
	f := c.top()
	return f.links[f.i], f.ends[f.i] - f.links[f.i].size
}

// level returns the level of the link that c stands on: 0 for a leaf. In a tree
// of uneven depth, which Cairn does not make, it may be anything for a node.
func (c *cursor) level() int {
	if c.atLeaf() {
		return 0
	}
	return c.height - len(c.path)
}

// atLeaf reports whether c stands on a leaf or on bytes within a node.
func (c *cursor) atLeaf() bool {
	l, _ := c.link()
	return l.cid.Codec() != cas.DagPB
}

// seek moves c to the offset off, which must lie in the file: to the largest
// subtree that starts there, else to the leaf in which off lies.
func (c *cursor) seek(ctx context.Context, off int64) error {
	for len(c.path) > 1 {
		f := c.top()
		if f.start < off && off < f.ends[len(f.ends)-1] {
			break
		}
		c.path = c.path[:len(c.path)-1]
	}
	for {
		f := c.top()
		if next := f.i + 1; next < len(f.ends) && f.ends[f.i] == off && f.ends[next] > off {
			f.i = next
		} else {
			f.i, _ = slices.BinarySearch(f.ends, off+1)
		}
		if _, start := c.link(); start == off || c.atLeaf() {
			return nil
		}
		if err := c.descend(ctx); err != nil {
			return err
		}
	}
}

// descend looks into the subtree that c stands on and moves to its first part
// that is not empty.
func (c *cursor) descend(ctx context.Context) error {
	l, start := c.link()
	return c.enter(ctx, l, start)
}

// enter puts the node l, whose content starts at start, on the path.
func (c *cursor) enter(ctx context.Context, l link, start int64) error {
	depth := len(c.path)
	if len(c.nodes) == depth {
		c.nodes = append(c.nodes, loaded{})
	}
	if c.nodes[depth].cid != l.cid {
		n, err := getNode(ctx, c.store, l.cid)
		if err != nil {
			return err
		}
		c.nodes[depth] = loaded{cid: l.cid, node: n}
	}
	n := c.nodes[depth].node
	if err := checkFile(l, n, depth); err != nil {
		return err
	}
	f := frame{links: n.links, ends: make([]int64, 0, len(n.ends)+1), start: start}
	if len(n.data) > 0 {
		f.data = n.data
		f.links = slices.Concat([]link{{size: int64(len(n.data))}}, n.links)
		f.ends = append(f.ends, start+int64(len(n.data)))
	}
	for _, end := range n.ends {
		f.ends = append(f.ends, start+end)
	}
	f.i, _ = slices.BinarySearch(f.ends, start+1)
	c.path = append(c.path, f)
	return nil
}

// bytes returns the content of the leaf that c stands on; valid until the next
// call.
func (c *cursor) bytes(ctx context.Context) ([]byte, error) {
	l, _ := c.link()
	if !l.cid.Defined() {
		return c.top().data, nil
	}
	if c.leaf.cid != l.cid {
		c.leaf = loaded{}
		if int64(cap(c.buf)) < l.size {
			c.buf = make([]byte, min(l.size, cas.MaxBlockSize))
		}
		b, err := c.store.Get(ctx, l.cid, c.buf)
		if err != nil {
			return nil, err
		}
		c.leaf = loaded{cid: l.cid, data: b.Data()}
	}
	return c.leaf.data, checkLeaf(l, len(c.leaf.data))
}
