package replica

import (
	"slices"
	"sync"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/p2p/exchange"
)

// maxRecent bounds the memory of blocks that Prefetch has brought, in bytes: more
// than one reader is ahead of itself.
const maxRecent = 32 << 20

// recent are the blocks that Prefetch brought last and nobody has asked for yet.
// They are verified, and reading them back from where they are kept would cost a
// copy, a hash and at times a read of the disk for each.
//
// Blocks that came with one answer share its memory, which counts, and is let go, as a
// whole: to be used for another answer. So no block leaves but as a copy.
type recent struct {
	mu     sync.Mutex
	blocks map[cas.CID]arrival
	groups []*group // the oldest first
	bytes  int      // of groups
}

// group is blocks that came together.
type group struct {
	parcel  exchange.Parcel
	left    int // blocks that nobody has asked for
	copying int // blocks that are being copied
}

type arrival struct {
	block cas.Block
	group *group
}

func (r *recent) init() { r.blocks = make(map[cas.CID]arrival) }

// add takes over a parcel. Older ones go if there is no room.
func (r *recent) add(p exchange.Parcel) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := &group{parcel: p}
	for i, b := range p.Blocks {
		if _, known := r.blocks[b.CID()]; !known && p.Errs[i] == nil {
			g.left++
			r.blocks[b.CID()] = arrival{b, g}
		}
	}
	r.groups = append(r.groups, g)
	r.bytes += cap(p.Memory)
	r.tidy(g)
	for r.bytes > maxRecent && len(r.groups) > 0 {
		r.drop(r.groups[0])
	}
}

// drop lets a group go that somebody may have asked for.
func (r *recent) drop(g *group) {
	for _, b := range g.parcel.Blocks {
		if r.blocks[b.CID()].group == g {
			delete(r.blocks, b.CID())
		}
	}
	g.left = 0
	r.tidy(g)
}

// tidy takes a group away when there is nothing left of it; mu is held.
func (r *recent) tidy(g *group) {
	if g.left > 0 {
		return
	}
	if i := slices.Index(r.groups, g); i >= 0 {
		r.groups = slices.Delete(r.groups, i, i+1)
		r.bytes -= cap(g.parcel.Memory)
	}
	if g.copying == 0 {
		g.parcel.Free()
	}
}

// take returns a copy of a block, in buf if its capacity allows, and forgets it: whoever
// reads a part of it keeps it.
func (r *recent) take(c cas.CID, buf []byte) (cas.Block, bool) {
	r.mu.Lock()
	a, ok := r.blocks[c]
	if !ok {
		r.mu.Unlock()
		return cas.Block{}, false
	}
	delete(r.blocks, c)
	a.group.left--
	a.group.copying++
	r.mu.Unlock()
	b := a.block.Copy(buf)
	r.mu.Lock()
	defer r.mu.Unlock()
	a.group.copying--
	r.tidy(a.group)
	return b, true
}
