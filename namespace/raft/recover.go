package raft

import (
	"fmt"
	"log/slog"

	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// Force makes the group one of this node alone, without asking the others, and the
// node the only member. All entries of its log are applied first, committed or not:
// any of them may have been acknowledged. It returns where the log ended. records
// are those of the journal; the log is not running. The result is durable once the
// index is flushed.
func Force(o Options, records []journal.Record, self p2p.PeerID, time int64) (entry, term uint64, err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	st, err := openStore(o.DB, o.Mark)
	if err != nil {
		return 0, 0, err
	}
	for _, rec := range records {
		if err := st.replay(rec); err != nil {
			return 0, 0, err
		}
	}
	if err := st.open(o.Journal, o.ID, o.State); err != nil {
		return 0, 0, err
	}
	c := &core{id: o.ID, store: st, state: o.State, log: o.Logger, position: st.applied}
	if err := c.applyAll(); err != nil {
		return 0, 0, err
	}
	entry, _ = st.LastIndex()
	if term, err = st.Term(entry); err != nil {
		return 0, 0, err
	}
	// Another term, so that nothing the others may still have continues this log.
	next := namespace.Position{Entry: entry + 1, Term: max(term, st.hard.GetTerm()) + 1, Commands: 1}
	res, err := o.State.ApplyAt(next, &namespace.Command{Time: time, Ops: []namespace.Op{&namespace.ForceCluster{Self: self}}})
	if err == nil {
		err = res.Err
	}
	if err != nil {
		return 0, 0, err
	}
	next.Entry++
	conf := &raftpb.ConfState{Voters: []uint64{o.ID}}
	group, err := encode(conf)
	if err != nil {
		return 0, 0, err
	}
	if err := o.State.ApplyGroup(next, group); err != nil {
		return 0, 0, err
	}
	// As with a snapshot, the namespace is durable before the log that led to it goes.
	if err := o.DB.Flush(); err != nil {
		return 0, 0, err
	}
	st.vouch.others = nil // whoever comes is new
	st.conf = conf
	st.hard = &raftpb.HardState{Term: proto.Uint64(next.Term), Vote: proto.Uint64(o.ID), Commit: proto.Uint64(next.Entry)}
	snap := &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: proto.Uint64(next.Entry), Term: proto.Uint64(next.Term), ConfState: conf}}
	if err := st.installed(snap); err != nil {
		return 0, 0, err
	}
	base, _, err := st.checkpoint(next.Entry)
	if err != nil {
		return 0, 0, err
	}
	return entry, term, o.DB.Set(baseKey(), base, pebble.NoSync)
}

// applyAll applies what is left of the log, whatever changes of the group are in it.
func (c *core) applyAll() error {
	last, _ := c.store.LastIndex()
	for i := c.position + 1; i <= last; i++ {
		entries, err := c.store.Entries(i, i+1, 1<<62)
		if err != nil && err != raft.ErrCompacted {
			return err
		}
		for _, e := range entries {
			if e.GetType() != raftpb.EntryNormal {
				continue // there is only one member in the end
			}
			if err := c.apply(e); err != nil {
				return fmt.Errorf("apply entry %d: %w", i, err)
			}
		}
	}
	return nil
}
