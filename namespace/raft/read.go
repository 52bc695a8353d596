package raft

import (
	"context"
	"encoding/binary"
	"sync"
)

// A read of the latest state takes two things: the leader says how far the log is,
// after it made sure that it still leads, and this node applies it that far. One
// question serves all who began to wait before it was asked, so there is at most
// one under way and one to come.

// A node that is cut off knows so after it has waited in vain once: from then on it
// waits shortly, until an answer comes. Reads that go on without one stay usable.
const silentShare = 20 // of Options.Timeout

// againTicks is after how many ticks the leader is asked again.
const againTicks = 3

// reads are the Barriers that are waited for.
type reads struct {
	mu    sync.Mutex
	token uint64 // begins anywhere, so that processes of a node have different ones
	asked *round // the question under way
	sent  int    // tick
	next  *round
	waits []*round // answered, but not applied yet
	ended error
	// silent says that a question was waited for in vain, and none was answered
	// since.
	silent bool
}

// round is one question and who waits for its answer.
type round struct {
	first uint64 // token: an answer to this or a later one counts
	index uint64
	done  chan struct{}
	err   error
}

// Barrier returns when everything that was acknowledged, on any node, before the
// call is applied here. Errors: ErrNoQuorum, ErrClosed, the context's.
func (l *Log) Barrier(ctx context.Context) error {
	r, err := l.reads.join()
	if err != nil {
		return err
	}
	patience := l.o.Timeout
	if l.reads.isSilent() {
		patience /= silentShare
	}
	ctx, cancel := context.WithTimeoutCause(ctx, patience, ErrNoQuorum)
	defer cancel()
	l.poke()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		err := context.Cause(ctx)
		if err == ErrNoQuorum {
			l.reads.gaveUp(r)
		}
		return err
	}
}

// gaveUp takes note that a round was waited for in vain.
func (r *reads) gaveUp(on *round) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if on == r.asked || on == r.next { // otherwise the leader did answer
		r.silent = true
	}
}

func (r *reads) isSilent() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.silent
}

// join returns the round that has not begun.
func (r *reads) join() (*round, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended != nil {
		return nil, r.ended
	}
	if r.next == nil {
		r.next = &round{done: make(chan struct{})}
	}
	return r.next, nil
}

// send asks, or asks again.
func (r *reads) send(ask func([]byte), tick int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.asked == nil && r.next != nil:
		r.asked, r.next = r.next, nil
		r.asked.first = r.token + 1
	case r.asked == nil || tick-r.sent < againTicks:
		return
	}
	r.token++
	r.sent = tick
	ask(binary.BigEndian.AppendUint64(nil, r.token))
}

// answered takes the leader's answer.
func (r *reads) answered(token []byte, index uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(token) != 8 || r.asked == nil {
		return
	}
	// An answer to an earlier round, or to a process before this one, is too old.
	if t := binary.BigEndian.Uint64(token); t < r.asked.first || t > r.token {
		return
	}
	r.silent = false
	r.asked.index = index
	r.waits = append(r.waits, r.asked)
	r.asked = nil
}

// reached takes note that all entries up to the given one are applied.
func (r *reads) reached(entry uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	waits := r.waits[:0]
	for _, w := range r.waits {
		if w.index <= entry {
			close(w.done)
		} else {
			waits = append(waits, w)
		}
	}
	clear(r.waits[len(waits):])
	r.waits = waits
}

// pending reports whether a question waits to be asked.
func (r *reads) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked == nil && r.next != nil
}

func (r *reads) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended != nil {
		return
	}
	r.ended = err
	for _, w := range append(r.waits, r.asked, r.next) {
		if w != nil {
			w.err = err
			close(w.done)
		}
	}
	r.waits, r.asked, r.next = nil, nil, nil
}
