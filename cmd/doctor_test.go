package cmd

import (
	"strings"
	"testing"

	"github.com/cairnfs/cairn/node/control"
)

// well is a member of a cluster of three of which nothing is wrong.
func well() control.Status {
	peer := func(id, name string) control.PeerStatus {
		return control.PeerStatus{ID: "12D3KooW" + id, Name: name, State: "alive", Voter: true, LastSeen: "2026-11-30T12:00:00Z"}
	}
	return control.Status{
		Dir:     "/store",
		Store:   control.StoreStatus{AvailBytes: 50 << 30, DiskBytes: 100 << 30},
		Node:    &control.NodeStatus{ID: "12D3KooWaaaaaaaa"},
		Cluster: &control.ClusterStatus{ID: "c", Version: 2, Knows: 2},
		Raft:    &control.RaftStatus{Role: "follower", Leader: "12D3KooWbbbbbbbb", Session: 7, Voter: true},
		Peers:   []control.PeerStatus{peer("bbbbbbbb", "bea"), peer("cccccccc", "cem")},
		Blocks:  &control.BlocksStatus{PassDone: true},
	}
}

// Rule 20: doctor says what is wrong and prints the command.
func TestDoctorSaysWhatIsWrongAndWhatToDo(t *testing.T) {
	for _, c := range []struct {
		name    string
		spoil   func(s *control.Status)
		problem bool
		words   []string // of the only finding, in order
	}{
		{"all is well", func(*control.Status) {}, false, nil},
		{"a store of its own", func(s *control.Status) {
			*s = control.Status{Store: control.StoreStatus{AvailBytes: 50 << 30, DiskBytes: 100 << 30}}
		}, false, nil},
		{"removed", func(s *control.Status) {
			s.Cluster.Refused = &control.RefusalStatus{Kind: "removed", Reason: "this node was removed"}
			s.Node, s.Raft, s.Peers, s.Blocks = nil, nil, nil, nil
		}, true, []string{"removed", "cairn invite", "cairn join --rejoin TOKEN"}},
		{"restored", func(s *control.Status) {
			s.Cluster.Refused = &control.RefusalStatus{Kind: "restored", Reason: "its store is older"}
			s.Node, s.Raft, s.Peers, s.Blocks = nil, nil, nil, nil
		}, true, []string{"older", "another copy", "cairn join --rejoin", "cairn recover --force-new-cluster` on the other"}},
		{"does not run", func(s *control.Status) {
			s.Node, s.Raft, s.Peers, s.Blocks = nil, nil, nil, nil
		}, true, []string{"does not run", "cairn mount"}},
		{"an election", func(s *control.Status) { s.Raft.Leader = "" }, true, []string{"no leader", "most", "election"}},
		{"no session", func(s *control.Status) { s.Raft.Session = 0 }, true, []string{"no session", "bbbbbbbb"}},
		{"full", func(s *control.Status) { s.Store.AvailBytes = 0 }, true, []string{"full", "/store"}},
		{"nearly full", func(s *control.Status) { s.Store.AvailBytes = 4 << 30 }, false, []string{"4.0 GiB", "reserve"}},
		{"copies are missing", func(s *control.Status) { s.Blocks.UnderReplicated = 12 }, false, []string{"12 blocks", "being copied"}},
		{"blocks are lost", func(s *control.Status) { s.Blocks.Lost = 1 }, true, []string{"damaged", "cairn check"}},
		{"a member is away", func(s *control.Status) { s.Peers[1].State = "dead" }, false, []string{"cccccccc (cem), last seen", "cairn peers remove cccccccc"}},
		{"a clock is off", func(s *control.Status) { s.Peers[0].ClockAheadMillis = -70_000 }, false, []string{"bbbbbbbb (bea)", "1m10s behind", "chrony"}},
		{"a clock is far off", func(s *control.Status) { s.Peers[0].ClockAheadMillis = 7_200_000 }, true, []string{"2h0m0s ahead"}},
		{"an old program", func(s *control.Status) {
			s.Cluster.Version, s.Cluster.Lagging = 1, []string{s.Peers[1].ID}
		}, false, []string{"version 1", "knows 2", "update cairn on cccccccc"}},
	} {
		s := well()
		c.spoil(&s)
		found := diagnose(s)
		if c.words == nil {
			if len(found) > 0 {
				t.Errorf("%s: %+v", c.name, found)
			}
			continue
		}
		if len(found) != 1 || found[0].Problem != c.problem {
			t.Errorf("%s: %+v", c.name, found)
			continue
		}
		rest := found[0].What + "\n" + found[0].Do
		for _, w := range c.words {
			_, after, ok := strings.Cut(rest, w)
			if !ok {
				t.Errorf("%s: no %q in %q", c.name, w, rest)
			}
			rest = after
		}
	}
}

// Rule 20: of two nodes the loss of one is told as what it is, the worst first.
func TestDoctorPrintsTheCommandForTwoNodesOfWhichOneIsLost(t *testing.T) {
	s := well()
	s.Peers = s.Peers[:1]
	s.Peers[0].State, s.Raft.Leader, s.Raft.Session = "dead", "", 0
	s.Blocks.UnderReplicated = 3
	found := diagnose(s)
	if len(found) != 3 || !found[0].Problem || found[1].Problem || found[2].Problem {
		t.Fatalf("%+v", found)
	}
	for _, w := range []string{"of 2 nodes that vote, 1 do not answer: bbbbbbbb (bea), last seen"} {
		if !strings.Contains(found[0].What, w) {
			t.Errorf("no %q in %q", w, found[0].What)
		}
	}
	for _, w := range []string{"bring them back", "stop this node", "cairn recover --force-new-cluster", "WARNING", "lost", "--rejoin"} {
		if !strings.Contains(found[0].Do, w) {
			t.Errorf("no %q in %q", w, found[0].Do)
		}
	}
}
