package namespace

import (
	"fmt"

	"github.com/cairnfs/cairn/p2p"
)

// What the members of a cluster agree on lies in the namespace, because it must
// have one order with the names: who is a member and who may become one
// (registry.go), which session a command belongs to (session.go), and who holds
// which lock (locks.go). The ops below change it.

// SessionID numbers the sessions of a cluster: it is the index of the command that
// opened it, so it is never given twice and a later one is greater.
type SessionID uint64

// InviteID names an invitation.
type InviteID [16]byte

// Limits of the cluster's records. A command that exceeds one fails with
// ErrInvalid.
const (
	MaxMembers    = 1000
	MaxInvites    = 1000
	MaxMemberName = 255
	MaxAddrs      = 32
	MaxAddr       = 255
	MaxCopies     = 16
	MaxLocks      = 8192 // ranges of an inode
	MaxWaits      = 256  // of all members, for locks
	MaxWaitRanges = 64   // that who waits holds
)

// FoundCluster makes a cluster of this node alone. ErrCluster if there is one.
type FoundCluster struct {
	ID    string // 32 hexadecimal digits
	First p2p.Member
}

// AddInvite lets somebody become a member.
type AddInvite struct {
	ID      InviteID
	Key     [32]byte // Ed25519, of the secret in the token
	Expires int64    // nanoseconds since 1970, compared with the Time of Redeem
	Uses    int
	Role    p2p.Role
	Peer    p2p.PeerID // who alone may redeem it; empty: anyone
}

// DropInvite revokes an invitation, which is kept until it is old. ErrNoInvite if
// there is none, or it is revoked already.
type DropInvite struct{ ID InviteID }

// Redeem makes a node a member. The proposer has checked that it knows the
// invitation's secret. A node that has redeemed the invitation before stays the
// member that it is.
//
// Errors: ErrNoInvite, ErrInviteExpired, ErrInviteUsed, ErrInviteBound, ErrMember.
type Redeem struct {
	Invite InviteID
	Member p2p.Member // without Raft and Role, which are given here
}

// MemberMask says which fields of a SetMember count.
type MemberMask uint32

// The bits of a MemberMask.
const (
	MemberName MemberMask = 1 << iota
	MemberAddrs
	MemberState
	MemberCapacity
	MemberVersion
	memberAll = MemberName | MemberAddrs | MemberState | MemberCapacity | MemberVersion
)

// SetMember changes what is registered of a member: ErrNoMember.
type SetMember struct {
	Member p2p.Member // ID and what Mask says
	Mask   MemberMask
}

// RemoveMember ends a membership and its sessions: ErrNoMember. Raft is the member's
// number, so that a late repetition does not hit who has joined again since; 0 is
// any.
type RemoveMember struct {
	ID   p2p.PeerID
	Raft uint64
}

// ForceCluster removes all members but one, and gives the cluster a new generation:
// what is left when the others are lost for good. ErrNoMember.
type ForceCluster struct{ Self p2p.PeerID }

// SetCopies sets how many nodes are to hold each block, 0 for the default.
type SetCopies struct{ Copies int }

// OpenSession opens a session of a member, whose number is the command's index,
// and ends those it had. ErrNoMember.
type OpenSession struct{ Peer p2p.PeerID }

// EndSession ends a session: its locks are free, and its commands that come later
// are refused. A session that has ended is no failure.
type EndSession struct{ Session SessionID }

// doCluster carries out an op on the cluster's records.
func (t *txn) doCluster(op Op) error {
	switch op := op.(type) {
	case *FoundCluster:
		return t.foundCluster(op)
	case *AddInvite:
		return t.addInvite(op)
	case *DropInvite:
		return t.dropInvite(op)
	case *Redeem:
		return t.redeem(op)
	case *SetMember:
		return t.setMember(op)
	case *RemoveMember:
		return t.removeMember(op)
	case *ForceCluster:
		return t.forceCluster(op)
	case *SetCopies:
		return t.setCopies(op)
	case *OpenSession:
		return t.openSession(op)
	case *EndSession:
		return t.endSession(op.Session)
	case *LockRange:
		return t.lockRange(op)
	case *SetVersion:
		return t.setVersion(op)
	case *TakeTurn:
		return t.takeTurn(op)
	case *AwaitLock:
		return t.awaitLock(op)
	}
	return fmt.Errorf("%w: no op", ErrInvalid)
}

// clusterTxn is what a command changes besides records: it reaches the State when
// the command is committed.
type clusterTxn struct {
	changed bool                   // members, or what the view has besides
	version uint32                 // that the namespace is raised to, 0: it is not
	opened  map[SessionID]*session // rarely any
	ended   []SessionID
	locks   []Ino        // inodes of which a lock was let go
	queues  map[Ino]bool // queues for content that have changed: whether anybody is in it

	session *session // that the command belongs to
	seq     uint64
	acked   uint64
	outcome []byte // of the command, to be kept
}

// publishCluster brings the State up to what was committed; State.mu is held.
func (t *txn) publishCluster() error {
	c := &t.cluster
	for id, s := range c.opened {
		t.s.sessions[id] = s
	}
	for _, id := range c.ended {
		delete(t.s.sessions, id)
	}
	if c.outcome != nil {
		c.session.keep(c.seq, c.acked, c.outcome)
	}
	if c.version != 0 {
		t.s.version = c.version
	}
	for ino, any := range c.queues {
		if any {
			t.s.queues[ino] = true
		} else {
			delete(t.s.queues, ino)
		}
	}
	if !c.changed {
		return nil
	}
	view, err := loadView(t.s.db)
	if err == nil {
		t.s.view = view
	}
	return err
}

// loadCluster reads what the State keeps in memory.
func (s *State) loadCluster() (err error) {
	if s.view, err = loadView(s.db); err != nil {
		return err
	}
	if s.sessions, err = loadSessions(s.db); err != nil {
		return err
	}
	s.queues, err = loadQueues(s.db)
	return err
}

// View returns the members, nil if there is no cluster.
func (s *State) View() *p2p.View {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.view
}
