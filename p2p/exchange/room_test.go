package exchange

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/p2p"
)

// Rule 22: the memory for bulk is bounded, for each peer and for all together.
func TestAPeerThatAsksForMuchLeavesRoomForOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r room
		r.init()
		const piece = 4 << 20
		fits := func(from p2p.PeerID) bool {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, err := r.acquire(ctx, from, piece)
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			return err == nil
		}
		total := 0
		for _, from := range []p2p.PeerID{"a", "b", "c", "d", "e"} {
			got := 0
			for fits(from) {
				got += piece
			}
			if got > peerBytes || got == 0 && total < serverBytes {
				t.Errorf("peer %s has %d bytes, at most %d", from, got, peerBytes)
			}
			total += got
		}
		if total != serverBytes {
			t.Errorf("all have %d bytes, at most %d", total, serverBytes)
		}
		none, err := r.acquire(t.Context(), "f", 0)
		if err != nil {
			t.Fatal(err)
		}
		none.release()
	})
}

func TestRoomThatWasNotGivenIsNotHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r room
		r.init()
		var all []*taken
		for _, from := range []p2p.PeerID{"a", "b", "c", "d"} {
			share, err := r.acquire(t.Context(), from, peerBytes)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, share)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := r.acquire(ctx, "e", peerBytes); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("there was room: %v", err)
		}
		for _, share := range all {
			share.release()
		}
		share, err := r.acquire(t.Context(), "e", peerBytes)
		if err != nil {
			t.Fatal(err)
		}
		share.release()
	})
}

// lending is a network whose answers are sent when the test says so.
type lending struct {
	wire
	handle p2p.LendingHandler
}

func (l *lending) Recycle([]byte) {}

func (l *lending) HandleLending(_ p2p.Protocol, h p2p.LendingHandler) { l.handle = h }

// Rule 22: a peer that asks for much and is slow to take it has no more than its share of
// the memory for blocks, and one that asks for little at a time is not held up.
func TestAnswersTakeUpRoomUntilTheyAreSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l local
		block := castest.Block(t, 1, cas.MaxBlockSize)
		if err := l.Put(t.Context(), block); err != nil {
			t.Fatal(err)
		}
		var net lending
		defer Serve(&net, ServerOptions{Local: &l, Logger: quiet()})()
		want := appendCID(appendRequest(nil, opWant, 0, 1), block.CID())
		ask := func(from p2p.PeerID) (sent func(), ok bool) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			answer, sent, err := net.handle(ctx, from, want)
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			if err == nil && len(answer) < cas.MaxBlockSize {
				t.Fatalf("an answer of %d bytes", len(answer))
			}
			return sent, err == nil
		}
		var answers []func()
		for {
			sent, ok := ask("slow")
			if !ok {
				break
			}
			if answers = append(answers, sent); len(answers) > peerBytes/cas.MaxBlockSize {
				t.Fatalf("%d answers of a block wait to be sent to one peer", len(answers))
			}
		}
		if sent, ok := ask("other"); !ok {
			t.Error("another peer has no room")
		} else {
			sent()
		}
		answers[0]()
		sent, ok := ask("slow")
		if !ok {
			t.Fatal("an answer was sent, and there is no room for the next")
		}
		for _, sent := range append(answers[1:], sent) {
			sent()
		}
		for range 2 * peerBytes / cas.MaxBlockSize {
			sent, ok := ask("slow")
			if !ok {
				t.Fatal("room was lost")
			}
			sent()
		}
	})
}

// An answer is as large as what was found, not as what was asked for.
func TestAShortAnswerTakesUpLittleRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l local
		var net lending
		defer Serve(&net, ServerOptions{Local: &l, Logger: quiet()})()
		missing := castest.Block(t, 1, 1000)
		want := appendRequest(nil, opWant, 0, 100)
		for range 100 {
			want = appendCID(want, missing.CID())
		}
		for range 2 * peerBytes / MaxPayload {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, sent, err := net.handle(ctx, "client", want)
			if err != nil {
				t.Fatal(err)
			}
			defer sent()
		}
	})
}
