package segment

import (
	"context"

	"github.com/cairnfs/cairn/cas"
)

// Peek says which blocks are held, as Has does, and promises nothing: one that nobody
// refers to may be gone the next moment.
func (s *Store) Peek(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	return s.ask(ctx, "peek", cids, func(_ cas.CID, hash *[cas.HashSize]byte) (bool, error) {
		at, ok, _, err := s.locate(hash)
		return ok && !s.table.suspected(hash, at), err
	})
}
