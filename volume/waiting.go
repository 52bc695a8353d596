package volume

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/cairnfs/cairn/cas"
)

// waitingMax bounds the bytes of blocks that wait for space: what one extent can
// make that is appended to a stream, with room to spare.
const waitingMax = maxExtent + 4<<20

// waiting is a store that takes a block even when the store behind it is full,
// and keeps it in memory until there is space. A tree that is being written
// could not go on from a block that was refused, and the bytes it has taken are
// nowhere else. Its user calls settle before it gives the tree more, and before
// it names what the tree holds.
type waiting struct {
	cas.Store

	mu     sync.Mutex
	blocks []cas.Block
	size   int
}

// Put stores the blocks, or keeps them if there is no space.
func (s *waiting) Put(ctx context.Context, blocks ...cas.Block) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.flush(ctx)
	if err == nil {
		err = s.Store.Put(ctx, blocks...)
	}
	if !errors.Is(err, cas.ErrNoSpace) {
		return err
	}
	for _, b := range blocks {
		if s.find(b.CID()) != nil {
			continue
		}
		if s.size += len(b.Data()); s.size > waitingMax {
			return err
		}
		own, err := cas.NewBlock(b.CID().Codec(), bytes.Clone(b.Data()))
		if err != nil {
			return err
		}
		s.blocks = append(s.blocks, own)
	}
	return nil
}

// Get returns a block, whether it waits or not.
func (s *waiting) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	s.mu.Lock()
	b := s.find(c)
	s.mu.Unlock()
	if b != nil {
		return *b, nil
	}
	return s.Store.Get(ctx, c, buf)
}

func (s *waiting) find(c cas.CID) *cas.Block {
	i := slices.IndexFunc(s.blocks, func(b cas.Block) bool { return b.CID() == c })
	if i < 0 {
		return nil
	}
	return &s.blocks[i]
}

// settle returns nil once no block waits.
func (s *waiting) settle(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flush(ctx)
}

func (s *waiting) flush(ctx context.Context) error {
	if len(s.blocks) == 0 {
		return nil
	}
	if err := s.Store.Put(ctx, s.blocks...); err != nil {
		return err
	}
	s.blocks, s.size = nil, 0
	return nil
}
