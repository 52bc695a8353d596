package replica

import (
	"sync"
	"testing"
	"testing/synctest"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/p2p/exchange"
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
		client.Replica.o.Cache = newCache() // nobody has them any more
		wantBlocks(t, client, blocks)
		if _, err := client.Get(t.Context(), cids[0], nil); err == nil {
			t.Error("a block that was read is still in memory")
		}
		client.Replica.o.Cache = cache
		wantBlocks(t, client, blocks)
	})
}

// parcel is blocks that came together, in memory that is overwritten when it is freed.
func parcel(blocks []cas.Block, freed *int) exchange.Parcel {
	p := exchange.Parcel{Blocks: blocks, Errs: make([]error, len(blocks)), Free: func() {
		*freed++
		for _, b := range blocks {
			clear(b.Data())
		}
	}}
	size := 0
	for _, b := range blocks {
		size += len(b.Data())
	}
	p.Memory = make([]byte, size)
	return p
}

func TestRecentBlocksLeaveTogetherWithThoseTheyCameWith(t *testing.T) {
	const size, each = 64 << 10, 32
	var r recent
	r.init()
	freed := 0
	blocks := someBlocks(t, 2*maxRecent/size, size)
	for i := 0; i < len(blocks); i += each {
		r.add(parcel(blocks[i:i+each], &freed))
		if r.bytes > maxRecent {
			t.Fatalf("%d bytes", r.bytes)
		}
	}
	if want := len(blocks) / each / 2; freed != want {
		t.Errorf("the memory of %d parcels was given back, want %d", freed, want)
	}
	for i, b := range blocks {
		got, held := r.take(b.CID(), nil)
		if want := i >= len(blocks)/2; held != want {
			t.Fatalf("block %d of %d: held %v", i, len(blocks), held)
		}
		if held && cas.Sum(cas.Raw, got.Data()) != b.CID() {
			t.Fatalf("block %d of %d has wrong bytes", i, len(blocks))
		}
	}
	if want := len(blocks) / each; freed != want || len(r.groups)+r.bytes+len(r.blocks) > 0 {
		t.Errorf("%d parcels of %d freed; left are %d, with %d bytes and %d blocks", freed, want, len(r.groups), r.bytes, len(r.blocks))
	}
}

// Memory that is used again while a block is copied from it would be wrong bytes with a
// CID.
func TestMemoryIsNotGivenBackWhileABlockIsCopied(t *testing.T) {
	const size, each = 64 << 10, 32
	var r recent
	r.init()
	var readers sync.WaitGroup
	freed := make([]int, 200)
	for i := range freed {
		blocks := someBlocks(t, each, size)
		r.add(parcel(blocks, &freed[i]))
		for _, b := range blocks {
			cid := b.CID()
			readers.Go(func() {
				if got, held := r.take(cid, nil); held && cas.Sum(cas.Raw, got.Data()) != cid {
					t.Errorf("%v has wrong bytes", cid)
				}
			})
		}
	}
	readers.Wait()
	for i, n := range freed {
		if n != 1 {
			t.Errorf("parcel %d was freed %d times", i, n)
		}
	}
}

func TestABlockThatDidNotComeIsNotAmongTheRecent(t *testing.T) {
	var r recent
	r.init()
	freed := 0
	p := parcel(someBlocks(t, 3, 10), &freed)
	p.Errs[1] = cas.ErrNotFound
	r.add(p)
	if _, held := r.take(p.Blocks[1].CID(), nil); held || len(r.blocks) != 2 {
		t.Errorf("%d blocks", len(r.blocks))
	}
}
