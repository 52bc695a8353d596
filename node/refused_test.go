package node

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/p2p"
)

// refused waits until the node has ended because its cluster refuses it.
func refused(t *testing.T, n *Node, kind raft.RefusalKind) {
	t.Helper()
	select {
	case err := <-n.Failed():
		var r *raft.Refusal
		if !errors.As(err, &r) || r.Kind != kind {
			t.Errorf("it ends with %v, and not because it is %s", err, kind)
		}
	case <-time.After(time.Minute):
		t.Errorf("it does not notice that it is refused (%s)", kind)
	}
}

// abandon gives up a node that, without a cluster, cannot close in order.
func (n *Node) abandon() {
	n.stop()
	n.tending.Wait()
	n.index.SetBarrier(nil)
	_ = n.cluster.Load().close()
	_ = n.release()
	n.index = nil
}

// cannotOpen checks that a refused node does not start again, and that what it holds
// can be looked at, with the reason.
func cannotOpen(t *testing.T, dir string, kind raft.RefusalKind) {
	t.Helper()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	var r *raft.Refusal
	if n, err := Open(t.Context(), Options{Dir: dir, Listen: loopback, Logger: quiet}); !errors.As(err, &r) || r.Kind != kind {
		if err == nil {
			n.abandon()
		}
		t.Errorf("a refused node opens: %v, want %s", err, kind)
	}
	n, err := Open(t.Context(), Options{Dir: dir, Offline: true, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer n.close(t)
	s, err := n.Status(t.Context())
	if err != nil || s.Cluster == nil || s.Cluster.Refused == nil || s.Cluster.Refused.Kind != string(kind) || s.Cluster.Refused.Reason == "" {
		t.Errorf("status of a refused node: %+v, %v", s.Cluster, err)
	}
}

func copyStore(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{keyName, memberName} {
		if err := os.Chmod(filepath.Join(to, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// Rule 4: an old copy of a store, put back, takes no part; nothing is lost.
func TestAnOldCopyOfAStoreIsRefused(t *testing.T) {
	dir := t.TempDir()
	a := openMember(t, Options{Dir: filepath.Join(dir, "a")})
	b := joined(t, a, filepath.Join(dir, "b"))
	joined(t, a, filepath.Join(dir, "c"))
	eventually(t, "three vote", func() bool { return len(a.cluster.Load().group.Status().Voters) == 3 })
	b.close(t)
	old := filepath.Join(dir, "old")
	copyStore(t, filepath.Join(dir, "b"), old)
	b = openMember(t, Options{Dir: filepath.Join(dir, "b")})
	write(t, b.Volume(), "later", []byte("later"))
	b.close(t)
	n, err := Open(t.Context(), Options{Dir: old, Listen: loopback, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err == nil {
		refused(t, n, raft.Restored)
		n.abandon()
	} else if r := (*raft.Refusal)(nil); !errors.As(err, &r) || r.Kind != raft.Restored {
		t.Fatal(err)
	}
	cannotOpen(t, old, raft.Restored)
	b = openMember(t, Options{Dir: filepath.Join(dir, "b")}) // it is still what it was
	write(t, b.Volume(), "after", nil)
	if got := read(t, a.Volume(), "later"); string(got) != "later" {
		t.Errorf("%q", got)
	}
}

// Rule 4: of two copies of a store that run at once, the older one is refused.
func TestOfTwoCopiesOfAStoreOneIsRefused(t *testing.T) {
	dir := t.TempDir()
	a := openMember(t, Options{Dir: filepath.Join(dir, "a")})
	b := joined(t, a, filepath.Join(dir, "b"))
	b.close(t)
	twin := filepath.Join(dir, "twin")
	copyStore(t, filepath.Join(dir, "b"), twin)
	b = openMember(t, Options{Dir: filepath.Join(dir, "b")})
	n, err := Open(t.Context(), Options{Dir: twin, Listen: loopback, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err == nil {
		refused(t, n, raft.Restored)
		n.abandon()
	} else if r := (*raft.Refusal)(nil); !errors.As(err, &r) || r.Kind != raft.Restored {
		t.Fatal(err)
	}
	write(t, b.Volume(), "goes on", nil)
}

// Rule 20: who was left behind by a forced new cluster is refused, and is told why.
func TestANodeOfAnOlderGenerationIsRefused(t *testing.T) {
	dir := t.TempDir()
	a := openMember(t, Options{Dir: filepath.Join(dir, "a")})
	b := joined(t, a, filepath.Join(dir, "b"))
	eventually(t, "two vote", func() bool { return len(a.cluster.Load().group.Status().Voters) == 2 })
	write(t, b.Volume(), "before", []byte("before"))
	b.close(t)
	where := a.cluster.Load().host.Addrs()[0]
	a.abandon()
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	r, err := Recover(t.Context(), Options{Dir: filepath.Join(dir, "a"), Logger: quiet})
	if err != nil || r.Generation != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	// Where it was, so that the other finds it.
	host := strings.Split(where, "/")
	a, err = Open(t.Context(), Options{Dir: filepath.Join(dir, "a"), Listen: host[2] + ":" + host[4], Reserve: -1, Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	defer a.close(t)
	n, err := Open(t.Context(), Options{Dir: filepath.Join(dir, "b"), Listen: loopback, Logger: quiet})
	if err == nil {
		refused(t, n, raft.Forced)
		n.abandon()
	} else if r := (*raft.Refusal)(nil); !errors.As(err, &r) || r.Kind != raft.Forced {
		t.Fatal(err)
	}
	cannotOpen(t, filepath.Join(dir, "b"), raft.Forced)
	if got := read(t, a.Volume(), "before"); string(got) != "before" {
		t.Errorf("%q", got)
	}
}

// Rule 5: the version is the latest that all know, and who knows no more is named.
func TestTheVersionIsTheLatestThatAllKnow(t *testing.T) {
	v := &p2p.View{Members: []p2p.Member{{ID: "a", Version: 3}, {ID: "b", Version: 2}, {ID: "c"}}}
	registered := func(m *p2p.Member) uint32 { return max(m.Version, 1) }
	if to, who := planVersion(v, registered); to != 1 || len(who) != 1 || who[0] != "c" {
		t.Errorf("%d, %v", to, who)
	}
	v.Members[2].Version = 2
	if to, who := planVersion(v, registered); to != 2 || len(who) != 2 || who[0] != "b" {
		t.Errorf("%d, %v", to, who)
	}
	dir := t.TempDir()
	a := openMember(t, Options{Dir: filepath.Join(dir, "a")})
	b := joined(t, a, filepath.Join(dir, "b"))
	eventually(t, "both have registered what they know", func() bool {
		for _, m := range b.state.View().Members {
			if m.Version != namespace.Version {
				return false
			}
		}
		return b.state.Version() == namespace.Version
	})
}
