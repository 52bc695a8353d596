package namespace

import (
	"errors"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/cairnfs/cairn/p2p"
)

// How commands reach the State of a group of several: in entries of a log that
// have places of their own, and with observers who want to know what others did.

// Position is a place in the log of a group: so many commands of this entry, and
// everything before it, are applied.
type Position struct {
	Entry    uint64
	Term     uint64 // of the entry
	Commands uint32
}

// Position returns the place of the last applied command, the zero Position if none
// came from a group's log.
func (s *State) Position() Position {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.meta.position
}

// ApplyAt carries out the command at the given place of the group's log. Its index
// is one more than that of the last. Errors are those of Apply.
func (s *State) ApplyAt(at Position, cmd *Command) (Result, error) {
	s.order.Lock()
	if err := s.prepare(s.meta.applied+1, cmd); err != nil {
		s.order.Unlock()
		return Result{}, err
	}
	s.txn.place = at
	p := Prepared{s}
	result := p.Result()
	return result, p.Commit()
}

// ApplyGroup takes note, at the given place of the group's log, of the group's
// configuration, in a form that only the log knows.
func (s *State) ApplyGroup(at Position, configuration []byte) error {
	s.order.Lock()
	defer s.order.Unlock()
	if s.failed != nil {
		return s.failed
	}
	meta := s.meta
	meta.position = at
	b := s.db.NewBatch()
	defer b.Close()
	err := errors.Join(
		b.Set(tagKey(nil, tagGroup), append([]byte{formatVersion}, configuration...), nil),
		b.Set(tagKey(nil, tagMeta), s.enc.encodeMeta(&meta), nil),
		b.Commit(pebble.NoSync))
	if err != nil {
		return s.fail(err)
	}
	s.mu.Lock()
	s.meta.position = at
	s.mu.Unlock()
	return nil
}

// Group returns the configuration noted last, nil if there is none.
func (s *State) Group() ([]byte, error) {
	value, ok, err := get(s.db, tagKey(nil, tagGroup))
	if err != nil || !ok {
		return nil, err
	}
	if len(value) == 0 || value[0] != formatVersion {
		return nil, ErrVersion
	}
	return value[1:], nil
}

// maxJump is how far ahead of log time one session's clock may pull it, in
// nanoseconds. Anything further counts only when another session agrees, or when
// there is no other: else a machine whose clock is years ahead would end history.
const maxJump = int64(time.Hour)

// timeClaim is what a session alone says: that log time should be much later. The zero
// timeClaim is none.
type timeClaim struct {
	session SessionID
	time    int64 // from claimsVersion on
}

// claimsVersion is from which version of the namespace on a claim ends with its session
// and counts no further than it goes.
const claimsVersion = 2

// nextLogTime returns log time as of the command, and what one session alone says then.
// When two sessions say that it should be much later, it goes no further than either
// vouches for: a clock that is years ahead may be the one or the other.
func (t *txn) nextLogTime(cmd *Command) (int64, timeClaim) {
	now, was := t.meta.logTime, timeClaim{t.meta.timeClaim, t.meta.timeClaimed}
	claim := timeClaim{session: cmd.Session}
	if t.s.version >= claimsVersion {
		claim.time = cmd.Time
	}
	switch {
	case cmd.Time <= now:
		return now, was
	case cmd.Session == 0, now == 0, cmd.Time-now <= maxJump, len(t.s.sessions) == 1:
		return cmd.Time, timeClaim{}
	case was.session == 0 || was.session == cmd.Session:
		return now, claim
	case was.time == 0 || cmd.Time-was.time <= maxJump:
		return cmd.Time, timeClaim{}
	}
	return was.time, claim
}

// Confirms reports whether another session than the given one says that log time should
// be much later, and now is, too: then any command of the given session moves it.
func (s *State) Confirms(own SessionID, now int64) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.meta.timeClaim != 0 && s.meta.timeClaim != own && now-s.meta.logTime > maxJump
}

// Change is what a command did, for those who keep copies of what it changed. It
// belongs to the observer.
type Change struct {
	Index   uint64
	Session SessionID // who proposed the command, 0 in a group of one
	Inodes  []InodeChange
	Entries []EntryChange
	// Unlocked are inodes of which a lock of a node was let go.
	Unlocked []Ino
	// Ended are sessions that are over.
	Ended []SessionID
	// Members says that the View is another one.
	Members bool
	// Step says that the collection is at another step.
	Step bool
	// All says that anything may have changed: the State was replaced as a whole.
	All bool
}

// InodeChange is a change of an inode.
type InodeChange struct {
	Ino     Ino
	New     bool // created
	Gone    bool // reaped
	Content bool // size or content, of a directory its entries, have changed
	Named   bool // by SetContent or PatchContent
	Folded  bool // content is the same, but patches of it were folded
	Size    int64
}

// EntryChange is a change of a directory's entry. Was and Is are the inodes before
// and after, 0 for none.
type EntryChange struct {
	Parent  Ino
	Name    string
	Was, Is Ino
}

// Observe has fn called after each command that changed something, in their order.
// It is called before the next command is applied and must not wait for anything.
// Observe must be called before the first command.
func (s *State) Observe(fn func(*Change)) { s.observers = append(s.observers, fn) }

// Told returns when observers have been told of all that readers have seen. Do not call
// it from one.
func (s *State) Told() {
	s.order.Lock()
	defer s.order.Unlock()
}

// tell tells the observers of the command just committed; order is held.
func (s *State) tell(t *txn) {
	if len(s.observers) == 0 || t.result.Err != nil {
		return
	}
	c := &Change{Index: t.index, Members: t.cluster.changed, Ended: t.cluster.ended, Unlocked: t.cluster.locks, Step: t.collect.Began == t.index}
	if ses := t.cluster.session; ses != nil {
		c.Session = ses.id
	}
	for _, n := range t.inodes[:t.nInodes] {
		if n.dirty {
			c.Inodes = append(c.Inodes, InodeChange{
				Ino: n.ino, New: !n.stored, Gone: !n.alive,
				Content: n.version != n.old.version || n.size != n.old.size,
				Named:   n.named,
				Folded:  n.stored && n.version == n.old.version && n.patches != n.old.patches,
				Size:    n.size,
			})
		}
	}
	for _, e := range t.entries[:t.nEntries] {
		if e.dentry.ino != e.old.ino {
			c.Entries = append(c.Entries, EntryChange{Parent: e.key.parent, Name: e.name, Was: e.old.ino, Is: e.ino})
		}
	}
	for _, fn := range s.observers {
		fn(c)
	}
}

// tellAll tells the observers that everything may be different.
func (s *State) tellAll(index uint64) {
	for _, fn := range s.observers {
		fn(&Change{Index: index, Members: true, Step: true, All: true})
	}
}

// MemberOf returns the member a session belongs to, empty if it has ended.
func (s *State) MemberOf(id SessionID) p2p.PeerID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if ses := s.sessions[id]; ses != nil {
		return ses.peer
	}
	return ""
}
