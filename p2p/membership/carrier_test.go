package membership

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/cairnfs/cairn/p2p"
)

// newTestCarrier returns the carrier of a node of which nobody reads what arrives.
// Its timeouts are so long that a test which meets one fails.
func newTestCarrier(t testing.TB, n *fakeNet, self p2p.PeerID, members ...p2p.PeerID) *carrier {
	node := n.Join(self)
	view := viewOf(1, members...)
	r := &registry{self: self, now: func() p2p.View { return view }}
	c := newCarrier(node, r, func(p2p.PeerID, time.Time, bool) {}, patience, patience)
	node.Handle(Protocol, c.serve)
	t.Cleanup(func() {
		c.stop()
		if err := c.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func to(id p2p.PeerID) memberlist.Address { return memberlist.Address{Name: string(id)} }

func receive(t *testing.T, c *carrier) *memberlist.Packet {
	t.Helper()
	select {
	case p := <-c.PacketCh():
		return p
	case <-time.After(patience):
		t.Fatal("no packet came")
		return nil
	}
}

func TestAPacketArrivesAsItWasWritten(t *testing.T) {
	t.Parallel()
	n := newFakeNet()
	a := newTestCarrier(t, n, "a", "a", "b")
	b := newTestCarrier(t, n, "b", "a", "b")
	buf := []byte("hello")
	if _, err := a.WriteToAddress(buf, to("b")); err != nil {
		t.Fatal(err)
	}
	clear(buf) // the buffer is the writer's again
	p := receive(t, b)
	if string(p.Buf) != "hello" || p.From.String() != addr("a").String() {
		t.Errorf("received %q from %v", p.Buf, p.From)
	}
}

func TestPacketsToAPeerThatStallsHoldUpNoOtherAndAreBounded(t *testing.T) {
	t.Parallel()
	n := newFakeNet()
	a := newTestCarrier(t, n, "a", "a", "b", "stalled")
	b := newTestCarrier(t, n, "b", "a", "b", "stalled")
	newTestCarrier(t, n, "stalled", "a", "b", "stalled")
	n.Stall("stalled")
	for i := range 500 {
		if _, err := a.WriteToAddress(fmt.Append(nil, i), to("stalled")); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprint("b", i)
		if _, err := a.WriteToAddress([]byte(want), to("b")); err != nil {
			t.Fatal(err)
		}
		if got := string(receive(t, b).Buf); got != want {
			t.Fatalf("received %q, want %q", got, want)
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	box := a.boxes["stalled"]
	if box == nil || box.senders > maxSending || len(box.queue) != maxQueued {
		t.Fatalf("box of the stalled peer: %+v", box)
	}
	if last := box.queue[maxQueued-1].frame; string(last[1:]) != "499" {
		t.Errorf("the newest packet that waits is %q", last)
	}
}

func TestNothingIsKeptOfAPeerOnceItsPacketsAreSent(t *testing.T) {
	t.Parallel()
	n := newFakeNet()
	a := newTestCarrier(t, n, "a", "a", "b")
	b := newTestCarrier(t, n, "b", "a", "b")
	for range 20 {
		if _, err := a.WriteToAddress([]byte("x"), to("b")); err != nil {
			t.Fatal(err)
		}
	}
	for range 20 {
		receive(t, b)
	}
	eventually(t, "no box is left", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.boxes) == 0
	})
}

func TestMorePacketsThanMemberlistTakesGetLost(t *testing.T) {
	t.Parallel()
	n := newFakeNet()
	a := newTestCarrier(t, n, "a", "a", "b")
	for range 2 * maxReceived {
		if _, err := a.serve(context.Background(), "b", []byte{kindPacket, 1}); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.packets) != maxReceived {
		t.Errorf("%d packets wait", len(a.packets))
	}
}

func TestPacketsToWhoIsNoMemberGetLostWithoutAnError(t *testing.T) {
	t.Parallel()
	n := newFakeNet()
	a := newTestCarrier(t, n, "a", "a", "b")
	newTestCarrier(t, n, "c", "a", "c")
	if _, err := a.WriteToAddress([]byte("x"), to("c")); err != nil {
		t.Error(err)
	}
	if len(a.boxes) != 0 {
		t.Error("it waits to be sent")
	}
	if _, err := a.DialAddressTimeout(to("c"), time.Second); !errors.Is(err, errNotMember) {
		t.Errorf("dial: %v", err)
	}
}

func TestAnExchangeIsOneQuestionAndOneAnswer(t *testing.T) {
	t.Parallel()
	n := newFakeNet()
	a := newTestCarrier(t, n, "a", "a", "b")
	b := newTestCarrier(t, n, "b", "a", "b")
	go func() {
		conn := <-b.StreamCh()
		q, err := io.ReadAll(conn)
		if err != nil {
			t.Error(err)
		}
		for _, p := range [][]byte{[]byte("re: "), q} {
			if _, err := conn.Write(p); err != nil {
				t.Error(err)
			}
		}
		for range 2 {
			if err := conn.Close(); err != nil {
				t.Error(err)
			}
		}
		if _, err := conn.Write([]byte("late")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
	}()
	conn, err := a.DialAddressTimeout(to("b"), patience)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"how ", "are you"} {
		if _, err := io.WriteString(conn, s); err != nil {
			t.Fatal(err)
		}
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "re: how are you" {
		t.Errorf("read %q, %v", got, err)
	}
	if _, err := io.WriteString(conn, "more"); err == nil {
		t.Error("a second question was taken")
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
}

func TestAnExchangeThatIsTooLargeFails(t *testing.T) {
	t.Parallel()
	n := newFakeNet()
	a := newTestCarrier(t, n, "a", "a", "b")
	b := newTestCarrier(t, n, "b", "a", "b")
	conn, err := a.DialAddressTimeout(to("b"), patience)
	if err != nil {
		t.Fatal(err)
	}
	largest := make([]byte, maxExchange)
	if _, err := conn.Write(largest); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte{1}); !errors.Is(err, errExchangeTooLarge) {
		t.Errorf("question: %v", err)
	}
	go func() {
		conn := <-b.StreamCh()
		if _, err := conn.Write(largest); err != nil {
			t.Error(err)
		}
		if _, err := conn.Write([]byte{1}); !errors.Is(err, errExchangeTooLarge) {
			t.Errorf("answer: %v", err)
		}
		_ = conn.Close()
	}()
	if got, err := io.ReadAll(conn); err != nil || len(got) != maxExchange {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
	if _, err := b.serve(context.Background(), "a", append([]byte{kindExchange}, make([]byte, maxExchange+1)...)); err == nil {
		t.Error("a larger question was taken")
	}
}

func TestAnExchangeEndsAtItsDeadlineAndWhenItIsClosed(t *testing.T) {
	t.Parallel()
	n := newFakeNet()
	a := newTestCarrier(t, n, "a", "a", "b")
	newTestCarrier(t, n, "b", "a", "b")
	n.Stall("b")

	conn, err := a.DialAddressTimeout(to("b"), patience)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var timeout net.Error
	if _, err := conn.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("read past the deadline: %v", err)
	}

	conn, err = a.DialAddressTimeout(to("b"), patience)
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
			t.Errorf("read of what is closed: %v", err)
		}
	})
	_ = conn.Close()
	reading.Wait()
}

func TestExchangesBeyondTheLimitAreRefused(t *testing.T) {
	t.Parallel()
	n := newFakeNet()
	a := newTestCarrier(t, n, "a", "a", "b")
	ctx, cancel := context.WithCancel(context.Background())
	var waiting sync.WaitGroup
	for range maxExchanges {
		waiting.Go(func() { _, _ = a.serve(ctx, "b", []byte{kindExchange, 1}) })
	}
	eventually(t, "all are being answered", func() bool { return len(a.exchanges) == maxExchanges })
	if _, err := a.serve(ctx, "b", []byte{kindExchange, 1}); !errors.Is(err, errBusy) {
		t.Errorf("one more: %v", err)
	}
	cancel()
	waiting.Wait()
	if len(a.exchanges) != 0 {
		t.Error("exchanges that ended are counted")
	}
}

func TestRequestsThatAreNoneAreRefused(t *testing.T) {
	t.Parallel()
	n := newFakeNet()
	a := newTestCarrier(t, n, "a", "a", "b")
	for _, test := range []struct {
		from p2p.PeerID
		req  []byte
		want error
	}{
		{"b", []byte{kindKnock}, nil},
		{"b", nil, errFrame},
		{"b", []byte{kindPacket}, errFrame},
		{"b", []byte{kindExchange + 1, 1}, errFrame},
		{"b", append([]byte{kindPacket}, make([]byte, maxPacket+1)...), errFrame},
		{"c", []byte{kindKnock}, errNotMember},
		{"c", []byte{kindPacket, 1}, errNotMember},
		{"c", []byte{kindExchange, 1}, errNotMember},
		{"a", []byte{kindPacket, 1}, errNotMember},
	} {
		if _, err := a.serve(context.Background(), test.from, test.req); !errors.Is(err, test.want) {
			t.Errorf("%.10q from %s: %v, want %v", test.req, test.from, err, test.want)
		}
	}
	if len(a.packets) != 0 {
		t.Error("a packet got through")
	}
}

func TestAClosedCarrierHasSentWhatWaitedAndDoesNothingMore(t *testing.T) {
	t.Parallel()
	n := newFakeNet()
	a := newTestCarrier(t, n, "a", "a", "b")
	b := newTestCarrier(t, n, "b", "a", "b")
	for range maxQueued {
		if _, err := a.WriteToAddress([]byte("x"), to("b")); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Shutdown(); err != nil {
		t.Fatal(err)
	}
	if len(b.packets) != maxQueued {
		t.Errorf("%d packets arrived", len(b.packets))
	}
	if _, err := a.WriteToAddress([]byte("x"), to("b")); !errors.Is(err, errClosed) {
		t.Errorf("write: %v", err)
	}
	if _, err := a.DialAddressTimeout(to("b"), time.Second); !errors.Is(err, errClosed) {
		t.Errorf("dial: %v", err)
	}
	if _, err := a.serve(context.Background(), "b", []byte{kindKnock}); !errors.Is(err, errClosed) {
		t.Errorf("serve: %v", err)
	}
}

func TestAddressesArePrivateAndFollowFromTheId(t *testing.T) {
	t.Parallel()
	seen := make(map[string]bool)
	for i := range 1000 {
		ip, port := addressOf(name(i))
		again, _ := addressOf(name(i))
		if !ip.Equal(again) || !ip.IsPrivate() || port == 0 || seen[ip.String()] {
			t.Fatalf("address of %s: %v port %d", name(i), ip, port)
		}
		seen[ip.String()] = true
	}
}

// A member sends anything: nothing breaks, and the node goes on.
func FuzzServe(f *testing.F) {
	n := newFakeNet()
	var mu sync.Mutex
	var seeds [][]byte
	n.Watch(func(_, _ p2p.PeerID, req []byte) {
		mu.Lock()
		defer mu.Unlock()
		if len(seeds) < 32 {
			seeds = append(seeds, bytes.Clone(req))
		}
	})
	view := func() p2p.View { return viewOf(1, "a", "b", "c") }
	var nodes []*Membership
	for _, id := range []p2p.PeerID{"a", "b"} {
		m, err := Open(Options{Transport: n.Join(id), Members: view, Probe: minProbe})
		if err != nil {
			f.Fatal(err)
		}
		nodes = append(nodes, m)
	}
	for end := time.Now().Add(patience); ; <-time.After(time.Millisecond) {
		mu.Lock()
		enough := len(seeds) >= 32
		mu.Unlock()
		if enough {
			break
		}
		if time.Now().After(end) {
			f.Fatal("no requests to begin with")
		}
	}
	n.Watch(nil)
	f.Cleanup(func() {
		for _, m := range nodes {
			_ = m.Close()
		}
	})
	for _, s := range seeds {
		f.Add(s)
	}
	f.Add([]byte{})
	f.Add([]byte{kindKnock})
	f.Add([]byte{kindExchange})
	f.Fuzz(func(t *testing.T, req []byte) {
		answer, err := nodes[0].carrier.serve(context.Background(), "b", req)
		if err != nil && answer != nil {
			t.Error("an answer and an error")
		}
		if _, err := nodes[0].carrier.serve(context.Background(), "b", []byte{kindKnock}); err != nil {
			t.Errorf("the node does not go on: %v", err)
		}
		for _, n := range nodes[0].list.Members() {
			if id := p2p.PeerID(n.Name); id != "a" && id != "b" && id != "c" {
				t.Errorf("%q is no member", id)
			}
		}
	})
}
