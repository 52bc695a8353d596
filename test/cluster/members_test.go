//go:build linux

package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestAWipedNodeJoinsAnewAndIsRefilled(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	all := fill(t, r.nodes[0], "data", 21)
	r.awaitCopies(r.nodes...)
	wiped, rest := r.nodes[2], r.nodes[:2]
	old := wiped.status().Node.ID
	held := wiped.status().Store.Blocks
	kill(wiped)
	wiped.wipe()
	rest[0].must("peers", "remove", old)
	wiped.mount("--join", rest[1].invite())
	if id := wiped.status().Node.ID; id == old {
		t.Error("a wiped node came back as who it was")
	}
	r.awaitVoters(3)
	start := time.Now()
	eventually(t, settleTime, "the wiped node is refilled", func() error {
		s, err := wiped.tryStatus()
		if err == nil && s.Store.Blocks < held {
			err = fmt.Errorf("it has %d of %d blocks", s.Store.Blocks, held)
		}
		return err
	})
	t.Logf("%d blocks after %v", held, since(start))
	r.awaitCopies(r.nodes...)
	wiped.must("check")
	// With copies on all three nodes, any one of them has everything.
	kill(rest...)
	all.check(t, wiped)
	for _, n := range rest {
		n.mount()
	}
	wiped.writable()
	agree(t, "data", r.nodes...)
}

func TestANodeJoinsUnderLoad(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 2)
	before := fill(t, r.nodes[0], "before", 14)
	l := startLoad(t, "load", r.nodes...)
	l.awaitMore(5, r.nodes...)
	n := r.add()
	start := time.Now()
	n.mount("--join", r.nodes[1].invite())
	t.Logf("joined and mounted after %v, writable %v later", since(start), n.writable())
	before.check(t, n)
	l.awaitMore(5, r.nodes[:2]...)
	r.awaitVoters(3)
	l.end()
	if failed := l.report(r.nodes[:2]...); failed > 0 {
		t.Errorf("%d attempts failed", failed)
	}
	for _, n := range r.nodes {
		l.acked.check(t, n)
	}
	r.awaitCopies(r.nodes...)
	n.must("check")
	agree(t, ".", r.nodes...)
}

func TestADrainedNodeCanBeRemovedWithoutLoss(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	r.nodes[0].must("config", "set", "copies", "1")
	leaving, rest := r.nodes[2], r.nodes[:2]
	all := fill(t, leaving, "data", 21)
	r.awaitCopies(r.nodes...)
	full := leaving.status().Store
	start := time.Now()
	rest[0].must("peers", "drain", "--wait", leaving.name)
	t.Logf("drained after %v", since(start))
	empty := eventually(t, 30*time.Second, "the drained node is empty", func() error {
		if s := leaving.status().Store; s.Blocks > 0 || s.StoredBytes > 0 {
			return fmt.Errorf("it holds %d blocks of %d bytes, at first %d of %d", s.Blocks, s.StoredBytes, full.Blocks, full.StoredBytes)
		}
		return nil
	})
	if t.Logf("empty %v later", empty); full.Blocks == 0 {
		t.Error("it held nothing before")
	}
	if out := rest[1].must("peers"); !strings.Contains(out, "drained") {
		t.Errorf("peers do not say that it is drained:\n%s", out)
	}
	all.check(t, leaving)
	for _, n := range r.nodes {
		n.must("check")
	}
	rest[0].must("peers", "remove", leaving.name)
	if err := leaving.awaitEnd(); err == nil {
		t.Error("a node that was removed ended as if all were well")
	}
	if log := leaving.log(); !strings.Contains(log, "was removed from its cluster") {
		t.Errorf("the node that was removed did not say so:\n%s", leaving.logEnd(5))
	}
	leaving.detach()
	leaving.wipe()
	for _, n := range rest {
		all.check(t, n)
		n.must("check")
		if out := n.must("peers"); strings.Contains(out, leaving.name) {
			t.Errorf("%s still knows it:\n%s", n.name, out)
		}
	}
	// What only the other has is no damage of a node that does not run.
	kill(rest[1])
	if out := rest[1].must("check"); !strings.Contains(out, "as they should be") {
		t.Error(out)
	}
	rest[1].mount()
	r.nodes = rest
	r.awaitVoters(2)
}

func TestOneSurvivorGoesOnAloneWhenToldTo(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	all := fill(t, r.nodes[0], "data", 21)
	r.awaitCopies(r.nodes...)
	survivor, lost := r.nodes[2], r.nodes[:2]
	survivor.awaitApplied(lost[0])
	before := survivor.status()
	kill(lost...)
	for _, n := range lost {
		n.wipe()
	}
	if _, errs, code := survivor.run("recover", "--force-new-cluster"); code != 5 {
		t.Errorf("recover while the node runs: exit code %d: %s", code, errs)
	}
	kill(survivor)
	if _, errs, code := survivor.run("recover"); code != 2 {
		t.Errorf("recover without saying so: exit code %d: %s", code, errs)
	}
	out, errs, code := survivor.run("recover", "--force-new-cluster")
	if code != 0 || !strings.Contains(out, before.Cluster.ID) {
		t.Fatalf("exit code %d: %s%s", code, out, errs)
	}
	for _, n := range lost {
		if !strings.Contains(errs, n.name) {
			t.Errorf("does not say that %s is removed: %s", n.name, errs)
		}
	}
	t.Log(out)
	survivor.mount()
	t.Logf("can be written to after %v", survivor.writable())
	all.check(t, survivor)
	survivor.must("check")
	if s := survivor.status(); s.Cluster.ID != before.Cluster.ID || s.Raft.Role != "leader" || len(s.Peers) != 0 {
		t.Errorf("now it is %+v", s)
	}
	ok(t, writeSynced(survivor.path("after"), []byte("alone")))
	back := lost[0]
	back.mount("--join", survivor.invite())
	back.writable()
	all.check(t, back)
	if err := holds(back.path("after"), []byte("alone")); err != nil {
		t.Error(err)
	}
	r.awaitCopies(survivor, back)
	agree(t, ".", survivor, back)
}

// TestAMemberOfBeforeARecoveryIsNotLetIn: what it knows may be another history.
func TestAMemberOfBeforeARecoveryIsNotLetIn(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	ok(t, writeSynced(r.nodes[0].path("before"), []byte("before")))
	survivor := r.nodes[2]
	survivor.awaitApplied(r.nodes[0])
	kill(r.nodes...)
	survivor.must("recover", "--force-new-cluster")
	survivor.mount()
	survivor.writable()
	ok(t, writeSynced(survivor.path("before"), []byte("after!")))
	// Two old members are a majority of what they know.
	for _, n := range r.nodes[:2] {
		if said, err := n.tryStart("mounted "+n.mnt, "mount", "--listen", n.listen, n.mnt); err != nil {
			t.Logf("%s does not start: %v, %q", n.name, err, said)
		}
	}
	ok(t, writeSynced(survivor.path("more"), []byte("more")))
	for _, n := range r.nodes[:2] {
		if _, err := os.Lstat(n.path("more")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s sees what was written after the recovery: %v", n.name, err)
		}
	}
	if err := holds(survivor.path("before"), []byte("after!")); err != nil {
		t.Error(err)
	}
	if s := survivor.status(); s.Raft.Role != "leader" || len(s.Peers) != 0 {
		t.Errorf("the survivor is %+v", s)
	}
}

func TestTwoNodesOnOneMachine(t *testing.T) {
	needs(t)
	r := newLocalRig(t, 2)
	a, b := r.nodes[0], r.nodes[1]
	a.mount()
	b.mount("--join", a.invite())
	all := fill(t, a, "data", 14)
	all.check(t, b)
	ok(t, os.Rename(b.path("data", "f1"), b.path("moved")))
	if err := holds(a.path("moved"), all["data/f1"]); err != nil {
		t.Error(err)
	}
	r.awaitCopies(a, b)
	for _, n := range r.nodes {
		n.must("check")
		n.stop()
	}
	// Port 0 may be another one now: they find each other all the same.
	for _, n := range r.nodes {
		n.mount()
	}
	for _, n := range r.nodes {
		n.writable()
	}
	agree(t, ".", a, b)
}

func TestServersWithoutAMountKeepBlocksForOthers(t *testing.T) {
	needsNet(t)
	r := newRig(t, 3)
	for i, n := range r.nodes {
		if i > 0 {
			if out := n.must("join", "--listen", n.listen, "--name", n.name, r.nodes[0].invite()); !strings.HasPrefix(out, "joined ") {
				t.Errorf("join says %q", out)
			}
		}
		n.serve()
	}
	src := filepath.Join(t.TempDir(), "src")
	want := random(1, 3<<20)
	ok(t, os.WriteFile(src, want, 0o644))
	cid := r.nodes[0].must("add", "-q", src)
	r.awaitCopies(r.nodes...)
	kill(r.nodes[0])
	for _, n := range r.nodes[1:] {
		out := filepath.Join(t.TempDir(), "out")
		n.must("get", cid, "-o", out)
		if err := holds(out, want); err != nil {
			t.Error(err)
		}
		n.must("check")
	}
	for _, n := range r.nodes[1:] {
		n.stop()
	}
}
