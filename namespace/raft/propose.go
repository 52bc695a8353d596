package raft

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cairnfs/cairn/namespace"
)

// maxOutstanding is how many commands of this node may wait for their results.
const maxOutstanding = 4096

// resendTicks is after how many ticks a command without result is proposed again.
const resendTicks = 15

// proposals are the commands of this node that have no result yet. Those of a
// session are told by their number, the one that opens a session by its bytes.
type proposals struct {
	slots chan struct{}

	mu      sync.Mutex
	next    uint64 // number of the next command
	acked   uint64 // all numbers below have results
	session namespace.SessionID
	first   uint64 // number of the session's first command, which is 1 to the session
	moved   chan struct{}
	open    map[uint64]*proposal // by number
	bare    map[string]*proposal
	queue   []*proposal // to be proposed
	ended   error
}

type proposal struct {
	number  uint64
	session namespace.SessionID
	seq     uint64 // in the session
	encoded []byte
	sent    int  // tick
	queued  bool // is in the queue
	done    chan outcome

	// Of one without a session each copy is carried out, and a session that the
	// first opens is ended by the second. So it is the last that counts.
	copies int // proposed
	seen   int // applied
	last   *outcome
}

type outcome struct {
	res namespace.Result
	err error
}

func (p *proposals) init() {
	p.slots = make(chan struct{}, maxOutstanding)
	p.open, p.bare = make(map[uint64]*proposal), make(map[string]*proposal)
	p.next, p.acked, p.first = 1, 1, 1
}

// Propose has cmd, which gets the node's session, ordered and returns its result
// once it is applied here and durable on a majority of the voters.
//
// Errors: ErrTimeout, also with namespace.ErrSession, ErrClosed, the context's: the
// outcome is unknown. ErrTooLarge: nothing happened. namespace.ErrSession without
// ErrTimeout: the same. Otherwise the log has failed.
func (l *Log) Propose(ctx context.Context, cmd *namespace.Command) (namespace.Result, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, l.o.Timeout, ErrTimeout)
	defer cancel()
	session, err := l.session.wait(ctx)
	if err != nil {
		return namespace.Result{}, err
	}
	return l.propose(ctx, session, cmd)
}

// propose is Propose under the given session, or without one if that is 0.
func (l *Log) propose(ctx context.Context, session namespace.SessionID, cmd *namespace.Command) (namespace.Result, error) {
	p := &l.proposals
	select {
	case p.slots <- struct{}{}:
		defer func() { <-p.slots }()
	case <-ctx.Done():
		return namespace.Result{}, context.Cause(ctx)
	}
	if err := l.o.State.Supports(cmd); err != nil {
		return namespace.Result{Err: err}, nil
	}
	own := *cmd
	own.Session = session
	entry, full, refusal, err := p.add(&own)
	for full != nil {
		select {
		case <-full:
		case <-ctx.Done():
			return namespace.Result{}, context.Cause(ctx)
		}
		entry, full, refusal, err = p.add(&own)
	}
	if err != nil || refusal != nil {
		return namespace.Result{Err: refusal}, err
	}
	defer p.remove(entry)
	l.poke()
	select {
	case o := <-entry.done:
		return o.res, o.err
	case <-ctx.Done():
		return namespace.Result{}, context.Cause(ctx)
	}
}

// add numbers and queues a command. The numbers of a session stay within what it
// keeps results of: if one command is long in coming, those behind it wait until
// full is closed, and try again.
func (p *proposals) add(cmd *namespace.Command) (entry *proposal, full <-chan struct{}, refusal, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended != nil {
		return nil, nil, nil, p.ended
	}
	if cmd.Session != 0 {
		if cmd.Session < p.session {
			return nil, nil, namespace.ErrSession, nil // there is a later one, so it has ended
		}
		if cmd.Session > p.session {
			p.session, p.first = cmd.Session, p.next
		}
		acked := max(p.acked, p.first)
		if p.next-acked >= namespace.MaxWindow {
			if p.moved == nil {
				p.moved = make(chan struct{})
			}
			return nil, p.moved, nil, nil
		}
		cmd.Seq, cmd.Acked = p.next-p.first+1, acked-p.first+1
	}
	encoded, err := cmd.AppendBinary(nil)
	if err != nil {
		return nil, nil, err, nil
	}
	if len(encoded) > MaxCommand {
		return nil, nil, nil, ErrTooLarge
	}
	entry = &proposal{number: p.next, session: cmd.Session, seq: cmd.Seq, encoded: encoded, queued: true, done: make(chan outcome, 1)}
	if cmd.Session != 0 {
		p.open[p.next] = entry
		p.next++
	} else {
		p.bare[string(encoded)] = entry
	}
	p.queue = append(p.queue, entry)
	return entry, nil, nil, nil
}

// remove gives a command up, or takes note that its result was taken.
func (p *proposals) remove(e *proposal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.session == 0 {
		delete(p.bare, string(e.encoded))
		return
	}
	delete(p.open, e.number)
	before := p.acked
	for p.acked < p.next && p.open[p.acked] == nil {
		p.acked++
	}
	if p.acked > before && p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

// send proposes what is queued, many commands to an entry, and again what has had
// no result for long.
func (p *proposals) send(propose func([]byte) bool, tick int) {
	p.mu.Lock()
	for _, e := range p.bare {
		switch {
		case e.queued || tick-e.sent < resendTicks:
		case e.last != nil:
			e.answer(*e.last) // the other copies are lost
		default:
			e.queued = true
			p.queue = append(p.queue, e)
		}
	}
	var again []*proposal
	for _, e := range p.open {
		if !e.queued && tick-e.sent >= resendTicks {
			e.queued = true
			again = append(again, e)
		}
	}
	slices.SortFunc(again, func(a, b *proposal) int { return cmp.Compare(a.number, b.number) })
	queue := append(again, p.queue...)
	p.queue = nil
	p.mu.Unlock()
	for len(queue) > 0 {
		var data []byte
		n := 0
		for n < len(queue) && n < maxCommands && (n == 0 || len(data)+len(queue[n].encoded) < maxEntry) {
			data = appendCommand(data, queue[n].encoded)
			n++
		}
		// What is dropped, because there is no leader, is proposed again.
		ok := propose(data)
		p.mu.Lock()
		for _, e := range queue[:n] {
			e.queued = false
			e.sent = tick
			e.copies++
			if !ok {
				e.sent = tick - resendTicks + 2
				e.copies--
			}
		}
		p.mu.Unlock()
		queue = queue[n:]
	}
}

// resend has everything proposed again soon.
func (p *proposals) resend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.open {
		e.sent -= resendTicks
	}
	for _, e := range p.bare {
		e.sent -= resendTicks
	}
}

// applied takes the result of a command of any node.
func (p *proposals) applied(cmd *namespace.Command, encoded []byte, res namespace.Result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case cmd.Session == 0:
		if e := p.bare[string(encoded)]; e != nil {
			e.last = &outcome{res: res}
			if e.seen++; e.seen >= e.copies {
				e.answer(*e.last)
			}
		}
	case cmd.Session == p.session:
		if e := p.open[p.first+cmd.Seq-1]; e != nil {
			e.answer(outcome{res: res})
		}
	}
}

func (e *proposal) answer(o outcome) {
	select {
	case e.done <- o:
	default: // it has one
	}
}

// errUnknown says of a command of a session that is over that it may have been
// carried out before.
var errUnknown = fmt.Errorf("%w: %w", namespace.ErrSession, ErrTimeout)

// settle answers, after sessions have ended or commands were applied without being
// seen, those whose result is known thereby. current is the session that goes on.
// seen says that all results so far were seen, so that the rest is refused.
func (p *proposals) settle(state *namespace.State, current namespace.SessionID, seen bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.open {
		res, err := state.Outcome(e.session, e.seq)
		switch {
		case err == nil:
			e.answer(outcome{res: res})
		case errors.Is(err, namespace.ErrSession) && seen:
			e.answer(outcome{res: namespace.Result{Err: namespace.ErrSession}})
		case errors.Is(err, namespace.ErrSession) || e.session != current:
			e.answer(outcome{err: errUnknown})
		case !errors.Is(err, namespace.ErrNotFound):
			e.answer(outcome{err: err})
		}
	}
}

// end answers everything, now and later, with an error.
func (p *proposals) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended != nil {
		return
	}
	p.ended = err
	for _, e := range p.open {
		e.answer(outcome{err: err})
	}
	for _, e := range p.bare {
		e.answer(outcome{err: err})
	}
}
