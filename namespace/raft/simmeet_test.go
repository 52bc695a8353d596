package raft

import (
	"encoding/json"
	"errors"
	"slices"
)

// How nodes of a simulated group meet, and what becomes of copies of their stores.

// simHello is a hello on its way, or the answer to one.
type simHello struct {
	sender *simNode // of the hello
	id     uint64   // that the hello is for
	body   []byte
	answer bool
	said   int // tick of the sender
}

// meetAll does what Log.keepMeeting does.
func (w *world) meetAll(n *simNode) {
	for _, m := range n.log.others() {
		if to := w.slotOf(m.Raft); to != nil && to.peer == m.ID {
			if to.twin != nil && w.chance(500) {
				to = to.twin
			}
			w.meet(n, to, m.Raft)
		}
	}
}

// meet sends a hello.
func (w *world) meet(n *simNode, to *slot, id uint64) {
	if n.closed || n.ruined || w.cut[[2]*slot{n.slot, to}] || w.chance(10*w.loss) {
		return
	}
	var h *hello
	if !n.guard(func() (err error) { h, err = n.log.introduce(id); return err }) {
		return
	}
	w.carry(n.slot, to, id, &simHello{sender: n, id: id, body: w.encodeHello(h), said: n.ticks})
}

func (w *world) encodeHello(h *hello) []byte {
	body, err := json.Marshal(h)
	if err != nil {
		w.failf("hello: %v", err)
	}
	return body
}

func (w *world) carry(from, to *slot, id uint64, h *simHello) {
	w.packets = append(w.packets, &packet{due: w.step + 1 + w.rng.IntN(w.delay), from: from, to: to, id: id, hello: h})
}

// greet takes a hello or an answer.
func (w *world) greet(n *simNode, p *packet) {
	w.trace.Write(p.hello.body)
	h, err := decodeHello(p.hello.body)
	if err != nil {
		w.failf("hello: %v", err)
	}
	if p.hello.answer {
		if p.hello.sender == n {
			n.turn(func() error {
				met, err := n.log.heard(p.from.peer, p.hello.id, h, n.log.o.Clock())
				if !met {
					n.log.peers.forget(p.from.peer)
				}
				return err
			})
		}
		return
	}
	var answer *hello
	n.turn(func() (err error) { answer, err = n.log.hear(p.from.peer, h); return err })
	if answer == nil || w.cut[[2]*slot{p.to, p.from}] || w.chance(10*w.loss) {
		return
	}
	w.carry(p.to, p.from, h.Raft, &simHello{sender: p.hello.sender, id: p.hello.id, body: w.encodeHello(answer), answer: true})
}

// copies has a group at rest work for a while, start anew here and there, and then find
// an older copy of a node's disk in its place, or a second one beside it.
func (w *world) copies() {
	if w.steady() == nil {
		return // of two nodes, each would be needed
	}
	w.healed = false
	for _, n := range w.running() {
		n.slot.copy = &oldDisk{n.id, n.disk.synced(), n.log.store.vouch.own.count}
	}
	restarts := w.chance(500)
	for range 40 + w.rng.IntN(100) {
		w.step++
		if n := w.any(); restarts && n != nil && w.chance(20) {
			w.crash(n)
		}
		w.oneStep()
	}
	twins := w.chance(400)
	for range 300 {
		w.step++
		w.watchTwins()
		w.oneStep()
		if w.gone != nil {
			return // it is done
		}
		if twins {
			w.clone()
		} else {
			w.putBack()
		}
	}
}

// clone starts a copy of a running node's store beside it. Two copies that vote can do
// harm while the network keeps from each of them whom the other one meets, so it is
// whole until one of them has ended.
func (w *world) clone() {
	l := w.steady()
	n := w.any()
	if l == nil || n.slot.stale || w.twin != nil {
		return
	}
	last, _ := l.log.store.LastIndex()
	for _, m := range w.running() {
		if at, _ := m.log.store.LastIndex(); at != last || m.when != never || m.log.Status().Term != l.log.Status().Term {
			return
		}
	}
	s := n.slot
	w.note("a copy of %d starts", s.id)
	clear(w.cut)
	twin := &slot{peer: s.peer, role: s.role, id: s.id, has: true, stale: true}
	s.twin, w.twin, w.since = twin, s, w.step
	w.gone = s
	if _, err := w.start(twin, s.id, n.disk.synced()); err != nil {
		w.failf("copy of node %d: %v", s.id, err)
	}
	s.stale = true // either may be the one that is refused
}

// watchTwins sees that of two copies of a store one ends.
func (w *world) watchTwins() {
	s := w.twin
	if s == nil {
		return
	}
	runs := func(s *slot) bool { return s != nil && s.node != nil }
	switch {
	case runs(s) && runs(s.twin):
		if w.step > w.since+600 {
			w.failf("two copies of node %d run and nobody notices", s.id)
		}
	case runs(s.twin): // it has taken the place of the other
		w.note("the copy of %d goes on", s.id)
		s.node, s.has = s.twin.node, true
		s.node.slot, s.twin.node = s, nil
		for _, p := range w.packets {
			if p.from == s.twin {
				p.from = s
			}
			if p.to == s.twin {
				p.to = s
			}
		}
		s.stale = true // until it has caught up
		w.gone = s
		s.twin, w.twin = nil, nil
	default:
		w.note("the copy of %d is gone", s.id)
		s.twin, w.twin = nil, nil
	}
}

// known reports whether no running node has met a later start of a node's store, as that
// of a copy that was refused by another.
func (w *world) known(n *simNode) bool {
	for _, other := range w.running() {
		if m := other.log.store.vouch.others[n.id]; m != nil && m.descent(&n.log.store.vouch.own) != nil {
			return false
		}
	}
	return true
}

// behind takes note of a node that has stopped because of what its disk lacks.
func (w *world) behind(n *simNode, err error) {
	var refusal *Refusal
	if !n.slot.stale || !errors.As(err, &refusal) || refusal.Kind != Restored {
		w.failf("node %d: %v", n.id, err)
	}
	w.note("%d is refused: %v", n.id, err)
	if s := w.twin; s != nil && (n.slot == s || n.slot == s.twin) {
		n.close()
		n.slot.node, n.slot.has = nil, false
		if other := s.twin; n.slot == other && s.node == nil || n.slot == s && other.node == nil {
			s.twin, w.twin = nil, nil
			w.wipe(s) // both
		}
		w.packets = slices.DeleteFunc(w.packets, func(p *packet) bool { return p.hello != nil && p.hello.sender == n })
		return
	}
	w.wipe(n.slot)
}
