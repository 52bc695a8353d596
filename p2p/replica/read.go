package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/exchange"
)

// How long a single request may take.
const (
	getTimeout  = 10 * time.Second
	deadTimeout = 2 * time.Second // of a peer that is said not to answer
)

// flights are the blocks on their way here, so that each is fetched once.
type flights struct {
	mu sync.Mutex
	m  map[cas.CID]*flight
}

type flight struct {
	done  chan struct{} // closed when block or err is set
	bulk  bool          // with others, by Prefetch, from one peer only; the block is then in recent
	block cas.Block
	err   error
}

func (f *flights) init() { f.m = make(map[cas.CID]*flight) }

// join returns the flight of a block, and whether the caller is the one to land it.
func (f *flights) join(c cas.CID, bulk bool) (_ *flight, lead bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.m[c]; fl != nil {
		return fl, false
	}
	fl := &flight{done: make(chan struct{}), bulk: bulk}
	f.m[c] = fl
	return fl, true
}

// land hands out a block, or why there is none.
func (f *flights) land(c cas.CID, fl *flight, b cas.Block, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.m, c)
	fl.block, fl.err = b, err
	close(fl.done)
}

// Get returns the block from here, or else from whoever has it. What was fetched is
// kept: in the local store if this node owns it or its own copy was damaged,
// otherwise in the cache. What Prefetch has just brought is still in memory.
//
// When no node that answers has the block, the error is cas.ErrNotFound, and
// p2p.ErrUnreachable as well if some did not answer.
func (r *Replica) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	if ctx.Err() == nil {
		if b, ok := r.recent.take(c, buf); ok {
			return b, nil
		}
	}
	b, localErr := r.o.Local.Get(ctx, c, buf)
	cl := r.shared()
	if localErr == nil || cl == nil || !c.Defined() || ctx.Err() != nil {
		return b, localErr
	}
	heal := errors.Is(localErr, cas.ErrCorrupt)
	if r.o.Cache != nil {
		if b, err := r.o.Cache.Get(ctx, c, buf); err == nil {
			if heal {
				r.keep(cl, b, heal)
			}
			return b, nil
		}
	}
	b, err := r.remote(ctx, cl, c, buf, heal)
	if errors.Is(err, cas.ErrNotFound) && !errors.Is(localErr, cas.ErrNotFound) {
		return b, localErr
	}
	return b, err
}

// remote gets a block from others, once however many ask for it.
func (r *Replica) remote(ctx context.Context, cl *cluster, c cas.CID, buf []byte, heal bool) (cas.Block, error) {
	for {
		fl, lead := r.flights.join(c, false)
		if lead {
			b, err := r.fetch(ctx, cl, c)
			if errors.Is(err, cas.ErrNotFound) && !errors.Is(err, p2p.ErrUnreachable) {
				// It may have been given to an owner who was asked before, and
				// dropped by one who was asked after that.
				b, err = r.fetch(ctx, cl, c)
			}
			if err == nil {
				r.keep(cl, b, heal)
			}
			r.flights.land(c, fl, b, err)
			return b, err
		}
		var late <-chan time.Time
		if fl.bulk {
			// It comes from one peer, which may be a bad one.
			timer := time.NewTimer(stallAtLeast)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-fl.done:
		case <-ctx.Done():
			return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Err: ctx.Err()}
		case <-late:
			return r.fetch(ctx, cl, c)
		}
		foreign := errors.Is(fl.err, context.Canceled) || errors.Is(fl.err, context.DeadlineExceeded)
		switch {
		case fl.bulk && fl.err == nil:
			return r.Get(ctx, c, buf) // it is here now
		case !fl.bulk && !foreign:
			return fl.block, fl.err
		}
	}
}

// keep stores a block that was fetched. That it cannot is no reason not to use it.
func (r *Replica) keep(cl *cluster, b cas.Block, heal bool) {
	hash := b.CID().Hash()
	var err error
	switch {
	case heal || cl.owns && cl.table.Owns(&hash, r.self):
		err = r.o.Local.Put(r.ctx, b)
	case r.o.Cache != nil:
		err = r.o.Cache.Put(r.ctx, b)
	}
	if err != nil && r.ctx.Err() == nil {
		r.o.Logger.Warn("block that was fetched is not kept", "cid", b.CID(), "err", err)
	}
}

// attempt is what one peer answered.
type attempt struct {
	p     *peer
	block cas.Block
	err   error
	took  time.Duration
}

// fetch asks one peer after the other, the next one when one fails or takes too
// long, and returns the first good answer.
func (r *Replica) fetch(ctx context.Context, cl *cluster, c cas.CID) (cas.Block, error) {
	hash := c.Hash()
	order := r.order(cl, &hash)
	r.hedges.read()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // the losers
	results := make(chan attempt, len(order))
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()

	next, running, hedged := 0, 0, false
	var stall time.Duration
	var last *peer
	start := func() {
		last = order[next]
		next++
		running++
		hedged = false
		go r.attempt(ctx, last, c, results)
		var hedge time.Duration
		hedge, stall = last.patience()
		timer.Reset(hedge)
	}
	failed := failures{of: make(map[*peer]bool)}
	for next < len(order) || running > 0 {
		if running == 0 {
			start()
		}
		select {
		case a := <-results:
			running--
			if a.err == nil {
				a.p.answered(a.took)
				for _, p := range order[:next] {
					if p == a.p {
						break
					}
					if !failed.of[p] {
						r.lost(p)
					}
				}
				return a.block, nil
			}
			if ctx.Err() != nil {
				return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Err: ctx.Err()}
			}
			r.blame(a, &failed)
		case <-timer.C:
			switch {
			case !hedged && next < len(order) && r.hedges.take():
				slow := last
				start()
				r.o.Logger.Debug("second peer is asked", "cid", c, "slow", slow.ID)
			case !hedged:
				hedged = true // there is no budget, or nobody else
				hedge, _ := last.patience()
				timer.Reset(stall - min(stall, hedge))
			default:
				r.demote(last, demotedForStall, "it stalls", nil)
				if next < len(order) {
					start()
				}
			}
		case <-ctx.Done():
			return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Err: ctx.Err()}
		}
	}
	return cas.Block{}, failed.err(c, len(order))
}

func (r *Replica) attempt(ctx context.Context, p *peer, c cas.CID, to chan<- attempt) {
	timeout := getTimeout
	if r.health(p.ID) == p2p.Dead {
		timeout = deadTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	began := r.o.Now()
	b, err := p.Get(ctx, c, nil)
	to <- attempt{p, b, err, r.o.Now().Sub(began)}
}

// failures counts why no peer gave a block.
type failures struct {
	corrupt, silent int
	of              map[*peer]bool
}

// blame takes note of a failed attempt and demotes the peer if it deserves it.
func (r *Replica) blame(a attempt, f *failures) {
	f.of[a.p] = true
	switch {
	case errors.Is(a.err, exchange.ErrBadMessage):
		f.corrupt++
		r.demote(a.p, demotedForLie, "it sent something else than it was asked for", a.err)
	case errors.Is(a.err, cas.ErrCorrupt):
		f.corrupt++
		a.p.answered(0)
	case errors.Is(a.err, cas.ErrNotFound):
		a.p.answered(0)
	case errors.Is(a.err, context.DeadlineExceeded):
		f.silent++
		r.demote(a.p, demotedForStall, "it stalls", a.err)
	case errors.Is(a.err, exchange.ErrPeerFailed):
		f.silent++
	default:
		f.silent++
		r.unreachable(a.p, a.err)
	}
}

func (f *failures) err(c cas.CID, asked int) error {
	err := cas.ErrNotFound
	switch {
	case f.corrupt > 0:
		err = fmt.Errorf("%w on %d of %d other nodes, no other that answers has it", cas.ErrCorrupt, f.corrupt, asked)
	case f.silent > 0:
		err = fmt.Errorf("%w: %d of %d other nodes did not answer: %w", cas.ErrNotFound, f.silent, asked, p2p.ErrUnreachable)
	}
	return &cas.BlockError{Op: "get", CID: c, Where: "cluster", Err: err}
}

// Has says which blocks are held here, or by an owner that answers.
func (r *Replica) Has(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	r.promises.told(cids)
	has, err := r.o.Local.Has(ctx, cids...)
	cl := r.shared()
	if err != nil || cl == nil {
		return has, err
	}
	var owners []p2p.PeerID
	for k := range cl.table.Copies() {
		ask := make(map[p2p.PeerID][]int) // those not found yet, by their k-th owner
		for i, c := range cids {
			if has[i] || !c.Defined() {
				continue
			}
			hash := c.Hash()
			if owners = cl.table.Owners(&hash, owners); owners[k] != r.self {
				ask[owners[k]] = append(ask[owners[k]], i)
			}
		}
		for id, of := range ask {
			p := r.peer(id)
			if r.grade(p) >= demoted {
				continue
			}
			got, err := r.hasPeer(ctx, p, cids, of)
			if err != nil {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				r.unreachable(p, err)
				continue
			}
			for k, i := range of {
				has[i] = got[k]
			}
		}
	}
	return has, nil
}

// hasPeer asks a peer for those of the blocks with the given indexes; the answers are in
// order of these.
func (r *Replica) hasPeer(ctx context.Context, p *peer, cids []cas.CID, of []int) ([]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, getTimeout)
	defer cancel()
	part := make([]cas.CID, len(of))
	for k, i := range of {
		part[k] = cids[i]
	}
	got, err := p.Has(ctx, part...)
	if err == nil {
		p.answered(0)
	}
	return got, err
}
