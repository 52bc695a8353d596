package journal

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/cairnfs/cairn/index/stamp"
)

const everything = ^uint64(0) // a validMark

// options are such that nothing happens by time and files are short.
func options(fs vfs.FS) Options {
	return Options{
		FS: fs, Dir: "journal", FileSize: 4 << 10, FlushAfter: -1,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Random: rand.NewChaCha8([32]byte{1}),
	}
}

// replayed is a record that Replay delivered.
type replayed struct {
	Record
	payload string
}

func openFrom(t testing.TB, o Options, from Seq, validMark uint64) (*Journal, []replayed) {
	t.Helper()
	j, records, err := tryOpen(o, from, validMark)
	if err != nil {
		t.Fatal(err)
	}
	return j, records
}

func tryOpen(o Options, from Seq, validMark uint64) (*Journal, []replayed, error) {
	j, err := Open(o)
	if err != nil {
		return nil, nil, err
	}
	var records []replayed
	err = j.Replay(from, validMark, func(r Record) error {
		records = append(records, replayed{r, string(r.Payload)})
		return nil
	})
	if err != nil {
		_ = j.Close()
		return nil, records, err
	}
	return j, records, nil
}

// payloadOf is the payload that tests give to a record: recognisable, and of
// lengths from 8 to some hundred bytes.
func payloadOf(seq Seq) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(seq))
	return string(append(b, bytes.Repeat([]byte{byte(seq)}, int(seq*37%400))...))
}

// appendN appends records with the payloads and marks that want expects.
func appendN(t testing.TB, j *Journal, n int) {
	t.Helper()
	for range n {
		seq := j.Last() + 1
		p := payloadOf(seq)
		got, at, err := j.Append(KindCommand, uint64(seq), []byte(p[:5]), []byte(p[5:]))
		if err != nil || got != seq || at.Len != int64(len(p)) {
			t.Fatalf("Append = %d, %+v, %v; want record %d", got, at, err, seq)
		}
	}
}

// want fails unless the records are those of appendN from first to last.
func want(t testing.TB, records []replayed, first, last Seq) {
	t.Helper()
	if len(records) != int(last+1-first) {
		t.Errorf("%d records were replayed, want %d to %d", len(records), first, last)
		return
	}
	for i, r := range records {
		seq := first + Seq(i)
		if r.Seq != seq || r.payload != payloadOf(seq) || r.Mark != uint64(seq) || r.Kind != KindCommand {
			t.Errorf("record %d was replayed as %+v", seq, r)
			return
		}
	}
}

func syncJ(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	if j.Synced() != j.Last() {
		t.Fatalf("synced %d of %d", j.Synced(), j.Last())
	}
}

func closeJ(t testing.TB, j *Journal) {
	t.Helper()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestWhatWasAppendedIsReplayedInOrderFromAnyRecord(t *testing.T) {
	fs := vfs.NewMem()
	j, _ := openFrom(t, options(fs), 0, everything)
	appendN(t, j, 100)
	closeJ(t, j)
	for _, from := range []Seq{0, 1, 2, 50, 99, 100, 101} {
		j, records := openFrom(t, options(fs), from, everything)
		want(t, records, max(from, 1), 100)
		if j.Last() != 100 || j.Synced() != 100 {
			t.Errorf("Last = %d, Synced = %d", j.Last(), j.Synced())
		}
		closeJ(t, j)
	}
	j, _ = openFrom(t, options(fs), 100, everything)
	appendN(t, j, 20)
	closeJ(t, j)
	_, records := openFrom(t, options(fs), 1, everything)
	want(t, records, 1, 120)
}

func TestAnEmptyJournalStaysEmpty(t *testing.T) {
	fs := vfs.NewMem()
	for range 3 {
		j, records := openFrom(t, options(fs), 1, 0)
		if len(records) != 0 || j.Last() != 0 || j.Synced() != 0 {
			t.Errorf("%d records, Last = %d", len(records), j.Last())
		}
		syncJ(t, j)
		closeJ(t, j)
	}
}

func TestPayloadsAreReadBackFromBufferAndFile(t *testing.T) {
	fs := vfs.NewMem()
	o := options(fs)
	o.FileSize = 1 << 20
	j, _ := openFrom(t, o, 0, everything)
	type entry struct {
		at   Location
		data []byte
	}
	var all []entry
	check := func(when string) {
		t.Helper()
		for i, e := range all {
			for _, r := range [][2]int{{0, len(e.data)}, {0, 0}, {len(e.data) / 3, len(e.data) / 2}, {len(e.data), len(e.data)}} {
				p := make([]byte, r[1]-r[0])
				if err := j.ReadAt(p, e.at, int64(r[0])); err != nil || !bytes.Equal(p, e.data[r[0]:r[1]]) {
					t.Fatalf("%s: record %d, bytes %v: %v", when, i, r, err)
				}
			}
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for i, size := range []int{0, 1, 1000, DefaultBufferSize - headerSize, DefaultBufferSize - headerSize + 1, 10, MaxPayload, 300_000, 5, 100_000, 100_000, 100_000} {
		data := make([]byte, size)
		for k := range data {
			data[k] = byte(rng.Uint32())
		}
		_, at, err := j.Append(KindRange, 0, data[:size/2], nil, data[size/2:])
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, entry{at, bytes.Clone(data)})
		clear(data) // Append keeps no reference
		check(fmt.Sprint("after append ", i))
	}
	syncJ(t, j)
	check("after sync")
	if err := j.ReadAt(make([]byte, 2), all[1].at, 0); !errors.Is(err, ErrRange) {
		t.Errorf("reading beyond a payload: %v", err)
	}
	if err := j.ReadAt(make([]byte, 1), Location{File: 1, Offset: 1 << 40, Len: 1}, 0); !errors.Is(err, ErrRange) {
		t.Errorf("reading beyond the file: %v", err)
	}
	closeJ(t, j)
	j, _ = openFrom(t, o, 0, everything)
	check("after opening again")
	closeJ(t, j)
	if err := j.ReadAt(make([]byte, 1), all[1].at, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("reading a closed journal: %v", err)
	}
}

func TestManyFilesAreReadThroughFewOpenOnes(t *testing.T) {
	o := options(vfs.NewMem())
	o.FileSize = 500
	j, _ := openFrom(t, o, 0, everything)
	var at []Location
	for i := range 100 {
		_, l, err := j.Append(KindRange, 0, []byte(payloadOf(Seq(i))))
		if err != nil {
			t.Fatal(err)
		}
		at = append(at, l)
	}
	syncJ(t, j)
	var wg sync.WaitGroup
	for w := range uint64(4) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(w, 0))
			for range 500 {
				i := rng.IntN(len(at))
				p := make([]byte, at[i].Len)
				if err := j.ReadAt(p, at[i], 0); err != nil || string(p) != payloadOf(Seq(i)) {
					t.Errorf("record %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	if files, open := len(j.files), len(j.readers.files); files <= maxReaders || open > maxReaders {
		t.Errorf("%d of %d files are open", open, files)
	}
	closeJ(t, j)
}

func TestAppendRefusesWhatCannotBeARecord(t *testing.T) {
	j, err := Open(options(vfs.NewMem()))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := j.Append(KindCommand, 0); !errors.Is(err, ErrNotReplayed) {
		t.Errorf("before Replay: %v", err)
	}
	if err := j.Replay(0, 0, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := j.Append(KindRange, 0, make([]byte, MaxPayload), []byte{1}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if _, _, err := j.Append(0, 0); err == nil {
		t.Error("kind 0 was accepted")
	}
	if j.Last() != 0 {
		t.Errorf("Last = %d", j.Last())
	}
	closeJ(t, j)
	if _, _, err := j.Append(KindCommand, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := j.Sync(context.Background()); err != nil {
		t.Errorf("Sync of a journal closed with nothing unsynced: %v", err)
	}
}

func TestTrimDeletesWholeFilesBeforeTheRecordToKeep(t *testing.T) {
	fs := vfs.NewMem()
	j, _ := openFrom(t, options(fs), 0, everything)
	p := []byte(payloadOf(1))
	_, at, err := j.Append(KindCommand, 1, p)
	if err != nil {
		t.Fatal(err)
	}
	appendN(t, j, 99)
	if err := j.Trim(100); err != nil {
		t.Fatal(err)
	}
	if err := j.ReadAt(p, at, 0); err != nil {
		t.Errorf("a record that was not durable was trimmed: %v", err)
	}
	syncJ(t, j)
	before := j.Size()
	if err := j.Trim(1); err != nil || j.Size() != before {
		t.Errorf("Trim(1) freed %d bytes, %v", before-j.Size(), err)
	}
	if err := j.Trim(60); err != nil {
		t.Fatal(err)
	}
	if j.Size() >= before {
		t.Errorf("Trim(60) freed nothing")
	}
	if err := j.ReadAt(p, at, 0); !errors.Is(err, ErrTrimmed) {
		t.Errorf("reading a trimmed record: %v", err)
	}
	if first := j.First(); first <= 1 || first > 60 {
		t.Errorf("First = %d", first)
	}
	closeJ(t, j)
	j, records := openFrom(t, options(fs), 60, everything)
	want(t, records, 60, 100)
	if err := j.Trim(1000); err != nil {
		t.Fatal(err)
	}
	appendN(t, j, 1)
	closeJ(t, j)
	if _, _, err := tryOpen(options(fs), 60, everything); !errors.Is(err, ErrCorrupt) {
		t.Errorf("replaying from a trimmed record: %v", err)
	}
	_, records = openFrom(t, options(fs), 101, everything)
	want(t, records, 101, 101)
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
	j, _ := openFrom(t, options(fs), 0, everything)
	const callers = 50
	var wg sync.WaitGroup
	one := func() {
		wg.Go(func() {
			if _, _, err := j.Append(KindCommand, 0, []byte("x")); err != nil {
				t.Error(err)
			}
			target := j.Last()
			if err := j.Sync(context.Background()); err != nil {
				t.Error(err)
			}
			if j.Synced() < target {
				t.Errorf("Sync returned at %d of %d", j.Synced(), target)
			}
		})
	}
	one()
	<-entered // the first sync is under way; the others come too late for it
	for range callers {
		one()
	}
	for j.Last() < callers+1 {
		time.Sleep(time.Millisecond) // until all have appended; they cannot pass the sync
	}
	close(release)
	wg.Wait()
	if n := syncs.Load(); n > 3 {
		t.Errorf("%d syncs for %d callers that came during the first", n, callers)
	}
	closeJ(t, j)
}

func TestACancelledContextEndsTheWaitingForASync(t *testing.T) {
	entered, release := make(chan struct{}, 10), make(chan struct{})
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && strings.HasSuffix(op.Path, fileSuffix) {
			entered <- struct{}{}
			<-release
		}
		return nil
	}))
	j, _ := openFrom(t, options(fs), 0, everything)
	appendN(t, j, 1)
	led := make(chan error, 1)
	go func() { led <- j.Sync(context.Background()) }()
	<-entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := j.Sync(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Sync = %v", err)
	}
	close(release)
	if err := <-led; err != nil {
		t.Errorf("the sync under way: %v", err)
	}
	closeJ(t, j)
}

func TestTheTimerWritesTheBufferAndHowFarTheJournalIsDurable(t *testing.T) {
	fs := vfs.NewCrashableMem()
	o := options(fs)
	o.FlushAfter = time.Microsecond
	j, _ := openFrom(t, o, 0, everything)
	appendN(t, j, 1)
	inFile := func(n int64) {
		for {
			j.mu.Lock()
			written := j.written
			j.mu.Unlock()
			if written >= n {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	one := headerSize + int64(len(payloadOf(1)))
	inFile(one) // a killed process leaves it to the operating system
	syncJ(t, j)
	inFile(one + headerSize)
	killed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	closeJ(t, j)
	flip(t, killed, 1, headerSize+2)
	if _, _, err := tryOpen(options(killed), 1, everything); !errors.Is(err, ErrCorrupt) {
		t.Errorf("damage to the last record, synced before: %v", err)
	}
}

func TestAJournalOfANewerVersionIsRefusedUntouched(t *testing.T) {
	fs := vfs.NewMem()
	if _, err := stamp.Open(fs, "journal", "journal", FormatVersion+1, rand.NewChaCha8([32]byte{})); err != nil {
		t.Fatal(err)
	}
	before := fs.String()
	var newer *stamp.VersionError
	if _, err := Open(options(fs)); !errors.As(err, &newer) {
		t.Errorf("Open = %v, want a VersionError", err)
	}
	if fs.String() != before {
		t.Errorf("the directory changed:\n%s", fs.String())
	}
}

func TestAppendDoesNotAllocate(t *testing.T) {
	o := options(vfs.NewMem())
	o.FileSize = 0
	j, _ := openFrom(t, o, 0, everything)
	a, b := make([]byte, 20), make([]byte, 180)
	if n := testing.AllocsPerRun(1000, func() {
		if _, _, err := j.Append(KindCommand, 7, a, b); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
	closeJ(t, j)
}

// failOn injects an error into operations on journal files for as long as on is
// set.
func failOn(fs vfs.FS, on *atomic.Bool, kind errorfs.OpKind, err error) vfs.FS {
	return errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if on.Load() && op.Kind == kind && strings.HasSuffix(op.Path, fileSuffix) {
			return err
		}
		return nil
	}))
}

func TestAfterAFailedSyncOrWriteEverythingFailsUntilOpenedAgain(t *testing.T) {
	for _, kind := range []errorfs.OpKind{errorfs.OpFileSyncData, errorfs.OpFileWriteAt} {
		var on atomic.Bool
		mem := vfs.NewMem()
		j, _ := openFrom(t, options(failOn(mem, &on, kind, syscall.EIO)), 0, everything)
		appendN(t, j, 3)
		syncJ(t, j)
		appendN(t, j, 3)
		on.Store(true)
		if err := j.Sync(context.Background()); !errors.Is(err, syscall.EIO) {
			t.Errorf("Sync = %v", err)
		}
		on.Store(false)
		if err := j.Sync(context.Background()); !errors.Is(err, syscall.EIO) {
			t.Errorf("the next Sync = %v, want the first one's error", err)
		}
		if _, _, err := j.Append(KindCommand, 0); !errors.Is(err, syscall.EIO) {
			t.Errorf("Append = %v", err)
		}
		if j.Synced() != 3 {
			t.Errorf("Synced = %d", j.Synced())
		}
		if err := j.Close(); !errors.Is(err, syscall.EIO) {
			t.Errorf("Close = %v", err)
		}
		j, records := openFrom(t, options(mem), 1, everything)
		if len(records) < 3 {
			t.Errorf("%d records survive, 3 were synced", len(records))
		}
		want(t, records, 1, Seq(len(records)))
		appendN(t, j, 1)
		syncJ(t, j)
		closeJ(t, j)
	}
}

func TestAFullDiskIsReportedBeforeAnythingIsAcknowledgedAndMayPass(t *testing.T) {
	var on atomic.Bool
	mem := vfs.NewCrashableMem()
	o := options(failOn(mem, &on, errorfs.OpFileWriteAt, syscall.ENOSPC))
	o.FileSize = 0
	j, _ := openFrom(t, o, 0, everything)
	appendN(t, j, 5)
	on.Store(true)
	if err := j.Sync(context.Background()); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Sync = %v", err)
	}
	big := make([]byte, DefaultBufferSize)
	if _, _, err := j.Append(KindRange, 0, big); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Append = %v", err)
	}
	if j.Last() != 5 || j.Synced() != 0 {
		t.Errorf("Last = %d, Synced = %d", j.Last(), j.Synced())
	}
	on.Store(false)
	appendN(t, j, 5)
	syncJ(t, j)
	_, records := openFrom(t, options(mem.CrashClone(vfs.CrashCloneCfg{})), 1, everything)
	want(t, records, 1, 10)
	closeJ(t, j)
}

// TestAFileThatCouldNotBeBegunEndsNothing begins a file in vain, of which the name is
// left in the directory. What is appended after that, because it still has a place in
// the file before, must not be taken for what such a name says was discarded.
func TestAFileThatCouldNotBeBegunEndsNothing(t *testing.T) {
	for name, c := range map[string]struct {
		kinds []errorfs.OpKind
		path  string // suffix
		err   error
	}{
		"no space for it, and it cannot be removed":         {[]errorfs.OpKind{errorfs.OpFilePreallocate, errorfs.OpRemove}, fileSuffix, syscall.ENOSPC},
		"no space for its name":                             {[]errorfs.OpKind{errorfs.OpFileSync}, "journal", syscall.ENOSPC},
		"its name cannot be written":                        {[]errorfs.OpKind{errorfs.OpFileSync}, "journal", syscall.EIO},
		"its name cannot be written, and not be taken back": {[]errorfs.OpKind{errorfs.OpFileSync, errorfs.OpRemove}, "", syscall.EIO},
	} {
		var on atomic.Bool
		mem := vfs.NewMem()
		j, _ := openFrom(t, options(errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			if on.Load() && slices.Contains(c.kinds, op.Kind) && strings.HasSuffix(op.Path, c.path) {
				return c.err
			}
			return nil
		}))), 0, everything)
		accepted := 0
		add := func(size int) (err error) {
			if _, _, err = j.Append(KindCommand, 0, make([]byte, size)); err == nil {
				accepted++
			}
			return err
		}
		if err := add(3 << 10); err != nil {
			t.Fatal(err)
		}
		on.Store(true)
		if err := add(3 << 10); !errors.Is(err, c.err) {
			t.Fatalf("%s: a record that needs another file: %v", name, err)
		}
		_ = add(10) // may be refused
		on.Store(false)
		if err := add(10); (err == nil) != (c.err == syscall.ENOSPC) {
			t.Errorf("%s: a record when nothing fails any more: %v", name, err)
		}
		_ = j.Close() // says so if the journal has failed
		again, records := openFrom(t, options(mem), 1, everything)
		if len(records) != accepted {
			t.Errorf("%s: of %d records that were accepted, %d are there", name, accepted, len(records))
		}
		closeJ(t, again)
	}
}
