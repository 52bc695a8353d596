package raft

import (
	"errors"
	"testing"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// updated ends a node and starts it again with this program.
func (m *member) updated() *member {
	fs := m.crash()
	m.g.knows = 0
	return m.g.start(m.id, fs)
}

func (m *member) knowsOf(other *member) uint32 {
	version, _, _ := m.log.Met(peerName(other.id))
	return version
}

// raise is what package node proposes once all members know the version.
func (m *member) raise() (namespace.Result, error) {
	return m.propose(&namespace.SetVersion{Version: 2, Epoch: m.state.View().Epoch})
}

// Rule 5: the version waits for the last member; before it nothing newer is ordered, and
// a program that does not know it stops where the log raises it.
func TestTheVersionWaitsForTheLastMember(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	g.knows = 1
	a := g.found()
	b := a.join(p2p.RoleStorage)
	c := a.join(p2p.RoleStorage)
	g.voters(3)
	b = b.updated()
	a = a.updated()
	b.must(mkdir("both programs"))
	g.agree()
	late := &namespace.SetMember{Member: p2p.Member{ID: peerName(2), Version: 2}, Mask: namespace.MemberVersion}
	eventually(t, "it is refused without being ordered", func() bool { // others may be meanwhile
		before, _ := a.log.store.LastIndex()
		if _, err := a.propose(late); !errors.Is(err, namespace.ErrNotYet) {
			t.Errorf("a command of version 2 at version 1: %v", err)
		}
		after, _ := a.log.store.LastIndex()
		return after == before
	})
	eventually(t, "all have met", func() bool { return a.knowsOf(b) == 2 && a.knowsOf(c) == 1 && b.knowsOf(c) == 1 })

	// Who raises it all the same leaves the old program behind.
	if _, err := a.raise(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old program stops", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return c.fail != nil
	})
	if !errors.Is(c.fail, namespace.ErrVersion) {
		t.Errorf("it stops because of %v", c.fail)
	}
	eventually(t, "the other one has applied it", func() bool { return b.state.Version() == 2 })
	b.must(late)
	c = c.updated()
	c.must(mkdir("updated"))
	g.agree()
	for _, m := range []*member{a, b, c} {
		if v := m.state.Version(); v != 2 {
			t.Errorf("node %d is at version %d", m.id, v)
		}
	}
	if v := c.state.View().Member(peerName(2)).Version; v != 2 {
		t.Errorf("version %d is registered", v)
	}
}

// Rule 5: a program from before nodes met is listened to for as long as it may be a
// member, which is until version 2.
func TestAProgramThatDoesNotSayHelloIsHeardUntilVersion2(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	g.knows = 1
	a := g.found()
	b := a.join(p2p.RoleStorage)
	old := a.join(p2p.RoleStorage)
	// It neither says hello nor knows what that is.
	g.net.SetFilter(func(from, _ p2p.PeerID, p p2p.Protocol) error {
		if from == peerName(old.id) && (p == protocolHello || p == protocolMessages) {
			return errors.New("not known to this program")
		}
		return nil
	})
	for _, m := range []*member{a, b} {
		old.log.peers.met(peerName(m.id), acquaintance{old: true})
	}
	old.log.o.Transport.Handle(protocolHello, nil)
	old.log.o.Transport.Handle(protocolMessages, nil)
	g.voters(3)
	old.must(mkdir("by the old one"))
	b.must(mkdir("by a new one"))
	g.agree()
	eventually(t, "they know what it is", func() bool { return a.knowsOf(old) == 1 && b.knowsOf(old) == 1 })
	if a, _ := a.log.peers.acquainted(peerName(old.id)); !a.old {
		t.Errorf("%+v", a)
	}
}
