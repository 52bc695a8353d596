package raft

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/cairnfs/cairn/p2p"
)

// planned is a group as plan sees it.
type planned struct {
	view     p2p.View
	conf     raftpb.ConfState
	self     uint64
	progress map[uint64]peerProgress
}

// those makes a group of members that are there and have caught up. A role or a
// state follows a number: "c" client, "d" draining, "a" away, "x" not there, "n" not
// caught up; "r" one that is not registered.
func those(self uint64, voters []uint64, members ...string) *planned {
	g := &planned{self: self, conf: raftpb.ConfState{Voters: voters}, progress: make(map[uint64]peerProgress)}
	for _, text := range members {
		var id uint64
		var kind string
		fmt.Sscanf(text, "%d%s", &id, &kind)
		m := storageMember(peerName(id))
		m.Raft = id
		switch kind {
		case "c":
			m.Role = p2p.RoleClient
		case "d":
			m.State = p2p.Draining
		case "a":
			m.State = p2p.Away
		}
		if kind != "r" {
			g.view.Members = append(g.view.Members, m)
		}
		g.progress[id] = peerProgress{active: kind != "x" && kind != "a", caught: kind != "n"}
		if !slices.Contains(voters, id) {
			g.conf.Learners = append(g.conf.Learners, id)
		}
	}
	return g
}

func (g *planned) next() string {
	change, heir := plan(&g.view, &g.conf, g.self, g.progress)
	switch {
	case heir != 0:
		return fmt.Sprintf("%d leads", heir)
	case change == nil:
		return ""
	}
	text := ""
	for i, c := range change.Changes {
		if i > 0 {
			text += " "
		}
		text += map[raftpb.ConfChangeType]string{raftpb.ConfChangeAddNode: "+", raftpb.ConfChangeRemoveNode: "-", raftpb.ConfChangeAddLearnerNode: "~"}[c.GetType()]
		text += fmt.Sprint(c.GetNodeId())
	}
	return text
}

// Rule 19. "+" makes a voter, "~" a learner, "-" removes.
func TestTheNextStepOfAGroup(t *testing.T) {
	v := func(ids ...uint64) []uint64 { return ids }
	for name, c := range map[string]struct {
		g    *planned
		want string
	}{
		"alone it stays":                              {those(1, v(1), "1"), ""},
		"a second votes when it has caught up":        {those(1, v(1), "1", "2"), "+2"},
		"not before":                                  {those(1, v(1), "1", "2n"), ""},
		"nor while it is not there":                   {those(1, v(1), "1", "2x"), ""},
		"two become three":                            {those(1, v(1, 2), "1", "2", "3"), "+3"},
		"three become two more at once":               {those(1, v(1, 2, 3), "1", "2", "3", "4", "5"), "+4 +5"},
		"never four, with four":                       {those(1, v(1, 2, 3), "1", "2", "3", "4"), ""},
		"never four, with a fifth that is not there":  {those(1, v(1, 2, 3), "1", "2", "3", "4", "5x"), ""},
		"never six":                                   {those(1, v(1, 2, 3, 4, 5), "1", "2", "3", "4", "5", "6"), ""},
		"clients never vote":                          {those(1, v(1), "1", "2c", "3c"), ""},
		"one that is away is replaced, in one change": {those(1, v(1, 2, 3), "1", "2", "3a", "4"), "+4 ~3"},
		"so is one that drains":                       {those(1, v(1, 2, 3), "1", "2d", "3", "4"), "+4 ~2"},
		"not by one that has not caught up":           {those(1, v(1, 2, 3), "1", "2", "3a", "4n"), ""},
		"without another it goes on voting":           {those(1, v(1, 2, 3), "1", "2", "3a"), ""},
		"one that does not answer is not away yet":    {those(1, v(1, 2, 3), "1", "2", "3x", "4"), ""},
		"of two, the other is never given up":         {those(1, v(1, 2), "1", "2a"), ""},
		"a removed learner goes first":                {those(1, v(1), "1", "2r", "3"), "-2"},
		"a removed voter is replaced":                 {those(1, v(1, 2, 3), "1", "2", "3r", "4"), "+4 -3"},
		"or the rest is smaller":                      {those(1, v(1, 2, 3), "1", "2", "3r"), "-3"},
		"down to one":                                 {those(1, v(1, 2), "1", "2r"), "-2"},
		"four that are left of five are three":        {those(1, v(1, 2, 3, 4, 5), "1", "2", "3", "4", "5r"), "~4 -5"},
		"a removed leader is succeeded first":         {those(1, v(1, 2, 3), "1r", "2", "3", "4"), "2 leads"},
		"by one who is there":                         {those(1, v(1, 2, 3), "1d", "2x", "3", "4"), "3 leads"},
		"who may have to become a voter before":       {those(1, v(1), "1r", "2"), "+2"},
		"a leader that does not vote gives way":       {those(1, v(2, 3), "1", "2", "3"), "2 leads"},
		"no set without a majority that is there":     {those(1, v(1, 2, 3), "1", "2x", "3x", "4r"), "-4"},
		"not even to replace one":                     {those(1, v(1, 2, 3, 4, 5), "1", "2", "3x", "4x", "5x", "6"), ""},
	} {
		if got := c.g.next(); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestNothingIsPlannedDuringAChange(t *testing.T) {
	g := those(1, []uint64{1, 2}, "1", "2", "3")
	g.conf.VotersOutgoing = []uint64{1}
	if got := g.next(); got != "" {
		t.Error(got)
	}
}

func TestANewMemberLearnsFirst(t *testing.T) {
	g := those(1, []uint64{1}, "1", "2", "3c")
	g.conf.Learners = nil
	if got := g.next(); got != "~2" {
		t.Error(got)
	}
}

// take does what was planned, and checks what must hold of every step.
func (g *planned) take(t *testing.T) (more bool) {
	change, heir := plan(&g.view, &g.conf, g.self, g.progress)
	if heir != 0 {
		if change != nil || heir == g.self || !slices.Contains(g.conf.Voters, heir) || !g.progress[heir].active {
			t.Fatalf("%d is to lead %v", heir, g.conf.Voters)
		}
		g.self = heir
		return true
	}
	if change == nil {
		return false
	}
	voters, learners := slices.Clone(g.conf.Voters), slices.Clone(g.conf.Learners)
	for _, c := range change.Changes {
		id := c.GetNodeId()
		is := func(other uint64) bool { return other == id }
		voters, learners = slices.DeleteFunc(voters, is), slices.DeleteFunc(learners, is)
		switch c.GetType() {
		case raftpb.ConfChangeAddNode:
			voters = append(voters, id)
			if p := g.progress[id]; !p.active || !p.caught {
				t.Fatalf("%d votes, and is %+v", id, p)
			}
		case raftpb.ConfChangeAddLearnerNode:
			learners = append(learners, id)
		}
	}
	slices.Sort(voters)
	if !slices.Contains(voters, g.self) {
		t.Fatalf("%d takes its own vote: %v", g.self, voters)
	}
	if !slices.Equal(voters, g.conf.Voters) && !electable(voters, g.self, g.progress) {
		t.Fatalf("no majority of %v is there: %v", voters, g.progress)
	}
	for _, id := range voters {
		for i := range g.view.Members {
			if m := &g.view.Members[i]; m.Raft == id && m.Role != p2p.RoleStorage {
				t.Fatalf("client %d votes", id)
			}
		}
	}
	g.conf.Voters, g.conf.Learners = voters, learners
	return true
}

func TestPlansLeadWhereTheyShouldAndEnd(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for round := range 3000 {
		var members []string
		n := 1 + rng.IntN(8)
		for id := 1; id <= n; id++ {
			members = append(members, fmt.Sprint(id, []string{"", "", "", "", "c", "d", "a", "x", "n", "r"}[rng.IntN(10)]))
		}
		members[0] = []string{"1", "1", "1d", "1r"}[rng.IntN(4)]
		voters := []uint64{1}
		for id := uint64(2); id <= uint64(n); id++ {
			if len(voters) < 5 && rng.IntN(2) == 0 && members[id-1][1:] != "c" {
				voters = append(voters, id)
			}
		}
		g := those(1, voters, members...)
		if rng.IntN(2) == 0 {
			g.conf.Learners = nil
		}
		steps := 0
		for g.take(t) {
			if steps++; steps > 40 {
				t.Fatalf("round %d: no end for %v, voters %v", round, members, voters)
			}
		}
		// When all are there, exactly those who should vote do.
		for id := range g.progress {
			g.progress[id] = peerProgress{active: true, caught: true}
		}
		for g.take(t) {
			if steps++; steps > 80 {
				t.Fatalf("round %d: no end for %v, voters %v", round, members, voters)
			}
		}
		storage := 0
		for i := range g.view.Members {
			if g.view.Members[i].Role == p2p.RoleStorage {
				storage++
			}
		}
		if storage > 0 && len(g.conf.Voters) != votersFor(storage) {
			t.Fatalf("round %d: %v vote of %v, from %v", round, g.conf.Voters, members, voters)
		}
		if len(g.conf.Voters)+len(g.conf.Learners) != len(g.view.Members) && storage > 0 {
			t.Fatalf("round %d: %v and %v of %v", round, g.conf.Voters, g.conf.Learners, members)
		}
	}
}
