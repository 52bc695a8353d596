package replica

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/exchange"
)

// A name may refer to blocks that nobody puts on its account: a file that is
// appended to keeps the blocks it has, a copy shares them. What was named while there
// are two owners was put before, and Sync waited for two nodes to have it. What was
// named on a node alone, or for one copy, is on one node until repair has copied it.
// Until it is known that repair has, whoever is about to name a tree claims it: it
// looks which blocks of the tree other nodes have, and has those put that too few
// have, as if they were new.
//
// It is known when every member that stores blocks has completed a pass over them,
// begun when there were two owners, in which it found or made another copy of each.

// maxClaimed bounds the blocks and trees that are remembered to need no claim, each
// of which takes some 50 bytes. When there are more, all are forgotten.
const maxClaimed = 128 << 10

// claims is what this node knows of blocks that were not put in this run.
type claims struct {
	mu     sync.Mutex
	since  uint64 // passes of this epoch and later ones count; 0 while there is one owner
	proven bool   // all that was named before is on two nodes
	put    hashes // or found on enough nodes
	trees  hashes // of inner nodes; all below them as well
}

func (k *claims) init(proven bool) {
	k.proven = proven
	k.forget()
}

func (k *claims) forget() {
	k.put, k.trees = make(hashes), make(hashes)
}

// view takes note of another view.
func (k *claims) view(c *cluster) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case c.nodes < 2:
		k.since, k.proven = 0, false
		k.forget()
	case k.since == 0:
		k.since = c.epoch
	}
}

// needed reports whether trees must be claimed.
func (k *claims) needed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.proven
}

// note takes note of blocks that were put, or found on enough nodes, and of trees.
func (k *claims) note(blocks, trees []cas.CID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.proven || k.since == 0 {
		return
	}
	k.put.add(blocks)
	k.trees.add(trees)
}

// hashes are those of blocks.
type hashes map[[cas.HashSize]byte]struct{}

func (h hashes) add(cids []cas.CID) {
	if len(h)+len(cids) > maxClaimed {
		clear(h)
	}
	for _, c := range cids {
		h[c.Hash()] = struct{}{}
	}
}

func (k *claims) known(c cas.CID) (put, tree bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, put = k.put[c.Hash()]
	_, tree = k.trees[c.Hash()]
	return put, tree
}

// Unproven says from which epoch on a pass of repair must have been that all members
// that store blocks have completed (Status.Secured) until SetProven can be called;
// ok is false if there is nothing to prove.
func (r *Replica) Unproven() (since uint64, ok bool) {
	r.claims.mu.Lock()
	defer r.claims.mu.Unlock()
	return r.claims.since, r.claims.since > 0 && !r.claims.proven
}

// SetProven says that what was named before is on two nodes, as was to be proven for
// the given epoch. It returns false if there is something else to prove by now.
func (r *Replica) SetProven(since uint64) bool {
	k := &r.claims
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.since == since {
		k.proven = true
		k.forget()
	}
	return k.proven
}

// Doubt says that there was one owner at some time before the given view: what was named
// then may be on one node, and only passes of that epoch and later ones count.
func (r *Replica) Doubt(v p2p.View) {
	k := &r.claims
	k.mu.Lock()
	defer k.mu.Unlock()
	k.since, k.proven = 0, false
	if v.Owners() > 1 {
		k.since = v.Epoch
	}
	k.forget()
}

// Claim has the next Sync wait for all blocks of trees that are about to be named,
// those that were not put in this run as well. Where it is known that these are on
// enough nodes, it does nothing.
func (r *Replica) Claim(ctx context.Context, roots ...cas.CID) error {
	c := r.shared()
	if c == nil || c.nodes < 2 || !r.claims.needed() {
		return nil
	}
	var blocks, nodes []cas.CID // to be claimed; walked
	seen := make(map[cas.CID]bool)
	todo := append([]cas.CID(nil), roots...)
	for len(todo) > 0 {
		cid := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		put, tree := r.claims.known(cid)
		if tree || seen[cid] {
			continue
		}
		if !put {
			if blocks = append(blocks, cid); len(blocks) == exchange.MaxBlocks {
				if err := r.ClaimBlocks(ctx, blocks); err != nil {
					return err
				}
				blocks = blocks[:0]
			}
		}
		if cid.Codec() == cas.Raw {
			continue
		}
		links, err := manifest.Links(ctx, r, cid)
		if err != nil {
			return fmt.Errorf("what is to be named cannot be read: %w", err)
		}
		seen[cid] = true
		nodes = append(nodes, cid)
		todo = append(todo, links...)
	}
	if err := r.ClaimBlocks(ctx, blocks); err != nil {
		return err
	}
	r.claims.note(nil, nodes)
	return nil
}

// ClaimBlocks has the next Sync wait for blocks, which somewhere are, as if they had
// been put: at most exchange.MaxBlocks of them.
func (r *Replica) ClaimBlocks(ctx context.Context, cids []cas.CID) error {
	c := r.shared()
	if c == nil || c.nodes < 2 || len(cids) == 0 {
		return nil
	}
	defer r.promises.hold(cids)()
	held, err := r.o.Local.Has(ctx, cids...)
	if err != nil {
		return err
	}
	others := r.durableElsewhere(ctx, c, cids)
	for i, cid := range cids {
		switch {
		case held[i] && others[i] >= c.need || others[i] >= c.nodes:
		case held[i]:
			stored, err := r.o.Local.Stored(ctx, cid, nil)
			if err != nil {
				return err
			}
			if err := r.enlist(ctx, c, blockSize{cid, stored.Raw}); err != nil {
				return err
			}
		default:
			b, err := r.Get(ctx, cid, nil)
			if err != nil {
				return err
			}
			if err := r.Put(ctx, b); err != nil {
				return err
			}
		}
	}
	r.claims.note(cids, nil)
	return ctx.Err()
}

// durableElsewhere returns on how many of its other owners each of the blocks is
// found and durable. Those that do not answer count as not having it.
func (r *Replica) durableElsewhere(ctx context.Context, c *cluster, cids []cas.CID) []int {
	ask := make(map[p2p.PeerID][]int)
	var owners []p2p.PeerID
	for i, cid := range cids {
		hash := cid.Hash()
		owners = c.table.Owners(&hash, owners)
		for _, id := range owners {
			if id != r.self && r.grade(r.peer(id)) < demoted {
				ask[id] = append(ask[id], i)
			}
		}
	}
	var mu sync.Mutex
	count := make([]int, len(cids))
	var asked sync.WaitGroup
	for id, of := range maps.All(ask) {
		asked.Go(func() {
			has, err := r.durableOn(ctx, r.peer(id), cids, of)
			if err != nil && ctx.Err() == nil {
				r.unreachable(r.peer(id), err)
			}
			mu.Lock()
			defer mu.Unlock()
			for k := range has {
				if has[k] {
					count[of[k]]++
				}
			}
		})
	}
	asked.Wait()
	return count
}

// durableOn says which of those blocks that have the given indexes a peer has durably.
func (r *Replica) durableOn(ctx context.Context, p *peer, cids []cas.CID, of []int) ([]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, pushTimeout)
	defer cancel()
	part := make([]cas.CID, len(of))
	for k, i := range of {
		part[k] = cids[i]
	}
	has, boot, err := p.Have(ctx, part)
	if err != nil {
		return nil, err
	}
	p.answered(0)
	synced, err := p.SyncRun(ctx)
	if err != nil || synced != boot { // it may have lost them in between
		return nil, err
	}
	return has, nil
}
