package exchange

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/p2p"
)

// ErrPeerFailed says that a peer could not read or write a block on its disk.
var ErrPeerFailed = errors.New("peer cannot read or write the block")

// Peer is the durable store of another node. It holds no state.
//
// Errors are those of a cas.Store and of the Transport. A block that is damaged
// where it lies is cas.ErrCorrupt; if the peer sent other bytes than it was asked
// for, and again after it was told to verify them, or what it sent is no answer,
// ErrBadMessage as well.
type Peer struct {
	ID        p2p.PeerID
	Transport p2p.Transport
}

var _ cas.Store = Peer{}

// where names the peer in a cas.BlockError.
func (p Peer) where() string { return "peer " + p.ID.Short() }

func (p Peer) fail(op string, c cas.CID, err error) error {
	return &cas.BlockError{Op: op, CID: c, Where: p.where(), Err: err}
}

// lied is the error about a block for which the peer sent something else.
func (p Peer) lied(op string, c cas.CID, err error) error {
	return p.fail(op, c, fmt.Errorf("%w: %w", cas.ErrCorrupt, err))
}

// byCIDs sends a request whose entries are CIDs.
func (p Peer) byCIDs(ctx context.Context, op, flags byte, cids []cas.CID) ([]byte, error) {
	b := appendRequest(make([]byte, 0, requestHead+len(cids)*cidSize), op, flags, len(cids))
	for _, c := range cids {
		b = appendCID(b, c)
	}
	return p.Transport.Call(ctx, p.ID, Protocol, b)
}

// Get fetches and verifies a block.
func (p Peer) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	if err := ctx.Err(); err != nil {
		return cas.Block{}, err
	}
	if !c.Defined() {
		return cas.Block{}, p.fail("get", c, cas.ErrNotFound)
	}
	b, err := p.get(ctx, c, 0, buf)
	if errors.Is(err, ErrBadMessage) {
		return p.get(ctx, c, flagCheck, buf)
	}
	return b, err
}

// get fetches a block. Damage on the peer's disk goes unnoticed there until it is
// told to check.
func (p Peer) get(ctx context.Context, c cas.CID, flags byte, buf []byte) (cas.Block, error) {
	cids := [1]cas.CID{c}
	answer, err := p.byCIDs(ctx, opWant, flags, cids[:])
	if err != nil {
		return cas.Block{}, p.fail("get", c, err)
	}
	of, err := parseWanted(answer, cids[:])
	if err != nil {
		return cas.Block{}, p.lied("get", c, err)
	}
	return p.open(&of[0], c, buf)
}

// open makes a block of what a peer sent about it.
func (p Peer) open(w *wanted, c cas.CID, buf []byte) (cas.Block, error) {
	switch w.status {
	case statusYes:
		b, err := w.stored.Block(buf)
		if err != nil {
			return cas.Block{}, p.lied("get", c, ErrBadMessage)
		}
		return b, nil
	case statusNo:
		return cas.Block{}, p.fail("get", c, cas.ErrNotFound)
	case statusCorrupt:
		return cas.Block{}, p.fail("get", c, cas.ErrCorrupt)
	case statusFailed:
		return cas.Block{}, p.fail("get", c, ErrPeerFailed)
	}
	return cas.Block{}, p.lied("get", c, badMessage("status %d", w.status))
}

// Parcel is what came with one answer: for each of the first CIDs that were asked for
// the block, or the error that Get would return. The blocks share memory.
type Parcel struct {
	Blocks []cas.Block
	Errs   []error
	Memory []byte
	At     []int // where each block is in it; -1: elsewhere

	// Free gives the memory back. Nobody may refer to the blocks then. A Parcel that
	// is never freed is the garbage collector's.
	Free func()
}

// GetMany fetches blocks, as many with each request as fit, and calls take for what came
// with each answer, in order. The CIDs must be defined. It ends early with the error of
// a request, or that of take.
func (p Peer) GetMany(ctx context.Context, cids []cas.CID, take func(Parcel) error) error {
	recycle := func([]byte) {}
	if r, ok := p.Transport.(p2p.Recycler); ok {
		recycle = r.Recycle
	}
	for len(cids) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := cids[:min(len(cids), MaxBlocks)]
		answer, err := p.byCIDs(ctx, opWant, 0, part)
		if err != nil {
			return fmt.Errorf("get blocks: %s: %w", p.where(), err)
		}
		of, err := parseWanted(answer, part)
		if err != nil {
			return fmt.Errorf("get blocks: %s: %w: %w", p.where(), cas.ErrCorrupt, err)
		}
		came := Parcel{Memory: answer, Free: func() { recycle(answer) }}
		for n := 0; n < len(part) && of[n].status != statusLater; n++ {
			b, err := p.open(&of[n], part[n], nil)
			if errors.Is(err, ErrBadMessage) {
				b, err = p.get(ctx, part[n], flagCheck, nil)
			}
			at := -1
			if data := b.Data(); err == nil && len(data) > 0 && &data[0] == &answer[of[n].at] {
				at = of[n].at
			}
			came.Blocks, came.Errs, came.At = append(came.Blocks, b), append(came.Errs, err), append(came.At, at)
		}
		if len(came.Blocks) == 0 {
			return fmt.Errorf("get blocks: %s: %w", p.where(), badMessage("an answer without a block"))
		}
		if err := take(came); err != nil {
			return err
		}
		cids = cids[len(came.Blocks):]
	}
	return nil
}

// Have says which of at most MaxBlocks blocks the peer has in its durable store,
// and in which of its runs. It is as good as having put them: a collection keeps them.
func (p Peer) Have(ctx context.Context, cids []cas.CID) (has []bool, boot uint64, err error) {
	return p.have(ctx, 0, cids)
}

// Peek is Have of blocks that nobody is going to refer to on account of the answer.
func (p Peer) Peek(ctx context.Context, cids []cas.CID) (has []bool, boot uint64, err error) {
	return p.have(ctx, flagPeek, cids)
}

func (p Peer) have(ctx context.Context, flags byte, cids []cas.CID) (has []bool, boot uint64, err error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	answer, err := p.byCIDs(ctx, opHave, flags, cids)
	if err != nil {
		return nil, 0, fmt.Errorf("have: %s: %w", p.where(), err)
	}
	of, boot, err := parseStatuses(answer, opHave, len(cids))
	if err != nil {
		return nil, 0, fmt.Errorf("have: %s: %w", p.where(), err)
	}
	has = make([]bool, len(of))
	for i := range of {
		has[i] = of[i] == statusYes
	}
	return has, boot, nil
}

// Has says which blocks the peer has in its durable store.
func (p Peer) Has(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var all []bool
	for len(all) < len(cids) {
		part := cids[len(all):min(len(cids), len(all)+MaxBlocks)]
		known, place := make([]cas.CID, 0, len(part)), make([]int, 0, len(part))
		for i, c := range part {
			if c.Defined() {
				known, place = append(known, c), append(place, len(all)+i)
			}
		}
		has, _, err := p.Have(ctx, known)
		if err != nil {
			return nil, err
		}
		all = append(all, make([]bool, len(part))...)
		for i, at := range place {
			all[at] = has[i]
		}
	}
	return all, nil
}

// Put sends blocks, not compressed, and as many messages as they need.
func (p Peer) Put(ctx context.Context, blocks ...cas.Block) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	batch := make([]segment.Stored, 0, min(len(blocks), MaxBlocks))
	size := 0
	send := func() error {
		if len(batch) == 0 {
			return nil
		}
		errs, _, err := p.PutStored(ctx, batch, false)
		batch, size = batch[:0], 0
		if err != nil {
			return err
		}
		return errors.Join(errs...)
	}
	for _, b := range blocks {
		if !b.CID().Defined() {
			return p.fail("put", b.CID(), cas.ErrBadCID)
		}
		if len(batch) == MaxBlocks || size+len(b.Data()) > MaxPayload {
			if err := send(); err != nil {
				return err
			}
		}
		batch, size = append(batch, segment.Plain(b)), size+len(b.Data())
	}
	return send()
}

// PutStored sends at most MaxBlocks blocks of at most MaxPayload together, as they
// are stored. With sync they, and all that was put in this run of the peer before,
// are durable on return. Of each block it returns the error, nil if the peer has
// it: cas.ErrCorrupt, cas.ErrNoSpace or ErrPeerFailed in a *cas.BlockError.
func (p Peer) PutStored(ctx context.Context, blocks []segment.Stored, sync bool) (errs []error, boot uint64, err error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	flags := byte(0)
	if sync {
		flags = flagSync
	}
	heads := appendRequest(make([]byte, 0, requestHead+len(blocks)*(cidSize+formSize)), opPut, flags, len(blocks))
	pieces := make([][]byte, 0, 2*len(blocks)+1)
	from := 0
	for i := range blocks {
		heads = appendForm(appendCID(heads, blocks[i].CID), &blocks[i])
		pieces = append(pieces, heads[from:], blocks[i].Payload)
		from = len(heads)
	}
	if len(blocks) == 0 {
		pieces = append(pieces, heads)
	}
	answer, err := p.Transport.Call(ctx, p.ID, Protocol, pieces...)
	if err != nil {
		return nil, 0, fmt.Errorf("put blocks: %s: %w", p.where(), err)
	}
	of, boot, err := parseStatuses(answer, opPut, len(blocks))
	if err != nil {
		return nil, 0, fmt.Errorf("put blocks: %s: %w", p.where(), err)
	}
	errs = make([]error, len(of))
	for i := range of {
		var why error
		switch of[i] {
		case statusYes:
			continue
		case statusCorrupt:
			why = cas.ErrCorrupt
		case statusFull:
			why = cas.ErrNoSpace
		default:
			why = ErrPeerFailed
		}
		errs[i] = p.fail("put", blocks[i].CID, why)
	}
	return errs, boot, nil
}

// Sync makes durable what the peer holds.
func (p Peer) Sync(ctx context.Context) error {
	_, err := p.SyncRun(ctx)
	return err
}

// SyncRun is Sync and says in which run of the peer it was: what was put in this
// run is durable.
func (p Peer) SyncRun(ctx context.Context) (boot uint64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	answer, err := p.byCIDs(ctx, opSync, 0, nil)
	if err != nil {
		return 0, fmt.Errorf("sync: %s: %w", p.where(), err)
	}
	if _, boot, err = parseStatuses(answer, opSync, 0); err != nil {
		return 0, fmt.Errorf("sync: %s: %w", p.where(), err)
	}
	return boot, nil
}
