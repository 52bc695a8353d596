package host

import (
	"context"
	"net"
	"sync"

	pool "github.com/libp2p/go-buffer-pool"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
)

// gathering has what TLS makes of one Write leave by one system call. TLS writes each of
// its records of 16 KiB by itself, and every write to a socket costs a walk through the
// whole network stack, and at times waking who reads at the other end.
type gathering struct{ sec.SecureTransport }

// SecureInbound implements sec.SecureTransport.
func (g gathering) SecureInbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	below := &gatheredConn{Conn: insecure}
	c, err := g.SecureTransport.SecureInbound(ctx, below, p)
	if err != nil {
		return nil, err
	}
	return &gatheringConn{c, below}, nil
}

// SecureOutbound implements sec.SecureTransport.
func (g gathering) SecureOutbound(ctx context.Context, insecure net.Conn, p peer.ID) (sec.SecureConn, error) {
	below := &gatheredConn{Conn: insecure}
	c, err := g.SecureTransport.SecureOutbound(ctx, below, p)
	if err != nil {
		return nil, err
	}
	return &gatheringConn{c, below}, nil
}

// tlsRecord is the least that TLS puts into a record unless there is no more, in bytes;
// it begins with small ones. tlsOverhead is what it adds to each at most.
const (
	tlsRecord   = 1 << 10
	tlsOverhead = 64
)

// gatheringConn is the side of what is to be encrypted. One goroutine at a time writes.
type gatheringConn struct {
	sec.SecureConn
	below *gatheredConn
}

// Write implements net.Conn.
func (c *gatheringConn) Write(p []byte) (int, error) {
	if len(p) <= tlsRecord {
		return c.SecureConn.Write(p)
	}
	buf := pool.Get(len(p) + (len(p)/tlsRecord+1)*tlsOverhead)
	defer pool.Put(buf)
	c.below.gather(buf[:0])
	n, err := c.SecureConn.Write(p)
	if leaveErr := c.below.leave(); err == nil && leaveErr != nil {
		n, err = 0, leaveErr
	}
	return n, err
}

// gatheredConn is the side of the network. TLS may write to it from other goroutines as
// well: alerts, and what keys need.
type gatheredConn struct {
	net.Conn

	mu  sync.Mutex
	buf []byte // not nil while records are gathered
}

// Write implements net.Conn.
func (c *gatheredConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.buf == nil {
		return c.Conn.Write(p)
	}
	c.buf = append(c.buf, p...)
	return len(p), nil
}

// gather has what is written from now on gathered in buf, which is empty.
func (c *gatheredConn) gather(buf []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = buf
}

// leave ends that, and sends what was gathered.
func (c *gatheredConn) leave() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	buf := c.buf
	c.buf = nil
	_, err := c.Conn.Write(buf)
	return err
}
