package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/node/control"
	"github.com/cairnfs/cairn/p2p"
)

// findMember returns the member that a text names: its id, the end of it, or its
// name, if that is one member's only.
func (n *Node) findMember(text string) (*p2p.Member, error) {
	v := n.state.View()
	if v == nil {
		return nil, namespace.ErrNoCluster
	}
	var found []*p2p.Member
	for i := range v.Members {
		m := &v.Members[i]
		if string(m.ID) == text {
			return m, nil
		}
		if len(text) >= 6 && strings.HasSuffix(string(m.ID), text) || m.Name == text {
			found = append(found, m)
		}
	}
	switch len(found) {
	case 0:
		return nil, namespace.ErrNoMember
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%w: %d members are called that; give the id", namespace.ErrNoMember, len(found))
}

// RemovePeer ends a membership at once.
func (n *Node) RemovePeer(ctx context.Context, text string) error {
	m, err := n.findMember(text)
	if err != nil {
		return err
	}
	c := n.cluster.Load()
	if c == nil {
		return ErrOffline
	}
	if m.ID == c.self {
		return errors.New("a node cannot remove itself: do it on another one")
	}
	// Its vote first: of two voters, both must agree on the end of one.
	leaving := p2p.Member{ID: m.ID, State: p2p.Leaving}
	if _, err := n.propose(ctx, &namespace.SetMember{Member: leaving, Mask: namespace.MemberState}); err != nil {
		return err
	}
	if err := c.awaitNoVote(ctx, m.Raft); err != nil {
		return err
	}
	if _, err := n.propose(ctx, &namespace.RemoveMember{ID: m.ID, Raft: m.Raft}); err != nil {
		return err
	}
	c.attend()
	return nil
}

// votePatience is how long a member's vote may take to end, before it is removed
// all the same: the others may be a majority without it.
const votePatience = 10 * time.Second

// awaitNoVote waits until a member does not vote any more, as far as this node knows.
func (c *cluster) awaitNoVote(ctx context.Context, raft uint64) error {
	ctx, cancel := context.WithTimeout(ctx, votePatience)
	defer cancel()
	for slices.Contains(c.group.Status().Voters, raft) {
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				c.log.Warn("a member is removed although it may still vote")
				return nil
			}
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// errLastOwner says that nobody could take the blocks of a member.
var errLastOwner = errors.New("no other member stores blocks, so nobody could take its blocks: let another one join, or undo the draining of one (cairn peers drain --undo)")

// DrainPeer has the blocks of a member moved to others, or no longer.
func (n *Node) DrainPeer(ctx context.Context, text string, undo bool) error {
	m, err := n.findMember(text)
	if err != nil {
		return err
	}
	change := p2p.Member{ID: m.ID, State: p2p.Draining}
	if undo {
		change.State = p2p.Active
	} else if v := n.state.View(); m.Owns() && !slices.ContainsFunc(v.Members, func(o p2p.Member) bool { return o.ID != m.ID && o.Owns() }) {
		return errLastOwner
	}
	_, err = n.propose(ctx, &namespace.SetMember{Member: change, Mask: namespace.MemberState})
	return err
}

// SetCopies sets how many nodes hold each block, 0 for the default.
func (n *Node) SetCopies(ctx context.Context, copies int) error {
	_, err := n.propose(ctx, &namespace.SetCopies{Copies: copies})
	return err
}

// clusterStatus adds what the node knows of its cluster.
func (n *Node) clusterStatus(ctx context.Context, s *control.Status) {
	c, v := n.cluster.Load(), n.state.View()
	if v == nil {
		if n.memberFile.Joined { // and has not run yet
			s.Cluster = &control.ClusterStatus{ID: n.memberFile.Cluster, Refused: n.refused()}
		}
		return
	}
	s.Cluster = &control.ClusterStatus{
		ID: v.Cluster, Epoch: v.Epoch, Copies: v.Owners(), Generation: v.Generation,
		Version: n.state.Version(), Knows: namespace.Version, Refused: n.refused(),
	}
	s.Peers = []control.PeerStatus{}
	if c == nil {
		return
	}
	s.Node = &control.NodeStatus{ID: string(c.self), Addrs: c.host.Addrs()}
	if m := v.Member(c.self); m != nil {
		s.Node.Name, s.Node.Role, s.Node.State = m.Name, m.Role.String(), m.State.String()
	}
	if version, lagging := planVersion(v, c.knows); version < namespace.Version {
		for _, id := range lagging {
			s.Cluster.Lagging = append(s.Cluster.Lagging, string(id))
		}
	}
	g := c.group.Status()
	s.Raft = &control.RaftStatus{Role: g.Role, Leader: string(g.Leader), Term: g.Term, AppliedIndex: n.state.Applied(), Session: uint64(c.group.Session()),
		Voter: slices.Contains(g.Voters, c.member.Raft)}
	r := c.replica.Status()
	s.Blocks = &control.BlocksStatus{
		UnderReplicated: r.UnderReplicated, PendingReplication: r.Pending, Repaired: r.Repaired,
		Droppable: r.Droppable, Dropped: r.Dropped, Checked: r.Checked, PassDone: r.PassDone, Lost: r.Lost,
	}
	sent, received := c.host.Traffic()
	s.Node.SentBytes, s.Node.ReceivedBytes = sent, received
	s.Peers = c.peerStatus(ctx, v, g.Voters)
	if slices.ContainsFunc(v.Members, func(m p2p.Member) bool { return m.ID == c.self && m.State == p2p.Draining }) {
		s.Node.Drained = c.replica.Drained()
	}
}

// peerStatus asks the other members, all at once, what they store.
func (c *cluster) peerStatus(ctx context.Context, v *p2p.View, voters []uint64) []control.PeerStatus {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	all := make([]control.PeerStatus, 0, len(v.Members))
	var asked sync.WaitGroup
	for i := range v.Members {
		m := &v.Members[i]
		if m.ID == c.self {
			continue
		}
		health, seen := c.gossip.Health(m.ID)
		p := control.PeerStatus{
			ID: string(m.ID), Name: m.Name, Addrs: m.Addrs, Role: m.Role.String(), Voter: slices.Contains(voters, m.Raft),
			State: health.String(), CapacityBytes: int64(m.Capacity),
		}
		if !seen.IsZero() {
			p.LastSeen = seen.UTC().Truncate(time.Second).Format(time.RFC3339)
		}
		if m.State == p2p.Draining {
			p.State = m.State.String()
		}
		p.Away = m.State == p2p.Away
		if _, ahead, met := c.group.Met(m.ID); met {
			p.ClockAheadMillis = ahead.Milliseconds()
		}
		all = append(all, p)
	}
	for i := range all {
		p := &all[i]
		if p.State == p2p.Dead.String() {
			continue
		}
		asked.Go(func() {
			answer, err := c.host.Call(ctx, p2p.PeerID(p.ID), protocolInfo)
			var info nodeInfo
			if err == nil && json.Unmarshal(answer, &info) == nil {
				p.UsedBytes, p.CapacityBytes, p.Drained = info.UsedBytes, info.CapacityBytes, info.Drained
			}
		})
	}
	asked.Wait()
	return all
}
