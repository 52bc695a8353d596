//go:build linux

package cluster

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// slowRepair are flags by which what repair copies within a test is little.
var slowRepair = []string{"--repair-rate", "100KiB"}

// addTo appends to a file and returns when that is durable.
func addTo(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// clone makes a file of the content of another, as cp does, durably.
func clone(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	for {
		n, err := unix.CopyFileRange(int(src.Fd()), nil, int(dst.Fd()), nil, 1<<30, 0)
		if err != nil {
			return errors.Join(err, dst.Close())
		}
		if n == 0 {
			return errors.Join(dst.Sync(), dst.Close())
		}
	}
}

// lose kills a node and what it stored.
func lose(n *node) {
	kill(n)
	n.wipe()
}

// Rule 15: what fsync has acknowledged in a cluster is on two nodes, also where it
// was stored before there was a cluster, whoever named it anew.
func TestFilesFromBeforeTheClusterSurviveTheirNodeOnceTheyAreSyncedAnew(t *testing.T) {
	needsNet(t)
	r := newRig(t, 3)
	first, second, third := r.nodes[0], r.nodes[1], r.nodes[2]
	first.mount(slowRepair...)
	old := map[string][]byte{}
	for i, name := range []string{"appended", "appended-elsewhere", "copied", "added"} {
		old[name] = random(uint64(100+i), 12<<20)
		ok(t, writeSynced(first.path(name), old[name]))
	}
	for _, n := range r.nodes[1:] {
		n.mount(append(slices.Clone(slowRepair), "--join", first.invite())...)
	}
	r.awaitVoters(3)
	start := time.Now()
	ok(t, addTo(first.path("appended"), []byte("more")))
	ok(t, addTo(second.path("appended-elsewhere"), []byte("more")))
	ok(t, clone(first.path("copy"), first.path("copied")))
	cid := first.must("add", "-q", first.path("added"))
	t.Logf("named anew in %v", since(start))
	if s := first.status(); s.Blocks.UnderReplicated == 0 && s.Blocks.PassDone {
		t.Fatal("repair has copied everything: nothing is proved")
	}
	third.awaitApplied(first)

	lose(first)
	t.Logf("written again after %v", third.writable())
	start = time.Now()
	for _, n := range []*node{second, third} {
		for name, want := range map[string][]byte{
			"appended":           append(slices.Clone(old["appended"]), "more"...),
			"appended-elsewhere": append(slices.Clone(old["appended-elsewhere"]), "more"...),
			"copy":               old["copied"],
		} {
			if err := holds(n.path(name), want); err != nil {
				t.Errorf("%s on %s: %v", name, n.name, err)
			}
		}
	}
	t.Logf("read in %v", since(start))
	if out := second.must("cat", cid); out != strings.TrimSpace(string(old["added"])) {
		t.Errorf("what was added has %d bytes", len(out))
	}
}

// Rule 15, after a crash: the node has blocks that no other has, and is told again to
// store the same.
func TestBlocksThatACrashLeftOnOneNodeSurviveItOnceTheyAreSyncedAnew(t *testing.T) {
	needsNet(t)
	r := newRig(t, 3)
	for _, n := range r.nodes {
		flags := slices.Clone(slowRepair)
		if n != r.nodes[0] {
			flags = append(flags, "--join", r.nodes[0].invite())
		}
		n.mount(flags...)
	}
	r.awaitVoters(3)
	r.awaitCopies(r.nodes...)
	crashed := r.others(r.leader(r.nodes...))[0]
	rest := r.others(crashed)
	f, err := os.Create(crashed.path("f"))
	ok(t, err)
	defer f.Close()
	r.part([]*node{crashed}, rest)
	data, added := random(200, 8<<20), random(201, 8<<20)
	outside := crashed.dir + "-outside"
	ok(t, os.WriteFile(outside, added, 0o644))
	refused(t, "a write that no other node gets", func() error {
		_, err := f.Write(data)
		return errors.Join(err, f.Sync())
	})
	if _, _, code := crashed.run("add", "-q", outside); code == 0 {
		t.Error("added without a majority")
	}
	if n := crashed.status().Store.Blocks; n < 100 {
		t.Fatalf("only %d blocks are on the node that is cut off: nothing is proved", n)
	}
	kill(crashed)
	r.heal()
	crashed.mount(slowRepair...)
	crashed.writable()
	ok(t, writeSynced(crashed.path("f"), data))
	cid := crashed.must("add", "-q", outside)
	rest[0].awaitApplied(crashed)

	lose(crashed)
	rest[0].writable()
	for _, n := range rest {
		if err := holds(n.path("f"), data); err != nil {
			t.Error(err)
		}
		if out := n.must("cat", cid); out != strings.TrimSpace(string(added)) {
			t.Errorf("what was added, on %s, has %d bytes", n.name, len(out))
		}
	}
}
