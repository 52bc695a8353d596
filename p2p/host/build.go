package host

import (
	"net"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	"github.com/libp2p/go-libp2p/p2p/security/noise"
	libtls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	"github.com/libp2p/go-libp2p/x/rate"
)

// security makes a way to encrypt connections and to prove the peer's id.
type security func(crypto.PrivKey, []upgrader.StreamMuxer) (sec.SecureTransport, error)

func secureTLS(key crypto.PrivKey, m []upgrader.StreamMuxer) (sec.SecureTransport, error) {
	t, err := libtls.New(libtls.ID, key, m)
	if err != nil {
		return nil, err
	}
	return gathering{t}, nil
}

func secureNoise(key crypto.PrivKey, m []upgrader.StreamMuxer) (sec.SecureTransport, error) {
	return noise.New(noise.ID, key, m)
}

// A connection whose peer has vanished is noticed after keepAlive + writeTimeout at
// the latest.
const (
	keepAlive    = 3 * time.Second
	writeTimeout = 5 * time.Second
	window       = 16 << 20 // bytes on their way in one stream; it grows up to that
	// message is the most that a stream sends at a time, in bytes: as much as the
	// writes of rpc, lest each leave a few bytes for a message of their own.
	message = 96 << 10
)

// build makes the connections' machinery: what libp2p's own constructor would make,
// without the services that it starts.
func (h *Host) build(key crypto.PrivKey, id peer.ID, preferred []security) (err error) {
	if h.peers, err = pstoremem.NewPeerstore(); err != nil {
		return err
	}
	if err := h.peers.AddPrivKey(id, key); err != nil {
		return err
	}
	if err := h.peers.AddPubKey(id, key.GetPublic()); err != nil {
		return err
	}
	if h.limits, err = resourceLimits(); err != nil {
		return err
	}
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: newMuxer(h.wire)}}
	var securities []sec.SecureTransport
	for _, make := range preferred {
		s, err := make(key, muxers)
		if err != nil {
			return err
		}
		securities = append(securities, shortQueue{s})
	}
	up, err := upgrader.New(securities, muxers, nil, h.limits, h.gate, upgrader.WithAcceptTimeout(dialTimeout))
	if err != nil {
		return err
	}
	h.swarm, err = swarm.NewSwarm(id, h.peers, eventbus.NewBus(),
		swarm.WithConnectionGater(h.gate),
		swarm.WithResourceManager(h.limits),
		swarm.WithDialTimeout(dialTimeout),
		swarm.WithDialTimeoutLocal(dialTimeout),
		swarm.WithDialRanker(swarm.NoDelayDialRanker),
		// Nothing is concluded from failures about what addresses are worth.
		swarm.WithUDPBlackHoleSuccessCounter(nil),
		swarm.WithIPv6BlackHoleSuccessCounter(nil))
	if err != nil {
		return err
	}
	// Dials come from ports of their own: from the one listened on, the pair of
	// addresses that a restarted node uses would be the one it has just lost.
	transport, err := tcp.NewTCPTransport(up, h.limits, nil, tcp.DisableReuseport(), tcp.WithConnectionTimeout(dialTimeout))
	if err != nil {
		return err
	}
	if err := h.swarm.AddTransport(transport); err != nil {
		return err
	}
	return h.buildQUIC(key)
}

// resourceLimits bounds what all peers together, and each, can occupy. A cluster has
// tens of members at most, each with a stream for each of a few protocols.
func resourceLimits() (network.ResourceManager, error) {
	limits := rcmgr.PartialLimitConfig{
		System: rcmgr.ResourceLimits{
			Conns: 512, ConnsInbound: 256, ConnsOutbound: 256, FD: 512,
			Streams: 8192, StreamsInbound: 4096, StreamsOutbound: 4096, Memory: 2 << 30,
		},
		Transient: rcmgr.ResourceLimits{ // before the handshake, or the protocol, is done
			Conns: 256, ConnsInbound: 128, ConnsOutbound: 128, FD: 256,
			Streams: 1024, StreamsInbound: 512, StreamsOutbound: 512, Memory: 256 << 20,
		},
		PeerDefault: rcmgr.ResourceLimits{
			Conns: 16, ConnsInbound: 8, ConnsOutbound: 8, FD: 16,
			Streams: 256, StreamsInbound: 128, StreamsOutbound: 128, Memory: 512 << 20,
		},
		Conn: rcmgr.ResourceLimits{Conns: 1, ConnsInbound: 1, ConnsOutbound: 1, FD: 1, Memory: 512 << 20},
	}.Build(rcmgr.InfiniteLimits)

	const perHost, perSite = 64, 256 // connections; several nodes may share an address
	loopback4, loopback6 := netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(limits),
		rcmgr.WithMetricsDisabled(),
		rcmgr.WithLimitPerSubnet(
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: perHost}},
			[]rcmgr.ConnLimitPerSubnet{{PrefixLength: 64, ConnCount: perHost}, {PrefixLength: 48, ConnCount: perSite}}),
		rcmgr.WithConnRateLimiters(&rate.Limiter{
			NetworkPrefixLimits: []rate.PrefixLimit{{Prefix: loopback4}, {Prefix: loopback6}}, // none
			SubnetRateLimiter: rate.SubnetLimiter{
				IPv4SubnetLimits: []rate.SubnetLimit{{PrefixLength: 32, Limit: rate.Limit{RPS: 20, Burst: perHost}}},
				IPv6SubnetLimits: []rate.SubnetLimit{{PrefixLength: 64, Limit: rate.Limit{RPS: 20, Burst: perHost}}},
				GracePeriod:      time.Minute,
			},
		}))
}

// muxer makes many streams of a connection, whose bytes it counts.
type muxer struct {
	config yamux.Transport
	wire   *traffic
}

func newMuxer(wire *traffic) *muxer {
	m := &muxer{config: *yamux.DefaultTransport, wire: wire}
	m.config.KeepAliveInterval = keepAlive
	m.config.ConnectionWriteTimeout = writeTimeout
	m.config.MaxStreamWindowSize = window
	m.config.MaxMessageSize = message
	return m
}

// NewConn implements network.Multiplexer.
func (m *muxer) NewConn(c net.Conn, server bool, scope network.PeerScope) (network.MuxedConn, error) {
	queued := newBacklog(c)
	muxed, err := m.config.NewConn(&countedConn{Conn: c, wire: m.wire, queued: queued}, server, scope)
	if err != nil {
		return nil, err
	}
	return sharingConn{muxed, queued}, nil
}

// countedConn counts the bytes that pass. Each write is a frame.
type countedConn struct {
	net.Conn
	wire   *traffic
	queued *backlog
}

func (c *countedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.wire.received.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(p []byte) (int, error) {
	began := time.Now()
	n, err := c.Conn.Write(p)
	c.wire.sent.Add(int64(n))
	c.queued.took(p, time.Since(began))
	return n, err
}

func (c *countedConn) Close() error {
	c.queued.close()
	return c.Conn.Close()
}
