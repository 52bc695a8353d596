package volume

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
)

// Ranges changed in files are kept in the node's journal when they are synced or
// when memory is short. A record is a fixed header, then what the flags say:
//
//	0   1  version, 1
//	1   1  flags, bit 0: truncate; bit 1: more of the group follows; bit 2: first
//	       of its group; bit 3: zeros; bit 4: bytes of a tree; bit 5: spilled
//	       by a shared volume
//	2   8  inode, big endian as all numbers
//	10  8  offset of the range; of a truncate: the new size
//	18  8  time of the write, nanoseconds since 1970
//	26  …  the bytes, or of zeros their number (8), or of a tree their number (8),
//	       where in it they begin (8), its size (8), its holes (8) and its CID
//
// A restart puts the records of a file back over its committed content, in
// their order, from the one after Content.Folded on. A group that is cut off, at
// the end of the journal or by the first record of another, is left out. The tree
// that a record refers to was named by a command before it. Records of a shared
// volume are not replayed: there an fsync names the content instead, and what others
// have named since knows nothing of this node's records.
const (
	rangeVersion    = 1
	rangeTruncate   = 1
	rangeMore       = 2
	rangeFirst      = 4
	rangeZeros      = 8
	rangeTree       = 16
	rangeSpill      = 32
	rangeHeaderSize = 26
	rangeTreeSize   = 4*8 + cas.CIDSize
)

// ErrRecord says that a range record of the journal cannot be understood.
var ErrRecord = errors.New("bad range record")

type rangeRecord struct {
	Ino      namespace.Ino
	Off      int64
	N        int64 // bytes of the range
	Mtime    int64
	Truncate bool
	More     bool // the file's next record belongs to the same group
	First    bool // the file's record before does not
	Spill    bool // only read while the file is in memory
	Kind     extentKind
	Tree     manifest.Root // of shared
	TreeOff  int64
}

// encode returns the record without the bytes of a written range.
func (r *rangeRecord) encode() []byte {
	b := make([]byte, rangeHeaderSize, rangeHeaderSize+rangeTreeSize)
	b[0] = rangeVersion
	for _, f := range []struct {
		set bool
		bit byte
	}{
		{r.Truncate, rangeTruncate}, {r.More, rangeMore}, {r.First, rangeFirst},
		{r.Kind == zeros, rangeZeros}, {r.Kind == shared, rangeTree}, {r.Spill, rangeSpill},
	} {
		if f.set {
			b[1] |= f.bit
		}
	}
	binary.BigEndian.PutUint64(b[2:], uint64(r.Ino))
	binary.BigEndian.PutUint64(b[10:], uint64(r.Off))
	binary.BigEndian.PutUint64(b[18:], uint64(r.Mtime))
	number := func(n int64) { b = binary.BigEndian.AppendUint64(b, uint64(n)) }
	switch r.Kind {
	case zeros:
		number(r.N)
	case shared:
		number(r.N)
		number(r.TreeOff)
		number(r.Tree.Size)
		number(r.Tree.Holes)
		b = r.Tree.CID.Append(b)
	}
	return b
}

// decodeRange reads a record.
func decodeRange(p []byte) (rangeRecord, error) {
	if len(p) < rangeHeaderSize {
		return rangeRecord{}, fmt.Errorf("%w: %d bytes", ErrRecord, len(p))
	}
	r := rangeRecord{
		Ino:      namespace.Ino(binary.BigEndian.Uint64(p[2:])),
		Off:      int64(binary.BigEndian.Uint64(p[10:])),
		N:        int64(len(p) - rangeHeaderSize),
		Mtime:    int64(binary.BigEndian.Uint64(p[18:])),
		Truncate: p[1]&rangeTruncate != 0,
		More:     p[1]&rangeMore != 0,
		First:    p[1]&rangeFirst != 0,
		Spill:    p[1]&rangeSpill != 0,
	}
	kind := p[1] &^ (rangeMore | rangeFirst | rangeSpill)
	if p[0] != rangeVersion || kind&(kind-1) != 0 || kind > rangeTree {
		return rangeRecord{}, fmt.Errorf("%w: version %d, flags %#x", ErrRecord, p[0], p[1])
	}
	rest := p[rangeHeaderSize:]
	ok := true
	switch kind {
	case rangeTruncate:
		ok = r.N == 0
	case rangeZeros:
		if r.Kind, ok = zeros, len(rest) == 8; ok {
			r.N = int64(binary.BigEndian.Uint64(rest))
		}
	case rangeTree:
		if r.Kind, ok = shared, len(rest) == rangeTreeSize; ok {
			ok = r.decodeTree(rest)
		}
	}
	if !ok || r.Off < 0 || r.N < 0 || r.Off > maxSize-r.N {
		return rangeRecord{}, fmt.Errorf("%w: flags %#x, offset %d, %d bytes", ErrRecord, p[1], r.Off, r.N)
	}
	return r, nil
}

// decodeTree reads what follows the header of a record that refers to a tree.
func (r *rangeRecord) decodeTree(p []byte) bool {
	number := func(i int) int64 { return int64(binary.BigEndian.Uint64(p[8*i:])) }
	cid, err := cas.CIDFromBytes(p[4*8:])
	r.N, r.TreeOff = number(0), number(1)
	r.Tree = manifest.Root{CID: cid, Size: number(2), Holes: number(3)}
	return err == nil && r.N >= 0 && r.TreeOff >= 0 && r.TreeOff <= r.Tree.Size-r.N && r.Tree.Holes >= 0
}

// describe makes r say what the bytes of e are, and returns them if they are its
// own.
func (r *rangeRecord) describe(e *extent) []byte {
	r.Kind, r.N = e.kind, e.n
	if e.kind == shared {
		r.Tree, r.TreeOff = e.tree.Root(), e.pos
	}
	return e.mem
}

func (v *Volume) appendRange(r *rangeRecord, p []byte) (journal.Seq, journal.Location, error) {
	return v.o.Journal.Append(journal.KindRange, 0, r.encode(), p)
}

// replayed is a record that Replay was given, without its bytes.
type replayed struct {
	rangeRecord
	seq journal.Seq
	at  journal.Location
}

// Replay takes a journal record of kind KindRange. Records come in the order of
// the journal, before Start.
func (v *Volume) Replay(rec journal.Record) error {
	r, err := decodeRange(rec.Payload)
	if err != nil {
		return fmt.Errorf("journal record %d: %w", rec.Seq, err)
	}
	if r.Spill {
		return nil
	}
	v.replayed[r.Ino] = append(v.replayed[r.Ino], replayed{r, rec.Seq, rec.At})
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
	set := f.committed.MtimeSet
	if set == 0 {
		set = f.committed.Mtime
	}
	if r.Mtime <= set {
		f.mtime = f.committed.Mtime // it was set after this was written
	}
	f.recorded(r.seq)
	if r.Truncate {
		f.cutUnnamed(r.Off) // the command may have been lost
		return
	}
	e := extent{off: r.Off, n: r.N, kind: r.Kind, seq: r.seq}
	switch r.Kind {
	case written:
		e.at, e.pos = r.at, rangeHeaderSize
	case shared:
		e.tree, e.pos = f.v.reader(r.Tree), r.TreeOff
		f.rely(f.v.step())
		f.logs(e)
	}
	if r.N > 0 {
		f.dirty.put(e)
	}
	f.size = max(f.size, r.Off+r.N)
}
