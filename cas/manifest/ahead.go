package manifest

import (
	"context"
	"slices"
	"sync"

	"github.com/cairnfs/cairn/cas"
)

// Prefetcher is a store that can have blocks ready before they are asked for,
// because they are elsewhere.
type Prefetcher interface {
	// Ahead returns how far ahead of a reader blocks should be on their way, in
	// bytes; 0 says that there is nothing to win.
	Ahead() int64
	// Prefetch begins to fetch blocks. It does not wait for them.
	Prefetch(ctx context.Context, cids []cas.CID)
}

// ahead notices that a file is read from front to back, and names the blocks that
// come next to the store. Reads may overtake each other a little, as those of the
// kernel's read-ahead do.
type ahead struct {
	store Prefetcher // nil: there is none

	mu    sync.Mutex
	next  int64 // where the next read is expected
	named int64 // up to where blocks were named
}

const (
	// disorder is how far a read may be from where it is expected, in bytes.
	disorder = 4 << 20
	// nameAtOnce is how many bytes are named at a time, about.
	nameAtOnce = 2 << 20
)

// read takes note of a read of [off, off+n) and returns the range whose blocks are
// to be named, empty if none.
func (a *ahead) read(off, n, size, window int64) (from, to int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if off < a.next-disorder || off > a.next+disorder {
		a.next, a.named = off+n, off+n // elsewhere: not from front to back yet
		return 0, 0
	}
	a.next = max(a.next, off+n)
	from, to = a.named, min(a.next+window, size)
	if to-from < nameAtOnce && to < size || from >= to {
		return 0, 0
	}
	a.named = to
	return from, to
}

// lookAhead has the store fetch what is likely to be read after [off, off+n). What
// fails here fails again when it is read.
func (r *Reader) lookAhead(ctx context.Context, off, n int64) {
	if r.ahead.store == nil {
		return
	}
	window := r.ahead.store.Ahead()
	if window == 0 || r.root.Size <= nameAtOnce/8 {
		return
	}
	from, to := r.ahead.read(off, n, r.root.Size, window)
	if from >= to {
		return
	}
	cids, err := r.src.leavesOf(ctx, r.root.link(), from, to, place{}, nil)
	if err == nil && len(cids) > 0 {
		r.ahead.store.Prefetch(ctx, cids)
	}
}

// announce has the store fetch the leaves of a piece, which is read soon.
func (r *Reader) announce(ctx context.Context, p *piece) {
	if r.ahead.store == nil || len(p.leaves) == 0 || r.ahead.store.Ahead() == 0 {
		return
	}
	cids := make([]cas.CID, len(p.leaves))
	for i, l := range p.leaves {
		cids[i] = l.cid
	}
	r.ahead.store.Prefetch(ctx, cids)
}

// leavesOf appends the leaves below l that begin in [from, to).
func (s *source) leavesOf(ctx context.Context, l link, from, to int64, at place, cids []cas.CID) ([]cas.CID, error) {
	if l.cid.Codec() == cas.Raw {
		if from > 0 {
			return cids, nil // named with what came before
		}
		return append(cids, l.cid), nil
	}
	n, err := s.node(ctx, l, at.depth)
	if err != nil {
		return cids, err
	}
	i, _ := slices.BinarySearch(n.ends, from+1)
	for ; i < len(n.links) && n.ends[i]-n.links[i].size < to; i++ {
		if n.links[i].size == 0 {
			continue
		}
		start := n.ends[i] - n.links[i].size
		if cids, err = s.leavesOf(ctx, n.links[i], max(0, from-start), to-start, at.of(n.links, i), cids); err != nil {
			return cids, err
		}
	}
	return cids, nil
}
