package segment

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairnfs/cairn/index"
)

// The space of deleted blocks comes back by removing whole segments. Of one that is
// dead by half or more, the live rest is moved first: put to the end of the store as a
// group of Put is, except that it replaces what the index has. So the index refers to
// a copy only after that was synced, and the order is
//
//  1. the rest is appended, and synced;
//  2. the index refers to it there, and is made durable (with the deletions before,
//     and, by its barrier, the commands for which they were made);
//  3. the segment is removed, if the index refers to nothing in it any more.
//
// A crash leaves two copies at worst, of which a scan takes either. Nothing is stored
// about which segments are sparse: one walk over the index finds out.
//
// What marks say stays true: a removed segment lies before all that recovery has to
// look at. It begins at the mark that the index has, or, without an index, at the
// greatest that the header of a segment calls synced. The index was made durable with
// a mark behind the segment; and no segment is removed unless a later one's header
// calls synced what lies behind it. Usually one does, since they fill up in turn; for
// the last ones and for small stores two segments are begun for it (see seal).
//
// A block that cannot be read, or is damaged, is not moved: a good copy may be stored
// again, by another node or by whoever has the file, and until then what is left of
// it is left where a tool for the disk can find it. Its segment stays as it is.

// DefaultCompactRate is the limit of what is written in the background to give space
// back, in bytes a second.
const DefaultCompactRate = 32 << 20

const (
	// maxMoving is how many blocks are collected to be moved by one walk over the
	// index; each takes 60 bytes of memory.
	maxMoving = 256 << 10
	// compactIdle is the time after which space is given back, though it is less
	// than a quarter of a segment, when nothing more is deleted.
	compactIdle = time.Minute
	// sealAbove is for how many dead bytes in the last segments these are ended, so
	// that they can be removed; in a store with small segments, for an eighth of one.
	sealAbove = 1 << 20
)

// Compacted says what Compact did.
type Compacted struct {
	Segments int   // that were removed
	Freed    int64 // bytes that the disk has back, less what was moved
	Moved    int64 // bytes that were written again
	Kept     int   // segments that stay because blocks in them cannot be read
}

// compaction is the state of giving space back.
type compaction struct {
	dead atomic.Int64 // bytes of the blocks deleted since the last run
	wake chan struct{}

	mu   sync.Mutex     // held by a run
	kept map[uint32]int // segments that stay, and how many blocks are left in each
}

func (c *compaction) init() {
	c.wake = make(chan struct{}, 1)
	c.kept = make(map[uint32]int)
}

// add takes note of deleted bytes.
func (c *compaction) add(dead int64) {
	if dead == 0 {
		return
	}
	c.dead.Add(dead)
	select {
	case c.wake <- struct{}{}:
	default: // it is awake
	}
}

// compactAll is the goroutine that gives space back in the background.
func (s *Store) compactAll(ctx context.Context) {
	idle := time.NewTimer(compactIdle)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-idle.C:
		case <-s.compaction.wake:
			if s.compaction.dead.Load() < s.o.SegmentSize/4 {
				idle.Reset(compactIdle)
				continue
			}
		}
		if s.compaction.dead.Load() == 0 {
			continue
		}
		done, err := s.compact(ctx, s.o.CompactRate)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			s.o.Logger.Warn("space of deleted blocks is not given back yet", "err", err)
			idle.Reset(compactIdle)
		case done.Segments > 0:
			s.o.Logger.Info("space of deleted blocks is given back", "bytes", done.Freed, "moved", done.Moved)
		}
	}
}

// Compact gives the space of deleted blocks back to the disk, but for that in segments
// of which less than half is dead. It runs beside everything else. On error, and when
// the context ends, it has done a part. It writes as far as half into the reserve.
func (s *Store) Compact(ctx context.Context) (Compacted, error) {
	if s.closed.Load() {
		return Compacted{}, ErrClosed
	}
	return s.compact(ctx, 0)
}

// compact is a run, limited to rate bytes a second if that is not 0.
func (s *Store) compact(ctx context.Context, rate int64) (Compacted, error) {
	s.compaction.mu.Lock()
	defer s.compaction.mu.Unlock()
	dead := s.compaction.dead.Swap(0)
	r := &compactor{s: s, rate: rate}
	err := r.run(ctx)
	if err != nil {
		s.compaction.dead.Add(dead) // to be tried again
	}
	return r.done, err
}

// usage is what a segment holds.
type usage struct {
	segment uint32
	size    int64 // of the file
	live    int64 // of it, of records that the index or the table refers to
	blocks  int   // that are
}

func (u *usage) dead() int64 { return u.size - fileHeaderSize - u.live }

// sparse says whether the segment is to be removed.
func (u *usage) sparse() bool { return u.live == 0 || u.dead() >= u.size/2 }

// compactor is one run.
type compactor struct {
	s    *Store
	rate int64
	done Compacted

	group *group
	buf   []byte // payloads of the group
	raw   []byte // to verify them

	moved []victim // segments of which what can be moved was, since the index was made durable
	bytes int64    // moved since then
}

// victim is a segment to be removed, and what the index refers to in it.
type victim struct {
	usage
	entries []index.Entry
}

func (r *compactor) run(ctx context.Context) error {
	uses, end, err := r.s.survey(ctx)
	if err != nil {
		return err
	}
	late := int64(0)
	for i := range uses {
		if u := &uses[i]; u.segment >= end && u.sparse() {
			late += u.dead()
		}
	}
	if late >= min(sealAbove, r.s.o.SegmentSize/8) {
		if err := r.s.seal(ctx); err != nil {
			return err
		}
		if uses, end, err = r.s.survey(ctx); err != nil {
			return err
		}
	}
	victims := r.choose(uses, end)
	for len(victims) > 0 {
		n, blocks := 0, 0
		for n < len(victims) && (n == 0 || blocks+victims[n].blocks <= maxMoving) {
			blocks += victims[n].blocks
			n++
		}
		if err := r.remove(ctx, victims[:n]); err != nil {
			return err
		}
		victims = victims[n:]
	}
	return nil
}

// choose returns the sparse segments before end, those first that cost least.
func (r *compactor) choose(uses []usage, end uint32) (victims []victim) {
	kept := r.s.compaction.kept
	for _, u := range uses {
		if left, ok := kept[u.segment]; ok && left == u.blocks {
			r.done.Kept++ // nothing has changed
			continue
		}
		if u.segment < end && u.sparse() {
			victims = append(victims, victim{usage: u})
		}
	}
	slices.SortStableFunc(victims, func(a, b victim) int { return cmp.Compare(a.live, b.live) })
	return victims
}

// survey finds out what each segment holds, and before which segment any may be
// removed. What those hold can only become less from then on: nothing is appended to
// them, and all of it is in the index.
func (s *Store) survey(ctx context.Context) (uses []usage, end uint32, err error) {
	if end, err = s.removable(ctx); err != nil {
		return nil, 0, err
	}
	if err := s.indexTo(ctx, s.table.mark()); err != nil {
		return nil, 0, err
	}
	numbers, err := listSegments(s.o.FS, s.o.Dir)
	if err != nil {
		return nil, 0, err
	}
	uses = make([]usage, len(numbers))
	at := make(map[uint32]*usage, len(numbers))
	for i, n := range numbers {
		info, err := s.o.FS.Stat(s.files.path(n))
		if err != nil {
			return nil, 0, err
		}
		uses[i] = usage{segment: n, size: info.Size()}
		at[n] = &uses[i]
	}
	var none index.Hash // which no block has: List begins behind it, too
	err = s.each(ctx, none, func(_ *index.Hash, l index.Location) error {
		if u := at[l.Segment]; u != nil {
			u.live += headerSize + int64(l.Stored)
			u.blocks++
		}
		return ctx.Err()
	})
	return uses, end, err
}

// removable returns the segment before which any may be removed: that of the mark
// which the header of the last segment calls synced, if that header is durable.
func (s *Store) removable(ctx context.Context) (uint32, error) {
	s.tail.Lock()
	last, base, file := s.tail.segment, s.tail.base, s.tail.file
	s.tail.Unlock()
	if file == nil || s.table.mark() < mark(last, fileHeaderSize) {
		return 0, nil
	}
	return base, s.Sync(ctx)
}

// seal ends the last segment, so that it and those before it may be removed: another
// begins, which is synced, and then one whose header says so.
func (s *Store) seal(ctx context.Context) error {
	for range 2 {
		if err := s.begun(); err != nil {
			return noSpace(err)
		}
		if err := s.Sync(ctx); err != nil {
			return err
		}
	}
	return nil
}

// begun goes on in a new segment, to which the end moves.
func (s *Store) begun() error {
	s.tail.Lock()
	defer s.tail.Unlock()
	if s.closed.Load() {
		return ErrClosed
	}
	if err := s.syncer.failed(); err != nil {
		return err
	}
	if err := s.roll(); err != nil {
		return err
	}
	s.table.setMark(mark(s.tail.segment, s.tail.offset))
	return nil
}

// remove moves what is live in the victims and removes them.
func (r *compactor) remove(ctx context.Context, victims []victim) error {
	if err := r.collect(ctx, victims); err != nil {
		return err
	}
	for _, v := range victims {
		if err := r.move(ctx, v.entries); err != nil {
			return err
		}
		r.moved = append(r.moved, v)
		if r.bytes >= r.s.o.SegmentSize || r.bytes > 0 && r.s.short() {
			if err := r.finish(ctx); err != nil {
				return err
			}
		}
	}
	return r.finish(ctx)
}

// short says whether the disk has less space than a segment takes up.
func (s *Store) short() bool {
	free, err := s.available(false)
	return err == nil && free < s.o.SegmentSize
}

// collect finds what the index refers to in the victims.
func (r *compactor) collect(ctx context.Context, victims []victim) error {
	of := make(map[uint32]*victim, len(victims))
	blocks := 0
	for i := range victims {
		of[victims[i].segment] = &victims[i]
		blocks += victims[i].blocks
	}
	if blocks == 0 {
		return nil // nor does it later: nothing is appended to them any more
	}
	err := r.s.ix.EachBlock(func(hash *index.Hash, at index.Location) error {
		if v := of[at.Segment]; v != nil {
			v.entries = append(v.entries, index.Entry{Hash: *hash, At: at})
		}
		return ctx.Err()
	})
	for i := range victims {
		slices.SortFunc(victims[i].entries, func(a, b index.Entry) int { return cmp.Compare(a.At.Offset, b.At.Offset) })
	}
	return err
}

// finish makes the index durable and removes the segments that it does not refer to
// any more.
func (r *compactor) finish(ctx context.Context) error {
	s := r.s
	if len(r.moved) == 0 {
		return nil
	}
	if err := s.indexTo(ctx, s.table.mark()); err != nil {
		return err
	}
	if err := s.ix.Flush(); err != nil {
		return err
	}
	var err error
	for i := range r.moved {
		err = errors.Join(err, r.drop(&r.moved[i]))
	}
	r.done.Freed -= r.bytes
	r.moved, r.bytes = nil, 0
	return errors.Join(err, s.dir.Sync())
}

// drop removes a segment, unless there are still blocks in it.
func (r *compactor) drop(v *victim) error {
	s := r.s
	left := 0
	for i := range v.entries {
		at, ok, err := s.ix.Block(&v.entries[i].Hash)
		if err != nil {
			return err
		}
		if ok && at.Segment == v.segment {
			left++
		}
	}
	if left > 0 {
		s.compaction.kept[v.segment] = left
		r.done.Kept++
		s.o.Logger.Error("segment stays: blocks in it cannot be read", "segment", fileName(v.segment), "blocks", left)
		return nil
	}
	if err := s.files.remove(v.segment); err != nil {
		return err
	}
	delete(s.compaction.kept, v.segment)
	r.done.Segments++
	r.done.Freed += v.size
	return nil
}
