package raft

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cairnfs/cairn/namespace"
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
