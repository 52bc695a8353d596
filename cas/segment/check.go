package segment

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/index"
)

// checkBatch is how many blocks Check sorts by location at once. A store of that
// many blocks is read in one sweep from the first segment to the last, a larger
// one in several; the memory is 60 bytes for each.
const checkBatch = 256 << 10

// Check reads and verifies every block that the store held when it was called and
// calls bad for each that cannot be read, with a *cas.BlockError; twice, perhaps,
// for one that was stored a moment before. The codec of its CID is that under which
// the block was first stored. Damaged blocks are stored again by the next Put. The
// error is that of the context or the index.
func (s *Store) Check(ctx context.Context, bad func(cas.CID, error)) error {
	buf := make([]byte, cas.MaxBlockSize)
	batch := s.table.entries()
	check := func() error {
		slices.SortFunc(batch, func(a, b index.Entry) int {
			return cmp.Compare(mark(a.At.Segment, int64(a.At.Offset)), mark(b.At.Segment, int64(b.At.Offset)))
		})
		for i := range batch {
			if err := ctx.Err(); err != nil {
				return err
			}
			c := cas.NewCID(cas.Codec(batch[i].At.Codec), batch[i].Hash)
			_, err := s.Get(ctx, c, buf)
			if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
				return err
			}
			if err != nil && !errors.Is(err, cas.ErrNotFound) { // else it was deleted meanwhile
				bad(c, err)
			}
		}
		batch = batch[:0]
		return nil
	}
	err := s.ix.EachBlock(func(hash *index.Hash, at index.Location) error {
		batch = append(batch, index.Entry{Hash: *hash, At: at})
		if len(batch) < checkBatch {
			return nil
		}
		return check()
	})
	if err != nil {
		return err
	}
	return check()
}
