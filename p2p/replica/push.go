package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/p2p/exchange"
)

// pushTimeout is how long a message with blocks, or a sync, may take.
const pushTimeout = 30 * time.Second

// Fewer bytes than these are sent without asking first whether they are needed: a
// round trip costs more.
const askAbove = 64 << 10

// entryBytes is what a block in the queue counts beside its bytes: its entry.
const entryBytes = 256

// Put stores the blocks here and has them sent to their owners. When more bytes
// wait than Options.PushBytes, it waits. Blocks that no owner that answers can be
// given stay here, and are sent later.
func (r *Replica) Put(ctx context.Context, blocks ...cas.Block) error {
	sizes, cids := make([]blockSize, len(blocks)), make([]cas.CID, len(blocks))
	for i, b := range blocks {
		cids[i] = b.CID()
		sizes[i] = blockSize{b.CID(), len(b.Data())}
	}
	defer r.promises.hold(cids)()
	if err := r.o.Local.Put(ctx, blocks...); err != nil {
		return err
	}
	c := r.shared()
	if c == nil || len(blocks) == 0 || c.table.Copies() == 0 {
		return nil
	}
	if err := r.enlist(ctx, c, sizes...); err != nil {
		return err
	}
	if c.nodes > 1 {
		r.claims.note(cids, nil)
	}
	return nil
}

// blockSize is a block that is stored here, and its bytes.
type blockSize struct {
	cid  cas.CID
	size int
}

// enlist has blocks sent to their owners, when there is room for them in the queue.
func (r *Replica) enlist(ctx context.Context, c *cluster, blocks ...blockSize) error {
	q := &r.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.bytes >= r.o.PushBytes {
		changed := q.changed
		q.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = ctx.Err()
		case <-r.ctx.Done():
			err = ErrClosed
		}
		q.mu.Lock()
		if err != nil {
			return err
		}
	}
	if len(q.parked) >= maxParked {
		return &cas.BlockError{Op: "put", CID: blocks[0].cid, Where: "cluster", Err: ErrTooFewCopies}
	}
	for _, b := range blocks {
		hash := b.cid.Hash()
		if e := q.entries[hash]; e != nil && e.need == c.need {
			continue // on its way already
		}
		q.seq++
		e := &entry{cid: b.cid, size: int64(b.size) + entryBytes, seq: q.seq, need: c.need}
		q.entries[hash] = e
		if e.need > 0 {
			e.place = q.open.PushBack(e)
		}
		r.give(c, e)
		r.settle(e)
	}
	return nil
}

// Sync returns when the blocks whose Put has returned are durable here, and on as
// many others as must have them. When nothing has come nearer to that for
// Options.SyncTimeout, it returns ErrTooFewCopies; the blocks remain pending, and a
// later Sync waits for them as well.
func (r *Replica) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.shared() == nil {
		return r.o.Local.Sync(ctx)
	}
	q := &r.queue
	q.mu.Lock()
	target := q.seq
	if q.open.Len() > 0 {
		q.wanted = max(q.wanted, target)
		for _, l := range q.lanes {
			l.poke()
		}
	}
	q.mu.Unlock()
	if err := r.o.Local.Sync(ctx); err != nil {
		return err
	}
	return r.waitDurable(ctx, target)
}

func (r *Replica) waitDurable(ctx context.Context, target uint64) error {
	q := &r.queue
	timer := time.NewTimer(r.o.SyncTimeout)
	defer timer.Stop()
	q.mu.Lock()
	defer q.mu.Unlock()
	steps := q.steps
	for {
		front := q.open.Front()
		if front == nil || front.Value.(*entry).seq > target {
			return nil
		}
		if q.steps != steps {
			steps = q.steps
			timer.Reset(r.o.SyncTimeout)
		}
		changed := q.changed
		q.mu.Unlock()
		var err error
		select {
		case <-changed:
		case <-ctx.Done():
			err = ctx.Err()
		case <-r.ctx.Done():
			err = ErrClosed
		case <-timer.C:
			err = ErrTooFewCopies
		}
		q.mu.Lock()
		if err != nil {
			return fmt.Errorf("sync: %d blocks are not durable on %d other nodes: %w", q.open.Len(), front.Value.(*entry).need, err)
		}
	}
}

// push is the goroutine of a lane.
func (r *Replica) push(l *lane) {
	for {
		batch, sync := r.next(l)
		switch {
		case len(batch) > 0:
			r.send(l, batch, sync)
		case sync:
			r.sync(l)
		default:
			select {
			case <-l.wake:
			case <-r.ctx.Done():
				return
			}
		}
		if r.ctx.Err() != nil {
			return
		}
	}
}

// next takes from the lane's queue what goes into one message, and says whether the
// peer is to make durable what it has then.
func (r *Replica) next(l *lane) (batch []*entry, sync bool) {
	q := &r.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	n, size := 0, int64(0)
	for n < len(l.queue) && n < exchange.MaxBlocks && size+l.queue[n].size <= exchange.MaxPayload {
		size += l.queue[n].size
		n++
	}
	batch = append(batch, l.queue[:n]...)
	clear(l.queue[:n])
	if l.queue = l.queue[n:]; len(l.queue) == 0 {
		l.queue = nil
	}
	waited := func(entries []*entry) bool {
		for _, e := range entries {
			if e.place != nil && e.seq <= q.wanted {
				return true
			}
		}
		return false
	}
	// One sync serves all that is waited for, so it comes after the last of it.
	sync = (waited(batch) || waited(l.unsynced)) && !waited(l.queue)
	if len(l.unsynced) > 0 {
		sync = sync || len(l.unsynced) >= maxUnsynced || r.o.Now().Sub(l.since) >= maxUnsyncedFor
	}
	return batch, sync
}

// send gives the peer those blocks of the batch that it lacks.
func (r *Replica) send(l *lane, batch []*entry, sync bool) {
	lacks, err := r.ask(l, batch)
	if err != nil {
		r.gaveUp(l, batch, err)
		return
	}
	blocks, sent, lost := r.load(lacks)
	if len(lost) > 0 {
		r.locked(func() { r.failed(l, lost) })
	}
	if len(blocks) == 0 {
		if sync {
			r.sync(l)
		}
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, pushTimeout)
	defer cancel()
	errs, boot, err := l.p.PutStored(ctx, blocks, sync)
	if err != nil {
		r.gaveUp(l, sent, err)
		return
	}
	l.p.answered(0)
	var accepted, refused []*entry
	for i, e := range sent {
		if errs[i] == nil {
			accepted = append(accepted, e)
			continue
		}
		refused = append(refused, e)
		r.refused(l.p, e.cid, errs[i])
	}
	r.locked(func() {
		r.took(l, boot, accepted)
		if len(refused) > 0 {
			r.failed(l, refused)
		}
		if sync {
			r.synced(l, boot)
		}
	})
}

// ask returns the blocks of the batch that the peer lacks; those it has are done.
func (r *Replica) ask(l *lane, batch []*entry) (lacks []*entry, err error) {
	size := int64(0)
	cids := make([]cas.CID, len(batch))
	for i, e := range batch {
		cids[i] = e.cid
		size += e.size
	}
	if size <= askAbove {
		return batch, nil
	}
	ctx, cancel := context.WithTimeout(r.ctx, getTimeout)
	defer cancel()
	has, boot, err := l.p.Have(ctx, cids)
	if err != nil {
		return nil, err
	}
	var held []*entry
	for i, e := range batch {
		if has[i] {
			held = append(held, e)
		} else {
			lacks = append(lacks, e)
		}
	}
	r.locked(func() { r.took(l, boot, held) })
	return lacks, nil
}

// load reads blocks as they are stored. Those that cannot be read are lost.
func (r *Replica) load(entries []*entry) (blocks []segment.Stored, of, lost []*entry) {
	for _, e := range entries {
		s, err := r.o.Local.Stored(r.ctx, e.cid, nil)
		if err != nil {
			if r.ctx.Err() == nil {
				r.o.Logger.Error("block that was put cannot be read to be sent", "cid", e.cid, "err", err)
			}
			lost = append(lost, e)
			continue
		}
		blocks, of = append(blocks, s), append(of, e)
	}
	return blocks, of, lost
}

// refused takes note of why a peer did not take a block.
func (r *Replica) refused(p *peer, c cas.CID, err error) {
	if !errors.Is(err, cas.ErrCorrupt) {
		p.mu.Lock()
		first := !r.o.Now().Before(p.full)
		p.full = r.o.Now().Add(fullFor)
		p.mu.Unlock()
		if first {
			r.o.Logger.Warn("peer does not take blocks", "peer", p.ID, "cid", c, "err", err)
		}
		return
	}
	// What was sent is not what the CID names; so is, perhaps, what lies here.
	// Reading it finds out, and gets it from elsewhere.
	if _, err := r.Get(r.ctx, c, nil); err != nil && r.ctx.Err() == nil {
		r.damaged.Add(1)
		r.o.Logger.Error("block is damaged and found nowhere else", "cid", c, "err", err)
	}
}

// gaveUp finds others for entries that a peer did not take for an error of the
// request, and for what it has not made durable.
func (r *Replica) gaveUp(l *lane, entries []*entry, err error) {
	if r.ctx.Err() == nil {
		r.unreachable(l.p, err)
	}
	r.locked(func() {
		r.failed(l, entries)
		r.unsure(l)
	})
}

// sync has the peer make durable what it has taken. Meanwhile it takes nothing: this
// is the lane's only goroutine.
func (r *Replica) sync(l *lane) {
	ctx, cancel := context.WithTimeout(r.ctx, pushTimeout)
	defer cancel()
	boot, err := l.p.SyncRun(ctx)
	if err != nil {
		r.gaveUp(l, nil, err)
		return
	}
	r.locked(func() { r.synced(l, boot) })
}

func (r *Replica) locked(f func()) {
	r.queue.mu.Lock()
	defer r.queue.mu.Unlock()
	f()
}
