//go:build linux

package mount

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/volume"
)

// What the kernel is told by coherence, and how: in batches, each of them with every
// name and inode once. Names come first, because opens wait for them, and then
// inodes: a listing that was under way when a name changed is over when the kernel
// has dropped the name, so what it left in the cache goes with the directory's.

// notifier tells the kernel, as fuse.Server does.
type notifier interface {
	InodeNotify(node uint64, off, length int64) fuse.Status
	EntryNotify(parent uint64, name string) fuse.Status
}

// dropper is a notifier that has the volume know when all pages of an inode are dropped.
// Only requests that keep the kernel from writing to it drop some.
type dropper struct {
	notifier
	vol *volume.Volume
}

func (d dropper) InodeNotify(node uint64, off, length int64) fuse.Status {
	if off == 0 && length == 0 && d.vol != nil && d.vol.Shared() {
		defer d.vol.Dropping(namespace.Ino(node))()
	}
	return d.notifier.InodeNotify(node, off, length)
}

// batch is what the kernel is to be told of.
type batch struct {
	all    bool
	names  map[entryName]struct{}
	inodes map[uint64]bool // true: the content, too
	left   map[uint64]bool // inodes of all that settle has left to requests since
	last   uint64          // event
	tries  map[uint64]int  // of inodes that are tried again
}

type entryName struct {
	parent uint64
	name   string
}

func newBatch() *batch {
	return &batch{names: make(map[entryName]struct{}), inodes: make(map[uint64]bool)}
}

func (b *batch) inode(ino uint64, content bool) {
	delete(b.left, ino)
	if !b.all {
		b.inodes[ino] = b.inodes[ino] || content
		b.limit()
	}
}

func (b *batch) name(parent uint64, name string) {
	if !b.all {
		b.names[entryName{parent, name}] = struct{}{}
		b.inode(parent, true)
	}
}

func (b *batch) limit() {
	if len(b.names)+len(b.inodes) > maxPending {
		b.everything()
	}
}

func (b *batch) everything() { *b = batch{all: true, last: b.last, left: make(map[uint64]bool)} }

// leave takes an inode out of the batch, and returns what was to be told of it.
func (b *batch) leave(ino uint64) (content, any bool) {
	if !b.all {
		content, any = b.inodes[ino]
		delete(b.inodes, ino)
		return content, any
	}
	any = !b.left[ino]
	if len(b.left) < maxPending {
		b.left[ino] = true
	}
	return any, any
}

// deliver tells the kernel until quit.
func (c *coherence) deliver() {
	for {
		select {
		case <-c.quit:
			return
		case <-c.wake:
		}
		if !c.seeded { // written here only
			c.remember()
		}
		c.mu.Lock()
		c.seeded = true
		b := c.pending
		c.pending, c.current = newBatch(), b
		c.mu.Unlock()
		c.deliverNames(b)
		c.mu.Lock()
		c.delivered = max(c.delivered, b.last)
		close(c.progress)
		c.progress = make(chan struct{})
		c.mu.Unlock()
		c.deliverInodes(b)
		c.mu.Lock()
		c.current = nil
		c.mu.Unlock()
	}
}

func (c *coherence) quitting() bool {
	select {
	case <-c.quit:
		return true
	default:
		return false
	}
}

func (c *coherence) deliverNames(b *batch) {
	if b.all {
		c.known.each(func(ino uint64) { c.compare(ino, b.last) })
		c.compare(fuse.FUSE_ROOT_ID, b.last)
		return
	}
	for n := range b.names {
		c.dropName(n.parent, n.name, b.last)
	}
}

// dropName has the kernel drop what it has of a name, also that there is none. It
// waits for whatever goes on in the directory.
func (c *coherence) dropName(parent uint64, name string, last uint64) {
	if c.quitting() {
		return
	}
	c.tell.EntryNotify(parent, name)
	c.mu.Lock()
	c.edges.delivered(parent, name, last)
	c.mu.Unlock()
}

func (c *coherence) deliverInodes(b *batch) {
	if b.all {
		c.known.each(func(ino uint64) { c.tellOf(b, ino) })
		c.tellOf(b, fuse.FUSE_ROOT_ID)
		return
	}
	c.mu.Lock()
	inos := slices.Collect(maps.Keys(b.inodes))
	c.mu.Unlock()
	for _, ino := range inos {
		c.tellOf(b, ino)
	}
}

// tellOf has the kernel drop an inode of the batch, unless a request has seen to it.
func (c *coherence) tellOf(b *batch, ino uint64) {
	c.mu.Lock()
	content, any := b.leave(ino)
	tries := b.tries[ino]
	if any {
		c.telling = ino
	}
	c.mu.Unlock()
	if !any {
		return
	}
	c.dropInode(ino, content, tries)
	c.mu.Lock()
	c.telling = 0
	c.mu.Unlock()
	c.told.Broadcast()
}

// dropInode has the kernel drop the attributes of an inode, and with content its
// pages or the listing of the directory.
func (c *coherence) dropInode(ino uint64, content bool, tries int) {
	if c.quitting() || !c.knows(ino) {
		return
	}
	off, version := int64(-1), uint64(0)
	if content {
		off, version = 0, c.vol.Version(namespace.Ino(ino))
	}
	status := c.tell.InodeNotify(ino, off, 0)
	if status == fuse.OK && version != 0 {
		// Or the next GETATTR would drop the pages again, and with that undo
		// its own answer.
		c.vol.Dropped(namespace.Ino(ino), version)
	}
	if status != fuse.ENOENT || tries >= maxRetries || !c.knows(ino) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retries < maxRetrying {
		c.retries++
		time.AfterFunc(firstRetry<<tries, func() { c.retry(ino, content, tries+1) })
	}
}

func (c *coherence) retry(ino uint64, content bool, tries int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retries--
	c.pending.inode(ino, content)
	if c.pending.tries == nil {
		c.pending.tries = make(map[uint64]int)
	}
	c.pending.tries[ino] = tries
	c.signal()
}

// remember notes the names by which the kernel may know inodes, which it was
// answered before the volume was shared: as they are in the volume, which nobody
// but it had changed.
func (c *coherence) remember() {
	since := c.seq.Load()
	seed := func(dir uint64) {
		c.list(dir, func(name string, ino uint64) {
			if !c.knows(ino) {
				return
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.edges.get(dir, name) == nil && c.ofName(dir, name).Load() <= since {
				c.edges.add(dir, name, ino)
			}
		})
	}
	c.known.each(seed)
	seed(fuse.FUSE_ROOT_ID)
}

// compare has the kernel drop the names in a directory that it may have otherwise
// than they are. Names that it was answered as they are stay: dropping one undoes
// what is mounted below, and processes do not know where they are.
func (c *coherence) compare(dir, last uint64) {
	c.mu.Lock()
	had := make(map[string]edge, len(c.edges.down[dir]))
	for name, e := range c.edges.down[dir] {
		had[name] = *e
	}
	c.mu.Unlock()
	var unknown []string
	c.list(dir, func(name string, ino uint64) {
		if e, ok := had[name]; !ok {
			unknown = append(unknown, name)
		} else if e.child == ino && e.changed == 0 {
			delete(had, name)
		}
	})
	for name := range had {
		c.mu.Lock()
		c.edges.change(dir, name, last, c.now())
		c.mu.Unlock()
		c.dropName(dir, name, last)
	}
	for _, name := range unknown { // maybe taken for absent
		c.dropName(dir, name, last)
	}
}

// list calls fn for the names in a directory, none if it is not one.
func (c *coherence) list(dir uint64, fn func(name string, ino uint64)) {
	const page = 1 << 10
	var cookie uint64
	for more := true; more && !c.quitting(); {
		var names []namespace.Dentry
		more = false
		err := c.vol.ReadDir(context.Background(), namespace.Ino(dir), cookie, func(d namespace.Dentry) bool {
			if len(names) >= page && names[len(names)-1].More == 0 {
				more = true
				return false
			}
			names = append(names, d)
			return true
		})
		if err != nil {
			return
		}
		for _, d := range names {
			cookie = d.Cookie
			fn(d.Name, uint64(d.Ino))
		}
	}
}
