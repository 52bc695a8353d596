package replica

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/p2p"
)

// slowly has repair not get far within a test.
const slowly = 1

// format makes deep trees.
var format = manifest.Format{MinLinks: 2, AvgLinks: 4, MaxLinks: 8}

// tree stores a file on a node and returns its root, the blocks, and the file.
func tree(t testing.TB, on *node, size int) (root manifest.Root, blocks []cas.Block, data []byte) {
	t.Helper()
	for len(data) < size {
		data = append(data, castest.Block(t, seeds.Add(1), 64<<10).Data()...)
	}
	w := manifest.NewWriter(on, format)
	if _, err := w.ReadFrom(t.Context(), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	root, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return root, treeBlocks(t, on, root.CID), data
}

// treeBlocks reads all blocks below a root.
func treeBlocks(t testing.TB, on *node, root cas.CID) (blocks []cas.Block) {
	t.Helper()
	for todo := []cas.CID{root}; len(todo) > 0; todo = todo[1:] {
		b, err := on.Get(t.Context(), todo[0], nil)
		if err != nil {
			t.Fatal(err)
		}
		links, err := manifest.Links(t.Context(), on, todo[0])
		if err != nil {
			t.Fatal(err)
		}
		blocks, todo = append(blocks, b), append(todo, links...)
	}
	return blocks
}

// durableOn counts those of the blocks that are durable on a node.
func durableOn(n *node, blocks []cas.Block) (count int) {
	for _, b := range blocks {
		if _, durable := n.local.holds(b.CID()); durable {
			count++
		}
	}
	return count
}

func claim(t testing.TB, n *node, root cas.CID) {
	t.Helper()
	if err := n.Claim(t.Context(), root); err != nil {
		t.Fatal(err)
	}
	syncAll(t, n)
}

// founded returns a cluster whose first node has a file from before there was
// another, which repair hardly begins to copy.
func founded(t testing.TB, members int) (c *testCluster, root manifest.Root, blocks []cas.Block, data []byte) {
	c = start(t, 1, 0, Options{RepairRate: slowly})
	root, blocks, data = tree(t, c.nodes[0], 3<<20)
	syncAll(t, c.nodes[0])
	for range members - 1 {
		c.add(p2p.RoleStorage)
	}
	c.announce()
	return c, root, blocks, data
}

// Rule 15: a name never counts as durable on two nodes because of blocks that are
// on one, put before there was another.
func TestATreeFromBeforeThereWasAnotherNodeIsOnTwoNodesWhenItIsNamedAnew(t *testing.T) {
	for _, members := range []int{2, 3} {
		synctest.Test(t, func(t *testing.T) {
			c, root, blocks, data := founded(t, members)
			defer c.close()
			first := c.nodes[0]
			syncAll(t, first)
			if n := durableOn(c.nodes[1], blocks); n == len(blocks) {
				t.Fatal("repair has copied all before anything was tried")
			}
			// A byte more: most of the blocks are those that were there.
			w, err := manifest.AppendTo(t.Context(), first, format, root)
			if err == nil {
				_, err = w.ReadFrom(t.Context(), bytes.NewReader([]byte("x")))
			}
			if err != nil {
				t.Fatal(err)
			}
			more, err := w.Finish(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			claim(t, first, more.CID)
			wanted := treeBlocks(t, first, more.CID)
			first.local.wipe()
			c.down(true, 0)
			at := c.nodes[1]
			r := manifest.NewReader(at, more, manifest.ReaderOptions{})
			got := make([]byte, len(data)+1)
			if _, err := r.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got[:len(data)], data) {
				t.Errorf("of %d blocks, of the node that is lost: %v", len(wanted), err)
			}
		})
	}
}

// Rule 15, by a node that has not got the blocks.
func TestANodeThatNamesBlocksThatOneOtherHasMakesACopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, root, blocks, _ := founded(t, 3)
		defer c.close()
		claim(t, c.nodes[2], root.CID)
		c.nodes[0].local.wipe()
		c.down(true, 0)
		for _, b := range blocks {
			_, on1 := c.nodes[1].local.holds(b.CID())
			_, on2 := c.nodes[2].local.holds(b.CID())
			if !on1 && !on2 {
				t.Fatal("a block that was named was on the lost node only")
			}
		}
	})
}

// Rule 15, after a crash: blocks that are here, and were not confirmed by others, are
// pending again when somebody is told that they need not be put.
func TestBlocksFromBeforeACrashAreOnTwoNodesWhenTheyAreClaimed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 2, 2, Options{RepairRate: slowly})
		defer c.close()
		time.Sleep(time.Second)
		first := c.nodes[0]
		c.down(true, 1)
		blocks := someBlocks(t, 60, 100_000)
		put(t, first, blocks...)
		if err := first.local.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		c.down(false, 1)
		c.o.Proven = true // which says nothing of blocks that were not named
		c.boot(first)
		first.SetView(c.view)
		syncAll(t, first)
		if n := durableOn(c.nodes[1], blocks); n == len(blocks) {
			t.Fatal("repair has copied all before anything was tried")
		}
		cids := make([]cas.CID, len(blocks))
		for i, b := range blocks {
			cids[i] = b.CID()
		}
		if err := first.ClaimBlocks(t.Context(), cids); err != nil {
			t.Fatal(err)
		}
		syncAll(t, first)
		if n := durableOn(c.nodes[1], blocks); n != len(blocks) {
			t.Errorf("%d of %d blocks are durable on the other node", n, len(blocks))
		}
	})
}

func TestAClaimFailsWhileTheBlocksCannotBeOnTwoNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, root, blocks, _ := founded(t, 2)
		defer c.close()
		c.down(true, 1)
		if err := c.nodes[0].Claim(t.Context(), root.CID); err == nil {
			if err = c.nodes[0].Sync(t.Context()); err == nil {
				t.Fatal("two copies, though there is one node")
			}
		}
		c.down(false, 1)
		claim(t, c.nodes[0], root.CID)
		if n := durableOn(c.nodes[1], blocks); n != len(blocks) {
			t.Errorf("%d of %d blocks are durable on the other node", n, len(blocks))
		}
	})
}

func TestWhatWasClaimedOrPutIsNotAskedForAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, root, _, _ := founded(t, 2)
		defer c.close()
		claim(t, c.nodes[0], root.CID)
		fresh, _, _ := tree(t, c.nodes[0], 1<<20)
		syncAll(t, c.nodes[0])
		_, before := c.nodes[1].asked()
		claim(t, c.nodes[0], root.CID)
		claim(t, c.nodes[0], fresh.CID)
		_, after := c.nodes[1].asked()
		if n := after[1] - before[1]; n != 0 {
			t.Errorf("%d questions more", n)
		}
	})
}

func TestWhenAllHaveRepairedNothingIsClaimedAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 1, 0, Options{})
		defer c.close()
		first := c.nodes[0]
		root, blocks, _ := tree(t, first, 1<<20)
		if _, open := first.Unproven(); open {
			t.Error("a node alone has something to prove")
		}
		c.add(p2p.RoleStorage)
		c.announce()
		since, open := first.Unproven()
		if !open || since != c.view.Epoch {
			t.Fatalf("since epoch %d of %d, %v", since, c.view.Epoch, open)
		}
		time.Sleep(time.Minute)
		for _, n := range c.nodes {
			if s := n.Status(); s.Secured < since {
				t.Fatalf("secured in epoch %d, after a pass in %d", s.Secured, since)
			}
		}
		if n := durableOn(c.nodes[1], blocks); n != len(blocks) {
			t.Errorf("%d of %d blocks are durable on the other node", n, len(blocks))
		}
		if first.SetProven(since - 1) {
			t.Error("proven for another epoch")
		}
		if !first.SetProven(since) {
			t.Error("not proven")
		}
		_, before := c.nodes[1].asked()
		claim(t, first, root.CID)
		if _, after := c.nodes[1].asked(); after[1] != before[1] {
			t.Errorf("%d questions", after[1]-before[1])
		}
		// With one owner again, what is named is on one node.
		c.state(1, p2p.Away)
		c.state(1, p2p.Active)
		if again, open := first.Unproven(); !open || again != c.view.Epoch {
			t.Errorf("since epoch %d of %d, %v", again, c.view.Epoch, open)
		}
	})
}

func TestAPassThatCannotReachTheOthersSecuresNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(t, 1, 0, Options{})
		defer c.close()
		put(t, c.nodes[0], someBlocks(t, 20, 1000)...)
		c.add(p2p.RoleStorage)
		c.down(true, 1)
		c.announce()
		time.Sleep(time.Minute)
		if s := c.nodes[0].Status(); s.Secured != 0 {
			t.Errorf("secured in epoch %d", s.Secured)
		}
		c.down(false, 1)
		time.Sleep(2 * time.Minute)
		if s := c.nodes[0].Status(); s.Secured != c.view.Epoch {
			t.Errorf("secured in epoch %d of %d", s.Secured, c.view.Epoch)
		}
	})
}
