package replica

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/p2p"
)

// Time in these tests is that of testing/synctest: it passes when all goroutines
// wait, so that no test depends on how fast the machine is.

func TestAClusterKeepsTheContractOfAStore(t *testing.T) {
	for _, copies := range []int{1, 2, 3} {
		castest.Run(t, func(t testing.TB) cas.Store {
			c := start(t, 3, copies, Options{})
			t.Cleanup(c.close)
			return c.nodes[1].Replica
		})
	}
}

func TestAClientOfAClusterKeepsTheContractOfAStore(t *testing.T) {
	castest.Run(t, func(t testing.TB) cas.Store {
		c := start(t, 2, 2, Options{})
		client := c.add(p2p.RoleClient)
		c.announce()
		t.Cleanup(c.close)
		return client.Replica
	})
}

func TestANodeAloneUsesItsLocalStoreAndNoNetwork(t *testing.T) {
	castest.Run(t, func(t testing.TB) cas.Store {
		r := New(Options{Local: new(local).init(), Logger: quiet()})
		r.SetView(p2p.View{Epoch: 1, Members: []p2p.Member{{ID: r.self, Role: p2p.RoleStorage, State: p2p.Active}}})
		r.Start(t.Context())
		t.Cleanup(func() { _ = r.Close() })
		return r
	})
}

func TestReadsSurviveTheLossOfAllButOneCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 5, 3, Options{})
		defer c.close()
		blocks := someBlocks(t, 60, 2000)
		put(t, c.nodes[0], blocks...)
		syncAll(t, c.nodes[0])
		time.Sleep(time.Second)
		c.wantOwned(blocks)
		// The writer keeps what it put: it is not to count.
		for _, b := range blocks {
			hash := b.CID().Hash()
			if !c.nodes[0].cluster.Load().table.Owns(&hash, c.nodes[0].id) {
				c.nodes[0].local.damage(b.CID())
			}
		}
		for i := range 5 {
			for k := range i {
				c.down(true, i, k)
				for n := range 5 {
					if n != i && n != k {
						c.nodes[n].cache.Store = mem.Store{}
						wantBlocks(t, c.nodes[n], blocks)
					}
				}
				c.down(false, i, k)
			}
		}
	})
}

func TestSyncReturnsWhenTwoNodesHaveTheBlocksDurable(t *testing.T) {
	for _, copies := range []int{1, 2, 3} {
		synctest.Test(t, func(t *testing.T) {
			c := start(t, 4, copies, Options{})
			defer c.close()
			client := c.add(p2p.RoleClient)
			c.announce()
			for _, writer := range []*node{c.nodes[0], client} {
				for size := range 3 {
					blocks := someBlocks(t, 40, 1+size*3000)
					put(t, writer, blocks...)
					syncAll(t, writer)
					for _, b := range blocks {
						durable := 0
						for _, n := range c.nodes {
							if _, d := n.local.holds(b.CID()); d {
								durable++
							}
						}
						want := min(copies, 2)
						if writer == client {
							want = 2 // itself, and an owner
						}
						if durable < want {
							t.Fatalf("copies %d: a block is durable on %d nodes", copies, durable)
						}
					}
				}
			}
		})
	}
}

func TestSyncFailsWhenNoOtherNodeAnswersAndSucceedsWhenOneDoesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 2, 2, Options{})
		defer c.close()
		c.down(true, 1)
		blocks := someBlocks(t, 10, 1000)
		put(t, c.nodes[0], blocks...)
		began := time.Now()
		if err := c.nodes[0].Sync(t.Context()); !errors.Is(err, ErrTooFewCopies) {
			t.Errorf("Sync: %v", err)
		}
		if took := time.Since(began); took < DefaultSyncTimeout || took > 2*DefaultSyncTimeout {
			t.Errorf("it took %v", took)
		}
		if s := c.nodes[0].Status(); s.Pending != 10 {
			t.Errorf("status %+v", s)
		}
		wantBlocks(t, c.nodes[0], blocks)
		c.down(false, 1)
		syncAll(t, c.nodes[0])
		for _, b := range blocks {
			if _, durable := c.nodes[1].local.holds(b.CID()); !durable {
				t.Error("a block is not durable on the other node")
			}
		}
		if s := c.nodes[0].Status(); s.Pending != 0 {
			t.Errorf("status %+v", s)
		}
	})
}

func TestSyncReturnsAtOnceWhenTheOtherNodesAreGoneFromTheView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 2, 2, Options{})
		defer c.close()
		c.down(true, 1)
		put(t, c.nodes[0], someBlocks(t, 10, 1000)...)
		c.state(1, p2p.Away)
		syncAll(t, c.nodes[0])
	})
}

func TestAPeerThatCrashesBeforeTheSyncGetsTheBlocksAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 2, 2, Options{})
		defer c.close()
		time.Sleep(time.Second) // the first pass of repair is over
		blocks := someBlocks(t, 10, 1000)
		put(t, c.nodes[0], blocks...)
		synctest.Wait()
		peer := c.nodes[1]
		if held, durable := peer.local.holds(blocks[0].CID()); !held || durable {
			t.Fatalf("held %v, durable %v", held, durable)
		}
		if err := peer.Close(); err != nil {
			t.Fatal(err)
		}
		peer.local.crash()
		c.boot(peer)
		peer.SetView(c.view)
		syncAll(t, c.nodes[0])
		for _, b := range blocks {
			if _, durable := peer.local.holds(b.CID()); !durable {
				t.Fatal("a block was lost that Sync said was durable")
			}
		}
	})
}

func TestAPeerThatTakesBlocksButCannotSyncDoesNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 3, 2, Options{})
		defer c.close()
		c.nodes[1].set(func(p *port) { p.fails = func(op byte) bool { return op == 4 } })
		blocks := someBlocks(t, 30, 1000)
		put(t, c.nodes[0], blocks...)
		synctest.Wait()
		syncAll(t, c.nodes[0])
		for _, b := range blocks {
			_, one := c.nodes[1].local.holds(b.CID())
			_, two := c.nodes[2].local.holds(b.CID())
			if !one && !two {
				t.Fatal("a block is durable here only")
			}
		}
	})
}

// Rule 15: writers use the first nodes in rank that are there and not full.
func TestWhenAnOwnerIsDeadOrFullTheNextInRankGetsTheBlock(t *testing.T) {
	for name, fail := range map[string]func(*testCluster){
		"dead":   func(c *testCluster) { c.down(true, 1) },
		"full":   func(c *testCluster) { c.nodes[1].local.limit = 1 },
		"failed": func(c *testCluster) { c.nodes[1].set(func(p *port) { p.fails = func(byte) bool { return true } }) },
	} {
		synctest.Test(t, func(t *testing.T) {
			c := start(t, 4, 2, Options{})
			defer c.close()
			time.Sleep(2 * time.Second)
			fail(c)
			blocks := someBlocks(t, 40, 1000)
			put(t, c.nodes[0], blocks...)
			syncAll(t, c.nodes[0])
			for _, b := range blocks {
				others := 0
				for _, n := range []*node{c.nodes[2], c.nodes[3]} {
					if held, _ := n.local.holds(b.CID()); held {
						others++
					}
				}
				owned := false
				for _, n := range c.owners(b.CID()) {
					owned = owned || n == c.nodes[1]
				}
				if others == 0 && !(name == "full" && owned) {
					t.Errorf("%s: a block has no other copy", name)
				}
			}
		})
	}
}

func TestABlockIsSentOnlyToOwnersThatLackIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 3, 3, Options{})
		defer c.close()
		blocks := someBlocks(t, 40, 4000)
		put(t, c.nodes[0], blocks...)
		syncAll(t, c.nodes[0])
		synctest.Wait()
		_, before := c.nodes[2].asked()
		put(t, c.nodes[1], blocks...)
		syncAll(t, c.nodes[1])
		synctest.Wait()
		if _, after := c.nodes[2].asked(); after[3] != before[3] {
			t.Errorf("%d puts to a node that has all, of %d", after[3]-before[3], after[3])
		}
	})
}

// Rule 22: what is on its way is bounded.
func TestPutWaitsWhenTooMuchWaitsToBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 2, 2, Options{PushBytes: 100_000})
		defer c.close()
		c.nodes[1].set(func(p *port) { p.delay = 5 * time.Second })
		began := time.Now()
		for range 10 {
			put(t, c.nodes[0], someBlocks(t, 1, 50_000)...)
			if b := c.nodes[0].queuedBytes(); b > 160_000 {
				t.Errorf("%d bytes wait", b)
			}
		}
		if time.Since(began) < 10*time.Second {
			t.Error("Put has not waited")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c.nodes[1].set(func(p *port) { p.stalls = true })
		var err error
		for err == nil {
			err = c.nodes[0].Put(ctx, someBlocks(t, 1, 50_000)...)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Put: %v", err)
		}
	})
}

func (n *node) queuedBytes() int64 {
	n.queue.mu.Lock()
	defer n.queue.mu.Unlock()
	return n.queue.bytes
}

func TestHasAsksTheOwners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 4, 2, Options{})
		defer c.close()
		blocks := someBlocks(t, 30, 100)
		put(t, c.nodes[0], blocks...)
		syncAll(t, c.nodes[0])
		synctest.Wait()
		c.down(true, 0)
		var cids []cas.CID
		for _, b := range blocks {
			cids = append(cids, b.CID())
		}
		cids = append(cids, castest.Block(t, 1<<40, 10).CID(), cas.CID{})
		has, err := c.nodes[3].Has(t.Context(), cids...)
		if err != nil {
			t.Fatal(err)
		}
		for i := range blocks {
			others := 0
			for _, n := range c.owners(cids[i]) {
				if n != c.nodes[0] {
					others++
				}
			}
			if !has[i] && others > 0 {
				t.Errorf("block %d is not found", i)
			}
		}
		if has[len(blocks)] || has[len(blocks)+1] {
			t.Error("what was never put is found")
		}
	})
}
