package namespace

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cairnfs/cairn/namespace/namespacepb"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cockroachdb/pebble/v2"
)

// Options of a State. The zero value works.
type Options struct {
	// HashKey seeds the hash of names. It counts only when the namespace is
	// created, is stored in it, and must then be the same on all replicas.
	// It should be random, else users could choose names that collide.
	HashKey [16]byte
	// Bounds of the caches: inodes, directory entries, and bytes of inline
	// content and link targets. Defaults: 256 Ki, 512 Ki, 64 MiB.
	CacheInodes   int
	CacheDentries int
	CacheBytes    int64
	// Logger is told of a failure that ends the State. Default: slog.Default().
	Logger *slog.Logger

	// Knows is the version that the program knows, default Version. Less is what an
	// older program would be.
	Knows uint32

	hashMask uint64 // makes names collide in tests
}

func (o *Options) setDefaults() {
	if o.CacheInodes <= 0 {
		o.CacheInodes = defaultCacheInodes
	}
	if o.CacheDentries <= 0 {
		o.CacheDentries = defaultCacheDentries
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = defaultCacheBytes
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Knows == 0 {
		o.Knows = Version
	}
	if o.hashMask == 0 {
		o.hashMask = 1<<63 - 1
	}
}

// State is the namespace as of the last applied command. Reads may run beside
// Apply and each other; each sees whole commands only.
//
// A State is only as durable as the database. Commits are not synced: the log
// is what survives, and after a crash the State goes on from the index it finds.
type State struct {
	db       *pebble.DB
	log      *slog.Logger
	key      [2]uint64
	hashMask uint64
	knows    uint32 // version

	order sync.Mutex // held from Prepare to Commit or Abort
	txn   txn        // under order
	enc   encoder    // under order

	// mu guards what follows, and decides which commit readers see. Only the
	// holder of order changes it, but for reads that fill the cache.
	mu        sync.RWMutex
	failed    error
	meta      meta
	version   uint32
	snapshots []uint64 // indexes of the snapshots, ascending
	collect   Collection
	cache     cache
	view      *p2p.View // nil without a cluster
	sessions  map[SessionID]*session
	queues    map[Ino]bool // inodes with somebody in the queue for their content

	observers []func(*Change) // set before use
}

// Open reads the namespace in db, or creates an empty one. Creating is not
// durable before db is flushed; a namespace that was lost with its database is
// created again, under the hash key given then. Its root has mode 0755, belongs
// to user 0 and dates from 1970; SetAttr makes it what it should be. The db must
// outlive the State.
//
// Errors: ErrVersion, ErrCorrupt, or what db says.
func Open(db *pebble.DB, o Options) (*State, error) {
	o.setDefaults()
	s := &State{db: db, log: o.Logger, hashMask: o.hashMask, knows: o.Knows}
	s.cache.init(o)
	format, ok, err := get(db, tagKey(nil, tagFormat))
	if err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	if !ok {
		if err := s.create(o.HashKey); err != nil {
			return nil, fmt.Errorf("create namespace: %w", err)
		}
	} else if err := s.load(format); err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	s.txn.init(s)
	return s, nil
}

func (s *State) setKey(k []byte) {
	s.key = [2]uint64{binary.LittleEndian.Uint64(k), binary.LittleEndian.Uint64(k[8:])}
}

// create writes the format, the root directory and the counters.
func (s *State) create(key [16]byte) error {
	s.setKey(key[:])
	s.sessions, s.queues = make(map[SessionID]*session), make(map[Ino]bool)
	s.meta.nextIno = RootIno + 1
	s.version = s.knows
	root := record{attrs: attrs{ino: RootIno, mode: TypeDir | 0o755, nlink: 2, parent: RootIno}}
	s.cache.putInode(&root).known = allKnown
	b := s.db.NewBatch()
	defer b.Close()
	return errors.Join(
		b.Set(tagKey(nil, tagFormat), encodeFormat(s.version, &namespacepb.Format{HashKey: key[:]}), nil),
		b.Set(inodeKey(nil, RootIno), s.enc.encodeInode(&root), nil),
		b.Set(tagKey(nil, tagMeta), s.enc.encodeMeta(&s.meta), nil),
		b.Commit(pebble.NoSync))
}

func (s *State) load(format []byte) error {
	f, version, err := decodeFormat(format, s.knows)
	if err != nil {
		return err
	}
	s.version = version
	if len(f.HashKey) != 16 {
		return fmt.Errorf("%w: hash key of %d bytes", ErrCorrupt, len(f.HashKey))
	}
	s.setKey(f.HashKey)
	value, ok, err := get(s.db, tagKey(nil, tagMeta))
	if err == nil && !ok {
		err = fmt.Errorf("%w: no counters", ErrCorrupt)
	}
	if err != nil {
		return err
	}
	if s.meta, err = decodeMeta(value); err != nil {
		return err
	}
	if s.snapshots, err = loadSnapshots(s.db); err != nil {
		return err
	}
	if s.collect, err = loadCollection(s.db); err != nil {
		return err
	}
	return s.loadCluster()
}

// get returns a copy of the value of key.
func get(r pebble.Reader, key []byte) ([]byte, bool, error) {
	value, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	value = append([]byte(nil), value...)
	return value, true, closer.Close()
}

// Applied returns the index of the last applied command, 0 before the first.
func (s *State) Applied() uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.meta.applied
}

// NextIno returns the number of the next inode that is created. Numbers ascend.
func (s *State) NextIno() Ino {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.meta.nextIno
}

// Stats returns the counters.
func (s *State) Stats() Stats {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.meta.stats
}

// Apply carries out the command with the given place in the log. Places must
// ascend but may leave gaps. On return the change is visible to every read.
//
// What is wrong with the command is in Result.Err; then nothing has changed but
// Applied. The error is about this node: ErrApplied if the index is not above
// Applied, which changes nothing; otherwise an I/O error or a corrupt record,
// after which it is unknown whether the command was applied and every call
// fails with ErrFailed.
func (s *State) Apply(index uint64, cmd *Command) (Result, error) {
	p, err := s.Prepare(index, cmd)
	if err != nil {
		return Result{}, err
	}
	result := p.Result()
	return result, p.Commit()
}

// Prepare works out what a command will do without doing it, so that a log can
// record the command in between, or not at all if it is refused. It keeps
// others from preparing until Commit or Abort, one of which must follow. Errors
// are those of Apply, and then there is nothing to commit.
func (s *State) Prepare(index uint64, cmd *Command) (Prepared, error) {
	s.order.Lock()
	if err := s.prepare(index, cmd); err != nil {
		s.order.Unlock()
		return Prepared{}, err
	}
	return Prepared{s}, nil
}

func (s *State) prepare(index uint64, cmd *Command) error {
	if s.failed != nil {
		return s.failed
	}
	if index <= s.meta.applied {
		return fmt.Errorf("%w: %d, have %d", ErrApplied, index, s.meta.applied)
	}
	t := &s.txn
	t.begin(index, cmd)
	t.run(cmd)
	if t.failure != nil {
		return s.fail(t.failure)
	}
	return nil
}

// Prepared is a command between Prepare and Commit.
type Prepared struct{ s *State }

// Result returns what the command will have done.
func (p Prepared) Result() Result { return p.s.txn.result }

// Abort drops the command: nothing has changed and its index is free.
func (p Prepared) Abort() { p.s.order.Unlock() }

// Commit makes the command visible. Errors are those of Apply.
//
// Readers wait while it commits, so that they never see the database ahead of the
// cache: some microseconds, unless the database itself makes writers wait.
func (p Prepared) Commit() error {
	s := p.s
	defer s.order.Unlock()
	batch := s.db.NewBatch()
	defer batch.Close()
	if err := s.txn.write(batch); err != nil {
		return s.fail(err)
	}
	s.mu.Lock()
	err := batch.Commit(pebble.NoSync)
	if err == nil {
		err = s.txn.publish()
	}
	s.mu.Unlock()
	if err != nil {
		return s.fail(err)
	}
	s.tell(&s.txn)
	return nil
}

// fail ends the state.
func (s *State) fail(cause error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = fmt.Errorf("%w: %w", ErrFailed, cause)
		s.log.Error("namespace stops", "applied", s.meta.applied, "err", cause)
	}
	return s.failed
}
