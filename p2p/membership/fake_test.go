package membership

import (
	"bytes"
	"context"
	"fmt"
	"sync"

	"github.com/cairnfs/cairn/p2p"
)

// fakeNet is a network in memory: a request runs the handler of its receiver.
type fakeNet struct {
	mu      sync.Mutex
	nodes   map[p2p.PeerID]*fakeNode
	cut     map[[2]p2p.PeerID]bool
	stalled map[p2p.PeerID]chan struct{} // closed when it goes on
	watch   func(from, to p2p.PeerID, req []byte)
}

type fakeNode struct {
	net  *fakeNet
	self p2p.PeerID

	mu       sync.Mutex
	handlers map[p2p.Protocol]p2p.Handler
}

func newFakeNet() *fakeNet {
	return &fakeNet{
		nodes:   make(map[p2p.PeerID]*fakeNode),
		cut:     make(map[[2]p2p.PeerID]bool),
		stalled: make(map[p2p.PeerID]chan struct{}),
	}
}

// Join returns the transport of a node that is on the network from now on, in
// place of an earlier one of that id.
func (n *fakeNet) Join(id p2p.PeerID) p2p.Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	node := &fakeNode{net: n, self: id, handlers: make(map[p2p.Protocol]p2p.Handler)}
	n.nodes[id] = node
	return node
}

// Leave takes a node off the network, as if its power had failed.
func (n *fakeNet) Leave(id p2p.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.nodes, id)
}

// Cut parts two nodes.
func (n *fakeNet) Cut(a, b p2p.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]p2p.PeerID{a, b}], n.cut[[2]p2p.PeerID{b, a}] = true, true
}

// Heal undoes all of Cut and Stall.
func (n *fakeNet) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	for _, c := range n.stalled {
		close(c)
	}
	clear(n.stalled)
}

// Stall has requests to a node wait for ever.
func (n *fakeNet) Stall(id p2p.PeerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stalled[id] = make(chan struct{})
}

// Watch has f called with all requests.
func (n *fakeNet) Watch(f func(from, to p2p.PeerID, req []byte)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.watch = f
}

func (t *fakeNode) Self() p2p.PeerID { return t.self }

func (t *fakeNode) Handle(p p2p.Protocol, h p2p.Handler) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.handlers[p] = h
}

func (t *fakeNode) Call(ctx context.Context, to p2p.PeerID, p p2p.Protocol, pieces ...[]byte) ([]byte, error) {
	req := bytes.Join(pieces, nil)
	t.net.mu.Lock()
	node, stalled, watch := t.net.nodes[to], t.net.stalled[to], t.net.watch
	apart := t.net.nodes[t.self] != t || t.net.cut[[2]p2p.PeerID{t.self, to}]
	t.net.mu.Unlock()

	if watch != nil {
		watch(t.self, to, req)
	}
	if stalled != nil {
		select {
		case <-stalled:
		case <-ctx.Done():
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if node == nil || apart {
		return nil, fmt.Errorf("call %s: %w", to, p2p.ErrUnreachable)
	}
	node.mu.Lock()
	h := node.handlers[p]
	node.mu.Unlock()
	if h == nil {
		return nil, &p2p.RemoteError{Peer: to, Text: "no handler"}
	}
	answer, err := h(ctx, t.self, req)
	if err != nil {
		return nil, &p2p.RemoteError{Peer: to, Text: err.Error()}
	}
	return bytes.Clone(answer), nil
}
