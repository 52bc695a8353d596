package raft

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// How hellos travel; what they mean is in meet.go.

// protocolHello carries a hello; the answer is another.
const protocolHello p2p.Protocol = "/cairn/hello/1"

const (
	meetTicks = 30 // between two meetings of the same nodes, and that one may take
	meetings  = 16 // at the same time
)

var errNotMet = errors.New("the two nodes have not met")

// oldSpoken reports whether programs that do not say hello are listened to: they know
// version 1 only.
func (l *Log) oldSpoken() bool { return l.o.State.View() == nil || l.o.State.Version() < 2 }

// meet says hello to a member and reports whether it is one to talk to.
func (l *Log) meet(to p2p.PeerID, id uint64) (a acquaintance, met bool) {
	ctx, cancel := context.WithTimeout(l.stopped, meetTicks*l.o.Tick)
	defer cancel()
	h, err := (*hello)(nil), error(ErrClosed)
	l.do(ctx, func() { h, err = l.introduce(id) })
	if err != nil {
		return a, false
	}
	req, err := json.Marshal(h)
	if err != nil {
		l.o.Logger.Warn("hello cannot be said", "err", err)
		return a, false
	}
	began := l.o.Clock()
	answer, err := l.o.Transport.Call(ctx, to, protocolHello, req)
	if errors.Is(err, p2p.ErrNotServed) && l.oldSpoken() {
		a = acquaintance{old: true, version: 1}
		l.peers.met(to, a)
		return a, true
	}
	if err != nil {
		return a, false
	}
	took := l.o.Clock() - began
	h, err = decodeHello(answer)
	if err != nil {
		l.o.Logger.Debug("answer to a hello", "peer", to, "err", err)
		return a, false
	}
	l.do(ctx, func() {
		if met, err = l.heard(to, id, h, took); err != nil {
			l.leave(err)
		}
	})
	if err != nil || !met {
		l.peers.forget(to)
		return a, false
	}
	return l.peers.acquainted(to)
}

func decodeHello(b []byte) (*hello, error) {
	h := &hello{}
	if len(b) > maxHello {
		return nil, p2p.ErrTooLarge
	}
	if err := json.Unmarshal(b, h); err != nil {
		return nil, fmt.Errorf("hello: %w: %v", namespace.ErrCorrupt, err)
	}
	return h, nil
}

func (l *Log) handleHello(ctx context.Context, from p2p.PeerID, req []byte) ([]byte, error) {
	h, err := decodeHello(req)
	if err != nil {
		return nil, err
	}
	answer, err := (*hello)(nil), error(ErrClosed)
	l.do(ctx, func() {
		if answer, err = l.hear(from, h); err != nil {
			l.leave(err)
		}
	})
	if answer == nil {
		return nil, err
	}
	return json.Marshal(answer)
}

// leave ends the log. A store that is not the right one tells those who took it for that;
// who does not hear of it may refuse the right one, which then has to join again.
func (l *Log) leave(err error) {
	l.fail(err)
	var r *Refusal
	if !errors.As(err, &r) || r.Kind != Restored {
		return
	}
	own := &l.store.vouch.own
	req, err := json.Marshal(&hello{Cluster: l.o.Cluster, Raft: l.o.ID, Starts: own.count, Marks: own.marks, Withdrawn: true})
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.stopped), electionTicks*l.o.Tick)
	var all sync.WaitGroup
	for _, m := range l.others() {
		all.Go(func() { _, _ = l.o.Transport.Call(ctx, m.ID, protocolHello, req) }) // who does not answer may not be there
	}
	l.running.Go(func() { all.Wait(); cancel() })
}

// keepMeeting meets all members, again and again.
func (l *Log) keepMeeting() {
	for {
		var all sync.WaitGroup
		slots := make(chan struct{}, meetings)
		for _, m := range l.others() {
			slots <- struct{}{}
			all.Go(func() {
				defer func() { <-slots }()
				l.meet(m.ID, m.Raft)
			})
		}
		all.Wait()
		select {
		case <-l.stopped.Done():
			return
		case <-time.After(meetTicks * l.o.Tick):
		}
	}
}

// others returns the other members.
func (l *Log) others() []p2p.Member {
	v := l.o.State.View()
	if v == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(v.Members), func(m p2p.Member) bool { return m.ID == l.o.Transport.Self() })
}

// speakUp lets this node vote, once it has met all others that do.
func (l *Log) speakUp() {
	if l.core.quiet == 0 {
		return
	}
	voters := l.store.conf.GetVoters()
	for _, m := range l.others() {
		if _, met := l.peers.acquainted(m.ID); !met && slices.Contains(voters, m.Raft) {
			return
		}
	}
	l.core.quiet = 0
}

// Met returns what another member has said of itself since this node started: the
// version that its program knows and how far ahead its clock is, about.
func (l *Log) Met(peer p2p.PeerID) (version uint32, offset time.Duration, ok bool) {
	a, ok := l.peers.acquainted(peer)
	return a.version, a.offset, ok
}
