package raft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// protocolMessages carries messages of raft, after the marks of the sender's start and
// of the receiver's, 8 bytes each. The answer is empty, or a byte that says that the
// two have to meet first.
const protocolMessages p2p.Protocol = "/cairn/raft/2"

// protocolOld is the same without marks, for programs that know version 1 only.
const protocolOld p2p.Protocol = "/cairn/raft/1"

// meetFirst is the answer to whom this node has not met, or not since either started.
const meetFirst = 1

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
	known  map[p2p.PeerID]acquaintance
	ended  bool
}

type queue struct {
	ch   chan *raftpb.Message
	quit chan struct{}
}

func (p *peers) init(l *Log) {
	p.l = l
	p.queues, p.names, p.known = make(map[uint64]*queue), make(map[uint64]p2p.PeerID), make(map[p2p.PeerID]acquaintance)
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
			n, ok := p.call(id, ms)
			if !ok {
				p.unreachable(id, ms)
				break
			}
			ms = ms[n:]
		}
	}
}

// call sends the first of some messages and returns how many.
func (p *peers) call(id uint64, ms []*raftpb.Message) (n int, ok bool) {
	to := p.peer(id)
	if to == "" {
		return 0, false
	}
	a, met := p.acquainted(to)
	if !met {
		if a, met = p.l.meet(to, id); !met {
			return 0, false
		}
	}
	ctx, cancel := context.WithTimeout(p.l.stopped, electionTicks*p.l.o.Tick)
	defer cancel()
	protocol, body := protocolOld, []byte(nil)
	if !a.old {
		protocol = protocolMessages
		body = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, p.l.mark), a.mark)
	}
	body, n, err := encodeMessages(body, ms, maxSent)
	if err != nil {
		p.l.o.Logger.Warn("message cannot be sent", "err", err)
		return len(ms), true
	}
	answer, err := p.l.o.Transport.Call(ctx, to, protocol, body)
	var refused *p2p.RemoteError
	if len(answer) > 0 || errors.As(err, &refused) {
		p.forget(to) // one of the two was started anew
	}
	return n, err == nil && len(answer) == 0
}

// acquainted returns what is known of a member since the two have met.
func (p *peers) acquainted(peer p2p.PeerID) (acquaintance, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a, met := p.known[peer]
	return a, met
}

func (p *peers) met(peer p2p.PeerID, a acquaintance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.known[peer] = a
}

func (p *peers) forget(peer p2p.PeerID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, peer)
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
	public := l.o.Public
	if public == nil {
		public = l.o.Transport.Handle
	}
	public(protocolHello, l.handleHello)
	l.o.Transport.Handle(protocolMessages, l.handleMessages)
	l.o.Transport.Handle(protocolOld, l.handleOld)
	l.o.Transport.Handle(protocolSession, l.handleSession)
	l.o.Transport.Handle(protocolSnapshot, l.handleSnapshot)
}

func (l *Log) refuse() {
	for _, p := range []p2p.Protocol{protocolHello, protocolMessages, protocolOld, protocolSession, protocolSnapshot} {
		l.o.Transport.Handle(p, nil)
	}
}

func (l *Log) handleMessages(ctx context.Context, from p2p.PeerID, req []byte) ([]byte, error) {
	if len(req) < 16 {
		return nil, fmt.Errorf("messages: %w", namespace.ErrCorrupt)
	}
	a, met := l.peers.acquainted(from)
	if !met || a.old || a.mark != binary.BigEndian.Uint64(req) || l.mark != binary.BigEndian.Uint64(req[8:]) {
		return []byte{meetFirst}, nil
	}
	return nil, l.take(ctx, from, req[16:])
}

// handleOld takes the messages of a node whose program does not say hello.
func (l *Log) handleOld(ctx context.Context, from p2p.PeerID, req []byte) ([]byte, error) {
	if a, met := l.peers.acquainted(from); !met || !a.old || !l.oldSpoken() {
		return nil, errNotMet
	}
	return nil, l.take(ctx, from, req)
}

// take hands messages to the run loop.
func (l *Log) take(ctx context.Context, from p2p.PeerID, body []byte) error {
	ms, err := decodeMessages(body)
	if err != nil {
		return err
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
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-l.stopped.Done():
		return ErrClosed
	}
}
