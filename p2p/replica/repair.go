package replica

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/exchange"
)

const (
	// repairPage is how many blocks a pass compares at once.
	repairPage = exchange.MaxBlocks
	// repairRetry is the time after which a pass that has left something undone
	// is followed by another, and after which, when that leaves something undone
	// as well, and so on, twice as much each time, up to maxRepairRetry.
	repairRetry    = 2 * time.Second
	maxRepairRetry = 30 * time.Second
	// meetTries is how often an owner is asked whether it knows the same members,
	// meetEvery apart, before a pass begins all the same.
	meetTries = 20
	meetEvery = 100 * time.Millisecond
)

// repair is the state of the passes.
type repair struct {
	wake chan struct{}
	rate limiter

	mu     sync.Mutex
	now    Status   // what passes know of it; UnderReplicated and Droppable of the last one
	done   *cluster // of the last complete pass
	clean  bool     // that pass found all blocks durable on all owners
	passes int64
}

func (p *repair) init(rate int64) {
	p.wake = make(chan struct{}, 1)
	p.rate.perSecond = rate
}

// request has another pass begin soon.
func (p *repair) request() {
	select {
	case p.wake <- struct{}{}:
	default: // it is requested already
	}
}

func (p *repair) status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.now
	s.PassDone = p.done != nil
	return s
}

func (p *repair) doneIn(c *cluster) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done == c
}

func (p *repair) cleanIn(c *cluster) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done == c && p.clean
}

// repairAll makes passes: one for each epoch, when members answer again, when one
// left something undone, and every now and then.
func (r *Replica) repairAll() {
	timer := time.NewTimer(r.o.RepairEvery)
	defer timer.Stop()
	for retry := repairRetry; ; {
		select {
		case <-r.ctx.Done():
			return
		case <-r.repair.wake:
			retry = repairRetry
		case <-timer.C:
		}
		wait := r.o.RepairEvery
		if c := r.shared(); c != nil {
			wait, retry = r.pass(c).wait(retry, wait)
		}
		timer.Reset(wait)
	}
}

// pass is one walk over the local blocks: it gathers what the plan is made of (see
// plan.go), and carries it out.
type pass struct {
	r *Replica
	c *cluster

	mu    sync.Mutex
	tally tally // heard is called for several peers at once
}

// pass walks over the local blocks once, and says when another is due. With another
// epoch it ends early.
func (r *Replica) pass(c *cluster) due {
	p := &pass{r: r, c: c, tally: newTally(c)}
	p.meet()
	r.locked(func() { r.queue.missed = 0 }) // the pass comes to them
	var after [cas.HashSize]byte
	var cids []cas.CID
	checked := int64(0)
	for {
		var err error
		cids, err = r.o.Local.List(r.ctx, after, repairPage, cids)
		if err != nil {
			if r.ctx.Err() == nil {
				r.o.Logger.Error("repair cannot list blocks", "err", err)
			}
			return soon
		}
		if len(cids) > 0 {
			after = cids[len(cids)-1].Hash()
			p.compare(newPage(c, p.needed(cids)))
		}
		if r.ctx.Err() != nil || r.cluster.Load() != c {
			return soon
		}
		checked += int64(len(cids))
		r.repair.mu.Lock()
		r.repair.now.Checked = checked
		r.repair.mu.Unlock()
		if len(cids) < repairPage {
			break
		}
	}
	p.sync()
	t := &p.tally
	r.repair.mu.Lock()
	defer r.repair.mu.Unlock()
	r.repair.now.UnderReplicated, r.repair.now.Droppable = t.behind, t.droppable()
	r.repair.done, r.repair.clean = c, t.clean()
	if t.secured() {
		r.repair.now.Secured = c.epoch
	}
	r.repair.passes++
	return t.due()
}

// meet has the owners say that they know the same members as this node. As a rule they
// learn of others within milliseconds of each other, so that is waited for.
func (p *pass) meet() {
	var wg sync.WaitGroup
	var none [cas.HashSize]byte
	for _, id := range p.c.table.Rank(&none, nil) {
		if id != p.r.self {
			wg.Go(func() { p.meetOne(p.r.peer(id)) })
		}
	}
	wg.Wait()
}

func (p *pass) meetOne(q *peer) {
	ctx, cancel := context.WithTimeout(p.r.ctx, getTimeout)
	defer cancel()
	for range meetTries {
		if p.r.grade(q) >= demoted || p.r.cluster.Load() != p.c {
			return
		}
		_, boot, err := q.Peek(ctx, nil) // before the question, so that this run or a later one answers it
		if err == nil {
			_, err = q.Confirm(ctx, p.c.epoch, new(exchange.Nonce), nil)
		}
		var refused *p2p.RemoteError
		switch {
		case err == nil:
			p.mu.Lock()
			defer p.mu.Unlock()
			p.tally.met(q.ID, boot)
			return
		case !errors.As(err, &refused):
			return // whether it answers is found out when it matters
		}
		select {
		case <-time.After(meetEvery):
		case <-ctx.Done():
			return
		}
	}
}

// needed returns the blocks that are not about to be collected: others may have
// collected them already, and must not get them again. cids is left as it is.
func (p *pass) needed(cids []cas.CID) []cas.CID {
	if p.r.o.Dead == nil {
		return cids
	}
	return slices.DeleteFunc(slices.Clone(cids), p.r.o.Dead)
}

// compare finds out what the owners of some blocks have, sends what is missing, and
// drops what is not to be here.
func (p *pass) compare(blocks page) {
	p.each(blocks.elsewhere(), p.have)
	p.each(blocks.sends(), p.send)
	p.drop(p.tally.count(blocks))
}

// each calls f for all peers at once.
func (p *pass) each(of map[p2p.PeerID][]*ownerCopy, f func(*peer, []*ownerCopy)) {
	var wg sync.WaitGroup
	for id, copies := range of {
		wg.Go(func() { f(p.r.peer(id), copies) })
	}
	wg.Wait()
}

func cidsOf(copies []*ownerCopy) []cas.CID {
	cids := make([]cas.CID, len(copies))
	for i, at := range copies {
		cids[i] = at.cid
	}
	return cids
}

// have asks a peer which blocks it has.
func (p *pass) have(q *peer, copies []*ownerCopy) {
	if p.r.grade(q) >= demoted {
		p.r.locked(func() { p.r.queue.behind[q.ID] = true })
		return
	}
	ctx, cancel := context.WithTimeout(p.r.ctx, getTimeout)
	defer cancel()
	has, boot, err := q.Peek(ctx, cidsOf(copies))
	if err != nil {
		p.failed(q, err)
		return
	}
	p.heard(q, boot)
	for i, at := range copies {
		at.state = lacking
		if has[i] {
			at.state = there
		}
	}
}

func (p *pass) failed(q *peer, err error) {
	if p.r.ctx.Err() != nil {
		return
	}
	p.r.unreachable(q, err)
	p.r.locked(func() { p.r.queue.behind[q.ID] = true })
}

func (p *pass) heard(q *peer, boot uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tally.heard(q.ID, boot)
}

// send gives a peer what it lacks.
func (p *pass) send(q *peer, copies []*ownerCopy) {
	for len(copies) > 0 && p.r.usable(q) {
		var blocks []segment.Stored
		var sent []*ownerCopy
		size := 0
		for len(copies) > 0 {
			s, err := p.r.o.Local.Stored(p.r.ctx, copies[0].cid, nil)
			if err == nil && len(blocks) > 0 && size+len(s.Payload) > exchange.MaxPayload/4 {
				break // for the next message
			}
			if err == nil {
				blocks, sent, size = append(blocks, s), append(sent, copies[0]), size+len(s.Payload)
			} else if p.r.ctx.Err() == nil && !errors.Is(err, cas.ErrNotFound) {
				p.r.o.Logger.Warn("block cannot be read for repair", "cid", copies[0].cid, "err", err)
			}
			copies = copies[1:]
		}
		if len(blocks) == 0 {
			return
		}
		if err := p.sendSome(q, blocks, sent, size); err != nil {
			p.failed(q, err)
			return
		}
	}
}

func (p *pass) sendSome(to *peer, blocks []segment.Stored, copies []*ownerCopy, size int) error {
	if err := p.r.repair.rate.wait(p.r.ctx, int64(size)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(p.r.ctx, pushTimeout)
	defer cancel()
	errs, boot, err := to.PutStored(ctx, blocks, false)
	if err != nil {
		return err
	}
	p.heard(to, boot)
	took := int64(0)
	for i, at := range copies {
		if errs[i] != nil {
			p.r.refused(to, at.cid, errs[i])
			continue
		}
		at.state = there
		took++
	}
	p.r.repair.mu.Lock()
	p.r.repair.now.Repaired += took
	p.r.repair.mu.Unlock()
	return nil
}

// sync makes durable what the answers of the pass said of peers.
func (p *pass) sync() {
	var wg sync.WaitGroup
	for _, id := range slices.Collect(maps.Keys(p.tally.boots)) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(p.r.ctx, pushTimeout)
			defer cancel()
			q := p.r.peer(id)
			boot, err := q.SyncRun(ctx)
			if err != nil {
				p.failed(q, err)
				p.mu.Lock()
				p.tally.unsure = true
				p.mu.Unlock()
				return
			}
			p.heard(q, boot)
		})
	}
	wg.Wait()
}

// limiter spreads bytes over time. Its zero value does not.
type limiter struct {
	perSecond int64

	mu   sync.Mutex
	next time.Time // when the next bytes may be sent
}

// wait returns when n bytes may be sent.
func (l *limiter) wait(ctx context.Context, n int64) error {
	if l.perSecond <= 0 {
		return ctx.Err()
	}
	l.mu.Lock()
	now := time.Now()
	if l.next.Before(now) {
		l.next = now
	}
	delay := l.next.Sub(now)
	l.next = l.next.Add(time.Duration(float64(n) / float64(l.perSecond) * float64(time.Second)))
	l.mu.Unlock()
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
