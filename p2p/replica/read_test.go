package replica

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/p2p"
)

// spread returns a cluster whose blocks lie on all owners, and a client that holds
// nothing.
func spread(t testing.TB, nodes, copies, n, size int) (*testCluster, *node, []cas.Block) {
	c := start(t, nodes, copies, Options{})
	client := c.add(p2p.RoleClient)
	c.announce()
	blocks := someBlocks(t, n, size)
	put(t, c.nodes[0], blocks...)
	syncAll(t, c.nodes[0])
	time.Sleep(2 * time.Second)
	c.wantOwned(blocks)
	return c, client, blocks
}

func TestALiarIsSurvivedAndAskedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, client, blocks := spread(t, 3, 3, 60, 3000)
		defer c.close()
		c.nodes[1].set(func(p *port) { p.lies = true })
		_, before := c.nodes[1].asked()
		wantBlocks(t, client, blocks)
		_, after := c.nodes[1].asked()
		// For the block, and once more with the request to verify it.
		if n := after[2] - before[2]; n != 2 {
			t.Errorf("the liar was asked %d times", n)
		}
		if g := client.grade(client.peer(c.nodes[1].id)); g != demoted {
			t.Errorf("its grade is %d", g)
		}
		time.Sleep(2 * demotedForLie)
		if g := client.grade(client.peer(c.nodes[1].id)); g != good {
			t.Errorf("for ever: %d", g)
		}
	})
}

func TestAStallerIsSurvivedAndAskedLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, client, blocks := spread(t, 3, 3, 200, 300)
		defer c.close()
		c.nodes[1].set(func(p *port) { p.stalls = true })
		_, before := c.nodes[1].asked()
		began := time.Now()
		wantBlocks(t, client, blocks)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("reading took %v", took)
		}
		if _, after := c.nodes[1].asked(); after[2]-before[2] > 2*maxLosses {
			t.Errorf("the staller was asked %d times", after[2]-before[2])
		}
	})
}

func TestAStallerIsSurvivedWithoutABudgetForHedging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, client, blocks := spread(t, 3, 3, 50, 300)
		defer c.close()
		client.hedges.saved = -10_000
		c.nodes[1].set(func(p *port) { p.stalls = true })
		began := time.Now()
		wantBlocks(t, client, blocks)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("reading took %v", took)
		}
	})
}

// Rule 22: hedged reads are few, and the loser is cancelled.
func TestASlowAnswerIsHedgedWithinTheBudgetAndTheLoserIsCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, client, blocks := spread(t, 3, 3, 1000, 10)
		defer c.close()
		for _, n := range c.nodes[:3] {
			n.set(func(p *port) { p.delay = time.Millisecond })
		}
		wantBlocks(t, client, blocks[:100])
		// Now every tenth answer of a node is slow.
		slow := 0
		for i, b := range blocks[100:] {
			first := client.order(client.cluster.Load(), ptr(b.CID().Hash()))[0]
			for _, n := range c.nodes[:3] {
				n.set(func(p *port) {
					p.delay = time.Millisecond
					if i%10 == 0 && n.id == first.ID {
						p.delay = 5 * time.Second
						slow++
					}
				})
			}
			began := time.Now()
			wantBlocks(t, client, []cas.Block{b})
			if took := time.Since(began); took > stallAtLeast+100*time.Millisecond {
				t.Fatalf("a read took %v", took)
			}
		}
		h := &client.hedges
		if h.hedged == 0 || slow == 0 || h.hedged > h.reads/hedgeCost+hedgeMost/hedgeCost {
			t.Errorf("%d of %d reads were hedged, %d answers were slow", h.hedged, h.reads, slow)
		}
	})
}

func ptr[T any](v T) *T { return &v }

func TestADamagedLocalCopyIsReplacedByAGoodOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _, blocks := spread(t, 3, 3, 20, 500)
		defer c.close()
		for _, b := range blocks {
			c.nodes[0].local.damage(b.CID())
		}
		wantBlocks(t, c.nodes[0], blocks)
		for _, b := range blocks {
			if held, _ := c.nodes[0].local.holds(b.CID()); !held {
				t.Error("a block is not healed")
			}
		}
		// Damaged everywhere, it is corrupt, not missing.
		for _, n := range c.nodes[:3] {
			n.local.damage(blocks[0].CID())
		}
		if _, err := c.nodes[0].Get(t.Context(), blocks[0].CID(), nil); !errors.Is(err, cas.ErrCorrupt) {
			t.Errorf("Get: %v", err)
		}
	})
}

// Rule 15: readers try all storage nodes that answer.
func TestAllNodesAreAskedBeforeABlockIsNotFound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 5, 2, Options{})
		defer c.close()
		client := c.add(p2p.RoleClient)
		c.announce()
		b := someBlocks(t, 1, 100)[0]
		// It lies where it does not belong, on a node that is being drained.
		if err := c.nodes[3].local.Put(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		c.state(3, p2p.Draining)
		wantBlocks(t, client, []cas.Block{b})

		other := someBlocks(t, 1, 100)[0].CID()
		_, err := client.Get(t.Context(), other, nil)
		if !errors.Is(err, cas.ErrNotFound) || errors.Is(err, p2p.ErrUnreachable) {
			t.Errorf("with all nodes: %v", err)
		}
		c.down(true, 2)
		if _, err = client.Get(t.Context(), other, nil); !errors.Is(err, cas.ErrNotFound) || !errors.Is(err, p2p.ErrUnreachable) {
			t.Errorf("without one: %v", err)
		}
	})
}

func TestWhatWasFetchedIsKeptAtHomeOrInTheCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, client, blocks := spread(t, 3, 2, 40, 100)
		defer c.close()
		wantBlocks(t, client, blocks)
		if client.cache.Len() != len(blocks) {
			t.Errorf("%d of %d blocks are cached", client.cache.Len(), len(blocks))
		}
		c.nodes[1].local.wipe()
		wantBlocks(t, c.nodes[1], blocks)
		for _, b := range blocks {
			hash := b.CID().Hash()
			owns := c.nodes[1].cluster.Load().table.Owns(&hash, c.nodes[1].id)
			if held, _ := c.nodes[1].local.holds(b.CID()); held != owns {
				t.Errorf("held %v, owned %v", held, owns)
			}
		}
	})
}

func TestABlockThatManyReadIsFetchedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, client, blocks := spread(t, 1, 1, 1, 1000)
		defer c.close()
		c.nodes[0].set(func(p *port) { p.delay = 10 * time.Millisecond })
		_, before := c.nodes[0].asked()
		done := make(chan struct{})
		for range 20 {
			go func() {
				wantBlocks(t, client, blocks)
				done <- struct{}{}
			}()
		}
		for range 20 {
			<-done
		}
		if _, after := c.nodes[0].asked(); after[2]-before[2] != 1 {
			t.Errorf("%d requests", after[2]-before[2])
		}
	})
}

func TestPrefetchFetchesManyWithFewRequestsAndGetWaitsForThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, client, blocks := spread(t, 3, 3, 100, 2000)
		defer c.close()
		for _, n := range c.nodes[:3] {
			n.set(func(p *port) { p.delay = 100 * time.Millisecond })
		}
		wants := func() (n int) {
			for _, node := range c.nodes[:3] {
				_, ops := node.asked()
				n += ops[2]
			}
			return n
		}
		client.hedges.saved = -10_000         // a slow answer is waited for, not asked for again
		most := len(blocks)/prefetchBatch + 3 // and what is left over for each peer
		before := wants()
		var cids []cas.CID
		for _, b := range blocks {
			cids = append(cids, b.CID())
		}
		client.Prefetch(t.Context(), cids)
		client.Prefetch(t.Context(), cids) // again: all is on its way
		began := time.Now()
		wantBlocks(t, client, blocks)
		if took := time.Since(began); took > 300*time.Millisecond {
			t.Errorf("reading took %v", took)
		}
		if n := wants() - before; n > most {
			t.Errorf("%d requests", n)
		}
		client.Prefetch(t.Context(), cids) // all is here
		synctest.Wait()
		if n := wants() - before; n > most {
			t.Errorf("%d requests", n)
		}
	})
}

func TestGetDoesNotDependOnAPrefetchThatStalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, client, blocks := spread(t, 2, 2, 60, 200)
		defer c.close()
		c.nodes[1].set(func(p *port) { p.stalls = true })
		var cids []cas.CID
		for _, b := range blocks {
			cids = append(cids, b.CID())
		}
		client.Prefetch(t.Context(), cids)
		began := time.Now()
		wantBlocks(t, client, blocks[:5])
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("reading took %v", took)
		}
		time.Sleep(time.Minute)
		client.reads.mu.Lock()
		n := client.reads.flying
		client.reads.mu.Unlock()
		if n != 0 {
			t.Errorf("%d blocks are still on their way", n)
		}
		wantBlocks(t, client, blocks)
	})
}
