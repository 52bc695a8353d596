package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"github.com/cairnfs/cairn/p2p"
)

const (
	echo p2p.Protocol = "/test/echo/1"
	join p2p.Protocol = "/test/join/1"

	patience = 60 * time.Second // for what must happen
)

func seed(n byte) []byte { return bytes.Repeat([]byte{n}, 32) }

// start opens a node that listens on loopback and echoes.
func start(t testing.TB, n byte, listen string, preferred ...security) *Host {
	t.Helper()
	if len(preferred) == 0 {
		preferred = []security{secureTLS, secureNoise}
	}
	h, err := open(Options{Key: seed(n), Listen: listen}, preferred...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	h.Handle(echo, func(_ context.Context, from p2p.PeerID, req []byte) ([]byte, error) {
		return append([]byte(from.Short()+" "), req...), nil
	})
	return h
}

// introduce makes nodes members with each other.
func introduce(hosts ...*Host) []p2p.Member {
	var members []p2p.Member
	for _, h := range hosts {
		members = append(members, p2p.Member{ID: h.Self(), Addrs: h.Addrs()})
	}
	for _, h := range hosts {
		h.SetMembers(members)
	}
	return members
}

func pair(t testing.TB) (a, b *Host) {
	a, b = start(t, 1, "127.0.0.1:0"), start(t, 2, "127.0.0.1:0")
	introduce(a, b)
	return a, b
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func wantUnreachable(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, p2p.ErrUnreachable) {
		t.Errorf("%s: %v", what, err)
	}
}

func wantRemote(t *testing.T, what string, err error) {
	t.Helper()
	var remote *p2p.RemoteError
	if !errors.As(err, &remote) {
		t.Errorf("%s: %v", what, err)
	}
}

// eventually polls until f succeeds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestTheIdFollowsFromTheKey(t *testing.T) {
	h := start(t, 1, "")
	id, err := PeerIDOf(seed(1))
	if err != nil || id != h.Self() || !strings.HasPrefix(string(id), "12D3Koo") {
		t.Errorf("%s, %s, %v", id, h.Self(), err)
	}
	if _, err := PeerIDOf(seed(1)[:31]); err == nil {
		t.Error("a key of 31 bytes")
	}
	if len(h.Addrs()) != 0 {
		t.Errorf("listens on %v", h.Addrs())
	}
}

func TestMembersCallEachOther(t *testing.T) {
	a, b := pair(t)
	ctx := within(t)
	for _, c := range []struct{ from, to *Host }{{a, b}, {b, a}, {a, a}} {
		got, err := c.from.Call(ctx, c.to.Self(), echo, []byte("he"), []byte("llo"))
		if want := c.from.Self().Short() + " hello"; err != nil || string(got) != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	if !a.Connected(b.Self()) || !strings.HasPrefix(a.RemoteAddr(b.Self()), "/ip4/127.0.0.1/tcp/") {
		t.Errorf("connected %v at %q", a.Connected(b.Self()), a.RemoteAddr(b.Self()))
	}
	if sent, received := a.Traffic(); sent == 0 || received == 0 {
		t.Errorf("traffic of %d and %d bytes", sent, received)
	}
}

func TestANodeThatDoesNotListenCallsAndIsCalledOverTheSameConnection(t *testing.T) {
	a, b := start(t, 1, "127.0.0.1:0"), start(t, 2, "")
	introduce(a, b)
	ctx := within(t)
	if _, err := b.Call(ctx, a.Self(), echo); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Call(ctx, b.Self(), echo); err != nil {
		t.Error(err)
	}
}

func TestProtocolsThatNobodyHandlesAreRefused(t *testing.T) {
	a, b := pair(t)
	ctx := within(t)
	for _, to := range []*Host{a, b} {
		_, err := a.Call(ctx, to.Self(), "/test/unknown/1")
		wantRemote(t, "unknown", err)
	}
	if _, err := a.Call(ctx, b.Self(), echo); err != nil {
		t.Fatal(err)
	}
	b.Handle(echo, nil)
	_, err := a.Call(ctx, b.Self(), echo)
	wantRemote(t, "withdrawn", err)
}

func TestLargeMessagesArriveWhole(t *testing.T) {
	a, b := pair(t)
	b.Handle(echo, func(_ context.Context, _ p2p.PeerID, req []byte) ([]byte, error) { return req, nil })
	ctx := within(t)
	req := make([]byte, p2p.MaxMessage)
	for i := range req {
		req[i] = byte(i * i >> 7)
	}
	var tasks sync.WaitGroup
	for range 4 {
		tasks.Go(func() {
			got, err := a.Call(ctx, b.Self(), echo, req)
			if err != nil || !bytes.Equal(got, req) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
		})
	}
	tasks.Wait()
	if _, err := a.Call(ctx, b.Self(), echo, req, []byte{1}); !errors.Is(err, p2p.ErrTooLarge) {
		t.Errorf("a byte more: %v", err)
	}
}

func TestTLSAndNoiseAreBothAccepted(t *testing.T) {
	a := start(t, 1, "127.0.0.1:0")
	for i, kind := range []security{secureTLS, secureNoise} {
		b := start(t, byte(2+i), "127.0.0.1:0", kind)
		introduce(a, b)
		if _, err := b.Call(within(t), a.Self(), echo); err != nil {
			t.Error(err)
		}
		for _, c := range b.swarm.Conns() {
			if got, want := c.ConnState().Security, []string{"/tls/1.0.0", "/noise"}[i]; string(got) != want {
				t.Errorf("security %s, want %s", got, want)
			}
		}
	}
	c := start(t, 9, "127.0.0.1:0")
	introduce(a, c)
	if _, err := c.Call(within(t), a.Self(), echo); err != nil {
		t.Fatal(err)
	}
	if got := c.swarm.Conns()[0].ConnState().Security; got != "/tls/1.0.0" {
		t.Errorf("%s is preferred", got)
	}
}

func TestSimultaneousDialsLeaveBothSidesConnected(t *testing.T) {
	hosts := []*Host{start(t, 1, "127.0.0.1:0"), start(t, 2, "127.0.0.1:0"), start(t, 3, "127.0.0.1:0")}
	introduce(hosts...)
	ctx := within(t)
	var tasks sync.WaitGroup
	for _, from := range hosts {
		for _, to := range hosts {
			for i := range 5 {
				tasks.Go(func() {
					if _, err := from.Call(ctx, to.Self(), echo, []byte{byte(i)}); err != nil {
						t.Error(err)
					}
				})
			}
		}
	}
	tasks.Wait()
}

func TestNobodyButMembersPassesTheGate(t *testing.T) {
	a, b := start(t, 1, "127.0.0.1:0"), start(t, 2, "127.0.0.1:0")
	b.SetMembers([]p2p.Member{{ID: a.Self(), Addrs: a.Addrs()}})
	_, err := b.Call(within(t), a.Self(), echo)
	wantUnreachable(t, "by one who is not a member there", err)
	_, err = a.Call(within(t), b.Self(), echo)
	wantUnreachable(t, "of one who is not a member here", err)
	if a.Connected(b.Self()) {
		t.Error("connected")
	}
}

func TestTheKeyDecidesWhoAPeerIsNotItsAddress(t *testing.T) {
	a, b, c := start(t, 1, "127.0.0.1:0"), start(t, 2, "127.0.0.1:0"), start(t, 3, "127.0.0.1:0")
	introduce(a, b, c)
	a.SetMembers([]p2p.Member{{ID: b.Self(), Addrs: c.Addrs()}})
	_, err := a.Call(within(t), b.Self(), echo)
	wantUnreachable(t, "another node at the address", err)
}

func TestRemovalClosesLiveConnectionsAndEndsHandlersAtOnce(t *testing.T) {
	a, b := pair(t)
	started, ended := make(chan struct{}), make(chan struct{})
	a.Handle("/test/wait/1", func(ctx context.Context, _ p2p.PeerID, _ []byte) ([]byte, error) {
		close(started)
		<-ctx.Done()
		close(ended)
		return nil, nil
	})
	failed := make(chan error, 1)
	go func() { _, err := b.Call(within(t), a.Self(), "/test/wait/1"); failed <- err }()
	<-started
	a.SetMembers(nil)
	if a.Connected(b.Self()) {
		t.Error("still connected when SetMembers returns")
	}
	wantUnreachable(t, "the call on its way", <-failed)
	<-ended
	_, err := b.Call(within(t), a.Self(), echo)
	wantUnreachable(t, "a call afterwards", err)
	_, err = a.Call(within(t), b.Self(), echo)
	wantUnreachable(t, "a call to it", err)

	introduce(a, b)
	eventually(t, "a member again", func() error { _, err := b.Call(within(t), a.Self(), echo); return err })
}

func TestAMemberThatMovesIsFoundAtItsNewAddress(t *testing.T) {
	a, b := pair(t)
	if _, err := a.Call(within(t), b.Self(), echo); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	again := start(t, 2, "127.0.0.1:0")
	introduce(a, again)
	eventually(t, "moved", func() error { _, err := a.Call(within(t), again.Self(), echo); return err })
}

func TestAPeerThatRestartsOnTheSamePortIsReachedWithinASecond(t *testing.T) {
	a, b := pair(t)
	listen := strings.Replace(strings.TrimPrefix(b.Addrs()[0], "/ip4/"), "/tcp/", ":", 1)
	for range 3 {
		if _, err := a.Call(within(t), b.Self(), echo); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		for range 20 { // callers that do not give up
			_, err := a.Call(within(t), b.Self(), echo)
			wantUnreachable(t, "while it is away", err)
		}
		b = start(t, 2, listen)
		introduce(a, b)
		began := time.Now()
		eventually(t, "back", func() error { _, err := a.Call(within(t), b.Self(), echo); return err })
		if d := time.Since(began); d > time.Second {
			t.Logf("reached after %v", d) // a slow machine, or a fault: see redialPause
		}
	}
}

// vanishing passes bytes between a dialler and a node until it is told to pass no
// more, as a cable does that is pulled: no connection is closed.
type vanishing struct {
	net.Listener
	gone chan struct{}
}

func vanish(t *testing.T, target string) (*vanishing, string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v := &vanishing{Listener: l, gone: make(chan struct{})}
	pass := func(to, from net.Conn) {
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			select {
			case <-v.gone:
				return
			default:
			}
			if err != nil {
				to.Close()
				return
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", target)
			if err != nil {
				return
			}
			t.Cleanup(func() { in.Close(); out.Close() })
			go pass(in, out)
			go pass(out, in)
		}
	}()
	t.Cleanup(func() { l.Close() })
	return v, strings.Replace(l.Addr().String(), ":", "/tcp/", 1)
}

func TestAPeerThatVanishesHoldsCallersUntilTheirDeadlineAndIsGivenUp(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as the keepalive: left out with -short, which .ci/run does not set")
	}
	a, b := pair(t)
	v, addr := vanish(t, strings.Replace(strings.TrimPrefix(b.Addrs()[0], "/ip4/"), "/tcp/", ":", 1))
	a.SetMembers([]p2p.Member{{ID: b.Self(), Addrs: []string{"/ip4/" + addr}}})
	eventually(t, "before", func() error { _, err := a.Call(within(t), b.Self(), echo); return err })
	close(v.gone)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Call(ctx, b.Self(), echo); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a deadline: %v", err)
	}
	_, err := a.Call(within(t), b.Self(), echo)
	wantUnreachable(t, "without", err)
	eventually(t, "given up", func() error {
		if a.Connected(b.Self()) {
			return errors.New("still connected")
		}
		return nil
	})
}

func peerID(t *testing.T, h *Host) peer.ID {
	id, err := peer.Decode(string(h.Self()))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestAClosedHostFailsCallsAndEndsHandlers(t *testing.T) {
	a, b := pair(t)
	started := make(chan struct{})
	b.Handle("/test/wait/1", func(ctx context.Context, _ p2p.PeerID, _ []byte) ([]byte, error) {
		close(started)
		<-ctx.Done()
		return nil, nil
	})
	failed := make(chan error, 1)
	go func() { _, err := a.Call(within(t), b.Self(), "/test/wait/1"); failed <- err }()
	<-started
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	wantUnreachable(t, "on its way", <-failed)
	_, err := b.Call(within(t), a.Self(), echo)
	wantUnreachable(t, "by the closed one", err)
	_, err = b.CallStranger(within(t), a.Self(), a.Addrs(), join, nil)
	wantUnreachable(t, "by the closed one, to a stranger", err)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
}

func TestAnAddressInUseIsAnErrorOfOpen(t *testing.T) {
	a := start(t, 1, "127.0.0.1:0")
	listen := strings.Replace(strings.TrimPrefix(a.Addrs()[0], "/ip4/"), "/tcp/", ":", 1)
	if h, err := Open(Options{Key: seed(2), Listen: listen}); err == nil {
		h.Close()
		t.Error("two nodes on one port")
	}
	for _, listen := range []string{"nonsense", "127.0.0.1:99999", "no such host:1"} {
		if h, err := Open(Options{Key: seed(2), Listen: listen}); err == nil {
			h.Close()
			t.Errorf("listens on %q", listen)
		}
	}
}

func TestAddressesAreThoseOfTheInterfacesLoopbackLast(t *testing.T) {
	for _, listen := range []string{":0", "0.0.0.0:0", "127.0.0.1:0", "localhost:0"} {
		addrs := start(t, 1, listen).Addrs()
		if len(addrs) == 0 {
			t.Errorf("%s: no addresses", listen)
		}
		for i, a := range addrs {
			m, err := ma.NewMultiaddr(a)
			if err != nil || strings.HasSuffix(a, "/tcp/0") || strings.Contains(a, "/0.0.0.0/") || strings.Contains(a, "/p2p/") {
				t.Errorf("%s: %s, %v", listen, a, err)
			}
			if i > 0 && err == nil && rank(m) == 0 && rank(ma.StringCast(addrs[0])) == 1 {
				t.Errorf("%s: loopback first: %v", listen, addrs)
			}
		}
	}
}

func TestMDNSAddsAddressesOfMembersOnly(t *testing.T) {
	a, b, c := start(t, 1, "127.0.0.1:0"), start(t, 2, "127.0.0.1:0"), start(t, 3, "127.0.0.1:0")
	a.SetMembers([]p2p.Member{{ID: b.Self()}})
	b.SetMembers([]p2p.Member{{ID: a.Self()}})
	for _, h := range []*Host{b, c} {
		addrs, err := parseAddrs(h.Addrs())
		if err != nil {
			t.Fatal(err)
		}
		found{a}.HandlePeerFound(peer.AddrInfo{ID: peerID(t, h), Addrs: addrs})
	}
	if n := len(a.peers.Addrs(peerID(t, c))); n != 0 {
		t.Errorf("%d addresses of a stranger", n)
	}
	if _, err := a.Call(within(t), b.Self(), echo); err != nil {
		t.Error(err)
	}
}

func TestMDNSStartsAndStopsWithTheHost(t *testing.T) {
	h, err := Open(Options{Key: seed(1), Listen: ":0", MDNS: true, Cluster: strings.Repeat("0a", 16)})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
}

func TestAddressesThatCannotBeReadAreLeftOut(t *testing.T) {
	a, b := pair(t)
	bad := []string{"nonsense", "/ip4/1.2.3.4.5/tcp/1", "", "/p2p/" + string(b.Self())}
	a.SetMembers([]p2p.Member{{ID: "nonsense"}, {ID: b.Self(), Addrs: append(bad, b.Addrs()[0]+"/p2p/"+string(b.Self()))}})
	if _, err := a.Call(within(t), b.Self(), echo); err != nil {
		t.Error(err)
	}
}

// reportCPU reports the processor time of both ends, for each GB: on a machine that
// others use, wall time says little. size is the bytes of an operation.
func reportCPU(b *testing.B, size int) (stop func()) {
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	began := used()
	return func() {
		b.ReportMetric((used()-began).Seconds()*1e9/float64(b.N*size), "cpu-s/GB")
	}
}

// The benchmarks move 1 MiB for each operation: as a call, and as bytes written to
// a stream of libp2p and read from it.
func BenchmarkCall1MiB(b *testing.B) {
	answer := make([]byte, 1<<20)
	for _, callers := range []int{1, 8} {
		b.Run(fmt.Sprint(callers), func(b *testing.B) {
			x, y := pair(b)
			y.Handle(echo, func(context.Context, p2p.PeerID, []byte) ([]byte, error) { return answer, nil })
			b.SetBytes(1 << 20)
			var tasks sync.WaitGroup
			work := make(chan struct{}, callers)
			defer reportCPU(b, 1<<20)()
			for range callers {
				tasks.Go(func() {
					for range work {
						if _, err := x.Call(context.Background(), y.Self(), echo); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for b.Loop() {
				work <- struct{}{}
			}
			close(work)
			tasks.Wait()
		})
	}
}

func BenchmarkCallSmall(b *testing.B) {
	x, y := pair(b)
	for b.Loop() {
		if _, err := x.Call(b.Context(), y.Self(), echo, []byte("small")); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPlainStream1MiB is what a stream of libp2p carries without requests.
func BenchmarkPlainStream1MiB(b *testing.B) {
	x, y := pair(b)
	read := make(chan error, 1)
	y.swarm.SetStreamHandler(func(s network.Stream) {
		_, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, s, make([]byte, 128<<10))
		read <- err
	})
	s, err := x.swarm.NewStream(b.Context(), y.swarm.LocalPeer())
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 1<<20)
	b.SetBytes(1 << 20)
	defer reportCPU(b, 1<<20)()
	for b.Loop() {
		if _, err := s.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.CloseWrite(); err != nil {
		b.Fatal(err)
	}
	if err := <-read; err != nil {
		b.Fatal(err)
	}
}
