package namespace

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/cairnfs/cairn/namespace/namespacepb"
)

// A node holds locks for the programs on it. The cluster sees one owner per node:
// for every byte the node holds the strongest of what its programs hold, and the
// node itself (package volume) decides between those. So what is kept here is, for
// each inode, ranges of sessions that do not conflict.

// LockKind tells the kinds of file locks apart, which do not see each other.
type LockKind uint8

// The kinds.
const (
	LockRecord LockKind = 1 // fcntl(2)
	LockFile   LockKind = 2 // flock(2)
	// LockOwner is held on a whole file by the node that alone may have it open
	// for writing, because programs share it in memory.
	LockOwner LockKind = 3
	// LockTurn is a place in the queue for the content of a file (turns.go).
	LockTurn LockKind = 4
)

// LockMode is how a range is held.
type LockMode uint8

// The modes.
const (
	Unlocked  LockMode = 0
	Shared    LockMode = 1
	Exclusive LockMode = 2
)

// LockRange sets how the session holds a range of an inode, in place of how it
// held any of it before. ErrLocked if another session holds part of it in a mode
// that excludes this one; ErrSession if there is no such session.
type LockRange struct {
	Session    SessionID
	Ino        Ino
	Kind       LockKind
	Start, End uint64 // first and last byte
	Mode       LockMode
}

// Lock is a range that a session holds.
type Lock struct {
	Session    SessionID
	Kind       LockKind
	Start, End uint64
	Mode       LockMode
	Ticket     uint64 // of a LockTurn: the index at which it was taken
}

func (l *Lock) overlaps(o *Lock) bool {
	return l.Kind == o.Kind && l.Start <= o.End && o.Start <= l.End
}

func (t *txn) lockRange(op *LockRange) error {
	want := Lock{Session: op.Session, Kind: op.Kind, Start: op.Start, End: op.End, Mode: op.Mode}
	if op.Start > op.End || op.Mode > Exclusive || op.Kind < LockRecord || op.Kind > LockOwner {
		return fmt.Errorf("%w: lock", ErrInvalid)
	}
	if t.s.sessions[op.Session] == nil {
		return ErrSession
	}
	if op.Mode != Unlocked {
		if _, err := t.inode(op.Ino); err != nil {
			return err
		}
	}
	v, held, err := t.locks(numberKey(nil, tagLocks, uint64(op.Ino)))
	if err != nil {
		return err
	}
	for i := range held {
		h := &held[i]
		if h.Session != op.Session && h.overlaps(&want) && op.Mode != Unlocked && (h.Mode == Exclusive || op.Mode == Exclusive) {
			return ErrLocked
		}
	}
	held = place(held, want)
	if len(held) > MaxLocks {
		return fmt.Errorf("%w: more than %d locks of an inode", ErrInvalid, MaxLocks)
	}
	v.value = encodeLocks(held)
	if op.Mode != Exclusive {
		t.cluster.locks = append(t.cluster.locks, op.Ino)
	}
	return nil
}

// place returns held with want in place of what its session held of the range.
func place(held []Lock, want Lock) []Lock {
	var out []Lock
	for _, h := range held {
		if h.Session != want.Session || !h.overlaps(&want) {
			out = append(out, h)
			continue
		}
		if h.Start < want.Start {
			left := h
			left.End = want.Start - 1
			out = append(out, left)
		}
		if h.End > want.End {
			right := h
			right.Start = want.End + 1
			out = append(out, right)
		}
	}
	if want.Mode != Unlocked {
		out = append(out, want)
	}
	slices.SortFunc(out, func(a, b Lock) int {
		switch {
		case a.Kind != b.Kind:
			return int(a.Kind) - int(b.Kind)
		case a.Ticket != b.Ticket:
			return cmpUint(a.Ticket, b.Ticket)
		case a.Session != b.Session:
			return cmpUint(uint64(a.Session), uint64(b.Session))
		}
		return cmpUint(a.Start, b.Start)
	})
	// Neighbours of one session in one mode are one range.
	merged := out[:0]
	for _, l := range out {
		if n := len(merged); n > 0 {
			last := &merged[n-1]
			if last.Kind == l.Kind && last.Session == l.Session && last.Mode == l.Mode && last.End+1 == l.Start {
				last.End = l.End
				continue
			}
		}
		merged = append(merged, l)
	}
	return merged
}

func cmpUint(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// unlockAll frees all that a session holds.
func (t *txn) unlockAll(id SessionID) error {
	prefix := tagKey(nil, tagLocks)
	its := func(l Lock) bool { return l.Session == id }
	err := scan(t.s.db, prefix, func(key, value []byte) (bool, error) {
		held, err := decodeLocks(value)
		if slices.ContainsFunc(held, its) && t.values.find(key) == nil {
			t.values.add(bytes.Clone(key), bytes.Clone(value))
		}
		return true, err
	})
	if err != nil {
		return t.fail(err)
	}
	for _, v := range t.values.all {
		if !bytes.HasPrefix(v.key, prefix) {
			continue
		}
		held, err := decodeLocks(v.value)
		if err != nil {
			return t.fail(err)
		}
		left := slices.DeleteFunc(held, its)
		if len(left) == len(held) {
			continue
		}
		v.value = encodeLocks(left)
		ino, _, _ := splitNumberKey(v.key)
		t.cluster.locks = append(t.cluster.locks, Ino(ino))
		t.queueChanged(Ino(ino), left)
	}
	return t.endWaits(id)
}

// locks loads the locks of an inode.
func (t *txn) locks(key []byte) (*stagedValue, []Lock, error) {
	v, err := t.value(key)
	if err != nil {
		return nil, nil, err
	}
	held, err := decodeLocks(v.value)
	if err != nil {
		return nil, nil, t.fail(err)
	}
	return v, held, nil
}

// Locks returns the locks that nodes hold of an inode.
func (s *State) Locks(ino Ino) ([]Lock, error) {
	value, _, err := get(s.db, numberKey(nil, tagLocks, uint64(ino)))
	if err != nil {
		return nil, err
	}
	return decodeLocks(value)
}

// encodeLocks returns nil for none.
func encodeLocks(held []Lock) []byte {
	if len(held) == 0 {
		return nil
	}
	m := &namespacepb.Locks{}
	for _, l := range held {
		m.Locks = append(m.Locks, &namespacepb.Lock{
			Session: uint64(l.Session), Kind: uint32(l.Kind), Start: l.Start, End: l.End, Mode: uint32(l.Mode), Ticket: l.Ticket})
	}
	return marshalRecord(m)
}

func decodeLocks(value []byte) ([]Lock, error) {
	if value == nil {
		return nil, nil
	}
	var m namespacepb.Locks
	if err := unmarshal(value, &m); err != nil {
		return nil, fmt.Errorf("locks: %w", err)
	}
	held := make([]Lock, len(m.Locks))
	for i, l := range m.Locks {
		held[i] = Lock{Session: SessionID(l.Session), Kind: LockKind(l.Kind), Start: l.Start, End: l.End, Mode: LockMode(l.Mode), Ticket: l.Ticket}
	}
	return held, nil
}
