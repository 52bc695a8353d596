// Package host carries requests between nodes over libp2p: TCP with TLS (Noise is
// accepted), QUIC where TCP does not get through, many streams on one connection,
// peers known by their public keys.
//
// Of libp2p it uses the connections alone. There is no relay, no identify and no ping: who the members are and where they listen is registered,
// and what a node speaks follows from its version. Each pair of peer and protocol
// has one stream that stays (package rpc), dialled when there is something to ask.
//
// # The gate
//
// A connection belongs to a peer id that has proved itself, and there are three
// kinds of them:
//
//   - members, as told by SetMembers, may speak all protocols;
//   - guests are those that this node calls by CallStranger, for as long as it does;
//   - strangers are all others. They reach only what HandleStranger registered,
//     while the door is open (OpenDoor), and what HandleAnyone did, within limits.
//     Without the latter they are let in only while the door is open.
//
// The gate is asked when a handshake is complete, when the connection is usable, and
// for each request. Whoever loses admission has all connections closed at once.
package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	ma "github.com/multiformats/go-multiaddr"
	"golang.org/x/sync/semaphore"

	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/rpc"
)

// Options say who a node is and where it listens.
type Options struct {
	Key     []byte       // ed25519 seed, 32 bytes
	Listen  string       // HOST:PORT; port 0 is any; without a host all interfaces; "" does not listen
	Logger  *slog.Logger // nil discards
	MDNS    bool         // find members' addresses on the local network; needs Listen
	Cluster string       // only nodes of the same cluster find each other
}

// Host is a node's end of the cluster's network. All methods may be called at any
// time from many goroutines; after Close, calls fail with p2p.ErrUnreachable.
type Host struct {
	self   p2p.PeerID
	log    *slog.Logger
	swarm  *swarm.Swarm
	peers  peerstore.Peerstore
	limits network.ResourceManager
	gate   *gate
	wire   *traffic
	quic   *quicreuse.ConnManager
	memory rpc.Memory
	mdns   mdns.Service // nil if there is none

	ctx     context.Context // ends with Close
	stop    context.CancelFunc
	running sync.WaitGroup // inbound streams being served, and improve
	joining chan struct{}  // holds a token while CallStranger is under way
	linger  time.Duration  // defaultLinger, but in tests

	setting    sync.Mutex // one SetMembers at a time
	registered map[peer.ID][]ma.Multiaddr

	mu       sync.Mutex
	closed   bool
	handlers map[p2p.Protocol]service
	clients  map[line]*rpc.Client
	rooms    map[line]*semaphore.Weighted // peerRequests each; of members only
	failed   map[p2p.PeerID]time.Time     // when dialling failed lately
	lost     map[p2p.PeerID]time.Time     // when a connection by TCP ended
}

var _ p2p.Recycler = (*Host)(nil)

// line is what has one outbound stream. The inbound ones of a peer and a protocol, which
// is to keep to one as well, are a line, too.
type line struct {
	to       p2p.PeerID
	protocol p2p.Protocol
}

// service is what answers a protocol.
type service struct {
	handler   p2p.LendingHandler
	strangers bool // reach it while the door is open
	anyone    bool // reaches it
}

// How long things may take before they have failed.
const (
	dialTimeout      = 5 * time.Second // TCP, and then both handshakes
	negotiateTimeout = 5 * time.Second // the protocol of a stream
	redialPause      = 200 * time.Millisecond
)

// peerRequests bounds the large requests of a protocol that a member has in this node's
// memory, in bytes, over all its streams. Those that wait for an answer count, so each
// protocol has its own.
const peerRequests = 32 << 20

// PeerIDOf returns the id of the node that has the given ed25519 seed, 32 bytes.
func PeerIDOf(seed []byte) (p2p.PeerID, error) {
	key, err := privateKey(seed)
	if err != nil {
		return "", err
	}
	id, err := peer.IDFromPrivateKey(key)
	return p2p.PeerID(id.String()), err
}

func privateKey(seed []byte) (crypto.PrivKey, error) {
	if len(seed) != 32 {
		return nil, fmt.Errorf("the key of a node is a seed of 32 bytes, not %d", len(seed))
	}
	key, _, err := crypto.GenerateEd25519Key(bytes.NewReader(seed))
	return key, err
}

// Open starts a node without members. Close must be called.
func Open(o Options) (*Host, error) { return open(o, secureTLS, secureNoise) }

func open(o Options, preferred ...security) (*Host, error) {
	key, err := privateKey(o.Key)
	if err != nil {
		return nil, err
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, stop := context.WithCancel(context.Background())
	h := &Host{
		self:       p2p.PeerID(id.String()),
		log:        o.Logger,
		gate:       newGate(p2p.PeerID(id.String())),
		wire:       &traffic{},
		ctx:        ctx,
		stop:       stop,
		joining:    make(chan struct{}, 1),
		linger:     defaultLinger,
		registered: make(map[peer.ID][]ma.Multiaddr),
		handlers:   make(map[p2p.Protocol]service),
		clients:    make(map[line]*rpc.Client),
		rooms:      make(map[line]*semaphore.Weighted),
		failed:     make(map[p2p.PeerID]time.Time),
		lost:       make(map[p2p.PeerID]time.Time),
	}
	if err := h.build(key, id, preferred); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	h.swarm.SetStreamHandler(h.accept)
	h.swarm.Notify(&network.NotifyBundle{
		ConnectedF:    func(_ network.Network, c network.Conn) { h.connected(c) },
		DisconnectedF: func(_ network.Network, c network.Conn) { h.disconnected(c) },
	})
	h.running.Go(h.improve)
	if o.Listen == "" {
		return h, nil
	}
	if err := h.listen(o.Listen); err != nil {
		return nil, errors.Join(fmt.Errorf("listening on %s: %w", o.Listen, err), h.Close())
	}
	if o.MDNS {
		h.announce(o.Cluster)
	}
	return h, nil
}

// Close ends all connections and waits for the handlers that run.
func (h *Host) Close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	clients := h.clients
	h.clients = nil
	h.mu.Unlock()

	var errs []error
	h.stop()
	if h.mdns != nil {
		errs = append(errs, h.mdns.Close())
	}
	for _, c := range clients {
		errs = append(errs, c.Close())
	}
	if h.swarm != nil {
		errs = append(errs, h.swarm.Close())
	}
	if h.quic != nil {
		errs = append(errs, h.quic.Close())
	}
	h.running.Wait()
	if h.peers != nil {
		errs = append(errs, h.peers.Close())
	}
	if h.limits != nil {
		errs = append(errs, h.limits.Close())
	}
	return errors.Join(errs...)
}

// Self implements p2p.Transport.
func (h *Host) Self() p2p.PeerID { return h.self }

// Handle implements p2p.Transport: only members' requests reach the handler.
func (h *Host) Handle(p p2p.Protocol, handler p2p.Handler) {
	h.register(p, service{handler: handler.Lending()})
}

// HandleLending implements p2p.Recycler.
func (h *Host) HandleLending(p p2p.Protocol, handler p2p.LendingHandler) {
	h.register(p, service{handler: handler})
}

// Recycle implements p2p.Recycler.
func (h *Host) Recycle(b []byte) { h.memory.Put(b) }

// HandleStranger has requests of a protocol answered by handler, whoever sends
// them, while the door is open, and those of members always; nil refuses them. A
// request has at most StrangerRequest bytes.
func (h *Host) HandleStranger(p p2p.Protocol, handler p2p.Handler) {
	h.register(p, service{handler: handler.Lending(), strangers: true})
}

// HandleAnyone has requests of a protocol answered by handler, whoever sends them and
// whenever, within the limits of strangers; nil refuses them.
func (h *Host) HandleAnyone(p p2p.Protocol, handler p2p.Handler) {
	h.gate.leaveAjar()
	h.register(p, service{handler: handler.Lending(), anyone: true})
}

func (h *Host) register(p p2p.Protocol, s service) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.handler == nil {
		delete(h.handlers, p)
		return
	}
	h.handlers[p] = s
}

// service returns what answers a protocol to a peer.
func (h *Host) service(from p2p.PeerID, p p2p.Protocol) (service, bool) {
	h.mu.Lock()
	s, ok := h.handlers[p]
	h.mu.Unlock()
	if !ok || !h.gate.member(from) && !s.anyone && !(s.strangers && h.gate.isOpen()) {
		return service{}, false
	}
	return s, true
}

// room returns the memory for the large requests that come on a line, nil if only small
// ones can.
func (h *Host) room(from line) *semaphore.Weighted {
	if !h.gate.member(from.to) {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.rooms[from]
	if r == nil {
		r = semaphore.NewWeighted(peerRequests)
		h.rooms[from] = r
	}
	return r
}

// Call implements p2p.Transport. A peer that is not connected is dialled. A call
// to this node itself is answered by its own handlers.
func (h *Host) Call(ctx context.Context, to p2p.PeerID, p p2p.Protocol, req ...[]byte) ([]byte, error) {
	if to == h.self {
		return h.callSelf(ctx, p, req)
	}
	c, err := h.client(line{to, p})
	if err != nil {
		return nil, err
	}
	return c.Call(ctx, req...)
}

func (h *Host) callSelf(ctx context.Context, p p2p.Protocol, pieces [][]byte) ([]byte, error) {
	req := bytes.Join(pieces, nil)
	if len(req) > p2p.MaxMessage {
		return nil, p2p.ErrTooLarge
	}
	h.mu.Lock()
	s, ok := h.handlers[p]
	h.mu.Unlock()
	if !ok {
		return nil, notServed(h.self, p)
	}
	answer, sent, err := s.handler(ctx, h.self, req)
	if sent != nil {
		defer sent()
	}
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, &p2p.RemoteError{Peer: h.self, Text: err.Error()}
	case len(answer) > p2p.MaxMessage:
		return nil, p2p.ErrTooLarge
	}
	return bytes.Clone(answer), nil
}

func notServed(by p2p.PeerID, p p2p.Protocol) error {
	return &p2p.RemoteError{Peer: by, Text: fmt.Sprintf("protocol %s is not served", p), NotServed: true}
}

// client returns what asks a member about a protocol.
func (h *Host) client(l line) (*rpc.Client, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.clients[l]; c != nil {
		return c, nil
	}
	id, ok := h.gate.memberID(l.to)
	if h.closed || !ok {
		return nil, fmt.Errorf("%w: %s is not a member", p2p.ErrUnreachable, l.to.Short())
	}
	c := rpc.NewClient(l.to, h.opener(id, l), &h.memory)
	h.clients[l] = c
	return c, nil
}

// Connected reports whether there is a connection to a peer at the moment.
func (h *Host) Connected(id p2p.PeerID) bool {
	p, err := peer.Decode(string(id))
	return err == nil && len(h.swarm.ConnsToPeer(p)) > 0
}

// RemoteAddr returns the multiaddr at the other end of a connection to a peer, ""
// if there is none.
func (h *Host) RemoteAddr(id p2p.PeerID) string {
	p, err := peer.Decode(string(id))
	if err != nil {
		return ""
	}
	for _, c := range h.swarm.ConnsToPeer(p) {
		return c.RemoteMultiaddr().String()
	}
	return ""
}

// Traffic returns how many bytes all connections together have carried, without
// what encryption and TCP add.
func (h *Host) Traffic() (sent, received int64) {
	return h.wire.sent.Load(), h.wire.received.Load()
}

// traffic counts bytes.
type traffic struct{ sent, received atomic.Int64 }
