package replica

import (
	"sync"

	"github.com/cairnfs/cairn/cas"
)

// maxRecent bounds the blocks in memory that Prefetch has brought, in bytes: more
// than one reader is ahead of itself.
const maxRecent = 32 << 20

// recent are the blocks that Prefetch brought last and nobody has asked for yet.
// They are verified, and reading them back from where they are kept would cost a
// copy, a hash and at times a read of the disk for each.
//
// Blocks that came together may share memory that is as large as all of them, so it
// counts, and is let go, as a whole.
type recent struct {
	mu     sync.Mutex
	blocks map[cas.CID]arrival
	groups []*group // the oldest first
	bytes  int      // of groups
}

// group is blocks that came together.
type group struct {
	cids  []cas.CID
	bytes int
	left  int // blocks that nobody has asked for
}

type arrival struct {
	block cas.Block
	group *group
}

func (r *recent) init() { r.blocks = make(map[cas.CID]arrival) }

// add takes a block of a group, which is a new one if it has none. One that somebody
// has got already only counts. Older groups go if there is no room.
func (r *recent) add(g *group, b cas.Block, got bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.bytes == 0 {
		r.groups = append(r.groups, g)
	}
	g.bytes += len(b.Data())
	r.bytes += len(b.Data())
	if _, known := r.blocks[b.CID()]; !known && !got {
		g.cids = append(g.cids, b.CID())
		g.left++
		r.blocks[b.CID()] = arrival{b, g}
	}
	for r.bytes > maxRecent || len(r.groups) > 0 && r.groups[0].left == 0 && r.groups[0] != g {
		r.drop()
	}
}

// drop lets the oldest group go. Blocks that are added to it later are of a new one.
func (r *recent) drop() {
	g := r.groups[0]
	r.groups[0] = nil
	r.groups = r.groups[1:]
	for _, c := range g.cids {
		if r.blocks[c].group == g {
			delete(r.blocks, c)
		}
	}
	r.bytes -= g.bytes
	*g = group{}
}

// take returns a block and forgets it: whoever reads a part of it keeps it.
func (r *recent) take(c cas.CID) (cas.Block, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.blocks[c]
	if ok {
		delete(r.blocks, c)
		a.group.left--
	}
	return a.block, ok
}
