package node

import (
	"context"
	"errors"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/p2p"
)

// Recovered says what has become of a cluster that lost its majority.
type Recovered struct {
	Cluster     string
	Entry, Term uint64 // where this node's log ended
	Generation  uint64
	Removed     []p2p.Member
}

// Recover makes this node, which must not be running, the only member of its
// cluster. Everything in its log counts, also what no majority is known to have: it
// may have been acknowledged.
//
// Errors: those of Open; namespace.ErrNoCluster.
func Recover(ctx context.Context, o Options) (r Recovered, err error) {
	o.Offline = true
	n, err := Open(ctx, o)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	if n.state.View() == nil {
		return r, namespace.ErrNoCluster
	}
	_, self, err := makeKey(n.o.FS, n.o.Dir, n.o.Random)
	if err != nil {
		return r, err
	}
	members := n.state.View().Members
	r.Entry, r.Term, err = raft.Force(raft.Options{
		ID: n.memberFile.Raft, State: n.state, DB: n.index.Pebble(), Journal: n.journal, Mark: n.blocks.Mark, Logger: n.o.Logger,
	}, n.logRecords, self, n.o.Now().UnixNano())
	if err != nil {
		return r, err
	}
	for _, m := range members {
		if m.ID != self {
			r.Removed = append(r.Removed, m)
		}
	}
	// Who has refused this node is a member no more.
	n.refusal.Store(nil)
	if err := n.changeMember(func(*memberFile) {}); err != nil {
		return r, err
	}
	v := n.state.View()
	r.Cluster, r.Generation = v.Cluster, v.Generation
	return r, n.index.Flush()
}
