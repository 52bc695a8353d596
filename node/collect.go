package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/gc"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// What a node does in a round of collection. The namespace says at which step the round
// is (namespace/collection.go), cas/gc does the work; here is when, and by whom.
//
// A node sweeps only if it has recorded all promises that may count: those given since
// the step of renewing began anywhere. It has if its session was open before the step of
// recording and still is when it learns of that of renewing: then whoever leads had its
// word that it records before anybody could begin to renew. A node that was started, or
// cut off, since then sits the round out.

const (
	collectTick = 100 * time.Millisecond
	// collectEvery is the time between rounds that nobody asked for. With a disk
	// that is nearly full they follow each other sooner.
	collectEvery   = 24 * time.Hour
	collectIfFull  = time.Hour
	collectPatient = 10 * time.Minute // after the start
)

// alone stands for the session of a node that has no cluster.
const alone namespace.SessionID = 1<<64 - 1

// collector is a node's part in collecting blocks.
type collector struct {
	n        *Node
	recorder *gc.Recorder
	wake     chan struct{}
	began    time.Time

	mu       sync.Mutex
	started  bool
	seen     uint64              // step that was observed last
	session  namespace.SessionID // under which recording began, 0: too late
	eligible bool                // to sweep in this round
	sweeper  *gc.Sweeper         // of the sweep under way, else nil
	done     uint64              // step of which this node has done its part
	last     swept
	held     string // why the round does not go on
}

// swept is what a node did in the last round.
type swept struct {
	Round  uint64 `json:"round"` // 0: none yet
	Blocks int64  `json:"blocks"`
	Bytes  int64  `json:"bytes"`
	Why    string `json:"why,omitempty"` // it did not do all
}

func newCollector(n *Node) *collector {
	return &collector{n: n, recorder: gc.NewRecorder(0), wake: make(chan struct{}, 1), began: n.o.Now()}
}

// start begins to take part. Commands before it were those of an earlier run.
func (c *collector) start() {
	c.mu.Lock()
	c.started = true
	c.mu.Unlock()
	c.observe()
}

// poke has the collector look at once.
func (c *collector) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// observe is called when a step has begun, before the next command is applied.
func (c *collector) observe() {
	col := c.n.state.Collection()
	session := c.ownSession()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.started {
		return
	}
	next := col.Step == c.seen+1
	if col.Step != c.seen {
		c.held = ""
	}
	switch col.Phase() {
	case namespace.Recording:
		c.recorder.Start()
		if session != alone && uint64(session) > col.Began {
			session = 0 // who leads may not have asked for the word of this node
		}
		c.session, c.eligible = session, false
	case namespace.Renewing:
		c.recorder.Start()
		c.eligible = next && session != 0 && session == c.session
	case namespace.Sweeping:
		c.recorder.Start()
		c.eligible = c.eligible && (next || col.Step == c.seen)
	}
	c.seen = col.Step
	c.poke()
}

// ownSession returns the session under which this run of the node takes part, 0 if it
// has none that the namespace knows.
func (c *collector) ownSession() namespace.SessionID {
	cl := c.n.cluster.Load()
	if cl == nil {
		if c.n.offline() {
			return 0
		}
		return alone
	}
	if cl.group == nil {
		return 0
	}
	if s := cl.group.Session(); s != 0 && c.n.state.MemberOf(s) == cl.self {
		return s
	}
	return 0
}

// promised reports whether the block must stay because somebody relies on it.
func (c *collector) promised(b cas.CID) bool { return c.recorder.Has(b) || c.pending(b) }

// pending reports whether the block is needed to be sent to its owners.
func (c *collector) pending(b cas.CID) bool {
	cl := c.n.cluster.Load()
	return cl != nil && cl.replica.Pending(b)
}

// dead reports whether the block is about to be collected.
func (c *collector) dead(b cas.CID) bool {
	c.mu.Lock()
	s := c.sweeper
	c.mu.Unlock()
	return s != nil && s.Dead(b)
}

// run takes part until ctx ends.
func (c *collector) run(ctx context.Context) {
	tick := time.NewTicker(collectTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-tick.C:
		}
		err := c.part(ctx)
		if err == nil {
			err = c.drive(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		c.hold(err)
	}
}

// hold remembers why the round does not go on, for the status and the log.
func (c *collector) hold(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	c.mu.Lock()
	was := c.held
	c.held = text
	c.mu.Unlock()
	if text != "" && was == "" {
		c.n.o.Logger.Warn("collection of unused blocks waits", "reason", text)
	}
}

// part does what the step asks of this node, if it was not done yet.
func (c *collector) part(ctx context.Context) error {
	col := c.n.state.Collection()
	c.mu.Lock()
	done, seen, eligible := c.done == col.Step, c.seen == col.Step, c.eligible
	c.mu.Unlock()
	if done || !seen { // the step may be known a moment before it is observed
		return nil
	}
	switch col.Phase() {
	case namespace.Idle:
		c.mu.Lock()
		if c.seen == col.Step {
			c.recorder.Stop()
		}
		c.mu.Unlock()
	case namespace.Renewing:
		if err := c.renew(ctx); err != nil {
			return err
		}
	case namespace.Sweeping:
		c.sweep(ctx, col, eligible)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done = col.Step
	return nil
}

// renew has everything promised again that this node relies upon.
func (c *collector) renew(ctx context.Context) error {
	if cl := c.n.cluster.Load(); cl != nil {
		if v := c.n.state.View(); v != nil {
			cl.replica.SetView(*v) // owners as of the step, or later
		}
	}
	err := c.n.volume.Renew(ctx)
	if err == nil {
		err = c.n.uploads.renew(ctx)
	}
	if err == nil {
		err = c.n.stores.Sync(ctx) // what owners lacked is there, too
	}
	if err != nil {
		return fmt.Errorf("what is being written cannot be secured: %w", err)
	}
	return nil
}

// sweep marks and sweeps. What it could not do is remembered, not tried again before
// the next round.
func (c *collector) sweep(ctx context.Context, col namespace.Collection, eligible bool) {
	res, err := gc.Result{}, errors.New("this node has not been part of the whole round")
	if eligible {
		res, err = c.sweepNow(ctx, col)
	}
	last := swept{Round: col.Round() + 1, Blocks: res.Deleted, Bytes: res.Freed}
	if err != nil && ctx.Err() == nil {
		last.Why = err.Error()
		c.n.o.Logger.Warn("unused blocks are not collected, or not all", "err", err)
	} else if err == nil {
		c.n.o.Logger.Info("unused blocks collected", "blocks", res.Deleted, "bytes", res.Freed, "marked", res.Marked)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = last
}

func (c *collector) sweepNow(ctx context.Context, col namespace.Collection) (gc.Result, error) {
	roots, err := c.n.state.Roots()
	if err != nil {
		return gc.Result{}, err
	}
	defer roots.Close()
	if roots.Collection.Step != col.Step {
		return gc.Result{}, errors.New("the round was over too soon")
	}
	// A crash must not bring back names that the mark does not know of.
	if err := c.n.log.Sync(ctx); err != nil {
		return gc.Result{}, err
	}
	s := gc.NewSweeper(c.sweepOptions(roots, 0))
	c.mu.Lock()
	c.sweeper = s
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.sweeper = nil
	}()
	res, err := s.Run(ctx)
	if err == nil && !c.recorder.Complete() {
		err = errors.New("more was written meanwhile than can be kept account of")
	}
	return res, err
}

// sweepOptions say how the content is found and the blocks are swept. History that
// ended before the given log time is left out.
func (c *collector) sweepOptions(roots *namespace.Roots, before int64) gc.Options {
	return gc.Options{
		Roots: func(ctx context.Context, each func(cas.CID, string) error) error {
			return roots.Each(ctx, before, func(r namespace.Root) error { return each(r.CID, c.describe(r)) })
		},
		Get:   &c.n.stores,
		Local: c.n.blocks,
		Keep:  c.promised,
	}
}

// describe says what refers to content.
func (c *collector) describe(r namespace.Root) string {
	if r.Ino == 0 {
		return fmt.Sprintf("pin %q", r.Pin)
	}
	return fmt.Sprintf("inode %d", r.Ino)
}

// drive takes the round on if it is for this node to do so.
func (c *collector) drive(ctx context.Context) error {
	col := c.n.state.Collection()
	if c.n.offline() || c.n.state.Supports(&namespace.Command{Ops: []namespace.Op{&namespace.NextStep{}}}) != nil {
		return nil
	}
	leads := true
	if cl := c.n.cluster.Load(); cl != nil {
		leads = cl.group.Status().Role == "leader"
	}
	if col.Phase() == namespace.Idle {
		if !c.due(col, leads) {
			return nil
		}
		return c.next(ctx, col)
	}
	c.mu.Lock()
	done := c.done == col.Step
	c.mu.Unlock()
	if !leads || !done {
		return nil
	}
	if cl := c.n.cluster.Load(); cl != nil {
		if err := cl.allDone(ctx, col.Step); errors.Is(err, errNotDone) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return c.next(ctx, col)
}

// next begins the step after the one of col.
func (c *collector) next(ctx context.Context, col namespace.Collection) error {
	_, err := c.n.propose(ctx, &namespace.NextStep{Step: col.Step + 1})
	if errors.Is(err, namespace.ErrStep) {
		return nil // somebody else has
	}
	return err
}

// due reports whether it is time for a round that nobody has asked for.
func (c *collector) due(col namespace.Collection, leads bool) bool {
	now := c.n.o.Now()
	since := now.Sub(time.Unix(0, col.Time))
	if now.Sub(c.began) < collectPatient || since < collectIfFull {
		return false
	}
	if leads && since >= collectEvery {
		return true
	}
	u, err := c.n.usage()
	return err == nil && u.Avail < u.Total/reserveFraction
}

// report is what a node answers to who leads.
type report struct {
	Session namespace.SessionID `json:"session"`
	Done    uint64              `json:"done"` // step
	Last    swept               `json:"last"`
	Held    string              `json:"held,omitempty"`
}

func (c *collector) report() report {
	session := c.ownSession()
	c.mu.Lock()
	defer c.mu.Unlock()
	return report{Session: session, Done: c.done, Last: c.last, Held: c.held}
}

// protocolCollect asks a node how far it is in a round; the answer is JSON.
const protocolCollect p2p.Protocol = "/cairn/collect/1"
