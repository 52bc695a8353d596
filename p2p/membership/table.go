package membership

import (
	"sync"
	"time"

	"github.com/cairnfs/cairn/p2p"
)

// table is what is known of the others. It holds who is or was up and is in the
// registry, and who is still up in memberlist's eyes although no longer in it.
//
// Its lock is the innermost of all: nothing is called while it is held.
type table struct {
	changed chan struct{} // holds one token while there may be changes to tell

	mu     sync.Mutex
	peers  map[p2p.PeerID]*standing
	closed bool // nobody comes up any more
}

// standing is what is known of a peer.
type standing struct {
	up       bool      // memberlist holds it alive or suspect
	silent   bool      // it did not answer the latest request
	answered time.Time // when the latest request that it answered was sent
	last     time.Time // when it ceased to be alive
	told     p2p.Health
}

func (s *standing) health() p2p.Health {
	switch {
	case !s.up:
		return p2p.Dead
	case s.silent:
		return p2p.Suspect
	}
	return p2p.Alive
}

// change is a health to tell of.
type change struct {
	id     p2p.PeerID
	health p2p.Health
}

func newTable() *table {
	return &table{changed: make(chan struct{}, 1), peers: make(map[p2p.PeerID]*standing)}
}

// update applies f to what is known of a peer. Of a peer of which nothing is known
// it is applied only if it may come up.
func (t *table) update(id p2p.PeerID, comesUp bool, f func(*standing)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if comesUp && t.closed {
		return
	}
	s := t.peers[id]
	if s == nil {
		if !comesUp {
			return
		}
		s = new(standing)
		t.peers[id] = s
	}
	was := s.health()
	f(s)
	if is := s.health(); is != was {
		if was == p2p.Alive {
			s.last = time.Now()
		}
		select {
		case t.changed <- struct{}{}:
		default:
		}
	}
}

// joined says that memberlist holds the peer up.
func (t *table) joined(id p2p.PeerID) {
	t.update(id, true, func(s *standing) { s.up, s.silent, s.answered = true, false, time.Now() })
}

// left says that memberlist no longer holds the peer up.
func (t *table) left(id p2p.PeerID) {
	t.update(id, false, func(s *standing) { s.up = false })
}

// outcome says whether a request to the peer, sent at the given time, was answered.
// A failure says nothing if the peer has answered one that was sent later.
func (t *table) outcome(id p2p.PeerID, sent time.Time, answered bool) {
	t.update(id, false, func(s *standing) {
		switch {
		case sent.Before(s.answered):
		case answered:
			s.silent, s.answered = false, sent
		default:
			s.silent = true
		}
	})
}

// health returns a peer's health, and when it was last alive.
func (t *table) health(id p2p.PeerID) (p2p.Health, time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.peers[id]
	if s == nil {
		return p2p.Dead, time.Time{}
	}
	if h := s.health(); h != p2p.Alive {
		return h, s.last
	}
	return p2p.Alive, time.Now()
}

// changes returns what has changed since the last call, and forgets peers that are
// neither members nor up.
func (t *table) changes(member func(p2p.PeerID) bool) []change {
	t.mu.Lock()
	ids := make([]p2p.PeerID, 0, len(t.peers))
	for id := range t.peers {
		ids = append(ids, id)
	}
	t.mu.Unlock()

	var out []change
	for _, id := range ids {
		in := member(id)
		t.mu.Lock()
		if s := t.peers[id]; s != nil {
			h := s.health()
			if !in {
				h, s.last = p2p.Dead, time.Time{}
			}
			if h != s.told {
				s.told = h
				out = append(out, change{id, h})
			}
			if !in && !s.up {
				delete(t.peers, id)
			}
		}
		t.mu.Unlock()
	}
	return out
}

// close says that nobody is up, for good.
func (t *table) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for _, s := range t.peers {
		if s.health() == p2p.Alive {
			s.last = time.Now()
		}
		s.up = false
	}
}
