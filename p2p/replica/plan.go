package replica

import (
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/exchange"
)

// What a pass of repair decides, as functions of what it knows: nothing is asked, sent,
// deleted or waited for here.
//
// A page is some of the blocks that this node holds, each with what is known of the
// copies on its owners. At first that is nothing. The pass asks about the copies that
// elsewhere returns and enters the answers, sends those that sends returns and enters
// what was taken, and then has the tally count the page, which returns what may be
// dropped once its owners have proved it. A block is
//
//   - sent by the first of its owners, in order of placement, that is known to have
//     it, and if none is, by everybody who has it;
//   - behind while an owner is not known to have it, or it has none. Who did not answer
//     is not known to have it, but is not sent it either;
//   - thin while fewer other owners are known to have it than Sync waits for;
//   - spare when all its owners are known to have it and this node is none of them. It
//     is dropped when every owner claims to have proved its copy and none of them lies,
//     if this node drops anything.
//
// That an owner has a block it has only said. Another run of it may lack what was not
// durable, and while it does not know the same members it may drop what it is to own by
// now. So a pass proves something only if each peer that it heard had been met before,
// when it knew the members, and gave all its answers in one run, in which it then made
// durable what it had.

// copyState is what is known of the copy of a block on one of its owners.
type copyState uint8

const (
	unknown copyState = iota // it was not asked, or did not answer
	lacking
	there // though perhaps not durable yet
)

// ownerCopy is what a page says of a block on one of its owners.
type ownerCopy struct {
	cid   cas.CID
	owner p2p.PeerID
	state copyState
	proof exchange.Proof // zero if it gave none
}

// held is a block that this node holds.
type held struct {
	cid    cas.CID
	copies []ownerCopy // on all owners, in order of placement
}

type page struct {
	self   p2p.PeerID
	blocks []held
}

// newPage returns a page of blocks that this node holds.
func newPage(c *cluster, cids []cas.CID) page {
	p := page{self: c.self, blocks: make([]held, len(cids))}
	var owners []p2p.PeerID
	for i, cid := range cids {
		hash := cid.Hash()
		owners = c.table.Owners(&hash, owners)
		copies := make([]ownerCopy, len(owners))
		for k, id := range owners {
			copies[k] = ownerCopy{cid: cid, owner: id}
			if id == c.self {
				copies[k].state = there
			}
		}
		p.blocks[i] = held{cid, copies}
	}
	return p
}

// elsewhere returns the copies on other nodes, by node.
func (p page) elsewhere() map[p2p.PeerID][]*ownerCopy {
	return p.pick(func(b *held, at *ownerCopy) bool { return at.owner != p.self })
}

// sends returns the copies that this node is to make, by node.
func (p page) sends() map[p2p.PeerID][]*ownerCopy {
	return p.pick(func(b *held, at *ownerCopy) bool { return at.state == lacking && b.sender(p.self) == p.self })
}

func (p page) pick(wanted func(*held, *ownerCopy) bool) map[p2p.PeerID][]*ownerCopy {
	of := make(map[p2p.PeerID][]*ownerCopy)
	for i := range p.blocks {
		b := &p.blocks[i]
		for k := range b.copies {
			if at := &b.copies[k]; wanted(b, at) {
				of[at.owner] = append(of[at.owner], at)
			}
		}
	}
	return of
}

// sender returns who sends the block to owners that lack it, as seen by self.
func (b *held) sender(self p2p.PeerID) p2p.PeerID {
	for i := range b.copies {
		if b.copies[i].state == there {
			return b.copies[i].owner
		}
	}
	return self
}

// claimed says whether every owner claims to have proved its copy.
func (b *held) claimed() bool {
	for i := range b.copies {
		if b.copies[i].proof == (exchange.Proof{}) {
			return false
		}
	}
	return len(b.copies) > 0
}

// liar returns an owner that claims to have proved its copy and has not; want is the
// proof of the one here.
func (b *held) liar(want exchange.Proof) (id p2p.PeerID, lies bool) {
	for i := range b.copies {
		if at := &b.copies[i]; at.proof != want {
			return at.owner, true
		}
	}
	return "", false
}

// tally is what a pass has found so far.
type tally struct {
	c         *cluster
	boots     map[p2p.PeerID]uint64 // runs of the peers whose answers count
	behind    int64
	thin      int64
	spare     int64
	dropped   int64 // of those that are spare
	unsure    bool  // a peer was started again meanwhile, or failed to sync
	strangers bool  // a peer answered that was not met
}

func newTally(c *cluster) tally { return tally{c: c, boots: make(map[p2p.PeerID]uint64)} }

// met takes note that a peer knows the same members, in the given run or a later one.
func (t *tally) met(id p2p.PeerID, boot uint64) { t.boots[id] = boot }

// heard takes note of the run in which a peer answered.
func (t *tally) heard(id p2p.PeerID, boot uint64) {
	was, known := t.boots[id]
	t.strangers = t.strangers || !known
	t.unsure = t.unsure || known && was != boot
	t.boots[id] = boot
}

// count takes note of a page in which all is entered that was answered and taken. It
// returns the blocks that may be dropped once they are proved.
func (t *tally) count(p page) (drop page) {
	drop.self = p.self
	for _, b := range p.blocks {
		others, all, own := 0, len(b.copies) > 0, false
		for i := range b.copies {
			switch at := &b.copies[i]; {
			case at.owner == p.self:
				own = true
			case at.state == there:
				others++
			default:
				all = false
			}
		}
		if others < t.c.need {
			t.thin++
		}
		switch {
		case !all:
			t.behind++
		case !own:
			t.spare++
			if t.c.drops {
				drop.blocks = append(drop.blocks, b)
			}
		}
	}
	return drop
}

// proves says whether what peers said is so.
func (t *tally) proves() bool { return !t.unsure && !t.strangers }

// clean says whether all blocks are durable on all their owners.
func (t *tally) clean() bool { return t.behind == 0 && t.proves() }

// secured says whether all blocks are durable on as many other nodes as Sync waits for,
// in a cluster where that is another one.
func (t *tally) secured() bool { return t.c.nodes > 1 && t.thin == 0 && t.proves() }

// droppable returns how many blocks all owners have, as they say, and this node as well.
func (t *tally) droppable() int64 {
	if t.unsure {
		return 0
	}
	return t.spare - t.dropped
}

// due says when another pass is to follow.
type due int

const (
	asUsual due = iota
	soon        // there is something to be done
	later       // this may be so for long: owners of a version before confirm nothing
)

func (t *tally) due() due {
	switch {
	case t.behind > 0 || t.unsure:
		return soon
	case t.strangers || t.c.drops && t.droppable() > 0:
		return later
	}
	return asUsual
}

// wait returns how long after a pass another follows, and after which time the next one
// does if that leaves something undone, too. every is the time between passes that
// nothing has caused.
func (d due) wait(retry, every time.Duration) (wait, next time.Duration) {
	switch d {
	case soon:
		wait = min(retry, maxRepairRetry, every)
		return wait, min(2*wait, maxRepairRetry)
	case later:
		wait = min(retry, every)
		return wait, 2 * wait
	}
	return every, repairRetry
}
