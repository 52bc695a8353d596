package raft

import (
	"encoding/binary"
	"fmt"
	"hash"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// world is a simulation.
type world struct {
	t     testing.TB
	seed  int64
	rng   *rand.Rand
	step  int
	slots []*slot
	trace hash.Hash64

	packets []*packet
	cut     map[[2]*slot]bool // one way
	loss    int               // percent
	delay   int               // steps, at most
	healed  bool

	members
	checks
}

// slot is a machine, on which nodes come and go.
type slot struct {
	peer  p2p.PeerID
	role  p2p.Role
	node  *simNode // nil while it is down
	disk  simDisk  // while it is down
	has   bool     // a disk, that of member id
	id    uint64
	back  int      // step at which it comes up again
	alone bool     // was the whole group when the power went
	stale bool     // its disk was put back
	copy  *oldDisk // of a time before
	twin  *slot    // where a copy of it runs at the same time
	older bool     // its disk is from before its last start
}

type oldDisk struct {
	id     uint64
	disk   simDisk
	starts uint64
}

// packet is a message or a namespace on its way.
type packet struct {
	due      int
	from, to *slot
	id       uint64 // of the receiver in the group
	marks    [2]uint64
	body     []byte
	names    *names
	keep     *keepalive
	hello    *simHello
}

// names is a namespace that is being sent.
type names struct {
	snap   *raftpb.Message
	header *raftpb.Message
	chunks [][]byte
	sender *simNode
	taker  *simNode
}

// simFailure ends a simulation; the test has been told.
type simFailure struct{}

func (simFailure) Error() string { return "simulation failed" }

func newStream(a, b uint64) *stream { return &stream{rand.New(rand.NewPCG(a, b))} }

func newWorld(t testing.TB, seed int64) *world {
	w := &world{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(uint64(seed), 0)), trace: fnv.New64a(),
		cut: make(map[[2]*slot]bool),
	}
	w.delay = 1 + w.rng.IntN(8)
	w.loss = []int{0, 1, 5, 20}[w.rng.IntN(4)]
	w.checks.init()
	w.found()
	return w
}

func (w *world) failf(format string, args ...any) {
	w.t.Helper()
	w.t.Errorf("seed %d, step %d: %s", w.seed, w.step, fmt.Sprintf(format, args...))
	panic(simFailure{})
}

// note makes something part of the trace.
func (w *world) note(format string, args ...any) {
	fmt.Fprintf(w.trace, format+"\n", args...)
	if os.Getenv("CAIRN_SIM") != "" {
		fmt.Printf("%5d "+format+"\n", append([]any{w.step}, args...)...)
	}
}

// chance is true in so many of 1000 cases.
func (w *world) chance(permille int) bool { return w.rng.IntN(1000) < permille }

// clock is the time that a command of now carries: mostly right.
func (w *world) clock() int64 {
	t := int64(1_700_000_000_000_000_000) + int64(w.step)*1e8
	switch w.rng.IntN(60) {
	case 0:
		return t + int64(w.rng.IntN(1000))*3600e9
	case 1:
		return t - int64(w.rng.IntN(1000))*3600e9
	}
	return t
}

func (w *world) running() (all []*simNode) {
	for _, s := range w.slots {
		if s.node != nil {
			all = append(all, s.node)
		}
		if s.twin != nil && s.twin.node != nil {
			all = append(all, s.twin.node)
		}
	}
	return all
}

func (w *world) any() *simNode {
	all := w.running()
	if len(all) == 0 {
		return nil
	}
	return all[w.rng.IntN(len(all))]
}

func (w *world) slotOf(id uint64) *slot {
	for _, s := range w.slots {
		if s.id == id && (s.has || s.node != nil) {
			return s
		}
	}
	return nil
}

func (w *world) slotOfPeer(peer p2p.PeerID) *slot {
	for _, s := range w.slots {
		if s.peer == peer {
			return s
		}
	}
	return nil
}

// end frees what the simulation holds.
func (w *world) end() {
	cause := recover()
	if _, is := cause.(simFailure); cause != nil && !is {
		panic(cause)
	}
	for _, n := range w.running() {
		n.close()
	}
}

func (w *world) run(steps int) {
	for range steps {
		w.step++
		if w.twin == nil {
			w.events()
		}
		w.watchTwins()
		w.oneStep()
	}
	w.rest()
	for range w.rng.IntN(2) {
		w.copies()
		w.rest()
	}
	w.final()
}

// rest ends all that goes wrong and lets the group come to rest.
func (w *world) rest() {
	w.heal()
	for range 6000 {
		w.step++
		w.membership()
		w.watchTwins()
		w.oneStep()
		if w.step%20 == 0 && w.converged() {
			return
		}
	}
	w.failf("the group does not come to rest: %s", w.describe())
}

// oneStep lets time go on a little.
func (w *world) oneStep() {
	w.wake()
	for _, n := range w.running() {
		if w.chance(900) && n.slot.node == n {
			n.tick()
		}
	}
	w.deliver()
	for _, n := range w.running() {
		if n.slot.node == n {
			w.client(n)
		}
	}
	if w.chance(100) {
		if n := w.any(); n != nil {
			w.compare(n)
		}
	}
}

// deliver takes the packets that are due, in any order.
func (w *world) deliver() {
	var due []*packet
	w.packets = slices.DeleteFunc(w.packets, func(p *packet) bool {
		if p.due <= w.step {
			due = append(due, p)
			return true
		}
		return false
	})
	w.rng.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	for _, p := range due {
		n := p.to.node
		if x := p.names; x != nil && x.taker == n && w.cut[[2]*slot{p.from, p.to}] {
			n.fetching = false // it failed
		}
		if n == nil || n.id != p.id || w.cut[[2]*slot{p.from, p.to}] {
			continue
		}
		if p.names != nil {
			w.receive(n, p.names)
			continue
		}
		if p.keep != nil {
			w.hear(n, p)
			continue
		}
		if p.hello != nil {
			w.greet(n, p)
			continue
		}
		if a, met := n.log.peers.acquainted(p.from.peer); !met || p.marks != [2]uint64{a.mark, n.log.mark} {
			if p.from.node != nil { // it is told to meet first
				p.from.node.log.peers.forget(p.to.peer)
			}
			continue
		}
		ms, err := decodeMessages(p.body)
		if err != nil {
			w.failf("message: %v", err)
		}
		w.trace.Write(p.body)
		for _, m := range ms {
			if !n.log.peers.learn(m.GetFrom(), p.from.peer) {
				continue
			}
			if m.GetType() == raftpb.MsgSnap {
				w.fetch(n, p.from, m)
				continue
			}
			if !n.turn(func() error { return n.log.core.step(m) }) {
				break
			}
		}
	}
}

// post sends a message.
func (w *world) post(n *simNode, m *raftpb.Message) {
	if m.GetType() == raftpb.MsgSnap {
		n.log.snapshots[m.GetTo()] = n.log.o.Clock() + snapshotPatience
	}
	to := w.slotOf(m.GetTo())
	if to != nil && to.twin != nil && w.chance(500) {
		to = to.twin
	}
	var known acquaintance
	if to != nil {
		var met bool
		if known, met = n.log.peers.acquainted(to.peer); !met {
			w.meet(n, to, m.GetTo())
			to = nil
		}
	}
	if to == nil || w.cut[[2]*slot{n.slot, to}] || w.chance(10*w.loss) {
		if w.chance(500) {
			n.log.core.rn.ReportUnreachable(m.GetTo())
			if m.GetType() == raftpb.MsgSnap {
				n.log.core.rn.ReportSnapshot(m.GetTo(), raft.SnapshotFailure)
				delete(n.log.snapshots, m.GetTo())
			}
		}
		return
	}
	body, _, err := encodeMessages(nil, []*raftpb.Message{m}, maxSent)
	if err != nil {
		w.failf("message: %v", err)
	}
	copies := 1
	if w.chance(5 * w.loss) {
		copies = 2
	}
	for range copies {
		late := 1 + w.rng.IntN(w.delay)
		if w.chance(2 * w.loss) {
			late += w.rng.IntN(60)
		}
		w.packets = append(w.packets, &packet{due: w.step + late, from: n.slot, to: to, id: m.GetTo(), body: body, marks: [2]uint64{n.log.mark, known.mark}})
	}
}

// pass sends a keepalive or its answer.
func (w *world) pass(from, to *slot, k *keepalive) {
	if w.cut[[2]*slot{from, to}] || w.chance(10*w.loss) {
		return
	}
	if !k.answer {
		k.by = from.node
	}
	w.packets = append(w.packets, &packet{due: w.step + 1 + w.rng.IntN(w.delay), from: from, to: to, id: to.id, keep: k})
}

// hear takes it.
func (w *world) hear(n *simNode, p *packet) {
	switch k := p.keep; {
	case k.answer && k.by == n:
		n.touched(k)
	case !k.answer:
		if answer := n.touch(*k); answer != nil {
			w.pass(p.to, p.from, answer)
		}
	}
}

// fetch does what Log.fetch does: the namespace comes from the sender of m.
func (w *world) fetch(n *simNode, from *slot, m *raftpb.Message) {
	sender := from.node
	if n.fetching || sender == nil || w.cut[[2]*slot{n.slot, from}] {
		return
	}
	e, header, err := sender.log.export()
	if err != nil {
		w.note("no export: %v", err)
		return
	}
	x := &names{snap: m, header: header, sender: sender, taker: n}
	for {
		chunk, err := e.Next(nil)
		if err != nil {
			w.failf("export: %v", err)
		}
		if len(chunk) == 0 {
			break
		}
		x.chunks = append(x.chunks, chunk)
	}
	if err := e.Close(); err != nil {
		w.failf("export: %v", err)
	}
	n.fetching = true
	w.packets = append(w.packets, &packet{due: w.step + 1 + w.rng.IntN(30), from: from, to: n.slot, id: n.id, names: x})
}

// receive does the rest of it.
func (w *world) receive(n *simNode, x *names) {
	if x.taker != n {
		return // it has been started anew since
	}
	n.fetching = false
	in, err := n.state.Import(n.disk.index, "names.received")
	if err != nil {
		w.failf("import: %v", err)
	}
	if w.chance(100) {
		if err := in.Abort(); err != nil {
			w.failf("import: %v", err)
		}
		return
	}
	for _, chunk := range x.chunks {
		if err := in.Add(chunk); err != nil {
			w.failf("import: %v", err)
		}
	}
	if s := x.sender; s.slot.node == s {
		s.log.core.rn.ReportSnapshot(n.id, raft.SnapshotFinish)
		delete(s.log.snapshots, n.id)
	}
	meta := x.header.GetSnapshot().GetMetadata()
	at := namespace.Position{Entry: meta.GetIndex(), Term: meta.GetTerm(), Commands: 1 << 31}
	w.note("%d takes the names as of %d", n.id, at.Entry)
	n.turn(func() error { return n.log.core.receive(x.snap, in, at, x.header.GetContext()) })
}

// events are what may go wrong.
func (w *world) events() {
	n := w.any()
	if n != nil && w.chance(25) {
		n.checkpoint()
	}
	if n = w.any(); n != nil && w.chance(8) {
		w.crash(n)
	}
	if n = w.any(); n != nil && w.chance(6) {
		w.note("the disk of %d fails", n.id)
		n.failing = true
	}
	if n = w.any(); n != nil && w.chance(15) && n.when == never {
		n.when, n.after = moment(1+w.rng.IntN(3)), 1+w.rng.IntN(6)
		w.note("%d will crash at %d.%d", n.id, n.when, n.after)
	}
	if w.chance(12) {
		a, b := w.slots[w.rng.IntN(len(w.slots))], w.slots[w.rng.IntN(len(w.slots))]
		w.note("cut %s %s", a.peer, b.peer)
		w.cut[[2]*slot{a, b}] = true
		if w.chance(700) {
			w.cut[[2]*slot{b, a}] = true
		}
	}
	if w.chance(6) {
		alone := w.slots[w.rng.IntN(len(w.slots))]
		for _, s := range w.slots {
			w.cut[[2]*slot{s, alone}], w.cut[[2]*slot{alone, s}] = true, true
		}
	}
	if w.chance(25) {
		clear(w.cut)
	}
	if n = w.any(); n != nil && w.chance(8) && n.leads() {
		if to := n.log.successor(); to != 0 {
			w.note("%d hands over to %d", n.id, to)
			n.turn(func() error { n.log.core.rn.TransferLeader(to); return nil })
		}
	}
	w.memberEvents()
	w.membership()
}

// crash takes the power of a node.
func (w *world) crash(n *simNode) {
	n.ruins, n.ruined = n.disk.crash(w.rng), true
	w.lost(n)
}

// stopped takes note of a node that has stopped because its disk failed. What was not
// synced is still there, until the power goes.
func (w *world) stopped(n *simNode, err error) {
	s := n.slot
	w.note("%d has stopped: %v", n.id, err)
	n.stopped = true
	n.close()
	s.node, s.disk, s.has, s.alone = nil, n.disk, true, n.log.store.alone
	s.back = w.step + 1 + w.rng.IntN(60)
}

// lost takes note of a node that lost its power.
func (w *world) lost(n *simNode) {
	s := n.slot
	w.note("%d is down", n.id)
	s.node, s.disk, s.has, s.alone = nil, n.ruins, true, n.log.store.alone
	s.back = w.step + 1 + w.rng.IntN(60)
	n.close()
}

// wake starts nodes that are down.
func (w *world) wake() {
	for _, s := range w.slots {
		if s.node != nil || !s.has || w.step < s.back {
			continue
		}
		w.note("%d is up", s.id)
		n, err := w.start(s, s.id, s.disk)
		if err != nil {
			w.failf("start node %d: %v", s.id, err)
		}
		w.started(n)
		n.turn(nil)
	}
}

// heal ends all that goes wrong.
func (w *world) heal() {
	w.note("heal")
	w.healed, w.loss, w.delay = true, 0, 2
	clear(w.cut)
	for _, s := range w.slots {
		s.back = 0
		if s.node != nil {
			s.node.when, s.node.failing = never, false
		}
	}
}

// client has the programs on a node do something.
func (w *world) client(n *simNode) {
	session := n.log.session.current()
	waits := func(is func(*simCall) bool) bool { return slices.ContainsFunc(n.calls, is) }
	if session == 0 {
		if v := n.state.View(); !waits(func(c *simCall) bool { return c.opens }) && v != nil && v.Member(n.slot.peer) != nil && v.Member(n.slot.peer).Raft == n.id {
			n.propose(simCall{opens: true}, &namespace.OpenSession{Peer: n.slot.peer})
			n.turn(nil)
		}
		return
	}
	if w.healed || len(n.calls) > 20 {
		return
	}
	if w.chance(60) {
		round, err := n.log.reads.join()
		if err != nil {
			w.failf("read: %v", err)
		}
		n.reads = append(n.reads, simRead{round, w.acked})
		if !n.turn(nil) {
			return
		}
	}
	if w.chance(15) { // of a node that is not heard of, or its own
		for _, other := range w.slots {
			if id := n.state.SessionOf(other.peer); id != 0 && w.chance(400) {
				w.forced[id] = true
				n.propose(simCall{}, &namespace.EndSession{Session: id})
				break
			}
		}
	}
	if !w.chance(250) {
		return
	}
	for range 1 + w.rng.IntN(4) {
		w.proposeSome(n, session)
	}
	n.turn(nil)
}

func (w *world) proposeSome(n *simNode, session namespace.SessionID) {
	name := func() string { return fmt.Sprint("r", w.rng.IntN(8)) }
	root := namespace.RootIno
	switch w.rng.IntN(12) {
	case 0, 1, 2:
		w.named++
		unique := fmt.Sprintf("u%d-%d", n.id, w.named)
		n.propose(simCall{unique: unique}, mkdir(unique))
	case 3:
		n.propose(simCall{}, mkdir(name()))
	case 4:
		n.propose(simCall{}, &namespace.Rmdir{Parent: root, Name: name()})
	case 5:
		n.propose(simCall{}, &namespace.Rename{Parent: root, Name: name(), NewParent: root, NewName: name(), Exchange: w.chance(500)})
	case 6:
		op := &namespace.LockRange{Session: session, Ino: root, Kind: namespace.LockFile, Start: uint64(w.rng.IntN(4)), Mode: namespace.LockMode(w.rng.IntN(3))}
		op.End = op.Start + uint64(w.rng.IntN(4))
		n.propose(simCall{}, op)
	case 7:
		big := make([]byte, w.rng.IntN(namespace.MaxInline))
		n.propose(simCall{}, &namespace.Create{Parent: root, Name: name(), Mode: namespace.TypeRegular,
			Size: int64(len(big)), Content: &namespace.Content{Inline: big, Length: int64(len(big))}},
			&namespace.Unlink{Parent: root, Name: name()})
	case 8:
		n.propose(simCall{}, &namespace.SetXattr{Ino: root, Name: "user." + name(), Value: binary.AppendUvarint(nil, w.rng.Uint64())})
	case 9:
		n.propose(simCall{}, &namespace.TrimHistory{Index: n.state.Applied() / 2})
	case 10:
		n.propose(simCall{}, w.writing(n, session))
	case 11:
		n.propose(simCall{}, w.patch(n))
	}
}
