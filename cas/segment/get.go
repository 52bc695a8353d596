package segment

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/index"
)

// locate returns where a block lies, and whether there is one.
func (s *Store) locate(hash *index.Hash) (at index.Location, ok bool, epoch uint64, err error) {
	at, where, epoch := s.table.find(hash)
	if where == unknown {
		at, ok, err = s.ix.Block(hash)
	}
	return at, ok || where == inTable, epoch, err
}

// left says whether the block does not lie at the given place any more: it was moved,
// and can be read again, or deleted.
func (s *Store) left(hash *index.Hash, at index.Location) bool {
	now, ok, _, err := s.locate(hash)
	return err == nil && (!ok || now != at)
}

// Get reads a block and verifies it. A block that is damaged, or lies in a segment
// that was cut short or is missing, is ErrCorrupt; Put stores it again.
func (s *Store) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	if err := ctx.Err(); err != nil {
		return cas.Block{}, err
	}
	if s.closed.Load() {
		return cas.Block{}, ErrClosed
	}
	hash := c.Hash()
	at, ok, _, err := s.locate(&hash)
	if errors.Is(err, index.ErrBadRecord) {
		err = fmt.Errorf("%w: %w", cas.ErrCorrupt, err)
	}
	if err != nil {
		return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Where: "index", Err: err}
	}
	if !ok || !c.Defined() {
		return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Err: cas.ErrNotFound}
	}
	b, err := s.read(c, at, buf)
	if errors.Is(err, cas.ErrCorrupt) {
		if s.left(&hash, at) {
			return s.Get(ctx, c, buf)
		}
		s.table.suspect(&hash, at)
		s.o.Logger.Error("block is corrupt", "cid", c, "segment", fileName(at.Segment), "offset", at.Offset)
	}
	return b, err
}

// read returns the block at the given place, in buf if it is large enough.
func (s *Store) read(c cas.CID, at index.Location, buf []byte) (cas.Block, error) {
	corrupt := func() (cas.Block, error) {
		return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Where: s.files.path(at.Segment), Err: cas.ErrCorrupt}
	}
	if at.Raw > cas.MaxBlockSize || at.Stored > at.Raw {
		return corrupt()
	}
	if cap(buf) < int(at.Raw) {
		buf = make([]byte, at.Raw)
	}
	data := buf[:at.Raw]
	payload := data
	if at.Compression == compressS2 {
		pooled, ok := s.payloads.Get().(*[]byte)
		if !ok {
			pooled = new([]byte)
		}
		defer s.payloads.Put(pooled)
		if cap(*pooled) < int(at.Stored) {
			*pooled = make([]byte, at.Stored)
		}
		payload = (*pooled)[:at.Stored]
	}
	err := s.readPayload(payload, at)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || missing(err) {
		return corrupt()
	}
	if err != nil {
		return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Where: s.files.path(at.Segment), Err: err}
	}
	switch at.Compression {
	case compressNone:
	case compressS2:
		if data = expand(payload, at.Raw, data); data == nil {
			return corrupt()
		}
	default:
		return corrupt()
	}
	b, err := cas.Verify(c, data)
	if err != nil {
		return corrupt()
	}
	return b, nil
}

func (s *Store) readPayload(p []byte, at index.Location) error {
	file, err := s.files.acquire(at.Segment)
	if err != nil {
		return err
	}
	defer s.files.release(file)
	if len(p) == 0 {
		return nil
	}
	_, err = file.ReadAt(p, int64(at.Offset)+headerSize)
	return err
}

// Has says which blocks are held; one that was found damaged is not.
func (s *Store) Has(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	return s.ask(ctx, "has", cids, func(c cas.CID, hash *[cas.HashSize]byte) (bool, error) {
		held, _, _, err := s.held(c, hash)
		return held, err
	})
}

// ask says of some blocks whether each is held, as held does.
func (s *Store) ask(ctx context.Context, op string, cids []cas.CID, held func(cas.CID, *[cas.HashSize]byte) (bool, error)) ([]bool, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	has := make([]bool, len(cids))
	for i, c := range cids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		hash := c.Hash()
		var err error
		if has[i], err = held(c, &hash); err != nil {
			return nil, &cas.BlockError{Op: op, CID: c, Where: "index", Err: err}
		}
	}
	return has, nil
}
