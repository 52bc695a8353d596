package segment

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
)

func compact(t testing.TB, s *Store) Compacted {
	t.Helper()
	done, err := s.Compact(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// onDisk returns how many segments there are, and their bytes.
func onDisk(t testing.TB, n *node) (segments int, bytes int64) {
	t.Helper()
	numbers, err := listSegments(n.o.FS, n.o.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, number := range numbers {
		info, err := n.o.FS.Stat(n.files.path(number))
		if missing(err) { // it was removed meanwhile
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		bytes += info.Size()
	}
	return len(numbers), bytes
}

// factor is what the segments may take up after Compact, compared with what is live.
const factor = 2.2

// wantCompact fails unless what the segments take up is in proportion to what is live.
func wantCompact(t testing.TB, n *node) {
	t.Helper()
	segments, bytes := onDisk(t, n)
	stats := n.Stats()
	live := stats.StoredBytes + stats.Blocks*headerSize
	// Besides, what is not worth ending a segment for, and two segments without blocks.
	slack := min(sealAbove, n.o.SegmentSize/8) + 4*fileHeaderSize
	if float64(bytes) > factor*float64(live)+float64(slack) {
		t.Errorf("%d bytes in %d segments, of which %d are live", bytes, segments, live)
	}
}

func TestSpaceOfDeletedBlocksComesBack(t *testing.T) {
	mem := vfs.NewMem()
	n := start(t, mem, "", small())
	blocks := apart(t, 1, 400, 500)
	put(t, n.Store, blocks...)
	_, before := onDisk(t, n)
	var stay []cas.Block
	var gone []cas.Block
	for i, b := range blocks {
		if i%4 == 0 {
			stay = append(stay, b)
		} else {
			gone = append(gone, b)
		}
	}
	deleteAll(t, n.Store, gone)
	stats := n.Stats()
	done := compact(t, n.Store)
	_, after := onDisk(t, n)
	// The headers of new segments are not counted.
	if off := done.Freed - (before - after); off < 0 || off > (before-after)/100 || done.Kept != 0 {
		t.Errorf("%+v; the disk has %d bytes back", done, before-after)
	}
	wantCompact(t, n)
	check := func(n *node) {
		t.Helper()
		wantAll(t, n.Store, stay)
		wantNone(t, n.Store, gone)
		wantExactStats(t, n)
		if n.Stats() != stats {
			t.Errorf("stats %+v, were %+v", n.Stats(), stats)
		}
		if err := n.Check(context.Background(), func(c cas.CID, err error) { t.Errorf("%v: %v", c, err) }); err != nil {
			t.Fatal(err)
		}
	}
	check(n)
	if done := compact(t, n.Store); done.Segments > 2 || done.Moved > 0 {
		t.Errorf("once more: %+v", done)
	}
	for range 2 {
		n.stop(t)
		n = start(t, mem, "", small())
		check(n)
		put(t, n.Store, stay...)
		more := apart(t, 2, 30, 500)
		put(t, n.Store, more...)
		wantAll(t, n.Store, more)
		deleteAll(t, n.Store, more)
	}
	n.stop(t)
	n, err := tryStart(mem, "", small(), Rebuild)
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, n.Store, stay)
	wantExactStats(t, n)
	deleteAll(t, n.Store, blocks)
	deleteAll(t, n.Store, apart(t, 2, 30, 500))
	compact(t, n.Store)
	if segments, bytes := onDisk(t, n); n.Stats() != (Stats{}) || bytes > 1<<10 {
		t.Errorf("all deleted: %+v, %d bytes in %d segments", n.Stats(), bytes, segments)
	}
	put(t, n.Store, blocks...)
	wantAll(t, n.Store, blocks)
	n.stop(t)
}

func TestWhatIsDurableIsValidWhicheverSegmentsWereRemovedWithAndWithoutTheIndex(t *testing.T) {
	for seed := range uint64(40 / effort) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 10))
			fs := vfs.NewCrashableMem()
			o := small()
			if seed%2 == 0 {
				o.tableBytes = 1 << 20 // synced only when somebody asks
			}
			n := start(t, fs, "", o)
			var stay []cas.Block
			for i := range uint64(30) {
				blocks := apart(t, seed<<8|i, rng.IntN(30), 400)
				put(t, n.Store, blocks...)
				switch rng.IntN(6) {
				case 0:
					compact(t, n.Store)
				case 1:
					syncS(t, n.Store)
				case 2:
					stay = append(stay, blocks...)
					continue
				}
				deleteAll(t, n.Store, blocks)
			}
			syncS(t, n.Store)
			end := n.Mark()
			for _, rebuilt := range []bool{false, true} {
				after := crash(fs, 0, seed)
				if rebuilt {
					if err := after.RemoveAll("index"); err != nil {
						t.Fatal(err)
					}
				}
				n := start(t, after, "", o)
				if n.ValidMark() < end {
					t.Errorf("rebuilt %v: valid to %s, durable to %s", rebuilt, describe(n.ValidMark()), describe(end))
				}
				wantAll(t, n.Store, stay)
				n.stop(t)
			}
			n.stop(t)
		})
	}
}
