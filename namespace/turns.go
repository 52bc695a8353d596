package namespace

import (
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// Content builds on a version, and of nodes that write one file at the same time only
// one gets its content in; the others build anew. Who is refused again and again
// queues. While somebody is in the queue of an inode, only the first of it may change
// the content or size, so what he builds on stays as it is and his next attempt
// counts. With it he leaves the queue. All others are refused with ErrTurn, whether
// they are in the queue or not, and get into it to have their turn: nobody can be
// overtaken by more nodes than there are.
//
// The queue is in the order of the log. A session is in that of an inode once, so it
// is at most MaxMembers long, and leaves it when the session ends. There is no clock
// here: whoever waits behind a node that lives and does nothing puts it out
// (package volume says after which time), by the ticket it has, so that what it may
// do next is not hit.

// TakeTurn puts the session at the end of the queue for the content of a regular file,
// unless it is in the queue. With Leave, it gives up the place with that ticket;
// anybody may propose that, and that there is no such place is no failure.
//
// Errors: ErrSession if there is no such session, ErrNotFound, ErrIsDir, ErrInvalid.
type TakeTurn struct {
	Session SessionID
	Ino     Ino
	Leave   uint64
}

// Turn is a place in the queue for the content of an inode.
type Turn struct {
	Session SessionID
	Ticket  uint64 // grows along the queue
}

func (t *txn) takeTurn(op *TakeTurn) error {
	ino := op.Ino
	if op.Leave == 0 {
		if t.s.sessions[op.Session] == nil {
			return ErrSession
		}
		n, err := t.file(ino)
		if err != nil {
			return err
		}
		ino = n.ino // of Created
	}
	v, held, err := t.locks(numberKey(nil, tagLocks, uint64(ino)))
	if err != nil {
		return err
	}
	at := slices.IndexFunc(held, func(l Lock) bool { return l.Kind == LockTurn && l.Session == op.Session })
	switch {
	case op.Leave == 0 && at < 0:
		held = place(held, Lock{Session: op.Session, Kind: LockTurn, Mode: Exclusive, Ticket: t.index})
	case op.Leave != 0 && at >= 0 && held[at].Ticket == op.Leave:
		held = slices.Delete(held, at, at+1)
		t.cluster.locks = append(t.cluster.locks, ino)
	default:
		return nil
	}
	v.value = encodeLocks(held)
	t.queueChanged(ino, held)
	return nil
}

// turn says whether the command may change the content of an inode, which ends its
// session's turn.
func (t *txn) turn(ino Ino) error {
	queued, changed := t.cluster.queues[ino]
	if !changed {
		queued = t.s.queues[ino]
	}
	if !queued {
		return nil
	}
	v, held, err := t.locks(numberKey(nil, tagLocks, uint64(ino)))
	if err != nil {
		return err
	}
	at := slices.IndexFunc(held, func(l Lock) bool { return l.Kind == LockTurn })
	if ses := t.cluster.session; ses == nil || held[at].Session != ses.id {
		return fmt.Errorf("%w of inode %d", ErrTurn, ino)
	}
	held = slices.Delete(held, at, at+1)
	v.value = encodeLocks(held)
	t.cluster.locks = append(t.cluster.locks, ino)
	t.queueChanged(ino, held)
	return nil
}

// queueChanged notes whether anybody is in the queue of an inode.
func (t *txn) queueChanged(ino Ino, held []Lock) {
	if t.cluster.queues == nil {
		t.cluster.queues = make(map[Ino]bool)
	}
	t.cluster.queues[ino] = len(turns(held)) > 0
}

// turns returns the queue among locks.
func turns(held []Lock) []Turn {
	var queue []Turn
	for _, l := range held {
		if l.Kind == LockTurn {
			queue = append(queue, Turn{l.Session, l.Ticket})
		}
	}
	return queue
}

// MayQueue reports whether TakeTurn and AwaitLock may be proposed. A node that is
// alone has no use for them.
func (s *State) MayQueue() bool { return s.View() != nil && s.Version() >= since(&TakeTurn{}) }

// Turns returns the queue for the content of an inode: whose turn it is comes first.
// That there is none, as nearly always, costs no reading.
func (s *State) Turns(ino Ino) ([]Turn, error) {
	s.mu.RLock()
	queued := s.queues[ino]
	s.mu.RUnlock()
	if !queued {
		return nil, nil
	}
	held, err := s.Locks(ino)
	return turns(held), err
}

func loadQueues(db pebble.Reader) (map[Ino]bool, error) {
	queues := make(map[Ino]bool)
	err := scan(db, tagKey(nil, tagLocks), func(key, value []byte) (bool, error) {
		ino, _, ok := splitNumberKey(key)
		held, err := decodeLocks(value)
		if err != nil || !ok {
			return false, fmt.Errorf("locks %x: %w", key, firstError(err, ErrCorrupt))
		}
		if len(turns(held)) > 0 {
			queues[Ino(ino)] = true
		}
		return true, nil
	})
	return queues, err
}
