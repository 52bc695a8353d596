package raft

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
)

// store is the group's log on this node: entries, votes and terms. It is held in
// memory, from a base on, and every change of it is a record of the node's journal,
// so that it shares the syncs with all else that is written there.
//
// A record is a version byte and a raftpb.Message of type MsgStorageAppend: entries,
// term, vote and commit where they changed, and the metadata of a snapshot that was
// installed, which discards all before. Where a term begins, this store starts or
// another is met, the context says what is known of starts (vouch.go). What the journal does not hold any more is
// in the base, which a checkpoint writes into the index together with the namespace
// that makes it unnecessary. The base's index is the last record of the journal then;
// that of earlier versions has none.
type store struct {
	*raft.MemoryStorage
	journal *journal.Journal
	mark    func() uint64
	wait    func(error) bool // until there may be space; false: there will be none
	sending func() bool      // the namespace, to some member; nil: no

	hard    *raftpb.HardState
	conf    *raftpb.ConfState // as of applied, not of the end of the log
	applied uint64            // as of the start
	records []span            // of the journal, that hold entries after the base
	bytes   int               // of entries in memory, about
	kept    int               // maxKept, less in tests
	alone   bool

	vouch    vouch
	remember bool        // the next record is to have it
	vouched  journal.Seq // the last record before the vouch of the base
	undated  bool        // the base has one and does not say so
}

// span is a record of the journal and the last entry in it.
type span struct {
	seq  journal.Seq
	last uint64
}

// baseKey is where the index has the base.
func baseKey() []byte { return []byte{index.SpaceMeta, 'r'} }

// maxKept is how many bytes of applied entries stay in memory for members that are
// a little behind. And maxSending while a member is sent the namespace: it needs what
// comes after that when it has it all, else it would be sent it again, and again.
const (
	maxKept    = 16 << 20
	maxSending = 128 << 20
)

// InitialState returns the state to start with; raft applies nothing again that is
// applied, so the configuration is that of the namespace.
func (s *store) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	return s.hard, s.conf, nil
}

// foundation is the log of a new group: a snapshot of what was there before, with
// this member alone.
func foundation(id uint64) (base *raftpb.Message, conf *raftpb.ConfState) {
	conf = &raftpb.ConfState{Voters: []uint64{id}}
	return &raftpb.Message{
		Type: raftpb.MsgStorageAppend.Enum(), Term: proto.Uint64(1), Vote: proto.Uint64(id), Commit: proto.Uint64(1),
		Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: proto.Uint64(1), Term: proto.Uint64(1), ConfState: conf}},
	}, conf
}

func newStore(mark func() uint64) *store {
	return &store{MemoryStorage: raft.NewMemoryStorage(), mark: mark, hard: &raftpb.HardState{}, conf: &raftpb.ConfState{}, kept: maxKept}
}

// openStore reads the base. Feed it the journal's records with replay, then call
// open.
func openStore(db *pebble.DB, mark func() uint64) (*store, error) {
	s := newStore(mark)
	value, closer, err := db.Get(baseKey())
	if errors.Is(err, pebble.ErrNotFound) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	err = s.take(value, 0)
	return s, errors.Join(err, closer.Close())
}

// replay takes a record of the journal.
func (s *store) replay(rec journal.Record) error {
	before, _ := s.LastIndex()
	if err := s.take(rec.Payload, rec.Seq); err != nil {
		return fmt.Errorf("journal record %d: %w", rec.Seq, err)
	}
	if last, _ := s.LastIndex(); last != before || len(s.records) > 0 {
		s.records = append(s.records, span{rec.Seq, last})
	}
	return nil
}

// take changes what is in memory as a record of the journal says, or as the base does,
// whose number is 0.
func (s *store) take(payload []byte, seq journal.Seq) error {
	var m raftpb.Message
	if err := decode(payload, &m); err != nil {
		return err
	}
	if m.GetType() != raftpb.MsgStorageAppend {
		return fmt.Errorf("%w: record of type %v", namespace.ErrVersion, m.GetType())
	}
	if !raft.IsEmptySnap(m.GetSnapshot()) {
		if err := s.reset(m.GetSnapshot()); err != nil {
			return err
		}
	}
	if m.Term != nil {
		s.hard = &raftpb.HardState{Term: m.Term, Vote: proto.Uint64(m.GetVote()), Commit: proto.Uint64(m.GetCommit())}
	}
	if m.Context != nil {
		v, err := decodeVouch(m.Context)
		if err != nil {
			return err
		}
		s.remind(&v, seq, &m)
	}
	return s.append(m.GetEntries())
}

// remind takes over what a record knows of starts. The base is later than records that
// it left in the journal; later ones take back what is not so any more.
func (s *store) remind(v *vouch, seq journal.Seq, m *raftpb.Message) {
	switch {
	case seq == 0:
		s.vouch, s.vouched, s.undated = *v, journal.Seq(m.GetIndex()), m.Index == nil
	case s.undated:
		s.vouch.add(v)
	case seq > s.vouched:
		s.vouch = *v
	}
}

// reset begins the log after a snapshot.
func (s *store) reset(snap *raftpb.Snapshot) error {
	s.MemoryStorage = raft.NewMemoryStorage()
	s.records, s.bytes = nil, 0
	return s.ApplySnapshot(snap)
}

func (s *store) append(entries []*raftpb.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	first, _ := s.FirstIndex()
	// A checkpoint may have taken the beginning of a record into the base. The
	// log ends with the record all the same: what is there after it is older.
	for len(entries) > 0 && entries[0].GetIndex() < first {
		entries = entries[1:]
	}
	if len(entries) == 0 {
		base, err := s.Snapshot()
		if err != nil {
			return err
		}
		return s.reset(base)
	}
	last, _ := s.LastIndex()
	from := entries[0].GetIndex()
	if from > last+1 {
		return fmt.Errorf("%w: entry %d after entry %d", namespace.ErrCorrupt, from, last)
	}
	if from <= last { // these are replaced
		old, err := s.Entries(from, last+1, 1<<62)
		if err != nil {
			return err
		}
		s.bytes -= size(old)
	}
	s.bytes += size(entries)
	return s.Append(entries)
}

func size(entries []*raftpb.Entry) (n int) {
	for _, e := range entries {
		n += len(e.GetData())
	}
	return n
}

// open ends the replay: it brings the log to where the namespace is, and opens it
// for changes.
func (s *store) open(j *journal.Journal, id uint64, state *namespace.State) error {
	s.journal = j
	group, err := state.Group()
	if err != nil {
		return err
	}
	if group != nil {
		s.conf = &raftpb.ConfState{}
		if err := decode(group, s.conf); err != nil {
			return err
		}
	}
	at := state.Position()
	last, _ := s.LastIndex()
	if at.Entry > last || !s.leadsTo(at) {
		// A snapshot was installed, and the process ended before the log said so.
		snap := &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
			Index: proto.Uint64(at.Entry), Term: proto.Uint64(at.Term), ConfState: s.conf}}
		if err := s.installed(snap); err != nil {
			return err
		}
		last = at.Entry
	}
	base, _ := s.FirstIndex()
	s.applied = max(at.Entry, base-1)
	if at.Commands > 0 && at.Entry == s.applied && !s.whole(at) {
		s.applied--
	}
	// What is applied, if only in part, is committed.
	if commit := max(s.applied, min(max(s.hard.GetCommit(), at.Entry), last)); commit != s.hard.GetCommit() {
		s.hard = &raftpb.HardState{Term: proto.Uint64(s.hard.GetTerm()), Vote: proto.Uint64(s.hard.GetVote()), Commit: &commit}
	}
	s.setAlone(id)
	return s.findChange()
}

// begin notes that the store starts as a member's, durably. Nothing may be said
// before.
func (s *store) begin(mark uint64) error {
	s.vouch.own.add(mark)
	return s.noted()
}

// noted makes durable what is known of starts.
func (s *store) noted() error {
	s.remember = true
	if err := s.write(nil, true, nil); err != nil {
		return err
	}
	return s.sync()
}

// extent returns how far the log is, durably.
func (s *store) extent() (extent, error) {
	if s.alone {
		if err := s.sync(); err != nil {
			return extent{}, err
		}
	}
	last, err := s.LastIndex()
	return extent{Term: s.hard.GetTerm(), Last: last, Commit: s.hard.GetCommit()}, err
}

// findChange looks whether the log holds a change of the group that is not applied:
// then others may have entries already, or soon will.
func (s *store) findChange() error {
	last, _ := s.LastIndex()
	if !s.alone || s.applied >= last {
		return nil
	}
	entries, err := s.Entries(s.applied+1, last+1, 1<<62)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(entries, func(e *raftpb.Entry) bool { return e.GetType() != raftpb.EntryNormal }) {
		return s.notAlone()
	}
	return nil
}

// leadsTo reports whether the log has the entry that the namespace is of. It may have
// another in its place, of a leader that nobody followed.
func (s *store) leadsTo(at namespace.Position) bool {
	term, err := s.Term(at.Entry)
	return err != nil || term == at.Term // compacted, so it had
}

// whole reports whether all commands of the entry are applied.
func (s *store) whole(at namespace.Position) bool {
	entries, err := s.Entries(at.Entry, at.Entry+1, 1<<62)
	if err != nil || len(entries) == 0 {
		return true // compacted, so it was
	}
	if entries[0].GetType() != raftpb.EntryNormal {
		return true
	}
	n := uint32(0)
	err = eachCommand(entries[0].GetData(), func(uint32, []byte) error { n++; return nil })
	return err == nil && at.Commands >= n
}

// save makes durable what a Ready says, unless this member is the whole group.
func (s *store) save(rd *raft.Ready) error {
	if len(rd.Entries) == 0 && raft.IsEmptyHardState(rd.HardState) {
		return nil
	}
	if rd.HardState != nil && !raft.IsEmptyHardState(rd.HardState) {
		s.remember = s.remember || rd.HardState.GetTerm() != s.hard.GetTerm()
		s.hard = rd.HardState
	}
	if len(rd.Entries) == 0 && !rd.MustSync {
		return nil // how far the log is committed can be found out again
	}
	entries := rd.Entries
	for more := true; more; {
		n, size := 0, 0
		for n < len(entries) && (n == 0 || size+len(entries[n].GetData()) < journal.MaxPayload/2) {
			size += len(entries[n].GetData()) + 32
			n++
		}
		more = n < len(entries)
		// The state comes with the last entries: a commit is never ahead of them.
		if err := s.write(entries[:n], !more, nil); err != nil {
			return err
		}
		entries = entries[n:]
	}
	if err := s.append(rd.Entries); err != nil {
		return err
	}
	if s.alone || !rd.MustSync {
		return nil
	}
	return s.sync()
}

// sync makes the journal durable.
func (s *store) sync() error {
	err := s.journal.Sync(context.Background())
	for err != nil && s.full(err) {
		err = s.journal.Sync(context.Background())
	}
	return err
}

// full reports whether err says that the disk is full and the same may be tried
// again. A member whose disk is full says nothing meanwhile, so that the others go
// on without it.
func (s *store) full(err error) bool {
	return s.wait != nil && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) && s.wait(err)
}

// write appends a record.
func (s *store) write(entries []*raftpb.Entry, hard bool, snap *raftpb.Snapshot) error {
	m := &raftpb.Message{Type: raftpb.MsgStorageAppend.Enum(), Entries: entries, Snapshot: snap}
	if hard {
		m.Term, m.Vote, m.Commit = proto.Uint64(s.hard.GetTerm()), proto.Uint64(s.hard.GetVote()), proto.Uint64(s.hard.GetCommit())
		if s.remember {
			m.Context = s.vouch.encode()
			s.remember = false
		}
	}
	payload, err := encode(m)
	if err != nil {
		return err
	}
	mark := uint64(0)
	if s.alone && len(entries) > 0 {
		mark = s.mark() // in a group of several the blocks are durable already
	}
	seq, _, err := s.journal.Append(journal.KindLog, mark, payload)
	for err != nil && s.full(err) {
		seq, _, err = s.journal.Append(journal.KindLog, mark, payload)
	}
	if err != nil {
		return err
	}
	switch {
	case len(entries) > 0:
		s.records = append(s.records, span{seq, entries[len(entries)-1].GetIndex()})
	case len(s.records) > 0:
		s.records = append(s.records, span{seq, s.records[len(s.records)-1].last})
	}
	return nil
}

// installed begins the log anew after an installed snapshot, durably.
func (s *store) installed(snap *raftpb.Snapshot) error {
	if err := s.reset(snap); err != nil {
		return err
	}
	meta := snap.GetMetadata()
	term, vote := s.hard.GetTerm(), s.hard.GetVote()
	if term < meta.GetTerm() {
		term, vote = meta.GetTerm(), 0
	}
	s.hard = &raftpb.HardState{Term: &term, Vote: &vote, Commit: proto.Uint64(meta.GetIndex())}
	if err := s.write(nil, true, snap); err != nil {
		return err
	}
	return s.sync()
}

// setAlone takes note of whether the group is this member alone: then nobody else
// may hold an entry that is lost here, so nothing need be durable before it counts.
func (s *store) setAlone(id uint64) {
	c := s.conf
	s.alone = slices.Equal(c.GetVoters(), []uint64{id}) && len(c.GetLearners())+len(c.GetVotersOutgoing())+len(c.GetLearnersNext()) == 0
}

// inGroup reports whether a member is part of the group, in whatever way.
func (s *store) inGroup(id uint64) bool {
	c := s.conf
	for _, ids := range [][]uint64{c.GetVoters(), c.GetLearners(), c.GetVotersOutgoing(), c.GetLearnersNext()} {
		if slices.Contains(ids, id) {
			return true
		}
	}
	return false
}

// agreed makes durable how far the log is committed, with everything before it. After
// a change of the group that must not be asked anew: who has left it since does not
// answer.
func (s *store) agreed() error {
	if err := s.write(nil, true, nil); err != nil {
		return err
	}
	return s.sync()
}

// notAlone makes everything durable, from now on.
func (s *store) notAlone() error {
	if err := s.sync(); err != nil {
		return err
	}
	s.alone = false
	return nil
}

// compact forgets entries up to index, which are applied, but for some that other
// members may still want.
func (s *store) compact(index uint64) error {
	first, _ := s.FirstIndex()
	kept := s.kept
	if s.sending != nil && s.sending() {
		kept = maxSending
	}
	for s.bytes > kept && first <= index {
		entries, err := s.Entries(first, first+1, 1<<62)
		if err != nil {
			return err
		}
		s.bytes -= len(entries[0].GetData())
		first++
	}
	if now, _ := s.FirstIndex(); first == now {
		return nil
	}
	if _, err := s.CreateSnapshot(first-1, s.conf, nil); err != nil && !errors.Is(err, raft.ErrSnapOutOfDate) {
		return err
	}
	return s.Compact(first - 1)
}

// checkpoint returns what the base will be and the first record of the journal that
// is needed besides it. applied is the last entry that the index has.
func (s *store) checkpoint(applied uint64) (base []byte, keep journal.Seq, err error) {
	if err := s.compact(applied); err != nil {
		return nil, 0, err
	}
	first, _ := s.FirstIndex()
	for len(s.records) > 0 && s.records[0].last < first {
		s.records = s.records[1:]
	}
	keep = s.journal.Last() + 1
	if len(s.records) > 0 {
		keep = s.records[0].seq
	}
	term, err := s.Term(first - 1)
	if err != nil {
		return nil, 0, err
	}
	m := &raftpb.Message{
		Type: raftpb.MsgStorageAppend.Enum(),
		Term: proto.Uint64(s.hard.GetTerm()), Vote: proto.Uint64(s.hard.GetVote()), Commit: proto.Uint64(s.hard.GetCommit()),
		Context: s.vouch.encode(), Index: proto.Uint64(uint64(s.journal.Last())),
	}
	if first > 1 {
		m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
			Index: proto.Uint64(first - 1), Term: proto.Uint64(term), ConfState: s.conf}}
	}
	base, err = encode(m)
	return base, keep, err
}
