package journal

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// contents returns the bytes of the file that begins with the given record.
func contents(t testing.TB, fs vfs.FS, first uint64) []byte {
	t.Helper()
	f, err := fs.Open("journal/" + fileName(first))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// replace writes a file anew.
func replace(t testing.TB, fs vfs.FS, first uint64, b []byte) {
	t.Helper()
	f, err := fs.Create("journal/"+fileName(first), vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// flip changes one bit.
func flip(t testing.TB, fs vfs.FS, first uint64, offset int) {
	t.Helper()
	b := contents(t, fs, first)
	b[offset] ^= 1 << (offset % 8)
	replace(t, fs, first, b)
}

// copyOf returns an independent copy of a file system.
func copyOf(fs *vfs.MemFS) *vfs.MemFS {
	return fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
}

// halfSynced returns a journal of one file whose first 5 records were synced, as a
// later record says, and 5 more were not, with where each record begins.
func halfSynced(t testing.TB) (fs *vfs.MemFS, starts []int) {
	t.Helper()
	fs = vfs.NewCrashableMem()
	o := options(fs)
	o.FileSize = 1 << 20
	j, _ := openFrom(t, o, 0, everything)
	for i := range 10 {
		starts = append(starts, int(j.end()))
		appendN(t, j, 1)
		if i == 4 {
			syncJ(t, j)
		}
	}
	starts = append(starts, int(j.end()))
	if err := j.flush(); err != nil {
		t.Fatal(err)
	}
	return copyOf(fs), starts
}

func TestDamageIsFoundInWhatWasSyncedAndEndsWhatWasNot(t *testing.T) {
	fs, starts := halfSynced(t)
	size := len(contents(t, fs, 1))
	for offset := range size {
		damaged := copyOf(fs)
		flip(t, damaged, 1, offset)
		record := 0 // that is hit
		for record+1 < len(starts) && starts[record+1] <= offset {
			record++
		}
		_, records, err := tryOpen(options(damaged), 1, everything)
		if record < 5 {
			var corrupt *CorruptError
			if !errors.As(err, &corrupt) || corrupt.Seq != Seq(record+1) || !errors.Is(err, ErrCorrupt) {
				t.Fatalf("a bit at %d of synced record %d flipped: %v", offset, record+1, err)
			}
		} else if err != nil {
			t.Fatalf("a bit at %d of record %d flipped, which was not synced: %v", offset, record+1, err)
		}
		want(t, records, 1, Seq(record))
		if t.Failed() {
			t.Fatalf("a bit at %d of record %d flipped", offset, record+1)
		}
	}
}

func TestAJournalCutShortEndsWithItsLastCompleteRecord(t *testing.T) {
	fs, starts := halfSynced(t)
	whole := contents(t, fs, 1)
	for size := range whole {
		cut := copyOf(fs)
		replace(t, cut, 1, whole[:size])
		complete := 0
		for starts[complete+1] <= size {
			complete++
		}
		// What says that records were synced is cut off as well, unless it lies
		// in Pebble, which knows what it has applied.
		j, records, err := tryOpen(options(cut), 1, everything)
		if err != nil {
			t.Fatalf("cut to %d bytes: %v", size, err)
		}
		want(t, records, 1, Seq(complete))
		closeJ(t, j)
		cut = copyOf(fs)
		replace(t, cut, 1, whole[:size])
		if _, _, err := tryOpen(options(cut), Seq(complete)+2, everything); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut to %d bytes, although record %d was applied: %v", size, complete+1, err)
		}
	}
}

func TestARecordWhoseBlocksAreMissingEndsTheJournalUnlessItWasSynced(t *testing.T) {
	fs, _ := halfSynced(t)
	for mark := range Seq(10) {
		j, records, err := tryOpen(options(copyOf(fs)), 1, uint64(mark))
		if mark < 5 {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("blocks of synced record %d are missing: %v", mark+1, err)
			}
			continue
		}
		if err != nil || j.Last() != mark || j.Synced() != mark {
			t.Fatalf("valid to %d: %v", mark, err)
		}
		want(t, records, 1, mark)
	}
	j, records := openFrom(t, options(copyOf(fs)), 8, 7)
	if len(records) != 0 || j.Last() != 7 {
		t.Errorf("from the first record without blocks: %d records, last %d", len(records), j.Last())
	}
	if _, _, err := tryOpen(options(copyOf(fs)), 9, 7); err != nil {
		t.Errorf("the blocks of a record before from are missing, which does not matter: %v", err)
	}
}

func TestWhatReplayDiscardedNeverComesBack(t *testing.T) {
	for _, files := range []int64{1 << 20, 300} { // all in one file, or a few records in each
		fs := vfs.NewCrashableMem()
		o := options(fs)
		o.FileSize = files
		j, _ := openFrom(t, o, 0, everything)
		appendN(t, j, 5)
		syncJ(t, j)
		appendN(t, j, 15)
		if err := j.flush(); err != nil {
			t.Fatal(err)
		}
		for end := Seq(5); end < 20; end++ {
			after := copyOf(fs)
			o.FS = after
			j, records := openFrom(t, o, 1, uint64(end))
			want(t, records, 1, end)
			// The decision itself survives a power loss, although all that was
			// discarded is still valid and the segments have grown since.
			for _, percent := range []int{0, 50, 100} {
				o.FS = after.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(uint64(end), 1))})
				_, records = openFrom(t, o, 1, everything)
				want(t, records, 1, end)
			}
			// Others take the numbers of the discarded ones.
			o.FS = after
			for range 3 {
				if _, _, err := j.Append(KindRange, 0, []byte("new")); err != nil {
					t.Fatal(err)
				}
			}
			syncJ(t, j)
			_, records = openFrom(t, o, 1, everything)
			if len(records) != int(end)+3 || records[end].Kind != KindRange || records[end+2].payload != "new" {
				t.Fatalf("after %d: replayed %+v", end, records[min(int(end), len(records)):])
			}
			want(t, records[:end], 1, end)
		}
	}
}

func TestDamageToWhatWasAppliedDoesNotStopTheReplay(t *testing.T) {
	fs, starts := halfSynced(t)
	for record := range 4 {
		for _, offset := range []int{starts[record], starts[record] + 8, starts[record] + headerSize + 1} {
			damaged := copyOf(fs)
			flip(t, damaged, 1, offset)
			for from := Seq(record) + 2; from <= 11; from++ { // 11 is the next to be appended
				j, records, err := tryOpen(options(damaged.CrashClone(vfs.CrashCloneCfg{})), from, everything)
				if err != nil {
					t.Fatalf("record %d damaged, from %d: %v", record+1, from, err)
				}
				want(t, records, from, 10)
				if j.Last() != 10 {
					t.Fatalf("record %d damaged, from %d: Last = %d", record+1, from, j.Last())
				}
			}
		}
	}
}

func TestAMissingFileIsDamageIfItsRecordsWereSynced(t *testing.T) {
	fs := vfs.NewCrashableMem()
	j, _ := openFrom(t, options(fs), 0, everything)
	appendN(t, j, 100)
	syncJ(t, j)
	appendN(t, j, 1)
	if err := j.flush(); err != nil {
		t.Fatal(err)
	}
	for i := range j.files {
		gone := copyOf(fs)
		if err := gone.Remove("journal/" + fileName(uint64(j.files[i].first))); err != nil {
			t.Fatal(err)
		}
		_, _, err := tryOpen(options(gone), 1, everything)
		if last := i == len(j.files)-1; !last && !errors.Is(err, ErrCorrupt) {
			t.Errorf("file %d of %d is missing: %v", i, len(j.files), err)
		}
	}
}

func TestACopyOfTheJournalInARecordIsNotTakenForRecords(t *testing.T) {
	fs, starts := halfSynced(t)
	old := contents(t, fs, 1)
	o := options(fs)
	o.FileSize = 1 << 20
	j, _ := openFrom(t, o, 1, everything)
	for range 3 {
		if _, _, err := j.Append(KindRange, 0, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.flush(); err != nil {
		t.Fatal(err)
	}
	s, err := j.scan(0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	var found []Seq
	if _, err := s.search(int64(starts[10]), func(h header) bool {
		found = append(found, h.seq)
		return false
	}); err != nil || !slices.Equal(found, []Seq{11, 12, 13}) {
		t.Errorf("found records %v, %v, want 11 to 13", found, err)
	}
}

func TestReplayMayBeRepeatedAfterAnErrorOfItsCallback(t *testing.T) {
	fs, _ := halfSynced(t)
	j, err := Open(options(fs))
	if err != nil {
		t.Fatal(err)
	}
	stop := errors.New("not yet")
	if err := j.Replay(1, everything, func(Record) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Replay = %v", err)
	}
	n := 0
	if err := j.Replay(1, everything, func(Record) error { n++; return nil }); err != nil || n != 10 {
		t.Errorf("Replay = %v after %d records", err, n)
	}
	if err := j.Replay(1, everything, nil); err == nil {
		t.Error("a third Replay succeeds")
	}
}

// TestCrashes appends, syncs, crashes and replays at random and compares with a
// model. The seed is the name of the subtest.
func TestCrashes(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 2))
			fs := vfs.NewCrashableMem()
			o := options(fs)
			o.FileSize = int64(200 + rng.IntN(5000))
			o.BufferSize = 1 << rng.IntN(13)
			j, _ := openFrom(t, o, 0, everything)
			var model []string // payloads of all records
			synced, trimmed := 0, 0
			for range 200 {
				switch n := rng.IntN(100); {
				case n < 70:
					size := rng.IntN(300)
					if rng.IntN(50) == 0 {
						size = rng.IntN(20_000)
					}
					p := fmt.Sprintf("%d %d %x", len(model), rng.Uint64(), make([]byte, size))
					if _, _, err := j.Append(KindCommand, uint64(len(model)+1), []byte(p)); err != nil {
						t.Fatal(err)
					}
					model = append(model, p)
				case n < 80:
					syncJ(t, j)
					synced = len(model)
				case n < 85:
					if err := j.flush(); err != nil {
						t.Fatal(err)
					}
				case n < 90 && synced > 0:
					trimmed = max(trimmed, rng.IntN(synced+1))
					if err := j.Trim(Seq(trimmed)); err != nil {
						t.Fatal(err)
					}
				default:
					if rng.IntN(3) == 0 {
						closeJ(t, j)
						synced = len(model)
					}
					valid := synced + rng.IntN(len(model)-synced+1) // of the segments
					o.FS = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 20, 80, 100}[rng.IntN(4)], RNG: rng})
					fs = o.FS.(*vfs.MemFS)
					from := max(1, trimmed, synced-rng.IntN(5))
					var records []replayed
					j, records = openFrom(t, o, Seq(from), uint64(valid))
					last := int(j.Last())
					if last < synced || last > valid || len(records) != last+1-from {
						t.Fatalf("replayed %d to %d, synced %d, valid %d", from, last, synced, valid)
					}
					for i, r := range records {
						if r.payload != model[from-1+i] {
							t.Fatalf("record %d came back as another", from+i)
						}
					}
					model, synced = model[:last], last
				}
			}
			closeJ(t, j)
		})
	}
}

func FuzzReplay(f *testing.F) {
	fs, starts := halfSynced(f)
	whole := contents(f, fs, 1)
	f.Add(whole, uint64(1))
	f.Add(whole[:starts[3]+7], uint64(2))
	f.Add([]byte{}, uint64(1))
	f.Fuzz(func(t *testing.T, file []byte, from uint64) {
		fs := vfs.NewMem()
		j, err := Open(options(fs))
		if err != nil {
			t.Fatal(err)
		}
		closeJ(t, j)
		replace(t, fs, 1, file)
		j, records, err := tryOpen(options(fs), Seq(from), everything)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("Replay = %v", err)
			}
			return
		}
		appendN(t, j, 3)
		closeJ(t, j)
		j, again := openFrom(t, options(fs), Seq(from), everything)
		if len(again) != len(records)+3 {
			t.Errorf("%d records, then 3 more, then %d", len(records), len(again))
		}
		closeJ(t, j)
	})
}

func FuzzParseHeader(f *testing.F) {
	h := header{payloadSum: 1, length: 2, kind: 3, seq: 5, mark: 4, synced: 5}
	f.Add(h.append(nil, 7, 9), uint32(7), int64(9))
	f.Fuzz(func(t *testing.T, b []byte, seed uint32, offset int64) {
		h, ok := parseHeader(b, seed, offset)
		if !ok {
			return
		}
		if again := h.append(nil, seed, offset); string(again) != string(b[:headerSize]) {
			t.Errorf("%x reads as %+v, which is stored as %x", b, h, again)
		}
	})
}
