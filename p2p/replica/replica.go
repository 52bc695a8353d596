// Package replica is the cluster as a cas.Store: blocks are read from whichever
// node has them, written to those that own them, and brought back to where they
// belong when nodes come and go.
//
// Placement says which members own a block, liveness whom of them to ask. Every
// block that is put is stored on this node first, whether it owns it or not, and
// then sent to its owners; so there is a durable copy here until they have it, and
// a slow or lying peer costs time, never data. Sync returns when the blocks put
// before are durable on two nodes (this one is one of them), or on an owner if this
// node is none.
//
// A pass over the local store compares what the owners of each block have with what
// they should have, and sends what is missing. Each node does so for what it holds,
// and the first holder in the order of placement sends, so that a node that joins,
// comes back, or has lost its disk is filled by the others. What a node holds and does
// not own it drops when all owners have proved that they have it (see drop.go), so that
// space moves with the blocks. What a pass decides is apart from how it is found out and
// done (see plan.go).
//
// On a node that has nobody to share with, everything goes straight to the local
// store.
package replica

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/exchange"
	"github.com/cairnfs/cairn/p2p/placement"
)

// Defaults of Options.
const (
	DefaultPushBytes   = 64 << 20
	DefaultSyncTimeout = 10 * time.Second
	DefaultRepairEvery = 10 * time.Minute
)

// Errors. Compare with errors.Is.
var (
	// ErrTooFewCopies says that blocks are not durable on as many nodes as they
	// must be, because the others do not answer. The blocks are on this node,
	// and are sent when others answer again.
	ErrTooFewCopies = errors.New("too few nodes answer to store the blocks on")
	// ErrClosed says that the Replica is closed.
	ErrClosed = errors.New("replica is closed")
)

// Local is the durable store of this node.
type Local interface {
	exchange.Local
	// List appends to page[:0] at most limit CIDs of blocks held whose hash is
	// greater than after, in order of hash; fewer only at the end.
	List(ctx context.Context, after [cas.HashSize]byte, limit int, page []cas.CID) ([]cas.CID, error)
	// Delete forgets blocks, but for those of which unless says true, under a lock
	// that excludes the answer of Put or Has that the block is here.
	Delete(ctx context.Context, cids []cas.CID, unless func(cas.CID) bool) (deleted int, freed int64, err error)
}

var _ Local = (*segment.Store)(nil)

// Cache keeps blocks that this node has read and does not own.
type Cache interface {
	cas.Getter
	cas.Putter
	Has(ctx context.Context, cids ...cas.CID) ([]bool, error)
	// Adopt is Put of blocks that lie in memory, each where at says, without copies
	// of them. memory does not change until done is called, which may be at once.
	Adopt(memory []byte, blocks []cas.Block, at []int, done func())
	// Room returns how many bytes can be put before others have to go.
	Room() int64
}

// Options say what a Replica works with. Local is required, and Transport on a node
// that has others.
type Options struct {
	Transport p2p.Transport
	Local     Local
	// Cache is where blocks go that this node does not own; may be nil.
	Cache Cache
	// Liveness says who answers; nil believes that all do.
	Liveness p2p.Liveness
	// Proven says that all that was named in earlier runs is on two nodes: that
	// SetProven was called, and there were two owners ever since.
	Proven bool
	// RepairRate limits what repair sends, in bytes a second; 0 does not.
	RepairRate int64
	// PushBytes bounds the blocks that wait to be sent to owners; when so many
	// wait, Put does. 0 means DefaultPushBytes.
	PushBytes int64
	// SyncTimeout is how long Sync waits without any progress until it returns
	// ErrTooFewCopies; 0 means DefaultSyncTimeout.
	SyncTimeout time.Duration
	// RepairEvery is the time between passes of repair that nothing has caused;
	// 0 means DefaultRepairEvery.
	RepairEvery time.Duration
	// Dead says that a block is about to be collected, so that repair passes over
	// it; nil says so of none.
	Dead func(cas.CID) bool
	// Logger is told of peers that lie, and of what cannot be repaired; nil is
	// slog.Default().
	Logger *slog.Logger
	// Now is the time; nil is time.Now.
	Now func() time.Time
}

// Replica is the cluster as a store. Its methods may be called from any number of
// goroutines.
type Replica struct {
	o        Options
	self     p2p.PeerID
	cluster  atomic.Pointer[cluster] // nil until SetView
	damaged  atomic.Int64            // see Status.Lost
	peers    peers
	flights  flights
	hedges   hedges
	queue    queue
	repair   repair
	promises promises
	reads    prefetches
	recent   recent
	claims   claims

	ctx         context.Context // ends with Close
	cancel      context.CancelFunc
	mu          sync.Mutex // over closing and Add of running
	closed      bool
	stopServing func()
	running     sync.WaitGroup
}

var _ cas.Store = (*Replica)(nil)

// cluster is what follows from a View. It is never changed.
type cluster struct {
	self     p2p.PeerID
	epoch    uint64
	table    *placement.Table
	alone    bool         // no other member keeps blocks
	owns     bool         // this member owns blocks
	draining bool         // this member is to be emptied
	drops    bool         // this member drops what it does not own
	others   []p2p.PeerID // storage members that own nothing, without this one
	nodes    int          // on which a block must be durable for Sync, two at most
	need     int          // other nodes than this one of those
}

// newCluster returns what follows from a View for one of its nodes.
func newCluster(self p2p.PeerID, v p2p.View) *cluster {
	c := &cluster{self: self, epoch: v.Epoch, table: placement.New(v), alone: true}
	for i := range v.Members {
		m := &v.Members[i]
		if m.ID == self {
			c.owns = m.Owns()
			c.draining = m.State == p2p.Draining
			c.drops = m.State == p2p.Active || m.State == p2p.Draining
			continue
		}
		if m.Role != p2p.RoleStorage {
			continue
		}
		c.alone = false
		if !m.Owns() {
			c.others = append(c.others, m.ID)
		}
	}
	c.nodes = min(v.Owners(), 2)
	c.need = c.nodes - 1 // this node counts
	if !c.owns {
		c.need = min(v.Owners(), max(1, c.need))
	}
	c.need = max(0, c.need)
	return c
}

// New returns a Replica that knows no members yet: everything is local until
// SetView.
func New(o Options) *Replica {
	if o.PushBytes <= 0 {
		o.PushBytes = DefaultPushBytes
	}
	if o.SyncTimeout <= 0 {
		o.SyncTimeout = DefaultSyncTimeout
	}
	if o.RepairEvery <= 0 {
		o.RepairEvery = DefaultRepairEvery
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &Replica{o: o}
	if o.Transport != nil {
		r.self = o.Transport.Self()
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.peers.init()
	r.flights.init()
	r.hedges.init()
	r.queue.init()
	r.repair.init(o.RepairRate)
	r.promises.init()
	r.reads.init()
	r.recent.init()
	r.claims.init(o.Proven)
	return r
}

// SetView takes over another epoch of the membership and has repair look at all
// blocks. Views that are not newer than the one in use are ignored, so that it may be
// told of the same one again and again.
func (r *Replica) SetView(v p2p.View) {
	if old := r.cluster.Load(); old != nil && old.epoch >= v.Epoch {
		return
	}
	c := newCluster(r.self, v)
	for {
		old := r.cluster.Load()
		if old != nil && old.epoch >= c.epoch {
			return
		}
		if r.cluster.CompareAndSwap(old, c) {
			break
		}
	}
	r.claims.view(c)
	r.viewChanged(c)
	r.repair.request()
}

// Start serves the blocks of this node to others and begins to repair. It ends
// when ctx does, or with Close.
func (r *Replica) Start(ctx context.Context) {
	stop := context.AfterFunc(ctx, r.cancel)
	context.AfterFunc(r.ctx, func() { stop() })
	if r.o.Transport != nil {
		o := exchange.ServerOptions{Local: r.o.Local, Epoch: r.epoch, Promise: r.promises.told, Logger: r.o.Logger}
		if r.o.Cache != nil {
			o.Cache = r.o.Cache
		}
		stopServing := exchange.Serve(r.o.Transport, o)
		r.mu.Lock()
		r.stopServing = stopServing
		r.mu.Unlock()
	}
	r.spawn(r.watch)
	r.spawn(r.repairAll)
}

// epoch is that of the View in use, 0 before the first.
func (r *Replica) epoch() uint64 {
	if c := r.cluster.Load(); c != nil {
		return c.epoch
	}
	return 0
}

// Close ends everything in the background, and serving; on return nothing uses Local
// and Cache any more, which stay open. Blocks that owners do not have yet are on
// this node; the next run sends them.
func (r *Replica) Close() error {
	r.mu.Lock()
	r.closed = true
	stopServing := r.stopServing
	r.stopServing = nil
	r.mu.Unlock()
	r.cancel()
	r.running.Wait()
	if stopServing != nil {
		stopServing()
	}
	return nil
}

// spawn runs f in the background unless the Replica is closed.
func (r *Replica) spawn(f func()) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.running.Go(f)
	return true
}

// shared returns the cluster, nil if this node has nobody to share with.
func (r *Replica) shared() *cluster {
	if c := r.cluster.Load(); c != nil && !c.alone {
		return c
	}
	return nil
}

// watchEvery is how often the health of members is looked at.
const watchEvery = time.Second

// watch notices members that answer again: they get what they have missed.
func (r *Replica) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	dead := make(map[p2p.PeerID]bool)
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-tick.C:
		}
		c := r.shared()
		if c == nil {
			continue
		}
		var none [cas.HashSize]byte
		for _, id := range append(c.table.Rank(&none, nil), c.others...) {
			if id == r.self {
				continue
			}
			was := dead[id]
			if dead[id] = r.health(id) == p2p.Dead; was && !dead[id] {
				r.repair.request()
			}
		}
		r.retryParked(c)
	}
}

// Status describes the work of a Replica.
type Status struct {
	Epoch uint64 // of the View in use
	// UnderReplicated counts the blocks held here that some owner lacks, or may
	// lack, or that have no owner, as the last pass found and left them, and those
	// put since that an owner missed; a block put while a pass is under way may
	// count twice.
	UnderReplicated int64
	Pending         int64 // blocks put here that are not yet durable on enough nodes
	Repaired        int64 // blocks sent by repair since the start
	// Droppable counts the blocks that this node holds, does not own, and has not
	// dropped in the last pass, though every owner has them.
	Droppable int64
	PassDone  bool // a pass was completed in this epoch
	// Secured is the last epoch in which a pass found, or made, durable copies on
	// as many nodes as Sync waits for of all blocks that are held here; 0: none.
	Secured uint64
	Dropped int64 // blocks dropped since the start
	Checked int64 // blocks that the pass under way has looked at, or the last one has
	Lost    int64 // times since the start that a block was damaged here and found nowhere else
}

// Status returns how far things are.
func (r *Replica) Status() Status {
	s := r.repair.status()
	s.Lost = r.damaged.Load()
	if c := r.cluster.Load(); c != nil {
		s.Epoch = c.epoch
		s.PassDone = s.PassDone && r.repair.doneIn(c)
	}
	r.queue.mu.Lock()
	s.Pending = int64(r.queue.open.Len())
	s.UnderReplicated += r.queue.missed
	r.queue.mu.Unlock()
	return s
}

// Drained says whether this node is being drained and a complete pass has found all
// that it holds durable on all its owners, with nothing put here since that is not.
func (r *Replica) Drained() bool {
	c := r.cluster.Load()
	if c == nil || !c.draining {
		return false
	}
	r.queue.mu.Lock()
	pending := len(r.queue.entries) + len(r.queue.behind)
	r.queue.mu.Unlock()
	return pending == 0 && r.repair.cleanIn(c)
}

// order returns the other members that may have a block, those first that are to be
// asked first: by how well they answer, and among equals by placement, those that
// own nothing last.
func (r *Replica) order(c *cluster, hash *[cas.HashSize]byte) []*peer {
	ids := append(c.table.Rank(hash, nil), c.others...)
	order := make([]*peer, 0, len(ids))
	for g := good; g <= dead; g++ {
		for i, id := range ids {
			if id == "" || id == r.self {
				continue
			}
			if p := r.peer(id); r.grade(p) <= g {
				order = append(order, p)
				ids[i] = "" // has its place
			}
		}
	}
	return order
}
