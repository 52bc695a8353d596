package replica

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/p2p"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// local is a durable store in memory: what was not synced is lost in a crash.
type local struct {
	mu      sync.Mutex
	blocks  map[[32]byte]cas.Block
	durable map[[32]byte]bool
	damaged map[[32]byte]bool
	deleted map[[32]byte]bool // at any time
	limit   int               // blocks, if not 0
}

func (l *local) init() *local {
	l.blocks, l.durable, l.damaged = map[[32]byte]cas.Block{}, map[[32]byte]bool{}, map[[32]byte]bool{}
	l.deleted = map[[32]byte]bool{}
	return l
}

func (l *local) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return cas.Block{}, err
	}
	b, ok := l.blocks[c.Hash()]
	switch {
	case !ok || !c.Defined():
		return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Err: cas.ErrNotFound}
	case l.damaged[c.Hash()]:
		return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Err: cas.ErrCorrupt}
	}
	return cas.Verify(c, append(buf[:0], b.Data()...))
}

func (l *local) Put(ctx context.Context, blocks ...cas.Block) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, b := range blocks {
		hash := b.CID().Hash()
		if _, ok := l.blocks[hash]; ok && !l.damaged[hash] {
			continue
		}
		if l.limit > 0 && len(l.blocks) >= l.limit {
			return &cas.BlockError{Op: "put", CID: b.CID(), Err: cas.ErrNoSpace}
		}
		own, err := cas.Verify(b.CID(), bytes.Clone(b.Data()))
		if err != nil {
			return err
		}
		l.blocks[hash] = own
		delete(l.damaged, hash)
	}
	return nil
}

func (l *local) Has(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	has := make([]bool, len(cids))
	for i, c := range cids {
		_, has[i] = l.blocks[c.Hash()]
		has[i] = has[i] && !l.damaged[c.Hash()]
	}
	return has, ctx.Err()
}

// Peek is Has without the promise, as of a segment store.
func (l *local) Peek(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	return l.Has(ctx, cids...)
}

func (l *local) Sync(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for hash := range l.blocks {
		l.durable[hash] = true
	}
	return ctx.Err()
}

func (l *local) Stored(ctx context.Context, c cas.CID, _ []byte) (segment.Stored, error) {
	b, err := l.Get(ctx, c, nil)
	return segment.Plain(b), err
}

func (l *local) List(ctx context.Context, after [32]byte, limit int, page []cas.CID) ([]cas.CID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	page = page[:0]
	for hash, b := range l.blocks {
		if bytes.Compare(hash[:], after[:]) > 0 && !l.damaged[hash] {
			page = append(page, b.CID())
		}
	}
	slices.SortFunc(page, func(a, b cas.CID) int {
		x, y := a.Hash(), b.Hash()
		return bytes.Compare(x[:], y[:])
	})
	return page[:min(limit, len(page))], ctx.Err()
}

func (l *local) Delete(ctx context.Context, cids []cas.CID, unless func(cas.CID) bool) (deleted int, freed int64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range cids {
		hash := c.Hash()
		if b, ok := l.blocks[hash]; ok && !unless(c) {
			deleted, freed = deleted+1, freed+int64(len(b.Data()))
			delete(l.blocks, hash)
			delete(l.durable, hash)
			l.deleted[hash] = true
		}
	}
	return deleted, freed, ctx.Err()
}

// crash loses what was not synced.
func (l *local) crash() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for hash := range l.blocks {
		if !l.durable[hash] {
			delete(l.blocks, hash)
		}
	}
}

func (l *local) wipe() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.blocks)
	clear(l.durable)
}

func (l *local) damage(c cas.CID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.damaged[c.Hash()] = true
}

func (l *local) holds(c cas.CID) (held, durable bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, held = l.blocks[c.Hash()]
	return held && !l.damaged[c.Hash()], held && l.durable[c.Hash()]
}

// kept is a cache in memory with room for so many bytes.
type kept struct {
	mem.Store
	room atomic.Int64
}

func (k *kept) Room() int64 { return k.room.Load() }

func (k *kept) Adopt(_ []byte, blocks []cas.Block, _ []int, done func()) {
	_ = k.Put(context.Background(), blocks...) // which keeps copies
	done()
}

// network connects nodes in memory.
type network struct {
	mu    sync.Mutex
	ports map[p2p.PeerID]*port
}

// port is a node's Transport, and its Liveness.
type port struct {
	net *network
	id  p2p.PeerID

	// Guarded by net.mu.
	handler p2p.Handler
	down    bool
	delay   time.Duration // before it answers
	stalls  bool          // never answers
	lies    bool          // changes the last byte of its answers
	fails   func(op byte) bool
	before  func(from p2p.PeerID, op byte)                // a request is handled
	after   func(from p2p.PeerID, op byte, answer []byte) // before its answer is sent, which it may change
	asked   int
	ops     map[byte]int
}

func (p *port) Self() p2p.PeerID { return p.id }

func (p *port) Handle(_ p2p.Protocol, h p2p.Handler) {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	p.handler = h
}

func (p *port) Call(ctx context.Context, to p2p.PeerID, _ p2p.Protocol, req ...[]byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b := bytes.Join(req, nil)
	p.net.mu.Lock()
	q := p.net.ports[to]
	if q == nil || q.handler == nil || q.down || p.down || q.fails != nil && q.fails(b[1]) {
		p.net.mu.Unlock()
		return nil, p2p.ErrUnreachable
	}
	h, delay, stalls, lies, before, after := q.handler, q.delay, q.stalls, q.lies, q.before, q.after
	q.asked++
	q.ops[b[1]]++
	p.net.mu.Unlock()
	if stalls {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if before != nil {
		before(p.id, b[1])
	}
	a, err := h(ctx, p.id, b)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &p2p.RemoteError{Peer: to, Text: err.Error()}
	}
	if a = bytes.Clone(a); lies {
		a[len(a)-1] ^= 1
	}
	if after != nil {
		after(p.id, b[1], a)
	}
	return a, nil
}

func (p *port) Health(id p2p.PeerID) (p2p.Health, time.Time) {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	if q := p.net.ports[id]; q == nil || q.down {
		return p2p.Dead, time.Time{}
	}
	return p2p.Alive, time.Time{}
}

// node is a member of a cluster under test.
type node struct {
	*Replica
	id    p2p.PeerID
	local *local
	cache *kept
	port  *port
}

// set changes the node's port.
func (n *node) set(f func(*port)) {
	n.port.net.mu.Lock()
	defer n.port.net.mu.Unlock()
	f(n.port)
}

func (n *node) asked() (total int, ops map[byte]int) {
	n.port.net.mu.Lock()
	defer n.port.net.mu.Unlock()
	ops = make(map[byte]int)
	for op, c := range n.port.ops {
		ops[op] = c
	}
	return n.port.asked, ops
}

type testCluster struct {
	t     testing.TB
	net   *network
	view  p2p.View
	nodes []*node
	o     Options
}

// start returns a cluster of n nodes that have seen each other.
func start(t testing.TB, n, copies int, o Options) *testCluster {
	c := &testCluster{t: t, net: &network{ports: make(map[p2p.PeerID]*port)}, o: o}
	c.view.Copies = copies
	for range n {
		c.add(p2p.RoleStorage)
	}
	c.announce()
	return c
}

// add starts another node and registers it; announce tells all.
func (c *testCluster) add(role p2p.Role) *node {
	id := p2p.PeerID(fmt.Sprintf("12D3KooWnode%04d", len(c.nodes)))
	n := &node{id: id, local: new(local).init(), cache: new(kept), port: &port{net: c.net, id: id, ops: map[byte]int{}}}
	c.net.mu.Lock()
	c.net.ports[id] = n.port
	c.net.mu.Unlock()
	c.boot(n)
	c.nodes = append(c.nodes, n)
	c.view.Members = append(slices.Clone(c.view.Members),
		p2p.Member{ID: id, Role: role, State: p2p.Active, Capacity: 1 << 40})
	return n
}

// boot starts the node's Replica, as a new process does.
func (c *testCluster) boot(n *node) {
	o := c.o
	o.Transport, o.Local, o.Cache, o.Liveness, o.Logger = n.port, n.local, n.cache, n.port, quiet()
	n.Replica = New(o)
	n.Start(context.Background())
}

func (c *testCluster) announce() {
	c.view.Epoch++
	for _, n := range c.nodes {
		n.SetView(c.view)
	}
}

// state registers another state of a member.
func (c *testCluster) state(i int, s p2p.MemberState) {
	c.view.Members = slices.Clone(c.view.Members)
	c.view.Members[i].State = s
	c.announce()
}

func (c *testCluster) close() {
	for _, n := range c.nodes {
		if err := n.Close(); err != nil {
			c.t.Error(err)
		}
	}
}

// down cuts nodes off, or brings them back.
func (c *testCluster) down(down bool, of ...int) {
	for _, i := range of {
		c.nodes[i].set(func(p *port) { p.down = down })
	}
}

// owners returns the nodes that own the block.
func (c *testCluster) owners(cid cas.CID) (of []*node) {
	hash := cid.Hash()
	for _, id := range c.nodes[0].cluster.Load().table.Owners(&hash, nil) {
		for _, n := range c.nodes {
			if n.id == id {
				of = append(of, n)
			}
		}
	}
	return of
}

// someBlocks returns blocks that differ from those of any other call.
func someBlocks(t testing.TB, n, size int) []cas.Block {
	t.Helper()
	blocks := make([]cas.Block, n)
	for i := range blocks {
		blocks[i] = castest.Block(t, seeds.Add(1), size)
	}
	return blocks
}

// seeds counts the blocks made in this process.
var seeds atomic.Uint64

func put(t testing.TB, n *node, blocks ...cas.Block) {
	t.Helper()
	if err := n.Put(context.Background(), blocks...); err != nil {
		t.Fatal(err)
	}
}

func syncAll(t testing.TB, n *node) {
	t.Helper()
	if err := n.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// wantBlocks fails unless the node reads all of the blocks.
func wantBlocks(t testing.TB, n *node, blocks []cas.Block) {
	t.Helper()
	for _, b := range blocks {
		got, err := n.Get(context.Background(), b.CID(), nil)
		if err != nil {
			t.Errorf("node %s: %v", n.id.Short(), err)
		} else if !bytes.Equal(got.Data(), b.Data()) {
			t.Errorf("node %s: wrong bytes", n.id.Short())
		}
	}
}

// wantOwned fails unless all owners hold all of the blocks.
func (c *testCluster) wantOwned(blocks []cas.Block) {
	c.t.Helper()
	missing := 0
	for _, b := range blocks {
		for _, n := range c.owners(b.CID()) {
			if held, _ := n.local.holds(b.CID()); !held {
				missing++
			}
		}
	}
	if missing > 0 {
		c.t.Errorf("%d copies are missing at owners", missing)
	}
}
