package raft

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// members are who should belong to the simulated group.
type members struct {
	target  int             // storage members
	limit   int             // of target
	used    map[uint64]bool // numbers in the group that had a disk
	gone    *slot           // whose disk is gone while it is a member, or that is being removed
	twin    *slot           // of which two copies run
	since   int             // step
	leaving *slot           // that is being removed
	invites byte
}

// found makes the first node.
func (w *world) found() {
	w.used = map[uint64]bool{1: true}
	w.target, w.limit = 1, []int{1, 2, 3, 3, 4, 5, 5}[w.rng.IntN(7)]
	for i := range uint64(5) {
		w.slots = append(w.slots, &slot{peer: peerName(i + 1), role: p2p.RoleStorage})
	}
	w.slots = append(w.slots, &slot{peer: peerName(6), role: p2p.RoleClient})
	s := w.slots[0]
	s.id = 1
	n, err := w.start(s, 1, newSimDisk())
	if err != nil {
		w.failf("first node: %v", err)
	}
	res, err := n.state.Apply(1, &namespace.Command{Time: 1, Ops: []namespace.Op{&namespace.FoundCluster{ID: clusterID, First: storageMember(s.peer)}}})
	if err == nil {
		err = errors.Join(res.Err, Found(n.state, n.index.Pebble(), 1), n.index.Flush())
	}
	if err != nil {
		w.failf("first node: %v", err)
	}
	disk := n.disk.synced()
	n.close()
	s.node, s.disk, s.has = nil, disk, true
	w.wake()
}

// newest returns the running node that knows most.
func (w *world) newest() (best *simNode) {
	for _, n := range w.running() {
		if best == nil || n.state.Applied() > best.state.Applied() {
			best = n
		}
	}
	return best
}

// leader returns the leader of the latest term.
func (w *world) leader() (best *simNode) {
	for _, n := range w.running() {
		if n.leads() && (best == nil || n.log.Status().Term > best.log.Status().Term) {
			best = n
		}
	}
	return best
}

// memberEvents are changes of who belongs to the group.
func (w *world) memberEvents() {
	if w.target < w.limit && w.chance(30) && w.gone == nil {
		w.target++
	}
	if w.chance(4) {
		w.remove()
	}
	if w.chance(6) {
		w.loseDisk()
	}
	if s := w.slots[w.rng.IntN(len(w.slots))]; s.node != nil && w.chance(30) && w.steadied(s.node) {
		s.copy = &oldDisk{s.id, s.node.disk.synced(), s.node.log.store.vouch.own.count}
	}
	if w.chance(25) {
		w.putBack()
	}
	if w.chance(8) {
		w.clone()
	}
	if n := w.any(); n != nil && n.log.session.current() != 0 && w.chance(5) {
		m := n.state.View().Members
		state := []p2p.MemberState{p2p.Active, p2p.Away, p2p.Draining}[w.rng.IntN(3)]
		n.propose(simCall{}, &namespace.SetMember{Member: p2p.Member{ID: m[w.rng.IntN(len(m))].ID, State: state}, Mask: namespace.MemberState})
	}
}

// steadied reports whether the node belongs to a group that has a majority without
// it: of an older copy of its disk from such a time, the others can tell.
func (w *world) steadied(n *simNode) bool {
	c := n.log.store.conf
	return len(c.GetVoters()) >= 3 && len(c.GetVotersOutgoing()) == 0
}

// steady returns the leader if all members run and agree on who votes, there are
// three voters at least, and no change of the group is under way.
func (w *world) steady() *simNode {
	l := w.leader()
	if l == nil || !w.steadied(l) || w.gone != nil {
		return nil
	}
	view := l.state.View()
	for i := range view.Members {
		m := &view.Members[i]
		s := w.slotOf(m.Raft)
		if s == nil || s.node == nil || !slices.Equal(s.node.log.store.conf.GetVoters(), l.log.store.conf.GetVoters()) ||
			len(s.node.log.store.conf.GetVotersOutgoing()) > 0 {
			return nil
		}
		first, _ := s.node.log.store.FirstIndex()
		last, _ := s.node.log.store.LastIndex()
		if first > last {
			continue
		}
		entries, err := s.node.log.store.Entries(first, last+1, 1<<62)
		if err != nil {
			w.failf("entries: %v", err)
		}
		for _, e := range entries {
			if e.GetIndex() > s.node.log.core.position && e.GetType() == raftpb.EntryConfChangeV2 {
				return nil
			}
		}
	}
	return l
}

// loseDisk wipes the disk of one node, of a group that has a majority without it.
func (w *world) loseDisk() {
	l := w.steady()
	n := w.any()
	if l == nil || n == l || n.slot.stale {
		return
	}
	w.note("the disk of %d is lost", n.id)
	n.close()
	n.slot.node = nil
	w.wipe(n.slot)
}

// wipe forgets what a node was; it will be a new member.
func (w *world) wipe(s *slot) {
	if s.node != nil {
		s.node.close()
		s.node = nil
	}
	if w.gone != nil && w.gone != s {
		w.failf("two disks are gone")
	}
	w.gone = s
	s.has, s.stale, s.older, s.copy = false, false, false, nil
}

// putBack puts an older copy of a disk in place of what a node has. What the log
// can promise then (rule 4) rests on the others: a majority of voters has, without
// the node, all that it acknowledged and knows of all terms it voted in. Whoever
// puts back a disk while another voter is behind loses what only these two had.
func (w *world) putBack() {
	l := w.steady()
	n := w.any()
	if l == nil || n.slot.copy == nil || n.slot.copy.id != n.id || n.slot.stale {
		return
	}
	last, _ := l.log.store.LastIndex()
	lastTerm, _ := l.log.store.Term(last)
	for _, m := range w.running() {
		at, _ := m.log.store.LastIndex()
		term, _ := m.log.store.Term(at)
		if at != last || term != lastTerm || m.log.Status().Term != l.log.Status().Term || m.log.Status().Role == "candidate" {
			return
		}
	}
	w.note("an old copy of the disk of %d is put back", n.id)
	w.packets = slices.DeleteFunc(w.packets, func(p *packet) bool { return p.from == n.slot || p.to == n.slot })
	s := n.slot
	// Who has met the present start does not forget that.
	for _, m := range w.running() {
		a, met := m.log.peers.acquainted(s.peer)
		s.older = s.older || met && a.mark == n.log.mark && s.copy.starts < n.log.store.vouch.own.count
	}
	n.close()
	s.node, s.disk, s.has, s.alone, s.stale = nil, s.copy.disk.synced(), true, false, true
	w.gone = s // nobody else loses a disk meanwhile
}

// remove takes a member out of the group.
func (w *world) remove() {
	l := w.steady()
	if l == nil {
		if l = w.leader(); l == nil || w.gone != nil || len(l.state.View().Members) < 2 {
			return
		}
	}
	s := w.slots[w.rng.IntN(len(w.slots))]
	if m := l.state.View().Member(s.peer); m == nil || s.node == nil || s.node.id != m.Raft {
		return
	}
	w.note("%d is to be removed", s.id)
	w.gone, w.leaving = s, s
}

// membership proposes what is missing for the members that there should be.
func (w *world) membership() {
	n := w.newest()
	if n == nil || n.state.View() == nil {
		return
	}
	view := n.state.View()
	for _, s := range w.slots {
		// A removal that nobody knew the outcome of may come late, and concern
		// who has joined again since.
		if m := view.Member(s.peer); s.has && w.gone == nil && (m == nil || m.Raft != s.id) {
			w.note("%d was removed", s.id)
			w.gone, w.leaving = s, s
		}
	}
	w.settle(n, view)
	for _, s := range w.slots {
		if m := view.Member(s.peer); s.node == nil && !s.has && m != nil && !w.used[m.Raft] {
			w.join(n, s, m.Raft)
		}
	}
	by := w.any()
	if by == nil || by.log.session.current() == 0 || slices.ContainsFunc(by.calls, func(c *simCall) bool { return c.admin }) {
		return
	}
	view = by.state.View()
	if w.leaving != nil && view.Member(w.leaving.peer) != nil && view.Member(w.leaving.peer).Raft == w.leaving.id {
		by.propose(simCall{admin: true}, &namespace.RemoveMember{ID: w.leaving.peer})
		return
	}
	if s := w.gone; s != nil && s != w.leaving && !s.stale {
		if m := view.Member(s.peer); m != nil && w.used[m.Raft] {
			by.propose(simCall{admin: true}, &namespace.RemoveMember{ID: s.peer})
			return
		}
	}
	if by != n {
		return
	}
	storage := 0
	for i := range view.Members {
		if view.Members[i].Role == p2p.RoleStorage {
			storage++
		}
	}
	for _, s := range w.slots {
		wanted := s.role == p2p.RoleStorage && storage < w.target || s.role == p2p.RoleClient && w.limit > 2 && w.target == w.limit
		if !wanted || s.node != nil || s.has || view.Member(s.peer) != nil || s == w.leaving {
			continue
		}
		w.invites++
		invite := namespace.InviteID{w.invites}
		by.propose(simCall{admin: true}, &namespace.AddInvite{ID: invite, Expires: 1 << 62, Uses: 1, Role: s.role},
			&namespace.Redeem{Invite: invite, Member: storageMember(s.peer)})
		return
	}
}

// sync makes durable what a group of one has not synced.
func (w *world) sync(n *simNode) bool {
	if !n.guard(func() error { return n.journal.Sync(context.Background()) }) {
		return false
	}
	if n.log.store.alone {
		w.durable(n)
	}
	return true
}

// join starts a new member. Its number must be durable before it hears of it.
func (w *world) join(by *simNode, s *slot, id uint64) {
	if !w.sync(by) {
		return
	}
	w.note("%d joins on %s", id, s.peer)
	w.used[id] = true
	s.id = id
	n, err := w.start(s, id, newSimDisk())
	if err != nil {
		w.failf("new node %d: %v", id, err)
	}
	s.has, s.alone = true, false
	w.started(n)
}

// settle ends what is over of the changes of members.
func (w *world) settle(n *simNode, view *p2p.View) {
	s := w.gone
	if s == nil {
		return
	}
	out := true // of the group, as a leader who is not the one concerned knows
	l := w.leader()
	if l == nil || l.slot == s && !s.stale {
		return
	}
	c := l.log.store.conf
	for _, ids := range [][]uint64{c.GetVoters(), c.GetLearners(), c.GetVotersOutgoing(), c.GetLearnersNext()} {
		out = out && !slices.Contains(ids, s.id)
	}
	switch {
	case s == w.leaving:
		gone := func(v *p2p.View) bool { m := v.Member(s.peer); return m == nil || m.Raft != s.id }
		if out && gone(view) && gone(l.state.View()) && w.sync(l) {
			w.note("%d is out", s.id)
			if s.node != nil {
				s.node.close()
				s.node = nil
			}
			s.has, s.copy = false, nil
			w.gone, w.leaving = nil, nil
			if w.target > 1 && w.chance(500) && !w.healed {
				w.target--
			}
		}
	case s.stale:
		// It came up again, and it has all by now, or else it is refused.
		if w.twin == nil && s.node != nil && w.known(s.node) && s.node.log.core.position >= l.log.core.position && (l.slot == s || l.log.core.rn.Status().Progress[s.id].Match >= s.node.held) {
			if s.older {
				w.failf("an older copy of the disk of node %d is taken for the present one", s.id)
			}
			w.note("%d has caught up", s.id)
			s.stale, s.older, s.copy = false, false, nil
			w.gone = nil
		}
	case out && view.Member(s.peer) != nil && !s.has || out && s.node != nil || out && view.Member(s.peer) == nil:
		w.gone = nil
	}
}

func (w *world) describe() (text string) {
	for _, s := range w.slots {
		text += fmt.Sprintf("\n%s has=%v id=%d stale=%v leaving=%v gone=%v", s.peer, s.has, s.id, s.stale, s == w.leaving, s == w.gone)
		if n := s.node; n != nil {
			text += fmt.Sprintf(" %+v conf %v position %+v applied %d session %d calls %d", n.log.Status(), n.log.store.conf, n.state.Position(), n.state.Applied(), n.log.session.current(), len(n.calls))
			if n.leads() {
				text += fmt.Sprintf(" target %d view %+v", w.target, n.state.View().Members)
				text += fmt.Sprintf(" progress %v", n.log.core.rn.Status().Progress)
			}
		}
	}
	return text
}
