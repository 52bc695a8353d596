package host

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/quic-go/quic-go"

	"github.com/cairnfs/cairn/p2p"
)

// QUIC is the second way to a peer, for networks that let UDP through and not TCP.
// It costs twice the processor time and more, so it is dialled only when TCP does not
// answer, and left again when TCP does.
//
// libp2p has a word for connections that are used while there is no better one: it
// calls their transport a proxy. Said of QUIC, the swarm opens streams over TCP when
// there are both, and dials TCP alone when told to dial directly.

const (
	quicDelay = time.Second // for which TCP is waited for alone
	// A peer that refuses connections so soon after it had one is down. Otherwise a
	// firewall may have refused, and QUIC is tried.
	downFor      = time.Minute
	improveEvery = 30 * time.Second // that a way by TCP is looked for
	// defaultLinger is how long calls under way may go on over QUIC when there is a
	// connection by TCP.
	defaultLinger = 40 * time.Second
)

// secondBest is a transport that is used where there is no connection by another.
type secondBest struct {
	transport.Transport
	wire *traffic
}

// Proxy implements transport.Transport; see above.
func (secondBest) Proxy() bool { return true }

func (t secondBest) Dial(ctx context.Context, to ma.Multiaddr, p peer.ID) (transport.CapableConn, error) {
	c, err := t.Transport.Dial(ctx, to, p)
	if err != nil {
		return nil, err
	}
	return secondBestConn{c, t}, nil
}

func (t secondBest) Listen(at ma.Multiaddr) (transport.Listener, error) {
	l, err := t.Transport.Listen(at)
	if err != nil {
		return nil, err
	}
	return secondBestListener{l, t}, nil
}

type secondBestListener struct {
	transport.Listener
	t secondBest
}

func (l secondBestListener) Accept() (transport.CapableConn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return secondBestConn{c, l.t}, nil
}

type secondBestConn struct {
	transport.CapableConn
	t secondBest
}

func (c secondBestConn) Transport() transport.Transport { return c.t }

func (c secondBestConn) OpenStream(ctx context.Context) (network.MuxedStream, error) {
	s, err := c.CapableConn.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	return countedStream{s, c.t.wire}, nil
}

func (c secondBestConn) AcceptStream() (network.MuxedStream, error) {
	s, err := c.CapableConn.AcceptStream()
	if err != nil {
		return nil, err
	}
	return countedStream{s, c.t.wire}, nil
}

// countedStream counts the bytes that pass.
type countedStream struct {
	network.MuxedStream
	wire *traffic
}

func (s countedStream) Read(p []byte) (int, error) {
	n, err := s.MuxedStream.Read(p)
	s.wire.received.Add(int64(n))
	return n, err
}

func (s countedStream) Write(p []byte) (int, error) {
	n, err := s.MuxedStream.Write(p)
	s.wire.sent.Add(int64(n))
	return n, err
}

// buildQUIC adds QUIC to the swarm. Its connections pass the same gate and count
// against the same limits as those of TCP.
func (h *Host) buildQUIC(key crypto.PrivKey) error {
	seed, err := key.Raw()
	if err != nil {
		return err
	}
	// With the same keys in each run, a node that was restarted can tell peers that
	// the connections they have are none any more.
	var reset quic.StatelessResetKey
	var token quic.TokenGeneratorKey
	for info, to := range map[string][]byte{"cairn quic stateless reset": reset[:], "cairn quic tokens": token[:]} {
		k, err := hkdf.Key(sha256.New, seed, nil, info, len(to))
		if err != nil {
			return err
		}
		copy(to, k)
	}
	admit := func(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
		from, err := quicreuse.ToQuicMultiaddr(info.RemoteAddr, quic.Version1)
		if err != nil {
			return ctx, err
		}
		scope, err := h.limits.OpenConnection(network.DirInbound, false, from)
		if err != nil {
			return ctx, err
		}
		context.AfterFunc(ctx, scope.Done)
		return network.WithConnManagementScope(ctx, scope), nil
	}
	if h.quic, err = quicreuse.NewConnManager(reset, token,
		quicreuse.ConnContext(admit), quicreuse.VerifySourceAddress(h.limits.VerifySourceAddress)); err != nil {
		return err
	}
	t, err := libp2pquic.NewTransport(key, h.quic, nil, h.gate, h.limits)
	if err != nil {
		return err
	}
	return h.swarm.AddTransport(secondBest{t, h.wire})
}

// direct reports whether a connection is as good as there can be.
func direct(c network.Conn) bool { return isTCP(c.RemoteMultiaddr()) }

func isTCP(a ma.Multiaddr) bool {
	_, err := a.ValueForProtocol(ma.P_TCP)
	return err == nil
}

// ways says which kinds of connections to a peer there are.
func (h *Host) ways(id peer.ID) (tcp, quic bool) {
	for _, c := range h.swarm.ConnsToPeer(id) {
		if direct(c) {
			tcp = true
		} else {
			quic = true
		}
	}
	return tcp, quic
}

// dial connects to a peer: by TCP if that can be, else by QUIC.
func (h *Host) dial(ctx context.Context, id peer.ID) error {
	byTCP := make(chan error, 1)
	go func() {
		_, err := h.swarm.DialPeer(network.WithForceDirectDial(ctx, "member"), id)
		byTCP <- err
	}()
	timer := time.NewTimer(quicDelay)
	defer timer.Stop()
	select {
	case err := <-byTCP:
		if err == nil || h.isDown(id, err) {
			return err
		}
	case <-timer.C:
	}
	// Without libp2p's own backoff, in which it keeps a peer that was away for
	// minutes.
	h.swarm.Backoff().Clear(id)
	_, err := h.swarm.DialPeer(ctx, id)
	return err
}

// isDown reports whether a peer that could not be reached by TCP is not there at all.
func (h *Host) isDown(id peer.ID, why error) bool {
	h.mu.Lock()
	lost := h.lost[p2p.PeerID(id.String())]
	h.mu.Unlock()
	if time.Since(lost) > downFor {
		return false
	}
	var failed *swarm.DialError
	if !errors.As(why, &failed) {
		return false
	}
	refused := false
	for _, e := range failed.DialErrors {
		switch {
		case errors.Is(e.Cause, syscall.ECONNREFUSED):
			refused = true
		case isTCP(e.Address):
			return false
		}
	}
	return refused
}

// disconnected takes note of when there was a connection by TCP.
func (h *Host) disconnected(c network.Conn) {
	h.gate.gone(c)
	if !direct(c) {
		return
	}
	id := p2p.PeerID(c.RemotePeer().String())
	if !h.gate.member(id) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lost[id] = time.Now()
}

// improve looks for ways by TCP to peers that are connected by QUIC alone, until the
// host is closed.
func (h *Host) improve() {
	tick := time.NewTicker(improveEvery)
	defer tick.Stop()
	for {
		select {
		case <-h.ctx.Done():
			return
		case <-tick.C:
		}
		for _, id := range h.swarm.Peers() {
			if tcp, quic := h.ways(id); quic && !tcp && h.gate.member(p2p.PeerID(id.String())) {
				h.tryTCP(id)
			}
		}
	}
}

func (h *Host) tryTCP(id peer.ID) {
	ctx, cancel := context.WithTimeout(h.ctx, dialTimeout)
	defer cancel()
	if _, err := h.swarm.DialPeer(network.WithForceDirectDial(ctx, "instead of QUIC"), id); err != nil {
		h.log.Debug("no way by TCP yet", "peer", id, "err", err)
	}
}

// preferTCP has calls made over TCP where there is a connection of either kind, and
// closes that by QUIC when those under way have had their time.
func (h *Host) preferTCP(id peer.ID) {
	if tcp, quic := h.ways(id); !tcp || !quic {
		return
	}
	h.leaveQUIC(id)
	h.after(h.linger/2, func() {
		h.leaveQUIC(id) // what was being opened when there was no other way
		h.after(h.linger/2, func() {
			if tcp, _ := h.ways(id); !tcp {
				return
			}
			for _, c := range h.swarm.ConnsToPeer(id) {
				if !direct(c) {
					_ = c.Close() // whatever it says, it is closed
				}
			}
		})
	})
}

// after calls f later, unless the host is closed by then.
func (h *Host) after(d time.Duration, f func()) {
	time.AfterFunc(d, func() {
		if h.ctx.Err() == nil {
			f()
		}
	})
}

// leaveQUIC has the next calls to a peer open other streams than those over QUIC.
func (h *Host) leaveQUIC(id peer.ID) {
	over := func(s io.ReadWriteCloser) bool {
		w, ok := s.(wireStream)
		return ok && !direct(w.Conn())
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for l, c := range h.clients {
		if string(l.to) == id.String() {
			c.Leave(over)
		}
	}
}

// listenQUIC listens on the UDP ports whose numbers are those of the TCP ports. If a
// port was chosen by the system and that number is in use, another will do. Without
// QUIC the node can still be reached, so it is no error.
func (h *Host) listenQUIC(anyPort bool) {
	for _, l := range h.swarm.ListenAddresses() {
		a, err := tcpAddr(l)
		if err == nil {
			err = h.listenUDP(a)
		}
		if anyPort && errors.Is(err, syscall.EADDRINUSE) {
			err = h.listenUDP(&net.TCPAddr{IP: a.IP})
		}
		if err != nil {
			h.log.Warn("peers cannot connect by QUIC, only by TCP", "addr", l, "err", err)
		}
	}
}
