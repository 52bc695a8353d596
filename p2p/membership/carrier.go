package membership

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/cairnfs/cairn/p2p"
)

// Protocol is the protocol of all requests. A request is one byte, the kind, and
// what memberlist sends:
//
//	0  knock     nothing; asks only for an answer
//	1  packet    a datagram; may get lost
//	2  exchange  all that one side says on a stream; the answer is all that the
//	             other side says on it
//
// Knocks and packets are answered with nothing. Requests of an unknown kind, and
// of whoever is not a member, are refused.
const Protocol p2p.Protocol = "/cairn/gossip/1"

const (
	kindKnock    = 0
	kindPacket   = 1
	kindExchange = 2
)

// Limits. Beyond them packets get lost, and exchanges fail and are tried again.
const (
	packetSize   = 4 << 10 // bytes that memberlist puts in a packet
	maxPacket    = 64 << 10
	maxExchange  = 1 << 20 // bytes each way: the state of some 8,000 members
	maxQueued    = 32      // packets that wait for a peer; a new one displaces the oldest
	maxSending   = 4       // packets on their way to a peer
	maxReceived  = 256     // packets that wait for memberlist
	maxExchanges = 32      // exchanges being answered
)

// Errors that a carrier answers with.
var (
	errClosed = errors.New("gossip is closed")
	errBusy   = errors.New("too many exchanges of the gossip at once")
	errFrame  = errors.New("no request of the gossip that is known here")
)

// carrier is memberlist's network, a memberlist.NodeAwareTransport. It goes by the
// names of nodes, which are peer ids; memberlist wants an address for each besides,
// which is made up from the id.
type carrier struct {
	net      p2p.Transport
	registry *registry
	// outcome is told, of each request, whether there was an answer.
	outcome         func(to p2p.PeerID, sent time.Time, answered bool)
	packetTimeout   time.Duration // also how old a packet may get while it waits
	exchangeTimeout time.Duration

	packets   chan *memberlist.Packet
	streams   chan net.Conn
	exchanges chan struct{} // tokens of those being answered

	ctx  context.Context // ends all requests
	stop func()

	mu      sync.Mutex
	closed  bool
	boxes   map[p2p.PeerID]*outbox // of those to whom packets are under way
	senders sync.WaitGroup         // added to while mu is held and closed is false
}

var _ memberlist.NodeAwareTransport = (*carrier)(nil)

// outbox is the packets for one peer. Its senders exist while there are any.
type outbox struct {
	queue   []packet // oldest first
	senders int
}

// packet is a request that waits to be sent.
type packet struct {
	frame []byte
	at    time.Time
}

func newCarrier(t p2p.Transport, r *registry, outcome func(p2p.PeerID, time.Time, bool),
	packetTimeout, exchangeTimeout time.Duration) *carrier {
	ctx, stop := context.WithCancel(context.Background())
	return &carrier{
		net:             t,
		registry:        r,
		outcome:         outcome,
		packetTimeout:   packetTimeout,
		exchangeTimeout: exchangeTimeout,
		packets:         make(chan *memberlist.Packet, maxReceived),
		streams:         make(chan net.Conn),
		exchanges:       make(chan struct{}, maxExchanges),
		ctx:             ctx,
		stop:            stop,
		boxes:           make(map[p2p.PeerID]*outbox),
	}
}

// addressOf returns the address of a node in memberlist's eyes: a private IPv6
// address from a hash of the id, the same everywhere, and a port that is not 0.
func addressOf(id p2p.PeerID) (net.IP, int) {
	sum := sha256.Sum256([]byte(id))
	ip := make(net.IP, net.IPv6len)
	ip[0] = 0xfd
	copy(ip[1:], sum[:])
	return ip, 1
}

// addr is a peer's address as a net.Addr.
type addr p2p.PeerID

func (a addr) Network() string { return string(Protocol) }

func (a addr) String() string {
	ip, port := addressOf(p2p.PeerID(a))
	return net.JoinHostPort(ip.String(), strconv.Itoa(port))
}

// call sends a request and reports its outcome. Refusing is answering, too.
func (c *carrier) call(ctx context.Context, to p2p.PeerID, frame ...[]byte) ([]byte, error) {
	sent := time.Now()
	answer, err := c.net.Call(ctx, to, Protocol, frame...)
	var refused *p2p.RemoteError
	switch {
	case err == nil || errors.As(err, &refused):
		c.outcome(to, sent, true)
	case errors.Is(err, context.Canceled), errors.Is(err, p2p.ErrTooLarge):
		// It was never asked, or we did not wait.
	default:
		c.outcome(to, sent, false)
	}
	return answer, err
}

// knock asks a peer for an answer.
func (c *carrier) knock(to p2p.PeerID) {
	ctx, cancel := context.WithTimeout(c.ctx, c.packetTimeout)
	defer cancel()
	_, _ = c.call(ctx, to, []byte{kindKnock}) // the outcome is all that counts
}

// FinalAdvertiseAddr returns this node's address.
func (c *carrier) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	ip, port := addressOf(c.net.Self())
	return ip, port, nil
}

// WriteTo fails: an address is no name.
func (c *carrier) WriteTo(_ []byte, addr string) (time.Time, error) {
	return time.Time{}, fmt.Errorf("no node is named for address %s", addr)
}

// DialTimeout fails: an address is no name.
func (c *carrier) DialTimeout(addr string, _ time.Duration) (net.Conn, error) {
	return nil, fmt.Errorf("no node is named for address %s", addr)
}

// WriteToAddress sends a packet, without waiting. It gets lost if the node is no
// member, or does not take what is sent. To memberlist that is no error: from an
// error here it would not conclude that the node is dead.
func (c *carrier) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	now := time.Now()
	if len(b) > maxPacket {
		return now, fmt.Errorf("packet is larger than %d bytes", maxPacket)
	}
	to := p2p.PeerID(a.Name)
	if !c.registry.has(to) {
		return now, nil
	}
	frame := append(append(make([]byte, 0, 1+len(b)), kindPacket), b...)

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return now, errClosed
	}
	box := c.boxes[to]
	if box == nil {
		box = new(outbox)
		c.boxes[to] = box
	}
	if len(box.queue) == maxQueued {
		box.queue = append(box.queue[:0], box.queue[1:]...)
	}
	box.queue = append(box.queue, packet{frame, now})
	if box.senders < maxSending {
		box.senders++
		c.senders.Go(func() { c.send(to, box) })
	}
	return now, nil
}

// send sends what is in a box, until it is empty.
func (c *carrier) send(to p2p.PeerID, box *outbox) {
	for {
		p, ok := c.next(to, box)
		if !ok {
			return
		}
		ctx, cancel := context.WithTimeout(c.ctx, c.packetTimeout)
		_, _ = c.call(ctx, to, p.frame) // a packet may get lost
		cancel()
	}
}

// next takes the oldest packet that is worth sending out of a box. If there is
// none, the sender that asks is no longer counted, and the box goes with the last.
func (c *carrier) next(to p2p.PeerID, box *outbox) (packet, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(box.queue) > 0 {
		p := box.queue[0]
		box.queue = append(box.queue[:0], box.queue[1:]...)
		if time.Since(p.at) <= c.packetTimeout {
			return p, true
		}
	}
	if box.senders--; box.senders == 0 {
		delete(c.boxes, to)
	}
	return packet{}, false
}

// PacketCh returns where packets arrive.
func (c *carrier) PacketCh() <-chan *memberlist.Packet { return c.packets }

// StreamCh returns where the other side of exchanges arrives.
func (c *carrier) StreamCh() <-chan net.Conn { return c.streams }

// serve answers requests of others. It is a p2p.Handler.
func (c *carrier) serve(ctx context.Context, from p2p.PeerID, req []byte) ([]byte, error) {
	switch {
	case c.ctx.Err() != nil:
		return nil, errClosed
	case !c.registry.has(from) || from == c.net.Self():
		return nil, errNotMember
	case len(req) == 0:
		return nil, errFrame
	}
	kind, body := req[0], req[1:]
	switch kind {
	case kindKnock:
		return nil, nil
	case kindPacket:
		if len(body) == 0 || len(body) > maxPacket {
			return nil, errFrame
		}
		select {
		case c.packets <- &memberlist.Packet{Buf: body, From: addr(from), Timestamp: time.Now()}:
		default: // lost
		}
		return nil, nil
	case kindExchange:
		if len(body) > maxExchange {
			return nil, errFrame
		}
		return c.serveExchange(ctx, from, body)
	}
	return nil, errFrame
}

// Shutdown sends what waits to be sent, for at most as long as a packet may wait,
// and ends all requests. Nothing is sent or answered from then on.
func (c *carrier) Shutdown() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()

	timer := time.AfterFunc(c.packetTimeout, c.stop)
	defer timer.Stop()
	c.senders.Wait()
	c.stop()
	return nil
}
