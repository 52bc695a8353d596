// Package mem keeps blocks in memory: a Store for tests and for content that
// need not outlive the process.
package mem

import (
	"context"
	"sync"

	"github.com/cairnfs/cairn/cas"
)

// Store is a cas.Store in memory. Its zero value is empty and ready for use.
// Like every store it keys blocks by hash: the codec says how to read bytes, not
// which bytes they are.
type Store struct {
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
		_, has[i] = s.blocks[c.Hash()]
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
