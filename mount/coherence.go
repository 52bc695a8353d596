//go:build linux

package mount

import (
	"hash/maphash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cairnfs/cairn/volume"
)

// Bounds.
const (
	// sharedFor is how long the kernel may use names and attributes of a shared
	// volume without asking again. It is told of changes; this bounds the harm
	// of one that it was not told of.
	sharedFor = time.Minute
	// maxPending is how many names and inodes wait to be told of. If there are
	// more the kernel is told of everything it knows.
	maxPending = 64 << 10
	// maxAwait is how long an open waits for the kernel to be told.
	maxAwait = time.Second
	// An inode that the kernel does not have although it was told of it is on
	// its way there, or on its way back: it is tried so often, after a time
	// that doubles.
	maxRetries    = 6
	firstRetry    = 4 * time.Millisecond
	maxRetrying   = 1 << 10
	recentBuckets = 1 << 13
)

// coherence keeps the kernel's copies of names, attributes and pages like the
// volume while other nodes change it.
//
// What they change comes as events, which get ascending numbers. A goroutine tells
// the kernel: it alone may wait for what the kernel does in a directory or with a
// page, and neither the volume nor a request waits for it. Only an open does,
// shortly, if the kernel may have found its way by a name that has changed: then
// the answer is ESTALE, on which the kernel looks at all names anew and opens what
// it finds. It does so once per open, so the second answer must be another one.
//
// An answer may be older than an event and reach the kernel after it was told of
// it. Against that each answer notes the number of the last event before it looks
// at the volume, and is not kept by the kernel if its subject has changed since.
// Answers on their way need no more than that: the kernel drops attributes that it
// asked for before it was told of a change, an entry notification waits for all
// lookups and listings in its directory, and dropping a page for its being read.
//
// While the volume is not shared nothing is remembered and nothing runs.
type coherence struct {
	vol   *volume.Volume
	known *lookups
	now   func() time.Time
	tell  notifier // nil before start

	began  atomic.Bool   // the volume has been seen to be shared
	begun  chan struct{} // closed then
	seq    atomic.Uint64 // number of the last event
	seed   maphash.Seed
	recent [recentBuckets]atomic.Uint64 // the last event about inodes and names, by hash

	mu        sync.Mutex
	pending   *batch        // never nil
	current   *batch        // is being delivered; nil: none
	telling   uint64        // inode that the kernel is being told of; 0: none
	told      sync.Cond     // telling has changed
	delivered uint64        // the kernel's names agree with the events up to it
	progress  chan struct{} // closed and made anew when delivered grows
	seeded    bool          // edges has what the kernel was told before the volume was shared
	all       uint64        // the last event that said that everything changed
	edges     edges
	callers   callers
	retries   int // under way

	wake    chan struct{}
	quit    chan struct{}
	done    sync.WaitGroup // of all that tells the kernel on its own
	unwatch func()
}

func newCoherence(vol *volume.Volume, known *lookups, now func() time.Time) *coherence {
	c := &coherence{
		vol: vol, known: known, now: now, seed: maphash.MakeSeed(), pending: newBatch(), begun: make(chan struct{}),
		progress: make(chan struct{}), wake: make(chan struct{}, 1), quit: make(chan struct{}),
	}
	c.told.L = &c.mu
	return c
}

// start begins to tell the kernel by n. Without a volume every request fails, and
// there is nothing to tell of.
func (c *coherence) start(n notifier) {
	if c.vol == nil {
		return
	}
	c.tell = n
	c.done.Go(c.deliver)
	c.unwatch = c.vol.Watch(c.observe)
}

// end ends what start began. The connection to the kernel has ended.
func (c *coherence) end() {
	if c.unwatch != nil {
		c.unwatch()
		close(c.quit)
		c.done.Wait()
	}
}

// shared reports whether other nodes change the volume.
func (c *coherence) shared() bool {
	if !c.vol.Shared() {
		return false
	}
	if !c.began.Load() && c.began.CompareAndSwap(false, true) {
		close(c.begun)
		c.signal()
	}
	return true
}

func (c *coherence) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *coherence) knows(ino uint64) bool { return ino == fuse.FUSE_ROOT_ID || c.known.has(ino) }

func (c *coherence) ofInode(ino uint64) *atomic.Uint64 {
	return &c.recent[maphash.Comparable(c.seed, ino)%recentBuckets]
}

func (c *coherence) ofName(parent uint64, name string) *atomic.Uint64 {
	return &c.recent[maphash.Comparable(c.seed, entryName{parent, name})%recentBuckets]
}

// observe takes events from the volume. It waits for nothing.
func (c *coherence) observe(events []volume.Event) {
	c.shared()
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	seq := c.seq.Load() + 1
	b := c.pending
	b.last = seq
	for i := range events {
		e := &events[i]
		if e.All {
			c.all = seq
			b.everything()
		}
		if e.Name != "" {
			parent := uint64(e.Parent)
			c.ofName(parent, e.Name).Store(seq)
			c.ofInode(parent).Store(seq)
			c.edges.change(parent, e.Name, seq, now)
			if was := uint64(e.Was); !c.seeded && was != 0 {
				c.edges.mark(was, seq, now)
			}
			if c.knows(parent) {
				b.name(parent, e.Name)
			}
		}
		if ino := uint64(e.Ino); ino != 0 {
			// First noted, then looked whether the kernel knows it; handedOut
			// does it the other way round, so one of both finds the other.
			c.ofInode(ino).Store(seq)
			if c.knows(ino) {
				b.inode(ino, e.Content)
			}
		}
	}
	c.seq.Store(seq)
	c.signal()
}

// handedOut notes that name in parent is answered with ino, which lookups knows by
// now, and returns for how long the kernel may keep the name and the attributes.
// The volume was looked at after event since. Without a name it is of ino alone.
func (c *coherence) handedOut(caller uint32, since, parent uint64, name string, ino uint64) (entry, attr time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	entry, attr = sharedFor, sharedFor
	if c.ofInode(ino).Load() > since || c.all > since {
		attr = 0
	}
	c.callers.lookedUp(caller, ino)
	if name == "" {
		return entry, attr
	}
	if changed := max(c.ofName(parent, name).Load(), c.all); changed > since {
		c.edges.mark(ino, changed, c.now())
		return 0, attr
	}
	c.edges.add(parent, name, ino)
	return entry, attr
}

// renamed notes that this kernel has renamed something. If what it took for that
// was something else by then, it is to forget both names.
func (c *coherence) renamed(parent uint64, name string, newParent uint64, newName string, exchange bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, changed := range []uint64{c.ofName(parent, name).Load(), c.ofName(newParent, newName).Load(), c.all} {
		if changed > c.delivered {
			c.pending.name(parent, name)
			c.pending.name(newParent, newName)
			c.signal()
			break
		}
	}
	c.edges.move(parent, name, newParent, newName, exchange)
}

// removed notes that this kernel has removed a name.
func (c *coherence) removed(parent uint64, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.edges.get(parent, name); e != nil {
		c.edges.remove(e)
	}
}

// outdated has the kernel drop what it has of ino, soon.
func (c *coherence) outdated(ino uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending.inode(ino, true)
	c.signal()
}

// forget notes that the kernel has forgotten ino.
func (c *coherence) forget(ino uint64) {
	if !c.began.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.knows(ino) { // it may have been told of it again
		c.edges.forget(ino)
	}
}

// settle is for requests upon which the kernel looks at ino anew: what it was still to
// be told of the inode is left to the caller, who returns content, whether its pages
// may be old, and any, whether anything may be. A notification that comes later would
// undo the answer to the question that the kernel asks next, since it drops attributes
// that it asked for before, and goes by the size that it had. One that is under way is
// waited for.
func (c *coherence) settle(ino uint64) (content, any bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range [...]*batch{c.pending, c.current} {
		if b != nil {
			changed, found := b.leave(ino)
			content, any = content || changed, any || found
		}
	}
	for c.telling == ino {
		c.told.Wait()
	}
	return content, any
}

// stale reports whether the open of ino by caller is to be answered with ESTALE,
// and returns after the kernel was told of what has changed. The request arrived at
// the given time. gone says that there is no such inode.
func (c *coherence) stale(caller uint32, ino uint64, arrived time.Time, gone bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.callers.retries(caller, ino) {
		return false
	}
	c.await(func() bool { return c.seeded })
	changed := c.edges.lost(ino, c.delivered, arrived)
	if c.all > 0 && len(c.edges.up[ino]) > 0 {
		changed = max(changed, c.all)
	}
	if !gone && changed <= c.callers.seen(caller) {
		return false
	}
	c.await(func() bool { return c.delivered >= changed })
	c.callers.tell(caller, ino, c.delivered)
	return true
}

// toldToLook notes that caller was told to look a name up again.
func (c *coherence) toldToLook(caller uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.callers.tell(caller, 0, 0)
}

// await waits, without mu, until deliver has made something come true, but not for
// long.
func (c *coherence) await(is func() bool) {
	if is() || c.tell == nil {
		return
	}
	timeout := time.NewTimer(maxAwait)
	defer timeout.Stop()
	for !is() {
		progress := c.progress
		c.mu.Unlock()
		select {
		case <-progress:
			c.mu.Lock()
		case <-timeout.C:
			c.mu.Lock()
			return
		}
	}
}
