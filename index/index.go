// Package index keeps the node's one Pebble database: where each block lies, and
// the state of the namespace, told apart by the first byte of the key.
//
// The database runs without a write-ahead log, because nothing in it is the only
// copy: block locations can be read again from the segments, namespace state from
// the journal. What makes that sound is an order of writing. Pebble keeps what is
// committed in memory until it writes a whole memtable to a sorted table (a
// flush), and before a flush writes its first byte the Barrier must have
// succeeded: the node syncs its segments and then its journal there. So what
// survives in Pebble never refers to bytes or commands that may be lost, and as a
// flush is atomic and memtables are flushed in order, what survives is the effect
// of a prefix of the batches. Each batch that consumes a log carries the position
// it has reached, so that after a crash the rest of the log is applied again.
package index

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/index/stamp"
)

// The key spaces: the first byte of every key.
const (
	SpaceMeta      byte = 0x01 // records about the database itself
	SpaceBlocks    byte = 0x02 // hash of a block (32 bytes) -> Location
	SpaceNamespace byte = 0x03 // laid out by package namespace
)

// FormatVersion is the version of the key spaces and of Pebble's own files that
// this program writes. Open refuses any other.
const FormatVersion = 1

// pebbleFormat belongs to FormatVersion: newer Pebble features are taken up by
// raising both, never by upgrading the library alone.
const pebbleFormat = pebble.FormatTableFormatV6

// Defaults of Options.
const (
	DefaultCacheBytes    = 64 << 20
	DefaultMemTableBytes = 32 << 20
)

// memTables is how many memtables may wait to be flushed; beyond that writers
// wait. It bounds memory at memTables × MemTableBytes.
const memTables = 4

// maxOpenTables bounds the file descriptors that Pebble keeps open.
const maxOpenTables = 500

// Options say how to open the database. Dir is required.
type Options struct {
	// FS holds the database; nil is the operating system's file system.
	FS  vfs.FS
	Dir string
	// Barrier makes everything durable that committed batches may refer to.
	// It is called before each flush and again for each further table that
	// the flush writes, from a goroutine of Pebble's; it must not wait for a
	// commit to this database. While it fails, flushes are put off and the
	// database grows in memory up to a limit, at which writers wait.
	// nil does nothing; SetBarrier sets it later.
	Barrier func() error
	// CacheBytes is the memory for blocks of sorted tables, 0 means
	// DefaultCacheBytes.
	CacheBytes int64
	// MemTableBytes is the size of a memtable, 0 means DefaultMemTableBytes.
	MemTableBytes uint64
	// Logger gets warnings and errors; nil is slog.Default().
	Logger *slog.Logger
	// Random gives the identity of a new database; nil is crypto/rand.
	Random io.Reader
}

// DB is the open database. Its methods may be called from any number of
// goroutines, except as noted.
type DB struct {
	pebble  *pebble.DB
	flushes *flushWatch
	barrier atomic.Pointer[func() error]
	log     *slog.Logger
	blocks  blockSpace

	blockKeys sync.Pool // of keys for lookups: Pebble lets them escape to the heap
}

// Open opens the database in o.Dir, or makes one if that directory is missing or
// empty. It takes a lock: a second Open of the same directory fails.
//
// Errors: *stamp.VersionError when the directory was written by a newer version
// (nothing in it was touched), stamp.ErrForeign, stamp.ErrDamaged, else the I/O
// error.
func Open(o Options) (*DB, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.MemTableBytes == 0 {
		o.MemTableBytes = DefaultMemTableBytes
	}
	if _, err := stamp.Open(o.FS, o.Dir, "index", FormatVersion, o.Random); err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	db := &DB{flushes: newFlushWatch(), log: o.Logger}
	db.SetBarrier(o.Barrier)
	p, err := pebble.Open(o.Dir, db.pebbleOptions(o))
	if err != nil {
		return nil, fmt.Errorf("open index: %w", err)
	}
	db.pebble = p
	if err := db.blocks.load(p); err != nil {
		return nil, errors.Join(fmt.Errorf("open index: %w", err), p.Close())
	}
	return db, nil
}

func (db *DB) pebbleOptions(o Options) *pebble.Options {
	p := &pebble.Options{
		FS: &barrierFS{FS: o.FS, before: db.beforeFlush},
		// Pebble takes memtables out of the cache's budget.
		CacheSize:                   o.CacheBytes + memTables*int64(o.MemTableBytes),
		DisableWAL:                  true,
		FormatMajorVersion:          pebbleFormat,
		MemTableSize:                o.MemTableBytes,
		MemTableStopWritesThreshold: memTables,
		MaxOpenFiles:                maxOpenTables,
		// Small machines have two cores, and the other one is hashing.
		CompactionConcurrencyRange: func() (int, int) { return 1, max(1, runtime.GOMAXPROCS(0)/2) },
		Logger:                     pebbleLog{o.Logger},
		EventListener: &pebble.EventListener{
			BackgroundError: db.flushes.backgroundError,
			FlushEnd:        db.flushes.flushEnd,
			DataCorruption: func(info pebble.DataCorruptionInfo) {
				o.Logger.Error("index is corrupt", "what", info.String())
			},
			WriteStallBegin: func(info pebble.WriteStallBeginInfo) {
				o.Logger.Warn("index writes wait", "why", info.Reason)
			},
		},
	}
	p.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionFastest })
	for i := range p.Levels {
		p.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
		p.Levels[i].BlockSize = 4 << 10
		p.Levels[i].IndexBlockSize = 64 << 10
	}
	return p
}

// Pebble returns the database for use by the owner of another key space. Batches
// are committed with pebble.NoSync: there is no log to sync.
func (db *DB) Pebble() *pebble.DB { return db.pebble }

// SetBarrier replaces Options.Barrier; nil removes it. A flush that is under way
// may still call the old one.
func (db *DB) SetBarrier(barrier func() error) {
	if barrier == nil {
		barrier = func() error { return nil }
	}
	db.barrier.Store(&barrier)
}

// Flush calls the barrier and writes everything committed so far to sorted
// tables; on return it is durable. On error nothing is lost: it stays in memory
// and is flushed later, when the cause is gone.
func (db *DB) Flush() error {
	failed := db.flushes.watch()
	done, err := db.pebble.AsyncFlush()
	if err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-failed:
		return db.flushes.failure()
	}
}

// Close flushes and closes the database. When flushing fails it closes all the
// same and returns the error; what was not flushed is derived again from segments
// and journal at the next start.
func (db *DB) Close() error {
	err := db.flushes.failure()
	if err == nil {
		err = db.Flush()
	}
	db.flushes.close()
	return errors.Join(err, db.pebble.Close())
}

func (db *DB) beforeFlush() error {
	if err := db.flushes.backOff(); err != nil {
		return err
	}
	return (*db.barrier.Load())()
}

// pebbleLog passes Pebble's own messages on. What Pebble calls info is debugging
// to us.
type pebbleLog struct{ log *slog.Logger }

func (l pebbleLog) Infof(format string, args ...any) {
	if l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("pebble: " + fmt.Sprintf(format, args...))
	}
}

func (l pebbleLog) Errorf(format string, args ...any) {
	l.log.Error("pebble: " + fmt.Sprintf(format, args...))
}

// Fatalf must not return: Pebble calls it when it can no longer tell what its
// files hold (a failed write of its manifest, say), and going on would make that
// worse. Stopping here loses nothing that was acknowledged.
func (l pebbleLog) Fatalf(format string, args ...any) {
	msg := "pebble: " + fmt.Sprintf(format, args...)
	l.log.Error(msg)
	panic(msg)
}
