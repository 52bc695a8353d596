package raft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
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

// logTime returns how far ahead of time log time is.
func (m *member) logTime(name string) time.Duration {
	m.g.t.Helper()
	res, err := m.log.Propose(context.Background(), &namespace.Command{Ops: []namespace.Op{&namespace.Snapshot{Name: name}}})
	if err != nil || res.Err != nil {
		m.g.t.Fatal(err, res.Err)
	}
	var at int64
	if err := m.state.Snapshots(func(s namespace.SnapshotInfo) bool {
		if s.Name == name {
			at = s.Time
		}
		return true
	}); err != nil {
		m.g.t.Fatal(err)
	}
	return time.Until(time.Unix(0, at))
}

// Rule 5: a jump needs confirmation, and gets it when clocks agree: of a group in which
// one node alone changes names, log time would stand still for ever after an hour in
// which nobody did.
func TestLogTimeGoesOnWhenOneNodeAloneChangesNames(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	var later atomic.Int64
	g.now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	a := g.found()
	b := a.join(p2p.RoleStorage)
	g.voters(2)
	b.must(mkdir("b")) // both have a session
	a.must(mkdir("a"))
	later.Store(int64(3 * time.Hour))
	for i := range 20 {
		cmd := &namespace.Command{Time: g.now().UnixNano(), Ops: []namespace.Op{mkdir(fmt.Sprint(i))}}
		if res, err := a.log.Propose(context.Background(), cmd); err != nil || res.Err != nil {
			t.Fatal(err, res.Err)
		}
		time.Sleep(10 * liveTick)
	}
	if ahead := a.logTime("now"); ahead < 2*time.Hour {
		t.Errorf("three hours later, log time has gone on by %v", ahead)
	}
}

// Rule 5: nobody vouches for the clock of a node that opens a session.
func TestANodeWithAWrongClockThatStartsDoesNotMoveLogTime(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	a := g.found()
	b := a.join(p2p.RoleStorage)
	g.voters(2)
	b.must(mkdir("b"))
	a.must(mkdir("a"))
	disk := b.crash()
	g.now = func() time.Time { return time.Now().Add(1000 * time.Hour) }
	b = g.start(b.id, disk)
	b.made("with a session")
	eventually(t, "a has a session", func() bool { return a.log.Session() != 0 })
	if ahead := a.logTime("now"); ahead > time.Hour {
		t.Errorf("log time is ahead by %v", ahead)
	}
}
