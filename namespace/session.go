package namespace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/cairnfs/cairn/namespace/namespacepb"
	"github.com/cairnfs/cairn/p2p"
)

// A session is what a member's locks and commands hang on. While it lasts, a
// command that is proposed again, because nobody knew what had become of it, is
// carried out once: the State keeps the outcomes of a session's commands until the
// proposer says that it has them. When it has ended, nothing that was proposed
// under it counts any more, however late it arrives.

// MaxWindow is how many outcomes a session keeps, at most.
const MaxWindow = 8192

// maxGap is how far the number of a command may be above those that are answered.
const maxGap = 1 << 20

// session is what the State knows of an open session. It is changed under State.mu.
type session struct {
	id       SessionID
	peer     p2p.PeerID
	acked    uint64            // outcomes below it are forgotten
	outcomes map[uint64][]byte // by sequence number
}

// keep adds an outcome and forgets those below acked.
func (s *session) keep(seq, acked uint64, outcome []byte) {
	s.outcomes[seq] = outcome
	for ; s.acked < acked; s.acked++ {
		delete(s.outcomes, s.acked)
	}
}

// Sessions calls fn for each open session.
func (s *State) Sessions() map[SessionID]p2p.PeerID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make(map[SessionID]p2p.PeerID, len(s.sessions))
	for id, ses := range s.sessions {
		all[id] = ses.peer
	}
	return all
}

// SessionOf returns the session of a member, 0 if it has none.
func (s *State) SessionOf(peer p2p.PeerID) SessionID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for id, ses := range s.sessions {
		if ses.peer == peer {
			return id
		}
	}
	return 0
}

// Outcome returns the result of a session's command if it has been applied and is
// still known. ErrSession if the session has ended, ErrNotFound if the command has
// not been applied. The inodes in it are as they are now.
func (s *State) Outcome(id SessionID, seq uint64) (Result, error) {
	s.mu.RLock()
	ses := s.sessions[id]
	var outcome []byte
	if ses != nil {
		outcome = ses.outcomes[seq]
	}
	s.mu.RUnlock()
	if ses == nil {
		return Result{}, ErrSession
	}
	if outcome == nil {
		return Result{}, ErrNotFound
	}
	return s.decodeOutcome(outcome)
}

// enterSession looks whether the command is to be carried out, and if not, why.
func (t *txn) enterSession(cmd *Command) (done bool) {
	ses := t.s.sessions[cmd.Session]
	refuse := func(err error) bool {
		t.result = Result{Index: t.index, Err: err}
		return true
	}
	if ses == nil {
		return refuse(ErrSession)
	}
	if outcome := ses.outcomes[cmd.Seq]; outcome != nil {
		var err error
		if t.result, err = t.s.decodeOutcome(outcome); err != nil {
			t.failure = err
		}
		return true
	}
	if cmd.Seq < ses.acked {
		return refuse(ErrStale)
	}
	if cmd.Acked > cmd.Seq || cmd.Seq-ses.acked > maxGap {
		return refuse(fmt.Errorf("%w: command %d of a session, of which those below %d are answered", ErrInvalid, cmd.Seq, ses.acked))
	}
	if len(ses.outcomes) >= MaxWindow && cmd.Acked <= ses.acked {
		return refuse(fmt.Errorf("%w: more than %d commands of a session are unanswered", ErrInvalid, MaxWindow))
	}
	t.cluster.session = ses
	return false
}

// leaveSession keeps the outcome of the command.
func (t *txn) leaveSession(cmd *Command) {
	c := &t.cluster
	if t.failure != nil || slices.Contains(c.ended, cmd.Session) {
		return
	}
	c.session = t.s.sessions[cmd.Session] // again: a refusal has dropped it
	c.seq, c.acked = cmd.Seq, max(cmd.Acked, c.session.acked)
	c.outcome = encodeOutcome(&t.result)
}

// writeOutcome puts the outcome into the batch and removes those that are not
// needed any more.
func (t *txn) writeOutcome(b *pebble.Batch) error {
	c := &t.cluster
	if c.outcome == nil {
		return nil
	}
	ses := c.session
	if err := b.Set(outcomeKey(nil, ses.id, c.seq), c.outcome, nil); err != nil {
		return err
	}
	if c.acked <= ses.acked {
		return nil
	}
	for seq := range ses.outcomes {
		if seq < c.acked {
			if err := b.Delete(outcomeKey(nil, ses.id, seq), nil); err != nil {
				return err
			}
		}
	}
	return b.Set(numberKey(nil, tagSession, uint64(ses.id)),
		marshalRecord(&namespacepb.Session{Peer: []byte(ses.peer), Acked: c.acked}), nil)
}

func (t *txn) openSession(op *OpenSession) error {
	member, err := t.value(stringKey(tagMember, string(op.Peer)))
	if err != nil {
		return err
	}
	if member.value == nil {
		return ErrNoMember
	}
	if err := t.endSessionsOf(op.Peer); err != nil {
		return err
	}
	id := SessionID(t.index)
	v, err := t.value(numberKey(nil, tagSession, uint64(id)))
	if err != nil {
		return err
	}
	if v.value != nil {
		return fmt.Errorf("%w: two sessions opened by one command", ErrInvalid)
	}
	v.value = marshalRecord(&namespacepb.Session{Peer: []byte(op.Peer)})
	t.cluster.opened = map[SessionID]*session{id: {id: id, peer: op.Peer, outcomes: make(map[uint64][]byte)}}
	return nil
}

func (t *txn) endSessionsOf(peer p2p.PeerID) error {
	for id, ses := range t.s.sessions { // in any order: the result is the same
		if ses.peer == peer {
			if err := t.endSession(id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *txn) endSession(id SessionID) error {
	ses := t.s.sessions[id]
	if ses == nil {
		return nil
	}
	v, err := t.value(numberKey(nil, tagSession, uint64(id)))
	if err != nil {
		return err
	}
	v.value = nil
	for seq, outcome := range ses.outcomes {
		key := outcomeKey(nil, id, seq)
		v := t.values.find(key)
		if v == nil {
			v = t.values.add(key, outcome)
		}
		v.value = nil
	}
	t.cluster.ended = append(t.cluster.ended, id)
	if t.claim.session == id && t.s.version >= claimsVersion {
		t.claim = timeClaim{} // or the member's next session would agree with it
	}
	return t.unlockAll(id)
}

// loadSessions reads the open sessions and the outcomes they keep.
func loadSessions(db pebble.Reader) (map[SessionID]*session, error) {
	all := make(map[SessionID]*session)
	err := scan(db, tagKey(nil, tagSession), func(key, value []byte) (bool, error) {
		var m namespacepb.Session
		n, _, ok := splitNumberKey(key)
		if !ok {
			return false, fmt.Errorf("%w: session key %x", ErrCorrupt, key)
		}
		if err := unmarshal(value, &m); err != nil {
			return false, fmt.Errorf("session: %w", err)
		}
		id := SessionID(n)
		all[id] = &session{id: id, peer: p2p.PeerID(m.Peer), acked: m.Acked, outcomes: make(map[uint64][]byte)}
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	err = scan(db, tagKey(nil, tagOutcome), func(key, value []byte) (bool, error) {
		n, rest, ok := splitNumberKey(key)
		if !ok || len(rest) != 8 {
			return false, fmt.Errorf("%w: outcome key %x", ErrCorrupt, key)
		}
		if ses := all[SessionID(n)]; ses != nil {
			ses.outcomes[binary.BigEndian.Uint64(rest)] = append([]byte(nil), value...)
		}
		return true, nil
	})
	return all, err
}

// outcomeErrors are the errors that an outcome may keep, by number. Numbers are
// stored: new ones go to the end.
var outcomeErrors = [...]error{
	1: ErrNotFound, ErrExist, ErrNotDir, ErrIsDir, ErrNotEmpty, ErrNameTooLong, ErrInvalid, ErrPerm, ErrTooManyLinks,
	ErrNoAttr, ErrAttrTooLarge, ErrAttrSpace, ErrNotSupported, ErrAccess, ErrConflict, ErrLoop, ErrTrimmed, ErrLocked,
	ErrSession, ErrStale, ErrNoInvite, ErrInviteExpired, ErrInviteUsed, ErrInviteBound, ErrNoMember, ErrMember,
	ErrNoCluster, ErrCluster, ErrMembers, ErrNotYet, ErrTurn, ErrDeadlock, ErrPatches, ErrPromise, ErrStep,
}

// storedError is an error with more to say than which it is.
type storedError struct {
	kind error
	text string
}

func (e *storedError) Error() string { return e.text }
func (e *storedError) Unwrap() error { return e.kind }

func encodeOutcome(r *Result) []byte {
	m := &namespacepb.Outcome{
		Index: r.Index, FailedOp: uint32(r.FailedOp), Orphan: uint64(r.Orphan), Replaced: uint64(r.Replaced), More: r.More,
	}
	if r.Err != nil {
		m.Error = uint32(len(outcomeErrors)) // unknown to this table
		for i := len(outcomeErrors) - 1; i > 0; i-- {
			// From the end, so that ErrLoop comes before ErrInvalid, which it wraps.
			if errors.Is(r.Err, outcomeErrors[i]) {
				m.Error = uint32(i)
				break
			}
		}
		m.ErrorText = []byte(r.Err.Error())
	}
	for _, n := range r.Inodes {
		m.Inodes = append(m.Inodes, uint64(n.Ino))
	}
	return marshalRecord(m)
}

func (s *State) decodeOutcome(b []byte) (Result, error) {
	var m namespacepb.Outcome
	if err := unmarshal(b, &m); err != nil {
		return Result{}, fmt.Errorf("outcome: %w", err)
	}
	r := Result{
		Index: m.Index, FailedOp: int(m.FailedOp), Orphan: Ino(m.Orphan), Replaced: Ino(m.Replaced), More: m.More,
		Inodes: make([]Inode, len(m.Inodes)),
	}
	if m.Error > 0 {
		kind := ErrInvalid
		if int(m.Error) < len(outcomeErrors) {
			kind = outcomeErrors[m.Error]
		}
		if r.Err = kind; kind.Error() != string(m.ErrorText) {
			r.Err = &storedError{kind, string(m.ErrorText)}
		}
	}
	for i, n := range m.Inodes {
		if n == 0 {
			continue
		}
		inode, err := s.Inode(Ino(n))
		if errors.Is(err, ErrNotFound) {
			inode = Inode{Ino: Ino(n)}
		} else if err != nil {
			return r, err
		}
		r.Inodes[i] = inode
	}
	return r, nil
}
