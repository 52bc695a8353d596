package replica

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairnfs/cairn/p2p"
)

func TestANodeThatJoinsIsFilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 3, 2, Options{})
		defer c.close()
		blocks := someBlocks(t, 3000, 20)
		put(t, c.nodes[0], blocks...)
		syncAll(t, c.nodes[0])
		time.Sleep(time.Second)
		// The first pass may have met the blocks on their way and sent some, too.
		sent, lost := int64(0), int64(0)
		for _, n := range c.nodes {
			sent -= n.Status().Repaired
		}
		c.add(p2p.RoleStorage)
		c.announce()
		time.Sleep(time.Minute)
		c.wantOwned(blocks)
		for _, n := range c.nodes {
			s := n.Status()
			sent += s.Repaired
			lost += s.UnderReplicated
			if !s.PassDone {
				t.Errorf("node %s: %+v", n.id.Short(), s)
			}
		}
		got := 0
		for _, b := range blocks {
			if held, _ := c.nodes[3].local.holds(b.CID()); held {
				got++
			}
		}
		if got == 0 || sent != int64(got) || lost != 0 {
			t.Errorf("%d blocks came to the new node, %d were sent, %d are said to lack a copy", got, sent, lost)
		}
	})
}

func TestBeingToldOfTheSameMembersAgainBeginsNoPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 3, 2, Options{})
		defer c.close()
		put(t, c.nodes[0], someBlocks(t, 100, 200)...)
		syncAll(t, c.nodes[0])
		time.Sleep(time.Minute)
		passes := func() int64 {
			p := &c.nodes[0].repair
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.passes
		}
		before := passes()
		for range 30 {
			c.nodes[0].SetView(c.view)
			time.Sleep(2 * time.Second)
		}
		if n := passes() - before; n != 0 || before == 0 || !c.nodes[0].Status().PassDone {
			t.Errorf("%d passes, and %d more; %+v", before, n, c.nodes[0].Status())
		}
	})
}

func TestANodeThatLostItsDiskIsFilledWhenItComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 3, 3, Options{})
		defer c.close()
		blocks := someBlocks(t, 500, 20)
		put(t, c.nodes[0], blocks...)
		syncAll(t, c.nodes[0])
		c.down(true, 2)
		time.Sleep(5 * time.Second)
		c.nodes[2].local.wipe()
		c.down(false, 2)
		time.Sleep(time.Minute)
		c.wantOwned(blocks)
	})
}

func TestWhatANodeMissedWhileItWasAwayReachesItWithoutAnybodyAsking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 3, 3, Options{})
		defer c.close()
		c.down(true, 2)
		blocks := someBlocks(t, 100, 200)
		put(t, c.nodes[0], blocks...)
		syncAll(t, c.nodes[0])
		time.Sleep(time.Minute)
		if s := c.nodes[0].Status(); s.UnderReplicated != 100 {
			t.Errorf("status %+v", s)
		}
		c.down(false, 2)
		time.Sleep(time.Minute)
		c.wantOwned(blocks)
		if s := c.nodes[0].Status(); s.UnderReplicated != 0 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestANodeIsDrainedWhenAllOwnersHaveWhatItHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 4, 2, Options{})
		defer c.close()
		blocks := someBlocks(t, 400, 50)
		put(t, c.nodes[3], blocks...)
		syncAll(t, c.nodes[3])
		if c.nodes[3].Drained() {
			t.Error("drained before it was asked for")
		}
		c.down(true, 1)
		c.state(3, p2p.Draining)
		time.Sleep(5 * time.Minute)
		if c.nodes[3].Drained() {
			t.Error("drained though an owner does not answer")
		}
		c.down(false, 1)
		time.Sleep(5 * time.Minute)
		if s := c.nodes[3].Status(); !c.nodes[3].Drained() || s.Dropped != int64(len(blocks)) || s.Droppable != 0 {
			t.Errorf("not drained: %+v", s)
		}
		if n := c.nodes[3].local.len(); n != 0 {
			t.Errorf("the drained node holds %d blocks", n)
		}
		c.wantOwned(blocks)
		for _, b := range blocks {
			for _, n := range c.owners(b.CID()) {
				if _, durable := n.local.holds(b.CID()); !durable {
					t.Fatal("a copy is not durable")
				}
			}
		}
		put(t, c.nodes[3], someBlocks(t, 1, 50)...)
		if c.nodes[3].Drained() {
			t.Error("drained with a block just put")
		}
		if c.nodes[0].Drained() {
			t.Error("another node is drained")
		}
	})
}

func TestANodeIsNotDrainedWhileNobodyOwnsBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 2, 2, Options{})
		defer c.close()
		blocks := someBlocks(t, 100, 50)
		put(t, c.nodes[0], blocks...)
		syncAll(t, c.nodes[0])
		c.state(0, p2p.Draining)
		time.Sleep(time.Minute)
		c.state(1, p2p.Draining)
		time.Sleep(time.Minute)
		if s := c.nodes[1].Status(); c.nodes[1].Drained() || s.UnderReplicated != int64(len(blocks)) || s.Droppable != 0 {
			t.Errorf("drained: %v, though nobody else is to have its blocks; %+v", c.nodes[1].Drained(), s)
		}
		c.state(0, p2p.Active)
		time.Sleep(time.Minute)
		if s := c.nodes[1].Status(); !c.nodes[1].Drained() || s.UnderReplicated != 0 {
			t.Errorf("not drained, though another node owns the blocks: %+v", s)
		}
		c.wantPlaced(blocks)
	})
}

// Whoever waits for that must not wait for ever.
func TestAMemberThatNeverOwnedABlockIsDrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 2, 2, Options{})
		defer c.close()
		client := c.add(p2p.RoleClient)
		put(t, client, someBlocks(t, 10, 50)...)
		syncAll(t, client)
		c.state(2, p2p.Draining)
		time.Sleep(time.Minute)
		if !client.Drained() {
			t.Errorf("a client is not drained: %+v", client.Status())
		}
	})
}

// Rule 15: an owner that does not know yet that it is one may still drop, as of the
// members before, what it says that it has.
func TestANodeIsNotDrainedOnTheWordOfAnOwnerThatKnowsOtherMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 2, 1, Options{})
		defer c.close()
		c.state(1, p2p.Draining)
		node, next := c.nodes[0], c.nodes[1]
		blocks := someBlocks(t, 100, 50)
		put(t, node, blocks...)
		syncAll(t, node)
		time.Sleep(time.Minute)
		if err := next.local.Put(t.Context(), blocks...); err != nil {
			t.Fatal(err)
		}
		said := false
		node.set(func(p *port) {
			p.after = func(from p2p.PeerID, op byte, answer []byte) {
				if from != next.id || op != opConfirm || len(answer) < 100 || said {
					return
				}
				// It has confirmed that it has all, and next may drop it, when it
				// learns that next owns it all now.
				said = true
				c.view.Members = slices.Clone(c.view.Members)
				c.view.Members[0].State, c.view.Members[1].State = p2p.Draining, p2p.Active
				c.view.Epoch++
				node.SetView(c.view)
				time.Sleep(10 * time.Second)
				if node.Drained() {
					t.Error("drained on the word of a node that knows other members")
				}
			}
		})
		time.Sleep(2 * DefaultRepairEvery)
		if !said || next.Status().Dropped != int64(len(blocks)) {
			t.Fatalf("the next owner was to drop what it is to own soon: %+v", next.Status())
		}
		next.SetView(c.view)
		time.Sleep(2 * DefaultRepairEvery)
		if !node.Drained() {
			t.Errorf("not drained: %+v", node.Status())
		}
		c.wantPlaced(blocks)
	})
}

func TestADamagedCopyIsReplacedByAPass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 3, 3, Options{})
		defer c.close()
		blocks := someBlocks(t, 50, 50)
		put(t, c.nodes[0], blocks...)
		syncAll(t, c.nodes[0])
		time.Sleep(time.Second)
		c.nodes[2].local.damage(blocks[7].CID())
		time.Sleep(2 * DefaultRepairEvery)
		c.wantOwned(blocks)
	})
}

func TestRepairKeepsToItsRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 1, 2, Options{RepairRate: 1 << 20})
		defer c.close()
		blocks := someBlocks(t, 40, 512<<10) // 20 MiB
		put(t, c.nodes[0], blocks...)
		syncAll(t, c.nodes[0])
		began := time.Now()
		c.add(p2p.RoleStorage)
		c.announce()
		for c.nodes[0].Status().Repaired < int64(len(blocks)) {
			if time.Since(began) > 5*time.Minute {
				t.Fatalf("%+v", c.nodes[0].Status())
			}
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(began); took < 18*time.Second || took > 40*time.Second {
			t.Errorf("20 MiB at 1 MiB/s took %v", took)
		}
		c.wantOwned(blocks)
	})
}

func TestClosingWithBlocksPendingEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 3, 3, Options{})
		for _, n := range c.nodes[1:] {
			n.set(func(p *port) { p.stalls = true })
		}
		put(t, c.nodes[0], someBlocks(t, 100, 1000)...)
		c.close()
		if err := c.nodes[0].Sync(t.Context()); err == nil {
			t.Error("Sync succeeds")
		}
	})
}
