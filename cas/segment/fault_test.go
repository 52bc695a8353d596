package segment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/index/journal"
)

// cachedFS behaves as an operating system with a page cache does when a disk
// fails: written bytes are in the cache; a sync writes to the disk what is dirty;
// and a sync that fails leaves it in the cache, clean, so that the next sync
// succeeds without having written it. Files, but not their bytes, are durable at
// once.
type cachedFS struct {
	vfs.FS // the cache
	disk   *vfs.MemFS

	mu    sync.Mutex
	dirty map[string]map[int64][]byte // by file and offset
	fail  bool                        // the next syncs
}

func newCachedFS() *cachedFS {
	return &cachedFS{FS: vfs.NewMem(), disk: vfs.NewMem(), dirty: make(map[string]map[int64][]byte)}
}

func (c *cachedFS) setFail(fail bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = fail
}

func (c *cachedFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := c.touch(name); err != nil {
		return nil, err
	}
	f, err := c.FS.Create(name, category)
	return &cachedFile{File: f, fs: c, name: name}, err
}

func (c *cachedFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	if err := c.touch(name); err != nil {
		return nil, err
	}
	f, err := c.FS.OpenReadWrite(name, category, opts...)
	return &cachedFile{File: f, fs: c, name: name}, err
}

func (c *cachedFS) touch(name string) error {
	f, err := c.disk.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	return f.Close()
}

func (c *cachedFS) MkdirAll(dir string, perm os.FileMode) error {
	return errors.Join(c.disk.MkdirAll(dir, perm), c.FS.MkdirAll(dir, perm))
}

func (c *cachedFS) Rename(from, to string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dirty[to] = c.dirty[from]
	delete(c.dirty, from)
	return errors.Join(c.disk.Rename(from, to), c.FS.Rename(from, to))
}

func (c *cachedFS) Remove(name string) error {
	return errors.Join(c.disk.Remove(name), c.FS.Remove(name))
}

type cachedFile struct {
	vfs.File
	fs   *cachedFS
	name string
	pos  int64
}

func (f *cachedFile) Write(p []byte) (int, error) {
	n, err := f.WriteAt(p, f.pos)
	f.pos += int64(n)
	return n, err
}

func (f *cachedFile) WriteAt(p []byte, offset int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.fs.dirty[f.name] == nil {
		f.fs.dirty[f.name] = make(map[int64][]byte)
	}
	f.fs.dirty[f.name][offset] = bytes.Clone(p)
	return f.File.WriteAt(p, offset)
}

func (f *cachedFile) Sync() error { return f.SyncData() }

func (f *cachedFile) SyncData() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	dirty := f.fs.dirty[f.name]
	delete(f.fs.dirty, f.name)
	if f.fs.fail {
		return syscall.EIO
	}
	disk, err := f.fs.disk.OpenReadWrite(f.name, vfs.WriteCategoryUnspecified)
	for offset, p := range dirty {
		if err == nil {
			_, err = disk.WriteAt(p, offset)
		}
	}
	return errors.Join(err, disk.Close())
}

func TestAfterAFailedSyncTheStoreRefusesAndOpenedAgainMakesGoodWhatTheCacheHides(t *testing.T) {
	fs := newCachedFS()
	open := func(fs vfs.FS) *node { // each with a new index, that is, after a rebuild
		n, err := tryStartWith(fs, vfs.NewMem(), "", Options{}, Open)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := open(fs)
	before, during := castest.Block(t, 1, 1000), castest.Block(t, 2, 1000)
	put(t, n.Store, before)
	syncS(t, n.Store)
	put(t, n.Store, during)
	fs.setFail(true)
	if err := n.Sync(context.Background()); !errors.Is(err, syscall.EIO) {
		t.Errorf("Sync = %v", err)
	}
	fs.setFail(false)
	for range 2 {
		if err := n.Sync(context.Background()); !errors.Is(err, syscall.EIO) {
			t.Errorf("the next Sync = %v, want the first one's error", err)
		}
		if err := n.Put(context.Background(), castest.Block(t, 3, 10)); !errors.Is(err, syscall.EIO) {
			t.Errorf("Put = %v, want the first one's error", err)
		}
	}
	wantAll(t, n.Store, []cas.Block{before, during}) // reading goes on
	if err := n.Store.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("Close = %v", err)
	}
	n = open(fs)
	put(t, n.Store, during)
	syncS(t, n.Store)
	// The power goes: what was answered for must be on the disk.
	wantAll(t, open(fs.disk).Store, []cas.Block{before, during})
}

func TestAJournalOpenedAfterAFailedSyncMakesGoodWhatTheCacheHides(t *testing.T) {
	fs := newCachedFS()
	open := func(fs vfs.FS) (j *journal.Journal, payloads []string) {
		j, err := journal.Open(journal.Options{FS: fs, Dir: "journal", FlushAfter: -1, Logger: quiet(), FileSize: 200})
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Replay(1, 0, func(r journal.Record) error {
			payloads = append(payloads, string(r.Payload))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return j, payloads
	}
	j, _ := open(fs)
	var want []string
	for i := range 30 {
		want = append(want, fmt.Sprint("record ", i))
		if _, _, err := j.Append(journal.KindCommand, 0, []byte(want[i])); err != nil {
			t.Fatal(err)
		}
		if i == 10 {
			if err := j.Sync(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		fs.setFail(i > 27)
	}
	if err := j.Sync(context.Background()); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Sync = %v", err)
	}
	fs.setFail(false)
	j, got := open(fs)
	if len(got) != 30 || j.Synced() != 30 {
		t.Fatalf("%d records after opening again, synced %d", len(got), j.Synced())
	}
	if _, got := open(fs.disk); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the disk has %q", got)
	}
}

// onSegments injects an error into operations on segments while on is set.
func onSegments(fs vfs.FS, on *atomic.Bool, err error, kinds ...errorfs.OpKind) vfs.FS {
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if on.Load() && strings.HasSuffix(op.Path, fileSuffix) {
			for _, kind := range kinds {
				if op.Kind == kind {
					return err
				}
			}
		}
		return nil
	}))
}

func TestAFailedWriteStoresNothingAndTheStoreGoesOn(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO} {
		var on atomic.Bool
		mem := vfs.NewCrashableMem()
		n := start(t, onSegments(mem, &on, errno, errorfs.OpFileWriteAt, errorfs.OpCreate), "", small())
		var stored []cas.Block
		for i := range uint64(60) {
			b := castest.Block(t, i, 900)
			on.Store(i%4 == 3)
			err := n.Put(context.Background(), b)
			if i%4 != 3 {
				if err != nil {
					t.Fatalf("Put = %v", err)
				}
				stored = append(stored, b)
				continue
			}
			if !errors.Is(err, errno) || errors.Is(err, cas.ErrNoSpace) != (errno != syscall.EIO) {
				t.Errorf("Put = %v on %v", err, errno)
			}
			if has, err := n.Has(context.Background(), b.CID()); err != nil || has[0] {
				t.Errorf("Has = %v, %v of a block that was refused", has, err)
			}
		}
		on.Store(false)
		wantAll(t, n.Store, stored)
		wantExactStats(t, n)
		end := n.Mark()
		syncS(t, n.Store)
		crashed := crash(mem, 0, 1)
		n.stop(t)
		for _, fs := range []vfs.FS{mem, crashed} {
			n = start(t, fs, "", small())
			wantAll(t, n.Store, stored)
			if n.ValidMark() != end {
				t.Errorf("valid to %x, want %x", n.ValidMark(), end)
			}
			n.stop(t)
		}
	}
}

// tornFS writes a part of what is written and fails, while on is set.
type tornFS struct {
	vfs.FS
	on  atomic.Bool
	rng *rand.Rand
}

type tornFile struct {
	vfs.File
	fs *tornFS
}

func (f *tornFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, category, opts...)
	return &tornFile{file, f}, err
}

func (f *tornFS) Unwrap() vfs.FS { return f.FS }

func (f *tornFile) WriteAt(p []byte, offset int64) (int, error) {
	if !f.fs.on.Load() {
		return f.File.WriteAt(p, offset)
	}
	n, err := f.File.WriteAt(p[:f.fs.rng.IntN(len(p))], offset)
	if err == nil {
		err = syscall.ENOSPC
	}
	return n, err
}

func TestARecordWrittenInPartIsNeverTakenForOne(t *testing.T) {
	for seed := range uint64(20 / min(effort, 4)) {
		rng := rand.New(rand.NewPCG(seed, 7))
		mem := vfs.NewCrashableMem()
		fs := &tornFS{FS: mem, rng: rng}
		n := start(t, fs, "", small())
		var stored []cas.Block
		for _, b := range someBlocks(t, seed, 60) {
			fs.on.Store(rng.IntN(4) == 0)
			if err := n.Put(context.Background(), b); err == nil {
				stored = append(stored, b)
			} else if !errors.Is(err, cas.ErrNoSpace) {
				t.Fatal(err)
			}
		}
		fs.on.Store(false)
		killed := copyOf(mem)
		wantAll(t, n.Store, stored)
		n.stop(t)
		for _, fs := range []vfs.FS{mem, killed} {
			n := start(t, fs, "", small())
			wantAll(t, n.Store, stored)
			wantExactStats(t, n)
			n.stop(t)
			n, err := tryStart(fs, "", small(), Rebuild)
			if err != nil {
				t.Fatal(err)
			}
			wantAll(t, n.Store, stored)
			n.stop(t)
		}
	}
}

func TestAnErrorOfReadingIsNotTakenForDamage(t *testing.T) {
	var on atomic.Bool
	n := start(t, onSegments(vfs.NewMem(), &on, syscall.EIO, errorfs.OpFileReadAt, errorfs.OpOpen), "", small())
	blocks := someBlocks(t, 1, 30)
	put(t, n.Store, blocks...)
	on.Store(true)
	for _, b := range blocks {
		if len(b.Data()) == 0 {
			continue
		}
		_, err := n.Get(context.Background(), b.CID(), nil)
		if !errors.Is(err, syscall.EIO) || errors.Is(err, cas.ErrCorrupt) || errors.Is(err, cas.ErrNotFound) {
			t.Fatalf("Get = %v", err)
		}
	}
	on.Store(false)
	wantAll(t, n.Store, blocks)
	n.stop(t)
}

// TestErrorsAtRandom makes any operation on a segment fail at random and crashes
// afterwards: what was acknowledged by Sync is there.
func TestErrorsAtRandom(t *testing.T) {
	for seed := range uint64(40 / effort) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 8))
			var mu sync.Mutex
			var on atomic.Bool
			mem := vfs.NewCrashableMem()
			fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
				mu.Lock()
				defer mu.Unlock()
				if on.Load() && strings.HasPrefix(op.Path, "blocks") && op.Kind != errorfs.OpFileClose && rng.IntN(30) == 0 {
					return []syscall.Errno{syscall.EIO, syscall.ENOSPC}[rng.IntN(2)]
				}
				return nil
			}))
			n := start(t, fs, "", small())
			on.Store(true)
			var stored, synced []cas.Block
			for i := range uint64(100) {
				batch := someBlocks(t, seed<<32|i, 3)
				if err := n.Put(context.Background(), batch...); err == nil {
					stored = append(stored, batch...)
				}
				if i%10 == 9 && n.Sync(context.Background()) == nil {
					synced = append(synced[:0], stored...)
				}
			}
			on.Store(false)
			wantAll(t, n.Store, stored)
			crashed := crash(mem, int(seed%3)*50, seed)
			_ = errors.Join(n.Store.Close(), n.ix.Close()) // may say what had failed
			n = start(t, crashed, "", small())
			wantAll(t, n.Store, synced)
			wantIntact(t, n.Store, stored, false)
			wantExactStats(t, n)
			n.stop(t)
		})
	}
}

func TestBlocksStopAtTheReserveAndGoOnWhenThereIsSpace(t *testing.T) {
	for _, c := range []struct {
		option         int64
		total, reserve uint64
	}{
		{defaultReserve, 100 << 30, 2 << 30},
		{defaultReserve, 10 << 30, 1 << 30},
		{1 << 20, 100 << 30, 1 << 20},
		{-1, 100 << 30, 0},
	} {
		mem := vfs.NewMem()
		free := func(n uint64) { mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: n, TotalBytes: c.total}) }
		free(c.reserve + spaceCheckedEvery)
		n := start(t, mem, "", Options{Reserve: c.option})
		first, second, third := castest.Block(t, 1, 1000), castest.Block(t, 2, 1000), castest.Block(t, 3, 1000)
		put(t, n.Store, first)
		n.tail.budget = 0 // as after a few MiB
		free(c.reserve + 1000)
		if err := n.Put(context.Background(), second); !errors.Is(err, cas.ErrNoSpace) {
			t.Errorf("%+v: Put = %v with too little space", c, err)
		}
		put(t, n.Store, first) // it is held
		wantAll(t, n.Store, []cas.Block{first})
		syncS(t, n.Store)
		free(c.reserve + 1052)
		put(t, n.Store, second)
		free(c.reserve + 1051)
		if err := n.Put(context.Background(), third); !errors.Is(err, cas.ErrNoSpace) {
			t.Errorf("%+v: Put = %v with too little space", c, err)
		}
		n.stop(t)
		free(0)
		n = start(t, mem, "", Options{Reserve: c.option}) // a full disk can be read
		wantAll(t, n.Store, []cas.Block{first, second})
		free(c.reserve + spaceCheckedEvery)
		put(t, n.Store, third)
		n.stop(t)
	}
}

func TestTheBallastIsThereUntilItIsReleasedAndMadeAgainWhenThereIsSpace(t *testing.T) {
	mem := vfs.NewMem()
	there := func() bool {
		_, err := mem.Stat("blocks/" + ballastName)
		return err == nil
	}
	for _, c := range []struct {
		free uint64
		want bool
	}{{1 << 20, false}, {1 << 30, true}, {1 << 20, true}} {
		mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: c.free, TotalBytes: 1 << 40})
		n := start(t, mem, "", Options{})
		if there() != c.want {
			t.Errorf("with %d bytes free, is there a ballast: %v", c.free, there())
		}
		n.stop(t)
	}
	n := start(t, mem, "", Options{})
	for range 2 {
		if err := n.ReleaseBallast(); err != nil || there() {
			t.Errorf("ReleaseBallast = %v, still there: %v", err, there())
		}
	}
	n.stop(t)
}
