package host

import (
	"context"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
)

// All streams with a peer share one connection, and what is sent waits for all that
// was sent before, in the multiplexer (64 frames) and in the kernel (megabytes). So
// that a heartbeat never waits behind seconds of blocks, little may wait there: a
// stream that has handed over more than a few bytes goes on when the connection has
// taken all but a piece of what streams have handed over, and the kernel is told to
// take no more than so much beyond what it has sent. The rest waits with whoever sends
// it, where nothing is behind it but more of the same. On a slow line less may wait,
// so that it is milliseconds there as well; on a fast one that would cost processor
// time.
const (
	fastPiece, fastUnsent = message, 128 << 10 // bytes
	slowPiece, slowUnsent = 16 << 10, 16 << 10
	slowLine              = 16 << 20 // bytes a second

	// Writes of as much do not wait: requests that are not bulk.
	fewBytes = 8 << 10

	frameHeader = 12 // bytes, of yamux; the second is the type
	frameOfData = 0
)

// backlog is what streams have handed to a connection that has not taken it yet.
type backlog struct {
	mu     sync.Mutex
	less   sync.Cond
	bytes  int // below 0 while a stream has not said yet what was taken
	slow   bool
	closed bool

	limitUnsent func(bytes int) // of the kernel
}

// newBacklog returns the backlog of a connection, which may be able to limit what the
// kernel takes.
func newBacklog(c net.Conn) *backlog {
	b := &backlog{limitUnsent: func(int) {}}
	if q, ok := c.(shortConn); ok {
		b.limitUnsent = q.limitUnsent
	}
	b.limitUnsent(fastUnsent)
	b.less.L = &b.mu
	return b
}

// took takes note of a frame that the connection has taken, and of how long it took.
func (b *backlog) took(frame []byte, d time.Duration) {
	n := len(frame) - frameHeader
	if n <= 0 || frame[1] != frameOfData {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes -= n
	if n > fewBytes {
		if slow := int64(n)*int64(time.Second) < slowLine*int64(d); slow != b.slow {
			b.slow = slow
			if slow {
				b.limitUnsent(slowUnsent)
			} else {
				b.limitUnsent(fastUnsent)
			}
		}
	}
	if b.bytes <= b.piece() {
		b.less.Broadcast()
	}
}

// piece returns how much a stream hands over at a time. b.mu is held.
func (b *backlog) piece() int {
	if b.slow {
		return slowPiece
	}
	return fastPiece
}

// close lets all go on: the connection has ended.
func (b *backlog) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.less.Broadcast()
}

// sharingConn is a connection whose streams are patient.
type sharingConn struct {
	network.MuxedConn
	backlog *backlog
}

func (c sharingConn) OpenStream(ctx context.Context) (network.MuxedStream, error) {
	s, err := c.MuxedConn.OpenStream(ctx)
	if err != nil {
		return nil, err
	}
	return &patientStream{MuxedStream: s, backlog: c.backlog}, nil
}

func (c sharingConn) AcceptStream() (network.MuxedStream, error) {
	s, err := c.MuxedConn.AcceptStream()
	if err != nil {
		return nil, err
	}
	return &patientStream{MuxedStream: s, backlog: c.backlog}, nil
}

// patientStream hands over what is written a frame at a time.
type patientStream struct {
	network.MuxedStream
	backlog *backlog
	gone    bool // nobody waits for it any more; of backlog.mu
}

func (s *patientStream) Write(p []byte) (n int, err error) {
	for {
		s.backlog.mu.Lock()
		piece := s.backlog.piece()
		s.backlog.mu.Unlock()
		k, err := s.MuxedStream.Write(p[n:min(len(p), n+piece)])
		n += k
		s.handed(k)
		if err != nil || n == len(p) {
			return n, err
		}
	}
}

// handed takes note of bytes that are with the connection, and waits for its turn.
// The connection alone decides how long: a stream whose peer does not read waits
// before it hands anything over, and holds up no other.
func (s *patientStream) handed(n int) {
	b := s.backlog
	b.mu.Lock()
	defer b.mu.Unlock()
	b.bytes += n
	for n > fewBytes && b.bytes > b.piece() && !b.closed && !s.gone {
		b.less.Wait()
	}
}

func (s *patientStream) leave() {
	s.backlog.mu.Lock()
	defer s.backlog.mu.Unlock()
	s.gone = true
	s.backlog.less.Broadcast()
}

func (s *patientStream) Close() error {
	s.leave()
	return s.MuxedStream.Close()
}

func (s *patientStream) Reset() error {
	s.leave()
	return s.MuxedStream.Reset()
}

func (s *patientStream) ResetWithError(code network.StreamErrorCode) error {
	s.leave()
	return s.MuxedStream.ResetWithError(code)
}

// shortQueue is security over connections of which the kernel can be told to queue
// little.
type shortQueue struct{ sec.SecureTransport }

// shortConn is such a connection.
type shortConn struct {
	sec.SecureConn
	limitUnsent func(bytes int)
}

func (q shortQueue) SecureInbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	s, err := q.SecureTransport.SecureInbound(ctx, c, p)
	return short(s, c), err
}

func (q shortQueue) SecureOutbound(ctx context.Context, c net.Conn, p peer.ID) (sec.SecureConn, error) {
	s, err := q.SecureTransport.SecureOutbound(ctx, c, p)
	return short(s, c), err
}

func short(s sec.SecureConn, c net.Conn) sec.SecureConn {
	limit := unsentLimit(c)
	if s == nil || limit == nil {
		return s
	}
	return shortConn{s, limit}
}
