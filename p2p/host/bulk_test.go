package host

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/rpc"
)

// narrow passes bytes between a dialler and a node as a long and narrow line does: so
// many bytes a second, each arriving later by delay. What is sent and not yet on the
// line waits with the sender.
type narrow struct {
	perSecond atomic.Int64
	delay     time.Duration
}

// narrowLine returns the address at which a node is reached over the line.
func narrowLine(t *testing.T, n *narrow, target string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				return
			}
			t.Cleanup(func() { in.Close(); out.Close() })
			go n.pass(out.(*net.TCPConn), in.(*net.TCPConn))
			go n.pass(in.(*net.TCPConn), out.(*net.TCPConn))
		}
	}()
	return "/ip4/" + strings.Replace(l.Addr().String(), ":", "/tcp/", 1)
}

func (n *narrow) pass(to, from *net.TCPConn) {
	_ = from.SetReadBuffer(32 << 10) // a router's buffer, not a host's
	type packet struct {
		data []byte
		due  time.Time
	}
	line := make(chan packet, 1<<16)
	defer close(line)
	go func() {
		defer to.Close()
		for p := range line {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.data); err != nil {
				from.Close()
			}
		}
	}()
	free := time.Now()
	for {
		buf := make([]byte, 8<<10)
		k, err := from.Read(buf)
		if err != nil {
			return
		}
		if now := time.Now(); free.Before(now) {
			free = now
		}
		free = free.Add(time.Duration(int64(k) * int64(time.Second) / n.perSecond.Load()))
		time.Sleep(time.Until(free))
		line <- packet{buf[:k], time.Now().Add(n.delay)}
	}
}

// Rule 22: bulk transfers never hold up Raft and gossip for long, also over a line
// that was faster once and is so long that much must be on its way.
func TestSmallRequestsAreNotQueuedBehindBulk(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute: left out with -short, which .ci/run does not set")
	}
	a, b := start(t, 1, "127.0.0.1:0"), start(t, 2, "127.0.0.1:0")
	line := &narrow{delay: 40 * time.Millisecond}
	line.perSecond.Store(200 << 20)
	addr := narrowLine(t, line, strings.Replace(strings.TrimPrefix(of(b, "/tcp/")[0], "/ip4/"), "/tcp/", ":", 1))
	a.SetMembers([]p2p.Member{{ID: b.Self(), Addrs: []string{addr}}})
	b.SetMembers([]p2p.Member{{ID: a.Self()}})
	payload := bytes.Repeat([]byte("0123456789abcdef"), 4<<16)
	for _, h := range []*Host{a, b} {
		h.Handle("/test/bulk/1", func(context.Context, p2p.PeerID, []byte) ([]byte, error) { return payload, nil })
	}
	call(t, a, b)
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	var moved atomic.Int64
	for _, h := range []*Host{a, b} {
		to := map[*Host]*Host{a: b, b: a}[h].Self()
		for range 8 {
			go func() {
				for ctx.Err() == nil {
					if _, err := h.Call(ctx, to, "/test/bulk/1", payload); err == nil {
						moved.Add(2 * int64(len(payload)))
					}
				}
			}()
		}
	}
	time.Sleep(8 * time.Second) // the windows of the streams have opened
	t.Logf("%d MiB on the fast line", moved.Load()>>20)
	line.perSecond.Store(2 << 20)
	time.Sleep(4 * time.Second)
	before := moved.Load()
	began := time.Now()
	var took []time.Duration
	for time.Since(began) < 12*time.Second {
		at := time.Now()
		call(t, a, b)
		took = append(took, time.Since(at))
		time.Sleep(50 * time.Millisecond)
	}
	slices.Sort(took)
	slowest, median := took[len(took)-1], took[len(took)/2]
	t.Logf("of %d small requests: median %v, slowest %v; %d MiB of bulk", len(took), median, slowest, (moved.Load()-before)>>20)
	if slowest > time.Second {
		t.Errorf("a small request took %v", slowest)
	}
}

// Rule 22: a member has no more large requests in the memory of another than its share of
// it, however many streams it opens and however long they are not answered.
func TestAPeerOccupiesNoMoreMemoryThanItsShare(t *testing.T) {
	a, b := pair(t)
	var held, most atomic.Int64
	release := make(chan struct{})
	b.Handle(echo, func(_ context.Context, _ p2p.PeerID, req []byte) ([]byte, error) {
		n := held.Add(int64(len(req)))
		for was := most.Load(); n > was && !most.CompareAndSwap(was, n); was = most.Load() {
		}
		<-release
		held.Add(-int64(len(req)))
		return nil, nil
	})
	payload := make([]byte, 4<<20)
	const streams, each = 4, 4
	answered := make(chan error, streams*each)
	for range streams {
		c := rpc.NewClient(b.Self(), a.opener(peerID(t, b), line{b.Self(), echo}), nil)
		t.Cleanup(func() { c.Close() })
		for range each {
			go func() {
				_, err := c.Call(within(t), payload)
				answered <- err
			}()
		}
	}
	eventually(t, "a full share", func() error {
		if held.Load() < peerRequests {
			return errors.New("not yet")
		}
		return nil
	})
	time.Sleep(100 * time.Millisecond)
	close(release)
	for range streams * each {
		if err := <-answered; err != nil {
			t.Error(err)
		}
	}
	if most.Load() > peerRequests {
		t.Errorf("%d bytes of requests of a peer in memory, at most %d", most.Load(), peerRequests)
	}
}
