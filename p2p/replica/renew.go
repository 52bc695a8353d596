package replica

import (
	"context"
	"errors"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/gc"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/exchange"
)

var _ gc.Renewer = (*Replica)(nil)

// Renew says which blocks the cluster holds, and has their owners promise to keep them,
// as Put does: an owner that has a block is asked for the promise, and one that lacks
// it, or does not answer, is to be sent it. A block that no owner has lacked is
// promised on return; of the others Sync tells when they are where they should be.
func (r *Replica) Renew(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	has, err := r.o.Local.Has(ctx, cids...)
	c := r.shared()
	if err != nil || c == nil || c.table.Copies() == 0 {
		return has, err
	}
	for len(cids) > 0 {
		n := min(len(cids), exchange.MaxBlocks)
		if err := r.renewSome(ctx, c, cids[:n], has[len(has)-len(cids):][:n]); err != nil {
			return nil, err
		}
		cids = cids[n:]
	}
	return has, nil
}

// renewSome is Renew of at most exchange.MaxBlocks blocks. has says which of them are
// here, and then which there are.
func (r *Replica) renewSome(ctx context.Context, c *cluster, cids []cas.CID, has []bool) error {
	ask := make(map[p2p.PeerID][]int)
	var owners []p2p.PeerID
	lacking := make([]bool, len(cids)) // by an owner
	for i, cid := range cids {
		if !cid.Defined() {
			continue
		}
		hash := cid.Hash()
		owners = c.table.Owners(&hash, owners[:0])
		for _, id := range owners {
			if id != r.self {
				ask[id] = append(ask[id], i)
			} else {
				lacking[i] = !has[i]
			}
		}
	}
	for id, of := range ask {
		got, err := r.promise(ctx, id, cids, of)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for k, i := range of {
			lacking[i] = lacking[i] || err != nil || !got[k]
			has[i] = has[i] || err == nil && got[k]
		}
	}
	for i, cid := range cids {
		if !lacking[i] {
			continue
		}
		b, err := r.Get(ctx, cid, nil)
		if err == nil {
			err = r.Put(ctx, b)
		}
		switch {
		case err == nil:
			has[i] = true
		case !errors.Is(err, cas.ErrNotFound) && !errors.Is(err, cas.ErrCorrupt) || errors.Is(err, p2p.ErrUnreachable):
			return err
		default:
			has[i] = false
		}
	}
	return nil
}

// promise asks a peer for promises of the blocks with the given indexes.
func (r *Replica) promise(ctx context.Context, id p2p.PeerID, cids []cas.CID, of []int) ([]bool, error) {
	p := r.peer(id)
	if r.grade(p) >= demoted {
		return nil, p2p.ErrUnreachable
	}
	got, err := r.hasPeer(ctx, p, cids, of)
	if err != nil {
		r.unreachable(p, err)
	}
	return got, err
}

// Pending reports whether the block is on its way to owners, and is needed here for
// that.
func (r *Replica) Pending(c cas.CID) bool {
	r.queue.mu.Lock()
	defer r.queue.mu.Unlock()
	_, pending := r.queue.entries[c.Hash()]
	return pending
}
