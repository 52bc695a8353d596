package segment

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
)

// corruptible is a store whose blocks can be damaged on disk.
type corruptible struct{ *node }

func (n corruptible) Corrupt(t testing.TB, c cas.CID) {
	t.Helper()
	hash := c.Hash()
	at, ok, _, err := n.locate(&hash)
	if !ok || err != nil {
		t.Fatalf("locate %v: %v, %v", c, ok, err)
	}
	flip(t, n.o.FS, n.files.path(at.Segment), int64(at.Offset)+headerSize+int64(at.Stored)/2)
}

// flip changes one bit of a file.
func flip(t testing.TB, fs vfs.FS, path string, offset int64) {
	t.Helper()
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1 << (offset % 8)
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
}

func TestABlockFoundDamagedIsStoredAgainByPut(t *testing.T) {
	for _, indexed := range []bool{false, true} {
		mem := vfs.NewCrashableMem()
		n := start(t, mem, "", Options{})
		blocks := someBlocks(t, 1, 10)
		put(t, n.Store, blocks...)
		stats := n.Stats()
		if indexed {
			if err := errors.Join(n.retire(context.Background()), n.ix.Flush()); err != nil {
				t.Fatal(err)
			}
		}
		b := blocks[4]
		corruptible{n}.Corrupt(t, b.CID())
		if _, err := n.Get(context.Background(), b.CID(), nil); !errors.Is(err, cas.ErrCorrupt) {
			t.Fatalf("Get = %v", err)
		}
		if has, err := n.Has(context.Background(), b.CID()); err != nil || has[0] {
			t.Errorf("Has = %v, %v of a block known to be damaged", has, err)
		}
		put(t, n.Store, b)
		put(t, n.Store, b)
		syncS(t, n.Store)
		after := start(t, crash(mem, 0, 1), "", Options{})
		wantAll(t, after.Store, blocks)
		wantExactStats(t, after)
		after.stop(t)
		for range 2 {
			wantAll(t, n.Store, blocks)
			if n.Stats() != stats {
				t.Errorf("stats %+v, were %+v", n.Stats(), stats)
			}
			n.stop(t)
			n = start(t, mem, "", Options{})
		}
		n.stop(t)
		n, err := tryStart(mem, "", Options{}, Rebuild)
		if err != nil {
			t.Fatal(err)
		}
		wantAll(t, n.Store, blocks)
		if n.Stats() != stats {
			t.Errorf("rebuilt: stats %+v, were %+v", n.Stats(), stats)
		}
		n.stop(t)
	}
}

func TestCheckReportsEveryDamagedBlockAndNoOther(t *testing.T) {
	n := start(t, vfs.NewMem(), "", small())
	defer n.stop(t)
	blocks := someBlocks(t, 1, 200)
	put(t, n.Store, blocks...)
	damaged := make(map[cas.CID]bool)
	for i := 0; i < len(blocks); i += 7 {
		if len(blocks[i].Data()) > 0 && !damaged[blocks[i].CID()] {
			damaged[blocks[i].CID()] = true
			corruptible{n}.Corrupt(t, blocks[i].CID())
		}
	}
	for range 2 {
		found := make(map[cas.CID]bool)
		if err := n.Check(context.Background(), func(c cas.CID, err error) {
			if !errors.Is(err, cas.ErrCorrupt) || !damaged[c] || found[c] {
				t.Errorf("%v: %v", c, err)
			}
			found[c] = true
		}); err != nil {
			t.Fatal(err)
		}
		if len(found) != len(damaged) {
			t.Errorf("%d of %d damaged blocks were found", len(found), len(damaged))
		}
	}
	put(t, n.Store, blocks...)
	if err := n.Check(context.Background(), func(c cas.CID, err error) { t.Errorf("after repair: %v", err) }); err != nil {
		t.Fatal(err)
	}
}

// sampleOffsets returns offsets in all segments: each of a segment's header and
// first two records', and some of the rest.
func sampleOffsets(t testing.TB, fs vfs.FS, every int) map[uint32][]int64 {
	t.Helper()
	numbers, err := listSegments(fs, "blocks")
	if err != nil {
		t.Fatal(err)
	}
	offsets := make(map[uint32][]int64)
	for i, number := range numbers {
		info, err := fs.Stat("blocks/" + fileName(number))
		if err != nil {
			t.Fatal(err)
		}
		for offset := int64(0); offset < info.Size(); offset++ {
			if i == len(numbers)/2 && offset < fileHeaderSize+headerSize && offset%effort == 0 || offset%int64(every) == int64(i) {
				offsets[number] = append(offsets[number], offset)
			}
		}
	}
	return offsets
}

func TestABitFlippedAnywhereIsNeverReturnedAndCostsOneBlockAtMost(t *testing.T) {
	mem := vfs.NewCrashableMem()
	blocks := someBlocks(t, 1, 40)
	n := start(t, mem, "", small())
	put(t, n.Store, blocks...)
	n.stop(t)
	held := int(n.Stats().Blocks)
	distinct := make(map[cas.CID]cas.Block)
	for _, b := range blocks {
		distinct[b.CID()] = b
	}
	blocks = blocks[:0]
	for _, b := range distinct {
		blocks = append(blocks, b)
	}
	for number, offsets := range sampleOffsets(t, mem, 501*effort) {
		for _, offset := range offsets {
			for _, indexLost := range []bool{false, true} {
				fs := copyOf(mem)
				flip(t, fs, "blocks/"+fileName(number), offset)
				if indexLost {
					if err := fs.RemoveAll("index"); err != nil {
						t.Fatal(err)
					}
				}
				n := start(t, fs, "", small())
				if right := wantIntact(t, n.Store, blocks, !indexLost); right < held-1 {
					t.Errorf("segment %d, offset %d, index lost %v: %d of %d blocks are right", number, offset, indexLost, right, held)
				}
				if indexLost {
					wantExactStats(t, n)
				}
				put(t, n.Store, blocks...)
				wantAll(t, n.Store, blocks)
				n.stop(t)
			}
		}
	}
}

func TestASegmentCutShortLosesWhatWasCutOffAndIsNotAppendedTo(t *testing.T) {
	mem := vfs.NewCrashableMem()
	blocks := someBlocks(t, 1, 12)
	n := start(t, mem, "", Options{})
	put(t, n.Store, blocks...)
	n.stop(t)
	f, err := mem.Open("blocks/" + fileName(1))
	if err != nil {
		t.Fatal(err)
	}
	whole, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	for size := 0; size < len(whole); size += 97 * effort {
		for _, indexLost := range []bool{false, true} {
			fs := copyOf(mem)
			f, err := fs.Create("blocks/"+fileName(1), vfs.WriteCategoryUnspecified)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Write(bytes.Clone(whole[:size])); err != nil {
				t.Fatal(err)
			}
			if indexLost {
				if err := fs.RemoveAll("index"); err != nil {
					t.Fatal(err)
				}
			}
			n := start(t, fs, "", Options{})
			wantIntact(t, n.Store, blocks, !indexLost)
			put(t, n.Store, blocks...)
			wantAll(t, n.Store, blocks)
			n.stop(t)
			if !indexLost { // else the cut may be where a record ended
				if info, err := fs.Stat("blocks/" + fileName(1)); err != nil || info.Size() != int64(size) {
					t.Errorf("cut to %d bytes, the segment is now %d long, %v", size, info.Size(), err)
				}
			}
			n = start(t, fs, "", Options{})
			wantAll(t, n.Store, blocks)
			n.stop(t)
		}
	}
}

func TestAMissingSegmentIsDamageToItsBlocksOnly(t *testing.T) {
	mem := vfs.NewCrashableMem()
	blocks := someBlocks(t, 1, 60)
	n := start(t, mem, "", small())
	put(t, n.Store, blocks...)
	n.stop(t)
	numbers, err := listSegments(mem, "blocks")
	if err != nil {
		t.Fatal(err)
	}
	for _, number := range numbers {
		fs := copyOf(mem)
		if err := fs.Remove("blocks/" + fileName(number)); err != nil {
			t.Fatal(err)
		}
		n := start(t, fs, "", small())
		if right := wantIntact(t, n.Store, blocks, true); right == len(blocks) || right == 0 {
			t.Errorf("without segment %d, %d of %d blocks are right", number, right, len(blocks))
		}
		put(t, n.Store, blocks...)
		wantAll(t, n.Store, blocks)
		n.stop(t)
		if n, err = tryStart(fs, "", small(), Rebuild); err != nil {
			t.Fatal(err)
		}
		wantAll(t, n.Store, blocks)
		n.stop(t)
	}
}
