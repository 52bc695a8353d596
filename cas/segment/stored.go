package segment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/index"
)

// Stored is a block in the form in which it is stored and sent: perhaps
// compressed, and not verified. Block makes a block of it.
type Stored struct {
	CID         cas.CID
	Raw         int  // length of the block, in bytes
	Compression byte // 0 none, 1 S2, as in the header of a record
	Payload     []byte
}

// Plain returns the stored form of a block that is not compressed; it refers to the
// block's bytes.
func Plain(b cas.Block) Stored {
	return Stored{CID: b.CID(), Raw: len(b.Data()), Compression: compressNone, Payload: b.Data()}
}

// Block decompresses and verifies the payload. The block is in buf if its capacity
// allows, or refers to the payload if that is not compressed. No more memory is
// taken than Raw says, and that is at most cas.MaxBlockSize. The error is a
// *cas.BlockError with cas.ErrCorrupt.
func (s *Stored) Block(buf []byte) (cas.Block, error) {
	data := s.Payload
	switch {
	case s.Raw < 0 || s.Raw > cas.MaxBlockSize || !s.CID.Defined():
		return s.corrupt()
	case s.Compression == compressNone:
	case s.Compression == compressS2:
		if data = expand(s.Payload, uint32(s.Raw), buf); data == nil {
			return s.corrupt()
		}
	default:
		return s.corrupt()
	}
	if len(data) != s.Raw {
		return s.corrupt()
	}
	return cas.Verify(s.CID, data)
}

func (s *Stored) corrupt() (cas.Block, error) {
	return cas.Block{}, &cas.BlockError{Op: "verify", CID: s.CID, Err: cas.ErrCorrupt}
}

// Stored reads a block as it is stored, without looking at the payload: whoever
// receives it verifies it. The payload is in buf if its capacity allows.
//
// Errors: cas.ErrNotFound, also for a block that was found damaged before;
// cas.ErrCorrupt if the place where it should be cannot be read as one; otherwise
// the I/O or context error.
func (s *Store) Stored(ctx context.Context, c cas.CID, buf []byte) (Stored, error) {
	if err := ctx.Err(); err != nil {
		return Stored{}, err
	}
	if s.closed.Load() {
		return Stored{}, ErrClosed
	}
	fail := func(where string, err error) (Stored, error) {
		return Stored{}, &cas.BlockError{Op: "read stored", CID: c, Where: where, Err: err}
	}
	hash := c.Hash()
	at, ok, _, err := s.locate(&hash)
	if errors.Is(err, index.ErrBadRecord) {
		err = fmt.Errorf("%w: %w", cas.ErrCorrupt, err)
	}
	if err != nil {
		return fail("index", err)
	}
	if !ok || !c.Defined() || s.table.suspected(&hash, at) {
		return fail("", cas.ErrNotFound)
	}
	if at.Raw > cas.MaxBlockSize || at.Stored > at.Raw {
		return fail("index", cas.ErrCorrupt)
	}
	if cap(buf) < int(at.Stored) {
		buf = make([]byte, at.Stored)
	}
	buf = buf[:at.Stored]
	err = s.readPayload(buf, at)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || missing(err) {
		if s.left(&hash, at) {
			return s.Stored(ctx, c, buf)
		}
		s.table.suspect(&hash, at)
		err = cas.ErrCorrupt
	}
	if err != nil {
		return fail(s.files.path(at.Segment), err)
	}
	return Stored{CID: c, Raw: int(at.Raw), Compression: at.Compression, Payload: buf}, nil
}

// errEnough ends the walk through the index when a page is full.
var errEnough = errors.New("enough")

// Held is a block that the store holds.
type Held struct {
	CID cas.CID
	// Mark is where its record begins: not before what Mark returned earlier if
	// the block was put since, or moved by Compact.
	Mark   uint64
	Raw    int // length of the block, in bytes
	Stored int // and as it is stored
}

// List appends to page[:0] the CIDs of blocks held whose hash is greater than after,
// in order of hash and at most limit of them: fewer only at the end. The codec is
// that under which a block was first stored. Blocks that were found damaged are
// left out. What is put or deleted while a caller goes from page to page may be missed.
func (s *Store) List(ctx context.Context, after index.Hash, limit int, page []cas.CID) ([]cas.CID, error) {
	page = page[:0]
	err := s.each(ctx, after, func(hash *index.Hash, at index.Location) error {
		if len(page) >= limit {
			return errEnough
		}
		if !s.table.suspected(hash, at) {
			page = append(page, cas.NewCID(cas.Codec(at.Codec), *hash))
		}
		return nil
	})
	return page, err
}

// ListHeld is List with more about each block, and of all blocks: those that were
// found damaged, too.
func (s *Store) ListHeld(ctx context.Context, after index.Hash, limit int, page []Held) ([]Held, error) {
	page = page[:0]
	err := s.each(ctx, after, func(hash *index.Hash, at index.Location) error {
		if len(page) >= limit {
			return errEnough
		}
		page = append(page, Held{
			CID:  cas.NewCID(cas.Codec(at.Codec), *hash),
			Mark: mark(at.Segment, int64(at.Offset)), Raw: int(at.Raw), Stored: int(at.Stored),
		})
		return nil
	})
	return page, err
}

// each calls fn for the blocks held whose hash is greater than after, in order of
// hash, until it returns an error; errEnough is none.
func (s *Store) each(ctx context.Context, after index.Hash, fn func(*index.Hash, index.Location) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.closed.Load() {
		return ErrClosed
	}
	// The table first: blocks move from there to the index.
	fresh := slices.DeleteFunc(s.table.entries(), func(e index.Entry) bool {
		return bytes.Compare(e.Hash[:], after[:]) <= 0
	})
	slices.SortStableFunc(fresh, func(a, b index.Entry) int { return bytes.Compare(a.Hash[:], b.Hash[:]) })
	fresh = slices.CompactFunc(fresh, func(a, b index.Entry) bool { return a.Hash == b.Hash })

	upTo := func(hash *index.Hash) error { // what is fresh and not after hash
		for len(fresh) > 0 && (hash == nil || bytes.Compare(fresh[0].Hash[:], hash[:]) < 0) {
			if err := fn(&fresh[0].Hash, fresh[0].At); err != nil {
				return err
			}
			fresh = fresh[1:]
		}
		return nil
	}
	err := s.ix.EachBlockAfter(&after, func(hash *index.Hash, at index.Location) error {
		if err := upTo(hash); err != nil {
			return err
		}
		if len(fresh) > 0 && fresh[0].Hash == *hash { // the newer place
			at, fresh = fresh[0].At, fresh[1:]
		}
		return fn(hash, at)
	})
	if err == nil {
		err = upTo(nil)
	}
	if errors.Is(err, errEnough) {
		err = nil
	}
	return err
}
