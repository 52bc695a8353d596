package membership

import (
	"errors"
	"sync/atomic"

	"github.com/cairnfs/cairn/p2p"
)

// errNotMember is the answer to whoever is not in the registry.
var errNotMember = errors.New("not a member of the cluster")

// registry answers quickly who is a member now: memberlist asks about each of a
// thousand names while it holds its lock.
type registry struct {
	self p2p.PeerID
	now  func() p2p.View

	cached atomic.Pointer[roster]
}

// roster is the members of one epoch.
type roster struct {
	cluster string
	epoch   uint64
	ids     []p2p.PeerID // without this node
	set     map[p2p.PeerID]struct{}
}

// roster returns the members as of now.
func (r *registry) roster() *roster {
	v := r.now()
	if c := r.cached.Load(); c != nil && c.epoch == v.Epoch && c.cluster == v.Cluster {
		return c
	}
	c := &roster{cluster: v.Cluster, epoch: v.Epoch, set: make(map[p2p.PeerID]struct{}, len(v.Members))}
	for i := range v.Members {
		id := v.Members[i].ID
		c.set[id] = struct{}{}
		if id != r.self {
			c.ids = append(c.ids, id)
		}
	}
	r.cached.Store(c)
	return c
}

// has reports whether id is a member now.
func (r *registry) has(id p2p.PeerID) bool {
	_, ok := r.roster().set[id]
	return ok
}

// others returns the members but this node. The slice must not be changed.
func (r *registry) others() []p2p.PeerID { return r.roster().ids }
