//go:build linux

package cluster

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// refused fails unless an error is one with which a node without a majority refuses
// a change.
func refused(t testing.TB, what string, do func() error) {
	t.Helper()
	took, err := bounded(t, what, do)
	if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ETIMEDOUT) {
		t.Errorf("%s: %v after %v, should be EIO or ETIMEDOUT", what, err, took)
	}
	t.Logf("%s was refused after %v: %v", what, took, err)
	if took > 30*time.Second {
		t.Errorf("%s was refused after %v only", what, took)
	}
}

// cutOff cuts a node off under load and sees to what both sides can do.
func cutOff(t *testing.T, which func(r *rig) *node) {
	r := newCluster(t, 3)
	r.awaitVoters(3)
	before := fill(t, r.nodes[1], "before", 14)
	r.awaitCopies(r.nodes...)
	minority := which(r)
	majority := r.others(minority)
	before.check(t, minority) // the kernel knows the names; the content is not asked of it again
	l := startLoad(t, "load", r.nodes...)
	l.awaitMore(5, r.nodes...)

	r.part([]*node{minority}, majority)
	t.Logf("%s is cut off; the others write again after %v", minority.name, l.awaitMore(1, majority...))
	l.awaitMore(10, majority...)
	refused(t, "a new file on the minority", func() error {
		return os.WriteFile(minority.path("refused"), []byte("x"), 0o644)
	})
	refused(t, "mkdir on the minority", func() error { return os.Mkdir(minority.path("refused-dir"), 0o755) })
	refused(t, "rename on the minority", func() error {
		return os.Rename(minority.path("before", "f1"), minority.path("before", "moved"))
	})
	start := time.Now()
	before.check(t, minority)
	t.Logf("the minority read %d files in %v", len(before), since(start))
	if took, err := bounded(t, "readdir on the minority", func() error {
		names, err := os.ReadDir(minority.path("before"))
		if err == nil && len(names) != len(before) {
			err = fmt.Errorf("%d names", len(names))
		}
		return err
	}); err != nil {
		t.Errorf("readdir on the minority: %v after %v", err, took)
	}
	before.check(t, majority[0])

	r.heal()
	t.Logf("healed; the minority can be written to after %v", minority.writable())
	l.awaitMore(3, r.nodes...)
	l.end()
	if failed := l.report(majority...); failed > 0 {
		t.Errorf("%d attempts of the majority failed", failed)
	}
	l.report(minority)
	for _, n := range r.nodes {
		l.acked.check(t, n)
		before.check(t, n)
	}
	agree(t, ".", r.nodes...)
}

func TestALeaderThatIsCutOffRefusesChangesAndTheOthersGoOn(t *testing.T) {
	needsNet(t)
	cutOff(t, func(r *rig) *node { return r.leader(r.nodes...) })
}

func TestAFollowerThatIsCutOffRefusesChangesAndTheOthersGoOn(t *testing.T) {
	needsNet(t)
	cutOff(t, func(r *rig) *node { return r.others(r.leader(r.nodes...))[0] })
}

func TestLocksOfANodeThatIsCutOffPassToOthersAndItsWritesUnderThemAreRefused(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	holder := r.others(r.leader(r.nodes...))[0]
	other := r.others(holder)[0]
	ok(t, writeSynced(holder.path("locked"), []byte("before\n")))
	f, err := os.OpenFile(holder.path("locked"), os.O_RDWR, 0)
	ok(t, err)
	defer f.Close()
	ok(t, lock(f, "flock", unix.F_WRLCK))
	_, err = f.WriteAt([]byte("holder\n"), 0)
	ok(t, err)
	ok(t, f.Sync())

	r.part([]*node{holder}, r.others(holder))
	start := time.Now()
	g, err := os.OpenFile(other.path("locked"), os.O_RDWR, 0)
	ok(t, err)
	defer g.Close()
	_, err = bounded(t, "waiting for the lock of a node that is cut off", func() error { return lock(g, "flock", unix.F_WRLCK) })
	ok(t, err)
	t.Logf("the lock passed on after %v", since(start))
	if since(start) > 60*time.Second {
		t.Error("that is too long")
	}
	if err := holds(other.path("locked"), []byte("holder\n")); err != nil {
		t.Error(err)
	}
	_, err = g.WriteAt([]byte("other!\n"), 0)
	ok(t, err)
	ok(t, g.Sync())

	late := func() error {
		_, err := f.WriteAt([]byte("late!!\n"), 0)
		return errors.Join(err, f.Sync())
	}
	refused(t, "a write under a lock that was lost", late)
	r.heal()
	t.Logf("healed; can be written to after %v", holder.writable())
	refused(t, "a write under a lock that was lost, after healing", late)
	for _, n := range r.nodes {
		if err := holds(n.path("locked"), []byte("other!\n")); err != nil {
			data, _ := os.ReadFile(n.path("locked"))
			t.Errorf("%v: %q", err, data)
		}
	}
	ok(t, lock(g, "flock", unix.F_UNLCK))
	again, err := os.OpenFile(holder.path("locked"), os.O_RDWR, 0)
	ok(t, err)
	defer again.Close()
	_, err = bounded(t, "the lock, on the node that lost it", func() error { return lock(again, "flock", unix.F_WRLCK) })
	ok(t, err)
	_, err = again.WriteAt([]byte("again!\n"), 0)
	ok(t, err)
	ok(t, again.Sync())
	if err := holds(other.path("locked"), []byte("again!\n")); err != nil {
		t.Error(err)
	}
}

func TestWithoutAnyMajorityAllRefuseChangesAndHealingIsEnough(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	before := fill(t, r.nodes[0], "before", 7)
	r.awaitCopies(r.nodes...)
	a, b, c := r.nodes[0], r.nodes[1], r.nodes[2]
	r.part([]*node{a}, []*node{b}, []*node{c})
	for _, err := range parallel(t, r.nodes, func(_ int, n *node) error { return writeSynced(n.path("x"), []byte(n.name)) }) {
		if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ETIMEDOUT) {
			t.Errorf("a write without a majority: %v", err)
		}
	}
	for _, n := range r.nodes {
		before.check(t, n)
	}
	r.heal()
	for _, n := range r.nodes {
		t.Logf("healed; %s can be written to after %v", n.name, n.writable())
	}
	agree(t, ".", r.nodes...)
}
