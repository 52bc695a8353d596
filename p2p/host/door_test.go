package host

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peerstore"

	"github.com/cairnfs/cairn/p2p"
)

// doorkeeper is a node with a protocol for strangers.
func doorkeeper(t *testing.T) *Host {
	h := start(t, 100, "127.0.0.1:0")
	h.HandleStranger(join, func(_ context.Context, from p2p.PeerID, req []byte) ([]byte, error) {
		return append([]byte("welcome "+from.Short()+" "), req...), nil
	})
	return h
}

func TestStrangersReachTheJoinProtocolWhileTheDoorIsOpen(t *testing.T) {
	issuer, joiner := doorkeeper(t), start(t, 1, "")
	ctx := within(t)
	_, err := joiner.CallStranger(ctx, issuer.Self(), issuer.Addrs(), join, []byte("hello"))
	wantUnreachable(t, "closed", err)

	issuer.OpenDoor(true)
	eventually(t, "open", func() error {
		got, err := joiner.CallStranger(ctx, issuer.Self(), issuer.Addrs(), join, []byte("hello"))
		if want := "welcome " + joiner.Self().Short() + " hello"; err == nil && string(got) != want {
			t.Errorf("%q, want %q", got, want)
		}
		return err
	})
	if joiner.Connected(issuer.Self()) {
		t.Error("the guest is still connected")
	}
	_, err = joiner.Call(ctx, issuer.Self(), join)
	wantUnreachable(t, "Call of a stranger", err)

	issuer.OpenDoor(false)
	_, err = joiner.CallStranger(ctx, issuer.Self(), issuer.Addrs(), join, []byte("hello"))
	wantUnreachable(t, "closed again", err)
}

func TestStrangersReachNothingElse(t *testing.T) {
	issuer, joiner := doorkeeper(t), start(t, 1, "")
	issuer.OpenDoor(true)
	_, err := joiner.CallStranger(within(t), issuer.Self(), issuer.Addrs(), echo, nil)
	wantRemote(t, "a protocol of members", err)
}

func TestRequestsOfStrangersAreLimited(t *testing.T) {
	issuer, joiner := doorkeeper(t), start(t, 1, "")
	issuer.OpenDoor(true)
	_, err := joiner.CallStranger(within(t), issuer.Self(), issuer.Addrs(), join, make([]byte, StrangerRequest))
	if err != nil {
		t.Error(err)
	}
	_, err = joiner.CallStranger(within(t), issuer.Self(), issuer.Addrs(), join, make([]byte, StrangerRequest+1))
	if !errors.Is(err, p2p.ErrTooLarge) {
		t.Error(err)
	}
}

func TestMembersReachTheJoinProtocolThoughTheDoorIsClosed(t *testing.T) {
	issuer, member := doorkeeper(t), start(t, 1, "127.0.0.1:0")
	introduce(issuer, member)
	if _, err := member.CallStranger(within(t), issuer.Self(), issuer.Addrs(), join, nil); err != nil {
		t.Error(err)
	}
	if !member.Connected(issuer.Self()) {
		t.Error("a member has been disconnected")
	}
}

func TestAStrangerThatBecomesAMemberKeepsItsConnection(t *testing.T) {
	issuer, joiner := doorkeeper(t), start(t, 1, "")
	issuer.OpenDoor(true)
	members := []p2p.Member{{ID: issuer.Self(), Addrs: issuer.Addrs()}, {ID: joiner.Self()}}
	issuer.HandleStranger(join, func(context.Context, p2p.PeerID, []byte) ([]byte, error) {
		issuer.SetMembers(members)
		issuer.OpenDoor(false)
		joiner.SetMembers(members)
		return []byte("member"), nil
	})
	if _, err := joiner.CallStranger(within(t), issuer.Self(), issuer.Addrs(), join, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := issuer.Call(within(t), joiner.Self(), echo); err != nil {
		t.Errorf("the issuer calls the new member: %v", err)
	}
	if _, err := joiner.Call(within(t), issuer.Self(), echo); err != nil {
		t.Errorf("the new member calls the issuer: %v", err)
	}
}

// lurk connects a stranger that wants nothing.
func lurk(t *testing.T, issuer, joiner *Host) (network.Conn, error) {
	t.Helper()
	t.Cleanup(func() { joiner.gate.guest(issuer.Self()) })
	joiner.gate.guest(issuer.Self())
	addrs, err := parseAddrs(issuer.Addrs())
	if err != nil {
		t.Fatal(err)
	}
	joiner.peers.AddAddrs(peerID(t, issuer), addrs, peerstore.TempAddrTTL)
	return joiner.swarm.DialPeer(network.WithForceDirectDial(within(t), "test"), peerID(t, issuer))
}

func connections(issuer *Host) int { return len(issuer.swarm.Conns()) }

func TestNoMoreThanEightStrangersAreThereAtOnceAndAllLeaveWhenTheDoorCloses(t *testing.T) {
	issuer := doorkeeper(t)
	issuer.OpenDoor(true)
	for i := range byte(strangersAtOnce) {
		if _, err := lurk(t, issuer, start(t, 1+i, "")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "eight are in", func() error {
		if n := connections(issuer); n != strangersAtOnce {
			return errors.New("not all are in")
		}
		return nil
	})
	_, err := start(t, 50, "").CallStranger(within(t), issuer.Self(), issuer.Addrs(), join, nil)
	wantUnreachable(t, "the ninth", err)

	member := start(t, 51, "127.0.0.1:0")
	introduce(issuer, member)
	if _, err := member.Call(within(t), issuer.Self(), echo); err != nil {
		t.Errorf("a member: %v", err)
	}
	issuer.OpenDoor(false)
	if n := connections(issuer); n != 1 {
		t.Errorf("%d connections, the member's is one", n)
	}
}

func TestAStrangerHasOneStreamAndTenSeconds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds: left out with -short, which .ci/run does not set")
	}
	issuer, joiner := doorkeeper(t), start(t, 1, "")
	issuer.OpenDoor(true)
	c, err := lurk(t, issuer, joiner)
	if err != nil {
		t.Fatal(err)
	}
	first, err := c.NewStream(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := negotiate(first, line{issuer.Self(), join}); err != nil {
		t.Fatal(err)
	}
	second, err := c.NewStream(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := negotiate(second, line{issuer.Self(), join}); err == nil {
		t.Error("a second stream")
	}
	if _, err := io.ReadAll(first); err == nil {
		t.Error("the first ends as if it had been served")
	}
	eventually(t, "disconnected", func() error {
		if connections(issuer) != 0 {
			return errors.New("still connected")
		}
		return nil
	})
}

// Rule 20: who is no member any more can ask why, and nothing else.
func TestWhoIsNoMemberReachesWhatAnyoneMayAsk(t *testing.T) {
	former, gate := start(t, 1, "127.0.0.1:0"), doorkeeper(t)
	introduce(former, gate)
	gate.SetMembers(nil) // former still takes it for a member
	const hello = p2p.Protocol("/test/hello/1")
	gate.HandleAnyone(hello, func(_ context.Context, from p2p.PeerID, _ []byte) ([]byte, error) {
		return []byte("you were removed"), nil
	})
	for range strangerTries / 2 {
		_, err := former.Call(within(t), gate.Self(), echo)
		if !errors.Is(err, p2p.ErrNotServed) {
			t.Errorf("a protocol of members: %v", err)
		}
	}
	if _, err := former.Call(within(t), gate.Self(), join); !errors.Is(err, p2p.ErrNotServed) {
		t.Errorf("joining through a closed door: %v", err)
	}
	answer, err := former.Call(within(t), gate.Self(), hello)
	if err != nil || string(answer) != "you were removed" {
		t.Errorf("%q, %v", answer, err)
	}
}
