package exchange

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

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
		released, err := r.acquire(t.Context(), "f", 0)
		if err != nil {
			t.Fatal(err)
		}
		released()
	})
}

func TestRoomThatWasNotGivenIsNotHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r room
		r.init()
		var releases []func()
		for _, from := range []p2p.PeerID{"a", "b", "c", "d"} {
			release, err := r.acquire(t.Context(), from, peerBytes)
			if err != nil {
				t.Fatal(err)
			}
			releases = append(releases, release)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := r.acquire(ctx, "e", peerBytes); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("there was room: %v", err)
		}
		for _, release := range releases {
			release()
		}
		release, err := r.acquire(t.Context(), "e", peerBytes)
		if err != nil {
			t.Fatal(err)
		}
		release()
	})
}
