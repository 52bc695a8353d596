package replica

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/p2p/exchange"
)

// A node lets go of a block that it holds and does not own when every owner has
// confirmed its copy (see exchange.Peer.Confirm) under the members that this node
// knows, and still knows when the block is deleted. It keeps a block that is on its way
// from here, or of which it has said meanwhile that it is here: whoever was told so may
// count on it. What it said before, the owners' confirmations make good.
//
// A node that is away or leaving drops nothing: it may be an owner again soon, or what
// it has may be wanted by hand.

// confirmBlocks is how many blocks owners are asked to confirm at once: they read them.
const confirmBlocks = 256

// promises are the blocks that are about to be dropped, and those that are not to be,
// because they are about to be sent from here.
type promises struct {
	mu    sync.Mutex
	going map[[cas.HashSize]byte]bool // whether it was said of it since that it is here
	held  map[[cas.HashSize]byte]int  // by how many calls
}

func (p *promises) init() {
	p.going = make(map[[cas.HashSize]byte]bool)
	p.held = make(map[[cas.HashSize]byte]int)
}

// told takes note that it is about to be said of blocks that they are here.
func (p *promises) told(cids []cas.CID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.going) == 0 {
		return
	}
	for _, c := range cids {
		if _, going := p.going[c.Hash()]; going {
			p.going[c.Hash()] = true
		}
	}
}

// hold keeps blocks here until done is called.
func (p *promises) hold(cids []cas.CID) (done func()) {
	change := func(by int) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range cids {
			hash := c.Hash()
			if _, going := p.going[hash]; going {
				p.going[hash] = true
			}
			if p.held[hash] += by; p.held[hash] == 0 {
				delete(p.held, hash)
			}
		}
	}
	change(1)
	return func() { change(-1) }
}

// drop begins to watch what is said of blocks that are to be dropped, until done is
// called.
func (p *promises) drop(blocks []held) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range blocks {
		p.going[blocks[i].cid.Hash()] = false
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		clear(p.going) // only one pass runs at a time
	}
}

func (p *promises) keeps(hash [cas.HashSize]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.going[hash] || p.held[hash] > 0
}

// drop deletes those of the blocks that all their owners confirm.
func (p *pass) drop(spare page) {
	for some := range slices.Chunk(spare.blocks, confirmBlocks) {
		if p.r.ctx.Err() != nil || p.r.cluster.Load() != p.c {
			return
		}
		if err := p.dropSome(page{spare.self, some}); err != nil && p.r.ctx.Err() == nil {
			p.r.o.Logger.Warn("blocks that owners have are not dropped", "err", err)
			return
		}
	}
}

func (p *pass) dropSome(spare page) error {
	r := p.r
	defer r.promises.drop(spare.blocks)()
	confirmed, err := p.confirmed(spare)
	if err != nil || len(confirmed) == 0 {
		return err
	}
	deleted, _, err := r.o.Local.Delete(r.ctx, confirmed, func(c cas.CID) bool {
		return r.cluster.Load() != p.c || r.promises.keeps(c.Hash()) || r.Pending(c)
	})
	p.tally.dropped += int64(deleted)
	r.repair.mu.Lock()
	r.repair.now.Dropped += int64(deleted)
	r.repair.mu.Unlock()
	return err
}

// confirmed returns those of the blocks that all owners prove to have, after copying
// them to the cache, if that has room. It reads them at the rate of repair.
func (p *pass) confirmed(spare page) ([]cas.CID, error) {
	r := p.r
	var nonce exchange.Nonce
	_, _ = rand.Read(nonce[:]) // never fails
	p.each(spare.elsewhere(), func(q *peer, copies []*ownerCopy) { p.confirm(q, &nonce, copies) })
	var sure []cas.CID
	buf := make([]byte, cas.MaxBlockSize)
	for i := range spare.blocks {
		h := &spare.blocks[i]
		if !h.claimed() {
			continue
		}
		b, err := r.o.Local.Get(r.ctx, h.cid, buf)
		if err != nil {
			continue // repair replaces it, if that is called for
		}
		if err := r.repair.rate.wait(r.ctx, int64(len(b.Data()))); err != nil {
			return nil, err
		}
		if owner, lies := h.liar(exchange.Prove(&nonce, b)); lies {
			r.o.Logger.Error("an owner says that it has a block, and cannot prove it", "cid", h.cid, "owner", owner)
			continue
		}
		sure = append(sure, h.cid)
		p.cache(b)
	}
	return sure, nil
}

// confirm asks an owner for proofs.
func (p *pass) confirm(q *peer, nonce *exchange.Nonce, copies []*ownerCopy) {
	if p.r.grade(q) >= demoted {
		return
	}
	ctx, cancel := context.WithTimeout(p.r.ctx, pushTimeout)
	defer cancel()
	proofs, err := q.Confirm(ctx, p.c.epoch, nonce, cidsOf(copies))
	if err != nil {
		// It may not know the members yet, or be of a version before.
		p.r.o.Logger.Debug("owner does not confirm", "peer", q.ID, "err", err)
		return
	}
	for i, at := range copies {
		at.proof = proofs[i]
	}
}

// cache keeps a block at hand that is about to be dropped, unless others would have to
// go for it.
func (p *pass) cache(b cas.Block) {
	if cache := p.r.o.Cache; cache != nil && !p.c.draining && cache.Room() >= int64(len(b.Data())) {
		if err := cache.Put(p.r.ctx, b); err != nil && p.r.ctx.Err() == nil {
			p.r.o.Logger.Warn("block that is dropped is not kept in the cache", "cid", b.CID(), "err", err)
		}
	}
}
