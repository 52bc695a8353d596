package raft

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// Rule 7: a node believes in its session for as long as it is told, by a clock that
// goes on while the machine sleeps; no wall clock has a say.
func TestANodeThatSleptDoesNotBelieveInItsSession(t *testing.T) {
	var now time.Duration
	s := session{clock: func() time.Duration { return now }, valid: 8 * time.Second}
	if s.live() != 0 {
		t.Error("there is a session before there is one")
	}
	s.set(5, now)
	if now = 8 * time.Second; s.live() != 5 {
		t.Error("the session is over too early")
	}
	s.confirm(5, 4*time.Second) // when what was answered by now was sent
	if now = 12 * time.Second; s.live() != 5 {
		t.Error("an answer does not count")
	}
	now = 365 * 24 * time.Hour // asleep
	if s.live() != 0 || s.current() != 5 {
		t.Error("the session has outlived a year")
	}
	s.confirm(4, now) // of another session
	if s.live() != 0 {
		t.Error("the answer to another session counts")
	}
	s.set(0, 0)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// Nothing is queued for a session that may never come (rule 14).
	if _, err := s.wait(ctx); !errors.Is(err, namespace.ErrSession) {
		t.Errorf("waiting after a session was lost: %v", err)
	}
	s.set(9, now)
	if id, err := s.wait(ctx); id != 9 || err != nil {
		t.Errorf("%d %v", id, err)
	}
}

// Rule 7: a node stops to believe in its session before anybody else may.
func TestANodeGivesItselfLessTimeThanTheLeaderDoes(t *testing.T) {
	g := newGroup(t)
	a := g.found()
	if own, leaders := a.log.session.valid, a.log.o.TTL; own >= leaders || own < leaders/2 {
		t.Errorf("the node allows itself %v, the leader %v", own, leaders)
	}
}

// Rule 7: a leader that slept for longer than sessions last has heard of nobody, who
// may all have told another leader meanwhile that they are there.
func TestALeaderThatSleptEndsNobodysSession(t *testing.T) {
	u := newUnit(t, vfs.NewCrashableMem())
	u.do(&namespace.Command{Ops: []namespace.Op{&namespace.FoundCluster{ID: clusterID, First: storageMember(peerName(1))}}})
	var invite namespace.InviteID
	u.do(&namespace.Command{Ops: []namespace.Op{&namespace.AddInvite{ID: invite, Expires: 1 << 62, Uses: 1, Role: p2p.RoleStorage}}})
	u.do(&namespace.Command{Ops: []namespace.Op{&namespace.Redeem{Invite: invite, Member: storageMember(peerName(2))}}})
	own, others := u.session(), namespace.SessionID(u.do(&namespace.Command{Ops: []namespace.Op{&namespace.OpenSession{Peer: peerName(2)}}}).Index)
	var now time.Duration
	l, err := Open(Options{
		ID: 1, State: u.state, DB: u.index.Pebble(), Journal: u.journal, Transport: simTransport{self: peerName(1)},
		TTL: 12 * time.Second, Clock: func() time.Duration { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	l.session.clock, l.session.valid = l.o.Clock, l.o.TTL*2/3
	second := func(also ...namespace.SessionID) []namespace.SessionID {
		now += time.Second
		for _, id := range append(also, own) {
			l.deadlines[id] = now + l.o.TTL // as touch does
		}
		l.session.confirm(own, now)
		return l.expired()
	}
	l.session.set(own, now)
	for range 20 {
		if ids := second(others); len(ids) > 0 {
			t.Fatalf("sessions %v end, of nodes that are there", ids)
		}
	}
	now += 13 * time.Second
	if ids := l.expired(); len(ids) > 0 {
		t.Errorf("sessions %v end because the leader slept", ids)
	}
	l.session.set(own, now) // it has found that it still leads
	for range 11 {
		if ids := second(); len(ids) > 0 {
			t.Errorf("session %v ends earlier than a new leader would end it", ids)
		}
	}
	var ended []namespace.SessionID
	for range 5 {
		ended = append(ended, second()...)
	}
	if !slices.Equal(ended, []namespace.SessionID{others}) {
		t.Errorf("sessions %v end, of nodes that were not heard of since", ended)
	}
}
