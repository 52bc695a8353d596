// Package p2p is the vocabulary of the cluster's network: who the members are
// (PeerID, Member, View) and how one asks another (Transport). What travels, and
// what it means, is said by the packages below p2p; which connections carry it,
// by p2p/host.
//
// Two things about a member are kept apart. That it belongs to the cluster, and
// what it is to hold, is registered: it is part of the namespace, the same on all
// nodes at the same epoch. Whether it answers at the moment is everybody's own
// observation (Liveness) and decides only whom to ask first.
package p2p

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// PeerID names a node by its public key, in the text form of libp2p (12D3Koo…).
// Whoever speaks under it has proved that it has the private key.
type PeerID string

// Short is the id as people see it: its last eight characters, which differ, as
// the first do not.
func (id PeerID) Short() string {
	if len(id) <= 8 {
		return string(id)
	}
	return string(id[len(id)-8:])
}

// Role says what a member is for.
type Role uint8

// The roles. A member of any role has a replica of the names.
const (
	RoleStorage Role = 1 // keeps blocks, may vote
	RoleClient  Role = 2 // reads and writes, keeps only what it caches, never votes
)

func (r Role) String() string {
	switch r {
	case RoleStorage:
		return "storage"
	case RoleClient:
		return "client"
	}
	return fmt.Sprintf("role %d", uint8(r))
}

// ParseRole reads what String writes.
func ParseRole(s string) (Role, error) {
	for _, r := range []Role{RoleStorage, RoleClient} {
		if s == r.String() {
			return r, nil
		}
	}
	return 0, fmt.Errorf("unknown role %q: storage or client", s)
}

// MemberState is what the registry says of a member's part in placement.
type MemberState uint8

// The states.
const (
	Active   MemberState = 1 // owns its share of the blocks
	Draining MemberState = 2 // owns nothing any more, serves what it has
	Away     MemberState = 3 // has not answered for so long that others own its share
	Leaving  MemberState = 4 // is being removed: owns nothing and does not vote
)

func (s MemberState) String() string {
	switch s {
	case Active:
		return "active"
	case Draining:
		return "draining"
	case Away:
		return "away"
	case Leaving:
		return "leaving"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Member is a registered node.
type Member struct {
	ID       PeerID
	Raft     uint64   // its number in the log's group; never given to another, nor to it again after a new start
	Name     string   // for people, usually the name of the host
	Addrs    []string // multiaddrs without the peer id
	Role     Role
	State    MemberState
	Capacity uint64 // bytes for blocks; the weight in placement
	Version  uint32 // of the namespace that its program knows (rule 5); 0: it has not said so
}

// Owns reports whether the member is to own blocks.
func (m *Member) Owns() bool { return m.Role == RoleStorage && m.State == Active }

// View is the registered membership as of an epoch. It and its slices are never
// changed; another epoch is another View.
type View struct {
	Cluster    string   // id of the cluster, 32 hexadecimal digits
	Epoch      uint64   // grows with each change
	Generation uint64   // grows when a new cluster is forced out of what is left of one
	Next       uint64   // Raft of the next member
	Copies     int      // nodes that are to hold each block, as configured; 0 is the default
	Members    []Member // in order of ID
}

// DefaultCopies is how many nodes hold each block unless configured otherwise.
const DefaultCopies = 3

// Member returns the member with the given id, nil if there is none.
func (v *View) Member(id PeerID) *Member {
	for i := range v.Members {
		if v.Members[i].ID == id {
			return &v.Members[i]
		}
	}
	return nil
}

// Owners returns how many nodes hold each block: what is configured, or as many
// as there are to own blocks.
func (v *View) Owners() int {
	n, copies := 0, v.Copies
	for i := range v.Members {
		if v.Members[i].Owns() {
			n++
		}
	}
	if copies <= 0 {
		copies = DefaultCopies
	}
	return min(copies, n)
}

// Protocol names a kind of request, as libp2p names protocols: /cairn/raft/1.
type Protocol string

// MaxMessage is the largest request or answer, in bytes.
const MaxMessage = 8 << 20

// Handler answers requests of a protocol. It may be called from many goroutines.
// req is the handler's; the answer must not be changed after it is returned. An
// error reaches the caller as a *RemoteError with its text.
type Handler func(ctx context.Context, from PeerID, req []byte) ([]byte, error)

// Transport carries requests between members. Requests of one protocol to one peer
// may overtake each other; those of different protocols do not wait for each other.
type Transport interface {
	// Self returns the id under which others know this node.
	Self() PeerID
	// Call sends a request, the pieces in order, and returns the answer, which
	// is the caller's. The pieces may be used again on return.
	//
	// Errors: ErrUnreachable, *RemoteError, ErrTooLarge, or the context's.
	Call(ctx context.Context, to PeerID, p Protocol, req ...[]byte) ([]byte, error)
	// Handle has requests of a protocol answered by h; nil refuses them.
	Handle(p Protocol, h Handler)
}

// LendingHandler is a Handler that keeps the memory of its answers: sent, if it is not
// nil, is called once when the answer is not needed any more.
type LendingHandler func(ctx context.Context, from PeerID, req []byte) (answer []byte, sent func(), err error)

// Lending returns h as one that never has its memory back; nil of nil.
func (h Handler) Lending() LendingHandler {
	if h == nil {
		return nil
	}
	return func(ctx context.Context, from PeerID, req []byte) ([]byte, func(), error) {
		answer, err := h(ctx, from, req)
		return answer, nil, err
	}
}

// Recycler is a Transport that uses the memory of large messages again. To get it from
// the system and to clear it costs as much as to encrypt what it is for.
type Recycler interface {
	Transport
	// Recycle takes the memory of an answer of Call, or of a request, to which
	// nobody refers any more.
	Recycle(b []byte)
	// HandleLending is Handle.
	HandleLending(p Protocol, h LendingHandler)
}

// Errors of a Transport. Compare with errors.Is.
var (
	// ErrUnreachable says that a peer did not answer, or is not a member.
	ErrUnreachable = errors.New("peer cannot be reached")
	// ErrTooLarge says that a request or answer exceeds MaxMessage.
	ErrTooLarge = fmt.Errorf("message is larger than %d bytes", MaxMessage)
)

// RemoteError is what a peer's handler failed with. It unwraps to ErrNotServed if
// there is none.
type RemoteError struct {
	Peer      PeerID
	Text      string
	NotServed bool
}

// ErrNotServed says that a peer does not know a protocol, or not to this node.
var ErrNotServed = errors.New("protocol is not served")

func (e *RemoteError) Unwrap() error {
	if e.NotServed {
		return ErrNotServed
	}
	return nil
}

func (e *RemoteError) Error() string { return fmt.Sprintf("peer %s: %s", e.Peer.Short(), e.Text) }

// Health is whether a member answers, as this node sees it.
type Health uint8

// The grades of health.
const (
	Dead    Health = iota // does not answer, or never did
	Suspect               // did not answer lately
	Alive
)

func (h Health) String() string { return [...]string{"dead", "suspect", "alive"}[h] }

// Liveness says who answers.
type Liveness interface {
	// Health returns a member's health and when it was last known to be alive,
	// the zero time if never.
	Health(id PeerID) (Health, time.Time)
}
