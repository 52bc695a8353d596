package volume

import (
	"context"
	"errors"

	"github.com/cairnfs/cairn/namespace"
)

// A volume may be shared: other nodes apply the same log and change the same names
// and files. What that takes from a volume is here and in the files shared*.go. A
// volume that is not shared pays one atomic load for it.

// Cluster is what a volume asks of the nodes with which it shares its names. Its
// log, which Options.Log leads to from then on, gives every command the node's
// session.
type Cluster interface {
	// Barrier returns when all commands that were acknowledged anywhere before
	// the call are applied here. It fails when no majority can be reached.
	Barrier(ctx context.Context) error
	// Session returns the session of this node, 0 once it has ended or is about
	// to: then nothing that hangs on it, such as a lock, may be relied upon. It must
	// not wait: files are locked meanwhile, and Observe calls it.
	Session() namespace.SessionID
}

// Event is a change that another node made. Fields that are zero say nothing.
type Event struct {
	// Ino is an inode whose attributes changed, and with Content its content
	// or, of a directory, its entries.
	Ino     namespace.Ino
	Content bool
	// Parent and Name are an entry that leads elsewhere now.
	Parent namespace.Ino
	Name   string
	Was    namespace.Ino // 0: there was none
	Is     namespace.Ino // 0: it is gone
	// All says that anything may have changed.
	All bool
}

// Share makes the volume one of several over the same names, at any time, and for
// good. Locks that are held are brought to the cluster; those that another node
// excludes are lost. What was written so far and is not in the namespace goes there
// soon.
func (v *Volume) Share(c Cluster) {
	if v.cluster.Swap(&c) != nil {
		return
	}
	v.bringLocks(context.Background())
	if v.stop == nil {
		return // nothing can be open yet
	}
	v.done.Go(func() {
		if err := v.Sync(context.Background()); err != nil {
			v.o.Logger.Warn("what was written before the volume was shared is named later", "err", err)
		}
	})
}

// shared returns the cluster, nil if there is none.
func (v *Volume) shared() Cluster {
	if c := v.cluster.Load(); c != nil {
		return *c
	}
	return nil
}

// Shared reports whether other nodes change the volume, too.
func (v *Volume) Shared() bool { return v.cluster.Load() != nil }

// Watch has fn called with what other nodes changed, in order, before the next
// command is applied, and with what has changed for this node's kernel although
// no other node did it: where records that were appended here lie, and bytes that
// were given up with a session. fn must not wait for anything, nor call the volume.
// Watch returns what ends the calls.
func (v *Volume) Watch(fn func([]Event)) (stop func()) {
	w := &watcher{fn}
	v.watching.Lock()
	defer v.watching.Unlock()
	v.watchers = append(v.watchers[:len(v.watchers):len(v.watchers)], w)
	return func() {
		v.watching.Lock()
		defer v.watching.Unlock()
		var rest []*watcher
		for _, o := range v.watchers {
			if o != w {
				rest = append(rest, o)
			}
		}
		v.watchers = rest
	}
}

type watcher struct{ fn func([]Event) }

// tell calls the watchers.
func (v *Volume) tell(events []Event) {
	v.watching.Lock()
	defer v.watching.Unlock()
	for _, w := range v.watchers {
		w.fn(events)
	}
}

// Observe takes note of a command that was applied: State.Observe calls it, for
// every command. Files in memory are marked and take over what is new when they are
// used next.
func (v *Volume) Observe(c *namespace.Change) {
	cluster := v.shared()
	if cluster == nil {
		return
	}
	own := c.Session != 0 && c.Session == cluster.Session()
	late := v.mark(c, own)
	v.node.wake(c)
	if !own || late {
		v.tell(eventsOf(c))
	}
}

// mark marks the files that the command changed. late says that it is one of this
// node's own for which nobody waits any more.
func (v *Volume) mark(c *namespace.Change, own bool) (late bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if c.All {
		v.seen.clear()
		for _, f := range v.files {
			f.news.add()
			f.skipped()
			v.adopt(f)
		}
		return false
	}
	for _, n := range c.Inodes {
		if n.Gone {
			delete(v.orphans, n.Ino)
		}
		f := v.files[n.Ino]
		if f == nil {
			continue
		}
		if n.Gone {
			f.mu.Lock()
			f.orphan = true // nothing can be named any more
			f.mu.Unlock()
		}
		v.adopt(f)
		if n.Folded {
			f.news.add() // what it builds on will be gone from the store
		}
		if !n.Content {
			continue
		}
		waited, l := f.observed(c, &n, own)
		if late = late || l; !waited {
			f.news.add()
		}
	}
	return late
}

// adopt notes that a file without a name has one again, maybe by another node. Called
// with v.mu held.
func (v *Volume) adopt(f *file) {
	if !f.orphan || !v.named(f.ino) {
		return
	}
	delete(v.orphans, f.ino)
	f.mu.Lock()
	f.orphan = false
	f.mu.Unlock()
}

func eventsOf(c *namespace.Change) []Event {
	if c.All {
		return []Event{{All: true}}
	}
	events := make([]Event, 0, len(c.Inodes)+len(c.Entries))
	for _, n := range c.Inodes {
		if !n.New {
			events = append(events, Event{Ino: n.Ino, Content: n.Content})
		}
	}
	for _, e := range c.Entries {
		events = append(events, Event{Parent: e.Parent, Name: e.Name, Was: e.Was, Is: e.Is})
	}
	return events
}

// Holds reports which inodes must not be reaped on account of this node: those that
// are open here. While a file is being created any may be.
func (v *Volume) Holds(inos []namespace.Ino) []bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	making := v.making.from()
	held := make([]bool, len(inos))
	for i, ino := range inos {
		held[i] = ino >= making || v.files[ino] != nil
	}
	return held
}

// lookupAgain looks a name up that is not here, once it is certain that all that
// was acknowledged is.
func (v *Volume) lookupAgain(ctx context.Context, parent namespace.Ino, name string) (namespace.Inode, error) {
	if err := v.shared().Barrier(ctx); err != nil {
		return namespace.Inode{}, namespace.ErrNotFound // as far as this node can know
	}
	return v.o.State.Lookup(parent, name)
}

// nameAccessShared is nameAccess without holding a lock while others agree.
func (v *Volume) nameAccessShared(ctx context.Context, ino namespace.Ino) error {
	v.accesses.mu.Lock()
	t, ok := v.accesses.at[ino]
	v.accesses.mu.Unlock()
	if !ok {
		return nil
	}
	_, err := v.propose(ctx, &namespace.SetAttr{Ino: ino, Mask: namespace.AttrAccessed, Atime: t})
	if err != nil && !errors.Is(err, namespace.ErrNotFound) {
		return err
	}
	v.accesses.mu.Lock()
	defer v.accesses.mu.Unlock()
	if v.accesses.at[ino] == t {
		delete(v.accesses.at, ino)
	}
	return nil
}
