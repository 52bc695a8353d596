package raft

import (
	"context"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/cairnfs/cairn/p2p"
)

// protocolMessages carries messages of raft; the answer is empty.
const protocolMessages p2p.Protocol = "/cairn/raft/1"

const (
	maxQueued = 512     // messages for a peer that wait
	maxSent   = 2 << 20 // bytes of one request, about
)

// peers has a queue of messages for each member. Raft copes with messages that are
// lost, so a queue that is full drops what comes.
type peers struct {
	l *Log

	mu     sync.Mutex
	queues map[uint64]*queue
	names  map[uint64]p2p.PeerID // of members, as learned from their messages
	ended  bool
}

type queue struct {
	ch   chan *raftpb.Message
	quit chan struct{}
}

func (p *peers) init(l *Log) {
	p.l = l
	p.queues, p.names = make(map[uint64]*queue), make(map[uint64]p2p.PeerID)
}

// peer returns who has a number in the group, empty if that is not known.
func (p *peers) peer(id uint64) p2p.PeerID {
	if id == 0 {
		return ""
	}
	if id == p.l.o.ID {
		return p.l.o.Transport.Self()
	}
	if v := p.l.o.State.View(); v != nil {
		for i := range v.Members {
			if v.Members[i].Raft == id {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.names[id] = v.Members[i].ID
				return v.Members[i].ID
			}
		}
	}
	// It may vote for a while after it was removed from the registry.
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.names[id]
}

// learn takes note of who speaks under a number, and reports whether it may.
func (p *peers) learn(id uint64, from p2p.PeerID) bool {
	if v := p.l.o.State.View(); v != nil {
		for i := range v.Members {
			if v.Members[i].Raft == id {
				return v.Members[i].ID == from
			}
		}
		if m := v.Member(from); m != nil && m.Raft > id {
			return false // it has another number by now
		}
	}
	// This node is behind and does not know its new members yet, or that one it
	// knows has joined again.
	p.mu.Lock()
	defer p.mu.Unlock()
	p.names[id] = from
	return true
}

// send queues messages.
func (l *Log) send(ms []*raftpb.Message) {
	for _, m := range ms {
		if m.GetType() == raftpb.MsgSnap {
			l.snapshots[m.GetTo()] = l.o.Clock() + snapshotPatience
		}
		if !l.peers.queue(m) {
			l.core.rn.ReportUnreachable(m.GetTo())
			if m.GetType() == raftpb.MsgSnap {
				l.core.rn.ReportSnapshot(m.GetTo(), raft.SnapshotFailure)
				delete(l.snapshots, m.GetTo())
			}
		}
	}
}

func (p *peers) queue(m *raftpb.Message) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	q := p.queues[m.GetTo()]
	if q == nil {
		q = &queue{ch: make(chan *raftpb.Message, maxQueued), quit: make(chan struct{})}
		p.queues[m.GetTo()] = q
		p.l.running.Go(func() { p.deliver(m.GetTo(), q) })
	}
	select {
	case q.ch <- m:
		return true
	default:
		return false
	}
}

// deliver sends what is queued for a member, as much as there is in one request.
func (p *peers) deliver(id uint64, q *queue) {
	for {
		var ms []*raftpb.Message
		select {
		case <-q.quit:
			return
		case <-p.l.stopped.Done():
			return
		case m := <-q.ch:
			ms = append(ms, m)
		}
		for more := true; more && len(ms) < maxQueued; {
			select {
			case m := <-q.ch:
				ms = append(ms, m)
			default:
				more = false
			}
		}
		for len(ms) > 0 {
			body, n, err := encodeMessages(nil, ms, maxSent)
			if err != nil {
				p.l.o.Logger.Warn("message cannot be sent", "err", err)
				n = len(ms)
			} else if !p.call(id, body) {
				p.unreachable(id, ms)
				break
			}
			ms = ms[n:]
		}
	}
}

func (p *peers) call(id uint64, body []byte) bool {
	to := p.peer(id)
	if to == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(p.l.stopped, electionTicks*p.l.o.Tick)
	defer cancel()
	_, err := p.l.o.Transport.Call(ctx, to, protocolMessages, body)
	return err == nil
}

// unreachable tells raft that messages were lost.
func (p *peers) unreachable(id uint64, ms []*raftpb.Message) {
	ctx, cancel := context.WithTimeout(p.l.stopped, p.l.o.Tick)
	defer cancel()
	p.l.do(ctx, func() {
		p.l.core.rn.ReportUnreachable(id)
		for _, m := range ms {
			if m.GetType() == raftpb.MsgSnap {
				p.l.core.rn.ReportSnapshot(id, raft.SnapshotFailure)
				delete(p.l.snapshots, id)
			}
		}
	})
	select { // do not spin on a peer that is away
	case <-p.l.stopped.Done():
	case <-time.After(p.l.o.Tick / 4):
	}
}

func (p *peers) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
}

// serve answers what other members ask.
func (l *Log) serve() {
	l.session.mu.Lock()
	l.session.clock, l.session.valid = l.o.Clock, l.o.TTL*2/3
	l.session.mu.Unlock()
	l.o.Transport.Handle(protocolMessages, l.handleMessages)
	l.o.Transport.Handle(protocolSession, l.handleSession)
	l.o.Transport.Handle(protocolSnapshot, l.handleSnapshot)
}

func (l *Log) refuse() {
	for _, p := range []p2p.Protocol{protocolMessages, protocolSession, protocolSnapshot} {
		l.o.Transport.Handle(p, nil)
	}
}

func (l *Log) handleMessages(ctx context.Context, from p2p.PeerID, req []byte) ([]byte, error) {
	ms, err := decodeMessages(req)
	if err != nil {
		return nil, err
	}
	pass := ms[:0]
	for _, m := range ms {
		switch {
		case !l.peers.learn(m.GetFrom(), from):
			l.o.Logger.Debug("message in another's name", "peer", from, "from", m.GetFrom())
		case m.GetType() == raftpb.MsgSnap:
			l.fetch(m, from)
		default:
			pass = append(pass, m)
		}
	}
	select {
	case l.received <- pass:
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-l.stopped.Done():
		return nil, ErrClosed
	}
}
