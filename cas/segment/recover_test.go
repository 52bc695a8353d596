package segment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/index"
)

// copyOf returns an independent copy of a file system.
func copyOf(fs *vfs.MemFS) *vfs.MemFS { return crash(fs, 100, 1) }

// crash returns what a power loss leaves of fs: what was synced, and of the rest
// the given percentage.
func crash(fs *vfs.MemFS, percent int, seed uint64) *vfs.MemFS {
	return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(seed, 4))})
}

// wantIntact fails unless each block is either not found, or right, or, where
// that is allowed, corrupt. It returns how many are right.
func wantIntact(t testing.TB, s *Store, blocks []cas.Block, corruptAllowed bool) int {
	t.Helper()
	right := 0
	for i, b := range blocks {
		got, err := s.Get(context.Background(), b.CID(), nil)
		switch {
		case err == nil && bytes.Equal(got.Data(), b.Data()):
			right++
		case errors.Is(err, cas.ErrNotFound):
		case errors.Is(err, cas.ErrCorrupt) && corruptAllowed:
		default:
			t.Fatalf("block %d: %v", i, err)
		}
	}
	return right
}

// wantExactStats fails unless the statistics are those of what the index and the
// table hold.
func wantExactStats(t testing.TB, n *node) {
	t.Helper()
	n.settling.Lock() // so that nothing is on its way from the table to the index
	defer n.settling.Unlock()
	places := make(map[index.Hash]index.Location)
	err := n.ix.EachBlock(func(hash *index.Hash, at index.Location) error {
		places[*hash] = at
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range slices.Backward(n.table.entries()) { // the later place of a block last
		places[e.Hash] = e.At
	}
	var want Stats
	for _, at := range places {
		want.Blocks++
		want.RawBytes += int64(at.Raw)
		want.StoredBytes += int64(at.Stored)
	}
	if got := n.Stats(); got != want {
		t.Fatalf("stats %+v, the store holds %+v", got, want)
	}
}

func TestAfterAPowerLossWhatWasSyncedIsThereAndTheRestIsRightOrAbsent(t *testing.T) {
	for seed := range uint64(40 / effort) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 5))
			fs := vfs.NewCrashableMem()
			var synced, all []cas.Block
			for round := range uint64(4) {
				n := start(t, fs, "", small())
				wantAll(t, n.Store, synced)
				wantIntact(t, n.Store, all, false)
				wantExactStats(t, n)
				for i := range uint64(3) {
					batch := someBlocks(t, seed*1000+round*10+i, 1+rng.IntN(30))
					put(t, n.Store, batch...)
					all = append(all, batch...)
					if rng.IntN(2) == 0 {
						syncS(t, n.Store)
						synced = held(t, n.Store, all)
					}
				}
				after := crash(fs, []int{0, 10, 50, 90, 100}[rng.IntN(5)], rng.Uint64())
				n.stop(t)
				fs = after
			}
		})
	}
}

// held returns those of the blocks that the store holds.
func held(t testing.TB, s *Store, blocks []cas.Block) []cas.Block {
	t.Helper()
	var have []cas.Block
	for _, b := range blocks {
		if has, err := s.Has(context.Background(), b.CID()); err != nil {
			t.Fatal(err)
		} else if has[0] {
			have = append(have, b)
		}
	}
	return have
}

func TestWithoutItsIndexAStoreIsRebuiltAsItWas(t *testing.T) {
	mem := vfs.NewCrashableMem()
	blocks := someBlocks(t, 1, 300)
	n := start(t, mem, "", small())
	put(t, n.Store, blocks...)
	stats, end := n.Stats(), n.Mark()
	n.stop(t)
	lost := func(fs *vfs.MemFS) {
		if err := fs.RemoveAll("index"); err != nil {
			t.Fatal(err)
		}
	}
	foreign := func(fs *vfs.MemFS) {
		ix, err := index.Open(index.Options{FS: fs, Dir: "index", Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		b := blocks[0].CID().Hash()
		wrong := index.Location{Segment: 1, Offset: 64, Stored: 5, Raw: 5}
		b[0]++
		if err := errors.Join(ix.ResetBlocks([16]byte{9}), ix.AddBlocks([]index.Entry{{Hash: b, At: wrong}}, 1<<33), ix.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(*vfs.MemFS){"lost": lost, "of another store": foreign} {
		fs := copyOf(mem)
		change(fs)
		for range 2 { // rebuilt, and opened again
			n := start(t, fs, "", small())
			if n.Stats() != stats || n.ValidMark() != end || n.Mark() != end {
				t.Errorf("index %s: stats %+v, valid to %x of %x; were %+v to %x", name, n.Stats(), n.ValidMark(), n.Mark(), stats, end)
			}
			wantAll(t, n.Store, blocks)
			n.stop(t)
		}
	}
	n, err := tryStart(copyOf(mem), "", small(), Rebuild)
	if err != nil {
		t.Fatal(err)
	}
	if n.Stats() != stats {
		t.Errorf("on request: stats %+v, were %+v", n.Stats(), stats)
	}
	wantAll(t, n.Store, blocks)
	n.stop(t)
}

func TestARebuildThatWasInterruptedIsFinishedByTheNextOpen(t *testing.T) {
	mem := vfs.NewCrashableMem()
	blocks := someBlocks(t, 1, 300)
	n := start(t, mem, "", small())
	put(t, n.Store, blocks...)
	stats := n.Stats()
	n.stop(t)
	if err := mem.RemoveAll("index"); err != nil {
		t.Fatal(err)
	}
	for seed := range uint64(10) {
		fs := copyOf(mem)
		ix, err := index.Open(index.Options{FS: fs, Dir: "index", Logger: quiet()})
		if err != nil {
			t.Fatal(err)
		}
		// As far as the rebuild had come, by what it tells the index.
		r := &recovery{s: n.Store, entries: make(map[index.Hash]slot)}
		n.ix, n.Store.ix, n.o.FS, n.files.fs = ix, ix, fs, fs
		if err := errors.Join(ix.ResetBlocks(n.id), r.look()); err != nil {
			t.Fatal(err)
		}
		r.base = r.segments[len(r.segments)-1].header.synced
		for i := range r.segments[:int(seed)*len(r.segments)/10] {
			if err := r.scan(&r.segments[i]); err != nil {
				t.Fatal(err)
			}
		}
		if err := ix.Close(); err != nil {
			t.Fatal(err)
		}
		again := start(t, fs, "", small())
		if again.Stats() != stats {
			t.Errorf("stats %+v, were %+v", again.Stats(), stats)
		}
		wantAll(t, again.Store, blocks)
		again.stop(t)
	}
}

func TestValidMarkEndsAtTheFirstGapAndStaysThereUntilSomethingIsPut(t *testing.T) {
	mem := vfs.NewCrashableMem()
	n := start(t, mem, "", Options{})
	var marks []uint64
	var blocks []cas.Block
	for i := range uint64(10) {
		b := castest.Block(t, i, 500)
		put(t, n.Store, b)
		blocks = append(blocks, b)
		marks = append(marks, n.Mark())
	}
	fs := copyOf(mem) // killed, nothing synced
	n.stop(t)
	_, offset := position(marks[4])
	flip(t, fs, "blocks/"+fileName(1), offset+headerSize+100) // the sixth block is torn
	for range 3 {
		n := start(t, fs, "", Options{})
		if n.ValidMark() != marks[4] || n.Mark() != marks[4] {
			t.Errorf("valid to %x, mark %x, want %x", n.ValidMark(), n.Mark(), marks[4])
		}
		// What lies behind the gap is intact and therefore held.
		if right := wantIntact(t, n.Store, blocks, false); right != 9 {
			t.Errorf("%d blocks of 10 are held", right)
		}
		after := copyOf(fs)
		n.stop(t)
		fs = after
	}
	n = start(t, fs, "", Options{})
	put(t, n.Store, blocks...)
	end := n.Mark()
	if segment, _ := position(end); segment != 2 {
		t.Errorf("appended to segment %d, want a new one", segment)
	}
	killed := copyOf(fs)
	n.stop(t)
	n = start(t, killed, "", Options{})
	if n.ValidMark() != end {
		t.Errorf("valid to %x, want %x: the gap was known when the second segment began", n.ValidMark(), end)
	}
	wantAll(t, n.Store, blocks)
	n.stop(t)
}

func FuzzParseRecordHeader(f *testing.F) {
	h := header{codec: 0x55, stored: 10, raw: 10}
	b := make([]byte, headerSize)
	h.put(b, 1, 64)
	f.Add(b, uint32(1), int64(64))
	f.Fuzz(func(t *testing.T, b []byte, seed uint32, offset int64) {
		h, ok := parseHeader(b, seed, offset)
		if !ok {
			return
		}
		if h.raw > cas.MaxBlockSize || h.stored > h.raw {
			t.Errorf("%x reads as %+v", b, h)
		}
		again := make([]byte, headerSize)
		if h.put(again, seed, offset); !bytes.Equal(again, b[:headerSize]) {
			t.Errorf("%x reads as %+v, which is stored as %x", b, h, again)
		}
	})
}

func FuzzParseFileHeader(f *testing.F) {
	h := fileHeader{segment: 3, store: [16]byte{1}, continues: 5, synced: 4}
	f.Add(h.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, ok := parseFileHeader(b); ok && !bytes.Equal(h.append(nil)[:48], b[:48]) {
			t.Errorf("%x reads as %+v", b, h)
		}
	})
}

// FuzzSegment opens a store whose second segment is arbitrary bytes.
func FuzzSegment(f *testing.F) {
	fs := vfs.NewMem()
	n := start(f, fs, "", small())
	blocks := someBlocks(f, 1, 10)
	put(f, n.Store, blocks...)
	n.stop(f)
	for _, number := range []uint32{1, 2} {
		file, err := fs.Open("blocks/" + fileName(number))
		if err != nil {
			f.Fatal(err)
		}
		b, err := io.ReadAll(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, segment []byte) {
		fs := vfs.NewMem()
		n := start(t, fs, "", Options{})
		put(t, n.Store, blocks[:2]...)
		n.stop(t)
		file, err := fs.Create("blocks/"+fileName(2), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.Write(bytes.Clone(segment)); err != nil {
			t.Fatal(err)
		}
		n = start(t, fs, "", Options{})
		wantExactStats(t, n)
		if err := n.Check(context.Background(), func(c cas.CID, err error) { t.Errorf("%v: %v", c, err) }); err != nil {
			t.Fatal(err)
		}
		put(t, n.Store, blocks...)
		wantAll(t, n.Store, blocks)
		n.stop(t)
	})
}
