package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	multistream "github.com/multiformats/go-multistream"

	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/rpc"
)

// wireStream is a stream whose Close gives it up at once, in both directions, as
// rpc wants it.
type wireStream struct{ network.Stream }

func (s wireStream) Close() error { return s.Reset() }

// opener returns what opens streams of a line.
func (h *Host) opener(id peer.ID, l line) rpc.Open {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		if pause := h.pause(l.to); pause > 0 {
			return nil, fmt.Errorf("dialled in vain less than %v ago", redialPause)
		}
		// dialTimeout bounds a dial; the rest is for queueing.
		ctx, cancel := context.WithTimeout(ctx, 2*dialTimeout)
		defer cancel()
		for attempt := 1; ; attempt++ {
			s, err := h.newStream(ctx, id)
			if err != nil {
				h.dialFailed(l.to)
				return nil, err
			}
			err = negotiate(s, l)
			if err == nil {
				return wireStream{s}, nil
			}
			_ = s.Reset() // it is given up
			var refused *p2p.RemoteError
			if errors.As(err, &refused) || attempt == 2 || !s.Conn().IsClosed() {
				return nil, err
			}
			// The connection was one that the peer had lost, by a restart.
		}
	}
}

// newStream opens a stream over the best connection there is, or else a new one.
func (h *Host) newStream(ctx context.Context, id peer.ID) (network.Stream, error) {
	if h.swarm.Connectedness(id) != network.Connected {
		if err := h.dial(ctx, id); err != nil {
			return nil, err
		}
	}
	return h.swarm.NewStream(ctx, id)
}

// negotiate agrees with the peer on the protocol of a new stream.
func negotiate(s network.Stream, l line) error {
	if err := s.SetDeadline(time.Now().Add(negotiateTimeout)); err != nil {
		return err
	}
	err := multistream.SelectProtoOrFail(l.protocol, s)
	var unknown multistream.ErrNotSupported[p2p.Protocol]
	if errors.As(err, &unknown) {
		return notServed(l.to, l.protocol)
	}
	if err != nil {
		return err
	}
	if err := s.SetProtocol(protocol.ID(l.protocol)); err != nil {
		return err
	}
	return s.SetDeadline(time.Time{})
}

// dialFailed notes that a peer is not there, so that callers who do not give up do
// not dial without pause.
func (h *Host) dialFailed(id p2p.PeerID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.failed[id] = time.Now()
}

// pause returns how long not to dial a peer.
func (h *Host) pause(id p2p.PeerID) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	at, ok := h.failed[id]
	if !ok {
		return 0
	}
	d := redialPause - time.Since(at)
	if d <= 0 {
		delete(h.failed, id)
	}
	return d
}

// accept serves a stream that a peer has opened.
func (h *Host) accept(s network.Stream) {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		_ = s.Reset() // nothing was written to it
		return
	}
	h.running.Add(1)
	h.mu.Unlock()
	defer h.running.Done()
	if err := h.serve(s); err != nil {
		h.log.Debug("stream ended", "peer", s.Conn().RemotePeer(), "protocol", s.Protocol(), "err", err)
	}
	_ = s.Reset() // it is given up, if it has not ended
}

func (h *Host) serve(s network.Stream) error {
	from := p2p.PeerID(s.Conn().RemotePeer().String())
	if !h.gate.member(from) && !h.gate.try(s.Conn()) {
		return errors.New("a stranger opened too many streams")
	}
	if err := s.SetDeadline(time.Now().Add(negotiateTimeout)); err != nil {
		return err
	}
	mux := multistream.NewMultistreamMuxer[p2p.Protocol]()
	mux.AddHandlerWithFunc("", func(p p2p.Protocol) bool {
		_, ok := h.service(from, p)
		return ok && (h.gate.member(from) || h.gate.stream(s.Conn()))
	}, nil)
	p, _, err := mux.Negotiate(s)
	if err != nil {
		return err
	}
	service, ok := h.service(from, p)
	if !ok {
		return notServed(h.self, p)
	}
	if err := s.SetProtocol(protocol.ID(p)); err != nil {
		return err
	}
	if err := s.SetDeadline(time.Time{}); err != nil {
		return err
	}
	limits := rpc.Limits{Room: h.room(line{from, p})}
	if service.strangers || service.anyone {
		limits.Request = StrangerRequest
	}
	return rpc.Serve(h.ctx, wireStream{s}, from, func(ctx context.Context, from p2p.PeerID, req []byte) ([]byte, func(), error) {
		service, ok := h.service(from, p) // as of now
		if !ok {
			return nil, nil, fmt.Errorf("protocol %s is not served", p)
		}
		return service.handler(ctx, from, req)
	}, limits, &h.memory)
}
