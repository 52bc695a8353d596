// Package control lets commands work on a store that another process has open.
//
// A store has one owner at a time: the process that holds its lock. Node is what
// a command needs of it. *node.Node is one, in the owner's process; Client is
// the same thing in any other process, by HTTP over a unix socket in the data
// directory. Commands are written against Node and do not know which they have.
//
// The cut is made low: a Node is a cas.Store with a few calls beside it, so
// reading, chunking and hashing files run in the process of the command. The
// owner is never asked to open a path, least of all one below its own mount
// point, where it would wait for itself.
//
// Both sides check every block against its CID. Whoever can connect can read
// and write everything, so the socket is for the owner of the data directory
// only: mode 0600 in a directory of mode 0700.
package control

import (
	"context"
	"errors"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
)

// Errors of a Node besides those of cas.Store. Compare with errors.Is.
var (
	// ErrNotPinned says that a CID to be unpinned is not pinned.
	ErrNotPinned = errors.New("not pinned")
	// ErrUnavailable says that the node does not answer, or is stopping.
	ErrUnavailable = errors.New("node does not answer")
	// ErrProtocol says that the node speaks another version of this protocol,
	// or not this protocol at all.
	ErrProtocol = errors.New("node speaks another protocol")
)

// Node is an open store, in this process or in another. Its methods may be
// called at the same time from any number of goroutines.
type Node interface {
	cas.Store
	// Format returns how the store cuts files, fixed when it was created.
	Format() manifest.Format
	// Status returns what the store holds.
	Status(ctx context.Context) (Status, error)
	// Check reads and verifies everything the store holds and calls bad for
	// each block that is damaged or missing, with the reason. Its own error
	// says that checking could not be finished, or is that of bad.
	Check(ctx context.Context, bad func(cas.CID, error) error) error
	// Upload begins an upload. Put and Pin of the Node itself belong to one that
	// lasts until Close.
	Upload(ctx context.Context) (Upload, error)
	// Collect has the blocks forgotten that nothing refers to, on all nodes.
	Collect(ctx context.Context, o CollectOptions) (Collected, error)
	// Pins calls fn for each pin, in the order of the CIDs.
	Pins(ctx context.Context, fn func(Pin) error) error
	// Pin protects content from removal, all pins or none. On return the pins
	// and every block put before are durable. Pinning again changes the name.
	Pin(ctx context.Context, pins ...Pin) error
	// Unpin removes pins, all or none (ErrNotPinned), durably.
	Unpin(ctx context.Context, cids ...cas.CID) error
	// Close gives up this hold on the store. Only the owner's Close stops it.
	Close() error
	Cluster
}

// Upload keeps blocks that a command stores until they are pinned: those that nothing
// refers to are collected.
type Upload interface {
	cas.Putter
	// Renew says which blocks are stored already. They are kept as well.
	Renew(ctx context.Context, cids ...cas.CID) ([]bool, error)
	// Pin is Node's, of what was uploaded.
	Pin(ctx context.Context, pins ...Pin) error
	// Close ends the upload. What is pinned stays.
	Close() error
}

// CollectOptions say what is collected.
type CollectOptions struct {
	// Trim says that history older than Keep is forgotten first.
	Trim bool          `json:"trim"`
	Keep time.Duration `json:"keep"`
	// DryRun has nothing forgotten and nothing collected, and counts the blocks of
	// this node alone.
	DryRun bool `json:"dryRun"`
}

// Collected is what was collected, on all nodes that took part.
type Collected struct {
	Blocks int64 `json:"blocks"`
	Bytes  int64 `json:"bytes"` // as stored; of a dry run 0
	Nodes  int   `json:"nodes"`
	// Absent says of members that took no part, by their names, why.
	Absent map[string]string `json:"absent,omitempty"`
}

// GCStatus is how far the collection of blocks is that nothing refers to.
type GCStatus struct {
	Round         uint64 `json:"round"`         // that have ended
	Phase         string `json:"phase"`         // idle, record, renew or sweep
	LastCompleted string `json:"lastCompleted"` // RFC 3339, empty: never
	// Of this node's last sweep since it was started.
	FreedBlocks int64 `json:"freedBlocks"`
	FreedBytes  int64 `json:"freedBytes"`
	// Held says why the round under way does not go on, or the last one freed
	// nothing here; empty if nothing is wrong.
	Held string `json:"held,omitempty"`
}

// MaxPinName is the length of the longest name of a pin, in bytes.
const MaxPinName = 255

// Pin says that content is to be kept, and under which name it was added.
type Pin struct {
	CID  cas.CID `json:"cid"`
	Name string  `json:"name"`
}

// Status is what a store holds. Sizes are in bytes.
type Status struct {
	Dir       string          `json:"dir"`
	ID        string          `json:"id"`
	PID       int             `json:"pid"` // of the process that has the store open
	Store     StoreStatus     `json:"store"`
	Namespace NamespaceStatus `json:"namespace"`
	Pins      PinStatus       `json:"pins"`
	// DedupRatio is how many bytes of files each stored byte of content
	// stands for: (Namespace.LogicalBytes + Pins.LogicalBytes) /
	// Store.RawBytes, or 1 for a store without blocks. It is below 1 while
	// blocks are stored that no file or pin refers to any more.
	DedupRatio float64  `json:"dedupRatio"`
	Mounts     []string `json:"mounts"`
	GC         GCStatus `json:"gc"`

	// Of a member of a cluster; Node, Raft and Blocks while it runs.
	Node    *NodeStatus    `json:"node,omitempty"`
	Cluster *ClusterStatus `json:"cluster,omitempty"`
	Raft    *RaftStatus    `json:"raft,omitempty"`
	Peers   []PeerStatus   `json:"peers,omitempty"`
	Blocks  *BlocksStatus  `json:"blocks,omitempty"`
}

// StoreStatus counts blocks.
type StoreStatus struct {
	Blocks      int64 `json:"blocks"`
	RawBytes    int64 `json:"rawBytes"`    // as hashed
	StoredBytes int64 `json:"storedBytes"` // as stored, after compression
	// What the disk has left for new content, the reserve apart, and its size.
	AvailBytes int64 `json:"availBytes"`
	DiskBytes  int64 `json:"diskBytes"`
}

// NamespaceStatus counts what the mounted filesystem holds.
type NamespaceStatus struct {
	Files        int64 `json:"files"`
	Dirs         int64 `json:"dirs"`
	LogicalBytes int64 `json:"logicalBytes"` // sum of the file sizes
	// PatchBytes is what small changes take that are not blocks yet.
	PatchBytes int64 `json:"patchBytes,omitempty"`
}

// PinStatus counts what was added beside the filesystem.
type PinStatus struct {
	Count        int64 `json:"count"`
	LogicalBytes int64 `json:"logicalBytes"` // sum of the sizes of what is pinned
}
