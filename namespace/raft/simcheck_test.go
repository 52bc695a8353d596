package raft

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// checks is what has happened in the simulated group, as far as it cannot be undone.
type checks struct {
	history []record // in order
	places  map[namespace.Position]int
	leaders map[uint64]uint64             // by term
	dumps   map[namespace.Position]uint64 // hashes of the namespace
	acked   uint64                        // index of the last command acknowledged
	made    map[string]uint64             // names acknowledged, and the index
	named   int
	synced  uint64 // entry up to which a group of one is durable

	first map[call]uint64                // index of a session's command
	ended map[namespace.SessionID]uint64 // index of the command that did it

	silent map[namespace.SessionID]bool // a leader has proposed to end it
	forced map[namespace.SessionID]bool // a client has
}

type call struct {
	session namespace.SessionID
	seq     uint64
}

// record is a command that was applied.
type record struct {
	at     namespace.Position
	index  uint64 // its own
	result uint64 // its result's, another's if it is a repetition
	call   call
	digest uint64
	err    string
	ended  []namespace.SessionID
}

func (c *checks) init() {
	c.places = make(map[namespace.Position]int)
	c.leaders = make(map[uint64]uint64)
	c.dumps = make(map[namespace.Position]uint64)
	c.made = make(map[string]uint64)
	c.silent, c.forced = make(map[namespace.SessionID]bool), make(map[namespace.SessionID]bool)
	c.reset()
}

func (c *checks) reset() {
	c.first = make(map[call]uint64)
	c.ended = make(map[namespace.SessionID]uint64)
}

func before(a, b namespace.Position) bool {
	return a.Entry < b.Entry || a.Entry == b.Entry && a.Commands < b.Commands
}

// applied checks a command that a node applied: the same as all others at this
// place, and if it is the first there, what it must not be.
func (w *world) applied(n *simNode, cmd *namespace.Command, encoded []byte, res namespace.Result) {
	h := fnv.New64a()
	h.Write(encoded)
	r := record{
		at: n.state.Position(), index: n.state.Applied(), result: res.Index, call: call{cmd.Session, cmd.Seq},
		digest: h.Sum64(), err: fmt.Sprint(res.Err), ended: slices.Clone(n.ended),
	}
	w.note("%d applies %v %d %x %s", n.id, r.at, r.index, r.digest, r.err)
	if i, known := w.places[r.at]; known {
		if k := w.history[i]; k.index != r.index || k.result != r.result || k.digest != r.digest || k.err != r.err {
			w.failf("node %d applied %+v, another %+v", n.id, r, k)
		}
		return
	}
	if len(w.history) > 0 && !before(w.history[len(w.history)-1].at, r.at) {
		w.failf("node %d applied %+v after %+v was applied elsewhere", n.id, r, w.history[len(w.history)-1])
	}
	if ended, is := w.ended[cmd.Session]; is && !errors.Is(res.Err, namespace.ErrSession) {
		w.failf("%+v of a session that ended at %d", r, ended)
	}
	if first, again := w.first[r.call]; again && cmd.Session != 0 && res.Index != first && !errors.Is(res.Err, namespace.ErrSession) && !errors.Is(res.Err, namespace.ErrStale) {
		w.failf("%+v is carried out again, after %d", r, first)
	}
	if create, is := cmd.Ops[0].(*namespace.Create); is && create.Name[0] == 'u' && errors.Is(res.Err, namespace.ErrExist) {
		w.failf("%q was made twice", create.Name)
	}
	w.places[r.at] = len(w.history)
	w.history = append(w.history, r)
	w.learn(&r)
	for _, id := range r.ended {
		w.over(id)
	}
}

// over checks that nobody relies on a session that has ended for want of a sign of
// life (rule 7).
func (w *world) over(id namespace.SessionID) {
	if !w.silent[id] || w.forced[id] {
		return
	}
	for _, n := range w.running() {
		if n.log.session.live() == id {
			w.failf("session %d has ended, and node %d still relies on it", id, n.id)
		}
	}
}

// learn takes note of what a record means for those to come.
func (w *world) learn(r *record) {
	if _, again := w.first[r.call]; !again && r.call.session != 0 {
		w.first[r.call] = r.result
	}
	for _, id := range r.ended {
		w.ended[id] = r.index
	}
}

// acknowledged takes the result of a command that a client waited for.
func (w *world) acknowledged(n *simNode, c *simCall, res namespace.Result) {
	w.note("%d gets %d %v", n.id, res.Index, res.Err)
	switch {
	case c.opens && res.Err == nil:
		n.log.session.set(namespace.SessionID(res.Index), n.log.o.Clock())
		n.log.session.check(n.state)
	case res.Index > n.state.Applied():
		w.failf("node %d acknowledged command %d before it applied it", n.id, res.Index)
	}
	if res.Index == 0 {
		return // told by the end of the session
	}
	w.acked = max(w.acked, res.Index)
	if c.unique == "" {
		return
	}
	switch {
	case res.Err == nil:
		w.made[c.unique] = res.Index
	case errors.Is(res.Err, namespace.ErrExist):
		w.failf("%q was made twice", c.unique)
	}
}

// saw checks what a node says of the group.
func (w *world) saw(n *simNode) {
	s := n.log.Status()
	if s.Role != "leader" {
		return
	}
	if other, known := w.leaders[s.Term]; known && other != n.id {
		w.failf("nodes %d and %d lead in term %d", other, n.id, s.Term)
	} else if !known {
		w.note("%d leads in term %d", n.id, s.Term)
		w.leaders[s.Term] = n.id
	}
	for _, id := range s.Voters {
		v := n.state.View()
		for i := range v.Members {
			if v.Members[i].Raft == id && v.Members[i].Role != p2p.RoleStorage {
				w.failf("member %d votes, and is a client", id)
			}
		}
	}
}

// compare checks that the namespace of a node is what others had at this place.
func (w *world) compare(n *simNode) {
	at := n.state.Position()
	d := dump(n.index.Pebble())
	h := fnv.New64a()
	for _, k := range slices.Sorted(maps.Keys(d)) {
		fmt.Fprintf(h, "%d %s %d %s", len(k), k, len(d[k]), d[k])
	}
	if known, is := w.dumps[at]; is && known != h.Sum64() {
		w.failf("the namespace of node %d at %+v is not what another had", n.id, at)
	}
	w.dumps[at] = h.Sum64()
}

// durable takes note that a group of one has synced its log.
func (w *world) durable(n *simNode) { w.synced, _ = n.log.store.LastIndex() }

// started checks what a node still has. A group of one may lose the end of its log
// with its power (rule 1), down to where it was synced last; nobody else loses
// anything.
func (w *world) started(n *simNode) {
	if !n.slot.alone || n.slot.stale {
		return
	}
	if n.held < w.synced {
		w.failf("node %d has entries up to %d, and %d were durable", n.id, n.held, w.synced)
	}
	i := len(w.history)
	for i > 0 && w.history[i-1].at.Entry > n.held {
		i--
		delete(w.places, w.history[i].at)
	}
	w.history = w.history[:i]
	w.reset()
	w.acked = min(w.acked, 1)
	for i := range w.history {
		w.learn(&w.history[i])
		w.acked = w.history[i].index
	}
	maps.DeleteFunc(w.made, func(_ string, index uint64) bool { return index > w.acked })
	maps.DeleteFunc(w.dumps, func(at namespace.Position, _ uint64) bool { return at.Entry > n.held })
	maps.DeleteFunc(w.leaders, func(term, _ uint64) bool { return term > n.log.store.hard.GetTerm() })
}

// converged reports whether the group has come to rest: everybody is there, has
// applied the same, and votes who should.
func (w *world) converged() bool {
	l := w.leader()
	if l == nil || w.gone != nil || w.leaving != nil {
		return false
	}
	view := l.state.View()
	storage := 0
	for i := range view.Members {
		m := &view.Members[i]
		if m.Role == p2p.RoleStorage {
			storage++
		}
		s := w.slotOf(m.Raft)
		if s == nil || s.node == nil || s.node.state.Position() != l.state.Position() || s.node.log.session.current() == 0 || len(s.node.calls) > 0 {
			return false
		}
	}
	c := l.log.store.conf
	return storage >= w.target && len(c.GetVoters()) == votersFor(storage) && len(c.GetLearners()) == len(view.Members)-votersFor(storage) &&
		len(c.GetVotersOutgoing())+len(c.GetLearnersNext()) == 0
}

// final checks the group at rest.
func (w *world) final() {
	w.note("rest")
	for _, n := range w.running() {
		w.compare(n)
		if n.state.Applied() < w.acked {
			w.failf("node %d has applied %d commands of %d that were acknowledged", n.id, n.state.Applied(), w.acked)
		}
		for _, name := range slices.Sorted(maps.Keys(w.made)) {
			if _, err := n.state.Lookup(namespace.RootIno, name); err != nil {
				w.failf("%q was acknowledged, but node %d says: %v", name, n.id, err)
			}
		}
		if err := n.state.Check(context.Background(), func(p namespace.Problem) { w.t.Errorf("node %d: %v", n.id, p) }); err != nil {
			w.failf("check: %v", err)
		}
	}
	w.t.Logf("%d commands, %d members, %d terms, %d steps", len(w.history), w.target, len(w.leaders), w.step)
}
