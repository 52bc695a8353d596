package replica

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cairnfs/cairn/p2p"
)

// What happens to the nodes of the model in planmodel_test.go while they repair, and
// what must be so in the end.

// safe says whether each block of a node is durable on another one, which is not about
// to drop it.
func (m *planModel) safe(n *simNode) bool {
	for b := range n.blocks {
		if !slices.ContainsFunc(m.all(), func(o *simNode) bool {
			if o == n || !o.blocks[b] {
				return false
			}
			if o.pass == nil {
				return true
			}
			_, going := o.pass.confirmed[b]
			return !going
		}) {
			return false
		}
	}
	return true
}

func (m *planModel) healed() bool { return m.step > modelSteps }

func (m *planModel) set(id p2p.PeerID, s p2p.MemberState) {
	m.change(func(members []p2p.Member) []p2p.Member {
		for i := range members {
			if members[i].ID == id {
				members[i].State = s
			}
		}
		return members
	})
	m.note(s.String(), "%s, epoch %d", id, m.view.Epoch)
}

func (m *planModel) remove(n *simNode) {
	m.change(func(members []p2p.Member) []p2p.Member {
		return slices.DeleteFunc(members, func(p p2p.Member) bool { return p.ID == n.id })
	})
	delete(m.nodes, n.id)
}

// happen is what may happen between two steps of passes.
func (m *planModel) happen() {
	if m.rng.IntN(2) == 0 {
		m.removeDrained()
	}
	n := m.any()
	member := m.view.Member(n.id)
	switch m.rng.IntN(12) {
	case 0, 1: // written: durable here, nothing is known elsewhere
		b := m.rng.IntN(modelBlocks)
		if !m.written[b] && member.Role == p2p.RoleStorage {
			n.blocks[b], m.written[b], n.put = true, true, m.step
			m.note("writes", "%s block %d", n.id, b)
		}
	case 2: // put again, without a sync
		if b := m.rng.IntN(modelBlocks); m.written[b] {
			n.take(b)
			n.put = m.step
		}
	case 3, 4:
		m.learn(n)
	case 5, 6:
		m.crash()
	case 7:
		n.cut = !n.cut
	case 8:
		m.lose(n)
	case 9:
		if len(m.nodes) < 6 {
			role := p2p.RoleStorage
			if m.rng.IntN(4) == 0 {
				role = p2p.RoleClient
			}
			m.add(role)
		}
	default:
		states := []p2p.MemberState{p2p.Active, p2p.Active, p2p.Draining, p2p.Draining, p2p.Away, p2p.Leaving}
		if s := states[m.rng.IntN(len(states))]; s != member.State {
			m.set(n.id, s)
		}
	}
}

// crash has a node lose what is not durable, one that has such blocks if there is any.
func (m *planModel) crash() {
	volatile := slices.DeleteFunc(m.all(), func(n *simNode) bool {
		return !slices.Contains(slices.Collect(maps.Values(n.blocks)), false)
	})
	n := m.any()
	if len(volatile) > 0 {
		n = volatile[m.rng.IntN(len(volatile))]
	}
	m.boots++
	n.boot, n.pass = m.boots, nil
	maps.DeleteFunc(n.blocks, func(_ int, durable bool) bool { return !durable })
	m.note("crashes", "%s", n.id)
}

// removeDrained removes a node that is drained as of the members that there are, with
// nothing put that may be on its way, and of whose blocks no disk was lost since.
func (m *planModel) removeDrained() {
	for _, n := range m.all() {
		if len(m.nodes) > 1 && n.drained == m.view.Epoch && n.put < n.since && !m.lostSince(n.since) {
			m.note("removed", "%s, with %d blocks", n.id, len(n.blocks))
			m.remove(n)
			return
		}
	}
}

func (m *planModel) lostSince(step int) bool {
	return slices.ContainsFunc(m.all(), func(n *simNode) bool { return n.wiped >= step })
}

// lose has a node lose its disk, if that is not the only one with a block.
func (m *planModel) lose(n *simNode) {
	if m.rng.IntN(4) > 0 || !m.safe(n) {
		return
	}
	m.boots++
	n.boot, n.pass, n.wiped, n.drained = m.boots, nil, m.step, 0
	clear(n.blocks)
	m.note("disks lost", "%s", n.id)
}

// check fails if a block is lost.
func (m *planModel) check() {
	for b := range modelBlocks {
		if m.written[b] && !slices.ContainsFunc(m.all(), func(n *simNode) bool { return n.blocks[b] }) {
			m.failf("block %d is lost", b)
		}
	}
}

func newPlanModel(t *testing.T, seed uint64, counts map[string]int) *planModel {
	m := &planModel{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), counts: counts,
		nodes: make(map[p2p.PeerID]*simNode), written: make(map[int]bool),
	}
	m.view.Copies = 1 + m.rng.IntN(3)
	return m
}

func (m *planModel) run() {
	for range 2 + m.rng.IntN(3) {
		m.add(p2p.RoleStorage)
	}
	for m.step = 1; m.step <= modelSteps; m.step++ {
		if m.rng.IntN(3) == 0 {
			m.happen()
		} else {
			// Some are much faster than others for a while.
			n := m.any()
			for range 1 << m.rng.IntN(6) {
				m.advance(n)
			}
		}
		m.check()
	}
	m.heal()
}

// heal lets passes run undisturbed, and looks where the blocks are in the end.
func (m *planModel) heal() {
	m.set(m.any().id, p2p.Active) // there is an owner
	for i := range m.view.Members {
		if p := m.view.Members[i]; p.Role == p2p.RoleStorage && m.view.Owners() == 0 {
			m.set(p.ID, p2p.Active)
		}
	}
	for _, n := range m.all() {
		m.learn(n)
		n.cut, n.pass = false, nil
	}
	const rounds = 3
	dues := make(map[p2p.PeerID]due)
	for range rounds {
		for _, n := range m.all() {
			m.begin(n)
			p := n.pass
			for n.pass != nil {
				m.advance(n)
			}
			dues[n.id] = p.tally.due()
			m.check()
		}
	}
	for _, n := range m.all() {
		if dues[n.id] != asUsual {
			m.failf("after %d rounds %s is not at rest: %v", rounds, n.id, dues[n.id])
		}
		for b := range modelBlocks {
			hash := planCID(b).Hash()
			_, here := n.blocks[b]
			switch owns := n.c.table.Owns(&hash, n.id); {
			case m.written[b] && owns && !n.blocks[b]:
				m.failf("after %d rounds %s lacks block %d, which it owns", rounds, n.id, b)
			case here && !owns && n.c.drops:
				m.failf("after %d rounds %s has block %d, which it does not own", rounds, n.id, b)
			}
		}
	}
}

// Rule 15, of what passes decide: nothing is dropped that not every owner has durably,
// nobody is said to be drained who has the only copy, and in the end everything is where
// it belongs.
func TestRepairPlansLoseNothingAndEnd(t *testing.T) {
	from, to := uint64(1), *planSeeds
	if *planSeed > 0 {
		from, to = *planSeed, *planSeed
	}
	counts := make(map[string]int)
	for seed := from; seed <= to; seed++ {
		if !t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { newPlanModel(t, seed, counts).run() }) {
			t.Fatalf("replay with: go test ./p2p/replica -run TestRepairPlansLoseNothingAndEnd -seed %d", seed)
		}
	}
	t.Log(counts)
	for _, what := range []string{"sends", "answers lost", "clean", "unsure", "strangers", "drops", "removed", "crashes", "disks lost"} {
		if counts[what] == 0 && to-from >= 100 {
			t.Errorf("%q never happened", what)
		}
	}
}
