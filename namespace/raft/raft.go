// Package raft orders the commands of a group of several nodes, with
// go.etcd.io/raft. Each node has a replica of the namespace and applies the same
// entries in the same order; an entry holds many commands.
//
// A command counts once a majority of the voters has its entry durably in their
// journals (store.go) and it is applied here. It hangs on the node's session
// (session.go): proposed again because nobody knew what had become of it, it is
// carried out once, and after the session has ended not at all. Reads of the
// latest state ask the leader how far the log is (read.go). A node that is too far
// behind is sent the namespace as a whole (snapshot.go). Who votes follows from
// the registry of members (plan.go).
//
// The core of it (core.go) is a state machine without goroutines, clock and
// network; the rest drives it.
package raft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// Options are what a Log stands on. Those without a default are required.
type Options struct {
	ID        uint64 // of this node in the group
	State     *namespace.State
	DB        *pebble.DB // that State lies in, for what a checkpoint keeps of the log
	Journal   *journal.Journal
	Mark      func() uint64 // see solo.Open
	Transport p2p.Transport
	// Cluster is the id of the cluster, for as long as the namespace does not have it.
	Cluster string
	// Public has requests of a protocol answered also to those who are no members,
	// so that they learn it. Default: only to members.
	Public func(p2p.Protocol, p2p.Handler)
	// Knew reports whether the node knew a peer for a member before it had a
	// namespace, which says it then. Default: whoever is heard is one.
	Knew func(p2p.PeerID) bool
	// FS and Dir hold a namespace while it is received.
	FS  vfs.FS
	Dir string
	// Logger is told what an operator should know.
	Logger *slog.Logger

	Tick    time.Duration        // default 100 ms; an election takes 12 to 24 without a leader
	Timeout time.Duration        // of Propose and Barrier, default 10 s
	TTL     time.Duration        // of sessions, default 12 s
	Clock   func() time.Duration // that goes on while the machine sleeps; default CLOCK_BOOTTIME
	Now     func() time.Time     // default time.Now
	Knows   uint32               // version that the program knows, default namespace.Version
	// Failed is told why the log has stopped for good. Default: nobody.
	Failed func(error)
	// SessionEnded is told when the node's session is over, from a goroutine of
	// its own and before another one begins.
	SessionEnded func()
}

func (o *Options) setDefaults() {
	if o.Tick == 0 {
		o.Tick = 100 * time.Millisecond
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second
	}
	if o.TTL == 0 {
		o.TTL = 12 * time.Second
	}
	if o.Clock == nil {
		o.Clock = newClock()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Knows == 0 {
		o.Knows = namespace.Version
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Knew == nil {
		o.Knew = func(p2p.PeerID) bool { return true }
	}
	if o.Failed == nil {
		o.Failed = func(error) {}
	}
	if o.SessionEnded == nil {
		o.SessionEnded = func() {}
	}
}

// Errors of a Log; others are those of packages namespace and journal.
var (
	// ErrTimeout says that no majority answered in time: what was proposed may
	// be carried out or not.
	ErrTimeout = errors.New("no majority of the cluster's voters can be reached; whether the change was made is unknown")
	// ErrNoQuorum says the same of something that changes nothing.
	ErrNoQuorum = errors.New("no majority of the cluster's voters can be reached")
	// ErrClosed says that the log is closed.
	ErrClosed = errors.New("log is closed")
	// ErrTooLarge says that a command exceeds MaxCommand.
	ErrTooLarge = fmt.Errorf("command is larger than %d bytes", MaxCommand)
)

// Log is the namespace.Log of a group of several. Its methods may be called from
// any number of goroutines.
type Log struct {
	o     Options
	store *store
	core  *core // of the run loop

	received chan []*raftpb.Message
	calls    chan func()
	wake     chan struct{}
	stop     context.CancelFunc
	stopped  context.Context
	running  sync.WaitGroup

	proposals proposals
	reads     reads
	session   session
	peers     peers
	exports   exports
	fetching  atomic.Bool

	status    atomic.Pointer[Status]
	mark      uint64 // of this start
	leader    bool   // of the run loop
	deadlines map[namespace.SessionID]time.Duration
	snapshots map[uint64]time.Duration  // sent to, and until when they are waited for
	warned    map[warning]time.Duration // of what, and when
	withdrawn map[uint64]bool           // marks of stores that were refused
	tried     time.Duration             // when a change of the group was proposed last
	confirmed time.Duration             // when log time was

	checkpointing sync.Mutex
}

var _ namespace.Log = (*Log)(nil)

// Status says how the group is, as this node sees it.
type Status struct {
	Role     string // leader, follower, candidate, or learner
	Leader   p2p.PeerID
	Term     uint64
	Entry    uint64 // of the log, applied
	Last     uint64 // entry of the log on this node
	Voters   []uint64
	Learners []uint64
	alone    bool
}

// Found makes the namespace of this node, which is member id, that of a new group.
// It is durable once the index is flushed.
func Found(state *namespace.State, db *pebble.DB, id uint64) error {
	base, conf := foundation(id)
	group, err := encode(conf)
	if err != nil {
		return err
	}
	value, err := encode(base)
	if err != nil {
		return err
	}
	if err := state.ApplyGroup(namespace.Position{Entry: 1, Term: 1, Commands: 1}, group); err != nil {
		return err
	}
	return db.Set(baseKey(), value, pebble.NoSync)
}

// Open returns the log of this node. Hand the journal's records to Replay, then
// call Start.
func Open(o Options) (*Log, error) {
	o.setDefaults()
	st, err := openStore(o.DB, o.Mark)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	l := &Log{
		o: o, store: st,
		received: make(chan []*raftpb.Message, 256), calls: make(chan func(), 64), wake: make(chan struct{}, 1),
		deadlines: make(map[namespace.SessionID]time.Duration), snapshots: make(map[uint64]time.Duration),
		warned: make(map[warning]time.Duration), withdrawn: make(map[uint64]bool),
	}
	l.proposals.init()
	l.reads.token = rand.Uint64() >> 1 // an answer to an earlier process must not count
	l.peers.init(l)
	l.status.Store(&Status{Role: "follower"})
	l.stopped, l.stop = context.WithCancel(context.Background())
	st.wait, st.sending = l.awaitSpace, l.exports.any
	return l, nil
}

// awaitSpace waits a little for space on a full disk.
func (l *Log) awaitSpace(err error) bool {
	l.o.Logger.Warn("the disk is full: this node takes no part in changes until there is space", "err", err)
	select {
	case <-l.stopped.Done():
		return false
	case <-time.After(10 * l.o.Tick):
		return true
	}
}

// Replay takes a record that the journal held when it was opened. Records of other
// kinds are passed over.
func (l *Log) Replay(rec journal.Record) error {
	if rec.Kind != journal.KindLog {
		return nil
	}
	return l.store.replay(rec)
}

// Observe takes note of a change of the State: State.Observe calls it.
func (l *Log) Observe(c *namespace.Change) {
	if c.All || slices.Contains(c.Ended, l.session.current()) {
		l.session.check(l.o.State)
		l.proposals.settle(l.o.State, l.session.current(), !c.All)
	}
}

// Start opens the log for work. The journal has been replayed.
func (l *Log) Start() error {
	if err := l.store.open(l.o.Journal, l.o.ID, l.o.State); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	c, err := newCore(l.o.ID, l.store, l.o.State, l.o.Logger)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if err := l.store.begin(rand.Uint64()); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	l.mark = l.store.vouch.own.mark()
	c.learnt = l.learnt
	c.applied = l.proposals.applied
	c.read = l.reads.answered
	l.core = c
	if l.store.alone { // nobody else could win
		if err := c.rn.Campaign(); err != nil {
			return fmt.Errorf("open log: %w", err)
		}
	}
	l.serve()
	l.running.Go(l.run)
	l.running.Go(l.keepSession)
	l.running.Go(l.keepMeeting)
	return nil
}

// Close hands the leadership to another member, if there is one, and ends all work.
// Whoever waits gets ErrClosed. The State and the journal stay open.
func (l *Log) Close() error {
	if l.core == nil {
		return nil
	}
	l.handOver()
	l.refuse()
	l.stop()
	l.running.Wait()
	l.peers.close()
	l.proposals.end(ErrClosed)
	l.reads.end(ErrClosed)
	return l.exports.close()
}

// handOver waits a little for another leader.
func (l *Log) handOver() {
	ctx, cancel := context.WithTimeout(l.stopped, 15*l.o.Tick)
	defer cancel()
	asked := false
	l.do(ctx, func() {
		if to := l.successor(); to != 0 {
			l.core.rn.TransferLeader(to)
			asked = true
		}
	})
	for asked && ctx.Err() == nil && l.status.Load().Role == "leader" {
		select {
		case <-ctx.Done():
		case <-time.After(l.o.Tick / 4):
		}
	}
}

// successor returns the active voter that is furthest, of those the first, 0 if there is none or
// this node does not lead.
func (l *Log) successor() uint64 {
	best, match := uint64(0), uint64(0)
	s := l.core.rn.Status()
	for id, p := range s.Progress {
		if id == l.o.ID || p.IsLearner || !p.RecentActive {
			continue
		}
		if best == 0 || p.Match > match || p.Match == match && id < best {
			best, match = id, p.Match
		}
	}
	return best
}

// do has fn called by the run loop and waits for that. It reports whether it was; if
// not, it will not be either.
func (l *Log) do(ctx context.Context, fn func()) bool {
	done := make(chan struct{})
	var taken atomic.Bool // by the run loop, or back
	call := func() {
		if taken.CompareAndSwap(false, true) {
			defer close(done)
			fn()
		}
	}
	select {
	case l.calls <- call:
	case <-ctx.Done():
		return false
	case <-l.stopped.Done():
		return false
	}
	select {
	case <-done:
		return true
	case <-ctx.Done():
	case <-l.stopped.Done():
	}
	if taken.CompareAndSwap(false, true) {
		return false
	}
	<-done
	return true
}

// Status returns how the group is.
func (l *Log) Status() Status { return *l.status.Load() }

// Sync returns when everything that was proposed before survives a power loss,
// which in a group of several it does already.
func (l *Log) Sync(ctx context.Context) error {
	if !l.status.Load().alone {
		return nil
	}
	return l.o.Journal.Sync(ctx)
}

// Checkpoint notes in the index what it will have of the log, and returns the first
// record of the journal that is needed once the index has been flushed.
func (l *Log) Checkpoint() (journal.Seq, error) {
	l.checkpointing.Lock()
	defer l.checkpointing.Unlock()
	var base []byte
	var keep journal.Seq
	err := error(ErrClosed)
	work := func() {
		l.forgetStrangers()
		if base, keep, err = l.store.checkpoint(l.core.whole()); err == nil {
			err = l.o.DB.Set(baseKey(), base, pebble.NoSync)
		}
	}
	if l.stopped.Err() != nil && l.core != nil {
		l.running.Wait()
		work() // at the end nobody else uses the store
		return keep, err
	}
	l.do(context.Background(), work)
	return keep, err
}

// run is the one goroutine that uses the core.
func (l *Log) run() {
	ticker := time.NewTicker(l.o.Tick)
	defer ticker.Stop()
	defer func() {
		// Raft panics when its log contradicts what was agreed upon.
		if cause := recover(); cause != nil {
			l.fail(fmt.Errorf("log has failed: %v", cause))
		}
	}()
	for ticks := 0; ; {
		ticked := false
		select {
		case <-l.stopped.Done():
			return
		case <-ticker.C:
			ticked = true
		case ms := <-l.received:
			if !l.stepAll(ms) {
				return
			}
		case fn := <-l.calls:
			fn()
		case <-l.wake:
		}
		if !l.drain() || l.stopped.Err() != nil {
			return
		}
		if ticked {
			ticks++
			l.core.tick()
			l.speakUp()
			l.tend(ticks)
		}
		l.proposals.send(l.core.propose, ticks)
		l.reads.send(l.core.rn.ReadIndex, ticks)
		out, err := l.core.advance()
		if err != nil {
			l.fail(err)
			return
		}
		l.note()
		l.send(out)
		l.reads.reached(l.core.position)
		if l.reads.pending() {
			l.poke()
		}
	}
}

// poke has the run loop look for work.
func (l *Log) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// drain takes what else has arrived, so that it shares the next sync.
func (l *Log) drain() bool {
	for range cap(l.received) {
		select {
		case ms := <-l.received:
			if !l.stepAll(ms) {
				return false
			}
		default:
			return true
		}
	}
	return true
}

func (l *Log) stepAll(ms []*raftpb.Message) bool {
	for _, m := range ms {
		var refusal *Refusal
		if err := l.core.step(m); errors.As(err, &refusal) {
			l.fail(err)
			return false
		} else if err != nil {
			l.o.Logger.Debug("message refused", "type", m.GetType(), "from", m.GetFrom(), "err", err)
		}
	}
	return true
}

func (l *Log) fail(err error) {
	l.o.Logger.Error("log stops", "err", err)
	l.stop()
	l.proposals.end(err)
	l.reads.end(err)
	l.o.Failed(err)
}

// note publishes the status.
func (l *Log) note() {
	b := l.core.status()
	s := &Status{
		Term: b.GetTerm(), Entry: l.core.position, Leader: l.peers.peer(b.Lead),
		Voters: l.store.conf.GetVoters(), Learners: l.store.conf.GetLearners(), alone: l.store.alone,
	}
	s.Last, _ = l.store.LastIndex()
	switch {
	case b.RaftState == raft.StateLeader:
		s.Role = "leader"
	case b.RaftState != raft.StateFollower:
		s.Role = "candidate"
	case slices.Contains(s.Voters, l.o.ID):
		s.Role = "follower"
	default:
		s.Role = "learner"
	}
	old := l.status.Load()
	l.status.Store(s)
	if old.Leader != s.Leader || old.Role != s.Role {
		l.o.Logger.Debug("leader", "leader", s.Leader, "term", s.Term, "role", s.Role)
	}
	if leads := s.Role == "leader"; leads != l.leader {
		l.leader = leads
		l.becameLeader(leads)
	}
	if old.Leader != s.Leader && s.Leader != "" {
		l.proposals.resend() // what the old one was told may be lost
	}
}
