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

// Blocks are put in groups. All that can be done without the tail's lock is done
// before: looking up which blocks are held, and compressing. What remains under
// the lock is to look again in the table, to make the headers, and to write the
// group with one system call.

// Limits of a group. The second applies to the blocks together, but a single block
// may exceed it if segments are that small.
const (
	groupBlocks = 32
	groupBytes  = 2 << 20
)

// group is some blocks on their way into a segment. It holds its buffers for reuse.
type group struct {
	records []record
	bytes   int64 // of the blocks
	moved   bool  // they are in the store already, elsewhere

	headers []byte
	packed  []byte // compressed payloads
	pieces  [][]byte
}

// record is one block of a group.
type record struct {
	header
	payload []byte
	was     index.Location // a damaged location that it replaces
	epoch   uint64         // of the table when the block was not held
}

func (r *record) cid() cas.CID { return cas.NewCID(cas.Codec(r.codec), r.hash) }

// Put stores the blocks that are not held yet, in the order given. While the disk
// is so slow that the table of blocks not yet durable is full, Put waits.
func (s *Store) Put(ctx context.Context, blocks ...cas.Block) error {
	if err := ctx.Err(); err != nil || len(blocks) == 0 {
		return err
	}
	if s.closed.Load() {
		return ErrClosed
	}
	g, ok := s.groups.Get().(*group)
	if !ok {
		g = &group{headers: make([]byte, groupBlocks*headerSize)}
	}
	defer s.groups.Put(g)
	defer g.reset()
	for i := range blocks {
		if !g.fits(&blocks[i], s.o.SegmentSize) {
			if err := s.putGroup(ctx, g); err != nil {
				return err
			}
		}
		if err := s.prepare(g, &blocks[i]); err != nil {
			return &cas.BlockError{Op: "put", CID: blocks[i].CID(), Err: err}
		}
	}
	return s.putGroup(ctx, g)
}

// reset empties the group and lets go of the blocks' bytes.
func (g *group) reset() {
	clear(g.records)
	clear(g.pieces)
	g.records, g.pieces, g.packed, g.bytes = g.records[:0], g.pieces[:0], g.packed[:0], 0
}

func (g *group) fits(b *cas.Block, segmentSize int64) bool {
	n := len(g.records)
	return n == 0 || n < groupBlocks && g.bytes+int64(len(b.Data())) <= min(groupBytes, segmentSize/2)
}

// prepare adds the block to the group if it is not held.
func (s *Store) prepare(g *group, b *cas.Block) error {
	c := b.CID()
	if !c.Defined() {
		return cas.ErrBadCID
	}
	r := record{header: header{codec: byte(c.Codec()), raw: uint32(len(b.Data())), hash: c.Hash()}, payload: b.Data()}
	for i := range g.records {
		if g.records[i].hash == r.hash {
			return nil
		}
	}
	held, was, epoch, err := s.held(c, &r.hash)
	if held || err != nil {
		return err
	}
	r.was, r.epoch = was, epoch
	if packed := g.compress(b.Data()); packed != nil {
		r.payload, r.compression = packed, compressS2
	}
	r.stored = uint32(len(r.payload))
	g.records = append(g.records, r)
	g.bytes += int64(len(b.Data()))
	return nil
}

// held says whether the block is in the store, intact as far as is known, and has a
// collector know if so. If the block is damaged, was is where.
func (s *Store) held(c cas.CID, hash *index.Hash) (held bool, was index.Location, epoch uint64, err error) {
	s.answers.RLock()
	defer s.answers.RUnlock()
	at, ok, epoch, err := s.locate(hash)
	if ok && s.table.suspected(hash, at) {
		return false, at, epoch, err
	}
	if ok {
		s.touched(c)
	}
	return ok, index.Location{}, epoch, err
}

// touched tells the collector of an answer; answers is locked for reading.
func (s *Store) touched(c cas.CID) {
	if s.o.Touched != nil {
		s.o.Touched(c)
	}
}

// putGroup writes the group and empties it.
func (s *Store) putGroup(ctx context.Context, g *group) error {
	if len(g.records) == 0 {
		return nil
	}
	defer g.reset()
	if err := s.waitForRoom(ctx); err != nil {
		return err
	}
	first := g.records[0].cid()
	s.tail.Lock()
	defer s.tail.Unlock()
	err := s.dropHeld(g)
	if err == nil && len(g.records) > 0 {
		err = s.write(g)
	}
	if err != nil {
		return &cas.BlockError{Op: "put", CID: first, Where: s.files.path(s.tail.segment), Err: noSpace(err)}
	}
	return nil
}

// dropHeld removes from the group what another Put has stored meanwhile.
func (s *Store) dropHeld(g *group) error {
	keep := g.records[:0]
	for i := range g.records {
		r := &g.records[i]
		at, where, epoch := s.table.find(&r.hash)
		held := false
		if where == inTable && at != r.was || epoch != r.epoch {
			var err error
			if held, r.was, _, err = s.held(r.cid(), &r.hash); err != nil {
				return err
			}
		}
		if !held {
			keep = append(keep, *r)
		}
	}
	g.records = keep
	return nil
}

// waitForRoom returns when the table has room for another group.
func (s *Store) waitForRoom(ctx context.Context) error {
	for {
		if err := s.syncer.failed(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
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
		}
	}
}

// tail is the end of the store; its mutex is held over the writing of a group and
// nothing else.
type tail struct {
	sync.Mutex
	file    vfs.File // nil before the first Put if no segment can be continued
	segment uint32
	seed    uint32
	offset  int64
	last    uint32 // highest number of a segment file that exists
	base    uint32 // segment of the mark that the header calls synced; see compact.go
	budget  int64  // bytes that may be written before looking at the disk again
}

// write appends the records and enters them into the table; tail is locked. On
// error nothing has changed, though there may be bytes after the end; the next
// record overwrites them.
func (s *Store) write(g *group) error {
	t := &s.tail
	if s.closed.Load() {
		return ErrClosed
	}
	size := int64(0)
	for i := range g.records {
		size += g.records[i].size()
	}
	if err := s.checkSpace(size, g.moved); err != nil {
		return err
	}
	if t.file == nil || t.offset+size > s.o.SegmentSize && t.offset > fileHeaderSize {
		if err := s.roll(); err != nil {
			return err
		}
	}
	offset := t.offset
	for i := range g.records {
		r := &g.records[i]
		h := g.headers[i*headerSize:][:headerSize]
		r.put(h, t.seed, offset)
		g.pieces = append(g.pieces, h)
		if len(r.payload) > 0 {
			g.pieces = append(g.pieces, r.payload)
		}
		offset += r.size()
	}
	if err := s.writePieces(g.pieces); err != nil {
		return err
	}
	s.enter(g, t.segment, t.offset)
	for i := range g.records {
		r := &g.records[i]
		if r.was == (index.Location{}) {
			s.stats.blocks.Add(1)
		}
		s.stats.raw.Add(int64(r.raw) - int64(r.was.Raw))
		s.stats.stored.Add(int64(r.stored) - int64(r.was.Stored))
	}
	t.offset = offset
	t.budget -= size
	return nil
}

// enter adds what was written to the table.
func (s *Store) enter(g *group, segment uint32, offset int64) {
	s.answers.RLock()
	defer s.answers.RUnlock()
	s.table.add(g.records, segment, offset)
	if s.o.Touched == nil || g.moved {
		return
	}
	for i := range g.records {
		s.o.Touched(g.records[i].cid())
	}
}

// writePieces writes the pieces one after the other to the end of the segment: on
// the operating system's own file system with one call, which is a quarter cheaper
// than one call per piece or copying them together, on others one by one.
func (s *Store) writePieces(pieces [][]byte) error {
	at := s.tail.offset
	fd := s.tail.file.Fd()
	if s.o.FS.Unwrap() != nil || fd == vfs.InvalidFd {
		for _, p := range pieces {
			if _, err := s.tail.file.WriteAt(p, at); err != nil {
				return err
			}
			at += int64(len(p))
		}
		return nil
	}
	return writeVector(fd, pieces, at)
}

// roll goes on in a new segment; tail is locked. The end stays where it is until
// something is appended.
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
	t.base, _ = position(h.synced)
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
