package journal

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// After a crash the operating system may have written what was not synced in any
// order, or not at all. The log therefore ends before the first record that is
// bad, or whose mark lies beyond what survived of the segments; whatever follows
// was never acknowledged and does not count, even if it is intact.
//
// A disk can also damage what was durable. Such damage must not be taken for that
// harmless end. Every header says up to which record the log was durable when it
// was written, and it is checked apart from its payload; so when the log seems to
// end, all that follows is searched for a header that says the record in question
// was durable, which proves damage.
//
// The end is made final by a new, empty file named after the next record: what
// files hold of records which begin at or after the next file's name does not
// count. Nothing is cut off or overwritten.

// CorruptError says which durable record is damaged or missing. It unwraps to
// ErrCorrupt.
type CorruptError struct {
	File   string
	Offset int64 // where the record was expected
	Seq    Seq
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%v: %s, offset %d: record %d %s", ErrCorrupt, e.File, e.Offset, e.Seq, e.Reason)
}

func (e *CorruptError) Unwrap() error { return ErrCorrupt }

// Replay finds the end of the log and calls fn for every record with Seq >= from,
// in order. It must be called once, before the first Append. Everything before
// from must have been durable when from was recorded, and is not needed any more;
// 0 is the same as 1. validMark is where
// the valid bytes of the segments end: a record with a greater Mark, and all that
// follow, do not count.
//
// On return everything that counts is durable, and everything else is discarded
// for good. That holds also for what an earlier process appended and failed to
// sync: its bytes, which the operating system may only have in memory and may take
// for written, are written again.
//
// Errors: *CorruptError, when a record that was durable is damaged or missing or
// has a Mark beyond validMark; the error of fn; else the I/O error. Then nothing
// was discarded, and Replay may be called again.
func (j *Journal) Replay(from Seq, validMark uint64, fn func(Record) error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		return ErrClosed
	case j.err != nil:
		return j.err
	case j.replayed:
		return errors.New("journal was replayed before")
	}
	r := replay{j: j, from: max(from, 1), validMark: validMark, fn: fn}
	if err := r.run(); err != nil {
		return fmt.Errorf("replay journal: %w", err)
	}
	return nil
}

type replay struct {
	j         *Journal
	from      Seq
	validMark uint64
	fn        func(Record) error

	next   Seq // expected
	synced Seq // known to have been durable
}

func (r *replay) run() error {
	j := r.j
	i := 0
	for i+1 < len(j.files) && j.files[i+1].first <= r.from {
		i++ // all of its records precede from
	}
	start := i
	r.next = 1
	if len(j.files) > 0 {
		r.next = j.files[i].first
	}
	if r.next > r.from {
		return r.corrupt(i, 0, r.from, "is missing")
	}
	r.synced = r.from - 1
	end, clean := int64(0), true
	for ; i < len(j.files); i++ {
		var err error
		if end, clean, err = r.file(i); err != nil {
			return err
		}
		if !clean {
			break
		}
	}
	if r.next < r.from { // there is no file at all
		return r.corrupt(i, end, r.from-1, "is missing")
	}
	return r.finish(start, i, end, clean)
}

// file replays the i-th file. It returns the offset at which the records end that
// count, and whether the next file, or the next Append, goes on there.
func (r *replay) file(i int) (end int64, clean bool, err error) {
	j := r.j
	limit := Seq(0) // of the records that count in this file; 0 is none
	if i+1 < len(j.files) {
		limit = j.files[i+1].first
	}
	s, err := j.scan(i)
	if err != nil {
		return 0, false, err
	}
	defer s.close()
	for {
		offset := s.offset
		if r.next == limit {
			return offset, true, nil
		}
		h, payload, state, err := s.next()
		if err != nil {
			return 0, false, err
		}
		good := state == valid && (h.kind == 0 && h.seq+1 == r.next || h.kind != 0 && h.seq == r.next)
		switch {
		case state == ended && limit == 0 && r.next >= r.from:
			return offset, true, nil
		case good && h.kind == 0:
			r.synced = max(r.synced, h.synced)
			continue
		case good && (r.next < r.from || h.mark <= r.validMark):
			r.synced = max(r.synced, h.synced)
			if r.next >= r.from {
				at := Location{File: uint64(j.files[i].first), Offset: offset + headerSize, Len: int64(h.length)}
				rec := Record{Seq: h.seq, Kind: h.kind, Mark: h.mark, Payload: payload, At: at}
				if err := r.fn(rec); err != nil {
					return 0, false, err
				}
			}
			r.next++
			continue
		}
		if r.next < r.from {
			found, err := r.skip(s, offset)
			if err != nil {
				return 0, false, err
			}
			if found {
				continue
			}
			return 0, false, r.corrupt(i, offset, r.next, "is damaged or missing, and all that follow")
		}
		return r.stop(i, s, offset, good)
	}
}

// skip moves on from damage among the records before from, which nobody needs, to
// the next record up to from.
func (r *replay) skip(s *scanner, offset int64) (found bool, err error) {
	damaged := r.next
	found, err = s.search(offset+1, func(h header) bool {
		if h.kind == 0 || h.seq <= damaged || h.seq > r.from {
			return false
		}
		r.next = h.seq
		return true
	})
	if found {
		r.j.o.Logger.Warn("journal is damaged where it was applied already",
			"offset", offset, "from", damaged, "to", r.next-1)
	}
	return found, err
}

// stop decides what it means that the record expected at the given offset is bad,
// or, if good, refers to blocks that are not there.
func (r *replay) stop(i int, s *scanner, offset int64, good bool) (end int64, clean bool, err error) {
	j := r.j
	if err := r.searchProof(i, s, offset); err != nil {
		return 0, false, err
	}
	reason := "is damaged"
	if good {
		reason = "refers to blocks that are damaged"
	}
	if r.synced >= r.next {
		return 0, false, r.corrupt(i, offset, r.next, reason)
	}
	j.o.Logger.Info("journal ends in records that were never synced, they are discarded",
		"file", fileName(uint64(j.files[i].first)), "offset", offset, "seq", r.next, "first", reason)
	return offset, false, nil
}

// searchProof looks in everything that follows the given offset of the i-th file
// for headers that say how far the log was durable.
func (r *replay) searchProof(i int, s *scanner, offset int64) error {
	for {
		_, err := s.search(offset, func(h header) bool {
			r.synced = max(r.synced, h.synced)
			return false
		})
		if err != nil {
			return err
		}
		if i++; i == len(r.j.files) {
			return nil
		}
		next, err := r.j.scan(i)
		if err != nil {
			return err
		}
		defer next.close()
		s, offset = next, 0
	}
}

// finish makes what counts durable and what does not count disappear.
func (r *replay) finish(start, i int, end int64, clean bool) error {
	j := r.j
	last := r.next - 1
	if err := r.rewrite(start, min(i, len(j.files)-1), last); err != nil {
		return err
	}
	if clean && len(j.files) > 0 {
		f, err := j.o.FS.OpenReadWrite(j.path(uint64(j.files[len(j.files)-1].first)), vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		what := j.files[len(j.files)-1]
		j.files = j.files[:len(j.files)-1]
		if j.room, err = j.setAside(f); err != nil {
			j.room = end // full: what comes next needs a file, for which there is no space
		}
		j.begin(f, file{first: what.first, size: end})
	} else {
		// From the last file backwards, so that a crash leaves no gap.
		for n := len(j.files) - 1; n > i || n == i && j.files[n].first == r.next; n-- {
			if err := j.o.FS.Remove(j.path(uint64(j.files[n].first))); err != nil {
				return err
			}
			j.files = j.files[:n]
		}
		f, err := j.create(r.next)
		if err != nil {
			return err
		}
		j.begin(f, file{first: r.next})
	}
	j.last, j.synced, j.recorded = last, last, r.synced
	j.replayed = true
	return nil
}

// rewrite writes the records that count, but are not known to be durable, once
// more in place and syncs them.
func (r *replay) rewrite(start, end int, last Seq) error {
	if r.synced >= last {
		return nil
	}
	for i := start; i <= end; i++ {
		if i < end && r.j.files[i+1].first <= r.synced+1 {
			continue
		}
		if err := r.rewriteFile(i, last); err != nil {
			return err
		}
	}
	return r.j.dir.Sync()
}

func (r *replay) rewriteFile(i int, last Seq) error {
	s, err := r.j.scan(i)
	if err != nil {
		return err
	}
	defer s.close()
	f, err := r.j.o.FS.OpenReadWrite(r.j.path(uint64(r.j.files[i].first)), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	for {
		offset := s.offset
		h, payload, state, err := s.next()
		if err != nil {
			return errors.Join(err, f.Close())
		}
		if state != valid || h.seq > last {
			return errors.Join(f.SyncData(), f.Close())
		}
		if h.seq > r.synced && h.kind != 0 {
			b := append(h.append(nil, s.seed, offset), payload...)
			if _, err := f.WriteAt(b, offset); err != nil {
				return errors.Join(err, f.Close())
			}
		}
	}
}

func (r *replay) corrupt(i int, offset int64, seq Seq, reason string) error {
	name := "(no file)"
	if i >= 0 && i < len(r.j.files) {
		name = r.j.path(uint64(r.j.files[i].first))
	}
	return &CorruptError{File: name, Offset: offset, Seq: seq, Reason: reason}
}

// scanner reads the records of one file in order.
type scanner struct {
	file   vfs.File
	r      *bufio.Reader
	seed   uint32
	offset int64
}

// scanBuffer holds any record. For a file that is shorter, the file's length will do.
const scanBuffer = headerSize + MaxPayload

func (j *Journal) scan(i int) (*scanner, error) {
	first := j.files[i].first
	f, err := j.o.FS.Open(j.path(uint64(first)), vfs.SequentialReadsOption)
	if err != nil {
		return nil, err
	}
	size := min(j.files[i].size, scanBuffer)
	return &scanner{file: f, r: bufio.NewReaderSize(f, int(size)), seed: seedOf(j.id, first)}, nil
}

func (s *scanner) close() { _ = s.file.Close() } // only read from

// state is what was found where a record should begin.
type state int

const (
	bad   state = iota
	valid       // a record
	ended       // the end of the file, without a byte more
)

// next reads the record at s.offset. The payload is valid until the next call. The
// error is one of reading; bad bytes are none, and are not passed.
func (s *scanner) next() (h header, payload []byte, what state, err error) {
	b, err := s.peek(headerSize)
	if err != nil || len(b) == 0 {
		return header{}, nil, ended, err
	}
	h, ok := parseHeader(b, s.seed, s.offset)
	if !ok {
		return header{}, nil, bad, nil
	}
	b, err = s.peek(headerSize + int(h.length))
	if err != nil || len(b) < headerSize+int(h.length) || updateSum(0, b[headerSize:]) != h.payloadSum {
		return header{}, nil, bad, err
	}
	s.offset += int64(len(b))
	_, err = s.r.Discard(len(b))
	return h, b[headerSize:], valid, err
}

// peek returns the next n bytes, fewer at the end of the file.
func (s *scanner) peek(n int) ([]byte, error) {
	b, err := s.r.Peek(n)
	if err == io.EOF || err == bufio.ErrBufferFull {
		err = nil
	}
	return b, err
}

// search calls fn for every valid header at or after the given offset, whether its
// payload is intact or not, until fn returns true; it stays there.
func (s *scanner) search(offset int64, fn func(header) bool) (found bool, err error) {
	s.r.Reset(io.NewSectionReader(s.file, offset, 1<<62))
	s.offset = offset
	for {
		b, err := s.peek(scanBuffer)
		if err != nil || len(b) < headerSize {
			return false, err
		}
		n := 0
		for ; n <= len(b)-headerSize && !found; n++ {
			h, ok := parseHeader(b[n:], s.seed, s.offset+int64(n))
			if found = ok && fn(h); found {
				break
			}
		}
		if _, err := s.r.Discard(n); err != nil {
			return false, err
		}
		s.offset += int64(n)
		if found {
			return true, nil
		}
	}
}
