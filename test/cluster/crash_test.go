//go:build linux

package cluster

import (
	"fmt"
	"os"
	"testing"
	"time"
)

func TestWhenTheLeaderIsKilledNothingAcknowledgedIsLost(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	leader := r.leader(r.nodes...)
	rest := r.others(leader)
	l := startLoad(t, "load", r.nodes...)
	l.awaitMore(10, r.nodes...)
	kill(leader)
	t.Logf("%s, the leader, is killed; the others write again after %v", leader.name, l.awaitMore(1, rest...))
	l.awaitMore(10, rest...)
	if failed := l.report(rest...); failed > 0 {
		t.Errorf("%d attempts on the others failed: a leader that dies costs time, not errors", failed)
	}
	if now := r.leader(rest...); now == leader {
		t.Error("the dead node leads")
	}
	leader.mount()
	t.Logf("the killed node writes again after %v", l.awaitMore(3, leader))
	l.end()
	for _, n := range r.nodes {
		l.acked.check(t, n)
	}
	agree(t, "load", r.nodes...)
	r.awaitCopies(r.nodes...)
	for _, n := range r.nodes {
		n.must("check")
	}
}

func TestAFollowerThatIsKilledIsHardlyNoticed(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	dead := r.others(r.leader(r.nodes...))[0]
	rest := r.others(dead)
	before := fill(t, dead, "before", 14)
	l := startLoad(t, "load", rest...)
	l.awaitMore(5, rest...)
	for range 2 {
		kill(dead)
		l.awaitMore(10, rest...)
		dead.mount()
		dead.writable()
		before.check(t, dead)
	}
	l.end()
	if failed := l.report(rest...); failed > 0 {
		t.Errorf("%d attempts on the others failed", failed)
	}
	for _, n := range r.nodes {
		l.acked.check(t, n)
		before.check(t, n)
	}
	agree(t, "load", r.nodes...)
}

func TestWhenTwoOwnersOfFiveAreKilledEverythingCanBeRead(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 5)
	r.awaitVoters(5)
	all := fill(t, r.nodes[0], "one", 21)
	for name, data := range fill(t, r.nodes[4], "other", 21) {
		all[name] = data
	}
	if s := r.nodes[0].status(); s.Cluster.Copies != 3 {
		t.Errorf("%d copies", s.Cluster.Copies)
	}
	r.awaitCopies(r.nodes...)
	blocks := int64(0)
	for _, n := range r.nodes {
		blocks = max(blocks, n.status().Store.Blocks)
	}
	kill(r.nodes[0], r.nodes[4]) // who wrote it, and had it in memory
	rest := r.nodes[1:4]
	t.Logf("written again after %v", rest[0].writable())
	for _, n := range rest {
		start := time.Now()
		all.check(t, n)
		t.Logf("%s read %d files in %v", n.name, len(all), since(start))
	}
	r.nodes[0].mount()
	r.nodes[0].writable()
	all.check(t, r.nodes[0])
}

func TestNodesAreRestartedOneByOneWithoutAnybodyNoticing(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	before := fill(t, r.nodes[0], "before", 14)
	if err := os.Mkdir(r.nodes[0].path("rolling"), 0o755); err != nil {
		t.Fatal(err)
	}
	failed, written := 0, files{}
	for i, n := range r.nodes {
		rest := r.others(n)
		l := startLoad(t, fmt.Sprint("rolling/", i), rest...)
		l.awaitMore(3, rest...)
		start := time.Now()
		n.stop()
		t.Logf("%s (%d) ended in %v", n.name, i, since(start))
		l.awaitMore(5, rest...)
		start = time.Now()
		n.mount()
		t.Logf("%s is mounted after %v and written to %v later", n.name, since(start), n.writable())
		before.check(t, n)
		l.awaitMore(3, rest...)
		l.end()
		failed += l.report(rest...)
		for name, data := range l.acked {
			written[name] = data
		}
		r.awaitVoters(3)
	}
	if failed > 0 {
		t.Errorf("%d operations on other nodes failed", failed)
	}
	for _, n := range r.nodes {
		written.check(t, n)
		before.check(t, n)
	}
	agree(t, "rolling", r.nodes...)
}

func TestAllNodesKilledAtOnceComeBackWithEverything(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	l := startLoad(t, "load", r.nodes...)
	l.awaitMore(10, r.nodes...)
	kill(r.nodes...)
	l.end()
	start := time.Now()
	for _, n := range r.nodes {
		n.mount()
	}
	for _, n := range r.nodes {
		n.writable()
	}
	t.Logf("all can be written to again after %v", since(start))
	for _, n := range r.nodes {
		l.acked.check(t, n)
	}
	agree(t, "load", r.nodes...)
}

// TestANodeThatIsKilledIsGone: what changes elsewhere is told to the kernel, which
// waits for operations under way in the same directory; those wait for the node.
func TestANodeThatIsKilledIsGone(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 2)
	l := startPacedLoad(t, "load", 0, r.nodes...)
	for round := range 8 {
		l.awaitMore(5, r.nodes...)
		n := r.nodes[round%2]
		if err := n.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if stuck := n.outlives(killTime); stuck != "" {
			t.Fatalf("round %d: %s was killed %v ago and is still there, with its data directory locked and calls on its mount hanging: %s", round, n.name, killTime, stuck)
		}
		n.mount()
	}
}
