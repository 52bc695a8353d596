package solo_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/solo"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// node is what a process has open, on a disk that may be a copy made by a crash.
type node struct {
	t       testing.TB
	fs      vfs.FS
	index   *index.DB
	journal *journal.Journal
	state   *namespace.State
	log     *solo.Log
	mark    atomic.Uint64
}

var options = namespace.Options{HashKey: [16]byte{1, 2, 3}}

// start opens everything as a node does, but small, so that much is flushed, and
// replays the journal.
func start(t testing.TB, fs vfs.FS) *node {
	t.Helper()
	return startSized(t, fs, 64<<10, 16<<10)
}

func startSized(t testing.TB, fs vfs.FS, memTable uint64, journalFile int64) *node {
	t.Helper()
	n := &node{t: t, fs: fs}
	var err error
	if n.index, err = index.Open(index.Options{FS: fs, Dir: "index", MemTableBytes: memTable}); err != nil {
		t.Fatal(err)
	}
	if n.journal, err = journal.Open(journal.Options{FS: fs, Dir: "journal", FileSize: journalFile, FlushAfter: -1}); err != nil {
		t.Fatal(err)
	}
	if n.state, err = namespace.Open(n.index.Pebble(), options); err != nil {
		t.Fatal(err)
	}
	n.log = solo.Open(n.state, n.journal, n.mark.Load)
	var records []journal.Record
	if err := n.journal.Replay(n.kept(), 1<<63, func(r journal.Record) error {
		r.Payload = slices.Clone(r.Payload)
		records = append(records, r)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	n.index.SetBarrier(func() error { return n.journal.Sync(context.Background()) })
	for _, r := range records {
		if err := n.log.Replay(r); err != nil {
			t.Fatal(err)
		}
	}
	return n
}

// keptKey is where checkpoint notes the first record that is still needed.
var keptKey = []byte{index.SpaceMeta, 'j'}

func (n *node) kept() journal.Seq {
	n.t.Helper()
	value, closer, err := n.index.Pebble().Get(keptKey)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0
	}
	if err != nil {
		n.t.Fatal(err)
	}
	defer closer.Close()
	return journal.Seq(binary.BigEndian.Uint64(value))
}

// checkpoint makes the namespace durable in the index and trims the journal.
func (n *node) checkpoint() {
	n.t.Helper()
	keep := n.log.Applied() + 1
	err := n.index.Pebble().Set(keptKey, binary.BigEndian.AppendUint64(nil, uint64(keep)), pebble.NoSync)
	if err := errors.Join(err, n.index.Flush(), n.journal.Trim(keep)); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) stop() {
	n.t.Helper()
	if err := errors.Join(n.index.Close(), n.journal.Close()); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) propose(ops ...namespace.Op) namespace.Result {
	n.t.Helper()
	r, err := n.log.Propose(context.Background(), command(ops...))
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

func command(ops ...namespace.Op) *namespace.Command {
	return &namespace.Command{Time: 1e18, Ops: ops}
}

func mkfile(name string) *namespace.Create {
	return &namespace.Create{Parent: namespace.RootIno, Name: name, Mode: namespace.TypeRegular | 0o644}
}

// dump returns all of the namespace's keys and values.
func dump(t testing.TB, db *pebble.DB) map[string]string {
	t.Helper()
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{index.SpaceNamespace}, UpperBound: []byte{index.SpaceNamespace + 1}})
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	m := make(map[string]string)
	for it.First(); it.Valid(); it.Next() {
		m[string(it.Key())] = string(it.Value())
	}
	return m
}

// reference applies commands to a namespace of its own.
type reference struct {
	db    *pebble.DB
	state *namespace.State
}

func newReference(t testing.TB) *reference {
	t.Helper()
	db, err := pebble.Open("", &pebble.Options{FS: vfs.NewMem(), DisableWAL: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s, err := namespace.Open(db, options)
	if err != nil {
		t.Fatal(err)
	}
	return &reference{db, s}
}

func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("CAIRN_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CAIRN_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// randomOp is something that often succeeds in a small, busy directory.
func randomOp(r *rand.Rand) namespace.Op {
	name := fmt.Sprintf("name-%d", r.IntN(60))
	ino := namespace.Ino(2 + r.IntN(300))
	switch r.IntN(8) {
	case 0, 1:
		return mkfile(name)
	case 2:
		return &namespace.Unlink{Parent: 1, Name: name}
	case 3:
		return &namespace.Rename{Parent: 1, Name: name, NewParent: 1, NewName: fmt.Sprintf("name-%d", r.IntN(60))}
	case 4:
		return &namespace.SetXattr{Ino: ino, Name: "user.a", Value: make([]byte, r.IntN(300))}
	case 5:
		return &namespace.Reap{Ino: ino}
	case 6:
		return &namespace.Truncate{Ino: ino, Size: r.Int64N(100)}
	default:
		return &namespace.SetAttr{Ino: ino, Mask: namespace.AttrUID, UID: r.Uint32N(9)}
	}
}

// After any crash the namespace is that of a prefix of the commands that
// succeeded, and the prefix has all that were proposed before a Sync.
func TestAfterACrashEverythingSyncedIsThere(t *testing.T) {
	r := newRand(t)
	disk := vfs.NewCrashableMem()
	n := start(t, disk)
	var done []*namespace.Command // by index - 1
	synced := uint64(0)
	for range 8 {
		for range r.IntN(500) {
			cmd := &namespace.Command{Time: 1e18 + r.Int64N(1e12), Ops: []namespace.Op{randomOp(r)}}
			res, err := n.log.Propose(context.Background(), cmd)
			if err != nil {
				t.Fatal(err)
			}
			if res.Err == nil {
				done = append(done, cmd)
			}
			switch r.IntN(100) {
			case 0, 1, 2:
				if err := n.log.Sync(context.Background()); err != nil {
					t.Fatal(err)
				}
				synced = n.state.Applied()
			case 3:
				n.checkpoint()
				synced = n.state.Applied()
			}
		}
		if got := n.state.Applied(); got != uint64(len(done)) {
			t.Fatalf("applied %d of %d commands that succeeded", got, len(done))
		}
		crashed := disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(101), RNG: r})
		n.stop()
		disk = crashed
		n = start(t, disk)
		applied := n.state.Applied()
		if applied < synced || applied > uint64(len(done)) {
			t.Fatalf("%d commands after the crash, %d were synced, %d done", applied, synced, len(done))
		}
		done = done[:applied]
		ref := newReference(t)
		for i, cmd := range done {
			if res, err := ref.state.Apply(uint64(i+1), cmd); err != nil || res.Err != nil {
				t.Fatal(err, res.Err)
			}
		}
		if !maps.Equal(dump(t, n.index.Pebble()), dump(t, ref.db)) {
			t.Fatalf("after %d commands and a crash the namespace is not what they make", applied)
		}
		if err := n.state.Check(context.Background(), func(p namespace.Problem) { t.Error(p) }); err != nil {
			t.Fatal(err)
		}
	}
	n.stop()
}

func TestRefusedCommandsLeaveNoTrace(t *testing.T) {
	n := start(t, vfs.NewMem())
	defer n.stop()
	n.propose(mkfile("a"))
	last, before := n.journal.Last(), dump(t, n.index.Pebble())
	if r := n.propose(mkfile("a")); !errors.Is(r.Err, namespace.ErrExist) {
		t.Errorf("%+v", r)
	}
	if r := n.propose(nil); !errors.Is(r.Err, namespace.ErrInvalid) {
		t.Errorf("%+v", r)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := n.log.Propose(ctx, command(mkfile("b"))); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	huge := make([]namespace.Op, 80)
	for i := range huge {
		huge[i] = &namespace.SetXattr{Ino: 1, Name: "user.a", Value: make([]byte, namespace.MaxXattr)}
	}
	if _, err := n.log.Propose(context.Background(), command(huge...)); !errors.Is(err, solo.ErrTooLarge) {
		t.Errorf("command of 5 MiB: %v", err)
	}
	if n.journal.Last() != last || !maps.Equal(before, dump(t, n.index.Pebble())) {
		t.Error("something was written")
	}
	if r := n.propose(mkfile("b")); r.Err != nil || r.Index != 2 {
		t.Errorf("%+v", r)
	}
}

func TestRecordsCarryTheMarkOfTheirBlocks(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	for i := range uint64(5) {
		n.mark.Store(10 * i)
		create := mkfile(fmt.Sprint(i))
		create.Size = 5000
		create.Content = &namespace.Content{Root: cas.Sum(cas.Raw, nil), TreeSize: create.Size, Length: create.Size}
		if r := n.propose(create); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	// A command without blocks waits for none.
	n.propose(mkfile("without blocks"))
	if n.log.Applied() != 6 {
		t.Errorf("at record %d", n.log.Applied())
	}
	n.stop()
	j, err := journal.Open(journal.Options{FS: fs, Dir: "journal"})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	var i uint64
	if err := j.Replay(0, 1000, func(r journal.Record) error {
		index, _ := binary.Uvarint(r.Payload)
		want := 10 * i
		if i == 5 {
			want = 0
		}
		if r.Kind != journal.KindCommand || r.Mark != want || index != i+1 {
			t.Errorf("record %+v", r)
		}
		i++
		return nil
	}); err != nil || i != 6 {
		t.Error(i, err)
	}
}

func TestConcurrentProposalsAreOrdered(t *testing.T) {
	fs := vfs.NewMem()
	n := start(t, fs)
	var mu sync.Mutex
	indexes := make(map[uint64]bool)
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 50 {
				r, err := n.log.Propose(context.Background(), command(mkfile(fmt.Sprintf("%d-%d", g, i))))
				if err != nil || r.Err != nil {
					t.Error(err, r.Err)
				}
				if err := n.log.Sync(context.Background()); err != nil {
					t.Error(err)
				}
				mu.Lock()
				indexes[r.Index] = true
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if len(indexes) != 400 || n.state.Applied() != 400 || n.journal.Synced() != 400 {
		t.Errorf("%d indexes, applied %d, synced %d", len(indexes), n.state.Applied(), n.journal.Synced())
	}
	before := dump(t, n.index.Pebble())
	n.stop()
	n = start(t, fs)
	if !maps.Equal(before, dump(t, n.index.Pebble())) {
		t.Error("replayed in another order")
	}
	n.stop()
}

// Rule 17: a full disk refuses commands and is otherwise survived.
func TestAFullDiskRefusesCommandsUntilThereIsSpace(t *testing.T) {
	var full atomic.Bool
	mem := vfs.NewMem()
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind == errorfs.OpFileWriteAt {
			return syscall.ENOSPC
		}
		return nil
	}))
	n := start(t, fs)
	value := make([]byte, namespace.MaxXattr)
	set := func(i int) (namespace.Result, error) {
		return n.log.Propose(context.Background(), command(&namespace.SetXattr{Ino: 1, Name: "user.a", Value: value}, mkfile(fmt.Sprint(i))))
	}
	full.Store(true)
	refused := 0
	for i := range 10 {
		before := n.state.Applied()
		if _, err := set(i); err != nil {
			refused++
			if !errors.Is(err, syscall.ENOSPC) || n.state.Applied() != before {
				t.Fatalf("applied %d after %d: %v", n.state.Applied(), before, err)
			}
		}
	}
	if refused == 0 || refused == 10 {
		t.Errorf("%d of 10 commands refused", refused)
	}
	full.Store(false)
	if r, err := set(10); err != nil || r.Err != nil || r.Index != uint64(11-refused) {
		t.Errorf("with space again: %+v, %v", r, err)
	}
	before := dump(t, n.index.Pebble())
	n.stop()
	n = start(t, fs)
	if !maps.Equal(before, dump(t, n.index.Pebble())) {
		t.Error("replay makes something else")
	}
	n.stop()
}

func TestAFailedJournalEndsTheLog(t *testing.T) {
	n := start(t, vfs.NewMem())
	if err := n.journal.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := n.log.Propose(context.Background(), command(mkfile("a"))); !errors.Is(err, journal.ErrClosed) {
			t.Errorf("propose: %v", err)
		}
	}
	if n.state.Applied() != 0 {
		t.Error("a command was applied that the journal does not have")
	}
	n.index.SetBarrier(nil)
	n.stop()
}

func TestReplayRefusesWhatDoesNotFit(t *testing.T) {
	encoded, err := command(mkfile("a")).AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	record := func(index uint64, cmd []byte) journal.Record {
		return journal.Record{Seq: 7, Kind: journal.KindCommand, Payload: append(binary.AppendUvarint(nil, index), cmd...)}
	}
	n := start(t, vfs.NewMem())
	defer n.stop()
	n.propose(mkfile("a"))
	if err := n.log.Replay(journal.Record{Kind: journal.KindRange, Payload: []byte("anything")}); err != nil {
		t.Errorf("record of another kind: %v", err)
	}
	if err := n.log.Replay(record(1, []byte("not looked at"))); err != nil || n.log.Applied() != 7 {
		t.Errorf("command that is there already: %v, at %d", err, n.log.Applied())
	}
	var gap *solo.GapError
	if err := n.log.Replay(record(3, encoded)); !errors.As(err, &gap) || gap.Have != 1 || gap.Next != 3 || gap.Seq != 7 {
		t.Errorf("gap: %v", err)
	}
	var bad *solo.DecodeError
	for _, payload := range [][]byte{nil, {0x80}, record(2, nil).Payload, record(2, []byte{1, 255}).Payload} {
		if err := n.log.Replay(journal.Record{Seq: 7, Kind: journal.KindCommand, Payload: payload}); !errors.As(err, &bad) || bad.Seq != 7 || !errors.Is(err, namespace.ErrCorrupt) {
			t.Errorf("payload %x: %v", payload, err)
		}
	}
	if err := n.log.Replay(record(2, []byte{99})); !errors.Is(err, namespace.ErrVersion) {
		t.Errorf("unknown version: %v", err)
	}
	if err := n.log.Replay(record(2, encoded)); !errors.Is(err, solo.ErrDiverged) || !errors.Is(err, namespace.ErrExist) {
		t.Errorf("command that is refused now: %v", err)
	}
}

func BenchmarkProposeCreate(b *testing.B) {
	n := startSized(b, vfs.NewMem(), 0, 0)
	b.ReportAllocs()
	ops := make([]namespace.Op, 1)
	for i := 0; b.Loop(); i++ {
		ops[0] = mkfile("file-" + strconv.Itoa(i))
		if r := n.propose(ops...); r.Err != nil {
			b.Fatal(r.Err)
		}
	}
	n.stop()
}
