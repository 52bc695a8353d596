package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"

	"github.com/cairnfs/cairn/p2p"
)

// of returns the addresses of a node that are of a kind: /tcp/ or /udp/.
func of(h *Host, kind string) []string {
	return slices.DeleteFunc(h.Addrs(), func(a string) bool { return !strings.Contains(a, kind) })
}

// quicPair returns two members that know each other's addresses of QUIC only.
func quicPair(t *testing.T) (a, b *Host) {
	a, b = start(t, 1, "127.0.0.1:0"), start(t, 2, "127.0.0.1:0")
	know(a, b, "/udp/")
	know(b, a, "/udp/")
	return a, b
}

// know makes a node know another as a member with addresses of a kind.
func know(h, other *Host, kind string) {
	h.SetMembers([]p2p.Member{{ID: other.Self(), Addrs: of(other, kind)}})
}

func call(t *testing.T, from, to *Host) {
	t.Helper()
	if _, err := from.Call(within(t), to.Self(), echo); err != nil {
		t.Error(err)
	}
}

func TestANodeListensByTCPAndByQUICOnTheSamePort(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", ":0"} {
		h := start(t, 1, listen)
		tcp, udp := of(h, "/tcp/"), of(h, "/udp/")
		if len(tcp) == 0 || len(tcp) != len(udp) || !slices.Equal(h.Addrs()[:1], tcp[:1]) {
			t.Fatalf("%v", h.Addrs())
		}
		for i := range tcp {
			if want := strings.Replace(tcp[i], "/tcp/", "/udp/", 1) + "/quic-v1"; udp[i] != want {
				t.Errorf("%s, should be %s", udp[i], want)
			}
		}
	}
}

func TestTCPIsPreferred(t *testing.T) {
	a, b := pair(t)
	call(t, a, b)
	if at := a.RemoteAddr(b.Self()); !strings.Contains(at, "/tcp/") {
		t.Errorf("connected at %s", at)
	}
	if tcp, quic := a.ways(peerID(t, b)); !tcp || quic {
		t.Errorf("TCP %v, QUIC %v", tcp, quic)
	}
}

func TestMembersCallEachOtherByQUICWhereTCPDoesNotAnswer(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // connects, and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	a, b := start(t, 1, "127.0.0.1:0"), start(t, 2, "127.0.0.1:0")
	addr := strings.Replace(silent.Addr().String(), ":", "/tcp/", 1)
	a.SetMembers([]p2p.Member{{ID: b.Self(), Addrs: append([]string{"/ip4/" + addr}, of(b, "/udp/")...)}})
	b.SetMembers([]p2p.Member{{ID: a.Self()}}) // calls over the connection that it has
	call(t, a, b)
	call(t, b, a)
	if at := a.RemoteAddr(b.Self()); !strings.HasSuffix(at, "/quic-v1") {
		t.Errorf("connected at %s", at)
	}
	b.Handle(echo, func(_ context.Context, _ p2p.PeerID, req []byte) ([]byte, error) { return req, nil })
	sent, received := a.Traffic()
	req := bytes.Repeat([]byte("0123456789abcdef"), p2p.MaxMessage/16)
	if got, err := a.Call(within(t), b.Self(), echo, req); err != nil || !bytes.Equal(got, req) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	nowSent, nowReceived := a.Traffic()
	if nowSent-sent < p2p.MaxMessage || nowReceived-received < p2p.MaxMessage {
		t.Errorf("%d and %d bytes are counted", nowSent-sent, nowReceived-received)
	}
}

func TestAPeerThatRestartsIsReachedByQUIC(t *testing.T) {
	a, b := quicPair(t)
	listen := "127.0.0.1:" + strings.Split(of(b, "/udp/")[0], "/")[4]
	for range 2 {
		call(t, a, b)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		b = start(t, 2, listen)
		know(a, b, "/udp/")
		know(b, a, "/udp/")
		eventually(t, "back", func() error { _, err := a.Call(within(t), b.Self(), echo); return err })
	}
}

// udpRelay passes packets between a dialler and a node until told to pass none.
func udpRelay(t *testing.T, target string) (addr string, cut func()) {
	t.Helper()
	in, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	out, err := net.Dial("udp", target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); out.Close() })
	gone := make(chan struct{})
	from := make(chan net.Addr, 1)
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, a, err := in.ReadFrom(buf)
			if err != nil {
				return
			}
			select {
			case from <- a:
			default:
			}
			select {
			case <-gone:
			default:
				_, _ = out.Write(buf[:n]) // packets may be lost
			}
		}
	}()
	go func() {
		buf := make([]byte, 64<<10)
		to := <-from
		for {
			n, err := out.Read(buf)
			if err != nil {
				return
			}
			select {
			case <-gone:
			default:
				_, _ = in.WriteTo(buf[:n], to) // packets may be lost
			}
		}
	}()
	return in.LocalAddr().String(), func() { close(gone) }
}

func TestAPeerThatVanishesIsGivenUpByQUICAsSoonAsByTCP(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as the question whether it lives: left out with -short, which .ci/run does not set")
	}
	a, b := quicPair(t)
	addr, cut := udpRelay(t, "127.0.0.1:"+strings.Split(of(b, "/udp/")[0], "/")[4])
	at := "/ip4/" + strings.Replace(addr, ":", "/udp/", 1) + "/quic-v1"
	a.SetMembers([]p2p.Member{{ID: b.Self(), Addrs: []string{at}}})
	call(t, a, b)
	time.Sleep(askEvery + negotiateTimeout/2)
	if !a.Connected(b.Self()) {
		t.Fatal("a connection that lives is closed")
	}
	cut()
	began := time.Now()
	eventually(t, "given up", func() error {
		if a.Connected(b.Self()) {
			return errors.New("still connected")
		}
		return nil
	})
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("given up after %v", took)
	}
}

func TestQUICIsLeftForTCPWhenThatAnswersAndCallsUnderWayEndWell(t *testing.T) {
	a, b := quicPair(t)
	a.linger, b.linger = 4*time.Second, 4*time.Second
	for _, h := range []*Host{a, b} {
		h.Handle("/test/slow/1", func(context.Context, p2p.PeerID, []byte) ([]byte, error) {
			time.Sleep(time.Second)
			return nil, nil
		})
	}
	call(t, a, b)
	call(t, b, a)
	slow := make(chan error, 2)
	go func() { _, err := a.Call(within(t), b.Self(), "/test/slow/1"); slow <- err }()
	go func() { _, err := b.Call(within(t), a.Self(), "/test/slow/1"); slow <- err }()
	time.Sleep(100 * time.Millisecond) // so that they are on their way, or else prove less
	a.tryTCP(peerID(t, b))
	if tcp, _ := a.ways(peerID(t, b)); tcp {
		t.Fatal("by TCP, of which no address is known")
	}
	know(a, b, "/")
	a.tryTCP(peerID(t, b))
	if tcp, quic := a.ways(peerID(t, b)); !tcp || !quic {
		t.Fatalf("TCP %v, QUIC %v", tcp, quic)
	}
	before := over(a, "/udp/")
	call(t, a, b)
	if over(a, "/tcp/") == 0 || over(a, "/udp/") > before {
		t.Errorf("streams: %d over TCP, %d over QUIC, before %d", over(a, "/tcp/"), over(a, "/udp/"), before)
	}
	for range 2 {
		if err := <-slow; err != nil {
			t.Errorf("a call under way: %v", err)
		}
	}
	for _, h := range []*Host{a, b} {
		other := map[*Host]*Host{a: b, b: a}[h]
		eventually(t, "QUIC is left", func() error {
			call(t, h, other)
			if tcp, quic := h.ways(peerID(t, other)); !tcp || quic {
				return fmt.Errorf("TCP %v, QUIC %v", tcp, quic)
			}
			return nil
		})
	}
}

// over counts the streams over connections of a kind.
func over(h *Host, kind string) (n int) {
	for _, c := range h.swarm.Conns() {
		if strings.Contains(c.RemoteMultiaddr().String(), kind) {
			n += len(c.GetStreams())
		}
	}
	return n
}

func TestAPeerThatIsDownIsNotLookedForByQUIC(t *testing.T) {
	a, b := pair(t)
	call(t, a, b)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "disconnected, and noted", func() error {
		a.mu.Lock()
		_, noted := a.lost[b.Self()]
		a.mu.Unlock()
		if !noted || a.Connected(b.Self()) {
			return errors.New("still connected")
		}
		return nil
	})
	err := a.dial(within(t), peerID(t, b))
	if err == nil || strings.Contains(err.Error(), "quic") {
		t.Errorf("%v", err)
	}
	a.mu.Lock()
	a.lost[b.Self()] = time.Now().Add(-2 * downFor)
	a.mu.Unlock()
	if err := a.dial(within(t), peerID(t, b)); err == nil || !strings.Contains(err.Error(), "quic") {
		t.Errorf("after a while: %v", err)
	}
}

func TestTheGateHoldsForQUIC(t *testing.T) {
	a, b := start(t, 1, "127.0.0.1:0"), start(t, 2, "127.0.0.1:0")
	know(b, a, "/udp/")
	_, err := b.Call(within(t), a.Self(), echo)
	wantUnreachable(t, "by one who is not a member there", err)
	know(a, b, "/udp/")
	eventually(t, "members", func() error { _, err := b.Call(within(t), a.Self(), echo); return err })
	a.SetMembers(nil)
	if a.Connected(b.Self()) {
		t.Error("still connected when SetMembers returns")
	}

	c := start(t, 3, "127.0.0.1:0")
	know(c, b, "/udp/")
	b.SetMembers([]p2p.Member{{ID: c.Self(), Addrs: of(a, "/udp/")}})
	_, err = b.Call(within(t), c.Self(), echo)
	wantUnreachable(t, "another node at the address", err)
}

func TestStrangersComeInByQUICWhileTheDoorIsOpen(t *testing.T) {
	issuer, joiner := doorkeeper(t), start(t, 1, "")
	_, err := joiner.CallStranger(within(t), issuer.Self(), of(issuer, "/udp/"), join, nil)
	wantUnreachable(t, "closed", err)
	issuer.OpenDoor(true)
	eventually(t, "open", func() error {
		_, err := joiner.CallStranger(within(t), issuer.Self(), of(issuer, "/udp/"), join, nil)
		return err
	})
	if joiner.Connected(issuer.Self()) {
		t.Error("the guest is still connected")
	}
	_, err = joiner.CallStranger(within(t), issuer.Self(), of(issuer, "/udp/"), echo, nil)
	wantRemote(t, "a protocol of members", err)
}

func TestAPortOfUDPThatIsInUseCostsQUICOnly(t *testing.T) {
	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	h := start(t, 1, taken.LocalAddr().String())
	if len(of(h, "/udp/")) > 0 || len(of(h, "/tcp/")) != 1 {
		t.Errorf("listens on %v", h.Addrs())
	}
	other := start(t, 2, "127.0.0.1:0")
	introduce(h, other)
	call(t, other, h)
	h.listenQUIC(true) // as for a port that the system has chosen
	if len(of(h, "/udp/")) != 1 {
		t.Errorf("listens on %v", h.Addrs())
	}
	know(other, h, "/udp/")
	call(t, other, h)
}

func TestAddressesAreToldInTheSameOrderEachTime(t *testing.T) {
	h := start(t, 1, ":0")
	first := h.Addrs()
	for range 10 {
		h.swarm.ListenClose(ma.StringCast("/ip4/127.0.0.1/tcp/1")) // of none, but the order is made anew
		if again := h.Addrs(); !slices.Equal(again, first) {
			t.Fatalf("%v, then %v", first, again)
		}
	}
}
