package raft

import (
	"fmt"

	"github.com/cairnfs/cairn/p2p"
)

// RefusalKind is why a node may not take part in its cluster.
type RefusalKind string

// The kinds. They are stored and sent.
const (
	// Removed is of a node that is a member no longer.
	Removed RefusalKind = "removed"
	// Forced is of a node of a cluster out of which a new one was forced.
	Forced RefusalKind = "old generation"
	// Restored is of a node whose store is an older copy of itself, or one of two.
	Restored RefusalKind = "restored"
	// Foreign is of a node of another cluster.
	Foreign RefusalKind = "other cluster"
	// Outdated is of a node whose program does not know the cluster's version.
	Outdated RefusalKind = "outdated"
	// unknown is of a node that is not known yet: it may try again.
	unknown RefusalKind = "unknown"
)

// Refusal says that a node may not take part in its cluster, or not any more. It is
// an error of the Log that is refused, after which it has stopped.
type Refusal struct {
	Kind RefusalKind `json:"kind"`
	Text string      `json:"text"`         // more of it
	By   p2p.PeerID  `json:"by,omitempty"` // who has told
}

func (r *Refusal) Error() string {
	text := map[RefusalKind]string{
		Removed:  "this node was removed from its cluster",
		Forced:   "this node is of a cluster out of which a new one was forced, without it",
		Restored: "this node's store is older than what the node has acknowledged: it was restored from a copy, a copy of it is in use, or it has lost writes",
		Foreign:  "this node is of another cluster",
		Outdated: "this node's program is too old for its cluster",
	}[r.Kind]
	if text == "" {
		text = "this node is refused by its cluster"
	}
	if r.Text != "" {
		text += " (" + r.Text + ")"
	}
	if r.By != "" {
		text += fmt.Sprintf(", says %s", r.By.Short())
	}
	return text
}

// Final reports whether the store can never be that of a member again as it is: with
// an invitation it can be a new one's.
func (r *Refusal) Final() bool { return r.Kind != Outdated && r.Kind != unknown }
