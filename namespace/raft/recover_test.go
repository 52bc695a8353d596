package raft

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/namespace"
)

// force is Force on a disk, of which it returns what a power loss leaves right after.
func force(t *testing.T, fs *vfs.MemFS) *vfs.MemFS {
	t.Helper()
	d, records, err := openDisk(fs, testLogger(t, "1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{ID: 1, State: d.state, DB: d.index.Pebble(), Journal: d.journal, Mark: func() uint64 { return 0 }}
	if _, _, err := Force(o, records, peerName(1), 1); err != nil {
		t.Fatal(err)
	}
	after := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := d.close(); err != nil {
		t.Fatal(err)
	}
	return after
}

// The log must not begin anew before the namespace has what was in it.
func TestAPowerLossWhileAClusterIsForcedLosesNothing(t *testing.T) {
	u := follower(t)
	u.do(&namespace.Command{Ops: []namespace.Op{&namespace.FoundCluster{ID: clusterID, First: storageMember(peerName(1))}}})
	if err := u.index.Flush(); err != nil {
		t.Fatal(err)
	}
	u.save(hardState(2, 2, 1), entryOf(t, 2, 2, "a", "b"), entryOf(t, 2, 3, "c"))
	fs := u.fs.CrashClone(vfs.CrashCloneCfg{})
	for range 2 { // whoever lost the power tries again
		fs = force(t, fs)
	}
	u = newUnit(t, fs)
	for _, name := range []string{"a", "b", "c"} {
		if _, err := u.state.Lookup(namespace.RootIno, name); err != nil {
			t.Errorf("%s was in the log: %v", name, err)
		}
	}
	if v := u.store.conf.GetVoters(); len(v) != 1 || u.state.View().Generation == 0 {
		t.Errorf("%v vote, of generation %d", v, u.state.View().Generation)
	}
}
