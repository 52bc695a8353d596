// Package journal is the node's one log: records appended in order, made durable
// together, and replayed after a crash.
//
// Whatever survives is a prefix of what was appended, and it contains everything
// that a Sync was answered for. The log lies in files that are named by the
// sequence number of their first record. A record never spans files, so a file
// whose records are all old can be deleted as a whole (Trim). The format of a
// record is described in record.go, what is believed after a crash in replay.go.
//
// Appending copies the record into a buffer. The buffer goes to the operating
// system when it is full, when someone syncs, and shortly after the last append,
// so that a killed process loses next to nothing; only Sync says that anything is
// durable.
//
// After a failed write or sync the journal refuses all further work with the same
// error until it is opened again: what the disk holds is then unknown, and an
// fsync that is tried again succeeds without having written anything. A full disk
// is the exception: a write that was refused has changed nothing, stays in the
// buffer, and may be tried again.
package journal

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/index/stamp"
)

// FormatVersion is the version of the journal's files. Open refuses any other.
const FormatVersion = 1

// MaxPayload is the largest payload of a record, in bytes.
const MaxPayload = 4 << 20

const (
	// DefaultFileSize is what a file may grow to, in bytes.
	DefaultFileSize = 64 << 20
	// DefaultFlushAfter is how long records stay in memory at most.
	DefaultFlushAfter = 100 * time.Millisecond

	// DefaultBufferSize is how many bytes of records stay in memory at most.
	DefaultBufferSize = 256 << 10
	// minRoom is the least space that is worth a file of its own.
	minRoom = 1 << 20
	// maxUnsynced is how many full files may wait for a Sync; beyond that
	// Append syncs them. It bounds what one Sync may have to write.
	maxUnsynced = 1
)

// Errors of a journal. Compare with errors.Is.
var (
	// ErrTooLarge says that a payload exceeds MaxPayload.
	ErrTooLarge = fmt.Errorf("journal record is larger than %d bytes", MaxPayload)
	// ErrNotReplayed says that Append was called before Replay.
	ErrNotReplayed = errors.New("journal must be replayed before it is appended to")
	// ErrClosed says that the journal is closed.
	ErrClosed = errors.New("journal is closed")
	// ErrTrimmed says that the file with the record is gone.
	ErrTrimmed = errors.New("journal record was trimmed")
	// ErrRange says that a Location or a range in it is none that Append returned.
	ErrRange = errors.New("no such range in the journal")
	// ErrCorrupt says that records which were durable are damaged. It comes in
	// a *CorruptError.
	ErrCorrupt = errors.New("journal is corrupt")
)

// Kind says what a record's payload is. 0 is none.
type Kind uint8

const (
	KindCommand Kind = 1 // a command of the namespace
	KindRange   Kind = 2 // a dirty range of a file
	KindLog     Kind = 3 // entries and state of the log of a group of several
)

// Seq numbers records: 1, 2, 3 and so on. A record that did not survive a crash
// was never acknowledged, and its number is given again.
type Seq uint64

// Location is where a payload lies.
type Location struct {
	File   uint64 // Seq of the first record of the file
	Offset int64  // of the payload's first byte
	Len    int64  // of the payload, in bytes
}

// Record is one entry of the log, as Replay delivers it.
type Record struct {
	Seq  Seq
	Kind Kind
	// Mark is the position in the segments that must be valid for the record
	// to count, 0 if it refers to no block.
	Mark    uint64
	Payload []byte // valid during the callback only
	At      Location
}

// Options say how to open a journal. Dir is required.
type Options struct {
	// FS holds the files; nil is the operating system's file system.
	FS  vfs.FS
	Dir string
	// FileSize is what a file may grow to, in bytes; 0 means DefaultFileSize.
	FileSize int64
	// Spare is the disk space, in bytes, that new files of the journal leave to
	// others, above all to what is derived from it: an index that cannot be
	// written ends with the journal being neither applied nor trimmed.
	Spare int64
	// BufferSize is how many bytes of records stay in memory at most; 0 means
	// DefaultBufferSize. Records that are larger pass the buffer by.
	BufferSize int
	// FlushAfter is when records leave the buffer without anyone asking; 0
	// means DefaultFlushAfter, negative never. Durability does not depend on it.
	FlushAfter time.Duration
	// SyncBlocks makes all blocks before a mark durable. Sync calls it with the
	// greatest Mark of the records it is about to make durable: a record that
	// is durable while its blocks are not would end the log after a crash, and
	// with it everything behind that was acknowledged. If SyncBlocks is nil,
	// whoever calls Sync has synced the blocks of all records before. It must
	// not call the journal.
	SyncBlocks func(ctx context.Context, mark uint64) error
	// Logger is told about torn tails and damage; nil is slog.Default().
	Logger *slog.Logger
	// Random gives the identity of a new journal; nil is crypto/rand.
	Random io.Reader
}

// Journal is an open log. Its methods may be called from any number of goroutines.
type Journal struct {
	o   Options
	id  stamp.ID
	dir vfs.File

	mu       sync.Mutex
	err      error // why nothing works any more
	replayed bool
	closed   bool
	files    []file // in order, the last one is being written
	current  vfs.File
	seed     uint32     // of the current file's checksums
	room     int64      // up to where the current file has space on the disk
	written  int64      // how much of the current file was given to the OS
	buf      []byte     // what follows
	last     Seq        // appended
	mark     uint64     // the greatest of all records
	synced   Seq        // durable, and so are the blocks referred to
	recorded Seq        // durable according to the last record written
	unsynced []vfs.File // full files to be synced and closed

	round chan struct{} // closed when the sync under way ends; nil if there is none
	timer *time.Timer   // flushes the buffer

	readers readers
}

// file is what is known of one file of the log.
type file struct {
	first Seq   // of the record it begins with
	size  int64 // in bytes, buffered ones included
}

// Open opens the journal in o.Dir, or makes one if that directory is missing or
// empty. Call Replay next.
//
// Errors: *stamp.VersionError when the directory was written by a newer version
// (nothing in it was touched), stamp.ErrForeign, stamp.ErrDamaged, else the I/O
// error.
func Open(o Options) (*Journal, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.FileSize == 0 {
		o.FileSize = DefaultFileSize
	}
	if o.BufferSize == 0 {
		o.BufferSize = DefaultBufferSize
	}
	if o.FlushAfter == 0 {
		o.FlushAfter = DefaultFlushAfter
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	id, err := stamp.Open(o.FS, o.Dir, "journal", FormatVersion, o.Random)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j := &Journal{o: o, id: id, buf: make([]byte, 0, max(o.BufferSize, headerSize))}
	j.readers.init(o.FS, o.Dir)
	if j.files, err = listFiles(o.FS, o.Dir); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	if j.dir, err = o.FS.OpenDir(o.Dir); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return j, nil
}

// Append adds a record whose payload is the given pieces in order, at most
// MaxPayload bytes together, and returns its number and where the payload lies.
// The pieces are copied. The record is durable after the next Sync.
//
// Errors: ErrTooLarge; ENOSPC, when the disk is full (the record was not
// appended, the journal goes on); otherwise the journal has failed.
func (j *Journal) Append(kind Kind, mark uint64, payload ...[]byte) (Seq, Location, error) {
	length := 0
	for _, p := range payload {
		length += len(p)
	}
	if length > MaxPayload {
		return 0, Location{}, ErrTooLarge
	}
	if kind == 0 {
		return 0, Location{}, errors.New("journal record of kind 0")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.usable(); err != nil {
		return 0, Location{}, err
	}
	for j.full(int64(headerSize + length)) {
		if err := j.roll(); err != nil {
			return 0, Location{}, err
		}
		if err := j.usable(); err != nil {
			return 0, Location{}, err
		}
	}
	h := header{length: uint32(length), kind: kind, seq: j.last + 1, mark: mark, synced: j.synced}
	at := Location{File: uint64(j.files[len(j.files)-1].first), Offset: j.end() + headerSize, Len: int64(length)}
	if err := j.add(h, payload); err != nil {
		return 0, Location{}, err
	}
	j.last++
	j.mark = max(j.mark, mark)
	j.files[len(j.files)-1].size = j.end()
	if j.o.FlushAfter > 0 && j.timer == nil {
		j.arm()
	}
	return h.seq, at, nil
}

// add puts a record after the last one: into the buffer, or, if it would not fit
// even there, into the file. On error nothing has changed.
func (j *Journal) add(h header, payload [][]byte) error {
	sum := uint32(0)
	for _, p := range payload {
		sum = updateSum(sum, p)
	}
	h.payloadSum = sum
	need := headerSize + int(h.length)
	if len(j.buf)+need > cap(j.buf) {
		if err := j.flush(); err != nil {
			return err
		}
	}
	offset := j.end()
	n := len(j.buf)
	j.buf = h.append(j.buf, j.seed, offset)
	if need <= cap(j.buf) {
		for _, p := range payload {
			j.buf = append(j.buf, p...)
		}
	} else {
		err := j.writeAt(j.buf[n:], offset)
		j.buf = j.buf[:n]
		at := offset + headerSize
		for _, p := range payload {
			if err == nil {
				err = j.writeAt(p, at)
			}
			at += int64(len(p))
		}
		if err != nil {
			return err
		}
		j.written = at
	}
	j.recorded = h.synced
	return nil
}

// end is the offset in the current file at which the next record begins.
func (j *Journal) end() int64 { return j.written + int64(len(j.buf)) }

// full says whether need more bytes belong into a new file. A record that is
// larger than any file gets one for itself.
func (j *Journal) full(need int64) bool {
	return j.end()+need > j.room && j.last >= j.files[len(j.files)-1].first
}

// usable says why the journal cannot be appended to.
func (j *Journal) usable() error {
	switch {
	case j.closed:
		return ErrClosed
	case j.err != nil:
		return j.err
	case !j.replayed:
		return ErrNotReplayed
	}
	return nil
}

// Last returns the number of the record appended last, 0 if there is none.
func (j *Journal) Last() Seq {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// First returns the number of the oldest record that was not trimmed, 1 before the
// first Append. If it is above 1 the journal alone does not tell all that happened.
func (j *Journal) First() Seq {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.files) == 0 {
		return 1
	}
	return j.files[0].first
}

// Synced returns the number up to which all records are durable, and known to be
// because of a Sync.
func (j *Journal) Synced() Seq {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.synced
}

// Size returns the length of all files together, in bytes.
func (j *Journal) Size() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	var n int64
	for _, f := range j.files {
		n += f.size
	}
	return n
}

// Close makes everything durable and closes the files. It returns the error of
// that sync, or the one with which the journal had failed before.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	err := j.err
	if err == nil && j.replayed {
		err = j.syncTo(context.Background(), j.last)
	}
	if err == nil && j.replayed {
		err = j.record()
	}
	for j.round != nil {
		j.await(context.Background())
	}
	j.closed = true
	if j.timer != nil {
		j.timer.Stop()
	}
	for _, f := range j.unsynced {
		err = errors.Join(err, f.Close())
	}
	if j.current != nil {
		err = errors.Join(err, j.current.Close())
	}
	return errors.Join(err, j.readers.close(), j.dir.Close())
}
