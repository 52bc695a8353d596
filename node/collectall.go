package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cairnfs/cairn/cas/gc"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/node/control"
	"github.com/cairnfs/cairn/p2p"
)

// Rounds of collection among the members, and those that somebody asks for.

// orphanPatience is how long a collection waits for files without a name to be
// removed: programs that have them open may keep them for ever.
const orphanPatience = 5 * time.Second

// allDone returns nil if all nodes that have a session have done what the step asks of
// them. Nodes without one cannot name anything that they relied on before.
func (c *cluster) allDone(ctx context.Context, step uint64) error {
	for session, peer := range c.n.state.Sessions() {
		r, err := c.askReport(ctx, peer)
		switch {
		case err != nil:
			return fmt.Errorf("member %s does not say how far it is: %w", peer.Short(), err)
		case r.Session != session:
			return fmt.Errorf("member %s was started again, or has lost touch", peer.Short())
		case r.Done < step && r.Held != "":
			return fmt.Errorf("member %s: %s", peer.Short(), r.Held)
		case r.Done < step:
			return errNotDone
		}
	}
	return nil
}

// errNotDone says that members are still at work, as they should be.
var errNotDone = errors.New("members are at work")

func (c *cluster) askReport(ctx context.Context, peer p2p.PeerID) (report, error) {
	if peer == c.self {
		return c.n.collect.report(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	answer, err := c.host.Call(ctx, peer, protocolCollect, nil)
	if err != nil {
		return report{}, err
	}
	var r report
	return r, json.Unmarshal(answer, &r)
}

// Collect has a round run, and returns what it freed on all members.
func (n *Node) Collect(ctx context.Context, o control.CollectOptions) (control.Collected, error) {
	if o.DryRun {
		return n.collect.dryRun(ctx, o)
	}
	if n.offline() {
		return control.Collected{}, ErrOffline
	}
	if err := n.awaitReaped(ctx); err != nil {
		return control.Collected{}, err
	}
	if o.Trim {
		if err := n.trimTo(ctx, o.Keep); err != nil {
			return control.Collected{}, err
		}
	}
	round, err := n.runRound(ctx)
	if err != nil {
		return control.Collected{}, err
	}
	// This process may not live long enough to do so in its own time.
	if _, err := n.blocks.Compact(ctx); err != nil && ctx.Err() == nil {
		n.o.Logger.Warn("space of collected blocks is given back later", "err", err)
	}
	return n.collected(ctx, round)
}

// awaitReaped waits for files that were removed and are not open to be forgotten.
func (n *Node) awaitReaped(ctx context.Context) error {
	for end := n.o.Now().Add(orphanPatience); n.o.Now().Before(end); {
		if err := n.volume.ReapIdle(ctx); err != nil {
			return err
		}
		orphans, err := n.state.Orphans()
		if err != nil || len(orphans) == 0 {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
	return nil
}

// trimTo forgets history that is older than keep.
func (n *Node) trimTo(ctx context.Context, keep time.Duration) error {
	op := &namespace.TrimHistory{Time: n.o.Now().Add(-keep).UnixNano()}
	if keep <= 0 {
		op = &namespace.TrimHistory{Index: n.state.Applied()}
	}
	for {
		res, err := n.propose(ctx, op)
		if err != nil || !res.More {
			return err
		}
	}
}

// runRound returns the number of a round that began after the call, when it has ended.
func (n *Node) runRound(ctx context.Context) (uint64, error) {
	var round uint64
	for {
		col := n.state.Collection()
		if round != 0 && col.Round() >= round {
			return round, nil
		}
		if round == 0 && col.Phase() == namespace.Idle {
			_, err := n.propose(ctx, &namespace.NextStep{Step: col.Step + 1})
			if err != nil && !errors.Is(err, namespace.ErrStep) {
				return 0, err
			}
			if err == nil {
				round = col.Round() + 1
			}
		}
		n.collect.poke()
		if err := pause(ctx); err != nil {
			return 0, err
		}
	}
}

// collected asks everybody what the round freed.
func (n *Node) collected(ctx context.Context, round uint64) (control.Collected, error) {
	all := control.Collected{Absent: make(map[string]string)}
	add := func(name string, r report, err error) {
		switch {
		case err != nil:
			all.Absent[name] = err.Error()
		case r.Last.Round != round:
			all.Absent[name] = "it has not taken part"
		case r.Last.Why != "":
			all.Absent[name] = r.Last.Why
		default:
			all.Nodes++
		}
		if err == nil && r.Last.Round == round {
			all.Blocks += r.Last.Blocks
			all.Bytes += r.Last.Bytes
		}
	}
	c, v := n.cluster.Load(), n.state.View()
	if c == nil || v == nil {
		add("this node", n.collect.report(), nil)
		return all, nil
	}
	for i := range v.Members {
		m := &v.Members[i]
		if m.Role != p2p.RoleStorage {
			continue
		}
		r, err := c.askReport(ctx, m.ID)
		add(m.Name, r, err)
	}
	return all, ctx.Err()
}

// dryRun counts what could be collected here.
func (c *collector) dryRun(ctx context.Context, o control.CollectOptions) (control.Collected, error) {
	roots, err := c.n.state.Roots()
	if err != nil {
		return control.Collected{}, err
	}
	defer roots.Close()
	before := int64(0)
	if o.Trim {
		before = c.n.o.Now().Add(-o.Keep).UnixNano()
	}
	options := c.sweepOptions(roots, before)
	options.DryRun = true
	options.Keep = c.pending
	res, err := gc.NewSweeper(options).Run(ctx)
	return control.Collected{Blocks: res.Deleted, Nodes: 1}, err
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(collectTick / 4):
		return nil
	}
}

// gcStatus is the part of the status about collection.
func (n *Node) gcStatus() control.GCStatus {
	col, r := n.state.Collection(), n.collect.report()
	s := control.GCStatus{
		Round: col.Round(), Phase: col.Phase().String(), FreedBlocks: r.Last.Blocks, FreedBytes: r.Last.Bytes, Held: r.Held,
	}
	if s.Held == "" {
		s.Held = r.Last.Why
	}
	if col.Time > 0 {
		s.LastCompleted = time.Unix(0, col.Time).UTC().Format(time.RFC3339)
	}
	return s
}
