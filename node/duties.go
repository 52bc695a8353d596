package node

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// What members ask each other besides commands and blocks, and what the leader does
// for all: it removes inodes that no program has open any more, takes note of
// members that are away, and folds what others have left.

// protocolHolds asks which of some inodes a node has open, once it has applied a
// command: its index, then the inodes, 8 bytes each. The answer is a byte for each.
const protocolHolds p2p.Protocol = "/cairn/holds/1"

// protocolInfo asks what a node has stored; the answer is JSON.
const protocolInfo p2p.Protocol = "/cairn/info/1"

// nodeInfo is the answer.
type nodeInfo struct {
	UsedBytes     int64 `json:"usedBytes"`
	CapacityBytes int64 `json:"capacityBytes"`
	Drained       bool  `json:"drained"`
	// Secured is replica.Status.Secured.
	Secured uint64 `json:"secured,omitempty"`
}

const (
	askPatience = 2 * time.Second
	reapBatch   = namespace.MaxOps
	// awayAfter is how long a member may not answer until others own its blocks.
	awayAfter = 10 * time.Minute
	// foldEvery is how often is looked for patches that nobody folds.
	foldEvery = 20 * time.Second
)

// serve answers what other members ask.
func (c *cluster) serve() {
	c.host.HandleStranger(protocolJoin, c.handleJoin)
	c.host.Handle(protocolHolds, c.handleHolds)
	c.host.Handle(protocolCollect, func(context.Context, p2p.PeerID, []byte) ([]byte, error) {
		return json.Marshal(c.n.collect.report())
	})
	c.host.Handle(protocolMembers, c.handleMembers)
	c.host.Handle(protocolInfo, func(context.Context, p2p.PeerID, []byte) ([]byte, error) {
		return json.Marshal(c.info())
	})
}

func (c *cluster) info() nodeInfo {
	i := nodeInfo{UsedBytes: c.n.blocks.Stats().StoredBytes, Drained: c.replica.Drained(), Secured: c.replica.Status().Secured}
	if u, err := c.n.o.FS.GetDiskUsage(c.n.o.Dir); err == nil {
		i.CapacityBytes = int64(u.TotalBytes)
	}
	return i
}

func (c *cluster) handleHolds(ctx context.Context, _ p2p.PeerID, req []byte) ([]byte, error) {
	index, inos, err := parseHolds(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	for c.n.state.Applied() < index {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
	answer := make([]byte, len(inos))
	for i, held := range c.n.volume.Holds(inos) {
		if held {
			answer[i] = 1
		}
	}
	return answer, nil
}

// appendHolds appends the question that parseHolds reads.
func appendHolds(b []byte, index uint64, inos []namespace.Ino) []byte {
	b = binary.BigEndian.AppendUint64(b, index)
	for _, ino := range inos {
		b = binary.BigEndian.AppendUint64(b, uint64(ino))
	}
	return b
}

func parseHolds(req []byte) (index uint64, inos []namespace.Ino, err error) {
	if len(req) < 8 || len(req)%8 != 0 || len(req) > 8*(reapBatch+1) {
		return 0, nil, errors.New("question about open files cannot be read")
	}
	index = binary.BigEndian.Uint64(req)
	for b := req[8:]; len(b) > 0; b = b[8:] {
		inos = append(inos, namespace.Ino(binary.BigEndian.Uint64(b)))
	}
	return index, inos, nil
}

// lead does what the leader does for all.
func (c *cluster) lead(ctx context.Context) {
	if c.group.Status().Role != "leader" {
		clear(c.lastOK)
		return
	}
	if err := c.reap(ctx); err != nil && ctx.Err() == nil {
		c.log.Debug("files without a name are removed later", "err", err)
	}
	c.noteAway(ctx)
	c.raise(ctx)
	c.foldAbandoned()
}

// foldAbandoned has patches folded that no node adds to any more.
func (c *cluster) foldAbandoned() {
	now := c.n.o.Now()
	if now.Sub(c.folded) < foldEvery {
		return
	}
	c.folded = now
	if err := c.n.volume.FoldAbandoned(); err != nil {
		c.log.Warn("patches of files are folded later", "err", err)
	}
}

// reap removes inodes without a name that no live session has open (rule 10).
// Whoever has none any more cannot get it back: an inode without a name can be
// reached by open files only.
func (c *cluster) reap(ctx context.Context) error {
	orphans, err := c.n.state.Orphans()
	if err != nil || len(orphans) == 0 {
		return err
	}
	orphans = c.someOrphans(orphans)
	req := appendHolds(nil, c.n.state.Applied(), orphans)
	held := make([]bool, len(orphans))
	for _, peer := range c.n.state.Sessions() {
		ctx, cancel := context.WithTimeout(ctx, askPatience)
		answer, err := c.host.Call(ctx, peer, protocolHolds, req)
		cancel()
		if err != nil {
			return fmt.Errorf("member %s does not say what it has open: %w", peer.Short(), err)
		}
		if len(answer) != len(held) {
			return fmt.Errorf("member %s answers %d of %d questions", peer.Short(), len(answer), len(held))
		}
		for i := range held {
			held[i] = held[i] || answer[i] != 0
		}
	}
	var ops []namespace.Op
	for i, ino := range orphans {
		if !held[i] {
			ops = append(ops, &namespace.Reap{Ino: ino})
		}
	}
	if len(ops) == 0 {
		return nil
	}
	_, err = c.n.propose(ctx, ops...)
	return err
}

// someOrphans returns those of all, which are in order, that come after the ones it
// returned before, and begins anew after the last: many may be open for long.
func (c *cluster) someOrphans(all []namespace.Ino) []namespace.Ino {
	from, _ := slices.BinarySearch(all, c.reaped+1)
	if from == len(all) {
		from = 0
	}
	some := all[from:min(len(all), from+reapBatch)]
	c.reaped = some[len(some)-1]
	return some
}

// noteAway registers members that have not answered for long as away, so that
// others own their blocks; never so many that the fault must be elsewhere.
func (c *cluster) noteAway(ctx context.Context) {
	v := c.n.state.View()
	if v == nil {
		return
	}
	now := c.n.o.Now()
	away := planAway(v, c.self, func(id p2p.PeerID) bool {
		if h, _ := c.gossip.Health(id); h == p2p.Alive {
			delete(c.lastOK, id)
			return false
		}
		since, known := c.lastOK[id]
		if !known {
			c.lastOK[id] = now
			return false
		}
		return now.Sub(since) > awayAfter
	})
	for _, id := range away {
		c.log.Warn("a member has not answered for long; its blocks are copied to others", "peer", id)
		m := p2p.Member{ID: id, State: p2p.Away}
		if _, err := c.n.propose(ctx, &namespace.SetMember{Member: m, Mask: namespace.MemberState}); err != nil {
			return
		}
	}
}

// planAway returns which members are to be taken for away. When that would leave
// fewer than half of those that store blocks, the network is the likelier cause, and
// nobody is.
func planAway(v *p2p.View, self p2p.PeerID, silent func(p2p.PeerID) bool) []p2p.PeerID {
	var away []p2p.PeerID
	active, storage := 0, 0
	for i := range v.Members {
		m := &v.Members[i]
		if m.Role != p2p.RoleStorage || m.State == p2p.Leaving {
			continue
		}
		storage++
		quiet := m.ID != self && silent(m.ID)
		if m.State != p2p.Active {
			continue
		}
		active++
		if quiet {
			away = append(away, m.ID)
		}
	}
	if 2*(active-len(away)) < storage {
		return nil
	}
	return away
}

// prove looks whether it is known by now that all that was named before there were
// two owners is on two nodes: each member that stores blocks says so of what it has.
func (c *cluster) prove(ctx context.Context) {
	since, open := c.replica.Unproven()
	v := c.n.state.View()
	if !open || v == nil || c.replica.Status().Secured < since {
		return
	}
	for i := range v.Members {
		m := &v.Members[i]
		if m.ID == c.self || m.Role != p2p.RoleStorage {
			continue
		}
		if h, _ := c.gossip.Health(m.ID); h == p2p.Dead {
			return
		}
		ctx, cancel := context.WithTimeout(ctx, askPatience)
		answer, err := c.host.Call(ctx, m.ID, protocolInfo)
		cancel()
		var info nodeInfo
		if err != nil || json.Unmarshal(answer, &info) != nil || info.Secured < since {
			return
		}
	}
	c.attending.Lock()
	defer c.attending.Unlock()
	if !c.replica.SetProven(since) {
		return // there is one owner again
	}
	if err := c.setProven(true); err != nil {
		c.log.Warn("not noted that all is on two nodes; it is looked at again after the next start", "err", err)
	}
}

// setProven keeps for later runs what SetProven says. c.attending is held.
func (c *cluster) setProven(is bool) error {
	if c.n.memberFile.Proven == is {
		return nil
	}
	return c.n.changeMember(func(m *memberFile) { m.Proven = is })
}
