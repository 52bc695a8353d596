package raft

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// simDisk is what a simulated node has on disk. The two file systems lose power at
// the same instant.
type simDisk struct{ index, journal *vfs.MemFS }

func newSimDisk() simDisk { return simDisk{vfs.NewCrashableMem(), vfs.NewCrashableMem()} }

// synced returns the disk with nothing but what was synced.
func (d simDisk) synced() simDisk {
	return simDisk{d.index.CrashClone(vfs.CrashCloneCfg{}), d.journal.CrashClone(vfs.CrashCloneCfg{})}
}

// crash returns the disk as it may be after a power loss: of the journal, any of
// the blocks that were not synced are there, and others are not.
func (d simDisk) crash(rng *rand.Rand) simDisk {
	c := d.synced()
	// Its own numbers: how many are drawn depends on what Pebble does beside.
	every := vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(0, 0))}
	if rng.IntN(2) == 0 {
		c.index = d.index.CrashClone(every)
	}
	switch rng.IntN(3) {
	case 0:
	case 1:
		c.journal = d.journal.CrashClone(every)
	default:
		mixFiles(rng, c.journal, d.journal.CrashClone(every))
	}
	return c
}

// mixFiles brings random blocks of the files of full to the files of base.
func mixFiles(rng *rand.Rand, base, full *vfs.MemFS) {
	names, err := full.List("journal")
	if err != nil {
		return // not even the directory was synced
	}
	slices.Sort(names)
	for _, name := range names {
		path := full.PathJoin("journal", name)
		before, old := readAll(base, path)
		if !old && rng.IntN(2) == 0 {
			continue
		}
		after, ok := readAll(full, path)
		if !ok {
			continue // a directory or a lock
		}
		const block = 512
		mixed := slices.Clone(after)
		for at := 0; at < len(after); at += block {
			if rng.IntN(2) == 0 {
				continue
			}
			end := min(at+block, len(after))
			clear(mixed[at:end])
			if at < len(before) {
				copy(mixed[at:end], before[at:])
			}
		}
		if rng.IntN(2) == 0 {
			mixed = mixed[:max(min(len(before), len(mixed)), rng.IntN(len(mixed)+1))]
		}
		writeAll(base, path, mixed)
	}
}

func readAll(fs *vfs.MemFS, path string) ([]byte, bool) {
	info, err := fs.Stat(path)
	if err != nil || info.IsDir() {
		return nil, false
	}
	f, err := fs.Open(path)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	b := make([]byte, info.Size())
	if len(b) > 0 {
		if _, err := f.ReadAt(b, 0); err != nil {
			panic(err)
		}
	}
	return b, true
}

func writeAll(fs *vfs.MemFS, path string, b []byte) {
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		panic(err)
	}
	_, err = f.Write(b)
	dir, dirErr := fs.OpenDir(fs.PathDir(path))
	if err = errors.Join(err, f.Sync(), f.Close(), dirErr); err == nil {
		err = errors.Join(dir.Sync(), dir.Close())
	}
	if err != nil {
		panic(err)
	}
}

// simTransport knows only who this node is.
type simTransport struct {
	p2p.Transport
	self p2p.PeerID
}

func (t simTransport) Self() p2p.PeerID { return t.self }

// simCall is a command that a client waits for.
type simCall struct {
	entry  *proposal
	unique string // the name it makes, which nobody else makes
	opens  bool   // a session
	admin  bool   // of the members
	until  int    // tick
}

// simRead is a Barrier that a client waits for.
type simRead struct {
	round *round
	least uint64 // index of the last command acknowledged before
}

// moment is when a node loses its power.
type moment int

const (
	never moment = iota
	atSync
	atApply
	atInstall
)

// errPower says that a node lost its power in the middle of something.
var errPower = errors.New("power loss")

// simNode is a running node: a Log without its goroutines.
type simNode struct {
	w    *world
	slot *slot
	id   uint64
	disk simDisk

	index   *index.DB
	journal *journal.Journal
	state   *namespace.State
	log     *Log

	ticks    int
	calls    []*simCall
	reads    []simRead
	ended    []namespace.SessionID // by the command that is being applied
	fetching bool
	held     uint64 // last entry at the start

	when    moment
	after   int  // so many such moments
	failing bool // its disk refuses to sync the log

	ruins   simDisk
	ruined  bool
	closed  bool
	stopped bool // by an error of its disk
}

// power is called at moments at which the power may go. It reports whether it does.
func (n *simNode) power(at moment) bool {
	if n.ruined || n.closed {
		return true // nothing gets to the disk any more
	}
	if n.when != at {
		return false
	}
	if n.after--; n.after > 0 {
		return false
	}
	if at == atApply {
		// What was applied so far of an entry is on disk.
		if err := n.index.Flush(); err != nil && !n.failing {
			n.w.failf("flush: %v", err)
		}
	}
	n.ruins, n.ruined = n.disk.crash(n.w.rng), true
	return true
}

func (w *world) start(s *slot, id uint64, disk simDisk) (*simNode, error) {
	n := &simNode{w: w, slot: s, id: id, disk: disk}
	logger := testLogger(w.t, fmt.Sprint(id))
	random := newStream(w.rng.Uint64(), 1)
	var err error
	n.index, err = index.Open(index.Options{FS: disk.index, Dir: "index", MemTableBytes: 4 << 20, CacheBytes: 64 << 10, Logger: logger, Random: random})
	if err != nil {
		return nil, fmt.Errorf("index: %w", err)
	}
	journalFS := errorfs.Wrap(disk.journal, errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch op.Kind {
		case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
			if n.power(atSync) {
				return errPower
			}
			if n.failing {
				return syscall.EIO
			}
		}
		return nil
	}))
	n.journal, err = journal.Open(journal.Options{FS: journalFS, Dir: "journal", FileSize: 16 << 10, BufferSize: 4 << 10, FlushAfter: -1, Logger: logger, Random: random})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal: %w", err), n.index.Close())
	}
	if err = n.open(); err != nil {
		n.close()
		return nil, err
	}
	s.node, s.disk = n, disk
	return n, nil
}

// open does what Open and Start do, up to the goroutines.
func (n *simNode) open() error {
	logger := testLogger(n.w.t, fmt.Sprint(n.id))
	var err error
	n.state, err = namespace.Open(n.index.Pebble(), namespace.Options{HashKey: [16]byte{7}, Logger: logger, CacheInodes: 64, CacheDentries: 64})
	if err != nil {
		return err
	}
	n.log, err = Open(Options{
		ID: n.id, State: n.state, DB: n.index.Pebble(), Journal: n.journal, Mark: func() uint64 { return 0 },
		Transport: simTransport{self: n.slot.peer}, FS: n.disk.index, Logger: logger,
		Clock: func() time.Duration { return time.Duration(n.ticks) * 100 * time.Millisecond },
		Now:   func() time.Time { return time.Unix(int64(n.ticks), 0) },
	})
	if err != nil {
		return err
	}
	n.log.store.kept = 4 << 10
	n.log.reads.token = n.w.rng.Uint64() >> 1
	n.log.session.clock, n.log.session.valid = n.log.o.Clock, n.log.o.TTL*2/3
	n.state.Observe(n.observe)
	n.state.Observe(n.log.Observe)
	if err := n.journal.Replay(keptRecord(n.index.Pebble()), 1<<63, n.log.Replay); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	n.index.SetBarrier(func() error { return n.journal.Sync(context.Background()) })
	if err := n.log.store.open(n.journal, n.id, n.state); err != nil {
		return err
	}
	n.held, _ = n.log.store.LastIndex()
	if n.log.core, err = newCore(n.id, n.log.store, n.state, logger); err != nil {
		return err
	}
	if err := n.log.store.begin(n.w.rng.Uint64()); err != nil {
		return err
	}
	n.log.mark = n.log.store.vouch.own.mark()
	n.log.core.learnt = n.log.learnt
	n.log.core.applied = n.applied
	n.log.core.read = n.log.reads.answered
	return nil
}

// close ends the node without regard for its disk, unless that is used again.
func (n *simNode) close() {
	n.closed = true
	if n.log != nil {
		n.log.stop()
	}
	n.index.SetBarrier(func() error {
		if n.stopped {
			return syscall.EIO
		}
		return nil
	})
	_ = errors.Join(n.journal.Close(), n.index.Close())
}

func (n *simNode) observe(c *namespace.Change) {
	n.ended = append(n.ended, c.Ended...)
	if c.All && n.power(atInstall) {
		panic(errPower)
	}
}

// applied is told of each command after it was applied.
func (n *simNode) applied(cmd *namespace.Command, encoded []byte, res namespace.Result) {
	n.w.applied(n, cmd, encoded, res)
	n.ended = n.ended[:0]
	n.log.proposals.applied(cmd, encoded, res)
	if n.power(atApply) {
		panic(errPower)
	}
}

// guard calls fn, which the power loss may cut short, and reports whether the node
// still runs.
func (n *simNode) guard(fn func() error) (ok bool) {
	defer func() {
		if cause := recover(); cause != nil {
			if err, is := cause.(error); !is || !errors.Is(err, errPower) {
				if !is || !errors.As(err, new(simFailure)) {
					n.w.failf("node %d: %v", n.id, cause)
				}
				panic(cause)
			}
		}
		if n.ruined && !n.closed {
			n.w.lost(n)
		}
		ok = ok && !n.closed
	}()
	err := fn()
	switch {
	case n.ruined:
	case errors.As(err, new(*Refusal)):
		n.w.behind(n, err)
		return false
	case errors.Is(err, syscall.EIO) && n.failing:
		n.w.stopped(n, err)
		return false
	case err != nil:
		n.w.failf("node %d: %v", n.id, err)
	}
	return true
}

// turn is what the run loop does after anything has happened.
func (n *simNode) turn(fn func() error) bool {
	var out []*raftpb.Message
	ok := n.guard(func() (err error) {
		if fn != nil {
			if err := fn(); err != nil {
				return err
			}
		}
		n.log.proposals.send(n.log.core.propose, n.ticks)
		n.log.reads.send(n.log.core.rn.ReadIndex, n.ticks)
		if out, err = n.log.core.advance(); err != nil {
			return err
		}
		n.log.note()
		n.log.reads.reached(n.log.core.position)
		return nil
	})
	if !ok {
		return false
	}
	n.w.saw(n)
	for _, m := range out {
		n.w.post(n, m)
	}
	n.collect()
	return true
}

func (n *simNode) tick() bool {
	if n.ticks%meetTicks == 0 {
		n.w.meetAll(n)
	}
	return n.turn(func() error {
		n.ticks++
		n.log.core.tick()
		n.log.speakUp()
		n.keepSession()
		if n.ticks%5 == 0 {
			n.log.forgetSnapshots()
			if n.log.leader {
				n.expire()
				n.log.group()
			}
		}
		return nil
	})
}

// keepEvery is how many ticks lie between keepalives.
const keepEvery = 20

// keepSession is what Log.keepSession does.
func (n *simNode) keepSession() {
	s := &n.log.session
	id := s.current()
	if id == 0 {
		return
	}
	if s.live() == 0 {
		n.w.note("%d believes that its session %d is over", n.id, id)
		s.set(0, 0)
		n.log.proposals.settle(n.state, 0, false)
		return
	}
	if n.ticks%keepEvery != 0 {
		return
	}
	k := keepalive{session: id, sent: n.log.o.Clock()}
	if n.leads() {
		n.touched(n.touch(k))
	} else if leader := n.w.slotOfPeer(n.log.Status().Leader); leader != nil {
		n.w.pass(n.slot, leader, &k)
	}
}

// keepalive is one on its way to the leader, or back with its answer.
type keepalive struct {
	session namespace.SessionID
	sent    time.Duration // by the clock of the node that sent it
	by      *simNode
	answer  bool
	open    bool
}

// touch is what the leader does with a keepalive; no answer is that of another node.
func (n *simNode) touch(k keepalive) *keepalive {
	if !n.leads() {
		return nil
	}
	k.answer, k.open = true, n.state.MemberOf(k.session) != ""
	if k.open {
		n.log.deadlines[k.session] = n.log.o.Clock() + n.log.o.TTL
	}
	return &k
}

func (n *simNode) touched(k *keepalive) {
	if k != nil && k.open {
		n.log.session.confirm(k.session, k.sent)
	}
}

// expire has sessions ended that were not heard of.
func (n *simNode) expire() {
	for _, id := range n.log.expired() {
		n.w.note("%d has not heard of session %d", n.id, id)
		n.w.silent[id] = true
		n.propose(simCall{}, &namespace.EndSession{Session: id})
	}
}

func (n *simNode) leads() bool { return n.log.leader }

// propose puts a command of a client under way.
func (n *simNode) propose(call simCall, ops ...namespace.Op) {
	cmd := &namespace.Command{Time: n.w.clock(), Ops: ops}
	if !call.opens {
		cmd.Session = n.log.session.current()
		if cmd.Session == 0 {
			return
		}
	}
	entry, full, refusal, err := n.log.proposals.add(cmd)
	if err != nil || refusal != nil || full != nil {
		n.w.failf("node %d: command refused: %v, %v", n.id, refusal, err)
	}
	call.entry, call.until = entry, n.ticks+20+n.w.rng.IntN(200)
	n.calls = append(n.calls, &call)
}

// collect takes the results of commands and reads.
func (n *simNode) collect() {
	calls := n.calls[:0]
	for _, c := range n.calls {
		select {
		case o := <-c.entry.done:
			if o.err == nil {
				n.w.acknowledged(n, c, o.res)
			}
		default:
			if n.ticks < c.until {
				calls = append(calls, c)
				continue
			}
		}
		n.log.proposals.remove(c.entry)
	}
	n.calls = calls
	reads := n.reads[:0]
	for _, r := range n.reads {
		select {
		case <-r.round.done:
			if at := n.state.Applied(); r.round.err == nil && at < r.least {
				n.w.failf("node %d: a read of the latest state saw command %d, but %d was acknowledged before", n.id, at, r.least)
			}
		default:
			reads = append(reads, r)
		}
	}
	n.reads = reads
}

// checkpoint is what package node does, with the power going in between.
func (n *simNode) checkpoint() {
	db := n.index.Pebble()
	cut := n.w.rng.IntN(12) // 0 and 1 are the moments between
	n.guard(func() error {
		base, keep, err := n.log.store.checkpoint(n.log.core.whole())
		if err != nil {
			return err
		}
		err = errors.Join(db.Set(baseKey(), base, pebble.NoSync), db.Set(keptKey, keptValue(keep), pebble.NoSync))
		if err == nil && cut == 0 {
			n.ruins, n.ruined = n.disk.crash(n.w.rng), true
		}
		if err == nil && !n.ruined {
			err = n.index.Flush()
		}
		if err == nil && cut == 1 && !n.ruined {
			n.ruins, n.ruined = n.disk.crash(n.w.rng), true
		}
		if err == nil && !n.ruined {
			err = n.journal.Trim(keep)
		}
		return err
	})
}

// stream gives random bytes.
type stream struct{ rng *rand.Rand }

func (s *stream) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(s.rng.Uint32())
	}
	return len(p), nil
}
