package namespace

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"google.golang.org/protobuf/proto"

	"github.com/cairnfs/cairn/namespace/namespacepb"
	"github.com/cairnfs/cairn/p2p"
)

// The registry: who belongs to the cluster and who is invited. It is a few dozen
// records, so changing them is not made fast.

// staged reads a record into m. The value returned takes what replaces it.
func (t *txn) staged(key []byte, m proto.Message) (*stagedValue, bool, error) {
	v, err := t.value(key)
	if err != nil || v.value == nil {
		return v, false, err
	}
	if err := unmarshal(v.value, m); err != nil {
		return nil, false, t.fail(err)
	}
	return v, true, nil
}

// changeCluster calls fn with the cluster's record and gives it a new epoch.
func (t *txn) changeCluster(fn func(*namespacepb.Cluster) error) error {
	var c namespacepb.Cluster
	v, ok, err := t.staged(tagKey(nil, tagCluster), &c)
	if err != nil {
		return err
	}
	if !ok {
		return ErrNoCluster
	}
	if err := fn(&c); err != nil {
		return err
	}
	c.Epoch++
	v.value = marshalRecord(&c)
	t.cluster.changed = true
	return nil
}

func (t *txn) foundCluster(op *FoundCluster) error {
	if id, err := hex.DecodeString(op.ID); err != nil || len(id) != 16 {
		return fmt.Errorf("%w: id of a cluster %q", ErrInvalid, op.ID)
	}
	if err := checkMember(&op.First, memberAll); err != nil {
		return err
	}
	v, err := t.value(tagKey(nil, tagCluster))
	if err != nil {
		return err
	}
	if v.value != nil {
		return ErrCluster
	}
	v.value = marshalRecord(&namespacepb.Cluster{Id: []byte(op.ID), Epoch: 1, NextRaft: 2})
	t.cluster.changed = true
	m := encodeMember(&op.First)
	m.Raft = 1
	return t.putMember(op.First.ID, m)
}

func (t *txn) putMember(id p2p.PeerID, m *namespacepb.Member) error {
	v, err := t.value(stringKey(tagMember, string(id)))
	if err != nil {
		return err
	}
	m.Id = nil
	v.value = marshalRecord(m)
	return nil
}

// checkMember returns ErrInvalid if what the mask says of m cannot be registered.
func checkMember(m *p2p.Member, mask MemberMask) error {
	bad := ""
	switch {
	case m.ID == "" || len(m.ID) > 128 || strings.IndexByte(string(m.ID), 0) >= 0:
		bad = "id"
	case mask&^memberAll != 0:
		bad = "mask"
	case mask&MemberName != 0 && len(m.Name) > MaxMemberName:
		bad = "name"
	case mask&MemberAddrs != 0 && (len(m.Addrs) > MaxAddrs || slices.ContainsFunc(m.Addrs, func(a string) bool { return len(a) > MaxAddr })):
		bad = "addresses"
	case mask&MemberState != 0 && (m.State < p2p.Active || m.State > p2p.Leaving):
		bad = "state"
	default:
		return nil
	}
	return fmt.Errorf("%w: %s of a member", ErrInvalid, bad)
}

func checkRole(r p2p.Role) error {
	if r != p2p.RoleStorage && r != p2p.RoleClient {
		return fmt.Errorf("%w: %v", ErrInvalid, r)
	}
	return nil
}

func (t *txn) addInvite(op *AddInvite) error {
	if op.Uses < 1 || op.Uses > MaxMembers {
		return fmt.Errorf("%w: an invitation for %d members", ErrInvalid, op.Uses)
	}
	if err := checkRole(op.Role); err != nil {
		return err
	}
	if t.s.View() == nil {
		return ErrNoCluster
	}
	if err := t.dropExpired(); err != nil {
		return err
	}
	v, err := t.value(stringKey(tagInvite, string(op.ID[:])))
	if err != nil {
		return err
	}
	if v.value != nil {
		return ErrExist
	}
	v.value = marshalRecord(&namespacepb.Invite{
		Key: op.Key[:], Expires: op.Expires, Uses: uint32(op.Uses), Role: uint32(op.Role), Peer: []byte(op.Peer),
	})
	t.cluster.changed = true
	return nil
}

// keepExpired is how long an invitation is kept after it expired, in nanoseconds,
// so that who comes late is told why.
const keepExpired = int64(7 * 24 * 3600e9)

// dropExpired removes old invitations. ErrInvalid if too many remain.
func (t *txn) dropExpired() error {
	count := 0
	var old [][]byte
	err := scan(t.s.db, tagKey(nil, tagInvite), func(key, value []byte) (bool, error) {
		var m namespacepb.Invite
		if err := unmarshal(value, &m); err != nil {
			return false, err
		}
		if m.Expires+keepExpired < t.now {
			old = append(old, bytes.Clone(key))
		} else {
			count++
		}
		return true, nil
	})
	if err != nil {
		return t.fail(err)
	}
	for _, key := range old {
		v, err := t.value(key)
		if err != nil {
			return err
		}
		v.value = nil
	}
	if count >= MaxInvites {
		return fmt.Errorf("%w: %d invitations", ErrInvalid, count)
	}
	return nil
}

func (t *txn) dropInvite(op *DropInvite) error {
	var inv namespacepb.Invite
	v, ok, err := t.staged(stringKey(tagInvite, string(op.ID[:])), &inv)
	if err != nil {
		return err
	}
	if !ok || inv.Revoked {
		return ErrNoInvite
	}
	inv.Revoked, inv.Uses = true, 0
	v.value = marshalRecord(&inv)
	t.cluster.changed = true
	return nil
}

func (t *txn) redeem(op *Redeem) error {
	if err := checkMember(&op.Member, memberAll&^MemberState); err != nil {
		return err
	}
	var inv namespacepb.Invite
	v, ok, err := t.staged(stringKey(tagInvite, string(op.Invite[:])), &inv)
	if err != nil {
		return err
	}
	if !ok || inv.Revoked {
		return ErrNoInvite
	}
	id := op.Member.ID
	var member namespacepb.Member
	_, isMember, err := t.staged(stringKey(tagMember, string(id)), &member)
	switch {
	case err != nil:
		return err
	case isMember && bytes.Equal(member.Invite, op.Invite[:]):
		return nil // again
	case isMember:
		return ErrMember
	case slices.ContainsFunc(inv.Redeemed, func(b []byte) bool { return string(b) == string(id) }):
		return ErrInviteUsed // and removed since
	case inv.Expires < t.now:
		return ErrInviteExpired
	case inv.Uses == 0:
		return ErrInviteUsed
	case len(inv.Peer) > 0 && string(inv.Peer) != string(id):
		return ErrInviteBound
	case len(t.s.View().Members) >= MaxMembers:
		return fmt.Errorf("%w: %d members", ErrInvalid, MaxMembers)
	}
	inv.Uses--
	inv.Redeemed = append(inv.Redeemed, []byte(id))
	v.value = marshalRecord(&inv)
	m := encodeMember(&op.Member)
	m.Role, m.State, m.Invite = inv.Role, uint32(p2p.Active), op.Invite[:]
	return t.changeCluster(func(c *namespacepb.Cluster) error {
		m.Raft = c.NextRaft
		c.NextRaft++
		return t.putMember(id, m)
	})
}

func (t *txn) setMember(op *SetMember) error {
	if err := checkMember(&op.Member, op.Mask); err != nil {
		return err
	}
	var m namespacepb.Member
	v, ok, err := t.staged(stringKey(tagMember, string(op.Member.ID)), &m)
	if err != nil {
		return err
	}
	if !ok {
		return ErrNoMember
	}
	n := encodeMember(&op.Member)
	if op.Mask&MemberName != 0 {
		m.Name = n.Name
	}
	if op.Mask&MemberAddrs != 0 {
		m.Addrs = n.Addrs
	}
	if op.Mask&MemberState != 0 {
		m.State = n.State
	}
	if op.Mask&MemberCapacity != 0 {
		m.Capacity = n.Capacity
	}
	if op.Mask&MemberVersion != 0 {
		m.Version = n.Version
	}
	v.value = marshalRecord(&m)
	return t.changeCluster(func(*namespacepb.Cluster) error { return nil })
}

func (t *txn) removeMember(op *RemoveMember) error {
	var m namespacepb.Member
	v, ok, err := t.staged(stringKey(tagMember, string(op.ID)), &m)
	if err != nil {
		return err
	}
	if !ok || op.Raft != 0 && op.Raft != m.Raft {
		return ErrNoMember
	}
	v.value = nil
	if err := t.endSessionsOf(op.ID); err != nil {
		return err
	}
	return t.changeCluster(func(*namespacepb.Cluster) error { return nil })
}

func (t *txn) forceCluster(op *ForceCluster) error {
	view := t.s.View()
	if view == nil {
		return ErrNoCluster
	}
	if view.Member(op.Self) == nil {
		return ErrNoMember
	}
	for _, m := range view.Members {
		if m.ID == op.Self {
			m.State = p2p.Active
			if err := t.setMember(&SetMember{Member: m, Mask: MemberState}); err != nil {
				return err
			}
		} else if err := t.removeMember(&RemoveMember{ID: m.ID}); err != nil {
			return err
		}
	}
	if err := t.endSessionsOf(op.Self); err != nil {
		return err
	}
	return t.changeCluster(func(c *namespacepb.Cluster) error {
		c.Generation++
		return nil
	})
}

func (t *txn) setCopies(op *SetCopies) error {
	if op.Copies < 0 || op.Copies > MaxCopies {
		return fmt.Errorf("%w: %d copies, at most %d", ErrInvalid, op.Copies, MaxCopies)
	}
	return t.changeCluster(func(c *namespacepb.Cluster) error {
		c.Copies = uint32(op.Copies)
		return nil
	})
}

// loadView reads the members, nil if there is no cluster.
func loadView(db pebble.Reader) (*p2p.View, error) {
	value, ok, err := get(db, tagKey(nil, tagCluster))
	if err != nil || !ok {
		return nil, err
	}
	var c namespacepb.Cluster
	if err := unmarshal(value, &c); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	view := &p2p.View{Cluster: string(c.Id), Epoch: c.Epoch, Generation: c.Generation, Next: c.NextRaft, Copies: int(c.Copies)}
	err = scan(db, tagKey(nil, tagMember), func(key, value []byte) (bool, error) {
		var m namespacepb.Member
		if err := unmarshal(value, &m); err != nil {
			return false, fmt.Errorf("member %q: %w", key[2:], err)
		}
		m.Id = bytes.Clone(key[2:])
		view.Members = append(view.Members, decodeMember(&m))
		return true, nil
	})
	return view, err
}

// Invite is an invitation.
type Invite struct {
	ID      InviteID
	Key     [32]byte
	Expires int64 // nanoseconds since 1970
	Uses    int   // left
	Role    p2p.Role
	Peer    p2p.PeerID
}

// Invite returns an invitation, ErrNoInvite if there is none.
func (s *State) Invite(id InviteID) (Invite, error) {
	value, ok, err := get(s.db, stringKey(tagInvite, string(id[:])))
	if err != nil {
		return Invite{}, err
	}
	if !ok {
		return Invite{}, ErrNoInvite
	}
	return decodeInvite(id, value)
}

// Invites returns all invitations, also those that are used up or expired.
func (s *State) Invites() ([]Invite, error) {
	var all []Invite
	err := s.scan(tagKey(nil, tagInvite), func(key, value []byte) (bool, error) {
		if len(key) != 2+16 {
			return false, fmt.Errorf("%w: invitation key %x", ErrCorrupt, key)
		}
		i, err := decodeInvite(InviteID(key[2:]), value)
		all = append(all, i)
		return err == nil, err
	})
	return all, err
}

func decodeInvite(id InviteID, value []byte) (Invite, error) {
	var m namespacepb.Invite
	if err := unmarshal(value, &m); err != nil {
		return Invite{}, fmt.Errorf("invitation: %w", err)
	}
	i := Invite{ID: id, Expires: m.Expires, Uses: int(m.Uses), Role: p2p.Role(m.Role), Peer: p2p.PeerID(m.Peer)}
	if copy(i.Key[:], m.Key) != len(i.Key) {
		return Invite{}, fmt.Errorf("%w: key of an invitation", ErrCorrupt)
	}
	return i, nil
}
