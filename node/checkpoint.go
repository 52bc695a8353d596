package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
)

// A checkpoint writes the index to disk, so that the journal's older records are
// not needed any more, and removes those. What remains is what files that are
// still being written need, and what came since.
//
// The index holds the number of the first record that is still needed. An index
// without it has seen no checkpoint and needs the journal from its beginning; so
// an index that is lost after a checkpoint is noticed, instead of being taken
// for that of an empty store.

const (
	checkEvery   = time.Second
	journalLimit = 64 << 20 // bytes that the journal may grow by between checkpoints
	trimEvery    = time.Hour
)

// tend does what has to be done now and then, until ctx ends.
func (n *Node) tend(ctx context.Context) {
	check := time.NewTicker(checkEvery)
	defer check.Stop()
	trim := time.NewTicker(trimEvery)
	defer trim.Stop()
	limit := n.journal.Size() + journalLimit
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-trim.C:
			err = n.trimHistory(ctx)
		case <-check.C:
			// In a cluster nobody may ask for a sync whose error would tell.
			if err := n.blocks.Failed(); err != nil {
				n.log.fail(err)
			}
			if n.journal.Size() < limit {
				continue
			}
			err = n.checkpoint()
			limit = n.journal.Size() + journalLimit
		}
		if err != nil && ctx.Err() == nil {
			n.o.Logger.Warn("background work failed; it is tried again later", "err", err)
		}
	}
}

// checkpoint writes the index and trims the journal, if there is something to
// trim.
func (n *Node) checkpoint() error {
	// In turn, or an older position could be written after a newer one, and
	// records would be missed that are gone.
	n.checkpointing.Lock()
	defer n.checkpointing.Unlock()
	keep, err := n.log.checkpoint(n.journal.Last() + 1)
	if err != nil {
		return err
	}
	if err := n.volume.TrimJournal(keep, func(k journal.Seq) error { keep = k; return nil }); err != nil {
		return err
	}
	if keep <= n.kept {
		return nil
	}
	if err := n.writeKept(keep); err != nil {
		return err
	}
	if err := n.index.Flush(); err != nil {
		return err
	}
	n.kept = keep
	// What is needed by now is not older than what was needed before.
	return n.volume.TrimJournal(keep, n.journal.Trim)
}

// keptKey is where the index has the number of the first record that is needed.
func keptKey() []byte { return []byte{index.SpaceMeta, 'j'} }

func (n *Node) writeKept(keep journal.Seq) error {
	return n.index.Pebble().Set(keptKey(), binary.BigEndian.AppendUint64(nil, uint64(keep)), pebble.NoSync)
}

// readKept returns 0 if there was no checkpoint yet.
func (n *Node) readKept() (journal.Seq, error) {
	value, closer, err := n.index.Pebble().Get(keptKey())
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer closer.Close()
	if len(value) != 8 {
		return 0, fmt.Errorf("%w: journal position of %d bytes", ErrDamaged, len(value))
	}
	return journal.Seq(binary.BigEndian.Uint64(value)), nil
}

// trimHistory forgets what was overwritten longer ago than it must be readable.
func (n *Node) trimHistory(ctx context.Context) error {
	if c := n.cluster.Load(); c != nil && c.group.Status().Role != "leader" {
		return nil // one node does it for all
	}
	before := n.o.Now().Add(-n.o.History).UnixNano()
	for {
		res, err := n.propose(ctx, &namespace.TrimHistory{Time: before})
		if err != nil || !res.More {
			return err
		}
	}
}
