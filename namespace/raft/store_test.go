package raft

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
)

// unit is a store on a disk, without a core.
type unit struct {
	*disk
	t     *testing.T
	store *store
}

// newUnit opens the store on a disk, of node 1.
func newUnit(t *testing.T, fs *vfs.MemFS) *unit {
	t.Helper()
	d, records, err := openDisk(fs, testLogger(t, "1"), 0)
	if err != nil {
		t.Fatal(err)
	}
	u := &unit{disk: d, t: t}
	t.Cleanup(func() { _ = u.close() })
	if u.store, err = openStore(d.index.Pebble(), func() uint64 { return 0 }); err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := u.store.replay(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := u.store.open(d.journal, 1, d.state); err != nil {
		t.Fatal(err)
	}
	return u
}

// again opens it anew after a power loss.
func (u *unit) again() *unit {
	u.t.Helper()
	return newUnit(u.t, u.fs.CrashClone(vfs.CrashCloneCfg{}))
}

func (u *unit) save(hard *raftpb.HardState, entries ...*raftpb.Entry) {
	u.t.Helper()
	if err := u.store.save(&raft.Ready{HardState: hard, Entries: entries, MustSync: true}); err != nil {
		u.t.Fatal(err)
	}
}

func (u *unit) checkpointAt(entry uint64) {
	u.t.Helper()
	base, keep, err := u.store.checkpoint(entry)
	if err == nil {
		err = u.index.Pebble().Set(baseKey(), base, pebble.NoSync)
	}
	if err = errors.Join(err, u.disk.checkpoint(keep)); err != nil {
		u.t.Fatal(err)
	}
}

// terms returns the log as a text: the entry it begins after, then the terms.
func (u *unit) terms() string {
	first, _ := u.store.FirstIndex()
	last, _ := u.store.LastIndex()
	text := fmt.Sprintf("%d:", first-1)
	for i := first; i <= last; i++ {
		term, _ := u.store.Term(i)
		text += fmt.Sprint(" ", term)
	}
	return text
}

func (u *unit) want(what, terms string) {
	u.t.Helper()
	if got := u.terms(); got != terms {
		u.t.Errorf("%s the log is %q, want %q", what, got, terms)
	}
}

func hardState(term, vote, commit uint64) *raftpb.HardState {
	return &raftpb.HardState{Term: &term, Vote: &vote, Commit: &commit}
}

// run returns entries of a term from an index on, each with so many bytes.
func entriesOf(term, from, to uint64, size int) (all []*raftpb.Entry) {
	for i := from; i <= to; i++ {
		all = append(all, &raftpb.Entry{Index: proto.Uint64(i), Term: proto.Uint64(term), Data: make([]byte, size)})
	}
	return all
}

func snapshotAt(index, term uint64, voters ...uint64) *raftpb.Snapshot {
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: &index, Term: &term, ConfState: &raftpb.ConfState{Voters: voters}}}
}

// follower is a store of one of three voters that begins after entry 1.
func follower(t *testing.T) *unit {
	u := newUnit(t, vfs.NewCrashableMem())
	u.store.kept = 100
	u.store.conf = &raftpb.ConfState{Voters: []uint64{1, 2, 3}}
	group, err := encode(u.store.conf)
	if err == nil {
		err = u.state.ApplyGroup(namespace.Position{Entry: 1, Term: 1, Commands: 1}, group)
	}
	if err != nil {
		t.Fatal(err)
	}
	u.store.setAlone(1)
	if err := u.store.installed(snapshotAt(1, 1, 1, 2, 3)); err != nil {
		t.Fatal(err)
	}
	u.checkpointAt(1)
	return u
}

// applyTo makes the namespace be as of an entry.
func (u *unit) applyTo(entry, term uint64) {
	u.t.Helper()
	if _, err := u.state.ApplyAt(namespace.Position{Entry: entry, Term: term, Commands: 1 << 31}, &namespace.Command{Ops: []namespace.Op{mkdir(fmt.Sprint(entry))}}); err != nil {
		u.t.Fatal(err)
	}
}

func TestALogIsTheSameAfterAPowerLoss(t *testing.T) {
	u := follower(t)
	u.save(hardState(2, 3, 1), entriesOf(2, 2, 9, 10)...)
	u.save(hardState(3, 2, 4), entriesOf(3, 5, 6, 10)...) // another leader's, in place of some
	u.want("before", "1: 2 2 2 3 3")
	u = u.again()
	u.want("after a power loss", "1: 2 2 2 3 3")
	if h := u.store.hard; h.GetTerm() != 3 || h.GetVote() != 2 || h.GetCommit() != 4 {
		t.Errorf("after a power loss, the state is %v", h)
	}
}

// A record of the journal ends the log, even if a checkpoint took all of the record
// into the base.
func TestReplacedEntriesDoNotComeBackAfterACheckpoint(t *testing.T) {
	u := follower(t)
	u.save(hardState(2, 3, 1), entriesOf(2, 2, 9, 200)...)
	u.save(hardState(3, 2, 1), entriesOf(3, 5, 6, 200)...)
	u.want("before", "1: 2 2 2 3 3")
	u.applyTo(6, 3)
	u.checkpointAt(6)
	u.want("after the checkpoint", "6:")
	u = u.again()
	u.want("after a power loss", "6:")
	// Had it entries 7 to 9 of term 2 again, it could vote for one that lacks 5 and 6.
}

func TestCheckpointsInAnyPlaceChangeNothingButTheBeginning(t *testing.T) {
	for at := uint64(1); at <= 12; at++ {
		u := follower(t)
		u.save(hardState(2, 3, 1), entriesOf(2, 2, 9, 60)...)
		u.save(hardState(3, 2, 1), entriesOf(3, 5, 6, 60)...)
		u.save(hardState(4, 2, 1), entriesOf(4, 6, 10, 60)...)
		u.save(nil, entriesOf(4, 11, 12, 60)...)
		term := []uint64{0, 1, 2, 2, 2, 3, 4, 4, 4, 4, 4, 4, 4}[at]
		if at > 1 {
			u.applyTo(at, term)
		}
		u.checkpointAt(at)
		before := u.terms()
		u = u.again()
		u.want(fmt.Sprintf("after a checkpoint at %d and a power loss", at), before)
		u.save(nil, entriesOf(4, 13, 13, 60)...)
		before = u.terms()
		u.again().want("and after another", before)
	}
}

// The namespace of a snapshot is on disk before the log knows of it.
func TestASnapshotThatTheLogDoesNotKnowOfCounts(t *testing.T) {
	for name, entries := range map[string][]*raftpb.Entry{
		"of a log that is shorter":                          entriesOf(2, 2, 4, 10),
		"of a log that is longer, with entries of no avail": entriesOf(2, 2, 15, 10),
	} {
		u := follower(t)
		u.save(hardState(2, 3, 1), entries...)
		u.applyTo(9, 3) // stands for the installation
		if err := u.index.Flush(); err != nil {
			t.Fatal(err)
		}
		u = u.again()
		u.want(name, "9:")
		if h := u.store.hard; h.GetCommit() != 9 || h.GetTerm() < 3 {
			t.Errorf("%s: the state is %v", name, h)
		}
		u.again().want(name+", once more", "9:")
	}
}

func TestASnapshotWithinTheLogLeavesTheLogAlone(t *testing.T) {
	u := follower(t)
	u.save(hardState(3, 3, 1), entriesOf(3, 2, 15, 10)...)
	u.applyTo(9, 3)
	if err := u.index.Flush(); err != nil {
		t.Fatal(err)
	}
	u.again().want("after a power loss", "1: 3 3 3 3 3 3 3 3 3 3 3 3 3 3")
}

// Rule 1: what is proposed alone may be lost, from some entry on.
func TestAloneNothingIsSyncedUntilAnotherIsToLearn(t *testing.T) {
	u := newUnit(t, vfs.NewCrashableMem())
	if err := errors.Join(Found(u.state, u.index.Pebble(), 1), u.disk.checkpoint(1)); err != nil {
		t.Fatal(err)
	}
	u = u.again()
	if !u.store.alone {
		t.Fatal("the first node of a group is not alone")
	}
	u.save(hardState(2, 1, 1), entriesOf(2, 2, 5, 10)...)
	u.again().want("unsynced and lost,", "1:")
	if err := u.store.notAlone(); err != nil {
		t.Fatal(err)
	}
	u.again().want("durable before another learns,", "1: 2 2 2 2")
	u.save(nil, entriesOf(2, 6, 6, 10)...)
	u = u.again()
	u.want("and from then on,", "1: 2 2 2 2 2")
}

// A restart must not make a node forget that another may hold its entries.
func TestANodeWithAChangeOfTheGroupInItsLogIsNotAlone(t *testing.T) {
	u := newUnit(t, vfs.NewCrashableMem())
	if err := errors.Join(Found(u.state, u.index.Pebble(), 1), u.disk.checkpoint(1)); err != nil {
		t.Fatal(err)
	}
	u = u.again()
	u.save(hardState(2, 1, 1), entriesOf(2, 2, 5, 10)...)
	change := entriesOf(2, 6, 6, 10)
	change[0].Type = raftpb.EntryConfChangeV2.Enum()
	u.save(nil, change...)
	if err := u.journal.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	if u = u.again(); u.store.alone {
		t.Error("it is alone with a learner in its log")
	}
}

func TestOnlyWhatTheNamespaceHasIsForgotten(t *testing.T) {
	u := follower(t)
	u.save(hardState(2, 3, 1), entriesOf(2, 2, 9, 200)...)
	u.applyTo(5, 2)
	u.checkpointAt(5)
	u.want("after a checkpoint", "5: 2 2 2 2")
	u.store.kept = 500
	u.applyTo(9, 2)
	u.checkpointAt(9)
	u.want("with some kept for others,", "7: 2 2")
	if u.store.bytes != 400 {
		t.Errorf("%d bytes are counted, of 400", u.store.bytes)
	}
}

func TestReplacedEntriesDoNotCount(t *testing.T) {
	u := follower(t)
	u.save(hardState(2, 3, 1), entriesOf(2, 2, 9, 200)...)
	u.save(hardState(3, 3, 1), entriesOf(3, 4, 5, 200)...)
	if u.store.bytes != 800 {
		t.Errorf("%d bytes are counted, of 800", u.store.bytes)
	}
}

func TestTheJournalIsKeptWhereItIsNeeded(t *testing.T) {
	u := follower(t)
	for i := uint64(2); i <= 40; i++ {
		u.save(hardState(2, 3, 1), entriesOf(2, i, i, 10)...)
	}
	u.applyTo(40, 2)
	_, keep, err := u.store.checkpoint(40)
	if err != nil {
		t.Fatal(err)
	}
	if n := u.journal.Last() + 1 - keep; n < 10 || n > 11 {
		t.Errorf("%d records are kept, and 100 bytes are wanted, 10 in each", n)
	}
}

func TestRecordsOfOthersArePassedOver(t *testing.T) {
	l := &Log{store: newUnit(t, vfs.NewCrashableMem()).store}
	if err := l.Replay(journal.Record{Kind: journal.KindRange, Payload: []byte("not ours")}); err != nil {
		t.Error(err)
	}
	if err := l.Replay(journal.Record{Kind: journal.KindLog, Payload: []byte{9}}); !errors.Is(err, namespace.ErrVersion) {
		t.Errorf("a record of another format: %v", err)
	}
}

// A member whose disk is full waits for space, whatever it is about to write.
func TestAFullDiskIsWaitedForAlsoByAChangeOfTheGroup(t *testing.T) {
	u := follower(t)
	var full atomic.Bool
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind == errorfs.OpFileWriteAt {
			return syscall.ENOSPC
		}
		return nil
	}))
	j, err := journal.Open(journal.Options{FS: fs, Dir: "journal", FlushAfter: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := j.Replay(0, 0, func(journal.Record) error { return nil }); err != nil {
		t.Fatal(err)
	}
	u.store.journal = j
	waited := 0
	u.store.wait = func(error) bool {
		waited++
		full.Store(false)
		return true
	}
	for name, write := range map[string]func() error{
		"of a start":                u.store.noted,
		"of the end of being alone": func() error { return errors.Join(u.store.write(nil, true, nil), u.store.notAlone()) },
		"of a changed group":        u.store.agreed,
		"of an installed snapshot":  func() error { return u.store.installed(snapshotAt(9, 2, 1, 2, 3)) },
	} {
		full.Store(true)
		before := waited
		if err := write(); err != nil || waited == before {
			t.Errorf("the note %s, on a full disk: %v, after %d waits", name, err, waited-before)
		}
	}
}

// Rule 4: what was taken back of a member's starts does not come back, else its right
// store would be refused after a restart of those who were told.
func TestAStartThatWasTakenBackIsForgottenForGood(t *testing.T) {
	for at := range 4 {
		u := follower(t)
		u.save(hardState(2, 3, 1), entriesOf(2, 2, 9, 10)...) // which the journal is kept for
		for step, change := range []func(m *memory){
			func(m *memory) { m.meet(startsOf(10, 20, 30)) },
			func(m *memory) { m.meet(startsOf(10, 20, 30, 41)) }, // a copy
			func(m *memory) {
				if !m.unmeet(41) {
					t.Error("the copy was not met")
				}
			},
		} {
			if step == at {
				u.checkpointAt(1)
			}
			change(u.store.vouch.of(2))
			if err := u.store.noted(); err != nil {
				t.Fatal(err)
			}
		}
		if at == 3 {
			u.checkpointAt(1)
		}
		for range 2 {
			u = u.again()
			if r := u.store.vouch.of(2).descent(startsOf(10, 20, 30, 40)); r != nil {
				t.Errorf("with a checkpoint before step %d: %v", at, r)
			}
			if r := u.store.vouch.of(2).descent(startsOf(10, 20)); r == nil {
				t.Errorf("with a checkpoint before step %d, start 3 is forgotten", at)
			}
		}
	}
}
