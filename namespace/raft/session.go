package raft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// A node's session lasts while it tells the leader every now and then that it is
// there. That leaves no trace in the log; only opening a session and ending it do.
//
// Who is cut off must believe that its session is over before anybody else does:
// so the node counts from when it sent what was answered, and allows itself two
// thirds of the time that the leader allows it. A new leader knows nothing of what
// the old one heard and grants everybody the full time. All that counts time that
// the machine slept (rule 7).

// session is this node's.
type session struct {
	mu      sync.Mutex
	id      namespace.SessionID
	ok      time.Duration // when what was answered last was sent
	valid   time.Duration // how long that lasts
	clock   func() time.Duration
	lost    bool          // there was one, and there is none yet
	changed chan struct{} // closed when id changes
}

// current returns the session, expired or not, 0 if there is none.
func (s *session) current() namespace.SessionID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}

func (s *session) set(id namespace.SessionID, at time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id != 0 && id == 0 {
		s.lost = true
	}
	if id != 0 {
		s.lost = false
	}
	s.id, s.ok = id, at
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// change returns what is closed when the session changes.
func (s *session) change() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	return s.changed
}

// live returns the session if it can be relied upon, else 0.
func (s *session) live() namespace.SessionID {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id == 0 || s.clock()-s.ok > s.valid {
		return 0
	}
	return s.id
}

// check drops the session if the State has ended it.
func (s *session) check(state *namespace.State) {
	if id := s.current(); id != 0 && state.MemberOf(id) == "" {
		s.set(0, 0)
	}
}

// wait returns the session. One that is not there yet is waited for; where one was
// lost, nothing is queued until there is another.
func (s *session) wait(ctx context.Context) (namespace.SessionID, error) {
	for {
		changed := s.change()
		s.mu.Lock()
		id, lost := s.id, s.lost
		s.mu.Unlock()
		if id != 0 {
			return id, nil
		}
		if lost {
			return 0, fmt.Errorf("%w: %w", namespace.ErrSession, ErrNoQuorum)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		}
	}
}

// Session returns the session of this node, 0 if there is none or its time is
// nearly over.
func (l *Log) Session() namespace.SessionID { return l.session.live() }

// keepSession opens sessions and keeps them alive.
func (l *Log) keepSession() {
	for l.stopped.Err() == nil {
		id := l.openSession()
		if id == 0 {
			continue
		}
		if l.keepUp(id); l.stopped.Err() != nil {
			return
		}
		l.session.set(0, 0)
		l.o.Logger.Warn("this node's session has ended; locks and unsaved changes are lost", "session", id)
		l.proposals.settle(l.o.State, 0, false)
		l.o.SessionEnded()
	}
}

// keepUp keeps a session alive until it is over.
func (l *Log) keepUp(id namespace.SessionID) {
	every := l.o.TTL / 6
	for l.session.live() == id {
		changed := l.session.change()
		ctx, cancel := context.WithTimeout(l.stopped, every)
		at := l.o.Clock()
		err := l.keepAlive(ctx, id)
		cancel()
		if err == nil {
			l.session.confirm(id, at)
		}
		if l.session.live() != id {
			return
		}
		select {
		case <-l.stopped.Done():
			return
		case <-changed:
		case <-time.After(every):
		}
	}
}

func (s *session) confirm(id namespace.SessionID, at time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id == id {
		s.ok = at
	}
}

// openSession returns a session of this node, which may have ended since, 0 if there
// is none yet.
func (l *Log) openSession() namespace.SessionID {
	ctx, cancel := context.WithTimeoutCause(l.stopped, l.o.Timeout, ErrTimeout)
	defer cancel()
	at := l.o.Clock()
	// The command has no session that log time could ask for confirmation: some moment of
	// long ago does not move it, and tells the command from others of this node.
	res, err := l.propose(ctx, 0, &namespace.Command{Time: rand.Int64N(1 << 58), Ops: []namespace.Op{&namespace.OpenSession{Peer: l.o.Transport.Self()}}})
	if err == nil {
		err = res.Err
	}
	if err == nil {
		id := namespace.SessionID(res.Index)
		l.session.set(id, at)
		l.session.check(l.o.State)
		return id
	}
	if l.stopped.Err() == nil {
		l.o.Logger.Debug("no session yet", "err", err)
	}
	select {
	case <-l.stopped.Done():
	case <-time.After(5 * l.o.Tick):
	}
	return 0
}

// protocolSession carries keepalives: a version byte and the session. The answer
// is a byte: 1 if the session is open, else 0.
const protocolSession p2p.Protocol = "/cairn/session/1"

var errNotLeader = errors.New("not the leader")

// keepAlive tells the leader that this node is there.
func (l *Log) keepAlive(ctx context.Context, id namespace.SessionID) error {
	s := l.status.Load()
	if s.Role == "leader" {
		return l.touch(ctx, id)
	}
	if s.Leader == "" {
		return ErrNoQuorum
	}
	answer, err := l.o.Transport.Call(ctx, s.Leader, protocolSession, binary.BigEndian.AppendUint64([]byte{formatVersion}, uint64(id)))
	if err != nil {
		return err
	}
	if len(answer) != 1 || answer[0] != 1 {
		return namespace.ErrSession
	}
	return nil
}

// touch takes a keepalive.
func (l *Log) touch(ctx context.Context, id namespace.SessionID) error {
	err := errNotLeader
	l.do(ctx, func() {
		if !l.leader {
			return
		}
		if err = nil; l.o.State.MemberOf(id) == "" {
			err = namespace.ErrSession
			return
		}
		l.deadlines[id] = l.o.Clock() + l.o.TTL
	})
	return err
}

func (l *Log) handleSession(ctx context.Context, from p2p.PeerID, req []byte) ([]byte, error) {
	if len(req) != 9 || req[0] != formatVersion {
		return nil, namespace.ErrVersion
	}
	id := namespace.SessionID(binary.BigEndian.Uint64(req[1:]))
	if owner := l.o.State.MemberOf(id); owner != "" && owner != from {
		return nil, fmt.Errorf("session %d is another's", id)
	}
	err := l.touch(ctx, id)
	if errors.Is(err, namespace.ErrSession) {
		return []byte{0}, nil
	}
	return []byte{1}, err
}

// expire ends sessions that were not heard of in time. It is called by the run
// loop of the leader.
func (l *Log) expire() {
	for _, id := range l.expired() {
		l.o.Logger.Warn("a node has not been heard of; its session ends", "peer", l.o.State.MemberOf(id), "session", id)
		l.background(&namespace.EndSession{Session: id})
	}
}

// expired returns the sessions that were not heard of in time. A leader whose own
// session is over was asleep or cut off: that it heard of nobody says nothing, and
// they may have told another leader. It begins anew when it has a session.
func (l *Log) expired() (ids []namespace.SessionID) {
	if l.session.live() == 0 {
		clear(l.deadlines)
		return nil
	}
	now := l.o.Clock()
	sessions := l.o.State.Sessions()
	for id := range l.deadlines {
		if _, open := sessions[id]; !open {
			delete(l.deadlines, id)
		}
	}
	for id := range sessions {
		deadline, known := l.deadlines[id]
		if known && now < deadline {
			continue
		}
		l.deadlines[id] = now + l.o.TTL // until then it is tried once
		if known {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// background proposes something that is tried again when it fails.
func (l *Log) background(ops ...namespace.Op) {
	l.running.Go(func() {
		res, err := l.Propose(l.stopped, &namespace.Command{Time: l.o.Now().UnixNano(), Ops: ops})
		if err == nil {
			err = res.Err
		}
		if err != nil && l.stopped.Err() == nil {
			l.o.Logger.Debug("not done yet", "err", err)
		}
	})
}
