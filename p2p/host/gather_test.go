package host

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/sec"
)

// countingConn counts the writes to a connection, and fails them if it is to.
type countingConn struct {
	net.Conn
	mu     sync.Mutex
	writes int
	fail   error
}

func (c *countingConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	if c.fail != nil {
		return 0, c.fail
	}
	return c.Conn.Write(p)
}

func (c *countingConn) so(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// secured returns both ends of an encrypted connection, and what is below the first.
func secured(t *testing.T) (client, server sec.SecureConn, below *countingConn) {
	t.Helper()
	ends := func() (sec.SecureTransport, peer.ID) {
		key, _, err := crypto.GenerateEd25519Key(nil)
		if err != nil {
			t.Fatal(err)
		}
		id, err := peer.IDFromPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		s, err := secureTLS(key, nil)
		if err != nil {
			t.Fatal(err)
		}
		return s, id
	}
	from, _ := ends()
	to, id := ends()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			server, err = to.SecureInbound(t.Context(), c, "")
		}
		accepted <- err
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	below = &countingConn{Conn: c}
	client, err = from.SecureOutbound(t.Context(), below, id)
	if err := errors.Join(err, <-accepted); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server, below
}

func TestWhatIsWrittenAtOnceLeavesByOneWriteAndArrivesWhole(t *testing.T) {
	client, server, below := secured(t)
	for _, size := range []int{1, tlsRecord, tlsRecord + 1, message, 1 << 20} {
		p := bytes.Repeat([]byte("gathered"), size/8+1)[:size]
		var before, after int
		below.so(func() { before = below.writes })
		written := make(chan error, 1)
		go func() {
			_, err := client.Write(p)
			written <- err
		}()
		got := make([]byte, size)
		if _, err := io.ReadFull(server, got); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("%d bytes: %v", size, err)
		}
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		below.so(func() { after = below.writes })
		if after != before+1 {
			t.Errorf("%d bytes left by %d writes", size, after-before)
		}
	}
}

func TestAWriteThatDoesNotLeaveFails(t *testing.T) {
	client, _, below := secured(t)
	broken := errors.New("broken")
	below.so(func() { below.fail = broken })
	if n, err := client.Write(make([]byte, message)); !errors.Is(err, broken) || n != 0 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// A peer may close, and TLS say so, while another goroutine writes.
func TestAConnectionCanBeClosedWhileItIsWrittenTo(t *testing.T) {
	for range 20 {
		client, server, _ := secured(t)
		go func() { _, _ = io.Copy(io.Discard, server) }()
		var writer sync.WaitGroup
		writer.Go(func() {
			for {
				if _, err := client.Write(make([]byte, message)); err != nil {
					return
				}
			}
		})
		_ = client.Close()
		writer.Wait()
	}
}
