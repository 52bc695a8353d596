package control

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"time"
)

// Cluster is what a Node does as a member of a cluster.
type Cluster interface {
	// Invite returns a token with which others join. The first one makes the
	// node the first member of a new cluster.
	Invite(ctx context.Context, o InviteOptions) (Invitation, error)
	// RevokeInvite makes an invitation, named by its id or token, worthless.
	RevokeInvite(ctx context.Context, id string) error
	// RemovePeer ends a membership at once.
	RemovePeer(ctx context.Context, id string) error
	// DrainPeer has a member's blocks moved to others; undo takes that back.
	DrainPeer(ctx context.Context, id string, undo bool) error
	// SetCopies sets how many nodes hold each block, 0 for the default.
	SetCopies(ctx context.Context, copies int) error
}

// InviteOptions say whom to invite. The zero value invites one storage node within
// an hour.
type InviteOptions struct {
	TTL    time.Duration `json:"ttl"`
	Uses   int           `json:"uses"`
	Role   string        `json:"role"`   // storage or client
	Peer   string        `json:"peer"`   // id of who alone may join
	Listen string        `json:"listen"` // where the first member of a new cluster listens
}

// Invitation lets others join.
type Invitation struct {
	Token   string    `json:"token"` // secret
	ID      string    `json:"id"`
	Addrs   []string  `json:"addrs"` // of the member that gives it
	Expires time.Time `json:"expires"`
}

// NodeStatus is the node as a member.
type NodeStatus struct {
	ID    string   `json:"id"` // its peer id
	Name  string   `json:"name"`
	Addrs []string `json:"addrs"`
	Role  string   `json:"role"`
	State string   `json:"state"` // active, draining or away
	// Drained says that all blocks of a node that is draining are elsewhere.
	Drained       bool  `json:"drained,omitempty"`
	SentBytes     int64 `json:"sentBytes"` // to other members, since the start
	ReceivedBytes int64 `json:"receivedBytes"`
}

// ClusterStatus is what all members agree on.
type ClusterStatus struct {
	ID     string `json:"id"`
	Epoch  uint64 `json:"epoch"`  // of the membership
	Copies int    `json:"copies"` // nodes that hold each block
	// Generation is how often a new cluster was forced out of this one.
	Generation uint64 `json:"generation"`
	// Version is that of the formats in use; Knows the latest that this node's program
	// knows, and Lagging who knows no later one and so holds the others up.
	Version uint32   `json:"version"`
	Knows   uint32   `json:"knows"`
	Lagging []string `json:"lagging,omitempty"`
	// Refused says why this node cannot be a member any more.
	Refused *RefusalStatus `json:"refused,omitempty"`
}

// RefusalStatus is why the cluster does not take a node any more.
type RefusalStatus struct {
	Kind   string `json:"kind"` // removed, old generation, restored or other cluster
	Reason string `json:"reason"`
}

// RaftStatus is the node's part in ordering changes.
type RaftStatus struct {
	Role         string `json:"role"`   // leader, follower, candidate or learner
	Leader       string `json:"leader"` // peer id, empty if there is none
	Term         uint64 `json:"term"`
	AppliedIndex uint64 `json:"appliedIndex"`
	Session      uint64 `json:"session"` // 0: none, nothing can be changed here
	Voter        bool   `json:"voter"`   // this node is one
}

// PeerStatus is another member.
type PeerStatus struct {
	ID            string   `json:"id"`
	Name          string   `json:"name"`
	Addrs         []string `json:"addrs"`
	Role          string   `json:"role"`
	Voter         bool     `json:"voter"`
	State         string   `json:"state"` // alive, suspect, dead or draining
	Away          bool     `json:"away,omitempty"`
	Drained       bool     `json:"drained,omitempty"`
	LastSeen      string   `json:"lastSeen"` // RFC 3339, empty: never
	CapacityBytes int64    `json:"capacityBytes"`
	UsedBytes     int64    `json:"usedBytes"`
	// ClockAheadMillis is how far its clock is ahead of this node's, about.
	ClockAheadMillis int64 `json:"clockAheadMillis"`
}

// BlocksStatus is how well the blocks held here are copied.
type BlocksStatus struct {
	UnderReplicated    int64 `json:"underReplicated"`
	PendingReplication int64 `json:"pendingReplication"`
	Repaired           int64 `json:"repaired"`
	Droppable          int64 `json:"droppable"` // held, but not owned, and not dropped yet, though safe elsewhere
	Dropped            int64 `json:"dropped"`   // since the start
	Checked            int64 `json:"checked"`   // by the pass under way, or the last
	PassDone           bool  `json:"passDone"`
	Lost               int64 `json:"lost"` // times that one was damaged here and found nowhere else, since the start
}

// peerRequest names a member.
type peerRequest struct {
	ID   string `json:"id"`
	Undo bool   `json:"undo,omitempty"`
}

func (s *Server) clusterRoutes() map[string]handler {
	return map[string]handler{
		"POST /v1/invite": func(w http.ResponseWriter, r *http.Request) error {
			var o InviteOptions
			if err := readJSON(w, r, &o); err != nil {
				return err
			}
			i, err := s.node.Invite(r.Context(), o)
			if err != nil {
				return err
			}
			return sendJSON(w, i)
		},
		"POST /v1/invite/revoke": s.peerCall(func(ctx context.Context, p peerRequest) error { return s.node.RevokeInvite(ctx, p.ID) }),
		"POST /v1/peers/remove":  s.peerCall(func(ctx context.Context, p peerRequest) error { return s.node.RemovePeer(ctx, p.ID) }),
		"POST /v1/peers/drain":   s.peerCall(func(ctx context.Context, p peerRequest) error { return s.node.DrainPeer(ctx, p.ID, p.Undo) }),
		"POST /v1/copies": func(w http.ResponseWriter, r *http.Request) error {
			var copies int
			if err := readJSON(w, r, &copies); err != nil {
				return err
			}
			return s.node.SetCopies(r.Context(), copies)
		},
	}
}

func (s *Server) peerCall(do func(context.Context, peerRequest) error) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		var p peerRequest
		if err := readJSON(w, r, &p); err != nil {
			return err
		}
		return do(r.Context(), p)
	}
}

// Invite has the node invite.
func (c *Client) Invite(ctx context.Context, o InviteOptions) (Invitation, error) {
	data, err := json.Marshal(o)
	if err != nil {
		return Invitation{}, err
	}
	var i Invitation
	err = c.post(ctx, "invite", data, func(r io.Reader) error {
		return json.NewDecoder(io.LimitReader(r, maxJSON)).Decode(&i)
	})
	return i, err
}

// RevokeInvite has the node revoke an invitation.
func (c *Client) RevokeInvite(ctx context.Context, id string) error {
	return c.postJSON(ctx, "invite/revoke", peerRequest{ID: id})
}

// RemovePeer has the node remove a member.
func (c *Client) RemovePeer(ctx context.Context, id string) error {
	return c.postJSON(ctx, "peers/remove", peerRequest{ID: id})
}

// DrainPeer has the node drain a member.
func (c *Client) DrainPeer(ctx context.Context, id string, undo bool) error {
	return c.postJSON(ctx, "peers/drain", peerRequest{ID: id, Undo: undo})
}

// SetCopies has the node set the number of copies.
func (c *Client) SetCopies(ctx context.Context, copies int) error {
	return c.postJSON(ctx, "copies", copies)
}
