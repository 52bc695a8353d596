package raft

import (
	"errors"
	"fmt"
	"log/slog"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/cairnfs/cairn/namespace"
)

// core is one member of the group as a state machine that is driven by calls: ticks
// and messages come in, messages go out, and in between entries are made durable
// and committed ones are applied. It has no goroutine, no clock and no network, so
// that a test can run a group of them step by step; run.go does so for real.
//
// What decides whether an acknowledged command survives is the order in advance:
// entries and votes are durable before any message leaves.
type core struct {
	id    uint64
	rn    *raft.RawNode
	store *store
	state *namespace.State
	log   *slog.Logger

	// told of results, in the order of the log
	applied func(cmd *namespace.Command, encoded []byte, res namespace.Result)
	read    func(token []byte, index uint64)
	// told how far another member's log is, see memory.note
	learnt func(id, term, entry, commit uint64)

	incoming *namespace.Import // a namespace that a snapshot, already stepped, stands for
	position uint64            // last entry applied, also those without a command
	failure  error
	quiet    int // ticks for which this member does not vote
}

// Ticks of the group's clock.
const (
	electionTicks  = 12
	heartbeatTicks = 2
)

// maxUncommitted bounds the bytes of entries that a leader has not committed.
const maxUncommitted = 64 << 20

// quietTicks is how long a member that has just started does not vote, unless it has
// met all others before: one of them may know that its store is an older copy.
const quietTicks = electionTicks

func newCore(id uint64, st *store, state *namespace.State, log *slog.Logger) (*core, error) {
	c := &core{id: id, store: st, state: state, log: log, position: st.applied, quiet: quietTicks}
	rn, err := raft.NewRawNode(&raft.Config{
		ID:                        id,
		ElectionTick:              electionTicks,
		HeartbeatTick:             heartbeatTicks,
		Storage:                   st,
		Applied:                   st.applied,
		MaxSizePerMsg:             maxEntry,
		MaxCommittedSizePerReady:  4 << 20,
		MaxUncommittedEntriesSize: maxUncommitted,
		MaxInflightMsgs:           64,
		CheckQuorum:               true,
		PreVote:                   true,
		// A leader that is voted out goes on until another knows of it: see plan.
		StepDownOnRemoval: false,
		Logger:            raftLogger{log},
	})
	if err != nil {
		return nil, err
	}
	c.rn = rn
	return c, nil
}

// step takes a message of another member.
func (c *core) step(m *raftpb.Message) error {
	if m.GetTo() != c.id || m.GetFrom() == c.id {
		return nil
	}
	// Rule 4: what the leader knows to be acknowledged by this node must be here.
	if last, _ := c.store.LastIndex(); m.GetType() == raftpb.MsgHeartbeat && m.GetCommit() > last {
		return &Refusal{Kind: Restored, Text: fmt.Sprintf("its log ends at entry %d, entry %d is acknowledged", last, m.GetCommit())}
	}
	switch m.GetType() {
	case raftpb.MsgSnap:
		return nil // by receive
	case raftpb.MsgVote, raftpb.MsgPreVote, raftpb.MsgTimeoutNow:
		if c.quiet > 0 {
			return nil
		}
	}
	c.learn(m)
	err := c.rn.Step(m)
	if errors.Is(err, raft.ErrProposalDropped) || errors.Is(err, raft.ErrStepPeerNotFound) {
		return nil // whoever proposed it tries again
	}
	return err
}

// tick lets time go on.
func (c *core) tick() {
	c.quiet = max(c.quiet-1, 0)
	c.rn.Tick()
}

// learn tells what a message says of the sender's log: all that it speaks of was
// durable there before it was sent.
func (c *core) learn(m *raftpb.Message) {
	if c.learnt == nil || m.GetTerm() < c.store.hard.GetTerm() {
		return
	}
	entry := uint64(0)
	switch m.GetType() {
	case raftpb.MsgApp:
		entry = m.GetIndex() + uint64(len(m.GetEntries()))
	case raftpb.MsgAppResp:
		if !m.GetReject() {
			entry = m.GetIndex()
		}
	case raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgVote, raftpb.MsgVoteResp:
	default:
		return // of a term that need not be the sender's
	}
	c.learnt(m.GetFrom(), m.GetTerm(), entry, c.store.hard.GetCommit())
}

// receive takes the snapshot that m announces and in contains, as of the place at.
// The core disposes of in.
func (c *core) receive(m *raftpb.Message, in *namespace.Import, at namespace.Position, group []byte) error {
	var conf raftpb.ConfState
	if err := decode(group, &conf); err != nil {
		return errors.Join(err, in.Abort())
	}
	c.incoming = in
	m.Snapshot = &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index: proto.Uint64(at.Entry), Term: proto.Uint64(at.Term), ConfState: &conf,
	}}
	return c.rn.Step(m)
}

// propose adds an entry to the log of the leader, wherever that is. False says
// that there is none now.
func (c *core) propose(data []byte) bool { return c.rn.Propose(data) == nil }

// advance does all that is to be done and returns the messages that are to be
// sent. An error ends the core.
func (c *core) advance() ([]*raftpb.Message, error) {
	if c.failure != nil {
		return nil, c.failure
	}
	var out []*raftpb.Message
	for c.rn.HasReady() {
		rd := c.rn.Ready()
		if err := c.process(&rd); err != nil {
			c.failure = err
			return nil, err
		}
		out = append(out, rd.Messages...)
		c.rn.Advance(rd)
	}
	if c.incoming != nil { // raft had no use for it
		err := c.incoming.Abort()
		c.incoming = nil
		if err != nil {
			c.log.Warn("cannot remove a received namespace", "err", err)
		}
	}
	return out, nil
}

func (c *core) process(rd *raft.Ready) error {
	if !raft.IsEmptySnap(rd.Snapshot) {
		if err := c.install(rd.Snapshot); err != nil {
			return err
		}
	}
	if err := c.store.save(rd); err != nil {
		return err
	}
	for _, e := range rd.CommittedEntries {
		if err := c.apply(e); err != nil {
			return fmt.Errorf("apply entry %d: %w", e.GetIndex(), err)
		}
	}
	for _, r := range rd.ReadStates {
		c.read(r.RequestCtx, r.Index)
	}
	return nil
}

// install puts the received namespace in place of the node's own. That it is
// durable before the log says so is no loss: see store.open.
func (c *core) install(snap *raftpb.Snapshot) error {
	if c.incoming == nil {
		return fmt.Errorf("snapshot of entry %d without its namespace", snap.GetMetadata().GetIndex())
	}
	in := c.incoming
	c.incoming = nil
	if err := c.state.Install(in); err != nil {
		return err
	}
	c.position = snap.GetMetadata().GetIndex()
	c.store.conf = snap.GetMetadata().GetConfState()
	return c.store.installed(snap)
}

func (c *core) apply(e *raftpb.Entry) error {
	index, term := e.GetIndex(), e.GetTerm()
	defer func() { c.position = index }()
	switch e.GetType() {
	case raftpb.EntryConfChangeV2:
		var change raftpb.ConfChangeV2
		if err := proto.Unmarshal(e.GetData(), &change); err != nil {
			return fmt.Errorf("%w: %v", namespace.ErrCorrupt, err)
		}
		return c.configure(namespace.Position{Entry: index, Term: term, Commands: 1}, &change)
	case raftpb.EntryNormal:
	default:
		return fmt.Errorf("%w: entry of type %v", namespace.ErrVersion, e.GetType())
	}
	done := c.state.Position()
	return eachCommand(e.GetData(), func(i uint32, encoded []byte) error {
		if index < done.Entry || index == done.Entry && i < done.Commands {
			return nil // before the restart
		}
		var cmd namespace.Command
		if err := cmd.UnmarshalBinary(encoded); err != nil {
			return err
		}
		res, err := c.state.ApplyAt(namespace.Position{Entry: index, Term: term, Commands: i + 1}, &cmd)
		if err != nil {
			return err
		}
		if c.applied != nil {
			c.applied(&cmd, encoded, res)
		}
		return nil
	})
}

// configure takes a change of the group.
func (c *core) configure(at namespace.Position, change *raftpb.ConfChangeV2) error {
	conf := c.rn.ApplyConfChange(change)
	if done := c.state.Position(); done.Entry >= at.Entry {
		return nil
	}
	encoded, err := encode(conf)
	if err != nil {
		return err
	}
	if err := c.state.ApplyGroup(at, encoded); err != nil {
		return err
	}
	c.store.conf = conf
	c.store.setAlone(c.id)
	return c.store.agreed()
}

// change proposes a change of the group. From here on everything is durable before
// a message leaves (rule 1).
func (c *core) change(change *raftpb.ConfChangeV2) error {
	if err := c.store.notAlone(); err != nil {
		return err
	}
	return c.rn.ProposeConfChange(change)
}

// whole returns the last entry that the namespace has all of and says so. What comes
// after it without a command, of a new leader, is not to be forgotten before: a
// member that is sent the namespace goes on from there.
func (c *core) whole() uint64 { return min(c.position, c.state.Position().Entry) }

func (c *core) status() raft.BasicStatus { return c.rn.BasicStatus() }

// raftLogger has raft log what matters.
type raftLogger struct{ l *slog.Logger }

func (r raftLogger) Debug(v ...any)              {}
func (r raftLogger) Debugf(string, ...any)       {}
func (r raftLogger) Info(v ...any)               { r.l.Debug(fmt.Sprint(v...)) }
func (r raftLogger) Infof(f string, v ...any)    { r.l.Debug(fmt.Sprintf(f, v...)) }
func (r raftLogger) Warning(v ...any)            { r.l.Debug(fmt.Sprint(v...)) }
func (r raftLogger) Warningf(f string, v ...any) { r.l.Debug(fmt.Sprintf(f, v...)) }
func (r raftLogger) Error(v ...any)              { r.l.Warn(fmt.Sprint(v...)) }
func (r raftLogger) Errorf(f string, v ...any)   { r.l.Warn(fmt.Sprintf(f, v...)) }
func (r raftLogger) Fatal(v ...any)              { panic(fmt.Sprint(v...)) }
func (r raftLogger) Fatalf(f string, v ...any)   { panic(fmt.Sprintf(f, v...)) }
func (r raftLogger) Panic(v ...any)              { panic(fmt.Sprint(v...)) }
func (r raftLogger) Panicf(f string, v ...any)   { panic(fmt.Sprintf(f, v...)) }
