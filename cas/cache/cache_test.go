package cache

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/index/stamp"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func open(t testing.TB, fs vfs.FS, maxBytes int64) *Cache {
	t.Helper()
	c, err := Open(Options{FS: fs, Dir: "cache", MaxBytes: maxBytes, Logger: quiet(), wait: true})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func closeCache(t testing.TB, c *Cache) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func put(t testing.TB, c *Cache, blocks ...cas.Block) {
	t.Helper()
	if err := c.Put(context.Background(), blocks...); err != nil {
		t.Fatal(err)
	}
}

// holds says whether the cache returns the block; wrong bytes end the test.
func holds(t testing.TB, c *Cache, b cas.Block) bool {
	t.Helper()
	got, err := c.Get(context.Background(), b.CID(), nil)
	if err != nil {
		if !errors.Is(err, cas.ErrNotFound) {
			t.Fatal(err)
		}
		return false
	}
	if !bytes.Equal(got.Data(), b.Data()) {
		t.Fatal("wrong bytes")
	}
	return true
}

// store is a cache as a cas.Store: it waits for the disk, and nothing is too much.
type store struct{ *Cache }

func (s store) Sync(ctx context.Context) error {
	s.Flush()
	return ctx.Err()
}

func TestWithRoomForAllACacheKeepsTheContractOfAStore(t *testing.T) {
	castest.Run(t, func(t testing.TB) cas.Store {
		c := open(t, vfs.NewMem(), 1<<30)
		t.Cleanup(func() { closeCache(t, c) })
		return store{c}
	})
}

func TestACacheStaysBelowItsLimitAndDropsWhatWasUsedLongestAgo(t *testing.T) {
	const limit = 4 << 20
	fs := vfs.NewMem()
	c := open(t, fs, limit)
	defer closeCache(t, c)
	hot := castest.Block(t, 1<<40, 5000)
	put(t, c, hot)
	var blocks []cas.Block
	rnd := rand.New(rand.NewPCG(1, 0))
	for i := range uint64(4000) {
		b := castest.Block(t, i, 5000)
		blocks = append(blocks, b)
		put(t, c, b)
		if i%50 == 0 && !holds(t, c, hot) {
			t.Fatalf("a block that is read again and again is gone after %d others", i)
		}
		if rnd.IntN(100) == 0 { // so that pieces are of any size
			c.Flush()
			if size := diskSize(t, fs); size > limit {
				t.Fatalf("%d bytes on disk", size)
			}
		}
	}
	c.Flush()
	for i, b := range blocks {
		if held := holds(t, c, b); held != (i >= 3500) && (i < 3000 || i >= 3500) {
			t.Fatalf("block %d of %d is held: %v", i, len(blocks), held)
		}
	}
	if s := c.Stats(); s.Bytes != diskSize(t, fs) || s.Bytes < limit*8/10 || s.Blocks < 500 || s.Hits == 0 || s.Misses == 0 {
		t.Errorf("%+v, %d bytes on disk", s, diskSize(t, fs))
	}
}

func diskSize(t testing.TB, fs vfs.FS) (sum int64) {
	t.Helper()
	names, err := fs.List("cache")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.HasSuffix(name, suffix) {
			continue
		}
		info, err := fs.Stat(fs.PathJoin("cache", name))
		if err != nil {
			t.Fatal(err)
		}
		sum += info.Size()
	}
	return sum
}

func TestWhatWasWrittenIsThereAfterARestart(t *testing.T) {
	fs := vfs.NewMem()
	var blocks []cas.Block
	for round := range uint64(3) {
		c := open(t, fs, 64<<20)
		for _, b := range blocks {
			if !holds(t, c, b) {
				t.Fatal("a block is gone")
			}
		}
		for i := range uint64(100) {
			b := castest.Block(t, round<<32|i, 100*int(i))
			blocks = append(blocks, b)
			put(t, c, b)
		}
		closeCache(t, c)
	}
}

func TestASmallerLimitHoldsFromTheStart(t *testing.T) {
	fs := vfs.NewMem()
	c := open(t, fs, 8<<20)
	for i := range uint64(1000) {
		put(t, c, castest.Block(t, i, 5000))
	}
	closeCache(t, c)
	c = open(t, fs, 1<<20)
	defer closeCache(t, c)
	if size := diskSize(t, fs); size > 1<<20 || size == 0 {
		t.Errorf("%d bytes on disk", size)
	}
}

func TestABitFlippedAnywhereIsNeverReturned(t *testing.T) {
	var blocks []cas.Block
	for i := range uint64(5) {
		blocks = append(blocks, castest.Block(t, i, 200))
	}
	const end = fileHeaderSize + 5*(headerSize+200)
	for offset := int64(0); offset < fileHeaderSize+pageSize; offset++ {
		if offset == 20 {
			offset = fileHeaderSize - 20 // there is nothing in between
		}
		fs := vfs.NewMem()
		c := open(t, fs, 8<<20)
		put(t, c, blocks...)
		closeCache(t, c)
		flip(t, fs, fs.PathJoin("cache", fileName(1)), offset)
		c = open(t, fs, 8<<20)
		held := 0
		for _, b := range blocks {
			if holds(t, c, b) { // fails the test if bytes are wrong
				held++
				continue
			}
			put(t, c, b)
			if !holds(t, c, b) {
				t.Fatal("a block that was lost cannot be put again")
			}
		}
		inPayload := (offset-fileHeaderSize)%(headerSize+200) >= headerSize
		if inPayload && offset >= fileHeaderSize && offset < end && held != len(blocks)-1 {
			t.Errorf("a bit of a block at %d leaves %d blocks of %d", offset, held, len(blocks))
		}
		closeCache(t, c)
	}
}

func flip(t testing.TB, fs vfs.FS, path string, offset int64) {
	t.Helper()
	f, err := fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAFileCutShortAnywhereLosesItsEndOnly(t *testing.T) {
	var blocks []cas.Block
	for i := range uint64(10) {
		blocks = append(blocks, castest.Block(t, i, 100))
	}
	for cut := int64(0); cut < 10*148+fileHeaderSize; cut += 37 {
		fs := vfs.NewMem()
		c := open(t, fs, 8<<20)
		put(t, c, blocks...)
		closeCache(t, c)
		truncate(t, fs, fs.PathJoin("cache", fileName(1)), cut)
		c = open(t, fs, 8<<20)
		for i, b := range blocks {
			if held := holds(t, c, b); held != (fileHeaderSize+int64(i+1)*148 <= cut) {
				t.Errorf("cut at %d: block %d is held: %v", cut, i, held)
			}
		}
		put(t, c, blocks...)
		for _, b := range blocks {
			if !holds(t, c, b) {
				t.Errorf("cut at %d: a block is not held after it was put again", cut)
			}
		}
		closeCache(t, c)
	}
}

func truncate(t testing.TB, fs vfs.FS, path string, size int64) {
	t.Helper()
	f, err := fs.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	if size > 0 {
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
	}
	w, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
}

// faulty is a disk that can be made to fail.
type faulty struct {
	mu   sync.Mutex
	fail func(op errorfs.Op) bool
}

func (f *faulty) MaybeError(op errorfs.Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil && f.fail(op) {
		return errors.New("injected")
	}
	return nil
}

func (f *faulty) String() string { return "faulty" }

func (f *faulty) set(fail func(errorfs.Op) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

// lines counts what is logged.
type lines struct {
	mu sync.Mutex
	n  int
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	return len(p), nil
}

func TestWhenTheDiskFailsBlocksAreMissingAndThatIsSaidOnce(t *testing.T) {
	mem, disk, logged := vfs.NewMem(), new(faulty), new(lines)
	c, err := Open(Options{
		FS: errorfs.Wrap(mem, disk), Dir: "cache", MaxBytes: 4 << 20, wait: true,
		Logger: slog.New(slog.NewTextHandler(logged, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	var blocks []cas.Block
	fill := func(seed uint64) {
		for i := range uint64(300) {
			b := castest.Block(t, seed+i, 1000)
			blocks = append(blocks, b)
			put(t, c, b)
		}
		c.Flush()
	}
	check := func() (held int) {
		for _, b := range blocks {
			if holds(t, c, b) {
				held++
			}
		}
		return held
	}
	fill(0)
	before := check()
	disk.set(func(op errorfs.Op) bool { return op.Kind == errorfs.OpFileWriteAt || op.Kind == errorfs.OpFileWrite })
	fill(1000)
	if held := check(); held != before {
		t.Errorf("%d blocks are held, %d were before", held, before)
	}
	if names, err := mem.List("cache"); err != nil || len(names) > filesWanted {
		t.Errorf("%d files: %v", len(names), err)
	}
	disk.set(nil)
	fill(2000)
	if held := check(); held != before+300 {
		t.Errorf("%d blocks are held when the disk works again", held)
	}
	disk.set(func(op errorfs.Op) bool { return op.Kind == errorfs.OpFileReadAt })
	if held := check(); held != 0 {
		t.Errorf("%d blocks are read from a disk that cannot be read", held)
	}
	for i := range uint64(5000) { // old files go though they cannot be read
		put(t, c, castest.Block(t, 1<<40+i, 1000))
	}
	c.Flush()
	disk.set(nil)
	check()
	if size := diskSize(t, mem); size > 4<<20 {
		t.Errorf("%d bytes on disk", size)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if logged.n != 1 {
		t.Errorf("%d lines were logged", logged.n)
	}
}

func TestPutNeverWaitsForTheDiskAndMemoryIsBounded(t *testing.T) {
	disk := new(faulty)
	c, err := Open(Options{FS: errorfs.Wrap(vfs.NewMem(), disk), Dir: "cache", Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	release := make(chan struct{})
	disk.set(func(op errorfs.Op) bool {
		if op.Kind == errorfs.OpFileWriteAt {
			<-release
		}
		return false
	})
	for i := range uint64(64) {
		put(t, c, castest.Block(t, i, 900_000))
	}
	c.mu.Lock()
	waiting := len(c.pending)
	c.mu.Unlock()
	if waiting > maxPieces+1 {
		t.Errorf("%d MiB wait", waiting)
	}
	close(release)
	closeCache(t, c)
}

func TestADirectoryOfAnotherKindOrANewerVersionIsLeftAlone(t *testing.T) {
	fs := vfs.NewMem()
	if _, err := stamp.Open(fs, "cache", "segments", 1, bytes.NewReader(make([]byte, 64))); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{FS: fs, Dir: "cache", Logger: quiet()}); err == nil {
		t.Error("a directory of segments is opened")
	}
	fs = vfs.NewMem()
	if _, err := stamp.Open(fs, "cache", "cache", FormatVersion+1, bytes.NewReader(make([]byte, 64))); err != nil {
		t.Fatal(err)
	}
	var newer *stamp.VersionError
	if _, err := Open(Options{FS: fs, Dir: "cache", Logger: quiet()}); !errors.As(err, &newer) {
		t.Errorf("a newer version: %v", err)
	}
}

func TestACacheOfTheVersionBeforeIsEmptied(t *testing.T) {
	fs := vfs.NewMem()
	if _, err := stamp.Open(fs, "cache", "cache", FormatVersion-1, bytes.NewReader(make([]byte, 64))); err != nil {
		t.Fatal(err)
	}
	w, err := fs.Create(fs.PathJoin("cache", fileName(7)), vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(append([]byte(fileMagic), 1, 0, 0, 0, 0, 0, 0, 0)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b := castest.Block(t, 1, 1000)
	for range 2 {
		c := open(t, fs, 1<<20)
		put(t, c, b)
		if !holds(t, c, b) {
			t.Error("a block is not held after it was put")
		}
		closeCache(t, c)
	}
	if names, err := fs.List("cache"); err != nil || slices.Contains(names, fileName(7)) {
		t.Errorf("%v, %v", names, err)
	}
}

// The files of a real disk are written around the kernel's memory, in pieces of all
// lengths, and read as any others.
func TestBlocksOfAllSizesAreReadBackFromADisk(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "cache"), MaxBytes: 64 << 20, Logger: quiet(), wait: true}
	rng := rand.New(rand.NewPCG(1, 2))
	var blocks []cas.Block
	for round := range 3 {
		c, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 60 {
			b := castest.Block(t, uint64(round<<32|i), rng.IntN(1+rng.IntN(200_000)))
			blocks = append(blocks, b)
			put(t, c, b)
			if rng.IntN(10) == 0 {
				c.Flush()
			}
		}
		c.Flush()
		for i, b := range blocks {
			if !holds(t, c, b) {
				t.Errorf("round %d: block %d is gone", round, i)
			}
		}
		closeCache(t, c)
	}
}

// adopt gives the cache blocks in memory as they might come from a peer, and returns how
// often done was called so far.
func adopt(c *Cache, blocks ...cas.Block) (memory []byte, dones *atomic.Int32) {
	var at []int
	own := make([]cas.Block, len(blocks))
	for _, b := range blocks {
		memory = append(memory, "what the peer says of the block"...)
		at = append(at, len(memory))
		memory = append(memory, b.Data()...)
	}
	for i, b := range blocks {
		own[i] = b.Copy(memory[at[i]:][:0:len(b.Data())])
	}
	dones = new(atomic.Int32)
	c.Adopt(memory, own, at, func() {
		dones.Add(1)
		clear(memory) // it is somebody else's now
	})
	return memory, dones
}

func TestAdoptedBlocksAreReadBackAndTheirMemoryIsGivenBackOnce(t *testing.T) {
	for _, o := range []Options{
		{FS: vfs.NewMem(), Dir: "cache", MaxBytes: 64 << 20, Logger: quiet(), wait: true},
		{Dir: filepath.Join(t.TempDir(), "cache"), MaxBytes: 64 << 20, Logger: quiet(), wait: true},
	} {
		var blocks []cas.Block
		var dones []*atomic.Int32
		for round := range uint64(3) {
			c, err := Open(o)
			if err != nil {
				t.Fatal(err)
			}
			for i := range uint64(20) {
				var came []cas.Block
				for k := range i % 13 {
					came = append(came, castest.Block(t, round<<32|i<<16|k, 1+int(i*k*997)))
				}
				blocks = append(blocks, came...)
				_, n := adopt(c, came...)
				dones = append(dones, n)
				if i%5 == 2 { // others in between
					b := castest.Block(t, round<<32|i<<16|1000, 5000)
					blocks = append(blocks, b)
					put(t, c, b)
				}
				for _, b := range came { // while they wait
					if !holds(t, c, b) {
						t.Fatal("a block is gone that was just adopted")
					}
				}
			}
			c.Flush()
			for _, b := range blocks {
				if !holds(t, c, b) {
					t.Fatal("a block is gone")
				}
			}
			closeCache(t, c)
		}
		for i, n := range dones {
			if n.Load() != 1 {
				t.Errorf("the memory of parcel %d was given back %d times", i, n.Load())
			}
		}
	}
}

func TestAParcelThatIsHeldOrTooLargeIsNotKept(t *testing.T) {
	c := open(t, vfs.NewMem(), 1<<20)
	defer closeCache(t, c)
	held, large := castest.Block(t, 1, 1000), castest.Block(t, 2, 100_000)
	put(t, c, held)
	for _, b := range []cas.Block{held, large} {
		if _, n := adopt(c, b); n.Load() != 1 {
			t.Errorf("a parcel with %d bytes waits", len(b.Data()))
		}
	}
	if !holds(t, c, held) || holds(t, c, large) {
		t.Error("wrong blocks are held")
	}
}

// Whatever bit is wrong in a parcel, its index included, no block is wrong.
func TestABitFlippedInAParcelIsNeverReturned(t *testing.T) {
	blocks := []cas.Block{castest.Block(t, 1, 50), castest.Block(t, 2, 60), castest.Block(t, 3, 70)}
	after := castest.Block(t, 4, 80)
	const index, data = fileHeaderSize, fileHeaderSize + pageSize
	for offset := int64(index); offset < data+400; offset++ {
		if offset == index+parcelHead+3*parcelEntry {
			offset = data
		}
		fs := vfs.NewMem()
		c := open(t, fs, 8<<20)
		adopt(c, blocks...)
		c.Flush()
		put(t, c, after)
		closeCache(t, c)
		flip(t, fs, fs.PathJoin("cache", fileName(1)), offset)
		c = open(t, fs, 8<<20)
		held := 0
		for _, b := range append(blocks, after) {
			if holds(t, c, b) { // fails the test if bytes are wrong
				held++
			}
		}
		if offset < data && held != 0 || offset >= data && held < len(blocks) {
			t.Errorf("a bit at %d leaves %d blocks", offset, held)
		}
		closeCache(t, c)
	}
}

func TestTheFormatOfParcelsStays(t *testing.T) {
	fs := vfs.NewMem()
	c := open(t, fs, 8<<20)
	b, err := cas.NewBlock(cas.Raw, []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	adopt(c, b)
	closeCache(t, c)
	f, err := fs.Open(fs.PathJoin("cache", fileName(1)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 3*pageSize)
	copy(want, "cairnche\x02")
	index, err := hex.DecodeString("43726e500100000000100000" + "165e629a" +
		"551f00000005000000ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f")
	if err != nil {
		t.Fatal(err)
	}
	copy(want[pageSize:], index)
	copy(want[2*pageSize:], "what the peer says of the blockhello")
	if !bytes.Equal(got, want) {
		t.Errorf("%x", got[pageSize:][:64])
	}
}

func TestTheFormatOfFilesStays(t *testing.T) {
	fs := vfs.NewMem()
	c := open(t, fs, 8<<20)
	b, err := cas.NewBlock(cas.Raw, []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, c, b)
	closeCache(t, c)
	f, err := fs.Open(fs.PathJoin("cache", fileName(1)))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 2*pageSize)
	copy(want, "cairnche\x02")
	record, err := hex.DecodeString("43726e435500000005000000ea8f163db38682925e4491c5e58d4bb3506ef8c14eb78a86e908c5624a67200f38654673" +
		"68656c6c6f")
	if err != nil {
		t.Fatal(err)
	}
	copy(want[pageSize:], record)
	if !bytes.Equal(got, want) {
		t.Errorf("%x", got)
	}
}

func BenchmarkPutAndGet(b *testing.B) {
	c, err := Open(Options{Dir: b.TempDir(), MaxBytes: 1 << 30, Logger: quiet(), wait: true})
	if err != nil {
		b.Fatal(err)
	}
	blocks := make([]cas.Block, 2000)
	for i := range blocks {
		blocks[i] = castest.Block(b, uint64(i), 64<<10)
	}
	buf := make([]byte, 64<<10)
	b.SetBytes(64 << 10)
	for i := range b.N {
		block := blocks[i%len(blocks)]
		put(b, c, block)
		if _, err := c.Get(context.Background(), block.CID(), buf); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if err := c.Close(); err != nil {
		b.Fatal(err)
	}
}

// FuzzFile: whatever a file of the cache holds, nothing wrong is returned.
func FuzzFile(f *testing.F) {
	b := castest.Block(f, 1, 50)
	head := make([]byte, fileHeaderSize)
	copy(head, fileMagic+"\x02")
	hash := b.CID().Hash()
	f.Add(append(appendHeader(head, hash, byte(cas.Raw), 50), b.Data()...))
	f.Add(head)
	f.Fuzz(func(t *testing.T, data []byte) {
		fs := vfs.NewMem()
		closeCache(t, open(t, fs, 1<<20))
		w, err := fs.Create(fs.PathJoin("cache", fileName(7)), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		c := open(t, fs, 1<<20)
		holds(t, c, b)
		put(t, c, b)
		if !holds(t, c, b) {
			t.Fatal("a block is not held after it was put")
		}
		closeCache(t, c)
	})
}
