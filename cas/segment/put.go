package segment

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/index"
)

// tail is the end of the store; its mutex is held over the writing of a record and
// nothing else.
type tail struct {
	sync.Mutex
	file    vfs.File // nil before the first Put if no segment can be continued
	segment uint32
	seed    uint32
	offset  int64
	last    uint32 // highest number of a segment file that exists
	budget  int64  // bytes that may be written before looking at the disk again
}

// scratch is what a Put needs besides the block.
type scratch struct {
	record []byte // header, and payload if it is compressed
}

var scratches = sync.Pool{New: func() any {
	return &scratch{record: make([]byte, headerSize, headerSize+cas.MaxBlockSize+cas.MaxBlockSize/6+64)}
}}

// Put stores the blocks that are not held yet, in the order given. While the disk
// is so slow that the table of blocks not yet durable is full, Put waits.
func (s *Store) Put(ctx context.Context, blocks ...cas.Block) error {
	for i := range blocks {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := s.put(ctx, &blocks[i]); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (s *Store) put(ctx context.Context, b *cas.Block) error {
	if s.closed.Load() {
		return ErrClosed
	}
	c := b.CID()
	if !c.Defined() {
		return &cas.BlockError{Op: "put", CID: c, Err: cas.ErrBadCID}
	}
	hash := c.Hash()
	held, was, epoch, err := s.held(&hash)
	if err != nil {
		return &cas.BlockError{Op: "put", CID: c, Where: "index", Err: err}
	}
	if held {
		return nil
	}
	if err := s.waitForRoom(ctx); err != nil {
		return err
	}
	sc := scratches.Get().(*scratch)
	defer scratches.Put(sc)
	h := header{codec: byte(c.Codec()), raw: uint32(len(b.Data())), hash: hash}
	payload := b.Data()
	if rec, ok := compress(sc.record[:headerSize], b.Data()); ok {
		h.compression = compressS2
		sc.record, payload = rec, nil
	} else {
		sc.record = sc.record[:headerSize]
	}
	h.stored = uint32(len(sc.record) - headerSize + len(payload))

	s.tail.Lock()
	defer s.tail.Unlock()
	if at, ok, now := s.table.find(&hash); ok && at != was {
		return nil // another Put of this block was faster
	} else if now != epoch {
		if held, was, _, err = s.held(&hash); held || err != nil {
			return err
		}
	}
	if err := s.write(&h, sc.record, payload, was); err != nil {
		return &cas.BlockError{Op: "put", CID: c, Where: s.files.path(s.tail.segment), Err: err}
	}
	return nil
}

// held says whether the block is in the store, intact as far as is known. If it is
// damaged, was is where.
func (s *Store) held(hash *index.Hash) (held bool, was index.Location, epoch uint64, err error) {
	at, ok, epoch, err := s.locate(hash)
	if ok && s.table.suspected(hash, at) {
		return false, at, epoch, err
	}
	return ok, index.Location{}, epoch, err
}

// waitForRoom returns when the table has room for another block.
func (s *Store) waitForRoom(ctx context.Context) error {
	for {
		if err := s.syncer.failed(); err != nil {
			return err
		}
		retire, wait, room := s.table.full()
		if retire {
			select {
			case s.wake <- struct{}{}:
			default: // it is awake
			}
		}
		if !wait {
			return nil
		}
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// write appends a record and enters it into the table; tail is locked. On error
// nothing has changed, though there may be bytes after the end; the next record
// overwrites them.
//
// Header and payload are two writes, unless the payload was compressed into the
// same buffer: copying a payload costs more than a system call.
func (s *Store) write(h *header, record, payload []byte, was index.Location) error {
	t := &s.tail
	if s.closed.Load() {
		return ErrClosed
	}
	if err := s.checkSpace(h.size()); err != nil {
		return err
	}
	if t.file == nil || t.offset+h.size() > s.o.SegmentSize && t.offset > fileHeaderSize {
		if err := s.roll(); err != nil {
			return noSpace(err)
		}
	}
	h.put(record, t.seed, t.offset)
	if _, err := t.file.WriteAt(record, t.offset); err != nil {
		return noSpace(err)
	}
	if len(payload) > 0 {
		if _, err := t.file.WriteAt(payload, t.offset+headerSize); err != nil {
			return noSpace(err)
		}
	}
	at := h.at(t.segment, t.offset)
	t.offset += h.size()
	t.budget -= h.size()
	s.table.add(&h.hash, at, was, mark(t.segment, t.offset))
	if was == (index.Location{}) {
		s.stats.blocks.Add(1)
	}
	s.stats.raw.Add(int64(at.Raw) - int64(was.Raw))
	s.stats.stored.Add(int64(at.Stored) - int64(was.Stored))
	return nil
}

// roll goes on in a new segment; tail is locked.
func (s *Store) roll() error {
	t := &s.tail
	h := fileHeader{
		segment:   t.last + 1,
		store:     s.id,
		continues: s.table.mark(),
		synced:    s.syncer.durable(),
	}
	f, err := s.o.FS.OpenReadWrite(s.files.path(h.segment), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(h.append(nil), 0); err != nil {
		return errors.Join(err, f.Close())
	}
	t.last = h.segment
	s.begin(f, h.segment, fileHeaderSize)
	return nil
}

// begin makes f the segment to append to.
func (s *Store) begin(f vfs.File, segment uint32, offset int64) {
	t := &s.tail
	t.file, t.segment, t.seed, t.offset = f, segment, seedOf(s.id, segment), offset
	s.syncer.begin(f)
}

// noSpace makes cas.ErrNoSpace of what the operating system says when a disk or a
// quota is exhausted.
func noSpace(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", cas.ErrNoSpace, err)
	}
	return err
}
