// Package gc finds the blocks that nothing refers to, and has a store forget them.
//
// It is the part of a collection that needs no agreement: Walk follows content down
// to its leaves, Renew has what a tree consists of promised again, Sweep marks all
// that is referred to and deletes the rest, and a Recorder knows what was promised
// meanwhile. When that may be done is decided in namespace (collection.go), and by
// node, which brings the two together.
//
// What is kept in memory of a block are 8 bytes of its hash: two that agree in these
// are taken for one, so that now and then a block is kept that could go, never the
// other way round. Of inner nodes the whole hash is kept, since what lies below a node
// that is taken for another would not be marked.
package gc

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
)

// ErrMissing says that blocks are not where they were relied upon.
var ErrMissing = errors.New("blocks are missing")

// Renewer is a store of which promises can be renewed. A store that is none gives
// them with Has.
type Renewer interface {
	// Renew says which blocks are stored, wherever a Put of them would have
	// brought them, and promises to keep these as if they had been put now.
	Renew(ctx context.Context, cids ...cas.CID) ([]bool, error)
}

// Promise says which blocks the store has, and has it promise to keep these.
func Promise(ctx context.Context, store cas.Store, cids ...cas.CID) ([]bool, error) {
	if r, ok := store.(Renewer); ok {
		return r.Renew(ctx, cids...)
	}
	return store.Has(ctx, cids...)
}

// renewBatch is how many blocks are renewed at a time.
const renewBatch = 1024

// Renew has the blocks of all trees from roots down promised again. get reads them,
// which is store or in front of it. The error is ErrMissing if some are not there.
func Renew(ctx context.Context, store cas.Store, get cas.Getter, roots []cas.CID) error {
	r := renewal{store: store}
	w := Walker{Get: get}
	for _, root := range roots {
		if err := w.Walk(ctx, root, func(c cas.CID) error { return r.add(ctx, c) }); err != nil {
			return err
		}
	}
	return r.flush(ctx)
}

// RenewAll is Renew of single blocks.
func RenewAll(ctx context.Context, store cas.Store, cids []cas.CID) error {
	r := renewal{store: store}
	for _, c := range cids {
		if err := r.add(ctx, c); err != nil {
			return err
		}
	}
	return r.flush(ctx)
}

type renewal struct {
	store   cas.Store
	batch   []cas.CID
	missing int
	first   cas.CID // that is missing
}

func (r *renewal) add(ctx context.Context, c cas.CID) error {
	if r.batch = append(r.batch, c); len(r.batch) < renewBatch {
		return nil
	}
	return r.some(ctx)
}

func (r *renewal) some(ctx context.Context) error {
	if len(r.batch) == 0 {
		return nil
	}
	has, err := Promise(ctx, r.store, r.batch...)
	if err != nil {
		return err
	}
	for i, c := range r.batch {
		if has[i] {
			continue
		}
		if r.missing++; r.missing == 1 {
			r.first = c
		}
	}
	r.batch = r.batch[:0]
	return nil
}

func (r *renewal) flush(ctx context.Context) error {
	if err := r.some(ctx); err != nil {
		return err
	}
	if r.missing > 0 {
		return &cas.BlockError{Op: "renew", CID: r.first, Err: fmt.Errorf("%w: this one and %d more", ErrMissing, r.missing-1)}
	}
	return nil
}

// Walker goes through trees. Inner nodes that were gone through are not again, in
// whichever tree they stand.
type Walker struct {
	Get  cas.Getter
	seen map[[cas.HashSize]byte]struct{} // inner nodes
}

// Nodes returns how many inner nodes were gone through.
func (w *Walker) Nodes() int { return len(w.seen) }

// Walk calls each for the block root and all that it refers to, directly or not;
// leaves may come several times. What is far away is fetched ahead. It fails with the
// error of the block that cannot be read, or with that of each.
func (w *Walker) Walk(ctx context.Context, root cas.CID, each func(cas.CID) error) error {
	ahead, _ := w.Get.(manifest.Prefetcher)
	var nodes []cas.CID
	for todo := []cas.CID{root}; len(todo) > 0; {
		c := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if c.Codec() != cas.Raw && !w.enter(c) {
			continue
		}
		if err := each(c); err != nil {
			return err
		}
		if c.Codec() == cas.Raw {
			continue
		}
		links, err := manifest.Links(ctx, w.Get, c)
		if err != nil {
			return err
		}
		nodes = nodes[:0]
		for _, l := range links {
			if l.Codec() != cas.Raw {
				nodes = append(nodes, l)
			} else if err := each(l); err != nil {
				return err
			}
		}
		slices.Reverse(nodes)
		todo = append(todo, nodes...)
		if ahead != nil && len(nodes) > 1 && ahead.Ahead() > 0 {
			ahead.Prefetch(ctx, slices.Clone(nodes))
		}
	}
	return ctx.Err()
}

// enter notes the inner node and reports whether it is a new one.
func (w *Walker) enter(c cas.CID) bool {
	if w.seen == nil {
		w.seen = make(map[[cas.HashSize]byte]struct{})
	}
	n := len(w.seen)
	w.seen[c.Hash()] = struct{}{}
	return len(w.seen) > n
}
