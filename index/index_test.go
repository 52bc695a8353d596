package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/index/stamp"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

func open(t testing.TB, o Options) *DB {
	t.Helper()
	if o.Dir == "" {
		o.Dir = "index"
	}
	if o.Logger == nil {
		o.Logger = quiet()
	}
	db, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func closeDB(t testing.TB, db *DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// ledger is a log kept beside the database: a file to which each batch first
// appends its number. The barrier syncs it.
type ledger struct {
	file vfs.File
	n    uint64
}

func newLedger(t *testing.T, fs vfs.FS) *ledger {
	t.Helper()
	f, err := fs.Create("ledger", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	d, err := fs.OpenDir("")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		t.Fatal(err)
	}
	return &ledger{file: f}
}

// commit appends to the ledger and then commits a batch that carries the number
// and some weight, so that memtables fill.
func (l *ledger) commit(t *testing.T, db *DB) {
	t.Helper()
	l.n++
	if _, err := l.file.Write(binary.BigEndian.AppendUint64(nil, l.n)); err != nil {
		t.Fatal(err)
	}
	b := db.Pebble().NewBatch()
	defer b.Close()
	key := []byte{SpaceNamespace, 'n'}
	weight := binary.BigEndian.AppendUint64([]byte{SpaceNamespace, 'w'}, l.n)
	if err := errors.Join(
		b.Set(key, binary.BigEndian.AppendUint64(nil, l.n), nil),
		b.Set(weight, make([]byte, 2000), nil),
		b.Commit(pebble.NoSync)); err != nil {
		t.Fatal(err)
	}
}

func position(t *testing.T, db *DB) uint64 {
	t.Helper()
	v, closer, err := db.Pebble().Get([]byte{SpaceNamespace, 'n'})
	if errors.Is(err, pebble.ErrNotFound) {
		return 0
	}
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	return binary.BigEndian.Uint64(v)
}

func TestWhatSurvivesACrashNeverGoesBeyondWhatTheBarrierMadeDurable(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			rng := rand.New(rand.NewPCG(seed, 1))
			log := newLedger(t, fs)
			db := open(t, Options{FS: fs, MemTableBytes: 256 << 10, Barrier: log.file.Sync})
			clones := make([]*vfs.MemFS, 0, 20)
			for i := range 1000 {
				log.commit(t, db)
				if i%50 == 49 {
					// Nothing unsynced of the ledger may survive, anything of the database.
					clones = append(clones, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: int(seed % 2 * 50), RNG: rng}))
				}
			}
			if err := db.Flush(); err != nil {
				t.Fatal(err)
			}
			clones = append(clones, fs.CrashClone(vfs.CrashCloneCfg{}))
			closeDB(t, db)
			flushed := uint64(0)
			for _, clone := range clones {
				durable := uint64(0)
				if f, err := clone.Open("ledger"); err == nil {
					b, err := io.ReadAll(f)
					if err != nil {
						t.Fatal(err)
					}
					for len(b) >= 8 && binary.BigEndian.Uint64(b) == durable+1 {
						durable, b = durable+1, b[8:]
					}
				}
				again := open(t, Options{FS: clone})
				at := position(t, again)
				if at > durable {
					t.Errorf("database holds batch %d, the ledger ends at %d", at, durable)
				}
				flushed = max(flushed, at)
				closeDB(t, again)
			}
			if flushed != log.n {
				t.Errorf("after Flush the database holds batch %d of %d", flushed, log.n)
			}
		})
	}
}

func TestTheBarrierRunsBeforeTheFirstByteOfAFlushAndOutsidePebblesMutex(t *testing.T) {
	fs := vfs.NewMem()
	var db *DB
	var calls atomic.Int32
	db = open(t, Options{FS: fs})
	db.SetBarrier(func() error {
		calls.Add(1)
		names, err := fs.List("index")
		if err != nil {
			return err
		}
		for _, name := range names {
			if strings.HasSuffix(name, ".sst") {
				t.Errorf("%s exists already", name)
			}
		}
		// Would deadlock if a flush held Pebble's mutex or kept commits waiting.
		return errors.Join(
			db.Pebble().Set([]byte{SpaceNamespace, 'y'}, nil, pebble.NoSync),
			func() error { _ = db.Pebble().Metrics(); return nil }())
	})
	if err := db.Pebble().Set([]byte{SpaceNamespace, 'x'}, nil, pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	if calls.Load() == 0 {
		t.Error("the barrier was not called")
	}
	db.SetBarrier(nil)
	closeDB(t, db)
}

func TestWhileTheBarrierFailsNothingIsFlushedAndFlushAndCloseSaySo(t *testing.T) {
	fs := vfs.NewCrashableMem()
	broken := errors.New("no more fsync")
	var healed atomic.Bool
	db := open(t, Options{FS: fs, Barrier: func() error {
		if healed.Load() {
			return nil
		}
		return broken
	}})
	set := func() {
		if err := db.Pebble().Set([]byte{SpaceNamespace, 'n'}, make([]byte, 8), pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	set()
	if err := db.Flush(); !errors.Is(err, broken) {
		t.Fatalf("Flush = %v, want the barrier's error", err)
	}
	clone := fs.CrashClone(vfs.CrashCloneCfg{})
	after := open(t, Options{FS: clone})
	if _, _, err := after.Pebble().Get([]byte{SpaceNamespace, 'n'}); !errors.Is(err, pebble.ErrNotFound) {
		t.Errorf("the value is durable although the barrier failed: %v", err)
	}
	closeDB(t, after)

	healed.Store(true)
	for db.Flush() != nil { // the retry that is under way may still fail
		set()
	}
	healed.Store(false)
	set()
	if err := db.Flush(); !errors.Is(err, broken) {
		t.Fatalf("Flush = %v, want the barrier's error", err)
	}
	if err := db.Close(); !errors.Is(err, broken) {
		t.Errorf("Close = %v, want the barrier's error", err)
	}
}

func TestAnIndexOfANewerVersionIsRefusedUntouched(t *testing.T) {
	fs := vfs.NewMem()
	if _, err := stamp.Open(fs, "index", "index", FormatVersion+1, rand.NewChaCha8([32]byte{})); err != nil {
		t.Fatal(err)
	}
	before := fs.String()
	var newer *stamp.VersionError
	if _, err := Open(Options{FS: fs, Dir: "index", Logger: quiet()}); !errors.As(err, &newer) {
		t.Errorf("Open = %v, want a VersionError", err)
	}
	if fs.String() != before {
		t.Errorf("the directory changed:\n%s", fs.String())
	}
}

func entry(n byte, at Location) Entry {
	return Entry{Hash: Hash(bytes.Repeat([]byte{n}, 32)), At: at}
}

func TestLocationsCountersAndPositionChangeTogether(t *testing.T) {
	fs := vfs.NewMem()
	db := open(t, Options{FS: fs})
	store := stamp.ID{1}
	a := Location{Segment: 1, Offset: 64, Stored: 10, Raw: 20, Codec: 0x55, Compression: 1}
	b := Location{Segment: 1, Offset: 200, Stored: 5, Raw: 5, Codec: 0x70}
	moved := Location{Segment: 2, Offset: 64, Stored: 12, Raw: 20, Codec: 0x55}
	if err := errors.Join(
		db.ResetBlocks(store),
		db.AddBlocks([]Entry{entry(1, a), entry(2, b)}, 300),
	); err != nil {
		t.Fatal(err)
	}
	replaced := entry(1, moved)
	replaced.Was = a
	if err := db.AddBlocks([]Entry{replaced}, 400); err != nil {
		t.Fatal(err)
	}
	want := Summary{Store: store, IndexedTo: 400, Blocks: 2, RawBytes: 25, StoredBytes: 17}
	for range 2 { // as it is, and opened again
		if got := db.Blocks(); got != want {
			t.Errorf("summary %+v, want %+v", got, want)
		}
		found := 0
		if err := db.EachBlock(func(h *Hash, at Location) error {
			found++
			got, ok, err := db.Block(h)
			if got != at || !ok || err != nil {
				t.Errorf("Block(%x) = %+v, %v, %v; iterated %+v", h[:2], got, ok, err, at)
			}
			return nil
		}); err != nil || found != 2 {
			t.Errorf("%d blocks, %v", found, err)
		}
		closeDB(t, db)
		db = open(t, Options{FS: fs})
	}
	if err := db.ResetBlocks(stamp.ID{2}); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := db.Block(&replaced.Hash); ok || err != nil {
		t.Errorf("after a reset a block is known (%v, %v)", ok, err)
	}
	if got := db.Blocks(); got != (Summary{Store: stamp.ID{2}}) {
		t.Errorf("after a reset: %+v", got)
	}
	closeDB(t, db)
}

func TestRecordsOfUnknownVersionAreRefused(t *testing.T) {
	for _, b := range [][]byte{nil, {}, make([]byte, locationSize), append(Location{}.Append(nil), 0)} {
		if _, err := ParseLocation(b); !errors.Is(err, ErrBadRecord) {
			t.Errorf("ParseLocation(%x) = %v", b, err)
		}
	}
	fs := vfs.NewMem()
	db := open(t, Options{FS: fs})
	if err := db.Pebble().Set([]byte(summaryKey), []byte{summaryVersion + 1}, pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	closeDB(t, db)
	if _, err := Open(Options{FS: fs, Dir: "index", Logger: quiet()}); !errors.Is(err, ErrBadRecord) {
		t.Errorf("Open = %v, want ErrBadRecord", err)
	}
}

func FuzzParseLocation(f *testing.F) {
	f.Add(Location{Segment: 1, Offset: 2, Stored: 3, Raw: 4, Codec: 5, Compression: 6}.Append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseLocation(b)
		if err == nil && !bytes.Equal(l.Append(nil), b) {
			t.Errorf("%x reads as %+v, which is stored otherwise", b, l)
		}
	})
}

func FuzzParseSummary(f *testing.F) {
	f.Add(Summary{Store: stamp.ID{1}, IndexedTo: 1, Blocks: 2, RawBytes: 3, StoredBytes: 4}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSummary(b)
		if err == nil && !bytes.Equal(s.append(nil), b) {
			t.Errorf("%x reads as %+v, which is stored otherwise", b, s)
		}
	})
}
