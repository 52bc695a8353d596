package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/sec"
	"github.com/libp2p/go-libp2p/p2p/host/eventbus"
	"github.com/libp2p/go-libp2p/p2p/host/peerstore/pstoremem"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/net/upgrader"
	libtls "github.com/libp2p/go-libp2p/p2p/security/tls"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
)

// streamWindow is how many bytes may be on their way in a stream, as between nodes.
const streamWindow = 16 << 20

// plainPeer is an end of libp2p connections by TCP and TLS, and nothing else.
type plainPeer struct {
	*swarm.Swarm
	book peerstore.Peerstore
}

func newPlainPeer() (_ *plainPeer, err error) {
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, err
	}
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	p := &plainPeer{}
	if p.book, err = pstoremem.NewPeerstore(); err != nil {
		return nil, err
	}
	if err := errors.Join(p.book.AddPrivKey(id, key), p.book.AddPubKey(id, key.GetPublic()), p.open(id, key)); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

func (p *plainPeer) open(id peer.ID, key crypto.PrivKey) (err error) {
	config := *yamux.DefaultTransport
	config.MaxStreamWindowSize = streamWindow
	muxers := []upgrader.StreamMuxer{{ID: yamux.ID, Muxer: &config}}
	tls, err := libtls.New(libtls.ID, key, muxers)
	if err != nil {
		return err
	}
	limits := &network.NullResourceManager{}
	up, err := upgrader.New([]sec.SecureTransport{tls}, muxers, nil, limits, nil)
	if err != nil {
		return err
	}
	if p.Swarm, err = swarm.NewSwarm(id, p.book, eventbus.NewBus(), swarm.WithResourceManager(limits)); err != nil {
		return err
	}
	transport, err := tcp.NewTCPTransport(up, limits, nil, tcp.DisableReuseport())
	if err != nil {
		return err
	}
	return p.AddTransport(transport)
}

// Close ends the connections.
func (p *plainPeer) Close() error {
	if p.Swarm == nil {
		return p.book.Close()
	}
	return errors.Join(p.Swarm.Close(), p.book.Close())
}

// tlsStream writes to a stream of libp2p between two ends in this process and reads
// from it: what any way to ask another node for bytes has to pass through.
func tlsStream(ctx context.Context, r *rig) (s sample, err error) {
	from, err := newPlainPeer()
	if err != nil {
		return sample{}, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := newPlainPeer()
	if err != nil {
		return sample{}, err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if err := to.Listen(ma.StringCast("/ip4/127.0.0.1/tcp/0")); err != nil {
		return sample{}, err
	}
	type read struct {
		bytes int64
		err   error
	}
	ended := make(chan read, 1)
	to.SetStreamHandler(func(s network.Stream) {
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, s, make([]byte, 128<<10))
		ended <- read{n, err}
	})
	from.book.AddAddrs(to.LocalPeer(), to.ListenAddresses(), peerstore.PermanentAddrTTL)
	stream, err := from.NewStream(ctx, to.LocalPeer())
	if err != nil {
		return sample{}, err
	}
	c := newContent(r.newSeed())
	s, err = measure(func() error {
		if err := errors.Join(c.writeTo(stream, r.o.Size), stream.CloseWrite()); err != nil {
			return err
		}
		select {
		case got := <-ended:
			if got.err == nil && got.bytes != r.o.Size {
				got.err = fmt.Errorf("%d bytes instead of %d", got.bytes, r.o.Size)
			}
			return got.err
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	s.bytes = r.o.Size
	return s, err
}
