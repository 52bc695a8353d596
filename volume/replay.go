package volume

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
)

// Ranges written to files are kept in the node's journal when they are synced
// or when memory is short. A record is a fixed header, then the bytes:
//
//	0   1  version, 1
//	1   1  flags, bit 0: truncate; bit 1: more of the group follows; bit 2: first of its group
//	2   8  inode, big endian as all numbers
//	10  8  offset of the bytes; of a truncate: the new size
//	18  8  time of the write, nanoseconds since 1970
//	26  …  the bytes
//
// A restart puts the records of a file back over its committed content, in
// their order, from the one after Content.Folded on. A group that is cut off, at
// the end of the journal or by the first record of another, is left out.
const (
	rangeVersion    = 1
	rangeTruncate   = 1
	rangeMore       = 2
	rangeFirst      = 4
	rangeHeaderSize = 26
)

// ErrRecord says that a range record of the journal cannot be understood.
var ErrRecord = errors.New("bad range record")

type rangeRecord struct {
	Ino      namespace.Ino
	Off      int64
	Mtime    int64
	Truncate bool
	More     bool // the file's next record belongs to the same group
	First    bool // the file's record before does not
}

func (r *rangeRecord) encode() [rangeHeaderSize]byte {
	var b [rangeHeaderSize]byte
	b[0] = rangeVersion
	if r.Truncate {
		b[1] |= rangeTruncate
	}
	if r.More {
		b[1] |= rangeMore
	}
	if r.First {
		b[1] |= rangeFirst
	}
	binary.BigEndian.PutUint64(b[2:], uint64(r.Ino))
	binary.BigEndian.PutUint64(b[10:], uint64(r.Off))
	binary.BigEndian.PutUint64(b[18:], uint64(r.Mtime))
	return b
}

// decodeRange reads a record's header and returns how many bytes follow it.
func decodeRange(p []byte) (rangeRecord, int64, error) {
	if len(p) < rangeHeaderSize {
		return rangeRecord{}, 0, fmt.Errorf("%w: %d bytes", ErrRecord, len(p))
	}
	if p[0] != rangeVersion || p[1]&^(rangeTruncate|rangeMore|rangeFirst) != 0 {
		return rangeRecord{}, 0, fmt.Errorf("%w: version %d, flags %#x", ErrRecord, p[0], p[1])
	}
	r := rangeRecord{
		Ino:      namespace.Ino(binary.BigEndian.Uint64(p[2:])),
		Off:      int64(binary.BigEndian.Uint64(p[10:])),
		Mtime:    int64(binary.BigEndian.Uint64(p[18:])),
		Truncate: p[1]&rangeTruncate != 0,
		More:     p[1]&rangeMore != 0,
		First:    p[1]&rangeFirst != 0,
	}
	n := int64(len(p) - rangeHeaderSize)
	if r.Off < 0 || r.Off > maxSize-n || r.Truncate && n != 0 {
		return rangeRecord{}, 0, fmt.Errorf("%w: offset %d, %d bytes", ErrRecord, r.Off, n)
	}
	return r, n, nil
}

func (v *Volume) appendRange(r *rangeRecord, p []byte) (journal.Seq, journal.Location, error) {
	head := r.encode()
	return v.o.Journal.Append(journal.KindRange, 0, head[:], p)
}

// replayed is a record that Replay was given, without its bytes.
type replayed struct {
	rangeRecord
	seq journal.Seq
	at  journal.Location
	n   int64
}

// Replay takes a journal record of kind KindRange. Records come in the order of
// the journal, before Start.
func (v *Volume) Replay(rec journal.Record) error {
	r, n, err := decodeRange(rec.Payload)
	if err != nil {
		return fmt.Errorf("journal record %d: %w", rec.Seq, err)
	}
	v.replayed[r.Ino] = append(v.replayed[r.Ino], replayed{r, rec.Seq, rec.At, n})
	return nil
}

// restore lays the replayed records over the content that the namespace has by
// now.
func (v *Volume) restore() error {
	for ino, records := range v.replayed {
		n, err := v.o.State.Inode(ino)
		if errors.Is(err, namespace.ErrNotFound) {
			continue // reaped since
		}
		if err != nil {
			return err
		}
		f := v.newFile(n)
		var group []replayed
		for _, r := range records {
			if r.First {
				group = group[:0]
			}
			group = append(group, r)
			if r.More {
				continue
			}
			for _, r := range group {
				if r.seq > f.folded {
					f.replay(r)
				}
			}
			group = group[:0]
		}
		if !f.clean() && n.Nlink > 0 {
			v.files[ino] = f
		}
	}
	v.replayed = nil
	return nil
}

func (f *file) replay(r replayed) {
	f.touch(r.Mtime)
	f.recorded(r.seq)
	if r.Truncate {
		f.cut(r.Off)
		// The command may have been lost: what a stream puts in place of
		// what was cut is not named yet.
		f.committed.Content.Length = f.base.length
		return
	}
	if r.n > 0 {
		f.dirty.put(extent{off: r.Off, n: r.n, seq: r.seq, at: r.at, pos: rangeHeaderSize})
	}
	f.size = max(f.size, r.Off+r.n)
}
