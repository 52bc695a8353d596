package segment

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/journal"
)

// sizes are what decides when files are full and blocks are synced unasked.
type sizes struct{ segment, table, journal int64 }

// machine is the storage of a node as it is put together there: segments, index
// and journal, and a state that is derived from the journal: the number of the
// record applied last, in the index.
type machine struct {
	*node
	j       *journal.Journal
	applied journal.Seq
}

var appliedKey = []byte{index.SpaceNamespace, 'a'}

// boot starts a machine as a node does and returns the records it replayed.
func boot(fs vfs.FS, sizes sizes) (*machine, []string, error) {
	n, err := tryStart(fs, "", Options{SegmentSize: sizes.segment, tableBytes: sizes.table, CompactRate: -1}, Open)
	if err != nil {
		return nil, nil, err
	}
	m := &machine{node: n}
	if v, closer, err := n.ix.Pebble().Get(appliedKey); err == nil {
		m.applied = journal.Seq(binary.BigEndian.Uint64(v))
		if err := closer.Close(); err != nil {
			return nil, nil, err
		}
	} else if !errors.Is(err, pebble.ErrNotFound) {
		return nil, nil, err
	}
	m.j, err = journal.Open(journal.Options{
		FS: fs, Dir: "journal", FileSize: sizes.journal, FlushAfter: -1, Logger: quiet(),
		// So that much goes to the operating system unsynced, which may or may
		// not write it to the disk.
		BufferSize: 256,
		Random:     rand.NewChaCha8([32]byte{2}),
		SyncBlocks: func(ctx context.Context, mark uint64) error { return n.SyncTo(ctx, mark) },
	})
	if err != nil {
		return nil, nil, errors.Join(err, n.Store.Close(), n.ix.Close())
	}
	var records []string
	err = m.j.Replay(m.applied+1, n.ValidMark(), func(r journal.Record) error {
		records = append(records, string(r.Payload))
		return m.apply(r.Seq)
	})
	if err != nil {
		return nil, nil, errors.Join(err, m.halt())
	}
	n.ix.SetBarrier(func() error { return m.j.Sync(context.Background()) })
	return m, records, nil
}

// apply changes the derived state by one record.
func (m *machine) apply(seq journal.Seq) error {
	m.applied = seq
	return m.ix.Pebble().Set(appliedKey, binary.BigEndian.AppendUint64(nil, uint64(seq)), pebble.NoSync)
}

func (m *machine) halt() error {
	return errors.Join(m.Store.Close(), m.j.Close(), m.ix.Close())
}

// model is what a machine may have after a crash.
type model struct {
	records []modelRecord // all appended, in order
	synced  int           // how many of them are acknowledged
	blocks  []cas.Block   // all put
}

type modelRecord struct {
	payload string
	blocks  []cas.Block // it refers to
	drops   []cas.Block // of which it says that they are not needed any more
}

// needed returns the blocks that the records need, in their order.
func (w *model) needed() map[cas.CID]bool {
	needed := make(map[cas.CID]bool)
	for _, r := range w.records {
		for _, b := range r.blocks {
			needed[b.CID()] = true
		}
		for _, b := range r.drops {
			delete(needed, b.CID())
		}
	}
	return needed
}

// TestNodeThroughCrashes puts blocks, journals records that refer to them, or let go
// of them, applies the records, deletes what none needs, gives its space back, syncs,
// flushes, and crashes at random moments. After each crash the journal must be a prefix
// that holds everything acknowledged, the derived state must not be ahead of it, and
// every block that a record needs must be there.
// The seed is the name of the subtest.
func TestNodeThroughCrashes(t *testing.T) {
	for seed := range uint64(40 / effort) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 6))
			watched := watch(vfs.NewCrashableMem())
			sizes := sizes{segment: 8 << 10, table: 4 << 10, journal: 500}
			if seed%2 == 0 {
				sizes.table = 1 << 20 // blocks are synced only when they must be
			}
			if seed%4 < 2 {
				sizes.journal = int64(rng.IntN(20 << 10))
			}
			m, _, err := boot(watched, sizes)
			if err != nil {
				t.Fatal(err)
			}
			var w model
			for step := range uint64(200) {
				switch n := rng.IntN(100); {
				case n < 60:
					w.write(t, m, rng, seed<<32|step)
				case n < 66:
					w.drop(t, m, rng, step)
				case n < 72:
					w.delete(t, m, rng)
				case n < 77:
					compact(t, m.Store)
					wantCompact(t, m.node)
				case n < 80:
					after := watched.crashWhile(rng, 100, func() { compact(t, m.Store) })
					if err := m.halt(); err != nil {
						t.Fatal(err)
					}
					watched = watch(after)
					m = w.reboot(t, watched, sizes)
				case n < 85:
					if err := m.j.Sync(context.Background()); err != nil {
						t.Fatal(err)
					}
					w.synced = len(w.records)
				case n < 88:
					syncS(t, m.Store)
				case n < 92:
					if err := m.ix.Flush(); err != nil {
						t.Fatal(err)
					}
				default:
					if rng.IntN(4) == 0 {
						if err := m.halt(); err != nil {
							t.Fatal(err)
						}
						w.synced = len(w.records)
						watched = watch(crash(watched.mem, 0, rng.Uint64()))
					} else {
						after := crash(watched.mem, []int{0, 5, 30, 70, 95, 100}[rng.IntN(6)], rng.Uint64())
						if err := m.halt(); err != nil {
							t.Fatal(err)
						}
						watched = watch(after)
					}
					if rng.IntN(3) == 0 {
						watched = watch(watched.crashWhile(rng, 300, func() {
							if m, _, err := boot(watched, sizes); err == nil {
								_ = m.halt() // may be the moment, too
							}
						}))
					}
					if rng.IntN(6) == 0 { // the journal goes back to the first record
						if err := watched.RemoveAll("index"); err != nil {
							t.Fatal(err)
						}
						watched = watch(copyOf(watched.mem)) // so that it is not removed by halves
					}
					m = w.reboot(t, watched, sizes)
				}
			}
			if err := m.halt(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// watchedFS is a file system that calls a function before it is written to.
type watchedFS struct {
	vfs.FS
	mem   *vfs.MemFS
	write atomic.Pointer[func()]
}

func watch(mem *vfs.MemFS) *watchedFS {
	w := &watchedFS{mem: mem}
	w.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if f := w.write.Load(); f != nil && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			(*f)()
		}
		return nil
	}))
	return w
}

// crashWhile returns what a power loss leaves at a random moment of what is done,
// among the first so many times that something is written.
func (w *watchedFS) crashWhile(rng *rand.Rand, among int, do func()) *vfs.MemFS {
	var crashed atomic.Pointer[vfs.MemFS]
	var ops atomic.Int64
	at, percent, seed := int64(rng.IntN(among)), []int{0, 50, 100}[rng.IntN(3)], rng.Uint64()
	look := func() {
		if ops.Add(1) == at {
			crashed.Store(crash(w.mem, percent, seed))
		}
	}
	w.write.Store(&look)
	do()
	w.write.Store(nil)
	if after := crashed.Load(); after != nil {
		return after
	}
	return crash(w.mem, percent, seed)
}

// drop appends a record by which some blocks are not needed any more, and applies it.
func (w *model) drop(t *testing.T, m *machine, rng *rand.Rand, step uint64) {
	t.Helper()
	r := modelRecord{payload: fmt.Sprint("drop ", step)}
	for range min(len(w.blocks), rng.IntN(60)) {
		r.drops = append(r.drops, w.blocks[rng.IntN(len(w.blocks))])
	}
	w.append(t, m, 0, r)
}

// delete deletes some blocks that are not needed, though the records that say so may
// not be durable.
func (w *model) delete(t *testing.T, m *machine, rng *rand.Rand) {
	t.Helper()
	needed := w.needed()
	var gone []cas.Block
	for _, b := range w.blocks {
		if !needed[b.CID()] && rng.IntN(4) > 0 {
			gone = append(gone, b)
		}
	}
	deleteAll(t, m.Store, gone)
	wantNone(t, m.Store, gone)
}

// write puts some blocks and appends a record that refers to some of all blocks
// put, which it then applies.
func (w *model) write(t *testing.T, m *machine, rng *rand.Rand, seed uint64) {
	t.Helper()
	batch := someBlocks(t, seed, rng.IntN(8))
	put(t, m.Store, batch...)
	w.blocks = append(w.blocks, batch...)
	if rng.IntN(3) == 0 {
		return // the file is not finished yet
	}
	r := modelRecord{payload: fmt.Sprintf("%d %x", seed, make([]byte, rng.IntN(200)))}
	for range min(rng.IntN(5), len(w.blocks)) {
		r.blocks = append(r.blocks, w.blocks[len(w.blocks)-1-rng.IntN(min(len(w.blocks), 20))])
	}
	// What a record refers to was put before, by this life or an earlier one.
	put(t, m.Store, r.blocks...)
	mark := uint64(0)
	if len(r.blocks) > 0 {
		mark = m.Mark()
	}
	w.append(t, m, mark, r)
}

// append appends a record and applies it.
func (w *model) append(t *testing.T, m *machine, mark uint64, r modelRecord) {
	t.Helper()
	seq, _, err := m.j.Append(journal.KindCommand, mark, []byte(r.payload))
	if err != nil || int(seq) != len(w.records)+1 {
		t.Fatalf("Append = %d, %v after %d records", seq, err, len(w.records))
	}
	w.records = append(w.records, r)
	if err := m.apply(seq); err != nil {
		t.Fatal(err)
	}
}

// reboot starts the machine after a crash and compares it with the model, which it
// cuts to what has survived.
func (w *model) reboot(t *testing.T, fs vfs.FS, sizes sizes) *machine {
	t.Helper()
	m, replayed, err := boot(fs, sizes)
	if err != nil {
		t.Fatalf("after a crash: %v", err)
	}
	last := int(m.j.Last())
	if last < w.synced || last > len(w.records) {
		t.Fatalf("the journal has %d records, %d were appended, %d acknowledged", last, len(w.records), w.synced)
	}
	if int(m.applied) != last {
		t.Fatalf("applied to %d, the journal ends at %d", m.applied, last)
	}
	for i, payload := range replayed {
		if seq := last - len(replayed) + i; payload != w.records[seq].payload {
			t.Fatalf("record %d came back as another", seq+1)
		}
	}
	w.records, w.synced = w.records[:last], last
	needed := w.needed()
	for _, b := range w.blocks {
		got, err := m.Get(context.Background(), b.CID(), nil)
		switch {
		case err == nil && bytes.Equal(got.Data(), b.Data()):
		case errors.Is(err, cas.ErrNotFound) && !needed[b.CID()]:
		default:
			t.Fatalf("a block that a record refers to (%v) is missing or wrong: %v", needed[b.CID()], err)
		}
	}
	wantExactStats(t, m.node)
	return m
}
