// Package segment is the durable local block store: append-only segment files,
// and the node's index that says where in them each block lies.
//
// A store is a directory of files named NNNNNNNNNN.segment, numbered from 1, and
// the stamp of package stamp with the store's ID. All numbers are little endian.
// A segment begins with a header of 64 bytes:
//
//	0   8  "cairnseg"
//	8   4  version, 1
//	12  4  number of the segment
//	16  16 ID of the store
//	32  8  continues: the mark at which the valid bytes before it end
//	40  8  synced: the mark up to which all was durable when it was made
//	48  12 zero
//	60  4  CRC32C of bytes 0 to 59
//
// and goes on with records, each a header of 52 bytes and the payload:
//
//	0   4  magic, "CrnB"
//	4   1  version, 1
//	5   1  flags, 0
//	6   1  compression: 0 none, 1 S2
//	7   1  codec of the CID
//	8   4  stored length: of the payload
//	12  4  raw length: of the block
//	16  32 BLAKE3 hash of the block
//	48  4  CRC32C of bytes 0 to 47, seeded
//
// The CRC covers the header only. The payload proves itself by the hash, which is
// checked whenever a block is read; a CRC over it would cost as much as a third
// of the hash and prove less. The header's CRC starts from that of the store's ID
// and the segment's number and is combined with the record's offset, so that a
// record is valid in one place only: a copy of a segment inside a block cannot
// pass for records when damage has to be searched for what follows.
//
// # Marks
//
// A mark is a position in the store, segment number << 32 | offset, and grows with
// time. All that was appended before a journal record was written lies before the
// mark that the record carries. After a crash ValidMark says how far the bytes
// are complete; records with a greater mark do not count (see recover.go).
//
// # Durability
//
// Put writes a block to the operating system and enters it into a table in memory.
// When bytes have been synced, their entries move from the table into the index,
// in one batch with the position reached: the index never refers to bytes that
// may be lost, and after a crash it is enough to scan from that position on. A
// goroutine does so for every 64 MiB, so that the table stays small, the scan
// short, and the disk busy evenly.
//
// # Deleting
//
// Delete takes blocks out of the index (delete.go). The space comes back when the live
// rest of a segment that is half dead was appended anew and the segment is removed
// (compact.go), so numbers of segments have gaps. Nothing of it is stored: a record
// is live if the index refers to it. Without the index every record that is left
// counts again, and of two of a block either will do, since both prove themselves.
package segment

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/stamp"
)

// FormatVersion is the version of the store's files. Open refuses any other.
const FormatVersion = 1

// DefaultSegmentSize is what a segment may grow to, in bytes.
const DefaultSegmentSize = 256 << 20

// ErrClosed says that the store is closed.
var ErrClosed = errors.New("block store is closed")

// Options say how to open a store. Dir and Index are required.
type Options struct {
	// FS holds the segments; nil is the operating system's file system.
	FS  vfs.FS
	Dir string
	// Index keeps the locations of blocks. Its block space belongs to the
	// store, which is closed before the index is. Open flushes it, so that a
	// barrier which needs the store is set afterwards.
	Index *index.DB
	// SegmentSize is what a segment may grow to, in bytes, at most 1 GiB; 0
	// means DefaultSegmentSize.
	SegmentSize int64
	// Reserve is the disk space that blocks leave to others, above all to the
	// journal and the index, in bytes: 0 means 1 GiB or 2 % of the disk,
	// whichever is more, negative means none.
	Reserve int64
	// CompactRate limits what is written to give back the space of deleted blocks
	// in the background, in bytes a second: 0 means DefaultCompactRate, negative
	// that only Compact gives it back.
	CompactRate int64
	// Touched, if not nil, is called for every block that Put stores or finds
	// stored, and each that Has says is held, before they return; see Delete. It
	// must be quick, may be called from many goroutines at once, and must not use
	// the store.
	Touched func(cas.CID)
	// Logger is told about recovery and damage; nil is slog.Default().
	Logger *slog.Logger
	// Random gives the identity of a new store; nil is crypto/rand.
	Random io.Reader

	tableBytes int64 // maxFreshBytes of the table, if not 0
}

// Stats counts what a store holds.
type Stats struct {
	Blocks      int64
	RawBytes    int64 // sum of the blocks' lengths
	StoredBytes int64 // sum of their lengths as stored, compressed or not
}

// Store is a cas.Store on disk. Besides the errors of the interface, its methods
// return ErrClosed, and once a sync has failed Put and Sync return that error
// until the store is opened again: an fsync that is tried again succeeds without
// having written anything.
type Store struct {
	o      Options
	id     stamp.ID
	ix     *index.DB
	dir    vfs.File
	files  files
	table  table
	tail   tail
	syncer syncer
	stats  struct{ blocks, raw, stored atomic.Int64 }

	validMark uint64

	// answers is held for reading while it is found that a block is held, and told
	// to Options.Touched; for writing, while blocks are made unknown.
	answers sync.RWMutex
	// moving is held by Compact while it moves some blocks, and for reading by
	// Delete, so that what comes into the table meanwhile was put. settling is held
	// by whoever changes the index. These, the tail's lock and answers are taken in
	// this order.
	moving   sync.RWMutex
	settling sync.Mutex
	entries  []index.Entry // reused by retire

	compaction compaction

	// One goroutine moves entries from the table to the index.
	wake    chan struct{}
	stop    context.CancelFunc
	stopped sync.WaitGroup
	closed  atomic.Bool

	groups   sync.Pool // of *group, for Put
	payloads sync.Pool // of *[]byte, for compressed payloads that are read
}

var _ cas.Store = (*Store)(nil)

// Open opens the store in o.Dir, or makes one if that directory is missing or
// empty. After a crash it scans what was written last; if the index belongs to
// another store or is new, it scans everything (see Rebuild).
//
// The caller replays the journal with ValidMark before the first Put.
//
// Errors: *stamp.VersionError when the directory was written by a newer version
// (nothing in it was touched), stamp.ErrForeign, stamp.ErrDamaged, else the I/O
// error.
func Open(o Options) (*Store, error) { return open(o, false) }

// Rebuild is Open, but forgets what the index says and reads all segments. Blocks
// that are damaged are not in the store afterwards.
func Rebuild(o Options) (*Store, error) { return open(o, true) }

func open(o Options, rebuild bool) (*Store, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.SegmentSize == 0 {
		o.SegmentSize = DefaultSegmentSize
	}
	o.SegmentSize = min(o.SegmentSize, 1<<30)
	if o.CompactRate == 0 {
		o.CompactRate = DefaultCompactRate
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	id, err := stamp.Open(o.FS, o.Dir, "segments", FormatVersion, o.Random)
	if err != nil {
		return nil, fmt.Errorf("open block store: %w", err)
	}
	s := &Store{o: o, id: id, ix: o.Index, wake: make(chan struct{}, 1)}
	s.compaction.init()
	s.files.init(o.FS, o.Dir)
	s.table.init(o.tableBytes)
	if s.dir, err = o.FS.OpenDir(o.Dir); err != nil {
		return nil, fmt.Errorf("open block store: %w", err)
	}
	s.syncer.dir = s.dir
	if err := s.recover(rebuild); err != nil {
		return nil, errors.Join(fmt.Errorf("open block store: %w", err), s.files.close(), s.dir.Close())
	}
	s.makeBallast()
	sum := s.ix.Blocks()
	s.stats.blocks.Store(sum.Blocks)
	s.stats.raw.Store(sum.RawBytes)
	s.stats.stored.Store(sum.StoredBytes)
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.stopped.Go(func() { s.retireAll(ctx) })
	if o.CompactRate > 0 {
		s.stopped.Go(func() { s.compactAll(ctx) })
	}
	return s, nil
}

// Mark returns the end of everything appended so far. What refers to a block after
// its Put has returned carries this mark.
func (s *Store) Mark() uint64 { return s.table.mark() }

// ValidMark returns the mark before which, when the store was opened, all bytes
// were there.
func (s *Store) ValidMark() uint64 { return s.validMark }

// Stats returns what the store holds.
func (s *Store) Stats() Stats {
	return Stats{
		Blocks:      s.stats.blocks.Load(),
		RawBytes:    s.stats.raw.Load(),
		StoredBytes: s.stats.stored.Load(),
	}
}

// Close makes everything durable, writes the index, so that the next Open has
// nothing to scan, and closes the files. No other method may be running or called
// afterwards, except that Sync still answers.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.stop()
	s.stopped.Wait()
	var err error
	for range 2 { // both halves of the table
		if err == nil {
			err = s.retire(context.Background())
		}
	}
	if err == nil {
		err = s.ix.Flush()
	}
	return errors.Join(err, s.syncer.close(), s.files.close(), s.dir.Close())
}

// mark makes a mark of a position.
func mark(segment uint32, offset int64) uint64 { return uint64(segment)<<32 | uint64(offset) }

// position is the inverse of mark.
func position(mark uint64) (segment uint32, offset int64) {
	return uint32(mark >> 32), int64(uint32(mark))
}

// describe writes a mark for people.
func describe(mark uint64) string {
	segment, offset := position(mark)
	return fmt.Sprintf("segment %d, offset %d", segment, offset)
}
