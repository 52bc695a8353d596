package memnet_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/memnet"
)

const echo p2p.Protocol = "/test/echo/1"

func echoes(_ context.Context, from p2p.PeerID, req []byte) ([]byte, error) {
	return append([]byte(from+": "), req...), nil
}

func pair() (n *memnet.Network, a, b *memnet.Transport) {
	n = memnet.New()
	a, b = n.Join("a"), n.Join("b")
	b.Handle(echo, echoes)
	return n, a, b
}

func TestACallReachesTheHandlerWithTheCallersId(t *testing.T) {
	_, a, _ := pair()
	got, err := a.Call(t.Context(), "b", echo, []byte("he"), []byte("llo"))
	if err != nil || string(got) != "a: hello" {
		t.Fatalf("Call = %q, %v", got, err)
	}
}

func TestHandlersGetACopyOfTheRequestAndCallersOneOfTheAnswer(t *testing.T) {
	_, a, b := pair()
	kept := []byte("answer")
	b.Handle(echo, func(_ context.Context, _ p2p.PeerID, req []byte) ([]byte, error) {
		req[0] = 'x'
		return kept, nil
	})
	req := []byte("request")
	got, err := a.Call(t.Context(), "b", echo, req)
	if err != nil {
		t.Fatal(err)
	}
	got[0] = 'x'
	if string(req) != "request" || string(kept) != "answer" {
		t.Fatalf("request %q, answer %q have changed", req, kept)
	}
}

func TestErrorsOfHandlersAreRemoteErrors(t *testing.T) {
	_, a, b := pair()
	b.Handle(echo, func(context.Context, p2p.PeerID, []byte) ([]byte, error) { return nil, errors.New("no") })
	for _, p := range []p2p.Protocol{echo, "/test/unknown/1"} {
		_, err := a.Call(t.Context(), "b", p)
		var remote *p2p.RemoteError
		if !errors.As(err, &remote) || remote.Peer != "b" {
			t.Errorf("%s: error %v", p, err)
		}
	}
}

func TestMessagesBeyondTheLimitAreRefused(t *testing.T) {
	_, a, b := pair()
	large := make([]byte, p2p.MaxMessage)
	if _, err := a.Call(t.Context(), "b", echo, large, []byte("1")); !errors.Is(err, p2p.ErrTooLarge) {
		t.Errorf("request: %v", err)
	}
	b.Handle(echo, func(_ context.Context, _ p2p.PeerID, req []byte) ([]byte, error) { return append(req, 1), nil })
	if _, err := a.Call(t.Context(), "b", echo, large); !errors.Is(err, p2p.ErrTooLarge) {
		t.Errorf("answer: %v", err)
	}
}

func TestCutLinksCarryNothingUntilTheyHeal(t *testing.T) {
	n, a, _ := pair()
	for name, step := range map[string]struct{ cut, heal func() }{
		"Cut":     {func() { n.Cut("b", "a") }, func() { n.Heal("a", "b") }},
		"Isolate": {func() { n.Isolate("b") }, n.HealAll},
	} {
		step.cut()
		if _, err := a.Call(t.Context(), "b", echo); !errors.Is(err, p2p.ErrUnreachable) {
			t.Errorf("%s: %v", name, err)
		}
		step.heal()
		if _, err := a.Call(t.Context(), "b", echo); err != nil {
			t.Errorf("%s, healed: %v", name, err)
		}
	}
}

func TestANodeThatLeavesFailsTheCallsItIsAnswering(t *testing.T) {
	n, a, b := pair()
	ended := make(chan error, 1)
	started := make(chan struct{})
	b.Handle(echo, func(ctx context.Context, _ p2p.PeerID, _ []byte) ([]byte, error) {
		close(started)
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, nil
	})
	failed := make(chan error, 1)
	go func() {
		_, err := a.Call(t.Context(), "b", echo)
		failed <- err
	}()
	<-started
	n.Leave("b")
	if err := <-failed; !errors.Is(err, p2p.ErrUnreachable) {
		t.Errorf("the call on its way: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the handler's context goes on")
	}
	if _, err := b.Call(t.Context(), "a", echo); !errors.Is(err, p2p.ErrUnreachable) {
		t.Errorf("a call by the node that left: %v", err)
	}

	again := n.Join("b")
	again.Handle(echo, echoes)
	if _, err := a.Call(t.Context(), "b", echo); err != nil {
		t.Errorf("the node that started anew: %v", err)
	}
	if _, err := b.Call(t.Context(), "a", echo); !errors.Is(err, p2p.ErrUnreachable) {
		t.Errorf("the transport of before: %v", err)
	}
}

func TestACallEndsWithItsContextThoughTheHandlerDoesNot(t *testing.T) {
	_, a, b := pair()
	release := make(chan struct{})
	defer close(release)
	b.Handle(echo, func(context.Context, p2p.PeerID, []byte) ([]byte, error) { <-release; return nil, nil })
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := a.Call(ctx, "b", echo); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestMessagesTakeAsLongAsTheDelaySays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, _ := pair()
		n.SetDelay(func(from, _ p2p.PeerID) time.Duration {
			if from == "a" {
				return time.Second
			}
			return 2 * time.Second
		})
		start := time.Now()
		if _, err := a.Call(t.Context(), "b", echo); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("round trip of %v", d)
		}
	})
}

func TestRequestsThatTheFilterRefusesAreNotDelivered(t *testing.T) {
	n, a, b := pair()
	b.Handle("/test/other/1", func(context.Context, p2p.PeerID, []byte) ([]byte, error) {
		t.Error("the request arrived")
		return nil, nil
	})
	n.SetFilter(func(_, _ p2p.PeerID, p p2p.Protocol) error {
		if p != echo {
			return memnet.ErrLost
		}
		return nil
	})
	if _, err := a.Call(t.Context(), "b", "/test/other/1"); !errors.Is(err, p2p.ErrUnreachable) || !errors.Is(err, memnet.ErrLost) {
		t.Error(err)
	}
	if _, err := a.Call(t.Context(), "b", echo); err != nil {
		t.Error(err)
	}
}

func TestWhatIsStalledArrivesLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, _ := pair()
		for _, way := range [][2]p2p.PeerID{{"a", "b"}, {"b", "a"}} { // the request, the answer
			n.Stall(way[0], way[1])
			time.AfterFunc(time.Minute, n.HealAll)
			began := time.Now()
			if got, err := a.Call(t.Context(), "b", echo, []byte("hello")); err != nil || string(got) != "a: hello" {
				t.Errorf("Call = %q, %v", got, err)
			}
			if took := time.Since(began); took != time.Minute {
				t.Errorf("took %v", took)
			}
		}
	})
}

func TestACallThatIsStalledEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, _ := pair()
		n.Stall("a", "b")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Call(ctx, "b", echo); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func TestCloseLeavesWhoeverHasJoinedSince(t *testing.T) {
	n, a, b := pair()
	again := n.Join("b")
	again.Handle(echo, echoes)
	b.Close()
	if _, err := a.Call(t.Context(), "b", echo); err != nil {
		t.Error(err)
	}
	again.Close()
	if _, err := a.Call(t.Context(), "b", echo); !errors.Is(err, p2p.ErrUnreachable) {
		t.Error(err)
	}
}
