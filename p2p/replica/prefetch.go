package replica

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/p2p/exchange"
)

// Limits of Prefetch: as many blocks may be on their way, in messages with so many,
// and so many messages at once, each with about exchange.MaxPayload bytes at most. A
// message has less than a MiB as a rule: it then stays in the processor's cache while it
// is encrypted, and is received without being moved.
const (
	maxPrefetch      = 256
	prefetchBatch    = 12
	prefetchMessages = 8
	prefetchTimeout  = 30 * time.Second
)

// errNotPrefetched says that a block did not come with the others.
var errNotPrefetched = errors.New("not prefetched")

type prefetches struct {
	room chan struct{} // one for each message

	mu     sync.Mutex
	flying int // blocks
}

func (p *prefetches) init() { p.room = make(chan struct{}, prefetchMessages) }

// Prefetch has blocks that are not here fetched in the background, many at once
// from each peer, and kept as Get does. It is a hint: when too much is on its way,
// and where there is nowhere to keep a block, it does nothing. A Get of a block on
// its way waits for it. ctx matters to Prefetch itself only.
func (r *Replica) Prefetch(ctx context.Context, cids []cas.CID) {
	cl := r.shared()
	if cl == nil || len(cids) == 0 {
		return
	}
	has, err := r.o.Local.Has(ctx, cids...)
	if err != nil {
		return
	}
	var cached []bool
	if r.o.Cache != nil {
		if cached, err = r.o.Cache.Has(ctx, cids...); err != nil {
			cached = nil
		}
	}
	from := make(map[*peer]*batch)
	for i, c := range cids {
		hash := c.Hash()
		if has[i] || cached != nil && cached[i] || !c.Defined() ||
			r.o.Cache == nil && !(cl.owns && cl.table.Owns(&hash, r.self)) {
			continue
		}
		order := r.order(cl, &hash)
		if len(order) == 0 || r.grade(order[0]) >= demoted || !r.reads.take() {
			continue
		}
		fl, lead := r.flights.join(c, true)
		if !lead {
			r.reads.give(1)
			continue
		}
		b := from[order[0]]
		if b == nil {
			b = &batch{}
			from[order[0]] = b
		}
		b.cids, b.flights = append(b.cids, c), append(b.flights, fl)
		if len(b.cids) == prefetchBatch {
			r.fetchMany(cl, order[0], b)
			delete(from, order[0])
		}
	}
	for p, b := range from {
		r.fetchMany(cl, p, b)
	}
}

// batch is blocks that are fetched together.
type batch struct {
	cids    []cas.CID
	flights []*flight
}

func (p *prefetches) take() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.flying >= maxPrefetch {
		return false
	}
	p.flying++
	return true
}

func (p *prefetches) give(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flying -= n
}

// fetchMany fetches the batch in the background.
func (r *Replica) fetchMany(cl *cluster, p *peer, b *batch) {
	n := 0 // that have landed
	finish := func() {
		for ; n < len(b.cids); n++ {
			r.flights.land(b.cids[n], b.flights[n], cas.Block{}, errNotPrefetched)
		}
		r.reads.give(len(b.cids))
	}
	started := r.spawn(func() {
		defer finish()
		select {
		case r.reads.room <- struct{}{}:
			defer func() { <-r.reads.room }()
		case <-r.ctx.Done():
			return
		}
		ctx, cancel := context.WithTimeout(r.ctx, prefetchTimeout)
		defer cancel()
		err := p.GetMany(ctx, b.cids, func(came exchange.Parcel) error {
			for _, err := range came.Errs {
				if err != nil {
					r.blame(attempt{p: p, err: err}, &failures{of: make(map[*peer]bool)})
				}
			}
			r.recent.add(r.keepAll(cl, came))
			for _, err := range came.Errs {
				r.flights.land(b.cids[n], b.flights[n], cas.Block{}, err)
				n++
			}
			return nil
		})
		switch {
		case err == nil:
			p.answered(0)
		case r.ctx.Err() == nil:
			r.blame(attempt{p: p, err: err}, &failures{of: make(map[*peer]bool)})
		}
	})
	if !started {
		finish()
	}
}

// keepAll is keep of what came. What it returns is the parcel whose Free says that this
// node's memory has no use for it any more; the cache may have.
func (r *Replica) keepAll(cl *cluster, came exchange.Parcel) exchange.Parcel {
	var foreign []cas.Block
	var at []int
	for i, b := range came.Blocks {
		hash := b.CID().Hash()
		switch {
		case came.Errs[i] != nil:
		case r.o.Cache == nil || came.At[i] < 0 || cl.owns && cl.table.Owns(&hash, r.self):
			r.keep(cl, b, false)
		default:
			foreign, at = append(foreign, b), append(at, came.At[i])
		}
	}
	if len(foreign) == 0 {
		return came
	}
	var users atomic.Int32
	users.Store(2)
	free := came.Free
	came.Free = func() {
		if users.Add(-1) == 0 {
			free()
		}
	}
	r.o.Cache.Adopt(came.Memory, foreign, at, came.Free)
	return came
}
