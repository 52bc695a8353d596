package replica

import (
	"sync"
	"time"

	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/exchange"
)

// A peer that fails is asked last for a while.
const (
	demotedForLie   = time.Minute
	demotedForStall = 10 * time.Second
	demotedAtFirst  = time.Second // for not answering; doubles each time
	demotedAtMost   = 30 * time.Second

	maxLosses = 3

	fullFor = 30 * time.Second // a peer that could not store a block is sent no others
)

// peer is what this node has seen of another.
type peer struct {
	exchange.Peer

	mu      sync.Mutex
	usual   time.Duration // of answers with one block, a moving average; 0 before the first
	demoted time.Time     // until then
	full    time.Time     // until then it is not sent blocks
	strikes int           // how often in a row it did not answer
	losses  int           // how often in a row one that was asked later answered first
}

type peers struct {
	mu sync.Mutex
	m  map[p2p.PeerID]*peer
}

func (p *peers) init() { p.m = make(map[p2p.PeerID]*peer) }

// peer returns the peer with the given id. Only members are asked for, so there are
// no more of them than there ever were members.
func (r *Replica) peer(id p2p.PeerID) *peer {
	r.peers.mu.Lock()
	defer r.peers.mu.Unlock()
	p := r.peers.m[id]
	if p == nil {
		p = &peer{Peer: exchange.Peer{ID: id, Transport: r.o.Transport}}
		r.peers.m[id] = p
	}
	return p
}

func (r *Replica) health(id p2p.PeerID) p2p.Health {
	if r.o.Liveness == nil {
		return p2p.Alive
	}
	h, _ := r.o.Liveness.Health(id)
	return h
}

// grade says when a peer is asked: the lower, the earlier.
type grade int

const (
	good grade = iota
	suspect
	demoted
	dead
)

func (r *Replica) grade(p *peer) grade {
	h := r.health(p.ID)
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case h == p2p.Dead:
		return dead
	case r.o.Now().Before(p.demoted):
		return demoted
	case h == p2p.Suspect:
		return suspect
	}
	return good
}

// usable says whether blocks are sent to the peer.
func (r *Replica) usable(p *peer) bool {
	if r.grade(p) >= demoted {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !r.o.Now().Before(p.full)
}

// answered takes note of an answer, and of how long a single block took; 0 is
// anything else.
func (p *peer) answered(took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.strikes, p.losses = 0, 0
	switch {
	case took <= 0:
	case p.usual == 0:
		p.usual = took
	default:
		p.usual += (took - p.usual) / 8
	}
}

// demote has the peer asked last for so long.
func (r *Replica) demote(p *peer, d time.Duration, why string, err error) {
	p.mu.Lock()
	until := r.o.Now().Add(d)
	first := until.After(p.demoted)
	if first {
		p.demoted = until
	}
	p.mu.Unlock()
	if first {
		r.o.Logger.Warn("peer is asked last for a while", "peer", p.ID, "why", why, "for", d, "err", err)
	}
}

// lost takes note that one who was asked later answered first.
func (r *Replica) lost(p *peer) {
	p.mu.Lock()
	p.losses++
	often := p.losses >= maxLosses
	p.mu.Unlock()
	if often {
		r.demote(p, demotedForStall, "others answer sooner, again and again", nil)
	}
}

// unreachable demotes a peer that did not answer, the longer the more often.
func (r *Replica) unreachable(p *peer, err error) {
	p.mu.Lock()
	d := min(demotedAtMost, demotedAtFirst<<min(p.strikes, 5))
	p.strikes++
	p.mu.Unlock()
	r.demote(p, d, "it does not answer", err)
}

// Hedging: the next peer is asked too if an answer takes three times as long as
// usual. A stall is an answer that takes so long that no budget matters.
const (
	hedgeAtLeast = 20 * time.Millisecond
	stallAtLeast = time.Second
)

func (p *peer) patience() (hedge, stall time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(hedgeAtLeast, 3*p.usual), max(stallAtLeast, 10*p.usual)
}

// hedges is the budget for asking a second peer: one read in twenty, and as many as
// two hundred reads have saved up.
type hedges struct {
	mu     sync.Mutex
	saved  int
	reads  int64
	hedged int64
}

const (
	hedgeCost = 20
	hedgeMost = 200
)

func (h *hedges) init() { h.saved = hedgeMost }

func (h *hedges) read() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reads++
	h.saved = min(hedgeMost, h.saved+1)
}

func (h *hedges) take() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.saved < hedgeCost {
		return false
	}
	h.saved -= hedgeCost
	h.hedged++
	return true
}
