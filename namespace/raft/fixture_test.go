package raft

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/memnet"
)

const clusterID = "00112233445566778899aabbccddeeff"

func peerName(n uint64) p2p.PeerID { return p2p.PeerID(fmt.Sprintf("peer-%d", n)) }

func storageMember(id p2p.PeerID) p2p.Member {
	return p2p.Member{ID: id, Name: string(id), Role: p2p.RoleStorage, State: p2p.Active, Capacity: 1 << 40}
}

// disk is what a node has on disk: index, journal and namespace, as package node
// opens them, but small.
type disk struct {
	fs      *vfs.MemFS
	index   *index.DB
	journal *journal.Journal
	state   *namespace.State
}

func testLogger(t testing.TB, name string) *slog.Logger {
	if testing.Verbose() && os.Getenv("CAIRN_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
	}
	return slog.New(slog.NewTextHandler(io.Discard, nil))
}

func openDisk(fs *vfs.MemFS, log *slog.Logger, knows uint32) (*disk, []journal.Record, error) {
	d := &disk{fs: fs}
	var err error
	if d.index, err = index.Open(index.Options{FS: fs, Dir: "index", MemTableBytes: 256 << 10, CacheBytes: 1 << 20, Logger: log}); err != nil {
		return nil, nil, err
	}
	if d.journal, err = journal.Open(journal.Options{FS: fs, Dir: "journal", FileSize: 256 << 10, FlushAfter: -1, Logger: log}); err != nil {
		return nil, nil, err
	}
	o := namespace.Options{HashKey: [16]byte{7}, Logger: log, CacheInodes: 256, CacheDentries: 256, Knows: knows}
	if d.state, err = namespace.Open(d.index.Pebble(), o); err != nil {
		return nil, nil, err
	}
	var records []journal.Record
	err = d.journal.Replay(d.kept(), 1<<63, func(r journal.Record) error {
		r.Payload = append([]byte(nil), r.Payload...)
		records = append(records, r)
		return nil
	})
	d.index.SetBarrier(func() error { return d.journal.Sync(context.Background()) })
	return d, records, err
}

var keptKey = []byte{index.SpaceMeta, 'j'}

func (d *disk) kept() journal.Seq { return keptRecord(d.index.Pebble()) }

// keptRecord returns the first record that is needed besides the index.
func keptRecord(db *pebble.DB) journal.Seq {
	value, closer, err := db.Get(keptKey)
	if err != nil {
		return 0
	}
	defer closer.Close()
	return journal.Seq(value[0]) | journal.Seq(value[1])<<8 | journal.Seq(value[2])<<16 | journal.Seq(value[3])<<24
}

func keptValue(keep journal.Seq) []byte {
	return []byte{byte(keep), byte(keep >> 8), byte(keep >> 16), byte(keep >> 24)}
}

// checkpoint makes the index durable and trims the journal.
func (d *disk) checkpoint(keep journal.Seq) error {
	err := d.index.Pebble().Set(keptKey, keptValue(keep), pebble.NoSync)
	return errors.Join(err, d.index.Flush(), d.journal.Trim(keep))
}

func (d *disk) close() error { return errors.Join(d.journal.Close(), d.index.Close()) }

// group is a live group over a network in memory.
type group struct {
	t   testing.TB
	net *memnet.Network
	ttl time.Duration // of sessions
	// version that the programs of nodes know that start now, 0: this one's
	knows uint32
	now   func() time.Time // of nodes that start now, nil: the right time

	mu    sync.Mutex
	nodes map[uint64]*member
}

// member is a running node of a group.
type member struct {
	*disk
	g    *group
	id   uint64
	log  *Log
	ends int // sessions that were lost
	fail error
}

func newGroup(t testing.TB) *group {
	g := &group{t: t, net: memnet.New(), ttl: 300 * liveTick, nodes: make(map[uint64]*member)}
	t.Cleanup(func() {
		for _, id := range []uint64{1, 2, 3, 4, 5, 6, 7} {
			if m := g.node(id); m != nil {
				m.stop()
			}
		}
	})
	return g
}

func (g *group) node(id uint64) *member {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.nodes[id]
}

// start starts a node on a disk.
func (g *group) start(id uint64, fs *vfs.MemFS) *member {
	g.t.Helper()
	log := testLogger(g.t, fmt.Sprint(id))
	d, records, err := openDisk(fs, log, g.knows)
	if err != nil {
		g.t.Fatal(err)
	}
	m := &member{disk: d, g: g, id: id}
	return m.run(records)
}

func (m *member) run(records []journal.Record) *member {
	g, t := m.g, m.g.t
	t.Helper()
	var err error
	m.log, err = Open(Options{
		ID: m.id, State: m.state, DB: m.index.Pebble(), Journal: m.journal, Mark: func() uint64 { return 0 },
		Transport: g.net.Join(peerName(m.id)), FS: m.fs, Dir: "", Logger: testLogger(t, fmt.Sprint(m.id)),
		Knows: g.knows, Now: g.now, Tick: liveTick, TTL: g.ttl, Timeout: 20 * time.Second,
		SessionEnded: func() { g.mu.Lock(); m.ends++; g.mu.Unlock() },
		Failed:       func(err error) { g.mu.Lock(); m.fail = err; g.mu.Unlock() },
	})
	if err != nil {
		t.Fatal(err)
	}
	m.state.Observe(m.log.Observe)
	for _, r := range records {
		if err := m.log.Replay(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.log.Start(); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	g.nodes[m.id] = m
	g.mu.Unlock()
	return m
}

// found starts the first node, with a namespace that has something in it.
func (g *group) found() *member {
	g.t.Helper()
	fs := vfs.NewCrashableMem()
	d, _, err := openDisk(fs, testLogger(g.t, "1"), g.knows)
	if err != nil {
		g.t.Fatal(err)
	}
	first := &namespace.Command{Time: 1, Ops: []namespace.Op{
		&namespace.FoundCluster{ID: clusterID, First: storageMember(peerName(1))},
		&namespace.Create{Parent: namespace.RootIno, Name: "before", Mode: namespace.TypeDir | 0o755},
	}}
	if res, err := d.state.Apply(1, first); err != nil || res.Err != nil {
		g.t.Fatal(err, res.Err)
	}
	if err := errors.Join(Found(d.state, d.index.Pebble(), 1), d.checkpoint(d.journal.Last()+1)); err != nil {
		g.t.Fatal(err)
	}
	m := &member{disk: d, g: g, id: 1}
	return m.run(nil)
}

// join makes a new node a member, by way of m, and starts it.
func (m *member) join(role p2p.Role) *member {
	t := m.g.t
	t.Helper()
	eventually(t, "the node has the names", func() bool { return m.state.View() != nil })
	next := uint64(len(m.state.View().Members)) + 1
	for m.state.View().Member(peerName(next)) != nil || m.g.node(next) != nil {
		next++
	}
	var invite namespace.InviteID
	invite[0] = byte(next)
	m.must(&namespace.AddInvite{ID: invite, Expires: 1 << 62, Uses: 1, Role: role})
	m.must(&namespace.Redeem{Invite: invite, Member: storageMember(peerName(next))})
	id := m.state.View().Member(peerName(next)).Raft
	if id != next {
		t.Fatalf("peer %d has number %d", next, id)
	}
	return m.g.start(id, vfs.NewCrashableMem())
}

func (m *member) propose(ops ...namespace.Op) (namespace.Result, error) {
	res, err := m.log.Propose(context.Background(), &namespace.Command{Time: time.Now().UnixNano(), Ops: ops})
	if err == nil {
		err = res.Err
	}
	return res, err
}

func (m *member) must(ops ...namespace.Op) namespace.Result {
	m.g.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(liveTick) {
		res, err := m.propose(ops...)
		// On a machine that is busy it may be between two sessions; then nothing happened.
		if errors.Is(err, namespace.ErrSession) && errors.Is(err, ErrNoQuorum) && time.Now().Before(deadline) {
			continue
		}
		if err != nil {
			m.g.t.Fatalf("node %d: %v", m.id, err)
		}
		return res
	}
}

func mkdir(name string) *namespace.Create {
	return &namespace.Create{Parent: namespace.RootIno, Name: name, Mode: namespace.TypeDir | 0o755}
}

func (m *member) stop() {
	m.g.mu.Lock()
	delete(m.g.nodes, m.id)
	m.g.mu.Unlock()
	if err := errors.Join(m.log.Close(), m.disk.close()); err != nil {
		m.g.t.Errorf("stop node %d: %v", m.id, err)
	}
	m.g.net.Leave(peerName(m.id))
}

// crash ends the node as a power loss does, and returns its disk.
func (m *member) crash() *vfs.MemFS {
	m.g.net.Leave(peerName(m.id))
	fs := m.fs.CrashClone(vfs.CrashCloneCfg{})
	m.g.mu.Lock()
	delete(m.g.nodes, m.id)
	m.g.mu.Unlock()
	_ = m.log.Close()
	_ = m.disk.close()
	return fs
}

// eventually waits for something that needs no more than the group's own time.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// dump returns the namespace's keys and values.
func dump(db *pebble.DB) map[string]string {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{index.SpaceNamespace}, UpperBound: []byte{index.SpaceNamespace + 1}})
	if err != nil {
		panic(err)
	}
	defer it.Close()
	m := make(map[string]string)
	for it.First(); it.Valid(); it.Next() {
		m[string(it.Key())] = string(it.Value())
	}
	return m
}

// agree waits until all nodes are equally far, and compares them.
func (g *group) agree() {
	g.t.Helper()
	dumps := make(map[uint64]map[string]string)
	eventually(g.t, "all nodes are equally far", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		before := g.applied()
		if len(before) > 1 {
			return false
		}
		for id, m := range g.nodes {
			dumps[id] = dump(m.index.Pebble())
		}
		// A node whose session ended may be opening another meanwhile.
		return maps.Equal(before, g.applied())
	})
	var first map[string]string
	for id, d := range dumps {
		if first == nil {
			first = d
		} else if !maps.Equal(first, d) {
			for k, v := range d {
				if first[k] != v {
					g.t.Errorf("node %d has %q = %x, another %x", id, k, v, first[k])
				}
			}
			g.t.Fatalf("node %d differs", id)
		}
	}
}

// applied returns how far the nodes are; mu is held.
func (g *group) applied() map[uint64]bool {
	at := make(map[uint64]bool)
	for _, m := range g.nodes {
		at[m.state.Applied()] = true
	}
	return at
}

// leader waits for a leader and returns it.
func (g *group) leader() *member {
	g.t.Helper()
	var found *member
	eventually(g.t, "there is a leader", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, m := range g.nodes {
			if m.log.Status().Role == "leader" {
				found = m
			}
		}
		return found != nil
	})
	return found
}

// voters waits until so many members vote.
func (g *group) voters(n int) {
	g.t.Helper()
	eventually(g.t, fmt.Sprintf("%d members vote", n), func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, m := range g.nodes {
			if s := m.log.Status(); s.Role == "leader" && len(s.Voters) == n {
				return true
			}
		}
		return false
	})
}
