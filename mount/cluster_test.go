//go:build linux

package mount

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/chunker"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/volume"
)

// A cluster of nodes in one process: one log, which applies each command to the
// namespaces of all nodes before its proposer has the answer, and one store.

type cluster struct {
	t     testing.TB
	store mem.Store
	mu    sync.Mutex // orders commands
	index uint64
	nodes []*node
}

type node struct {
	cluster *cluster
	state   *namespace.State
	vol     *volume.Volume
	mount   *Server
	session namespace.SessionID
	seq     uint64
	gate    sync.RWMutex // held for writing: its proposals wait
	asked   atomic.Int64 // proposals so far, also those that wait

	held []*namespace.Change // what it is not told of yet, if hold is set
	hold bool
}

// newCluster makes nodes "a" and "b" that have sessions and mounts. They are not
// shared yet.
func newCluster(t testing.TB) (c *cluster, a, b *node) {
	t.Helper()
	needFUSE(t)
	c = &cluster{t: t}
	for range 2 {
		c.nodes = append(c.nodes, c.newNode())
	}
	member := func(id p2p.PeerID) p2p.Member {
		return p2p.Member{
			ID: id, Name: string(id), Addrs: []string{"/ip4/127.0.0.1/tcp/1"},
			Role: p2p.RoleStorage, State: p2p.Active, Capacity: 1 << 40,
		}
	}
	now := time.Now().UnixNano()
	c.do(&namespace.FoundCluster{ID: "00112233445566778899aabbccddeeff", First: member("a")})
	c.do(&namespace.AddInvite{ID: namespace.InviteID{1}, Key: [32]byte{1}, Expires: now + int64(time.Hour), Uses: 1, Role: p2p.RoleStorage})
	c.do(&namespace.Redeem{Invite: namespace.InviteID{1}, Member: member("b")})
	for i, n := range c.nodes {
		n.session = namespace.SessionID(c.do(&namespace.OpenSession{Peer: p2p.PeerID("ab"[i : i+1])}).Index)
	}
	for _, n := range c.nodes {
		ok(t, n.vol.Start(context.Background()))
		n.mount = mountVolume(t, n.vol, Options{})
	}
	return c, c.nodes[0], c.nodes[1]
}

// newSharedCluster is newCluster with the volumes shared.
func newSharedCluster(t testing.TB) (c *cluster, a, b *node) {
	t.Helper()
	c, a, b = newCluster(t)
	c.share()
	return c, a, b
}

func (c *cluster) share() {
	for _, n := range c.nodes {
		n.vol.Share(n)
	}
}

func (c *cluster) newNode() *node {
	t, fs := c.t, vfs.NewMem()
	t.Helper()
	db, err := pebble.Open("index", &pebble.Options{FS: fs, Logger: quiet{}})
	ok(t, err)
	t.Cleanup(func() { db.Close() })
	log, err := journal.Open(journal.Options{FS: fs, Dir: "journal"})
	ok(t, err)
	t.Cleanup(func() { log.Close() })
	ok(t, log.Replay(0, 0, func(journal.Record) error { return nil }))
	n := &node{cluster: c}
	n.state, err = namespace.Open(db, namespace.Options{})
	ok(t, err)
	chunks, err := chunker.New(chunker.DefaultParams())
	ok(t, err)
	n.vol = volume.New(volume.Options{
		Store: &c.store, Format: manifest.Format{Chunker: chunks}, State: n.state, Log: n, Journal: log,
		Usage: func() (volume.Usage, error) { return volume.Usage{Total: 1 << 40, Free: 1 << 39, Avail: 1 << 38}, nil },
	})
	n.state.Observe(n.observe)
	t.Cleanup(func() {
		if err := n.vol.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return n
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(string, ...any) {}

// do carries out an op of no session.
func (c *cluster) do(op namespace.Op) namespace.Result {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	res, err := c.apply(c.nodes[0], &namespace.Command{Time: time.Now().UnixNano(), Ops: []namespace.Op{op}})
	ok(c.t, err)
	ok(c.t, res.Err)
	return res
}

// apply applies a command on all nodes and returns the result of one.
func (c *cluster) apply(of *node, cmd *namespace.Command) (result namespace.Result, err error) {
	data, err := cmd.AppendBinary(nil)
	if err != nil {
		return result, err
	}
	c.index++
	for _, n := range c.nodes {
		var own namespace.Command
		if err := own.UnmarshalBinary(append([]byte(nil), data...)); err != nil {
			return result, err
		}
		res, err := n.state.Apply(c.index, &own)
		if err != nil {
			return result, err
		}
		if n == of {
			result = res
		}
	}
	return result, nil
}

// Propose is of the log.
func (n *node) Propose(_ context.Context, cmd *namespace.Command) (namespace.Result, error) {
	n.asked.Add(1)
	n.gate.RLock()
	defer n.gate.RUnlock()
	n.cluster.mu.Lock()
	defer n.cluster.mu.Unlock()
	own := *cmd
	if n.session != 0 {
		n.seq++
		own.Session, own.Seq, own.Acked = n.session, n.seq, n.seq
	}
	return n.cluster.apply(n, &own)
}

// Sync is of the log.
func (n *node) Sync(context.Context) error { return nil }

// Barrier is of the cluster: what is acknowledged anywhere is applied here.
func (n *node) Barrier(context.Context) error { return nil }

// Session is of the cluster.
func (n *node) Session() namespace.SessionID { return n.session }

func (n *node) observe(c *namespace.Change) {
	if n.hold {
		n.held = append(n.held, c)
		return
	}
	n.vol.Observe(c)
}

// withhold keeps from a node what others change, until release tells it of all that
// at once, and of more. If that is that everything has changed, it says nothing else.
func (n *node) withhold() (release func(more namespace.Change)) {
	c := n.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	n.hold = true
	return func(more namespace.Change) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, h := range n.held {
			if h.Session != n.session && !more.All {
				more.Inodes = append(more.Inodes, h.Inodes...)
				more.Entries = append(more.Entries, h.Entries...)
			}
		}
		n.hold, n.held = false, nil
		n.vol.Observe(&more)
	}
}

// path is a path in the node's mount.
func (n *node) path(elem ...string) string {
	return filepath.Join(append([]string{n.mount.Mountpoint()}, elem...)...)
}

// idle waits until the kernel has been told of everything.
func (n *node) idle(t testing.TB) {
	t.Helper()
	c := n.mount.fs.coherent
	eventually(t, "the kernel has been told", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.delivered == c.seq.Load() && c.current == nil && c.pending.empty() && c.retries == 0
	})
}

// eventually fails the test unless what becomes true.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// replace gives a file other content under the same name, as editors do.
func replace(t testing.TB, path, content string) {
	t.Helper()
	write(t, path+".tmp", content)
	ok(t, os.Rename(path+".tmp", path))
}
