package volume

import (
	"context"

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
	// to: then nothing that hangs on it, such as a lock, may be relied upon.
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

// Share makes the volume one of several over the same names, at any time after
// Start, and for good.
func (v *Volume) Share(c Cluster) { v.cluster.Store(&c) }

// shared returns the cluster, nil if there is none.
func (v *Volume) shared() Cluster {
	if c := v.cluster.Load(); c != nil {
		return *c
	}
	return nil
}

// Shared reports whether other nodes change the volume, too.
func (v *Volume) Shared() bool { return v.shared() != nil }

// Watch has fn called with what other nodes changed, in order, before the next
// command is applied. fn must not wait for anything, nor call the volume. Watch
// returns what ends the calls.
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

// Observe takes note of a command that was applied: State.Observe calls it, for
// every command.
func (v *Volume) Observe(c *namespace.Change) {
	cluster := v.shared()
	if cluster == nil || c.Session != 0 && c.Session == cluster.Session() {
		return
	}
	v.watching.Lock()
	watchers := v.watchers
	v.watching.Unlock()
	if len(watchers) == 0 {
		return
	}
	events := eventsOf(c)
	for _, w := range watchers {
		w.fn(events)
	}
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
