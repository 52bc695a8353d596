package replica

import (
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/p2p"
)

// opConfirm is an operation of the block protocol.
const opConfirm = 5

func (l *local) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.blocks)
}

// wantPlaced fails unless each block is durable on its owners and held by nobody else.
func (c *testCluster) wantPlaced(blocks []cas.Block) {
	c.t.Helper()
	missing, surplus := 0, 0
	for _, b := range blocks {
		owns := make(map[*node]bool)
		for _, n := range c.owners(b.CID()) {
			owns[n] = true
		}
		for _, n := range c.nodes {
			switch held, durable := n.local.holds(b.CID()); {
			case owns[n] && !durable:
				missing++
			case !owns[n] && held:
				surplus++
			}
		}
	}
	if missing > 0 || surplus > 0 {
		c.t.Errorf("%d copies are missing at owners, %d are elsewhere", missing, surplus)
	}
}

// drained returns a cluster of which the last node, which holds all of the blocks, is
// about to be drained.
func drained(t *testing.T, nodes int) (*testCluster, *node, []cas.Block) {
	c := start(t, nodes, 2, Options{})
	blocks := someBlocks(t, 200, 50)
	last := c.nodes[nodes-1]
	put(t, last, blocks...)
	syncAll(t, last)
	time.Sleep(time.Second)
	put(t, last, blocks...) // also those that it has dropped
	syncAll(t, last)
	time.Sleep(time.Second)
	return c, last, blocks
}

func TestWhenNodesComeAndGoSpaceMovesWithTheBlocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 3, 2, Options{})
		defer c.close()
		blocks := someBlocks(t, 3000, 20)
		put(t, c.nodes[0], blocks...)
		syncAll(t, c.nodes[0])
		time.Sleep(2 * DefaultRepairEvery)
		c.wantPlaced(blocks)
		c.add(p2p.RoleStorage)
		client := c.add(p2p.RoleClient)
		c.announce()
		time.Sleep(time.Minute)
		c.wantPlaced(blocks)
		more := someBlocks(t, 300, 20)
		put(t, client, more...)
		syncAll(t, client)
		time.Sleep(2 * DefaultRepairEvery)
		c.wantPlaced(append(more, blocks...))
		c.state(1, p2p.Draining)
		time.Sleep(time.Minute)
		c.wantPlaced(append(more, blocks...))
		if n := c.nodes[1].local.len(); n != 0 || !c.nodes[1].Drained() {
			t.Errorf("the drained node holds %d blocks, %+v", n, c.nodes[1].Status())
		}
		c.state(1, p2p.Active)
		time.Sleep(time.Minute)
		c.wantPlaced(append(more, blocks...))
		for _, n := range c.nodes {
			wantBlocks(t, n, append(more, blocks...))
		}
	})
}

// Rule 15: an old owner drops a block only after every current owner has confirmed it
// durable.
func TestAnOldOwnerDropsABlockOnlyAfterEveryCurrentOwnerHasConfirmedIt(t *testing.T) {
	for name, spoil := range map[string]func(c *testCluster, owner *node){
		"an owner is gone": func(c *testCluster, owner *node) {
			owner.set(func(p *port) { p.down = true })
		},
		"an owner does not answer the question": func(c *testCluster, owner *node) {
			owner.set(func(p *port) { p.fails = func(op byte) bool { return op == opConfirm } })
		},
		"an owner loses what it had not synced when it is asked": func(c *testCluster, owner *node) {
			owner.set(func(p *port) {
				p.before = func(_ p2p.PeerID, op byte) {
					if op == opConfirm {
						owner.local.wipe() // the worst of it
					}
				}
			})
		},
		"an owner's copies are damaged": func(c *testCluster, owner *node) {
			owner.set(func(p *port) {
				p.before = func(_ p2p.PeerID, op byte) {
					if op == opConfirm {
						owner.local.damageAll()
					}
				}
			})
		},
		"an owner says that it has what it has not": func(c *testCluster, owner *node) {
			owner.set(func(p *port) {
				p.before = func(p2p.PeerID, byte) { owner.local.wipe() }
				p.after = func(_ p2p.PeerID, _ byte, answer []byte) {
					for i := range answer[12:] {
						answer[12+i] = 1
					}
				}
			})
		},
		"an owner knows other members": func(c *testCluster, owner *node) {
			other := c.view
			other.Epoch += 5
			owner.SetView(other)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, last, blocks := drained(t, 4)
				defer c.close()
				owner := c.nodes[1]
				spoil(c, owner)
				c.state(3, p2p.Draining)
				time.Sleep(time.Minute)
				kept, dropped := 0, 0
				for _, b := range blocks {
					held, _ := last.local.holds(b.CID())
					owns := false
					for _, n := range c.owners(b.CID()) {
						_, durable := n.local.holds(b.CID())
						owns = owns || n == owner
						if !held && !durable {
							t.Fatal("dropped, though an owner does not have it")
						}
					}
					if owns && !held {
						t.Fatal("dropped, though an owner has not confirmed it")
					}
					if held {
						kept++
					} else {
						dropped++
					}
				}
				if kept == 0 || dropped == 0 {
					t.Errorf("%d are kept, %d dropped", kept, dropped)
				}
			})
		})
	}
}

func (l *local) damageAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for hash := range l.blocks {
		l.damaged[hash] = true
	}
}

// Rule 15, when the members change in the middle: of two nodes of which each takes the
// other for the owner, neither may drop the block.
func TestABlockIsKeptIfTheMembersChangeWhileItIsConfirmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, last, blocks := drained(t, 4)
		defer c.close()
		for _, n := range c.nodes[:3] {
			n.set(func(p *port) { p.fails = func(op byte) bool { return op == opConfirm } })
		}
		c.state(3, p2p.Draining)
		time.Sleep(time.Minute) // the owners have everything, and nothing is dropped
		var answers atomic.Int32
		for _, n := range c.nodes[:3] {
			n.set(func(p *port) {
				p.fails = nil
				p.after = func(from p2p.PeerID, op byte, _ []byte) {
					if from == last.id && op == opConfirm && answers.Add(1) == 3 {
						// All have confirmed, and the last answer is on its way, when
						// the node learns that it is an owner again; others do later.
						c.view.Members = slices.Clone(c.view.Members)
						c.view.Members[3].State = p2p.Active
						c.view.Epoch++
						last.SetView(c.view)
					}
				}
			})
		}
		time.Sleep(time.Minute)
		c.announce()
		time.Sleep(2 * DefaultRepairEvery)
		if answers.Load() < 3 {
			t.Fatal("not all owners were asked")
		}
		owned := 0
		last.local.mu.Lock()
		for _, b := range blocks {
			hash := b.CID().Hash()
			if last.cluster.Load().table.Owns(&hash, last.id) {
				if owned++; last.local.deleted[hash] {
					t.Error("a block that the node owned and owns again was dropped")
				}
			}
		}
		last.local.mu.Unlock()
		if owned == 0 {
			t.Error("the node owns nothing")
		}
		time.Sleep(2 * DefaultRepairEvery)
		c.wantPlaced(blocks)
	})
}

// Rule 16: what was said to be here stays here.
func TestABlockIsKeptIfItIsSaidMeanwhileThatItIsHere(t *testing.T) {
	for name, say := range map[string]func(t *testing.T, c *testCluster, last *node, b cas.Block){
		"to a program of this node": func(t *testing.T, _ *testCluster, last *node, b cas.Block) {
			put(t, last, b)
		},
		"to one that asks before it writes": func(t *testing.T, _ *testCluster, last *node, b cas.Block) {
			if has, err := last.Has(t.Context(), b.CID()); err != nil || !has[0] {
				t.Error(has, err)
			}
		},
		"to another node that asks": func(t *testing.T, c *testCluster, last *node, b cas.Block) {
			if has, _, err := c.nodes[0].peer(last.id).Have(t.Context(), []cas.CID{b.CID()}); err != nil || !has[0] {
				t.Error(has, err)
			}
		},
		"to another node that sends it": func(t *testing.T, c *testCluster, last *node, b cas.Block) {
			if err := c.nodes[0].peer(last.id).Put(t.Context(), b); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, last, blocks := drained(t, 4)
				defer c.close()
				var saying atomic.Bool
				saying.Store(true)
				for _, n := range c.nodes[:3] {
					n.set(func(p *port) {
						p.before = func(from p2p.PeerID, op byte) {
							if from == last.id && op == opConfirm && saying.Load() {
								say(t, c, last, blocks[7])
							}
						}
					})
				}
				c.state(3, p2p.Draining)
				time.Sleep(time.Minute)
				held, _ := last.local.holds(blocks[7].CID())
				if s := last.Status(); !held || s.Dropped == 0 {
					t.Errorf("it is held: %v; %+v", held, s)
				}
				saying.Store(false)
				time.Sleep(2 * DefaultRepairEvery)
				c.wantPlaced(blocks)
			})
		})
	}
}

func TestANodeThatIsAwayOrLeavingDropsNothing(t *testing.T) {
	for _, state := range []p2p.MemberState{p2p.Away, p2p.Leaving} {
		synctest.Test(t, func(t *testing.T) {
			c, last, blocks := drained(t, 4)
			defer c.close()
			before := last.local.len()
			c.state(3, state)
			time.Sleep(2 * DefaultRepairEvery)
			c.wantOwned(blocks)
			if n := last.local.len(); n != before || before == 0 {
				t.Errorf("%v: of %d blocks %d are left", state, before, n)
			}
		})
	}
}

func TestWhatIsDroppedStaysAtHandIfTheCacheHasRoom(t *testing.T) {
	for _, room := range []int64{0, 1 << 20} {
		synctest.Test(t, func(t *testing.T) {
			c := start(t, 3, 2, Options{})
			defer c.close()
			for _, n := range c.nodes {
				n.cache.room.Store(room)
			}
			blocks := someBlocks(t, 300, 20)
			put(t, c.nodes[0], blocks...)
			syncAll(t, c.nodes[0])
			time.Sleep(2 * DefaultRepairEvery)
			c.wantPlaced(blocks)
			dropped := int(c.nodes[0].Status().Dropped)
			if want := min(int(room), dropped); dropped == 0 || c.nodes[0].cache.Len() != want {
				t.Errorf("room for %d bytes: %d blocks were dropped, %d are in the cache", room, dropped, c.nodes[0].cache.Len())
			}
		})
	}
}

func TestBlocksAreDroppedAtTheRateOfRepair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 2, 2, Options{})
		defer c.close()
		blocks := someBlocks(t, 40, 512<<10) // 20 MiB
		put(t, c.nodes[0], blocks...)
		syncAll(t, c.nodes[0])
		time.Sleep(time.Minute)
		client := c.add(p2p.RoleClient)
		client.repair.rate.perSecond = 1 << 20
		if err := client.local.Put(t.Context(), blocks...); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		c.announce()
		for client.Status().Dropped < int64(len(blocks)) {
			if time.Since(began) > 5*time.Minute {
				t.Fatalf("%+v", client.Status())
			}
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(began); took < 18*time.Second || took > 40*time.Second {
			t.Errorf("20 MiB at 1 MiB/s took %v", took)
		}
		c.wantPlaced(blocks)
	})
}
