package raft

import (
	"testing"
	"testing/synctest"
	"time"
)

// While a member is sent the namespace, and until it has what came meanwhile, the log is
// kept for it; not for one that does not go on.
func TestTheLogIsKeptForWhoIsSentTheNamespace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &exports{open: make(map[uint64]*export)}
		begin := func() *export {
			e := &export{peer: "b", member: 2, began: time.Now(), used: time.Now(), patience: snapshotPatience, closed: true}
			x.open[1] = e
			return e
		}
		after := func(d time.Duration, p peerProgress) bool {
			time.Sleep(d)
			x.release(map[uint64]peerProgress{2: p})
			x.drop("")
			return x.any()
		}
		begin()
		if after(snapshotPatience+time.Second, peerProgress{}) {
			t.Error("the log is kept for one that does not ask")
		}
		e := begin()
		for range 100 {
			if !after(snapshotPatience/2, peerProgress{}) {
				t.Fatal("the log is not kept for one that is sent the namespace")
			}
			e.used = time.Now()
		}
		x.finish(e)
		if !after(time.Since(e.began), peerProgress{}) {
			t.Fatal("the log is not kept for one that installs what it was sent")
		}
		for match := range uint64(100) {
			if !after(catchUpPatience, peerProgress{match: match + 1}) {
				t.Fatal("the log is not kept for one that catches up")
			}
		}
		if after(time.Second, peerProgress{match: 1000, caught: true}) {
			t.Error("the log is kept for one that has caught up")
		}
		e = begin()
		x.finish(e)
		if after(catchUpPatience+time.Second, peerProgress{}) {
			t.Error("the log is kept for one that is gone")
		}
	})
}
