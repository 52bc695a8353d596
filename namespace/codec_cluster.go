package namespace

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/cairnfs/cairn/namespace/namespacepb"
	"github.com/cairnfs/cairn/p2p"
)

// The bytes of the ops on the cluster's records; see codec.go.

func encodeMember(m *p2p.Member) *namespacepb.Member {
	p := &namespacepb.Member{
		Id: []byte(m.ID), Raft: m.Raft, Name: []byte(m.Name), Role: uint32(m.Role), State: uint32(m.State), Capacity: m.Capacity,
		Version: m.Version,
	}
	for _, a := range m.Addrs {
		p.Addrs = append(p.Addrs, []byte(a))
	}
	return p
}

func decodeMember(p *namespacepb.Member) p2p.Member {
	m := p2p.Member{
		ID: p2p.PeerID(p.GetId()), Raft: p.GetRaft(), Name: string(p.GetName()),
		Role: p2p.Role(p.GetRole()), State: p2p.MemberState(p.GetState()), Capacity: p.GetCapacity(),
		Version: p.GetVersion(),
	}
	for _, a := range p.GetAddrs() {
		m.Addrs = append(m.Addrs, string(a))
	}
	return m
}

func (op *FoundCluster) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_FoundCluster{FoundCluster: &namespacepb.Cluster{Id: []byte(op.ID), First: encodeMember(&op.First)}}
}

func (op *AddInvite) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_AddInvite{AddInvite: &namespacepb.Invite{
		Id: op.ID[:], Key: op.Key[:], Expires: op.Expires, Uses: uint32(op.Uses), Role: uint32(op.Role), Peer: []byte(op.Peer)}}
}

func (op *DropInvite) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_DropInvite{DropInvite: &namespacepb.DropInvite{Id: op.ID[:]}}
}

func (op *Redeem) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_Redeem{Redeem: &namespacepb.Redeem{Invite: op.Invite[:], Member: encodeMember(&op.Member)}}
}

func (op *SetMember) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_SetMember{SetMember: &namespacepb.SetMember{Member: encodeMember(&op.Member), Mask: uint32(op.Mask)}}
}

func (op *RemoveMember) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_RemoveMember{RemoveMember: &namespacepb.RemoveMember{Id: []byte(op.ID), Raft: op.Raft}}
}

func (op *ForceCluster) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_ForceCluster{ForceCluster: &namespacepb.ForceCluster{Self: []byte(op.Self)}}
}

func (op *SetCopies) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_SetCopies{SetCopies: &namespacepb.SetCopies{Copies: uint32(op.Copies)}}
}

func (op *OpenSession) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_OpenSession{OpenSession: &namespacepb.OpenSession{Peer: []byte(op.Peer)}}
}

func (op *EndSession) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_EndSession{EndSession: &namespacepb.EndSession{Session: uint64(op.Session)}}
}

func (op *LockRange) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_LockRange{LockRange: &namespacepb.LockRange{
		Session: uint64(op.Session), Ino: uint64(op.Ino), Kind: uint32(op.Kind), Start: op.Start, End: op.End, Mode: uint32(op.Mode)}}
}

func (op *TakeTurn) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_TakeTurn{TakeTurn: &namespacepb.TakeTurn{Session: uint64(op.Session), Ino: uint64(op.Ino), Leave: op.Leave}}
}

func (op *AwaitLock) encode(p *namespacepb.Op) {
	m := &namespacepb.AwaitLock{Session: uint64(op.Session), Id: op.ID}
	if op.Wait != nil {
		m.Wait = encodeWait(op.Wait)
	}
	p.Kind = &namespacepb.Op_AwaitLock{AwaitLock: m}
}

// decodeClusterOp is decodeOp for them; without an op or error p is none of them.
func decodeClusterOp(p *namespacepb.Op) (body proto.Message, op Op, err error) {
	switch k := p.Kind.(type) {
	case *namespacepb.Op_FoundCluster:
		c := k.FoundCluster
		return c, &FoundCluster{ID: string(c.GetId()), First: decodeMember(c.GetFirst())}, known(c.GetFirst())
	case *namespacepb.Op_AddInvite:
		m := k.AddInvite
		a := &AddInvite{Expires: m.GetExpires(), Uses: int(m.GetUses()), Role: p2p.Role(m.GetRole()), Peer: p2p.PeerID(m.GetPeer())}
		if copy(a.Key[:], m.GetKey()) != len(a.Key) || len(m.GetKey()) != len(a.Key) {
			err = fmt.Errorf("%w: key of an invitation", ErrCorrupt)
		}
		return m, a, firstError(err, inviteID(&a.ID, m.GetId()))
	case *namespacepb.Op_DropInvite:
		d := &DropInvite{}
		return k.DropInvite, d, inviteID(&d.ID, k.DropInvite.GetId())
	case *namespacepb.Op_Redeem:
		r := &Redeem{Member: decodeMember(k.Redeem.GetMember())}
		return k.Redeem, r, firstError(inviteID(&r.Invite, k.Redeem.GetInvite()), known(k.Redeem.GetMember()))
	case *namespacepb.Op_SetMember:
		m := k.SetMember
		return m, &SetMember{Member: decodeMember(m.GetMember()), Mask: MemberMask(m.GetMask())}, known(m.GetMember())
	case *namespacepb.Op_RemoveMember:
		return k.RemoveMember, &RemoveMember{ID: p2p.PeerID(k.RemoveMember.GetId()), Raft: k.RemoveMember.GetRaft()}, nil
	case *namespacepb.Op_ForceCluster:
		return k.ForceCluster, &ForceCluster{Self: p2p.PeerID(k.ForceCluster.GetSelf())}, nil
	case *namespacepb.Op_SetCopies:
		return k.SetCopies, &SetCopies{Copies: int(k.SetCopies.GetCopies())}, nil
	case *namespacepb.Op_OpenSession:
		return k.OpenSession, &OpenSession{Peer: p2p.PeerID(k.OpenSession.GetPeer())}, nil
	case *namespacepb.Op_EndSession:
		return k.EndSession, &EndSession{Session: SessionID(k.EndSession.GetSession())}, nil
	case *namespacepb.Op_SetVersion:
		return k.SetVersion, &SetVersion{Version: k.SetVersion.GetVersion(), Epoch: k.SetVersion.GetEpoch()}, nil
	case *namespacepb.Op_LockRange:
		l := k.LockRange
		if l.GetKind() > 255 || l.GetMode() > 255 {
			err = fmt.Errorf("%w: lock", ErrCorrupt)
		}
		return l, &LockRange{
			Session: SessionID(l.GetSession()), Ino: Ino(l.GetIno()), Kind: LockKind(l.GetKind()),
			Start: l.GetStart(), End: l.GetEnd(), Mode: LockMode(l.GetMode())}, err
	case *namespacepb.Op_TakeTurn:
		m := k.TakeTurn
		return m, &TakeTurn{Session: SessionID(m.GetSession()), Ino: Ino(m.GetIno()), Leave: m.GetLeave()}, nil
	case *namespacepb.Op_AwaitLock:
		m := k.AwaitLock
		op := &AwaitLock{Session: SessionID(m.GetSession()), ID: m.GetId()}
		if m.GetWait() != nil {
			op.Wait, err = decodeWait(m.GetWait())
		}
		return m, op, err
	}
	return nil, nil, nil
}

// known returns ErrVersion if a message within an op has fields of a later version.
func known(m *namespacepb.Member) error {
	if m != nil && hasUnknown(m) {
		return fmt.Errorf("%w: unknown field of a member", ErrVersion)
	}
	return nil
}

func inviteID(id *InviteID, b []byte) error {
	if len(b) != len(id) {
		return fmt.Errorf("%w: id of an invitation", ErrCorrupt)
	}
	copy(id[:], b)
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
