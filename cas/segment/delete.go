package segment

import (
	"context"
	"fmt"
	"slices"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/index"
)

// Deleting a block takes it out of the index. Its bytes stay where they are until
// Compact gives the space back, and so the block may be found again: by a crash,
// after which the index is that of a moment before, or by Rebuild. That is harmless.
// It is a block like any other, of which nothing says that it is needed.
//
// What is deleted was let go of by commands that the journal may not have synced yet.
// The index writes nothing to disk before its barrier has, and the segment with the
// bytes is removed only after the index has; so whatever a crash leaves, a block is
// missing only if nothing refers to it any more.

// deleteBatch is how many blocks are deleted at once. No Put or Has waits longer than
// it takes to ask unless about so many.
const deleteBatch = 256

// Delete forgets the blocks, and returns how many of them it held and by how much
// Stats.StoredBytes has fallen. The space they took up on the disk comes back later,
// or by Compact.
//
// For each block unless is asked, if it is not nil, and one of which it says true
// stays. It is asked under a lock that excludes the answer of Put or Has that the
// block is held, and with it Options.Touched; so it sees the effects of each such
// answer that was given, and each that comes later says that the block is not held.
// It must be quick, and not use the store. A block that is stored while Delete is
// running stays.
func (s *Store) Delete(ctx context.Context, cids []cas.CID, unless func(cas.CID) bool) (deleted int, freed int64, err error) {
	if s.closed.Load() {
		return 0, 0, ErrClosed
	}
	s.moving.RLock()
	defer s.moving.RUnlock()
	// Then what is in the table was stored since.
	if err := s.indexTo(ctx, s.table.mark()); err != nil {
		return 0, 0, fmt.Errorf("delete blocks: %w", err)
	}
	defer func() { s.compaction.add(freed + int64(deleted)*headerSize) }()
	for batch := range slices.Chunk(cids, deleteBatch) {
		if err := ctx.Err(); err != nil {
			return deleted, freed, err
		}
		n, bytes, err := s.deleteSome(batch, unless)
		deleted, freed = deleted+n, freed+bytes
		if err != nil {
			return deleted, freed, fmt.Errorf("delete blocks: %w", err)
		}
	}
	return deleted, freed, nil
}

// deleteSome is Delete of a batch.
func (s *Store) deleteSome(cids []cas.CID, unless func(cas.CID) bool) (deleted int, freed int64, err error) {
	s.settling.Lock()
	defer s.settling.Unlock()
	known := make([]cas.CID, 0, len(cids))
	entries := make([]index.Entry, 0, len(cids))
	for _, c := range cids {
		hash := c.Hash()
		at, ok, err := s.ix.Block(&hash)
		if err != nil {
			return 0, 0, &cas.BlockError{Op: "delete", CID: c, Where: "index", Err: err}
		}
		if ok && c.Defined() {
			known, entries = append(known, c), append(entries, index.Entry{Hash: hash, At: at})
		}
	}
	entries = s.forget(known, entries, unless)
	if len(entries) == 0 {
		return 0, 0, nil
	}
	raw := int64(0)
	for i := range entries {
		raw += int64(entries[i].At.Raw)
		freed += int64(entries[i].At.Stored)
	}
	if err := s.ix.DeleteBlocks(entries); err != nil {
		// They may have been stored again as new blocks meanwhile, which would
		// be counted twice.
		s.syncer.fail(fmt.Errorf("the index cannot be written: %w", err))
		return 0, 0, err
	}
	s.table.forgotten()
	s.stats.blocks.Add(-int64(len(entries)))
	s.stats.raw.Add(-raw)
	s.stats.stored.Add(-freed)
	return len(entries), freed, nil
}

// forget makes those of the blocks that do not stay unknown to everybody and returns
// them; settling is locked. The tail's lock keeps a Put from storing a block again in
// the belief that it replaces a damaged one.
func (s *Store) forget(cids []cas.CID, entries []index.Entry, unless func(cas.CID) bool) []index.Entry {
	s.tail.Lock()
	defer s.tail.Unlock()
	s.answers.Lock()
	defer s.answers.Unlock()
	gone := entries[:0]
	for i := range entries {
		if unless != nil && unless(cids[i]) {
			continue
		}
		if s.table.forget(&entries[i].Hash) {
			gone = append(gone, entries[i])
		}
	}
	return gone
}
