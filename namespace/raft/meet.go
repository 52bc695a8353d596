package raft

import (
	"fmt"
	"time"

	"github.com/cairnfs/cairn/p2p"
)

// Before two members believe each other's messages they meet: one says a hello, the
// other answers with its own. Both say what they are and what they remember of the
// other, and judge: the other one's store by what they remember of it, their own by
// what the other one remembers (vouch.go). A node that is refused by either ends its
// Log and says why.
//
// What a hello says of a log may be late, so the other's log is judged only if its
// store was started since; one's own is judged by how it is when the answer is here.
//
// Members meet again every few seconds, so that all of them know roughly how far
// each one's log is, and not only the leader.

// hello is what members say when they meet, in JSON. An answer that refuses has the
// Refusal and whose it is.
type hello struct {
	Cluster    string   `json:"cluster"`
	Generation uint64   `json:"generation"`
	Epoch      uint64   `json:"epoch"` // 0: the node has no names yet
	Raft       uint64   `json:"raft"`
	Starts     uint64   `json:"starts"`
	Marks      []uint64 `json:"marks"`
	Extent     extent   `json:"extent"`
	Version    uint32   `json:"version"` // that the program knows
	Time       int64    `json:"time"`    // of the clock on the wall, nanoseconds since 1970
	You        *memory  `json:"you,omitempty"`
	Refusal    *Refusal `json:"refusal,omitempty"`
	// Withdrawn says that the sender has been refused by another member: its start is
	// not to count against the store that is the right one.
	Withdrawn bool `json:"withdrawn,omitempty"`
}

// acquaintance is a member that this node has met.
type acquaintance struct {
	mark    uint64
	version uint32
	offset  time.Duration // of its clock, about
	old     bool          // its program does not say hello
}

// maxHello bounds a hello, in bytes: with the marks it is about 2 KiB.
const maxHello = 8 << 10

// introduce returns a hello to the member with a number, 0 if that is not known. It is
// called by the run loop, as all of this.
func (l *Log) introduce(to uint64) (*hello, error) {
	h := &hello{Cluster: l.o.Cluster, Raft: l.o.ID, Version: l.o.Knows, Time: l.o.Now().UnixNano()}
	if v := l.o.State.View(); v != nil {
		h.Cluster, h.Generation, h.Epoch = v.Cluster, v.Generation, v.Epoch
	}
	own := &l.store.vouch.own
	h.Starts, h.Marks = own.count, own.marks
	var err error
	if h.Extent, err = l.store.extent(); err != nil {
		return nil, err
	}
	if m := l.store.vouch.others[to]; m != nil {
		h.You = new(memory)
		*h.You = *m
	}
	return h, nil
}

// hear takes a hello and returns the answer. An error is this node's own end.
func (l *Log) hear(from p2p.PeerID, h *hello) (*hello, error) {
	if h.Withdrawn {
		return &hello{}, l.unmeet(from, h)
	}
	refusal := l.admission(from, h)
	if refusal == nil {
		refusal = l.weigh(h)
	}
	if refusal != nil {
		l.refused(from, refusal)
		answer := &hello{Cluster: l.o.Cluster, Refusal: refusal}
		if v := l.o.State.View(); v != nil {
			answer.Generation, answer.Epoch = v.Generation, v.Epoch
		}
		return answer, l.reflect(from, h)
	}
	if err := l.reflect(from, h); err != nil {
		return nil, err
	}
	answer, err := l.introduce(h.Raft)
	if err != nil {
		return nil, err
	}
	return answer, l.acquaint(from, h, 0)
}

// heard takes the answer to a hello that was said so long ago, of a member that has a
// number in the registry. An error is this node's own end; met reports whether the
// two have met.
func (l *Log) heard(from p2p.PeerID, id uint64, h *hello, took time.Duration) (met bool, err error) {
	if r := h.Refusal; r != nil {
		if l.believes(h) {
			return false, &Refusal{Kind: r.Kind, Text: r.Text, By: from}
		}
		l.warn(from, r.Kind, "a node refuses this one", "reason", r.Text)
		return false, nil
	}
	if h.Raft != id {
		return false, nil // registered anew since
	}
	refusal := l.weigh(h)
	if refusal != nil {
		l.refused(from, refusal)
	}
	if err := l.reflect(from, h); refusal != nil || err != nil {
		return false, err
	}
	return true, l.acquaint(from, h, took)
}

// believes reports whether a refusal is to be believed. That a node is no member is
// said by nodes, too, that do not know the latest members, or whose store is an older
// copy.
func (l *Log) believes(h *hello) bool {
	switch h.Refusal.Kind {
	case Removed, Forced:
		v := l.o.State.View()
		return v == nil || h.Generation > v.Generation || h.Generation == v.Generation && h.Epoch > v.Epoch
	case Restored, Foreign, Outdated:
		return true
	}
	return false
}

// admission returns why a node that says hello is not one of the cluster's, nil if it
// is.
func (l *Log) admission(from p2p.PeerID, h *hello) *Refusal {
	v := l.o.State.View()
	cluster := l.o.Cluster
	if v != nil {
		cluster = v.Cluster
	}
	switch {
	case h.Cluster != cluster && cluster != "":
		return &Refusal{Kind: Foreign, Text: fmt.Sprintf("of %s, not of %s", h.Cluster, cluster)}
	case v == nil && !l.o.Knew(from):
		return &Refusal{Kind: unknown, Text: "this node has no names yet and does not know it"}
	case v == nil:
		return nil // the names are on their way
	}
	m := v.Member(from)
	switch {
	case m != nil && m.Raft == h.Raft && h.Version < l.o.State.Version():
		return &Refusal{Kind: Outdated, Text: fmt.Sprintf("it knows version %d, the cluster is at version %d", h.Version, l.o.State.Version())}
	case m != nil && m.Raft == h.Raft:
		return nil
	case h.Generation > v.Generation:
		return &Refusal{Kind: unknown, Text: fmt.Sprintf("no generation %d of the cluster is known yet", h.Generation)}
	case h.Epoch != 0 && h.Generation < v.Generation:
		return &Refusal{Kind: Forced, Text: fmt.Sprintf("cluster %s is of generation %d by now, this node of %d", cluster, v.Generation, h.Generation)}
	case m == nil && l.store.inGroup(h.Raft):
		return nil // it may be needed to end its own part in the group
	case (h.Raft >= v.Next || m != nil && m.Raft < h.Raft) && h.Epoch > v.Epoch:
		return nil // this node is behind, and who has joined since may have to tell it
	case h.Raft >= v.Next || m != nil && m.Raft < h.Raft:
		return &Refusal{Kind: unknown, Text: fmt.Sprintf("no member has number %d yet", h.Raft)}
	}
	return &Refusal{Kind: Removed, Text: "cluster " + cluster}
}

// weigh judges another member's store.
func (l *Log) weigh(h *hello) *Refusal {
	if h.Starts == 0 || len(h.Marks) == 0 {
		return &Refusal{Kind: unknown, Text: "it does not say which start of its store this is"}
	}
	if l.withdrawn[h.Marks[0]] {
		return &Refusal{Kind: Restored, Text: "another member has refused it"}
	}
	m := l.store.vouch.others[h.Raft]
	if m == nil {
		return nil
	}
	s := &starts{count: h.Starts, marks: h.Marks}
	if r := m.descent(s); r != nil {
		return r
	}
	if h.Starts == m.Starts {
		return nil // it is as far as it was, though this may have been said before
	}
	return m.reach(h.Extent)
}

// reflect judges this node's own store by what another one remembers of it. What one
// says who is no member is told to people only.
func (l *Log) reflect(from p2p.PeerID, h *hello) error {
	if h.You == nil {
		return nil
	}
	r := h.You.descent(&l.store.vouch.own)
	if r == nil {
		e, err := l.store.extent()
		if err != nil {
			return err
		}
		r = h.You.reach(e)
	}
	if r == nil {
		return nil
	}
	v := l.o.State.View()
	if v == nil && !l.o.Knew(from) || v != nil && v.Member(from) == nil {
		l.warn(from, Restored, "a node that is no member says that it knows a later state of this node's store: was that restored from a copy?", "reason", r.Text)
		return nil
	}
	r.By = from
	return r
}

// acquaint takes note of a node that was met. Only of members anything is remembered:
// another one could say what it likes under a number that is not its own.
func (l *Log) acquaint(from p2p.PeerID, h *hello, took time.Duration) error {
	s := &starts{count: h.Starts, marks: h.Marks}
	if v := l.o.State.View(); v != nil && v.Member(from) != nil && v.Member(from).Raft == h.Raft {
		m := l.store.vouch.of(h.Raft)
		news := m.Starts != s.count || m.Mark != s.mark()
		m.meet(s)
		m.note(h.Extent.Term, 0, 0)
		m.Sure = max(m.Sure, h.Extent.Commit)
		if news { // another start of it must never pass for the latest again
			if err := l.store.noted(); err != nil {
				return err
			}
		}
	}
	now := l.o.Now().Add(-took / 2).UnixNano()
	l.peers.met(from, acquaintance{mark: s.mark(), version: h.Version, offset: time.Duration(h.Time - now)})
	return nil
}

// unmeet forgets the start of a store that another member has refused.
func (l *Log) unmeet(from p2p.PeerID, h *hello) error {
	v := l.o.State.View()
	if len(h.Marks) == 0 || v == nil || v.Member(from) == nil || v.Member(from).Raft != h.Raft {
		return nil
	}
	if len(l.withdrawn) >= maxWarned {
		clear(l.withdrawn)
	}
	l.withdrawn[h.Marks[0]] = true // what it said before may come later
	l.refused(from, &Refusal{Kind: Restored, Text: "it has learnt so of another member"})
	l.peers.forget(from)
	if m := l.store.vouch.others[h.Raft]; m != nil && m.unmeet(h.Marks[0]) {
		return l.store.noted()
	}
	return nil
}

// refused tells people that a node is not believed.
func (l *Log) refused(from p2p.PeerID, r *Refusal) {
	if r.Kind != unknown {
		l.warn(from, r.Kind, "a node is refused", "reason", string(r.Kind)+": "+r.Text)
	}
}

// How often the same is told of the same node, and of how many nodes.
const (
	warnEvery = 10 * time.Minute
	maxWarned = 1000
)

type warning struct {
	peer p2p.PeerID
	kind RefusalKind
}

// warn logs something of a node, now and then.
func (l *Log) warn(peer p2p.PeerID, kind RefusalKind, text string, args ...any) {
	w, now := warning{peer, kind}, l.o.Clock()
	if last, told := l.warned[w]; told && now-last < warnEvery {
		return
	}
	if len(l.warned) >= maxWarned {
		clear(l.warned)
	}
	l.warned[w] = now
	l.o.Logger.Warn(text, append([]any{"peer", peer}, args...)...)
}

// learnt is told by the core how far another member's log is. It is remembered of a
// known start only: the hello of that same start may still be on its way, and say less.
func (l *Log) learnt(id, term, entry, commit uint64) {
	if m := l.store.vouch.others[id]; m != nil && m.Starts > 0 {
		m.note(term, entry, commit)
	}
}

// forgetStrangers forgets what is remembered of nodes that are members no more.
func (l *Log) forgetStrangers() {
	v := l.o.State.View()
	if v == nil {
		return
	}
	numbers := make(map[uint64]bool, len(v.Members))
	for i := range v.Members {
		numbers[v.Members[i].Raft] = true
	}
	l.store.vouch.keep(func(id uint64) bool { return numbers[id] })
}
