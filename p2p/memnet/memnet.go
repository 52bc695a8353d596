// Package memnet is a network in memory for tests: each node that joins gets a
// p2p.Transport, and the test decides which links are cut, how long messages take,
// which are lost, and which nodes have crashed.
//
// A request is delivered if the link is whole when it arrives, and its answer if
// the link is whole when that arrives; a link that is cut in between loses the
// answer, after the handler has done its work. As on a real network, the caller
// cannot tell.
package memnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cairnfs/cairn/p2p"
)

// Network connects the nodes that have joined it. Its zero value is not usable:
// see New. All methods may be called at any time, also by handlers.
type Network struct {
	mu     sync.Mutex
	nodes  map[p2p.PeerID]*Transport
	cut    map[link]bool
	stalls map[[2]p2p.PeerID]chan struct{} // one way; closed when messages move again
	flying map[*flight]bool                // calls on their way, to be failed when their link is cut
	delay  func(from, to p2p.PeerID) time.Duration
	filter func(from, to p2p.PeerID, p p2p.Protocol) error
}

// link is a pair of nodes, the lesser id first.
type link struct{ a, b p2p.PeerID }

func between(a, b p2p.PeerID) link {
	if b < a {
		a, b = b, a
	}
	return link{a, b}
}

// flight is a call on its way.
type flight struct {
	from, to *Transport
	fail     context.CancelCauseFunc
}

// New returns a network without nodes.
func New() *Network {
	return &Network{
		nodes:  make(map[p2p.PeerID]*Transport),
		cut:    make(map[link]bool),
		stalls: make(map[[2]p2p.PeerID]chan struct{}),
		flying: make(map[*flight]bool),
	}
}

// Join adds a node. If one with this id is there it is taken for crashed, as by
// Leave: the new one has its id and none of its handlers.
func (n *Network) Join(id p2p.PeerID) *Transport {
	n.Leave(id)
	t := &Transport{net: n, id: id, handlers: make(map[p2p.Protocol]p2p.Handler)}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[id] = t
	return t
}

// Leave has a node crash: its handlers are not called again and those that run
// have their context ended, calls to it and by it fail with p2p.ErrUnreachable.
// Its Transport stays dead; Join gives the node that starts anew another one.
func (n *Network) Leave(id p2p.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.nodes, id)
	n.failCut()
}

// Close is Leave of this end of the network: who has joined since under the same id
// stays.
func (t *Transport) Close() {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	if t.net.nodes[t.id] == t {
		delete(t.net.nodes, t.id)
		t.net.failCut()
	}
}

// Cut has the link between two nodes carry nothing, in both directions. Calls on
// their way fail at once with p2p.ErrUnreachable.
func (n *Network) Cut(a, b p2p.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[between(a, b)] = true
	n.failCut()
}

// Isolate cuts all links of a node to those that have joined so far.
func (n *Network) Isolate(id p2p.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other := range n.nodes {
		if other != id {
			n.cut[between(id, other)] = true
		}
	}
	n.failCut()
}

// Stall has messages from one node to another, requests and answers alike, wait on
// their way until HealAll: what a link does that loses all packets in one direction,
// before anybody gives it up. Those that waited arrive then, however late.
func (n *Network) Stall(from, to p2p.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if way := [2]p2p.PeerID{from, to}; n.stalls[way] == nil {
		n.stalls[way] = make(chan struct{})
	}
}

// Heal undoes Cut.
func (n *Network) Heal(a, b p2p.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, between(a, b))
}

// HealAll makes all links whole and lets what is stalled arrive. It does not bring back nodes that have left.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	for way, moved := range n.stalls {
		close(moved)
		delete(n.stalls, way)
	}
}

// SetDelay has messages from one node to another, requests and answers alike, take
// as long as f says; nil is no delay. f must not call the network.
func (n *Network) SetDelay(f func(from, to p2p.PeerID) time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay = f
}

// SetFilter has f asked about each request before it is delivered: an error loses
// the request, and the call fails with p2p.ErrUnreachable and that error. nil lets
// all pass. f is called by many goroutines, without a lock.
func (n *Network) SetFilter(f func(from, to p2p.PeerID, p p2p.Protocol) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.filter = f
}

// whole reports whether messages pass between two nodes. n.mu is held.
func (n *Network) whole(from, to *Transport) bool {
	return n.nodes[from.id] == from && n.nodes[to.id] == to && !n.cut[between(from.id, to.id)]
}

// failCut fails the calls whose link is not whole any more. n.mu is held.
func (n *Network) failCut() {
	for f := range n.flying {
		if !n.whole(f.from, f.to) {
			f.fail(p2p.ErrUnreachable)
			delete(n.flying, f)
		}
	}
}

// Transport is a node's end of the network.
type Transport struct {
	net *Network
	id  p2p.PeerID

	mu       sync.Mutex
	handlers map[p2p.Protocol]p2p.Handler
}

var _ p2p.Transport = (*Transport)(nil)

// Self implements p2p.Transport.
func (t *Transport) Self() p2p.PeerID { return t.id }

// Handle implements p2p.Transport.
func (t *Transport) Handle(p p2p.Protocol, h p2p.Handler) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h == nil {
		delete(t.handlers, p)
		return
	}
	t.handlers[p] = h
}

// Call implements p2p.Transport. The handler runs in a goroutine of its own, with
// a context that ends with the call. A node may call itself.
func (t *Transport) Call(ctx context.Context, to p2p.PeerID, p p2p.Protocol, req ...[]byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	size := 0
	for _, piece := range req {
		size += len(piece)
	}
	if size > p2p.MaxMessage {
		return nil, p2p.ErrTooLarge
	}
	flight, fctx, err := t.start(ctx, to)
	if err != nil {
		return nil, err
	}
	defer t.net.end(flight)

	answer, err := flight.carry(fctx, p, bytes.Join(req, nil))
	if fctx.Err() == nil {
		return answer, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nil, context.Cause(fctx)
}

// start registers a call.
func (t *Transport) start(ctx context.Context, to p2p.PeerID) (*flight, context.Context, error) {
	n := t.net
	n.mu.Lock()
	defer n.mu.Unlock()
	peer := n.nodes[to]
	if peer == nil || !n.whole(t, peer) {
		return nil, nil, fmt.Errorf("%w: %s", p2p.ErrUnreachable, to.Short())
	}
	ctx, fail := context.WithCancelCause(ctx)
	f := &flight{from: t, to: peer, fail: fail}
	n.flying[f] = true
	return f, ctx, nil
}

func (n *Network) end(f *flight) {
	n.mu.Lock()
	delete(n.flying, f)
	n.mu.Unlock()
	f.fail(context.Canceled)
}

// carry brings the request to the handler and its answer back, until ctx ends.
func (f *flight) carry(ctx context.Context, p p2p.Protocol, req []byte) ([]byte, error) {
	n := f.from.net
	n.mu.Lock()
	filter := n.filter
	n.mu.Unlock()
	if err := n.travel(ctx, f.from.id, f.to.id); err != nil {
		return nil, err
	}
	if filter != nil {
		if err := filter(f.from.id, f.to.id, p); err != nil {
			return nil, fmt.Errorf("%w: %w", p2p.ErrUnreachable, err)
		}
	}
	f.to.mu.Lock()
	handler := f.to.handlers[p]
	f.to.mu.Unlock()

	type result struct {
		answer []byte
		err    error
	}
	done := make(chan result, 1)
	go func() {
		if handler == nil {
			done <- result{err: fmt.Errorf("%w: %s", p2p.ErrNotServed, p)}
			return
		}
		if ctx.Err() != nil {
			return // the node crashed, or the caller left, before this began
		}
		answer, err := handler(ctx, f.from.id, req)
		done <- result{answer, err}
	}()
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if err := n.travel(ctx, f.to.id, f.from.id); err != nil {
		return nil, err
	}
	if r.err != nil {
		return nil, &p2p.RemoteError{Peer: f.to.id, Text: r.err.Error(), NotServed: handler == nil}
	}
	if len(r.answer) > p2p.MaxMessage {
		return nil, p2p.ErrTooLarge
	}
	return bytes.Clone(r.answer), nil
}

// travel waits as long as a message takes.
func (n *Network) travel(ctx context.Context, from, to p2p.PeerID) error {
	n.mu.Lock()
	var d time.Duration
	if n.delay != nil {
		d = n.delay(from, to)
	}
	stalled := n.stalls[[2]p2p.PeerID{from, to}]
	n.mu.Unlock()
	if stalled != nil {
		select {
		case <-stalled:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if d <= 0 {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ErrLost is an error for filters that drop requests.
var ErrLost = errors.New("request lost")
