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
			clean, left := r.pass(c)
			switch {
			case !clean:
				wait = min(wait, retry)
				retry = min(2*retry, maxRepairRetry)
			case left: // which may be so for long: owners of a version before confirm nothing
				wait = min(wait, retry)
				retry = 2 * wait
			}
		}
		timer.Reset(wait)
	}
}

// pass is one walk over the local blocks.
type pass struct {
	r     *Replica
	c     *cluster
	boots map[p2p.PeerID]uint64 // runs of the peers whose answers count

	mu        sync.Mutex
	behind    int64 // blocks that an owner lacks, or may lack
	thin      int64 // blocks of which too few others are known to have one
	droppable int64
	dropped   int64 // of them
	unsure    bool  // a peer was started again meanwhile, or failed to sync
}

// pass walks over the local blocks once; it returns whether all of them are durable
// on all their owners now, and whether some are left that this node is to drop. With
// another epoch it ends early, and another is due.
func (r *Replica) pass(c *cluster) (clean, left bool) {
	p := &pass{r: r, c: c, boots: make(map[p2p.PeerID]uint64)}
	r.locked(func() { r.queue.missed = 0 }) // the pass comes to them
	var after [cas.HashSize]byte
	var page []cas.CID
	checked := int64(0)
	for {
		var err error
		page, err = r.o.Local.List(r.ctx, after, repairPage, page)
		if err != nil {
			if r.ctx.Err() == nil {
				r.o.Logger.Error("repair cannot list blocks", "err", err)
			}
			return false, false
		}
		if len(page) > 0 {
			after = page[len(page)-1].Hash()
			p.page(p.needed(page))
		}
		if r.ctx.Err() != nil || r.cluster.Load() != c {
			return false, false
		}
		checked += int64(len(page))
		r.repair.mu.Lock()
		r.repair.now.Checked = checked
		r.repair.mu.Unlock()
		if len(page) < repairPage {
			break
		}
	}
	p.sync()
	clean = p.behind == 0 && !p.unsure
	if p.droppable -= p.dropped; p.unsure {
		p.droppable = 0
	}
	r.repair.mu.Lock()
	defer r.repair.mu.Unlock()
	r.repair.now.UnderReplicated, r.repair.now.Droppable = p.behind, p.droppable
	r.repair.done, r.repair.clean = c, clean
	if c.nodes > 1 && p.thin == 0 && !p.unsure {
		r.repair.now.Secured = c.epoch
	}
	r.repair.passes++
	return clean, c.drops && p.droppable > 0
}

// needed returns the blocks of the page that are not about to be collected: others may
// have collected them already, and must not get them again. page is left as it is.
func (p *pass) needed(page []cas.CID) []cas.CID {
	if p.r.o.Dead == nil {
		return page
	}
	return slices.DeleteFunc(slices.Clone(page), p.r.o.Dead)
}

// query is what a peer is asked about a page.
type query struct {
	p     *peer
	of    []int  // indexes in the page
	has   []bool // in order of of
	err   error
	lacks []cas.CID // that it is to be sent
	at    []int     // indexes in the page, of lacks
}

// page compares some blocks and sends what is missing.
func (p *pass) page(page []cas.CID) {
	owners := make([][]p2p.PeerID, len(page))
	queries := make(map[p2p.PeerID]*query)
	for i, c := range page {
		hash := c.Hash()
		owners[i] = p.c.table.Owners(&hash, nil)
		for _, id := range owners[i] {
			if id == p.r.self {
				continue
			}
			q := queries[id]
			if q == nil {
				q = &query{p: p.r.peer(id)}
				queries[id] = q
			}
			q.of = append(q.of, i)
		}
	}
	each(queries, func(q *query) { p.have(q, page) })
	missing := p.decide(page, owners, queries)
	each(queries, func(q *query) {
		for _, i := range p.send(q) {
			p.mu.Lock()
			missing[i]--
			p.mu.Unlock()
		}
	})
	var spare []cas.CID
	var of [][]p2p.PeerID // owners of each
	for i, n := range missing {
		hash := page[i].Hash()
		others := len(owners[i]) - n
		if slices.Contains(owners[i], p.r.self) {
			others--
		}
		if others < p.c.need {
			p.thin++
		}
		switch {
		case n > 0:
			p.behind++
		case !p.c.owns || !p.c.table.Owns(&hash, p.r.self):
			spare, of = append(spare, page[i]), append(of, owners[i])
		}
	}
	p.droppable += int64(len(spare))
	p.drop(spare, of)
}

// each calls f for all queries at once.
func each(queries map[p2p.PeerID]*query, f func(*query)) {
	var wg sync.WaitGroup
	for _, q := range queries {
		wg.Go(func() { f(q) })
	}
	wg.Wait()
}

// have asks a peer which blocks it has.
func (p *pass) have(q *query, page []cas.CID) {
	if p.r.grade(q.p) >= demoted {
		q.err = p2p.ErrUnreachable
		p.r.locked(func() { p.r.queue.behind[q.p.ID] = true })
		return
	}
	cids := make([]cas.CID, len(q.of))
	for k, i := range q.of {
		cids[k] = page[i]
	}
	ctx, cancel := context.WithTimeout(p.r.ctx, getTimeout)
	defer cancel()
	var boot uint64
	if q.has, boot, q.err = q.p.Peek(ctx, cids); q.err != nil {
		p.failed(q.p, q.err)
		return
	}
	p.seen(q.p, boot)
}

func (p *pass) failed(q *peer, err error) {
	if p.r.ctx.Err() != nil {
		return
	}
	p.r.unreachable(q, err)
	p.r.locked(func() { p.r.queue.behind[q.ID] = true })
}

// seen compares the run of a peer with that of its earlier answers.
func (p *pass) seen(q *peer, boot uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if was, ok := p.boots[q.ID]; ok && was != boot {
		p.unsure = true
	}
	p.boots[q.ID] = boot
}

// decide chooses what this node sends, and returns for each block how many owners
// lack it or did not answer.
//
// Of those who hold a block the first owner in order of placement sends it; if no
// owner that answers has it, so does everybody else.
func (p *pass) decide(page []cas.CID, owners [][]p2p.PeerID, queries map[p2p.PeerID]*query) (missing []int) {
	missing = make([]int, len(page))
	next := make(map[p2p.PeerID]int, len(queries)) // a query's answers are in order of the page
	for i := range page {
		sender := p.r.self
		found := false
		var lacking []*query
		for _, id := range owners[i] {
			if id == p.r.self {
				found = true // whoever comes later need not send
				continue
			}
			q := queries[id]
			k := next[id]
			next[id]++
			switch {
			case q.err != nil:
				missing[i]++
			case !q.has[k]:
				missing[i]++
				lacking = append(lacking, q)
			case !found:
				found, sender = true, id
			}
		}
		if sender != p.r.self {
			continue
		}
		for _, q := range lacking {
			q.lacks = append(q.lacks, page[i])
			q.at = append(q.at, i)
		}
	}
	return missing
}

// send gives a peer what it lacks and returns the indexes of what it took.
func (p *pass) send(q *query) (took []int) {
	for len(q.lacks) > 0 && p.r.usable(q.p) {
		var blocks []segment.Stored
		var at []int
		size := 0
		for len(q.lacks) > 0 {
			s, err := p.r.o.Local.Stored(p.r.ctx, q.lacks[0], nil)
			if err == nil && len(blocks) > 0 && size+len(s.Payload) > exchange.MaxPayload/4 {
				break // for the next message
			}
			if err == nil {
				blocks, at, size = append(blocks, s), append(at, q.at[0]), size+len(s.Payload)
			} else if p.r.ctx.Err() == nil && !errors.Is(err, cas.ErrNotFound) {
				p.r.o.Logger.Warn("block cannot be read for repair", "cid", q.lacks[0], "err", err)
			}
			q.lacks, q.at = q.lacks[1:], q.at[1:]
		}
		if len(blocks) == 0 {
			return took
		}
		got, err := p.sendSome(q.p, blocks, at, size)
		took = append(took, got...)
		if err != nil {
			p.failed(q.p, err)
			return took
		}
	}
	return took
}

func (p *pass) sendSome(to *peer, blocks []segment.Stored, at []int, size int) (took []int, err error) {
	if err := p.r.repair.rate.wait(p.r.ctx, int64(size)); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(p.r.ctx, pushTimeout)
	defer cancel()
	errs, boot, err := to.PutStored(ctx, blocks, false)
	if err != nil {
		return nil, err
	}
	p.seen(to, boot)
	for k := range errs {
		if errs[k] != nil {
			p.r.refused(to, blocks[k].CID, errs[k])
			continue
		}
		took = append(took, at[k])
	}
	p.r.repair.mu.Lock()
	p.r.repair.now.Repaired += int64(len(took))
	p.r.repair.mu.Unlock()
	return took, nil
}

// sync makes durable what the answers of the pass said of peers.
func (p *pass) sync() {
	var wg sync.WaitGroup
	for _, id := range slices.Collect(maps.Keys(p.boots)) {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(p.r.ctx, pushTimeout)
			defer cancel()
			q := p.r.peer(id)
			boot, err := q.SyncRun(ctx)
			if err != nil {
				p.failed(q, err)
				p.mu.Lock()
				p.unsure = true
				p.mu.Unlock()
				return
			}
			p.seen(q, boot)
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
