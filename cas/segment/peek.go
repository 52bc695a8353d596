package segment

import (
	"context"

	"github.com/cairnfs/cairn/cas"
)

// Peek says which blocks are held, as Has does, and promises nothing: one that nobody
// refers to may be gone the next moment.
func (s *Store) Peek(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	has := make([]bool, len(cids))
	for i, c := range cids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		hash := c.Hash()
		at, ok, _, err := s.locate(&hash)
		if err != nil {
			return nil, &cas.BlockError{Op: "peek", CID: c, Where: "index", Err: err}
		}
		has[i] = ok && !s.table.suspected(&hash, at)
	}
	return has, nil
}
