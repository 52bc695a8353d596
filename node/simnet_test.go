//go:build simulation

package node

import (
	"context"
	"fmt"
	"hash/fnv"
	"sync"

	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/host"
	"github.com/cairnfs/cairn/p2p/memnet"
)

// simHost is a network in memory with the gate of a host.Host: only members speak, and
// strangers while the door is open.
type simHost struct {
	*memnet.Transport

	mu      sync.Mutex
	members map[p2p.PeerID]bool
	open    bool
	closed  bool
	running sync.WaitGroup
}

var _ network = (*simHost)(nil)

// host returns what opens the network of a process.
func (p *process) host(o host.Options) (network, error) {
	id, err := host.PeerIDOf(o.Key)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return nil, errDead
	}
	h := &simHost{Transport: p.m.w.net.Join(id)}
	p.m.setPeer(id)
	p.hosts = append(p.hosts, h)
	return h, nil
}

func (h *simHost) SetMembers(ms []p2p.Member) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.members = make(map[p2p.PeerID]bool)
	for i := range ms {
		h.members[ms[i].ID] = true
	}
}

func (h *simHost) OpenDoor(open bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open = open
}

// enter counts a handler that runs, unless its caller is not to be answered.
func (h *simHost) enter(from p2p.PeerID, to audience) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || !h.members[from] && from != h.Self() && to != anyone && !(to == strangers && h.open) {
		return false
	}
	h.running.Add(1)
	return true
}

// audience is who reaches a handler.
type audience int

const (
	onlyMembers audience = iota
	strangers
	anyone
)

func (h *simHost) handle(p p2p.Protocol, fn p2p.Handler, to audience) {
	if fn == nil {
		h.Transport.Handle(p, nil)
		return
	}
	h.Transport.Handle(p, func(ctx context.Context, from p2p.PeerID, req []byte) ([]byte, error) {
		if !h.enter(from, to) {
			return nil, p2p.ErrUnreachable
		}
		defer h.running.Done()
		return fn(ctx, from, req)
	})
}

func (h *simHost) Handle(p p2p.Protocol, fn p2p.Handler) { h.handle(p, fn, onlyMembers) }

func (h *simHost) HandleStranger(p p2p.Protocol, fn p2p.Handler) { h.handle(p, fn, strangers) }

func (h *simHost) HandleAnyone(p p2p.Protocol, fn p2p.Handler) { h.handle(p, fn, anyone) }

func (h *simHost) Call(ctx context.Context, to p2p.PeerID, p p2p.Protocol, req ...[]byte) ([]byte, error) {
	h.mu.Lock()
	known := to == h.Self() || h.members[to]
	h.mu.Unlock()
	if !known {
		return nil, fmt.Errorf("%w: %s is not a member", p2p.ErrUnreachable, to.Short())
	}
	return h.Transport.Call(ctx, to, p, req...)
}

func (h *simHost) CallStranger(ctx context.Context, to p2p.PeerID, _ []string, p p2p.Protocol, req []byte) ([]byte, error) {
	return h.Transport.Call(ctx, to, p, req)
}

// Addrs returns what looks like an address and is nobody else's.
func (h *simHost) Addrs() []string {
	sum := fnv.New32a()
	sum.Write([]byte(h.Self()))
	b := sum.Sum(nil)
	return []string{fmt.Sprintf("/ip4/10.%d.%d.%d/tcp/4101", b[0], b[1], b[2])}
}

func (h *simHost) Traffic() (sent, received int64) { return 0, 0 }

func (h *simHost) Close() error {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.Transport.Close()
	h.running.Wait()
	return nil
}
