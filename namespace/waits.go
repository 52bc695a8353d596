package namespace

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/cairnfs/cairn/namespace/namespacepb"
)

// Programs on different nodes can wait for each other's locks in a circle, which no
// node can see alone: locks are held by nodes here, and which program it is for that
// a node holds one only the node knows. So a node whose program waits for long, and
// holds something meanwhile, says in the log what the program waits for and what it
// has. The wait that would close a circle is refused with ErrDeadlock.
//
// Only a circle of programs counts, and no more than is so: nodes say that a program
// has less before it has, and that it waits only when it does. Whoever is in the way
// of nobody, or says nothing, is in no circle.

// AwaitLock says that a program waits for a lock of fcntl(2), or that it does no
// longer. ID is the wait's number in the session; saying it again replaces it.
//
// Errors: ErrDeadlock, ErrSession, ErrInvalid if there are MaxWaits or more than
// MaxWaitRanges in it.
type AwaitLock struct {
	Session SessionID
	ID      uint64
	Wait    *Wait // nil: the wait is over
}

// Wait is what a program waits for.
type Wait struct {
	Owner uint64 // the program, as its node numbers it
	Wants LockedRange
	Has   []LockedRange
	// Ahead says that the program's own node has given it what it wants, as far as
	// others on that node go: they wait for it, if they want the same.
	Ahead bool
}

// LockedRange is a part of an inode that is locked.
type LockedRange struct {
	Ino        Ino
	Start, End uint64 // first and last byte
	Write      bool   // for one owner alone
}

// excludes reports whether two owners cannot have both.
func (r *LockedRange) excludes(o *LockedRange) bool {
	return r.Ino == o.Ino && r.Start <= o.End && o.Start <= r.End && (r.Write || o.Write)
}

// program is one that waits.
type program struct {
	session SessionID
	owner   uint64
}

// sessionWait is a Wait of a session.
type sessionWait struct {
	program
	id uint64
	*Wait
}

// hinders reports whether w is in the way of o.
func (w *sessionWait) hinders(o *sessionWait) bool {
	return w.program != o.program && (slices.ContainsFunc(w.Has, func(r LockedRange) bool { return r.excludes(&o.Wants) }) ||
		w.Ahead && w.session == o.session && w.Wants.excludes(&o.Wants))
}

func (t *txn) awaitLock(op *AwaitLock) error {
	if t.s.sessions[op.Session] == nil {
		return ErrSession
	}
	v, err := t.value(waitKey(op.Session, op.ID))
	if err != nil {
		return err
	}
	if op.Wait == nil {
		v.value = nil
		return nil
	}
	all, err := t.waits()
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(w sessionWait) bool { return w.session == op.Session && w.id == op.ID })
	if len(all) >= MaxWaits || len(op.Wait.Has) > MaxWaitRanges {
		return fmt.Errorf("%w: %d wait for locks, this one has %d", ErrInvalid, len(all), len(op.Wait.Has))
	}
	own := sessionWait{program{op.Session, op.Wait.Owner}, op.ID, op.Wait}
	if closesCircle(append(all, own)) {
		return ErrDeadlock
	}
	v.value = marshalRecord(encodeWait(op.Wait))
	return nil
}

// closesCircle reports whether the program of the last of the waits waits for itself,
// directly or through others. A program waits if any of its threads does.
func closesCircle(all []sessionWait) bool {
	last := all[len(all)-1]
	reached := make(map[program]bool)
	for next := []sessionWait{last}; len(next) > 0; next = next[1:] {
		for i := range all {
			if all[i].hinders(&next[0]) && !reached[all[i].program] {
				reached[all[i].program] = true
				for j := range all { // all its threads
					if all[j].program == all[i].program {
						next = append(next, all[j])
					}
				}
			}
		}
	}
	return reached[last.program]
}

// waits returns those of all sessions, as of this op.
func (t *txn) waits() ([]sessionWait, error) {
	all, err := scanWaits(t.s, tagKey(nil, tagWait))
	if err != nil {
		return nil, t.fail(err)
	}
	for _, v := range t.values.all {
		session, id, ok := splitWaitKey(v.key)
		if !ok {
			continue
		}
		all = slices.DeleteFunc(all, func(w sessionWait) bool { return w.session == session && w.id == id })
		if v.value == nil {
			continue
		}
		w, err := decodeStoredWait(session, id, v.value)
		if err != nil {
			return nil, t.fail(err)
		}
		all = append(all, w)
	}
	return all, nil
}

// endWaits forgets the waits of a session.
func (t *txn) endWaits(id SessionID) error {
	all, err := t.waits()
	for _, w := range all {
		if w.session != id {
			continue
		}
		v, err := t.value(waitKey(id, w.id))
		if err != nil {
			return err
		}
		v.value = nil
	}
	return err
}

func scanWaits(s *State, prefix []byte) (all []sessionWait, err error) {
	err = scan(s.db, prefix, func(key, value []byte) (bool, error) {
		session, id, ok := splitWaitKey(key)
		if !ok {
			return false, fmt.Errorf("%w: key of a wait %x", ErrCorrupt, key)
		}
		w, err := decodeStoredWait(session, id, value)
		all = append(all, w)
		return err == nil, err
	})
	return all, err
}

func waitKey(session SessionID, id uint64) []byte {
	return binary.BigEndian.AppendUint64(numberKey(nil, tagWait, uint64(session)), id)
}

func splitWaitKey(key []byte) (session SessionID, id uint64, ok bool) {
	n, rest, ok := splitNumberKey(key)
	if !ok || key[1] != tagWait || len(rest) != 8 {
		return 0, 0, false
	}
	return SessionID(n), binary.BigEndian.Uint64(rest), true
}

func decodeStoredWait(session SessionID, id uint64, value []byte) (sessionWait, error) {
	var m namespacepb.Wait
	if err := unmarshal(value, &m); err != nil {
		return sessionWait{}, fmt.Errorf("wait: %w", err)
	}
	w, err := decodeWait(&m)
	return sessionWait{program{session, m.Owner}, id, w}, err
}

func encodeWait(w *Wait) *namespacepb.Wait {
	m := &namespacepb.Wait{Owner: w.Owner, Wants: encodeLocked(w.Wants), Ahead: w.Ahead}
	for _, r := range w.Has {
		m.Has = append(m.Has, encodeLocked(r))
	}
	return m
}

func encodeLocked(r LockedRange) *namespacepb.LockedRange {
	return &namespacepb.LockedRange{Ino: uint64(r.Ino), Start: r.Start, End: r.End, Write: r.Write}
}

func decodeWait(m *namespacepb.Wait) (*Wait, error) {
	w := &Wait{Owner: m.GetOwner(), Ahead: m.GetAhead(), Wants: decodeLocked(m.GetWants())}
	unknown := hasUnknown(m) || m.GetWants() != nil && hasUnknown(m.GetWants())
	for _, r := range m.GetHas() {
		unknown = unknown || hasUnknown(r)
		w.Has = append(w.Has, decodeLocked(r))
	}
	if unknown {
		return nil, fmt.Errorf("%w: unknown field of a wait", ErrVersion)
	}
	return w, nil
}

func decodeLocked(m *namespacepb.LockedRange) LockedRange {
	return LockedRange{Ino: Ino(m.GetIno()), Start: m.GetStart(), End: m.GetEnd(), Write: m.GetWrite()}
}
