package raft

import (
	"slices"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/cairnfs/cairn/p2p"
)

// Who votes follows from the registry: one, two, three or five of the members that
// store blocks; everybody else learns (rule 19). plan is the rule, a pure function
// of what the leader knows; it says the next step only.

// peerProgress is what the leader knows of a member of the group.
type peerProgress struct {
	active bool   // was heard of within an election's time
	caught bool   // has nearly all of the log
	match  uint64 // entry up to which it has the log
}

// votersFor returns how many voters a cluster with so many storage members has.
func votersFor(storage int) int {
	switch {
	case storage >= 5:
		return 5
	case storage >= 3:
		return 3
	}
	return storage
}

// plan returns the next change of the group, nil if it is as it should be or nothing
// can be done now. self leads. If heir is not 0, another is to lead first.
//
// A leader does not take its own vote away. Of two voters, the other could not
// know yet that it is left alone, would need the vote of the one that is out, and
// not get it, because that one's log is longer: nobody could ever lead again.
func plan(view *p2p.View, conf *raftpb.ConfState, self uint64, progress map[uint64]peerProgress) (change *raftpb.ConfChangeV2, heir uint64) {
	if len(conf.GetVotersOutgoing()) > 0 || len(conf.GetLearnersNext()) > 0 {
		return nil, 0 // a change is under way
	}
	if !slices.Contains(conf.GetVoters(), self) {
		return nil, successor(conf.GetVoters(), conf, self, progress) // a former leader began the change that took the vote
	}
	members := make(map[uint64]*p2p.Member)
	for i := range view.Members {
		members[view.Members[i].Raft] = &view.Members[i]
	}
	var c raftpb.ConfChangeV2
	add := func(t raftpb.ConfChangeType, id uint64) {
		c.Changes = append(c.Changes, &raftpb.ConfChangeSingle{Type: t.Enum(), NodeId: proto.Uint64(id)})
	}
	for _, id := range conf.GetLearners() {
		if members[id] == nil {
			add(raftpb.ConfChangeRemoveNode, id)
			return &c, 0
		}
	}
	for _, m := range view.Members {
		if !slices.Contains(conf.GetVoters(), m.Raft) && !slices.Contains(conf.GetLearners(), m.Raft) {
			add(raftpb.ConfChangeAddLearnerNode, m.Raft)
			return &c, 0
		}
	}
	want := choose(view, conf, self, progress)
	if !slices.Contains(want, self) {
		if heir := successor(want, conf, self, progress); heir != 0 {
			return nil, heir
		}
		want = append(want, self) // until there is one
	}
	for _, id := range want {
		if !slices.Contains(conf.GetVoters(), id) {
			add(raftpb.ConfChangeAddNode, id)
		}
	}
	for _, id := range conf.GetVoters() {
		switch {
		case slices.Contains(want, id):
		case members[id] == nil:
			add(raftpb.ConfChangeRemoveNode, id)
		default:
			add(raftpb.ConfChangeAddLearnerNode, id)
		}
	}
	if len(c.Changes) == 0 || !electable(want, self, progress) {
		return nil, 0
	}
	return &c, 0
}

// successor returns the first of the given members that can take over, 0 if none
// can.
func successor(of []uint64, conf *raftpb.ConfState, self uint64, progress map[uint64]peerProgress) uint64 {
	for _, id := range of {
		if p := progress[id]; id != self && p.active && p.caught && slices.Contains(conf.GetVoters(), id) {
			return id
		}
	}
	return 0
}

// choose returns the best voters, ascending.
func choose(view *p2p.View, conf *raftpb.ConfState, self uint64, progress map[uint64]peerProgress) []uint64 {
	type candidate struct {
		id    uint64
		score int
	}
	var all []candidate
	for i := range view.Members {
		m := &view.Members[i]
		if m.Role != p2p.RoleStorage || m.State == p2p.Leaving {
			continue
		}
		p := progress[m.Raft]
		votes := slices.Contains(conf.GetVoters(), m.Raft)
		if !votes && m.Raft != self && !(p.active && p.caught) {
			continue // after it has caught up
		}
		score := 0
		if m.State == p2p.Active {
			score += 4
		}
		if votes {
			score += 2
		}
		if m.Raft == self || p.active && m.State == p2p.Active {
			score++
		}
		all = append(all, candidate{m.Raft, score})
	}
	slices.SortFunc(all, func(a, b candidate) int {
		if a.score != b.score {
			return b.score - a.score
		}
		if a.id < b.id {
			return -1
		}
		return 1
	})
	// From three voters to five only with both: a fourth only adds to the majority.
	n := votersFor(len(all))
	want := make([]uint64, 0, n)
	for _, c := range all[:n] {
		want = append(want, c.id)
	}
	slices.Sort(want)
	return want
}

// electable reports whether a majority of the voters is there.
func electable(voters []uint64, self uint64, progress map[uint64]peerProgress) bool {
	n := 0
	for _, id := range voters {
		if id == self || progress[id].active {
			n++
		}
	}
	return len(voters) > 0 && n > len(voters)/2
}
