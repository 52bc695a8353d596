package segment

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/index"
)

// At start the index says up to which mark it knows every block. What lies behind
// it is scanned and verified, and what is intact is indexed. After a clean
// shutdown nothing lies behind it.
//
// The operating system may have written what was not synced in any order, or not
// at all, so there may be gaps, and there the valid bytes end: a journal record
// whose mark is greater may refer to a block in a gap. ValidMark is found by
// walking from a mark that is known to have been durable, record by record. From
// one segment the walk goes on to another only if that one's header says that it
// continues at or before where the walk has come to. Every header is written with
// the mark at which the valid bytes end at that moment. So after a crash with a
// gap, the next segment continues before the gap, and the walk passes it from then
// on; by then the journal has discarded all that refers to what lies behind the
// gap, because it is replayed before the first Put. Damaged bytes are never cut
// off or overwritten: a segment that does not end in a valid record is not
// appended to any more.
//
// Damage among what was durable is no end of the valid bytes. The blocks concerned
// are missing, and are found missing when they are read.
//
// What an earlier process wrote and did not sync, or failed to sync, may be in the
// operating system's memory only, and taken by it for written. Such records are
// written once more in place before the index refers to them.

// batchSize is how many blocks are entered into the index at once.
const batchSize = 4096

// found is what is known of a segment after looking at it.
type found struct {
	number uint32
	header fileHeader
	ok     bool // the header is valid
	size   int64
	good   int64 // up to here, from where the walk enters, all is valid
}

type recovery struct {
	s        *Store
	segments []found
	from     uint64 // what is indexed
	base     uint64 // what is known to have been durable
	indexed  uint64 // what the index may be told is indexed

	entries map[index.Hash]slot
	rewrite vfs.File // the segment being scanned, if it is being rewritten
	blocks  int64
	damaged int64 // bytes
}

// recover brings the index up to date and finds where to go on.
func (s *Store) recover(rebuild bool) error {
	r := &recovery{s: s, entries: make(map[index.Hash]slot)}
	if sum := s.ix.Blocks(); rebuild || sum.Store != s.id {
		if err := s.ix.ResetBlocks(s.id); err != nil {
			return err
		}
	}
	r.from = s.ix.Blocks().IndexedTo
	if err := r.look(); err != nil {
		return err
	}
	r.base = r.from
	for _, g := range r.segments {
		if g.ok {
			r.base = max(r.base, g.header.synced)
		}
	}
	r.indexed = r.from
	for i := range r.segments {
		if err := r.scan(&r.segments[i]); err != nil {
			return err
		}
	}
	valid := r.walk()
	if err := r.finish(valid); err != nil {
		return err
	}
	return s.resume(r, valid)
}

// look reads the headers of the segments that are not indexed as a whole.
func (r *recovery) look() error {
	s := r.s
	numbers, err := listSegments(s.o.FS, s.o.Dir)
	if err != nil {
		return err
	}
	if n := len(numbers); n > 0 {
		s.tail.last = numbers[n-1]
	}
	first, _ := position(r.from)
	for _, n := range numbers {
		if n < first {
			continue
		}
		g := found{number: n}
		f, err := s.o.FS.Open(s.files.path(n))
		if err != nil {
			return err
		}
		b := make([]byte, fileHeaderSize)
		k, err := f.ReadAt(b, 0)
		if err == nil {
			g.header, g.ok = parseFileHeader(b[:k])
			g.ok = g.ok && g.header.segment == n && g.header.store == s.id
		}
		info, err := f.Stat()
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		g.size = info.Size()
		r.segments = append(r.segments, g)
	}
	return nil
}

// scan indexes what lies behind r.from in a segment and finds how far it is valid
// from r.base on.
func (r *recovery) scan(g *found) error {
	s := r.s
	start := int64(fileHeaderSize)
	if n, offset := position(r.from); n == g.number {
		start = max(start, offset)
	}
	if start >= g.size {
		g.good = g.size
		return nil
	}
	f, err := s.o.FS.Open(s.files.path(g.number), vfs.SequentialReadsOption)
	if err != nil {
		return err
	}
	g.good = -1
	sc := newScanner(f, seedOf(s.id, g.number), start, g.size)
	for err == nil {
		var at span
		var ok bool
		if at, ok, err = sc.next(); err != nil || !ok {
			break
		}
		if !at.valid {
			if g.good < 0 && mark(g.number, at.end) > r.base {
				g.good = at.offset
			}
			r.damaged += at.end - at.offset
			s.o.Logger.Warn("segment holds bytes that are no block", "segment", fileName(g.number),
				"offset", at.offset, "length", at.end-at.offset, "durable", mark(g.number, at.offset) < r.base)
			continue
		}
		err = r.add(g, &at)
	}
	if g.good < 0 {
		g.good = sc.offset
	}
	return errors.Join(err, f.Close(), r.commit(mark(g.number, sc.offset)))
}

// add takes up a valid record.
func (r *recovery) add(g *found, at *span) error {
	h := &at.header
	if mark(g.number, at.offset) >= r.base {
		if r.rewrite == nil {
			f, err := r.s.o.FS.OpenReadWrite(r.s.files.path(g.number), vfs.WriteCategoryUnspecified)
			if err != nil {
				return err
			}
			r.rewrite = f
		}
		if _, err := r.rewrite.WriteAt(at.record, at.offset); err != nil {
			return fmt.Errorf("write again what may not be durable: %w", err)
		}
	}
	// Of two records of a block the later one counts: the earlier was damaged
	// when it was written.
	was, known, err := r.s.ix.Block(&h.hash)
	if err != nil {
		return err
	}
	here := mark(g.number, at.offset)
	if !known || mark(was.Segment, int64(was.Offset)) < here {
		r.entries[h.hash] = slot{at: h.at(g.number, at.offset), was: was}
		r.blocks++
	}
	if len(r.entries) < batchSize {
		return nil
	}
	return r.commit(mark(g.number, at.end))
}

// commit enters what was found before the given mark into the index, after making
// it durable.
func (r *recovery) commit(end uint64) error {
	if f := r.rewrite; f != nil {
		r.rewrite = nil
		if err := errors.Join(f.SyncData(), f.Close(), r.s.dir.Sync()); err != nil {
			return err
		}
	}
	entries := make([]index.Entry, 0, len(r.entries))
	for hash, in := range r.entries {
		entries = append(entries, index.Entry{Hash: hash, At: in.at, Was: in.was})
	}
	clear(r.entries)
	// Behind base the scan is not to be skipped the next time, because it
	// finds out what is valid.
	r.indexed = max(r.indexed, min(end, r.base))
	return r.s.ix.AddBlocks(entries, r.indexed)
}

// walk returns the mark at which the valid bytes end.
func (r *recovery) walk() uint64 {
	at := r.base
	for {
		n, offset := position(at)
		i := slices.IndexFunc(r.segments, func(g found) bool { return g.number == n })
		if i >= 0 {
			at = mark(n, max(offset, r.segments[i].good))
		} else if n != 0 {
			return at // the segment is missing
		}
		next := r.successor(at)
		if next == 0 {
			return at
		}
		at = mark(next, fileHeaderSize)
	}
}

// successor returns the number of the last segment that continues at or before the
// mark and in the same segment as it; 0 is none.
func (r *recovery) successor(at uint64) uint32 {
	n, _ := position(at)
	for i := len(r.segments) - 1; i >= 0 && r.segments[i].number > n; i-- {
		g := &r.segments[i]
		if before, _ := position(g.header.continues); g.ok && before == n && g.header.continues <= at {
			return g.number
		}
	}
	return 0
}

// finish tells the index how far everything is indexed and makes that durable if
// anything was scanned.
func (r *recovery) finish(valid uint64) error {
	s := r.s
	if valid == s.ix.Blocks().IndexedTo {
		return nil
	}
	s.o.Logger.Info("segments were scanned", "from", describe(r.from), "valid to", describe(valid),
		"blocks", r.blocks, "damaged bytes", r.damaged)
	if err := s.ix.AddBlocks(nil, valid); err != nil {
		return err
	}
	return s.ix.Flush()
}

// resume prepares for appending: to the last segment, if it ends in a valid record
// and nothing else, otherwise to a new one.
func (s *Store) resume(r *recovery, valid uint64) error {
	s.validMark = valid
	s.table.setMark(valid)
	s.syncer.synced = valid
	if len(r.segments) == 0 {
		return nil
	}
	last := r.segments[len(r.segments)-1]
	if valid != mark(last.number, last.size) || !last.ok {
		return nil
	}
	f, err := s.o.FS.OpenReadWrite(s.files.path(last.number), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	s.begin(f, last.number, last.size)
	if r.from > mark(last.number, fileHeaderSize) { // so its header is durable
		s.tail.base, _ = position(last.header.synced)
	}
	return nil
}
