package node

import (
	"context"
	"errors"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/node/control"
)

// Check verifies, in this order, that stored blocks have the right bytes, that the
// namespace agrees with itself, and that all blocks which files and pins refer to
// are there; on a member of a cluster that is on this node or, durably, on another.
// It runs beside other work. What bad is told about the namespace has
// no CID. It needs some 60 bytes of memory for each inner node of a file.
func (n *Node) Check(ctx context.Context, bad func(cas.CID, error) error) error {
	c := &checker{n: n, bad: bad, seen: make(map[cas.CID]bool), alone: n.cluster.Load() == nil}
	clustered, err := n.clustered()
	if err != nil {
		return err
	}
	c.part = c.alone && clustered
	err = n.blocks.Check(ctx, func(cid cas.CID, err error) { c.report(cid, err) })
	if err = errors.Join(err, c.failed); err != nil {
		return err
	}
	err = n.state.Check(ctx, func(p namespace.Problem) { c.report(cas.CID{}, errors.New(p.String())) })
	if err = errors.Join(err, c.failed); err != nil {
		return err
	}
	if err := c.files(ctx); err != nil {
		return err
	}
	if err := n.Pins(ctx, func(p control.Pin) error { return c.tree(ctx, p.CID) }); err != nil {
		return err
	}
	return c.flush(ctx)
}

// checker is one run of Check.
type checker struct {
	n      *Node
	alone  bool // no other node can be asked
	part   bool // and others have what this node has not
	bad    func(cas.CID, error) error
	failed error            // of bad
	seen   map[cas.CID]bool // nodes that were looked at, and whatever was reported
	leaves []cas.CID        // to be looked for
}

// maxLeaves is how many leaves are looked for at a time.
const maxLeaves = 1024

func (c *checker) report(cid cas.CID, err error) {
	if c.failed != nil || cid.Defined() && c.seen[cid] {
		return
	}
	if cid.Defined() {
		c.seen[cid] = true
	}
	c.failed = c.bad(cid, err)
}

// files follows the content of every file that has a name.
func (c *checker) files(ctx context.Context) error {
	for dirs := []namespace.Ino{namespace.RootIno}; len(dirs) > 0; {
		dir := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		var files []namespace.Ino
		err := c.n.state.ReadDir(dir, 0, func(d namespace.Dentry) bool {
			switch d.Type {
			case namespace.TypeDir:
				dirs = append(dirs, d.Ino)
			case namespace.TypeRegular:
				files = append(files, d.Ino)
			}
			return true
		})
		if err != nil && !errors.Is(err, namespace.ErrNotFound) {
			return err
		}
		for _, ino := range files {
			inode, err := c.n.state.Inode(ino)
			if errors.Is(err, namespace.ErrNotFound) {
				continue // removed meanwhile
			}
			if err != nil {
				return err
			}
			if root := inode.Content.Root; root.Defined() {
				if err := c.tree(ctx, root); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// tree looks for all blocks from root down.
func (c *checker) tree(ctx context.Context, root cas.CID) error {
	for todo := []cas.CID{root}; len(todo) > 0; {
		cid := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if cid.Codec() == cas.Raw {
			if c.leaves = append(c.leaves, cid); len(c.leaves) >= maxLeaves {
				if err := c.flush(ctx); err != nil {
					return err
				}
			}
			continue
		}
		if c.seen[cid] {
			continue
		}
		links, err := manifest.Links(ctx, &c.n.stores, cid)
		switch {
		case c.part && errors.Is(err, cas.ErrNotFound):
			c.seen[cid] = true
		case err == nil:
			c.seen[cid] = true
			todo = append(todo, links...)
		case errors.Is(err, cas.ErrNotFound) || errors.Is(err, cas.ErrCorrupt):
			c.report(cid, err)
		default:
			return err
		}
		if c.failed != nil {
			return c.failed
		}
	}
	return nil
}

// flush looks for the leaves collected so far.
func (c *checker) flush(ctx context.Context) error {
	has, err := c.n.blocks.Has(ctx, c.leaves...)
	if err != nil {
		return err
	}
	if !c.alone {
		leaves := c.leaves[:0]
		for i, cid := range c.leaves {
			if !has[i] {
				leaves = append(leaves, cid)
			}
		}
		c.leaves = leaves
		if has, err = c.n.stores.Has(ctx, leaves...); err != nil {
			return err
		}
	}
	for i, cid := range c.leaves {
		if has[i] || c.part {
			continue
		}
		// Its owners have not got it yet, but another node may.
		if _, err := c.n.stores.Get(ctx, cid, nil); err != nil {
			c.report(cid, err)
		}
	}
	c.leaves = c.leaves[:0]
	return c.failed
}
