package raft

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/cairnfs/cairn/namespace"
)

// Who votes must have all that it acknowledged. A disk may be an older copy of itself,
// put back from a backup, or one of two copies that are both in use; its node knows
// nothing of that, but the others can tell (rule 4):
//
//   - Each start of a store as a member's is counted and gets a random mark, durably,
//     before the node says anything. Others remember the latest start that they met.
//     A store that does not descend from that start is an older copy, or another one.
//   - Others remember how far a member's log was, as they learned from its messages:
//     whatever it says is durable before it says it. A store of a later start whose
//     log is not that far is an older copy too, one that was taken while it was in use.
//
// What is remembered is a lower bound. It lies in the journal with terms and votes,
// and in the base; what is not written yet when a node ends makes the others forget
// something, never accuse anybody. Nobody is accused who lost only what it had not
// synced, because that it had acknowledged to nobody.

// maxMarks is how many starts of its own a store knows the marks of. A copy that was
// started more often than that since somebody met the store passes for one of which
// nothing is known.
const maxMarks = 64

// starts are those of a store as a member's.
type starts struct {
	count uint64
	marks []uint64 // of the last starts, the latest first
}

// mark returns that of the present start.
func (s *starts) mark() uint64 { return s.marks[0] }

// add notes another start.
func (s *starts) add(mark uint64) {
	s.count++
	s.marks = slices.Insert(s.marks, 0, mark)
	s.marks = s.marks[:min(len(s.marks), maxMarks)]
}

// descends reports whether the given start is one of them. One that is too long ago
// is taken for one.
func (s *starts) descends(count, mark uint64) bool {
	if count > s.count {
		return false
	}
	back := s.count - count
	return count == 0 || back >= uint64(len(s.marks)) && back >= maxMarks || back < uint64(len(s.marks)) && s.marks[back] == mark
}

// extent is how far a log is, durably.
type extent struct {
	Term   uint64 `json:"term"`
	Last   uint64 `json:"last"`   // entry
	Commit uint64 `json:"commit"` // entry up to which it is known to be agreed upon
}

// memory is what is remembered of another member.
type memory struct {
	Starts uint64 `json:"starts"` // the latest that was met
	Mark   uint64 `json:"mark"`
	Term   uint64 `json:"term"`  // the latest it was in
	Acked  uint64 `json:"acked"` // the last entry that it has of the leader of that term
	Sure   uint64 `json:"sure"`  // the last entry that it has for good

	former *start // what Starts and Mark were before, if this process knows
}

// start names a start of a store.
type start struct{ count, mark uint64 }

// note takes down that the member's log has the entries of the leader of a term up to
// the given one, of which those up to commit are agreed upon in that term at the
// latest.
func (m *memory) note(term, entry, commit uint64) {
	if term < m.Term {
		return // said late
	}
	if term > m.Term {
		m.Term, m.Acked = term, 0
	}
	m.Acked = max(m.Acked, entry)
	m.Sure = max(m.Sure, min(entry, commit))
}

// meet takes down a start.
func (m *memory) meet(s *starts) {
	if m.Mark != s.mark() {
		m.former = &start{m.Starts, m.Mark}
	}
	m.Starts, m.Mark = s.count, s.mark()
}

// unmeet takes back that a start was met, and reports whether it was the latest.
func (m *memory) unmeet(mark uint64) bool {
	if m.Mark != mark || m.former == nil {
		return false
	}
	m.Starts, m.Mark, m.former = m.former.count, m.former.mark, nil
	return true
}

// descent returns the refusal of a store that does not descend from the one that is
// remembered, nil if it does.
func (m *memory) descent(s *starts) *Refusal {
	switch {
	case s.descends(m.Starts, m.Mark):
		return nil
	case s.count < m.Starts:
		return &Refusal{Kind: Restored, Text: fmt.Sprintf("this is its start %d, but start %d is known", s.count, m.Starts)}
	}
	return &Refusal{Kind: Restored, Text: fmt.Sprintf("start %d that is known was another copy's", m.Starts)}
}

// reach returns the refusal of a log that lacks what is remembered, nil if it has it.
// e must be as of later than all that is remembered.
func (m *memory) reach(e extent) *Refusal {
	switch {
	case e.Term < m.Term:
		return &Refusal{Kind: Restored, Text: fmt.Sprintf("its log is of term %d, but it has been in term %d", e.Term, m.Term)}
	case e.Term == m.Term && e.Last < m.Acked:
		return &Refusal{Kind: Restored, Text: fmt.Sprintf("its log ends at entry %d, but it has acknowledged entry %d", e.Last, m.Acked)}
	case e.Last < m.Sure:
		return &Refusal{Kind: Restored, Text: fmt.Sprintf("its log ends at entry %d, but it had entry %d, which is agreed upon", e.Last, m.Sure)}
	}
	return nil
}

// vouch is what a store knows of its own starts and of other members, by their
// numbers in the group.
type vouch struct {
	own    starts
	others map[uint64]*memory
}

func (v *vouch) of(id uint64) *memory {
	m := v.others[id]
	if m == nil {
		m = &memory{}
		if v.others == nil {
			v.others = make(map[uint64]*memory)
		}
		v.others[id] = m
	}
	return m
}

// add takes over what another one knows besides.
func (v *vouch) add(other *vouch) {
	if other.own.count > v.own.count {
		v.own = other.own
	}
	for id, o := range other.others {
		m := v.of(id)
		if o.Starts > m.Starts {
			m.Starts, m.Mark = o.Starts, o.Mark
		}
		m.note(o.Term, o.Acked, 0)
		m.Sure = max(m.Sure, o.Sure)
	}
}

// keep forgets members that there are no more.
func (v *vouch) keep(is func(id uint64) bool) {
	for id := range v.others {
		if !is(id) {
			delete(v.others, id)
		}
	}
}

// encode returns the stored form: a version byte, the number of the own start, its
// marks, 8 bytes each, after their number; then for each member its number, its
// starts, the mark, term, acked and sure. Numbers are uvarints.
func (v *vouch) encode() []byte {
	b := []byte{formatVersion}
	b = binary.AppendUvarint(b, v.own.count)
	b = binary.AppendUvarint(b, uint64(len(v.own.marks)))
	for _, mark := range v.own.marks {
		b = binary.BigEndian.AppendUint64(b, mark)
	}
	for _, id := range slices.Sorted(maps.Keys(v.others)) {
		m := v.others[id]
		b = binary.AppendUvarint(b, id)
		b = binary.AppendUvarint(b, m.Starts)
		b = binary.BigEndian.AppendUint64(b, m.Mark)
		for _, n := range []uint64{m.Term, m.Acked, m.Sure} {
			b = binary.AppendUvarint(b, n)
		}
	}
	return b
}

// decodeVouch reads what encode wrote.
func decodeVouch(b []byte) (v vouch, err error) {
	if len(b) == 0 || b[0] != formatVersion {
		return v, fmt.Errorf("starts of members: %w", namespace.ErrVersion)
	}
	b = b[1:]
	corrupt := false
	number := func() uint64 {
		n, used := binary.Uvarint(b)
		if used <= 0 {
			corrupt, b = true, nil
			return 0
		}
		b = b[used:]
		return n
	}
	mark := func() uint64 {
		if len(b) < 8 {
			corrupt, b = true, nil
			return 0
		}
		n := binary.BigEndian.Uint64(b)
		b = b[8:]
		return n
	}
	v.own.count = number()
	for n := number(); n > 0 && !corrupt; n-- {
		v.own.marks = append(v.own.marks, mark())
	}
	for len(b) > 0 {
		m := v.of(number())
		m.Starts, m.Mark = number(), mark()
		m.Term, m.Acked, m.Sure = number(), number(), number()
	}
	if corrupt || len(v.own.marks) > maxMarks || v.own.count > 0 && len(v.own.marks) == 0 {
		return vouch{}, fmt.Errorf("starts of members: %w", namespace.ErrCorrupt)
	}
	return v, nil
}
