// Package mem keeps blocks in memory: a Store for tests and for content that
// need not outlive the process.
package mem

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/cairnfs/cairn/cas"
)

// Store is a cas.Store in memory. Its zero value is empty and ready for use.
// Like every store it keys blocks by hash: the codec says how to read bytes, not
// which bytes they are.
type Store struct {
	// Touched, if not nil, is called for each block that Put stores or finds
	// stored, and each that Has finds, while Delete waits. Set before use.
	Touched func(cas.CID)

	mu     sync.RWMutex
	blocks map[[cas.HashSize]byte][]byte
}

// Get returns a copy of the block.
func (s *Store) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	if err := ctx.Err(); err != nil {
		return cas.Block{}, err
	}
	s.mu.RLock()
	data, ok := s.blocks[c.Hash()]
	s.mu.RUnlock()
	if !ok {
		return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Err: cas.ErrNotFound}
	}
	return cas.Verify(c, append(buf[:0], data...))
}

// Put keeps copies of the blocks.
func (s *Store) Put(ctx context.Context, blocks ...cas.Block) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blocks == nil {
		s.blocks = make(map[[cas.HashSize]byte][]byte)
	}
	for _, b := range blocks {
		if _, ok := s.blocks[b.CID().Hash()]; !ok {
			s.blocks[b.CID().Hash()] = append([]byte(nil), b.Data()...)
		}
		if s.Touched != nil {
			s.Touched(b.CID())
		}
	}
	return nil
}

// Has reports which blocks are held.
func (s *Store) Has(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	has := make([]bool, len(cids))
	for i, c := range cids {
		if _, has[i] = s.blocks[c.Hash()]; has[i] && s.Touched != nil {
			s.Touched(c)
		}
	}
	return has, nil
}

// Sync has nothing to do: the store does not outlive the process.
func (s *Store) Sync(ctx context.Context) error { return ctx.Err() }

// Len returns the number of blocks held.
func (s *Store) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.blocks)
}

// List appends to page[:0] at most limit CIDs of blocks held whose hash is greater than
// after, in order of hash. All are of codec raw.
func (s *Store) List(ctx context.Context, after [cas.HashSize]byte, limit int, page []cas.CID) ([]cas.CID, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	page = page[:0]
	for hash := range s.blocks {
		if bytes.Compare(hash[:], after[:]) > 0 {
			page = append(page, cas.NewCID(cas.Raw, hash))
		}
	}
	slices.SortFunc(page, func(a, b cas.CID) int {
		x, y := a.Hash(), b.Hash()
		return bytes.Compare(x[:], y[:])
	})
	return page[:min(limit, len(page))], ctx.Err()
}

// Delete forgets those of the blocks that are held and for which unless, if it is not
// nil, says false.
func (s *Store) Delete(ctx context.Context, cids []cas.CID, unless func(cas.CID) bool) (deleted int, freed int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range cids {
		data, held := s.blocks[c.Hash()]
		if held && (unless == nil || !unless(c)) {
			delete(s.blocks, c.Hash())
			deleted, freed = deleted+1, freed+int64(len(data))
		}
	}
	return deleted, freed, ctx.Err()
}
