//go:build linux

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"
)

// status is what these tests read of `cairn status --json`.
type status struct {
	Store     struct{ Blocks int64 }
	Namespace struct{ PatchBytes int64 }
	Node      *struct {
		ID      string
		Name    string
		Drained bool
	}
	Cluster *struct {
		ID     string
		Copies int
	}
	Raft *struct {
		Role, Leader string
		Term         uint64
		AppliedIndex uint64
		Session      uint64
	}
	Peers []struct {
		ID, Name, Role, State string
		Voter, Drained, Away  bool
	}
	Blocks *struct {
		UnderReplicated, PendingReplication int64
		PassDone                            bool
	}
}

// tryStatus asks a node how it is.
func (n *node) tryStatus() (s status, err error) {
	n.t.Helper()
	out, errs, code := n.run("status", "--json")
	if code != 0 {
		return s, fmt.Errorf("status of %s: exit code %d: %s", n.name, code, errs)
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return s, fmt.Errorf("status of %s: %w: %s", n.name, err, out)
	}
	if s.Node == nil || s.Raft == nil || s.Cluster == nil || s.Blocks == nil {
		return s, fmt.Errorf("status of %s lacks what a member has: %s", n.name, out)
	}
	return s, nil
}

func (n *node) status() status {
	n.t.Helper()
	s, err := n.tryStatus()
	if err != nil {
		n.t.Fatal(err)
	}
	return s
}

// eventually tries until there is no error, and returns how long that took.
func eventually(t testing.TB, patience time.Duration, what string, try func() error) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		err := try()
		if err == nil {
			return since(start)
		}
		if time.Since(start) > patience {
			t.Fatalf("%s: not after %v: %v", what, patience, err)
		}
		time.Sleep(pause)
	}
}

// bounded does something that may hang, and fails the test if it takes forever.
func bounded(t testing.TB, what string, do func() error) (took time.Duration, err error) {
	t.Helper()
	start := time.Now()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return since(start), err
	case <-time.After(callTime):
		t.Fatalf("%s hangs: no answer after %v", what, callTime)
		return 0, nil
	}
}

// leader returns the node that the others follow, when all the nodes given agree on
// one that is among them.
func (r *rig) leader(among ...*node) *node {
	r.t.Helper()
	var leader *node
	eventually(r.t, settleTime, "one leader", func() error {
		leader = nil
		var id string
		for _, n := range among {
			s, err := n.tryStatus()
			switch {
			case err != nil:
				return err
			case s.Raft.Leader == "" || id != "" && s.Raft.Leader != id:
				return fmt.Errorf("%s follows %q, others %q", n.name, s.Raft.Leader, id)
			}
			id = s.Raft.Leader
			if id == s.Node.ID {
				leader = n
			}
		}
		if leader == nil {
			return errors.New("the leader is another node: " + id)
		}
		return nil
	})
	return leader
}

// awaitVoters waits until so many nodes order changes, as two of them say.
func (r *rig) awaitVoters(want int, say ...*node) {
	r.t.Helper()
	if say == nil {
		say = r.nodes[:2]
	}
	took := eventually(r.t, settleTime, fmt.Sprint(want, " voters"), func() error {
		// Of itself a node does not say whether it votes.
		votes := map[string]bool{}
		for _, n := range say {
			s, err := n.tryStatus()
			if err != nil {
				return err
			}
			for _, p := range s.Peers {
				votes[p.ID] = votes[p.ID] || p.Voter
			}
		}
		got := 0
		for _, v := range votes {
			if v {
				got++
			}
		}
		if got != want {
			return fmt.Errorf("%d vote", got)
		}
		return nil
	})
	r.t.Logf("%d voters after %v", want, took)
}

// awaitCopies waits until the nodes say that no block lacks a copy.
func (r *rig) awaitCopies(nodes ...*node) {
	r.t.Helper()
	took := eventually(r.t, settleTime, "all copies", func() error {
		for _, n := range nodes {
			s, err := n.tryStatus()
			if err != nil {
				return err
			}
			if b := *s.Blocks; b.UnderReplicated > 0 || b.PendingReplication > 0 || !b.PassDone {
				return fmt.Errorf("%s: %+v", n.name, b)
			}
		}
		return nil
	})
	r.t.Logf("all copies after %v", took)
}

// awaitApplied waits until a node has applied what another has by now.
func (n *node) awaitApplied(other *node) {
	n.t.Helper()
	want := other.status().Raft.AppliedIndex
	eventually(n.t, settleTime, n.name+" applies what "+other.name+" has", func() error {
		s, err := n.tryStatus()
		if err != nil {
			return err
		}
		if s.Raft.AppliedIndex < want {
			return fmt.Errorf("at %d of %d", s.Raft.AppliedIndex, want)
		}
		return nil
	})
}

// writable waits until the node's mount can be written to again.
func (n *node) writable() time.Duration {
	n.t.Helper()
	return eventually(n.t, settleTime, n.name+" is writable", func() error {
		path := n.path(".try-" + n.name)
		_, err := bounded(n.t, "a write on "+n.name, func() error { return writeSynced(path, []byte("x")) })
		return errors.Join(err, os.Remove(path))
	})
}
