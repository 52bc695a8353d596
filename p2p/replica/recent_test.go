package replica

import (
	"testing"
	"testing/synctest"

	"github.com/cairnfs/cairn/cas"
)

func TestWhatPrefetchBroughtIsReadFromMemoryOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, client, blocks := spread(t, 3, 3, 100, 2000)
		defer c.close()
		var cids []cas.CID
		for _, b := range blocks {
			cids = append(cids, b.CID())
		}
		client.Prefetch(t.Context(), cids)
		synctest.Wait()
		for _, n := range c.nodes[:3] {
			n.set(func(p *port) { p.down = true })
		}
		cache := client.cache
		client.Replica.o.Cache = new(kept) // nobody has them any more
		wantBlocks(t, client, blocks)
		if _, err := client.Get(t.Context(), cids[0], nil); err == nil {
			t.Error("a block that was read is still in memory")
		}
		client.Replica.o.Cache = cache
		wantBlocks(t, client, blocks)
	})
}

func TestRecentBlocksLeaveTogetherWithThoseTheyCameWith(t *testing.T) {
	const size, each = 64 << 10, 32
	var r recent
	r.init()
	blocks := someBlocks(t, 2*maxRecent/size, size)
	for i := 0; i < len(blocks); i += each {
		var g group
		for k, b := range blocks[i : i+each] {
			r.add(&g, b, k == 0)
			if r.bytes > maxRecent {
				t.Fatalf("%d bytes", r.bytes)
			}
		}
	}
	for i, b := range blocks {
		_, held := r.take(b.CID())
		if want := i >= len(blocks)/2 && i%each != 0; held != want {
			t.Fatalf("block %d of %d: held %v", i, len(blocks), held)
		}
	}
	var g group
	r.add(&g, blocks[0], false) // the groups that nothing is left of go
	if len(r.groups) != 1 || r.bytes != size || len(r.blocks) != 1 {
		t.Errorf("%d groups of %d bytes, %d blocks", len(r.groups), r.bytes, len(r.blocks))
	}
}
