package segment

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/cairnfs/cairn/cas"
)

// every returns every k-th of the blocks, and the others.
func every(k int, blocks []cas.Block) (these, others []cas.Block) {
	for i, b := range blocks {
		if i%k == 0 {
			these = append(these, b)
		} else {
			others = append(others, b)
		}
	}
	return these, others
}

func TestDamagedBlocksAreNeitherMovedNorLostAndTheirSegmentGoesWhenTheyWereStoredAgain(t *testing.T) {
	mem := vfs.NewMem()
	n := start(t, mem, "", small())
	blocks := apart(t, 1, 200, 500)
	put(t, n.Store, blocks...)
	stay, gone := every(4, blocks)
	damaged, intact := every(10, stay)
	for _, b := range damaged {
		corruptible{n}.Corrupt(t, b.CID())
	}
	deleteAll(t, n.Store, gone)
	done := compact(t, n.Store)
	if done.Kept == 0 || done.Kept > len(damaged) || done.Segments == 0 {
		t.Errorf("%+v", done)
	}
	for range 2 {
		wantAll(t, n.Store, intact)
		wantNone(t, n.Store, gone)
		wantExactStats(t, n)
		found := make(map[cas.CID]bool)
		if err := n.Check(context.Background(), func(c cas.CID, err error) {
			if found[c] = true; !errors.Is(err, cas.ErrCorrupt) {
				t.Errorf("%v: %v", c, err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		if len(found) != len(damaged) {
			t.Errorf("%d of %d damaged blocks are reported", len(found), len(damaged))
		}
		if again := compact(t, n.Store); again.Kept != done.Kept || again.Moved > 0 {
			t.Errorf("again: %+v, at first %+v", again, done)
		}
		n.stop(t)
		n = start(t, mem, "", small())
	}
	if err := n.Check(context.Background(), func(cas.CID, error) {}); err != nil { // by which they are known to be
		t.Fatal(err)
	}
	put(t, n.Store, damaged...)
	wantAll(t, n.Store, stay)
	if done := compact(t, n.Store); done.Kept != 0 {
		t.Errorf("after they were stored again: %+v", done)
	}
	wantCompact(t, n)
	wantAll(t, n.Store, stay)
	wantExactStats(t, n)
	n.stop(t)
}

func TestAReaderWhoseSegmentIsRemovedFindsTheBlockWhereItIsNow(t *testing.T) {
	ctx := context.Background()
	for name, read := range map[string]func(*node, cas.CID) error{
		"Get":    func(n *node, c cas.CID) error { _, err := n.Get(ctx, c, nil); return err },
		"Stored": func(n *node, c cas.CID) error { _, err := n.Stored(ctx, c, nil); return err },
	} {
		var meanwhile atomic.Pointer[func()]
		n := start(t, errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
			if op.Kind == errorfs.OpFileReadAt && strings.HasSuffix(op.Path, fileSuffix) {
				if f := meanwhile.Swap(nil); f != nil {
					(*f)()
					return fs.ErrNotExist // as when it is opened only now
				}
			}
			return nil
		})), "", small())
		blocks := apart(t, 1, 200, 500)
		put(t, n.Store, blocks...)
		stay, gone := every(4, blocks)
		moved := func() {
			deleteAll(t, n.Store, gone)
			compact(t, n.Store)
		}
		meanwhile.Store(&moved)
		if err := read(n, stay[0].CID()); err != nil {
			t.Errorf("%s of a block that was moved: %v", name, err)
		}
		deleted := func() { deleteAll(t, n.Store, stay[:1]) }
		meanwhile.Store(&deleted)
		if err := read(n, stay[0].CID()); !errors.Is(err, cas.ErrNotFound) {
			t.Errorf("%s of a block that was deleted: %v", name, err)
		}
		wantAll(t, n.Store, stay[1:])
		n.stop(t)
	}
}

// TestErrorsWhileSpaceIsGivenBack makes any operation on segments fail at random and
// crashes afterwards: what was acknowledged and not deleted is there.
func TestErrorsWhileSpaceIsGivenBack(t *testing.T) {
	for seed := range uint64(40 / effort) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 11))
			var mu sync.Mutex
			var on atomic.Bool
			mem := vfs.NewCrashableMem()
			fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				mu.Lock()
				defer mu.Unlock()
				if on.Load() && strings.HasPrefix(op.Path, "blocks") && op.Kind != errorfs.OpFileClose && rng.IntN(20) == 0 {
					return []syscall.Errno{syscall.EIO, syscall.ENOSPC}[rng.IntN(2)]
				}
				return nil
			}))
			n := start(t, fs, "", small())
			blocks := apart(t, seed, 400, 400)
			put(t, n.Store, blocks...)
			syncS(t, n.Store)
			stay, gone := every(3, blocks)
			deleteAll(t, n.Store, gone)
			on.Store(true)
			failed := 0
			for range 20 {
				if _, err := n.Compact(context.Background()); err != nil {
					failed++
				}
			}
			on.Store(false)
			if failed == 0 {
				t.Error("nothing has failed")
			}
			wantAll(t, n.Store, stay)
			wantNone(t, n.Store, gone)
			wantExactStats(t, n)
			crashed := crash(mem, int(seed%3)*50, seed)
			_ = errors.Join(n.Store.Close(), n.ix.Close()) // may say what had failed
			for _, fs := range []*vfs.MemFS{crashed, mem} {
				n = start(t, fs, "", small())
				wantAll(t, n.Store, stay)
				wantIntact(t, n.Store, gone, false)
				wantExactStats(t, n)
				deleteAll(t, n.Store, gone)
				compact(t, n.Store)
				wantCompact(t, n)
				wantAll(t, n.Store, stay)
				n.stop(t)
			}
		})
	}
}

// fill puts blocks until the disk is full.
func fill(t testing.TB, n *node) (blocks []cas.Block) {
	t.Helper()
	for {
		b := apart(t, uint64(len(blocks)), 1, 700)[0]
		err := n.Put(context.Background(), b)
		if errors.Is(err, cas.ErrNoSpace) {
			return blocks
		}
		if err != nil {
			t.Fatal(err)
		}
		n.tail.budget = 0 // it looks at the disk every time
		blocks = append(blocks, b)
	}
}

// TestAFullDiskIsEmptied: rule 17, deleting and giving space back go on when blocks have
// stopped at the reserve, and use no more than half of it.
func TestAFullDiskIsEmptied(t *testing.T) {
	const reserve = 100 << 10
	for _, c := range []struct {
		segment int64
		enough  bool // half of the reserve, to move the rest of a segment
	}{{8 << 10, true}, {256 << 10, false}} {
		fs := &sizedFS{MemFS: vfs.NewMem()}
		fs.total.Store(1 << 20)
		o := small()
		o.Reserve, o.SegmentSize = reserve, c.segment
		n := start(t, fs, "", o)
		blocks := fill(t, n)
		full := fs.free(t)
		if full >= reserve+1000 {
			t.Fatalf("%d bytes are free on a full disk", full)
		}
		stay, gone := every(3, blocks)
		deleteAll(t, n.Store, gone)
		fs.least.Store(full)
		done, err := n.Compact(context.Background())
		if c.enough && err != nil || !c.enough && !errors.Is(err, cas.ErrNoSpace) {
			t.Errorf("Compact = %+v, %v", done, err)
		}
		if least := fs.least.Load(); least < reserve/2 || least > reserve-1000 {
			t.Errorf("at times %d bytes were free", least)
		}
		if c.enough && fs.free(t) < full+fs.total.Load()/4 {
			t.Errorf("%+v, %d bytes are free", done, fs.free(t))
		}
		wantAll(t, n.Store, stay)
		wantNone(t, n.Store, gone)
		wantExactStats(t, n)
		fs.total.Add(c.segment) // somebody has removed something
		compact(t, n.Store)
		wantCompact(t, n)
		put(t, n.Store, gone[:len(gone)/4]...)
		wantAll(t, n.Store, stay)
		n.stop(t)
	}
}

// sizedFS is a disk of a certain size, of which the segments take up what they are
// long.
type sizedFS struct {
	*vfs.MemFS
	total atomic.Int64
	least atomic.Int64 // of what was free when somebody asked
}

func (f *sizedFS) free(t testing.TB) int64 {
	u, err := f.GetDiskUsage("")
	if err != nil {
		t.Fatal(err)
	}
	return int64(u.AvailBytes)
}

func (f *sizedFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	numbers, err := listSegments(f.MemFS, "blocks")
	if err != nil {
		return vfs.DiskUsage{}, err
	}
	used := int64(0)
	for _, number := range numbers {
		info, err := f.Stat("blocks/" + fileName(number))
		if err != nil {
			return vfs.DiskUsage{}, err
		}
		used += info.Size()
	}
	free := f.total.Load() - used
	for least := f.least.Load(); free < least && !f.least.CompareAndSwap(least, free); {
		least = f.least.Load()
	}
	return vfs.DiskUsage{AvailBytes: uint64(free), TotalBytes: uint64(f.total.Load())}, nil
}

func TestSpaceComesBackByItselfAtALimitedRate(t *testing.T) {
	o := small()
	o.SegmentSize, o.CompactRate = 64<<10, 256<<10
	n := start(t, vfs.NewMem(), "", o)
	defer n.stop(t)
	blocks := apart(t, 1, 1000, 500)
	put(t, n.Store, blocks...)
	stay, gone := every(4, blocks)
	began := time.Now()
	deleteAll(t, n.Store, gone)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if _, bytes := onDisk(t, n); bytes < 300<<10 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("space does not come back")
		}
	}
	// At least most of 250 blocks of 552 bytes are moved.
	if took := time.Since(began); took < 300*time.Millisecond {
		t.Errorf("it took %v", took)
	}
	wantAll(t, n.Store, stay)
	wantNone(t, n.Store, gone)
}

// TestEverythingAtOnce puts, reads, deletes and gives space back from many goroutines.
// Each has blocks of its own, so that it knows what must be there, and all share some.
func TestEverythingAtOnce(t *testing.T) {
	ctx := context.Background()
	mem := vfs.NewMem()
	o := small()
	o.SegmentSize, o.tableBytes, o.CompactRate = 32<<10, 8<<10, 8<<20
	n := start(t, mem, "", o)
	shared := apart(t, 99, 50, 300) // that nobody deletes
	put(t, n.Store, shared...)
	var stop atomic.Bool
	var all sync.WaitGroup
	var mu sync.Mutex
	final := make(map[cas.CID]cas.Block)
	for w := range uint64(4) {
		all.Go(func() {
			rng := rand.New(rand.NewPCG(w, 12))
			own := apart(t, w, 100, 300)
			have := make(map[int]bool)
			for range 1500 / min(effort, 2) {
				i := rng.IntN(len(own))
				switch rng.IntN(5) {
				case 0, 1:
					if err := n.Put(ctx, own[i], shared[rng.IntN(len(shared))]); err != nil {
						t.Error(err)
					}
					have[i] = true
				case 2:
					if _, _, err := n.Delete(ctx, []cas.CID{own[i].CID()}, nil); err != nil {
						t.Error(err)
					}
					delete(have, i)
				case 3:
					_, err := n.Get(ctx, own[i].CID(), nil)
					if have[i] && err != nil || !have[i] && !errors.Is(err, cas.ErrNotFound) {
						t.Errorf("Get of a block that is there (%v): %v", have[i], err)
					}
					if _, err := n.Get(ctx, shared[rng.IntN(len(shared))].CID(), nil); err != nil {
						t.Errorf("Get of a block that is never deleted: %v", err)
					}
				case 4:
					has, err := n.Has(ctx, own[i].CID())
					if err != nil || has[0] != have[i] {
						t.Errorf("Has = %v, %v, want %v", has, err, have[i])
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			for i := range have {
				final[own[i].CID()] = own[i]
			}
		})
	}
	var compacting sync.WaitGroup
	removed := 0
	compacting.Go(func() {
		for !stop.Load() {
			done, err := n.Compact(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			removed += done.Segments
		}
	})
	compacting.Go(func() {
		for !stop.Load() {
			if err := n.Check(ctx, func(c cas.CID, err error) { t.Errorf("%v: %v", c, err) }); err != nil {
				t.Error(err)
			}
			listAll(t, n.Store, 50)
		}
	})
	all.Wait()
	stop.Store(true)
	compacting.Wait()
	if removed == 0 {
		t.Error("no segment was removed")
	}
	for range 2 {
		for _, b := range final {
			wantAll(t, n.Store, []cas.Block{b})
		}
		wantAll(t, n.Store, shared)
		wantExactStats(t, n)
		if got := n.Stats().Blocks; got != int64(len(final)+len(shared)) {
			t.Errorf("%d blocks, want %d", got, len(final)+len(shared))
		}
		n.stop(t)
		n = start(t, mem, "", o)
	}
	n.stop(t)
}
