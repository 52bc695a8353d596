package replica

import (
	"container/list"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/p2p"
)

// Blocks that were put go to their owners through lanes, one per peer. The queue
// keeps no bytes: a block is read from the local store when its turn comes. It
// knows of each block how many others have made it durable, and that is what Sync
// waits for. A block that no peer can be given is parked, and given out again when
// one answers.

// Limits of the queue, besides Options.PushBytes.
const (
	// maxParked is how many blocks may wait for a peer that answers; beyond
	// that Put fails with ErrTooFewCopies. Each takes about 200 bytes.
	maxParked = 256 << 10
	// maxUnsynced is how many blocks a peer may have taken before it is asked
	// to make them durable, though nobody waits, and maxUnsyncedFor how long.
	maxUnsynced    = 4096
	maxUnsyncedFor = 5 * time.Second
)

// entry is a block on its way to its owners.
type entry struct {
	cid     cas.CID
	size    int64
	seq     uint64
	need    int           // on so many others it must be durable
	durable int           // on so many it is
	left    int           // lanes in whose queue it is, or that are sending it
	stored  int           // lanes in whose unsynced it is
	missed  bool          // an owner did not get it
	tried   []p2p.PeerID  // that were given it
	place   *list.Element // in open, nil if it is durable enough
}

type queue struct {
	mu      sync.Mutex
	seq     uint64
	wanted  uint64     // Sync waits for entries up to this one
	bytes   int64      // of entries that are left
	open    *list.List // of entries that are not durable enough, in order of seq
	entries map[[cas.HashSize]byte]*entry
	parked  map[*entry]struct{}
	behind  map[p2p.PeerID]bool // owners that missed a block
	missed  int64               // blocks that an owner missed since the last pass of repair began
	lanes   map[p2p.PeerID]*lane
	steps   uint64        // counts whatever brings a block nearer to being durable
	changed chan struct{} // closed when something has
}

// lane is what goes to one peer; all but p and wake belong to the queue's mutex.
type lane struct {
	p        *peer
	queue    []*entry
	unsynced []*entry // that it took, in the run boot, and that are not durable enough
	since    time.Time
	boot     uint64
	wake     chan struct{}
}

func (q *queue) init() {
	q.open = list.New()
	q.entries = make(map[[cas.HashSize]byte]*entry)
	q.parked = make(map[*entry]struct{})
	q.behind = make(map[p2p.PeerID]bool)
	q.lanes = make(map[p2p.PeerID]*lane)
	q.changed = make(chan struct{})
}

// All that follows is called with mu held.

// signal wakes those who wait for room or for blocks to be durable.
func (q *queue) signal() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// settle is called when the counts of an entry have changed.
func (r *Replica) settle(e *entry) {
	q := &r.queue
	if e.place != nil && e.durable >= e.need {
		q.open.Remove(e.place)
		e.place = nil
		delete(q.parked, e)
	}
	if e.left > 0 {
		return
	}
	switch {
	case e.place == nil:
		hash := e.cid.Hash()
		if q.entries[hash] == e {
			delete(q.entries, hash)
		}
	case e.stored == 0:
		q.parked[e] = struct{}{}
	}
}

// give puts the entry into the lanes of those who are to have it: the first members
// in order of rank that answer, as many as there are to be copies. It returns
// whether there is any.
func (r *Replica) give(c *cluster, e *entry) bool {
	hash := e.cid.Hash()
	var room [16]p2p.PeerID
	slots := c.table.Copies()
	for i, id := range c.table.Rank(&hash, room[:0]) {
		if slots == 0 {
			break
		}
		if id == r.self || slices.Contains(e.tried, id) {
			slots--
			continue
		}
		p := r.peer(id)
		if !r.usable(p) {
			if i < c.table.Copies() {
				r.miss(e, id)
			}
			continue
		}
		if l := r.lane(p); l != nil {
			r.enqueue(l, e)
			slots--
		}
	}
	return e.left > 0
}

// miss takes note that a member that may be an owner did not get the block.
func (r *Replica) miss(e *entry, id p2p.PeerID) {
	q := &r.queue
	q.behind[id] = true
	if !e.missed {
		e.missed = true
		q.missed++
	}
}

func (r *Replica) enqueue(l *lane, e *entry) {
	if e.left++; e.left == 1 {
		r.queue.bytes += e.size
	}
	e.tried = append(e.tried, l.p.ID)
	l.queue = append(l.queue, e)
	l.poke()
}

func (l *lane) poke() {
	select {
	case l.wake <- struct{}{}:
	default: // it is awake
	}
}

// lane returns the lane to a peer, which runs until the Replica is closed; nil if
// it is closed already.
func (r *Replica) lane(p *peer) *lane {
	q := &r.queue
	l := q.lanes[p.ID]
	if l == nil {
		l = &lane{p: p, wake: make(chan struct{}, 1)}
		if !r.spawn(func() { r.push(l) }) {
			return nil
		}
		q.lanes[p.ID] = l
	}
	return l
}

// release takes the entry off a lane.
func (r *Replica) release(e *entry) {
	if e.left--; e.left == 0 {
		r.queue.bytes -= e.size
	}
}

// took moves entries that a peer has, as of its run boot, to what it has yet to make
// durable.
func (r *Replica) took(l *lane, boot uint64, entries []*entry) {
	q := &r.queue
	r.seen(l, boot)
	for _, e := range entries {
		r.release(e)
		if e.place != nil {
			if len(l.unsynced) == 0 {
				l.since = r.o.Now()
			}
			e.stored++
			l.unsynced = append(l.unsynced, e)
		}
		r.settle(e)
	}
	q.steps++
	q.signal()
}

// synced takes note that the peer, in its run boot, has made durable all that it
// had taken.
func (r *Replica) synced(l *lane, boot uint64) {
	if !r.seen(l, boot) {
		return
	}
	for _, e := range l.unsynced {
		e.stored--
		e.durable++
		r.settle(e)
	}
	l.unsynced = nil
	r.queue.steps++
	r.queue.signal()
}

// seen takes note of the peer's run. In another one it may have lost what it had
// not made durable, so that it gets it again, and the answer is false.
func (r *Replica) seen(l *lane, boot uint64) bool {
	if l.boot == boot {
		return true
	}
	l.boot = boot
	if len(l.unsynced) == 0 {
		return true
	}
	lost := l.unsynced
	l.unsynced = nil
	for _, e := range lost {
		e.stored--
		e.tried = slices.DeleteFunc(e.tried, func(id p2p.PeerID) bool { return id == l.p.ID })
		if e.place != nil {
			r.enqueue(l, e)
		}
		r.settle(e)
	}
	return false
}

// failed finds others for entries that the peer did not take.
func (r *Replica) failed(l *lane, entries []*entry) {
	c := r.shared()
	for _, e := range entries {
		r.release(e)
		r.miss(e, l.p.ID)
		r.elsewhere(c, e, l.p.ID)
	}
	r.queue.signal()
}

// unsure finds others for what the peer took, but could not be brought to make
// durable.
func (r *Replica) unsure(l *lane) {
	c := r.shared()
	lost := l.unsynced
	l.unsynced = nil
	for _, e := range lost {
		e.stored--
		r.miss(e, l.p.ID)
		if e.place != nil {
			r.elsewhere(c, e, l.p.ID)
		} else {
			r.settle(e)
		}
	}
	r.queue.signal()
}

// elsewhere gives the entry to the next member in order of rank that answers and
// was not given it.
func (r *Replica) elsewhere(c *cluster, e *entry, not p2p.PeerID) {
	if c != nil && c.need > 0 {
		hash := e.cid.Hash()
		var room [16]p2p.PeerID
		for _, id := range c.table.Rank(&hash, room[:0]) {
			if id == r.self || id == not || slices.Contains(e.tried, id) {
				continue
			}
			if p := r.peer(id); r.usable(p) {
				if l := r.lane(p); l != nil {
					r.enqueue(l, e)
					break
				}
			}
		}
	}
	r.settle(e)
}

// retryParked gives out again what was parked, and has repair fill owners that
// missed something, as soon as they answer.
func (r *Replica) retryParked(c *cluster) {
	q := &r.queue
	q.mu.Lock()
	for id := range q.behind {
		if r.usable(r.peer(id)) {
			delete(q.behind, id)
			r.repair.request()
		}
	}
	if r.reachable(c) {
		again := slices.Collect(maps.Keys(q.parked))
		clear(q.parked)
		for _, e := range again {
			e.tried = e.tried[:0]
			r.give(c, e)
			r.settle(e)
		}
	}
	for _, l := range q.lanes {
		if len(l.unsynced) > 0 {
			l.poke() // it may have been long enough
		}
	}
	q.mu.Unlock()
}

// reachable says whether blocks can be sent to any other member.
func (r *Replica) reachable(c *cluster) bool {
	var none [cas.HashSize]byte
	return slices.ContainsFunc(c.table.Rank(&none, nil), func(id p2p.PeerID) bool {
		return id != r.self && r.usable(r.peer(id))
	})
}

// viewChanged adapts what is under way to another epoch.
func (r *Replica) viewChanged(c *cluster) {
	q := &r.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	for at := q.open.Front(); at != nil; {
		e := at.Value.(*entry)
		at = at.Next()
		e.need = c.need
		r.settle(e)
	}
	var none [cas.HashSize]byte
	members := c.table.Rank(&none, nil)
	maps.DeleteFunc(q.behind, func(id p2p.PeerID, _ bool) bool { return !slices.Contains(members, id) })
	q.steps++
	q.signal()
}
