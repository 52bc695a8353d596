package segment

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/index"
)

func cidsOf(blocks []cas.Block) []cas.CID {
	cids := make([]cas.CID, len(blocks))
	for i, b := range blocks {
		cids[i] = b.CID()
	}
	return cids
}

func deleteAll(t testing.TB, s *Store, blocks []cas.Block) (deleted int, freed int64) {
	t.Helper()
	deleted, freed, err := s.Delete(context.Background(), cidsOf(blocks), nil)
	if err != nil {
		t.Fatal(err)
	}
	return deleted, freed
}

// wantNone fails unless none of the blocks is held.
func wantNone(t testing.TB, s *Store, blocks []cas.Block) {
	t.Helper()
	has, err := s.Has(context.Background(), cidsOf(blocks)...)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range blocks {
		if _, err := s.Get(context.Background(), b.CID(), nil); !errors.Is(err, cas.ErrNotFound) || has[i] {
			t.Fatalf("block %d of %d: Get = %v, Has = %v", i, len(blocks), err, has[i])
		}
		if _, err := s.Stored(context.Background(), b.CID(), nil); !errors.Is(err, cas.ErrNotFound) {
			t.Fatalf("block %d of %d: Stored = %v", i, len(blocks), err)
		}
	}
}

// apart returns n blocks of which no two are the same, none of them empty.
func apart(t testing.TB, seed uint64, n, size int) []cas.Block {
	t.Helper()
	blocks := make([]cas.Block, n)
	for i := range blocks {
		blocks[i] = castest.Block(t, seed<<32|uint64(i), size)
	}
	return blocks
}

func TestADeletedBlockIsNotFoundAndCanBeStoredAgain(t *testing.T) {
	for name, before := range map[string]func(*node) error{
		"not synced": func(*node) error { return nil },
		"retired":    func(n *node) error { return n.retire(context.Background()) },
		"flushed":    func(n *node) error { return errors.Join(n.retire(context.Background()), n.ix.Flush()) },
	} {
		t.Run(name, func(t *testing.T) {
			n := start(t, vfs.NewMem(), "", Options{})
			defer n.stop(t)
			blocks := apart(t, 1, 1000, 50)
			put(t, n.Store, blocks...)
			if err := before(n); err != nil {
				t.Fatal(err)
			}
			gone, stay := blocks[:600], blocks[600:]
			if k, freed := deleteAll(t, n.Store, slices.Concat(gone, gone[7:8], apart(t, 9, 1, 9))); k != 600 || freed != 600*50 {
				t.Errorf("%d blocks of %d bytes are said to be deleted", k, freed)
			}
			if k, freed := deleteAll(t, n.Store, gone); k != 0 || freed != 0 {
				t.Errorf("again: %d blocks of %d bytes", k, freed)
			}
			wantNone(t, n.Store, gone)
			wantAll(t, n.Store, stay)
			wantExactStats(t, n)
			if got := listAll(t, n.Store, 100); len(got) != len(stay) {
				t.Errorf("%d blocks are listed", len(got))
			}
			put(t, n.Store, gone...)
			wantAll(t, n.Store, blocks)
			wantExactStats(t, n)
			if n.Stats().Blocks != 1000 {
				t.Errorf("%+v", n.Stats())
			}
		})
	}
}

func TestADamagedBlockCanBeDeletedAndStoredAgain(t *testing.T) {
	n := start(t, vfs.NewMem(), "", Options{})
	defer n.stop(t)
	blocks := apart(t, 1, 10, 100)
	put(t, n.Store, blocks...)
	if err := n.retire(context.Background()); err != nil {
		t.Fatal(err)
	}
	b := blocks[4]
	corruptible{n}.Corrupt(t, b.CID())
	if _, err := n.Get(context.Background(), b.CID(), nil); !errors.Is(err, cas.ErrCorrupt) {
		t.Fatal(err)
	}
	// A Put that found it damaged, and comes to write when it is deleted.
	g := group{headers: make([]byte, headerSize)}
	if err := n.prepare(&g, &b); err != nil || g.records[0].was == (index.Location{}) {
		t.Fatalf("prepare: %v, %+v", err, g.records)
	}
	deleteAll(t, n.Store, blocks[4:5])
	wantNone(t, n.Store, blocks[4:5])
	wantExactStats(t, n)
	if err := n.putGroup(context.Background(), &g); err != nil {
		t.Fatal(err)
	}
	wantAll(t, n.Store, blocks)
	wantExactStats(t, n)
	if err := n.retire(context.Background()); err != nil {
		t.Fatal(err)
	}
	wantExactStats(t, n)
}

// TestDeleteSeesEveryAnswerThatABlockIsHeld is of rule 16: a block of which somebody
// was told that it is held is not deleted, if the collector says so, and whoever comes
// later is told that it is not.
func TestDeleteSeesEveryAnswerThatABlockIsHeld(t *testing.T) {
	var mu sync.Mutex
	promised := make(map[cas.CID]bool)
	promise := func(c cas.CID) {
		mu.Lock()
		defer mu.Unlock()
		promised[c] = true
	}
	ctx := context.Background()
	n := start(t, vfs.NewMem(), "", Options{Touched: promise, SegmentSize: 64 << 10, tableBytes: 8 << 10})
	defer n.stop(t)
	blocks := apart(t, 1, 400, 60)
	put(t, n.Store, blocks...)
	if len(promised) != len(blocks) {
		t.Fatalf("%d of %d new blocks are known to the collector", len(promised), len(blocks))
	}
	for round := range uint64(200 / effort) {
		clear(promised)
		var wg sync.WaitGroup
		var told [4][]cas.Block // what each was told is held
		for w := range told {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(round, uint64(w)))
				for range 50 {
					b := blocks[rng.IntN(len(blocks))]
					held := true
					if rng.IntN(2) == 0 {
						has, err := n.Has(ctx, b.CID())
						if err != nil {
							t.Error(err)
							return
						}
						held = has[0]
					} else if err := n.Put(ctx, b); err != nil {
						t.Error(err)
					}
					if held {
						told[w] = append(told[w], b)
					}
				}
			})
		}
		wg.Go(func() {
			_, _, err := n.Delete(ctx, cidsOf(blocks), func(c cas.CID) bool {
				mu.Lock()
				defer mu.Unlock()
				return promised[c]
			})
			if err != nil {
				t.Error(err)
			}
		})
		wg.Wait()
		for w := range told {
			wantAll(t, n.Store, told[w])
		}
		wantExactStats(t, n)
		if t.Failed() {
			return
		}
	}
}

func TestABlockThatIsStoredWhileDeleteRunsStays(t *testing.T) {
	n := start(t, vfs.NewMem(), "", Options{})
	defer n.stop(t)
	blocks := apart(t, 1, 2*deleteBatch, 20)
	put(t, n.Store, blocks[:deleteBatch]...)
	first := true
	var wg sync.WaitGroup
	defer wg.Wait()
	k, _, err := n.Delete(context.Background(), cidsOf(blocks), func(cas.CID) bool {
		if first {
			first = false
			wg.Go(func() {
				if err := n.Put(context.Background(), blocks[deleteBatch:]...); err != nil {
					t.Error(err)
				}
			})
		}
		return false
	})
	if err != nil || k != deleteBatch {
		t.Errorf("Delete = %d, %v", k, err)
	}
	wg.Wait()
	wantNone(t, n.Store, blocks[:deleteBatch])
	wantAll(t, n.Store, blocks[deleteBatch:])
}

func TestAfterACrashADeletedBlockIsGoneOrAsItWas(t *testing.T) {
	for seed := range uint64(20 / min(effort, 4)) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 9))
			fs := vfs.NewCrashableMem()
			n := start(t, fs, "", small())
			blocks := someBlocks(t, seed, 200)
			put(t, n.Store, blocks...)
			syncS(t, n.Store)
			gone, stay := blocks[:100], blocks[100:]
			deleteAll(t, n.Store, gone)
			flushed := rng.IntN(2) == 0
			if flushed {
				if err := n.ix.Flush(); err != nil {
					t.Fatal(err)
				}
			}
			put(t, n.Store, stay[0])
			after := crash(fs, []int{0, 50, 100}[rng.IntN(3)], rng.Uint64())
			n.stop(t)
			n = start(t, after, "", small())
			wantAll(t, n.Store, stay)
			wantExactStats(t, n)
			if flushed {
				for _, b := range gone {
					if len(held(t, n.Store, []cas.Block{b})) > 0 && !among(b, stay) {
						t.Fatal("a block is there though the index was flushed without it")
					}
				}
			} else {
				wantIntact(t, n.Store, gone, false)
			}
			n.stop(t)
			n, err := tryStart(after, "", small(), Rebuild) // brings back what still has its bytes
			if err != nil {
				t.Fatal(err)
			}
			wantAll(t, n.Store, blocks)
			wantExactStats(t, n)
			n.stop(t)
		})
	}
}

func among(b cas.Block, blocks []cas.Block) bool {
	for _, c := range blocks {
		if b.CID() == c.CID() {
			return true
		}
	}
	return false
}

func TestAListingSaysWhereBlocksLieSoThatNewOnesAreKnown(t *testing.T) {
	n := start(t, vfs.NewMem(), "", small())
	defer n.stop(t)
	before, after := apart(t, 1, 100, 300), apart(t, 2, 100, 300)
	put(t, n.Store, before...)
	mark := n.Mark()
	put(t, n.Store, after...)
	put(t, n.Store, before[:10]...) // which changes nothing
	var from index.Hash
	young := 0
	for page := []Held(nil); ; from = page[len(page)-1].CID.Hash() {
		var err error
		if page, err = n.ListHeld(context.Background(), from, 7, page); err != nil {
			t.Fatal(err)
		}
		for _, h := range page {
			b := cas.Block{}
			for _, c := range append(before, after...) {
				if c.CID() == h.CID {
					b = c
				}
			}
			if h.Raw != len(b.Data()) || h.Stored != 300 || (h.Mark >= mark) != among(b, after) {
				t.Errorf("%+v", h)
			}
			if h.Mark >= mark {
				young++
			}
		}
		if len(page) < 7 {
			break
		}
	}
	if young != 100 {
		t.Errorf("%d blocks are young", young)
	}
}
