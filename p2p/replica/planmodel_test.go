package replica

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/exchange"
)

// A small cluster is simulated, step by step in one goroutine, in which each node
// repairs by the plan. A pass is cut into its requests, and between any two of them
// anything may happen: nodes crash and lose what was not durable, lose their disks, are
// cut off, are drained and removed, and learn of new members late. After each step no
// block may be lost that a disk was not lost for; when a pass ends it must have said the
// truth; and when all is healed, each block must come to lie on its owners and, where
// dropping is allowed, nowhere else.

var (
	planSeed  = flag.Uint64("seed", 0, "simulate this one seed of repair planning")
	planSeeds = flag.Uint64("seeds", 300, "simulate so many seeds of repair planning, from 1 on")
)

const (
	modelBlocks = 12
	modelPage   = 5 // blocks
	modelSteps  = 400
)

// simNode is a node of the model.
type simNode struct {
	id      p2p.PeerID
	c       *cluster     // of the view that it knows
	blocks  map[int]bool // that it holds, and whether durably
	boot    uint64
	wiped   int // the step at which it lost its disk
	cut     bool
	pass    *simPass
	drained uint64 // the epoch of a clean pass while draining
	since   int    // the step at which that began
	put     int    // the step of the last put here
}

// simPass is a pass under way. next is what is left to be done of it.
type simPass struct {
	c         *cluster
	tally     tally
	began     int
	seen      []int // blocks
	next      []func()
	confirmed map[int]bool // blocks about to be dropped: whether they are told of since
}

type planModel struct {
	t       *testing.T
	rng     *rand.Rand
	step    int
	view    p2p.View
	nodes   map[p2p.PeerID]*simNode
	made    int
	boots   uint64
	written map[int]bool
	counts  map[string]int
	log     []string
}

func (m *planModel) failf(format string, args ...any) {
	m.t.Helper()
	m.t.Fatalf("step %d: %s\n%s", m.step, fmt.Sprintf(format, args...), strings.Join(m.log[max(0, len(m.log)-60):], "\n"))
}

func (m *planModel) note(what, format string, args ...any) {
	m.counts[what]++
	m.log = append(m.log, fmt.Sprintf("%4d %s: %s", m.step, what, fmt.Sprintf(format, args...)))
}

// all returns the nodes in order, so that a seed always does the same.
func (m *planModel) all() []*simNode {
	var all []*simNode
	for _, id := range slices.Sorted(maps.Keys(m.nodes)) {
		all = append(all, m.nodes[id])
	}
	return all
}

func (m *planModel) any() *simNode {
	all := m.all()
	return all[m.rng.IntN(len(all))]
}

// add makes a node that is a member and knows it.
func (m *planModel) add(role p2p.Role) {
	m.made++
	id := p2p.PeerID(fmt.Sprintf("node%d", m.made))
	m.boots++
	m.nodes[id] = &simNode{id: id, blocks: make(map[int]bool), boot: m.boots}
	m.change(func(members []p2p.Member) []p2p.Member {
		return append(members, p2p.Member{ID: id, Role: role, State: p2p.Active, Capacity: 1 << 40})
	})
	m.learn(m.nodes[id])
	m.note("joins", "%s, %v", id, role)
}

func (m *planModel) change(f func([]p2p.Member) []p2p.Member) {
	m.view.Epoch++
	m.view.Members = f(slices.Clone(m.view.Members))
}

// learn has a node know the members as they are.
func (m *planModel) learn(n *simNode) {
	if n.c == nil || n.c.epoch < m.view.Epoch {
		n.c = newCluster(n.id, m.view)
	}
}

// linked says whether two nodes reach each other.
func (m *planModel) linked(n *simNode, id p2p.PeerID) (*simNode, bool) {
	to := m.nodes[id]
	return to, to != nil && !to.cut && !n.cut
}

// told takes note that a node says that it has a block, or will.
func (n *simNode) told(block int) {
	if n.pass == nil {
		return
	}
	if _, going := n.pass.confirmed[block]; going {
		n.pass.confirmed[block] = true
	}
}

// take stores a block, durably only if it was before.
func (n *simNode) take(block int) {
	n.told(block)
	if _, here := n.blocks[block]; !here {
		n.blocks[block] = false
	}
}

func (n *simNode) syncs() {
	for b := range n.blocks {
		n.blocks[b] = true
	}
}

func blockOf(c cas.CID) int { hash := c.Hash(); return int(hash[0])<<8 | int(hash[1]) }

// begin starts a pass.
func (m *planModel) begin(n *simNode) {
	p := &simPass{c: n.c, tally: newTally(n.c), began: m.step}
	n.pass = p
	var none [cas.HashSize]byte
	for _, id := range n.c.table.Rank(&none, nil) {
		if id == n.id {
			continue
		}
		p.next = append(p.next, func() {
			if to, ok := m.linked(n, id); ok && to.c.epoch == p.c.epoch {
				p.tally.met(id, to.boot)
			}
		})
	}
	p.next = append(p.next, func() { m.read(n, 0) })
}

// read plans the next page, of blocks from the given one on.
func (m *planModel) read(n *simNode, from int) {
	p := n.pass
	var cids []cas.CID
	for ; from < modelBlocks && len(cids) < modelPage; from++ {
		if _, here := n.blocks[from]; here {
			cids = append(cids, planCID(from))
			p.seen = append(p.seen, from)
		}
	}
	page := newPage(p.c, cids)
	m.each(p, page.elsewhere(), func(id p2p.PeerID, copies []*ownerCopy) { m.peek(n, id, copies) })
	p.next = append(p.next, func() {
		m.each(p, page.sends(), func(id p2p.PeerID, copies []*ownerCopy) { m.send(n, id, copies) })
		p.next = append(p.next, func() { m.drop(n, p.tally.count(page)) })
		p.next = append(p.next, func() {
			if from < modelBlocks {
				m.read(n, from)
			} else {
				m.finish(n)
			}
		})
	})
}

// each has something done for each peer, one after the other.
func (m *planModel) each(p *simPass, of map[p2p.PeerID][]*ownerCopy, f func(p2p.PeerID, []*ownerCopy)) {
	ids := slices.Sorted(maps.Keys(of))
	m.rng.Shuffle(len(ids), func(i, k int) { ids[i], ids[k] = ids[k], ids[i] })
	for _, id := range ids {
		p.next = append(p.next, func() { f(id, of[id]) })
	}
}

func (m *planModel) peek(n *simNode, id p2p.PeerID, copies []*ownerCopy) {
	to, ok := m.linked(n, id)
	if !ok {
		return
	}
	n.pass.tally.heard(id, to.boot)
	for _, at := range copies {
		at.state = lacking
		if _, has := to.blocks[blockOf(at.cid)]; has {
			at.state = there
		}
	}
}

// send has a peer take blocks, and in part of the cases the answer is lost.
func (m *planModel) send(n *simNode, id p2p.PeerID, copies []*ownerCopy) {
	to, ok := m.linked(n, id)
	if !ok {
		return
	}
	for _, at := range copies {
		b := blockOf(at.cid)
		if _, here := n.blocks[b]; here {
			to.take(b)
		}
	}
	if !m.healed() && m.rng.IntN(8) == 0 {
		m.note("answers lost", "%s to %s", id, n.id)
		return
	}
	n.pass.tally.heard(id, to.boot)
	for _, at := range copies {
		if _, took := to.blocks[blockOf(at.cid)]; took {
			at.state = there
		}
	}
	m.note("sends", "%s %d blocks to %s", n.id, len(copies), id)
}

func (m *planModel) drop(n *simNode, spare page) {
	p := n.pass
	if len(spare.blocks) == 0 {
		return
	}
	p.confirmed = make(map[int]bool)
	for _, b := range spare.blocks {
		p.confirmed[blockOf(b.cid)] = false
	}
	m.each(p, spare.elsewhere(), func(id p2p.PeerID, copies []*ownerCopy) { m.confirm(n, id, copies) })
	p.next = append(p.next, func() { m.delete(n, spare) })
}

func proofOf(c cas.CID) exchange.Proof { return exchange.Proof{1, byte(blockOf(c))} }

func (m *planModel) confirm(n *simNode, id p2p.PeerID, copies []*ownerCopy) {
	to, ok := m.linked(n, id)
	if !ok || to.c.epoch != n.pass.c.epoch {
		return
	}
	to.syncs()
	for _, at := range copies {
		to.told(blockOf(at.cid))
		if _, has := to.blocks[blockOf(at.cid)]; has {
			at.proof = proofOf(at.cid)
		}
	}
}

// delete drops what is proved, unless the node knows other members or has said since
// that it has the block.
func (m *planModel) delete(n *simNode, spare page) {
	p := n.pass
	for i := range spare.blocks {
		h := &spare.blocks[i]
		b := blockOf(h.cid)
		_, lies := h.liar(proofOf(h.cid))
		if !h.claimed() || lies || n.c != p.c || p.confirmed[b] {
			continue
		}
		if _, here := n.blocks[b]; !here {
			continue
		}
		delete(n.blocks, b)
		p.tally.dropped++
		m.note("drops", "%s block %d at epoch %d", n.id, b, p.c.epoch)
		m.mustBeOwned(n, b, len(h.copies), "dropped")
	}
	p.confirmed = nil
}

// mustBeOwned fails unless so many owners of a block, as of the members that a node
// knows, have it durably. Excused are those that lost their disks since its pass began,
// and those that learned of other members since, and what they are to do.
func (m *planModel) mustBeOwned(n *simNode, block, want int, what string) {
	hash := planCID(block).Hash()
	for _, id := range n.pass.c.table.Owners(&hash, nil) {
		to := m.nodes[id]
		if id != n.id && (to == nil || to.blocks[block] || to.wiped >= n.pass.began || to.c.epoch > n.pass.c.epoch) {
			want--
		}
	}
	if want > 0 {
		m.failf("%s %s block %d at epoch %d, and %d owners do not have it durably", n.id, what, block, n.pass.c.epoch, want)
	}
}

// finish has all peers that were heard make durable what they have, and ends the pass.
func (m *planModel) finish(n *simNode) {
	p := n.pass
	for _, id := range slices.Sorted(maps.Keys(p.tally.boots)) {
		p.next = append(p.next, func() {
			to, ok := m.linked(n, id)
			if !ok {
				p.tally.unsure = true
				return
			}
			to.syncs()
			p.tally.heard(id, to.boot)
		})
	}
	p.next = append(p.next, func() { m.end(n) })
}

// end looks whether what the pass says is so.
func (m *planModel) end(n *simNode) {
	p := n.pass
	defer func() { n.pass = nil }()
	if n.c != p.c {
		return
	}
	for _, b := range p.seen {
		hash := planCID(b).Hash()
		others := p.c.table.Copies()
		if p.c.table.Owns(&hash, n.id) {
			others--
		}
		if p.tally.clean() {
			m.mustBeOwned(n, b, others, "says that all owners have")
		}
		if p.tally.secured() {
			m.mustBeOwned(n, b, p.c.need, "says that enough owners have")
		}
	}
	switch {
	case p.tally.clean():
		m.note("clean", "%s at epoch %d", n.id, p.c.epoch)
	case p.tally.strangers:
		m.note("strangers", "%s at epoch %d", n.id, p.c.epoch)
	case p.tally.unsure:
		m.note("unsure", "%s at epoch %d", n.id, p.c.epoch)
	}
	if p.tally.clean() && p.c.draining {
		n.drained, n.since = p.c.epoch, p.began
	}
}

// advance takes the next step of a node's pass.
func (m *planModel) advance(n *simNode) {
	p := n.pass
	switch {
	case p == nil:
		m.begin(n)
	case p.c != n.c && p.confirmed == nil: // it is given up
		n.pass = nil
	default:
		step, rest := p.next[0], p.next[1:]
		p.next = nil
		step()
		p.next = append(p.next, rest...) // after what the step has added
	}
}
