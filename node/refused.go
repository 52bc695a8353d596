package node

import (
	"context"
	"errors"
	"slices"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/node/control"
	"github.com/cairnfs/cairn/p2p"
)

// failed ends the node's part in the cluster. That it is refused for good is kept, so
// that the next start says so at once, also when nobody else can be reached.
func (c *cluster) failed(err error) {
	var r *raft.Refusal
	if errors.As(err, &r) && r.Final() {
		c.n.refusal.Store(r)
		if writeErr := c.n.changeMember(func(*memberFile) {}); writeErr != nil {
			c.log.Warn("cannot note that this node is refused", "err", writeErr)
		}
	}
	c.n.log.fail(err)
}

// changeMember changes the file member, durably, while the node runs.
func (n *Node) changeMember(change func(*memberFile)) error {
	n.membering.Lock()
	defer n.membering.Unlock()
	m := n.memberFile
	change(&m)
	m.Refused = n.refusal.Load()
	if err := writeMember(n.o.FS, n.o.Dir, m); err != nil {
		return err
	}
	change(&n.memberFile)
	return nil
}

// refused returns why the node is a member no more, nil if it is one.
func (n *Node) refused() *control.RefusalStatus {
	r := n.refusal.Load()
	if r == nil {
		return nil
	}
	return &control.RefusalStatus{Kind: string(r.Kind), Reason: r.Error()}
}

// raise raises the namespace's version when all members' programs know a later one
// (rule 5).
func (c *cluster) raise(ctx context.Context) {
	v := c.n.state.View()
	if v == nil {
		return
	}
	to, _ := planVersion(v, c.knows)
	if to <= c.n.state.Version() {
		return
	}
	if _, err := c.n.propose(ctx, &namespace.SetVersion{Version: to, Epoch: v.Epoch}); err != nil && ctx.Err() == nil {
		c.log.Debug("the cluster's version is raised later", "err", err)
		return
	}
	c.log.Info("the cluster's version is raised", "version", to)
}

// knows returns the version that a member's program knows: what it has said lately,
// else what is registered.
func (c *cluster) knows(m *p2p.Member) uint32 {
	if m.ID == c.self {
		return namespace.Version
	}
	if version, _, met := c.group.Met(m.ID); met {
		return max(version, 1)
	}
	return max(m.Version, 1)
}

// planVersion returns the latest version that all members know, and who knows no later
// one.
func planVersion(v *p2p.View, knows func(*p2p.Member) uint32) (version uint32, lagging []p2p.PeerID) {
	for i := range v.Members {
		m := &v.Members[i]
		switch n := knows(m); {
		case version == 0 || n < version:
			version, lagging = n, []p2p.PeerID{m.ID}
		case n == version:
			lagging = append(lagging, m.ID)
		}
	}
	slices.Sort(lagging)
	return version, lagging
}

// raiseAlone raises the version of the namespace of a node on its own, which has nobody
// to agree with.
func (n *Node) raiseAlone(ctx context.Context) error {
	if n.state.Version() >= namespace.Version {
		return nil
	}
	_, err := n.propose(ctx, &namespace.SetVersion{Version: namespace.Version})
	return err
}
