package raft

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// stops waits until a node has ended because it is refused.
func (m *member) stops(kind RefusalKind) {
	m.g.t.Helper()
	eventually(m.g.t, "the node is refused: "+string(kind), func() bool {
		m.g.mu.Lock()
		defer m.g.mu.Unlock()
		return m.fail != nil
	})
	var r *Refusal
	if !errors.As(m.fail, &r) || r.Kind != kind {
		m.g.t.Errorf("node %d stops because of %v", m.id, m.fail)
	}
}

// Rule 4: a copy of a store from before an acknowledged command is refused, also when
// the store was not started since, and also by a leader that is new.
func TestACopyTakenWhileItWasInUseIsRefused(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	a := g.found()
	b := a.join(p2p.RoleStorage)
	c := a.join(p2p.RoleStorage)
	g.voters(3)
	b.must(mkdir("kept"))
	copied := b.fs.CrashClone(vfs.CrashCloneCfg{})
	b.must(mkdir("after"))
	g.agree()
	b.crash()
	c.must(mkdir("without it"))
	for _, m := range []*member{a, c} { // what is remembered is durable by then
		keep, err := m.log.Checkpoint()
		if err == nil {
			err = m.checkpoint(keep)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	a, c = g.start(a.id, a.crash()), g.start(c.id, c.crash())
	g.start(b.id, copied).stops(Restored)
	a.must(mkdir("goes on"))
	for _, m := range []*member{a, c} {
		if _, err := m.state.Lookup(1, "after"); err != nil {
			t.Errorf("node %d has lost a name: %v", m.id, err)
		}
	}
}

// Rule 4: a copy that one member refuses is forgotten by those who took it for the right
// store, who say so, and does not stand in the way of that.
func TestARefusedCopyIsForgotten(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	a := g.found()
	b := a.join(p2p.RoleStorage)
	c := a.join(p2p.RoleStorage)
	g.voters(3)
	b.must(mkdir("kept"))
	met := func(m *member, mark uint64) bool {
		var is bool
		m.log.do(context.Background(), func() {
			known := m.log.store.vouch.others[b.id]
			is = known != nil && known.Mark == mark
		})
		return is
	}
	eventually(t, "all have met it", func() bool { return met(a, b.log.mark) && met(c, b.log.mark) })
	copied := b.crash()
	b = g.start(b.id, copied.CrashClone(vfs.CrashCloneCfg{}))
	right := b.log.mark
	eventually(t, "all have met its next start", func() bool { return met(a, right) && met(c, right) })
	disk := b.crash()
	// As if c had not met that start, and now takes the copy for the right store.
	c.log.do(context.Background(), func() {
		m := c.log.store.vouch.of(b.id)
		if !m.unmeet(right) {
			t.Error("c did not meet that start")
		}
		m.Term, m.Acked, m.Sure = 0, 0, 0
	})
	copy := g.start(b.id, copied)
	copy.stops(Restored)
	eventually(t, "c has said that it is refused", func() bool {
		var said bool
		c.log.do(context.Background(), func() { _, said = c.log.warned[warning{peerName(b.id), Restored}] })
		return said
	})
	copy.crash()
	b = g.start(b.id, disk)
	b.made("by the right one")
	g.agree()
	if b.fail != nil {
		t.Error(b.fail)
	}
}

// made makes a directory, with whatever session there is in the end.
func (m *member) made(name string) {
	m.g.t.Helper()
	eventually(m.g.t, name, func() bool {
		_, err := m.propose(mkdir(name))
		return err == nil || errors.Is(err, namespace.ErrExist)
	})
}

// Rule 4: nobody is accused who lost its power, with whatever it had not synced.
func TestANodeThatLostItsPowerIsNotRefused(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	a := g.found()
	b := a.join(p2p.RoleStorage)
	c := a.join(p2p.RoleStorage)
	g.voters(3)
	for round := range 6 {
		for _, m := range []**member{&a, &b, &c} {
			(*m).made(fmt.Sprint("round ", round, " on ", (*m).id))
			*m = g.start((*m).id, (*m).crash())
		}
	}
	for _, m := range []*member{a, b, c} {
		m.made(fmt.Sprint("in the end on ", m.id))
	}
	g.agree()
	for _, m := range []*member{a, b, c} {
		if m.fail != nil {
			t.Errorf("node %d: %v", m.id, m.fail)
		}
	}
}
