package bench

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

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

// plainStream is a stream of libp2p, by TCP and TLS, between two ends in this process.
type plainStream struct {
	peers  []*plainPeer
	writes network.Stream
	reads  chan network.Stream // where what is written comes out, once something was
}

func newPlainStream(ctx context.Context) (_ *plainStream, err error) {
	s := &plainStream{reads: make(chan network.Stream, 1)}
	for range 2 {
		p, err := newPlainPeer()
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.peers = append(s.peers, p)
	}
	from, to := s.peers[0], s.peers[1]
	if err := to.Listen(ma.StringCast("/ip4/127.0.0.1/tcp/0")); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	to.SetStreamHandler(func(in network.Stream) { s.reads <- in })
	from.book.AddAddrs(to.LocalPeer(), to.ListenAddresses(), peerstore.PermanentAddrTTL)
	if s.writes, err = from.NewStream(ctx, to.LocalPeer()); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close ends the stream.
func (s *plainStream) Close() error {
	var errs []error
	for _, p := range s.peers {
		errs = append(errs, p.Close())
	}
	return errors.Join(errs...)
}

// send writes size bytes and ends the stream.
func (s *plainStream) send(c *content, size int64) error {
	return errors.Join(c.writeTo(s.writes, size), s.writes.CloseWrite())
}

// tlsStream writes to such a stream and reads from it: what any way to ask another node
// for bytes has to pass through.
func tlsStream(ctx context.Context, r *rig) (s sample, err error) {
	stream, err := newPlainStream(ctx)
	if err != nil {
		return sample{}, err
	}
	defer func() { err = errors.Join(err, stream.Close()) }()
	c := newContent(r.newSeed())
	s, err = measure(func() error {
		sent := make(chan error, 1)
		go func() { sent <- stream.send(c, r.o.Size) }()
		select {
		case from := <-stream.reads:
			n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, from, make([]byte, 128<<10))
			if err == nil && n != r.o.Size {
				err = fmt.Errorf("%d bytes instead of %d", n, r.o.Size)
			}
			return errors.Join(err, <-sent)
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	s.bytes = r.o.Size
	return s, err
}

// remoteRead has a client read a file of a mount whose server has nothing of it: it
// answers with what comes through such a stream, from which another goroutine of this
// process gets it, and does nothing else. No node could read a file of another faster
// on these libraries.
func remoteRead(ctx context.Context, r *rig) (s sample, err error) {
	stream, err := newPlainStream(ctx)
	if err != nil {
		return sample{}, err
	}
	floor, dir := newFloor(), filepath.Join(r.dir, "remote")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return sample{}, errors.Join(err, stream.Close())
	}
	unmount, err := floor.mount(dir)
	if err != nil {
		return sample{}, errors.Join(err, stream.Close())
	}
	defer func() { err = errors.Join(err, unmount()) }()
	c := newContent(r.newSeed())
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		// The kernel may ask for a little twice. What is too much ends with the stream.
		_ = stream.send(c, r.o.Size+4*pieceSize)
	}()
	defer func() { <-sent }()
	defer func() { err = errors.Join(err, stream.Close()) }()
	select {
	case from := <-stream.reads:
		floor.answerWith(from)
	case <-ctx.Done():
		return sample{}, ctx.Err()
	}
	path := filepath.Join(dir, dataName)
	return r.measureClient(ctx,
		request{Op: opWrite, Path: path, Size: r.o.Size},
		request{Op: opDrop, Path: path},
		request{Op: opRead, Path: path, Size: r.o.Size})
}
