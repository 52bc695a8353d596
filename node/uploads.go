package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/gc"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/node/control"
)

// maxUpload is how many blocks an upload keeps account of, so that a round of
// collection can have them promised again: 64 GiB of them, for 33 MiB of memory. A
// larger one holds collections up until it has ended.
const maxUpload = 1 << 20

// errUpload says what a round waits for.
var errUpload = errors.New("an upload of more than a million blocks is under way")

// upload is what a command has stored and not pinned yet, or has been told is stored
// already. It is a control.Upload.
type upload struct {
	n *Node

	putting sync.RWMutex // held for reading while blocks are stored
	mu      sync.Mutex
	any     bool
	since   uint64 // step of the collection of the oldest promise
	blocks  []byte // codec and hash, 1 + cas.HashSize bytes each
	over    bool   // there were more
}

// uploads are all that have not ended.
type uploads struct {
	mu   sync.Mutex
	open map[*upload]struct{}
}

var _ control.Upload = (*upload)(nil)

// Upload begins to keep account of what is put for a command in another process.
func (n *Node) Upload(context.Context) (control.Upload, error) { return n.newUpload(), nil }

func (n *Node) newUpload() *upload {
	u := &upload{n: n}
	s := &n.uploads
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = make(map[*upload]struct{})
	}
	s.open[u] = struct{}{}
	return u
}

// Close ends the upload: what is not pinned may be collected.
func (u *upload) Close() error {
	s := &u.n.uploads
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, u)
	return nil
}

// renew has everything that is being uploaded promised again.
func (s *uploads) renew(ctx context.Context) error {
	s.mu.Lock()
	all := make([]*upload, 0, len(s.open))
	for u := range s.open {
		all = append(all, u)
	}
	s.mu.Unlock()
	for _, u := range all {
		err := u.renew(ctx)
		if errors.Is(err, gc.ErrMissing) {
			u.n.o.Logger.Error("what is being added has lost blocks", "err", err)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rely notes blocks that are about to be stored, or looked for.
func (u *upload) rely(cids ...cas.CID) {
	step := u.n.state.Collection().Step
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.any {
		u.any, u.since = true, step
	}
	for _, c := range cids {
		if len(u.blocks) >= maxUpload*(1+cas.HashSize) {
			u.blocks, u.over = nil, true
		}
		if u.over {
			return
		}
		hash := c.Hash()
		u.blocks = append(append(u.blocks, byte(c.Codec())), hash[:]...)
	}
}

// Put stores blocks.
func (u *upload) Put(ctx context.Context, blocks ...cas.Block) error {
	u.putting.RLock()
	defer u.putting.RUnlock()
	cids := make([]cas.CID, len(blocks))
	for i := range blocks {
		cids[i] = blocks[i].CID()
	}
	u.rely(cids...)
	return u.n.stores.Put(ctx, blocks...)
}

// relied is the node's store for those who rely on what they did not put: the next Sync
// waits for what Renew finds. A crash may have left it on one node, or durable on none.
type relied struct {
	*storage
	n *Node
}

func (r relied) Renew(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	return r.n.relied(ctx, cids, r.storage.Renew)
}

// Renew says which blocks are stored already, as good as if they had been put.
func (u *upload) Renew(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	u.putting.RLock()
	defer u.putting.RUnlock()
	u.rely() // the step, before the answers
	has, err := relied{&u.n.stores, u.n}.Renew(ctx, cids...)
	if err != nil {
		return nil, err
	}
	held := make([]cas.CID, 0, len(cids))
	for i, c := range cids {
		if has[i] {
			held = append(held, c)
		}
	}
	u.rely(held...)
	return has, nil
}

// renew has all blocks of the upload promised again. ErrMissing says that some are
// gone, errUpload that it is too large.
func (u *upload) renew(ctx context.Context) error {
	step := u.n.state.Collection().Step
	u.putting.Lock() // nothing that is noted is yet to be stored
	u.mu.Lock()
	blocks, over, left := u.blocks, u.over, !u.any
	u.mu.Unlock()
	u.putting.Unlock()
	if over {
		return errUpload
	}
	if left {
		return nil
	}
	const size = 1 + cas.HashSize
	cids := make([]cas.CID, 0, 1024)
	for part := range slices.Chunk(blocks, size*cap(cids)) {
		cids = cids[:0]
		for ; len(part) > 0; part = part[size:] {
			cids = append(cids, cas.NewCID(cas.Codec(part[0]), [cas.HashSize]byte(part[1:size])))
		}
		if err := gc.RenewAll(ctx, &u.n.stores, cids); err != nil {
			return err
		}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.since = max(u.since, step)
	return nil
}

// Pin pins content, durably, together with all blocks put before.
func (u *upload) Pin(ctx context.Context, pins ...control.Pin) error {
	for _, p := range pins {
		if len(p.Name) > control.MaxPinName {
			return fmt.Errorf("name of pin %v: %w", p.CID, namespace.ErrNameTooLong)
		}
	}
	for batch := range slices.Chunk(pins, namespace.MaxOps) {
		if err := u.pin(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

// maxPinTries is how often pins are proposed, after what they pin was promised again.
const maxPinTries = 5

func (u *upload) pin(ctx context.Context, pins []control.Pin) error {
	ops := make([]namespace.Op, len(pins))
	for i, p := range pins {
		ops[i] = &namespace.Pin{CID: p.CID, Name: p.Name}
	}
	u.mu.Lock()
	known, promised := u.any, u.since
	u.mu.Unlock()
	for try := 0; ; try++ {
		if !known {
			// Nothing was put: it is there already, or it is not.
			promised = u.n.state.Collection().Step
			for _, p := range pins {
				if err := gc.Renew(ctx, relied{&u.n.stores, u.n}, &u.n.stores, []cas.CID{p.CID}); err != nil {
					return fmt.Errorf("%v is not stored as a whole, add it again: %w", p.CID, err)
				}
			}
		}
		_, err := u.n.proposePromised(ctx, promised, ops...)
		if !errors.Is(err, namespace.ErrPromise) || try == maxPinTries {
			return err
		}
		known = false
	}
}
