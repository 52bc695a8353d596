package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/node/control"
	"github.com/cairnfs/cairn/p2p/exchange"
	"github.com/cairnfs/cairn/volume"
)

var (
	_ control.Node        = (*Node)(nil)
	_ manifest.Prefetcher = (*Node)(nil)
)

// Volume returns the filesystem of the store. It is the node's and ends with it.
func (n *Node) Volume() *volume.Volume { return n.volume }

// Format returns how the store cuts files.
func (n *Node) Format() manifest.Format { return n.format }

// Failed receives an error after which nothing can be changed any more, such as
// that of a disk that refuses to sync. The store must be opened again.
func (n *Node) Failed() <-chan error { return n.failed }

// Get reads a block.
func (n *Node) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	return n.stores.Get(ctx, c, buf)
}

// Put stores blocks. They are kept until the node is closed, and after that if they
// are pinned.
func (n *Node) Put(ctx context.Context, blocks ...cas.Block) error {
	return n.own.Put(ctx, blocks...)
}

// Ahead and Prefetch are those of manifest.Prefetcher: blocks that are on other nodes
// can be on their way before they are asked for.
func (n *Node) Ahead() int64 { return n.stores.Ahead() }

// Prefetch begins to fetch blocks.
func (n *Node) Prefetch(ctx context.Context, cids []cas.CID) { n.stores.Prefetch(ctx, cids) }

// Has says which blocks are stored. Who is told so of a block does not put it, so the
// next Sync waits for it as if it had been put.
func (n *Node) Has(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	return n.relied(ctx, cids, n.stores.Has)
}

// relied asks which blocks are stored, and has the next Sync wait for those that are.
func (n *Node) relied(ctx context.Context, cids []cas.CID, ask func(context.Context, ...cas.CID) ([]bool, error)) ([]bool, error) {
	has, err := ask(ctx, cids...)
	c := n.cluster.Load()
	if err != nil || c == nil {
		return has, err
	}
	var held []cas.CID
	for i, cid := range cids {
		if has[i] {
			held = append(held, cid)
		}
	}
	for part := range slices.Chunk(held, exchange.MaxBlocks) {
		if err := c.replica.ClaimBlocks(ctx, part); err != nil {
			return nil, err
		}
	}
	return has, nil
}

// Sync makes the blocks put so far durable.
func (n *Node) Sync(ctx context.Context) error { return n.stores.Sync(ctx) }

// propose has ops ordered, applied and made durable.
func (n *Node) propose(ctx context.Context, ops ...namespace.Op) (namespace.Result, error) {
	return n.proposePromised(ctx, 0, ops...)
}

// proposePromised is propose of ops that refer to blocks which were promised in the
// given step of the collection.
func (n *Node) proposePromised(ctx context.Context, promised uint64, ops ...namespace.Op) (namespace.Result, error) {
	if n.offline() {
		return namespace.Result{}, ErrOffline
	}
	res, err := n.log.Propose(ctx, &namespace.Command{Time: n.o.Now().UnixNano(), Ops: ops, Promised: promised})
	if err != nil {
		return res, err
	}
	if res.Err != nil {
		return res, res.Err
	}
	// The log's sync takes the blocks along: see openJournal.
	return res, n.log.Sync(ctx)
}

// Pin pins content, durably, together with all blocks put before.
func (n *Node) Pin(ctx context.Context, pins ...control.Pin) error { return n.own.Pin(ctx, pins...) }

// Unpin removes pins, durably.
func (n *Node) Unpin(ctx context.Context, cids ...cas.CID) error {
	for batch := range slices.Chunk(cids, namespace.MaxOps) {
		ops := make([]namespace.Op, len(batch))
		for i, c := range batch {
			ops[i] = &namespace.Unpin{CID: c}
		}
		res, err := n.propose(ctx, ops...)
		if errors.Is(err, namespace.ErrNotFound) {
			return fmt.Errorf("%v: %w", batch[res.FailedOp], control.ErrNotPinned)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Pins calls fn for each pin.
func (n *Node) Pins(ctx context.Context, fn func(control.Pin) error) error {
	var failed error
	err := n.state.Pins(func(p namespace.PinInfo) bool {
		if failed = ctx.Err(); failed == nil {
			failed = fn(control.Pin{CID: p.CID, Name: p.Name})
		}
		return failed == nil
	})
	return errors.Join(failed, err)
}

// Mounted adds a mount point to the status until the function returned is called.
func (n *Node) Mounted(path string) (unmounted func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mounts = append(n.mounts, path)
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.mounts = slices.DeleteFunc(n.mounts, func(p string) bool { return p == path })
	}
}

// Status says what the store holds.
func (n *Node) Status(ctx context.Context) (control.Status, error) {
	blocks, names := n.blocks.Stats(), n.state.Stats()
	s := control.Status{
		Dir: n.o.Dir, ID: n.config.ID, PID: os.Getpid(),
		Store: control.StoreStatus{
			Blocks: blocks.Blocks, RawBytes: blocks.RawBytes, StoredBytes: blocks.StoredBytes,
		},
		Namespace: control.NamespaceStatus{
			Files: names.Files, Dirs: names.Dirs, LogicalBytes: names.LogicalBytes, PatchBytes: n.state.PatchBytes(),
		},
		DedupRatio: 1,
	}
	if u, err := n.usage(); err == nil {
		s.Store.AvailBytes, s.Store.DiskBytes = int64(u.Avail), int64(u.Total)
	}
	err := n.Pins(ctx, func(p control.Pin) error {
		s.Pins.Count++
		s.Pins.LogicalBytes += n.pinned.size(ctx, &n.stores, p.CID)
		return nil
	})
	if err != nil {
		return s, err
	}
	if s.Store.RawBytes > 0 {
		s.DedupRatio = float64(s.Namespace.LogicalBytes+s.Pins.LogicalBytes) / float64(s.Store.RawBytes)
	}
	s.GC = n.gcStatus()
	n.clusterStatus(ctx, &s)
	n.mu.Lock()
	defer n.mu.Unlock()
	s.Mounts = append([]string{}, n.mounts...)
	return s, nil
}

// maxPinSizes bounds the sizes of pinned content that are remembered.
const maxPinSizes = 100_000

// pinSizes remembers the sizes of pinned content, which never change.
type pinSizes struct {
	mu    sync.Mutex
	bytes map[cas.CID]int64
}

// size returns the bytes of what c names: of a file those in it, of a directory
// those of all blocks below. What cannot be read counts nothing here; Check tells
// of it.
func (p *pinSizes) size(ctx context.Context, store cas.Getter, c cas.CID) int64 {
	p.mu.Lock()
	size, ok := p.bytes[c]
	p.mu.Unlock()
	if ok {
		return size
	}
	info, err := manifest.Stat(ctx, store, c)
	if err != nil {
		return 0
	}
	if size = info.Size; info.Kind == manifest.KindDirectory {
		size = info.DAGSize
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bytes == nil || len(p.bytes) >= maxPinSizes {
		p.bytes = make(map[cas.CID]int64)
	}
	p.bytes[c] = size
	return size
}
