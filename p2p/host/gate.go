package host

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/connmgr"
	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/rpc"
)

// Limits of strangers while the door is open.
const (
	StrangerRequest = 16 << 10         // bytes of a request
	strangersAtOnce = 8                // connections
	strangerTime    = 10 * time.Second // that a connection lasts
	strangerTries   = 16               // streams of a connection, of which one is served
)

// gate decides who may be connected.
type gate struct {
	self p2p.PeerID

	mu        sync.RWMutex
	members   map[p2p.PeerID]peer.ID
	guests    map[p2p.PeerID]int // calls of CallStranger under way
	open      bool
	ajar      bool // there is something that anyone may ask
	strangers map[network.Conn]*stranger
}

// stranger is a connection of a peer that is no member.
type stranger struct {
	tries    int  // streams it has opened
	streamed bool // one of them is served
	expiry   *time.Timer
}

var _ connmgr.ConnectionGater = (*gate)(nil)

func newGate(self p2p.PeerID) *gate {
	return &gate{
		self:      self,
		members:   make(map[p2p.PeerID]peer.ID),
		guests:    make(map[p2p.PeerID]int),
		strangers: make(map[network.Conn]*stranger),
	}
}

func (g *gate) member(id p2p.PeerID) bool {
	_, ok := g.memberID(id)
	return ok
}

func (g *gate) memberID(id p2p.PeerID) (peer.ID, bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	p, ok := g.members[id]
	return p, ok
}

func (g *gate) isOpen() bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.open
}

// known reports whether a peer is a member or a guest. g.mu is held.
func (g *gate) known(id p2p.PeerID) bool {
	_, ok := g.members[id]
	return ok || g.guests[id] > 0
}

func (g *gate) admits(dir network.Direction, p peer.ID) bool {
	id := p2p.PeerID(p.String())
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.known(id) || (g.open || g.ajar) && dir == network.DirInbound && len(g.strangers) < strangersAtOnce
}

// InterceptPeerDial implements connmgr.ConnectionGater.
func (g *gate) InterceptPeerDial(p peer.ID) bool { return g.admits(network.DirOutbound, p) }

// InterceptAddrDial implements connmgr.ConnectionGater.
func (g *gate) InterceptAddrDial(peer.ID, ma.Multiaddr) bool { return true }

// InterceptAccept implements connmgr.ConnectionGater: who it is will be known after
// the handshake, whose number and time are limited.
func (g *gate) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptSecured implements connmgr.ConnectionGater.
func (g *gate) InterceptSecured(dir network.Direction, p peer.ID, _ network.ConnMultiaddrs) bool {
	return g.admits(dir, p)
}

// InterceptUpgraded implements connmgr.ConnectionGater; see enter.
func (g *gate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

// enter reports whether a new connection may stay. It is asked when SetMembers and
// OpenDoor can see the connection, so that none slips through between.
func (g *gate) enter(c network.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.known(p2p.PeerID(c.RemotePeer().String())) {
		return true
	}
	if !g.open && !g.ajar || c.Stat().Direction != network.DirInbound || len(g.strangers) >= strangersAtOnce {
		return false
	}
	g.strangers[c] = &stranger{expiry: time.AfterFunc(strangerTime, func() {
		if !g.member(p2p.PeerID(c.RemotePeer().String())) {
			_ = c.Close() // whatever it says, it is closed
		}
	})}
	return true
}

// gone forgets a connection.
func (g *gate) gone(c network.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.strangers[c]; s != nil {
		s.expiry.Stop()
		delete(g.strangers, c)
	}
}

// try reports whether a stranger's connection may have another stream negotiated. A
// node that does not know that it is no member begins with many.
func (g *gate) try(c network.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.strangers[c]
	if s == nil || s.tries == strangerTries {
		return false
	}
	s.tries++
	return true
}

// stream reports whether a stream of a stranger's connection may be served: the first
// that asks for something it may have.
func (g *gate) stream(c network.Conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.strangers[c]
	if s == nil || s.streamed {
		return false
	}
	s.streamed = true
	return true
}

// leaveAjar lets strangers in, whether the door is open or not.
func (g *gate) leaveAjar() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ajar = true
}

// setMembers replaces the members and returns those that are none any more.
func (g *gate) setMembers(members map[p2p.PeerID]peer.ID) (left []peer.ID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, p := range g.members {
		if _, ok := members[id]; !ok {
			left = append(left, p)
		}
	}
	g.members = members
	for c, s := range g.strangers {
		if g.known(p2p.PeerID(c.RemotePeer().String())) {
			s.expiry.Stop()
			delete(g.strangers, c)
		}
	}
	return left
}

// setOpen opens or closes the door and returns the strangers to be shown out.
func (g *gate) setOpen(open bool) (out []network.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = open
	if open {
		return nil
	}
	return slices.Collect(maps.Keys(g.strangers))
}

// guest counts a peer as a guest until done is called, which reports whether it has
// become unknown by that.
func (g *gate) guest(id p2p.PeerID) (done func() bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.guests[id]++
	return func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.guests[id]--; g.guests[id] == 0 {
			delete(g.guests, id)
		}
		return !g.known(id)
	}
}

// connected closes a new connection that may not stay.
func (h *Host) connected(c network.Conn) {
	if !h.gate.enter(c) {
		h.log.Debug("connection refused", "peer", c.RemotePeer(), "addr", c.RemoteMultiaddr())
		go c.Close() // not while libp2p announces it
		return
	}
	h.preferTCP(c.RemotePeer())
}

// SetMembers says who the members are, this node itself among them or not, and
// where they listen. Connections of those that are no members any more are closed
// before it returns, and their requests have their contexts ended.
//
// A member whose id is not that of a libp2p peer is left out, and so are addresses
// that cannot be read; both are logged.
func (h *Host) SetMembers(members []p2p.Member) {
	h.setting.Lock()
	defer h.setting.Unlock()
	ids := make(map[p2p.PeerID]peer.ID, len(members))
	addrs := make(map[peer.ID][]ma.Multiaddr, len(members))
	for _, m := range members {
		if m.ID == h.self {
			continue
		}
		id, err := peer.Decode(string(m.ID))
		if err != nil {
			h.log.Warn("member has no valid peer id", "peer", m.ID, "err", err)
			continue
		}
		ids[m.ID] = id
		var bad error
		if addrs[id], bad = parseAddrs(m.Addrs); bad != nil {
			h.log.Warn("member has an address that cannot be read", "peer", m.ID, "err", bad)
		}
	}
	left := h.gate.setMembers(ids)
	h.dropClients(ids)
	for _, id := range left {
		h.peers.ClearAddrs(id)
		delete(h.registered, id)
		_ = h.swarm.ClosePeer(id) // whatever it says, they are closed
	}
	for id, as := range addrs {
		h.remember(id, as)
	}
}

// dropClients closes what asks peers that are no members any more.
func (h *Host) dropClients(members map[p2p.PeerID]peer.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for l, c := range h.clients {
		if _, ok := members[l.to]; !ok {
			delete(h.clients, l)
			_ = c.Close() // returns nil
		}
	}
	for l := range h.rooms {
		if _, ok := members[l.to]; !ok {
			delete(h.rooms, l)
		}
	}
	for id := range h.failed {
		if _, ok := members[id]; !ok {
			delete(h.failed, id)
		}
	}
	for id := range h.lost {
		if _, ok := members[id]; !ok {
			delete(h.lost, id)
		}
	}
}

// remember replaces the registered addresses of a member; those that mDNS found
// stay until they expire. h.setting is held.
func (h *Host) remember(id peer.ID, addrs []ma.Multiaddr) {
	h.peers.AddAddrs(id, addrs, peerstore.PermanentAddrTTL)
	stale := slices.DeleteFunc(h.registered[id], func(a ma.Multiaddr) bool { return ma.Contains(addrs, a) })
	h.peers.SetAddrs(id, stale, 0)
	h.registered[id] = addrs
}

// OpenDoor lets strangers in, or none any more: then those that are there are
// disconnected before it returns.
func (h *Host) OpenDoor(open bool) {
	for _, c := range h.gate.setOpen(open) {
		_ = c.Close() // whatever it says, it is closed
	}
}

// CallStranger asks a peer that is not yet a member, at the given multiaddrs, with
// at most StrangerRequest bytes. The gate lets just this peer pass meanwhile. Calls
// of several goroutines are made one after the other, each over a connection of its
// own unless the peer is a member by the end.
//
// Errors are those of Call.
func (h *Host) CallStranger(ctx context.Context, to p2p.PeerID, addrs []string, p p2p.Protocol, req []byte) ([]byte, error) {
	id, err := peer.Decode(string(to))
	if err != nil {
		return nil, fmt.Errorf("%w: %q is not a peer id: %v", p2p.ErrUnreachable, to, err)
	}
	known, err := parseAddrs(addrs)
	if len(known) == 0 {
		return nil, fmt.Errorf("%w: no address of %s can be used: %v", p2p.ErrUnreachable, to.Short(), err)
	}
	if len(req) > StrangerRequest {
		return nil, p2p.ErrTooLarge
	}
	select {
	case h.joining <- struct{}{}:
		defer func() { <-h.joining }()
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-h.ctx.Done():
		return nil, fmt.Errorf("%w: closed", p2p.ErrUnreachable)
	}
	done := h.gate.guest(to)
	defer func() {
		if done() {
			_ = h.swarm.ClosePeer(id) // whatever it says, they are closed
		}
	}()
	h.peers.AddAddrs(id, known, peerstore.TempAddrTTL)
	client := rpc.NewClient(to, h.opener(id, line{to, p}), nil)
	defer client.Close()
	return client.Call(ctx, req)
}
