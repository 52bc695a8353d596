package segment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/stamp"
)

// node is a store with its index, as a node has them.
type node struct {
	*Store
	ix *index.DB
}

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// defaultReserve asks for the Reserve of zero Options; in tests, zero is none.
const defaultReserve = 1<<63 - 1

// start opens a store and its index, which lie in a file system under dir.
func start(t testing.TB, fs vfs.FS, dir string, o Options) *node {
	t.Helper()
	n, err := tryStart(fs, dir, o, Open)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func tryStart(fs vfs.FS, dir string, o Options, open func(Options) (*Store, error)) (*node, error) {
	return tryStartWith(fs, fs, dir, o, open)
}

// tryStartWith has the index in a file system of its own.
func tryStartWith(fs, indexFS vfs.FS, dir string, o Options, open func(Options) (*Store, error)) (*node, error) {
	random := rand.NewChaCha8([32]byte{1})
	ix, err := index.Open(index.Options{
		FS: indexFS, Dir: fs.PathJoin(dir, "index"), Logger: quiet(), Random: random,
		CacheBytes: 1 << 20, MemTableBytes: 1 << 20,
	})
	if err != nil {
		return nil, err
	}
	o.FS, o.Dir, o.Index, o.Random = fs, fs.PathJoin(dir, "blocks"), ix, random
	if o.Logger == nil {
		o.Logger = quiet()
	}
	switch o.Reserve {
	case 0:
		o.Reserve = -1
	case defaultReserve:
		o.Reserve = 0
	}
	s, err := open(o)
	if err != nil {
		return nil, errors.Join(err, ix.Close())
	}
	return &node{s, ix}, nil
}

// stop closes both.
func (n *node) stop(t testing.TB) {
	t.Helper()
	if err := errors.Join(n.Store.Close(), n.ix.Close()); err != nil {
		t.Error(err)
	}
}

// small are options with which little data makes many segments, that are compacted when
// a test says so.
func small() Options { return Options{SegmentSize: 8 << 10, tableBytes: 4 << 10, CompactRate: -1} }

// someBlocks returns n blocks of 0 to 3000 bytes; a third of them compress.
func someBlocks(t testing.TB, seed uint64, n int) []cas.Block {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 3))
	blocks := make([]cas.Block, n)
	for i := range blocks {
		data := castest.Bytes(rng.Uint64(), rng.IntN(3000))
		if i%3 == 0 {
			data = bytes.Repeat([]byte(fmt.Sprintf("%d %d ", seed, i)), len(data)/8)
		}
		b, err := cas.NewBlock(cas.Raw, data)
		if err != nil {
			t.Fatal(err)
		}
		blocks[i] = b
	}
	return blocks
}

func put(t testing.TB, s *Store, blocks ...cas.Block) {
	t.Helper()
	if err := s.Put(context.Background(), blocks...); err != nil {
		t.Fatal(err)
	}
}

func syncS(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// wantAll fails unless the store returns each of the blocks.
func wantAll(t testing.TB, s *Store, blocks []cas.Block) {
	t.Helper()
	for i, b := range blocks {
		got, err := s.Get(context.Background(), b.CID(), nil)
		if err != nil || !bytes.Equal(got.Data(), b.Data()) {
			t.Fatalf("block %d of %d: %v", i, len(blocks), err)
		}
	}
}

func TestStoreKeepsTheContract(t *testing.T) {
	t.Run("on disk", func(t *testing.T) {
		castest.Run(t, func(t testing.TB) cas.Store {
			n := start(t, vfs.Default, t.TempDir(), Options{})
			t.Cleanup(func() { n.stop(t) })
			return corruptible{n}
		})
	})
	t.Run("in many small segments", func(t *testing.T) {
		castest.Run(t, func(t testing.TB) cas.Store {
			n := start(t, vfs.NewMem(), "", small())
			t.Cleanup(func() { n.stop(t) })
			return corruptible{n}
		})
	})
}

func TestAfterACleanShutdownEverythingIsThereAndNoSegmentIsScanned(t *testing.T) {
	mem := vfs.NewMem()
	blocks := someBlocks(t, 1, 200)
	n := start(t, mem, "", small())
	put(t, n.Store, blocks...)
	stats, end := n.Stats(), n.Mark()
	n.stop(t)
	var read atomic.Int64
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if strings.HasSuffix(op.Path, fileSuffix) {
			if op.Kind == errorfs.OpFileRead || op.Kind == errorfs.OpFileReadAt {
				read.Add(1)
			}
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpFileClose {
				t.Errorf("%s is written to: %v", op.Path, op.Kind)
			}
		}
		return nil
	}))
	n = start(t, fs, "", small())
	if n := read.Load(); n > 1 {
		t.Errorf("%d reads of segments, want one of the last one's header", n)
	}
	if n.Stats() != stats || n.Mark() != end || n.ValidMark() != end {
		t.Errorf("stats %+v, mark %x, valid %x; were %+v and %x", n.Stats(), n.Mark(), n.ValidMark(), stats, end)
	}
	wantAll(t, n.Store, blocks)
	n.stop(t)
	n = start(t, mem, "", small())
	more := someBlocks(t, 2, 50)
	put(t, n.Store, more...)
	wantAll(t, n.Store, append(more, blocks...))
	n.stop(t)
}

func TestTheSameBlockFromManyPutsIsStoredOnce(t *testing.T) {
	n := start(t, vfs.NewMem(), "", Options{tableBytes: 64 << 10})
	defer n.stop(t)
	blocks := someBlocks(t, 1, 300)
	var wg sync.WaitGroup
	for w := range uint64(8) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(w, 0))
			for i := 0; i < len(blocks); {
				k := min(len(blocks), i+1+rng.IntN(40))
				if err := n.Put(context.Background(), blocks[i:k]...); err != nil {
					t.Error(err)
				}
				i = k
			}
		})
	}
	wg.Wait()
	var raw int64
	distinct := make(map[cas.CID]bool)
	for _, b := range blocks {
		if !distinct[b.CID()] {
			distinct[b.CID()] = true
			raw += int64(len(b.Data()))
		}
	}
	got := n.Stats()
	if got.Blocks != int64(len(distinct)) || got.RawBytes != raw {
		t.Errorf("stats %+v, want %d blocks of %d bytes", got, len(distinct), raw)
	}
	_, end := position(n.Mark())
	if want := fileHeaderSize + got.Blocks*headerSize + got.StoredBytes; end != want {
		t.Errorf("the segment ends at %d, want %d", end, want)
	}
}

func TestOfTwoPutsOfABlockThatBothFoundItMissingOneStoresIt(t *testing.T) {
	ctx := context.Background()
	for _, indexed := range []bool{false, true} { // in between
		n := start(t, vfs.NewMem(), "", Options{})
		b := castest.Block(t, 1, 100)
		var first, second group
		for _, g := range []*group{&first, &second} {
			g.headers = make([]byte, headerSize)
			if err := n.prepare(g, &b); err != nil || len(g.records) != 1 {
				t.Fatalf("prepare: %v, %d records", err, len(g.records))
			}
		}
		if err := n.putGroup(ctx, &first); err != nil {
			t.Fatal(err)
		}
		if indexed {
			if err := n.retire(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.putGroup(ctx, &second); err != nil {
			t.Fatal(err)
		}
		if _, end := position(n.Mark()); end != fileHeaderSize+headerSize+100 || n.Stats().Blocks != 1 {
			t.Errorf("indexed %v: the segment ends at %d, stats %+v", indexed, end, n.Stats())
		}
		n.stop(t)
	}
}

func TestWhatCompressesTakesLessSpaceAndWhatDoesNotTakesNoMore(t *testing.T) {
	n := start(t, vfs.NewMem(), "", Options{})
	defer n.stop(t)
	put(t, n.Store, castest.Block(t, 1, 100_000))
	if got := n.Stats(); got.StoredBytes != 100_000 {
		t.Errorf("random bytes: %+v", got)
	}
	text, err := cas.NewBlock(cas.Raw, bytes.Repeat([]byte("all work and no play makes jack a dull boy\n"), 2000))
	if err != nil {
		t.Fatal(err)
	}
	put(t, n.Store, text)
	if got := n.Stats(); got.StoredBytes > 110_000 || got.RawBytes != 186_000 {
		t.Errorf("with text: %+v", got)
	}
}

func TestTheTableOfBlocksNotYetIndexedIsBounded(t *testing.T) {
	hold, held := make(chan struct{}), make(chan struct{}, 1000)
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && strings.HasSuffix(op.Path, fileSuffix) {
			held <- struct{}{}
			<-hold
		}
		return nil
	}))
	n := start(t, fs, "", Options{tableBytes: 10_000})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		for i := range uint64(1000) {
			if err := n.Put(ctx, castest.Block(t, i, 1000)); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	<-held // the disk does not answer
	for len(n.table.entries()) < 20 {
		if _, wait, _ := n.table.full(); wait {
			break
		}
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Put = %v while the table is full", err)
	}
	if k := len(n.table.entries()); k > 35 {
		t.Errorf("%d blocks in a table of 2 × 10 kB", k)
	}
	close(hold)
	n.stop(t)
}

func TestConcurrentSyncsShareOne(t *testing.T) {
	var syncs atomic.Int32
	entered, release := make(chan struct{}, 100), make(chan struct{})
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && strings.HasSuffix(op.Path, fileSuffix) {
			syncs.Add(1)
			entered <- struct{}{}
			<-release
		}
		return nil
	}))
	n := start(t, fs, "", Options{})
	var wg, ready sync.WaitGroup
	one := func(i uint64) {
		ready.Add(1)
		wg.Go(func() {
			if err := n.Put(context.Background(), castest.Block(t, i, 100)); err != nil {
				t.Error(err)
			}
			ready.Done()
			if err := n.Sync(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	one(0)
	<-entered
	const callers = 50
	for i := range uint64(callers) {
		one(i + 1)
	}
	ready.Wait()
	close(release)
	wg.Wait()
	if k := syncs.Load(); k > 3 {
		t.Errorf("%d syncs for %d callers that came during the first", k, callers)
	}
	n.stop(t)
}

func TestManySegmentsAreReadThroughFewOpenFiles(t *testing.T) {
	n := start(t, vfs.NewMem(), "", Options{SegmentSize: 1, tableBytes: 64 << 10})
	defer n.stop(t)
	blocks := make([]cas.Block, 2*maxOpenFiles)
	for i := range blocks {
		blocks[i] = castest.Block(t, uint64(i), 100)
		put(t, n.Store, blocks[i])
	}
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(w, 0))
			for range 1000 {
				b := blocks[rng.IntN(len(blocks))]
				if _, err := n.Get(context.Background(), b.CID(), nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if open := len(n.files.open); n.tail.last != uint32(len(blocks)) || open > maxOpenFiles {
		t.Errorf("%d of %d files are open", open, n.tail.last)
	}
}

func TestAStoreOfANewerVersionIsRefusedUntouched(t *testing.T) {
	fs := vfs.NewMem()
	if _, err := stamp.Open(fs, "blocks", "segments", FormatVersion+1, rand.NewChaCha8([32]byte{})); err != nil {
		t.Fatal(err)
	}
	before, err := fs.List("blocks")
	if err != nil {
		t.Fatal(err)
	}
	var newer *stamp.VersionError
	if _, err := tryStart(fs, "", Options{}, Open); !errors.As(err, &newer) {
		t.Errorf("Open = %v, want a VersionError", err)
	}
	if after, err := fs.List("blocks"); err != nil || len(after) != len(before) {
		t.Errorf("the directory changed: %v, %v", after, err)
	}
}

func TestReadingAndWritingDoNotAllocate(t *testing.T) {
	n := start(t, vfs.Default, t.TempDir(), Options{})
	defer n.stop(t)
	ctx := context.Background()
	blocks := someBlocks(t, 1, 500)
	put(t, n.Store, blocks...)
	buf := make([]byte, 4096)
	i := 0
	next := func() cas.Block { i++; return blocks[i%len(blocks)] }
	if k := testing.AllocsPerRun(2000, func() {
		if _, err := n.Get(ctx, next().CID(), buf); err != nil {
			t.Fatal(err)
		}
	}); k > 0 {
		t.Errorf("Get of blocks in the table: %v allocations", k)
	}
	if k := testing.AllocsPerRun(2000, func() {
		if err := n.Put(ctx, next()); err != nil {
			t.Fatal(err)
		}
	}); k > 0 {
		t.Errorf("Put of blocks that are held: %v allocations", k)
	}
}
