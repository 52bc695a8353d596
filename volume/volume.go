// Package volume is the filesystem without FUSE: open files, the ranges written
// to them, and the order in which bytes become blocks and blocks become named
// content. It joins the two planes. Names go through a namespace.Log and are
// read from the namespace.State behind it; bytes go through cas/manifest into a
// cas.Store; what was written to files and is in neither yet lives here, in
// memory and in the node's journal.
//
// Durability: nothing is durable on return of an operation but Fsync, SyncDir
// and Sync, and writes through handles opened with O_SYNC or O_DSYNC. What
// nobody asked to be durable becomes so within Options.SyncInterval.
//
// A volume may be one of several over the same names, on other nodes (see Share). Then
// closing a file and fsync name its content, so that any open which starts later, on
// any node, sees it; what was written and not named is lost with the process.
package volume

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
)

// Sizes that decide how written bytes travel.
const (
	maxSize      = namespace.MaxFileSize
	streamMin    = 1 << 20   // a stream takes this much at a time
	journalMax   = 64 << 10  // fsync of a new file: up to this size by the journal, else as blocks
	recordMax    = 1 << 20   // bytes of a record of the journal
	memoryMax    = 48 << 20  // of dirty bytes in memory, over all files
	foldMax      = 256 << 20 // of dirty bytes, in memory and journal, of one file
	foldAfter    = 30 * time.Second
	drainWorkers = 2
	reapBatch    = namespace.MaxOps // orphans in one command
)

// Errors of the volume's own; others are those of packages namespace and cas.
var (
	// ErrTooBig says that a write ends beyond 2^63-1 bytes.
	ErrTooBig = errors.New("file too large")
	// ErrNoData says that no data follows in the file.
	ErrNoData = errors.New("no data from there to the end of the file")
	// ErrNotRegular says that an operation wants a regular file.
	ErrNotRegular = errors.New("not a regular file")
	// ErrReserved says that an attribute name belongs to Cairn.
	ErrReserved = errors.New("attribute is computed, it cannot be set or removed")
	// ErrClosed says that the volume is closing.
	ErrClosed = errors.New("volume is closed")
)

// Usage says how full the disk is that holds the blocks, in bytes. Low says that so
// little is left that the index could not be written any more.
type Usage struct {
	Total, Free, Avail uint64
	Low                bool
}

// Options are what a Volume stands on. Without a comment they are required.
type Options struct {
	Store   cas.Store
	Format  manifest.Format
	State   *namespace.State
	Log     namespace.Log         // its Sync makes the blocks that commands refer to durable as well
	Journal *journal.Journal      // which Log.Sync makes durable, too
	Usage   func() (Usage, error) // with Avail 0 only what makes space is taken

	Now          func() time.Time // default time.Now
	SyncInterval time.Duration    // default 5 s
	CacheBytes   int64            // of verified leaves, default 32 MiB
	Logger       *slog.Logger     // default: none

	// Recover opens a file outside of the volume for what was written to a file
	// and cannot be named any more, because the session has ended. name is an
	// inode's number and last name, without slashes. Default: it is dropped.
	Recover func(name string) (io.WriteCloser, error)

	// For tests.
	shareMin  int64                       // less
	patchMax  int64                       // less; negative: no patches
	patchFold int                         // less
	pause     func(try int) time.Duration // before a conflict is tried again
	turnTime  time.Duration               // less
}

// Volume is one mounted tree of files. Its methods may be called at the same
// time.
type Volume struct {
	o     Options
	cache *manifest.Cache
	now   func() int64

	mu      sync.Mutex
	files   map[namespace.Ino]*file // open or unclean
	orphans map[namespace.Ino]bool  // without a name, not reaped yet; true: unknown to the kernel
	closed  bool

	accesses accesses
	locks    *lockTable

	cluster  atomic.Pointer[Cluster] // nil: not shared
	patching patching
	watching sync.Mutex // held while watchers are told
	watchers []*watcher // replaced, never changed
	making   making
	seen     seen
	node     nodeTable
	waits    lockWaits
	quit     chan struct{} // closed by Close

	room     room
	mem      atomic.Int64 // dirty bytes in memory
	buffers  buffers
	writers  sync.Pool    // of *manifest.Writer, for files that are written at once
	trimming sync.RWMutex // held for reading while records are read
	copying  sync.RWMutex // held for reading while content is taken over from a file

	replayed map[namespace.Ino][]replayed // between Replay and Start

	drains chan *file
	stop   context.CancelFunc
	done   sync.WaitGroup
}

// New returns a volume over o. Feed it the journal's records with Replay, then
// call Start.
func New(o Options) *Volume {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.SyncInterval == 0 {
		o.SyncInterval = 5 * time.Second
	}
	if o.shareMin == 0 {
		o.shareMin = defaultShareMin
	}
	if o.patchMax == 0 {
		o.patchMax = defaultPatchMax
	}
	if o.patchFold == 0 {
		o.patchFold = defaultPatchFold
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 32 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.pause == nil {
		o.pause = randomPause
	}
	if o.turnTime == 0 {
		o.turnTime = defaultTurnTime
	}
	return &Volume{
		o: o, cache: manifest.NewCache(o.CacheBytes),
		now:      func() int64 { return o.Now().UnixNano() },
		files:    make(map[namespace.Ino]*file),
		orphans:  make(map[namespace.Ino]bool),
		replayed: make(map[namespace.Ino][]replayed),
		drains:   make(chan *file, 64),
		locks:    newLockTable(),
		patching: patching{folds: make(chan *file, 64)},
		quit:     make(chan struct{}),
	}
}

// Start ends the replay, reaps what no process can have open any more, and
// starts the background work. The volume is ready for use on return.
func (v *Volume) Start(ctx context.Context) error {
	if err := v.restore(); err != nil {
		return err
	}
	if err := v.reapAll(ctx); err != nil {
		return err
	}
	ctx, v.stop = context.WithCancel(context.WithoutCancel(ctx))
	for range drainWorkers {
		v.done.Go(func() { v.drainLoop(ctx) })
	}
	v.done.Go(func() { v.foldLoop(ctx) })
	v.done.Go(func() { v.tend(ctx) })
	return nil
}

// reapAll reaps all orphans, since nobody can have one open. If the volume is shared
// others may.
func (v *Volume) reapAll(ctx context.Context) error {
	if v.Shared() {
		return nil
	}
	orphans, err := v.o.State.Orphans()
	if err != nil {
		return err
	}
	for _, ino := range orphans {
		v.orphans[ino] = true
	}
	// On a full disk they wait: what is stored is to be read all the same.
	err = v.reap(ctx, orphans)
	if noSpace(err) {
		v.o.Logger.Warn("files without a name are removed when there is space", "files", len(orphans), "err", err)
		return nil
	}
	return err
}

// Close commits and syncs everything. Handles must have been released; what is
// still open loses nothing that was written so far, and who waits for a lock gets
// ErrClosed. The store, log and journal stay open.
func (v *Volume) Close(ctx context.Context) error {
	v.locks.close()
	v.mu.Lock()
	if !v.closed {
		close(v.quit)
	}
	v.closed = true
	v.mu.Unlock()
	if v.stop != nil {
		v.stop()
		v.done.Wait()
	}
	errs := []error{v.nameAccesses(ctx)}
	for _, f := range v.unclean() {
		f.move.Lock()
		if err := f.commit(ctx); err != nil {
			// What cannot be named now is put back by the next start. If others
			// name content meanwhile, it is for a person to look at.
			if v.Shared() && f.condemn() {
				errs = append(errs, err, f.giveUp(ctx))
			} else {
				errs = append(errs, err, f.keep(ctx, false))
			}
		}
		f.move.Unlock()
		v.release(f)
	}
	return errors.Join(append(errs, v.o.Log.Sync(ctx))...)
}

// Sync returns when everything done before the call is durable.
func (v *Volume) Sync(ctx context.Context) error {
	var errs []error
	for _, f := range v.unclean() {
		errs = append(errs, f.secure(ctx))
		v.release(f)
	}
	return errors.Join(append(errs, v.o.Log.Sync(ctx))...)
}

// propose has ops ordered and applied at the present time.
func (v *Volume) propose(ctx context.Context, ops ...namespace.Op) (namespace.Result, error) {
	return v.proposeAt(ctx, v.now(), ops...)
}

func (v *Volume) proposeAt(ctx context.Context, now int64, ops ...namespace.Op) (namespace.Result, error) {
	return v.proposeCommand(ctx, &namespace.Command{Time: now, Ops: ops})
}

func (v *Volume) proposeCommand(ctx context.Context, cmd *namespace.Command) (namespace.Result, error) {
	if err := v.checkLow(); err != nil {
		return namespace.Result{}, err
	}
	res, err := v.o.Log.Propose(ctx, cmd)
	if err == nil {
		err = res.Err
	}
	return res, err
}

func (v *Volume) reader(root manifest.Root) *manifest.Reader {
	return manifest.NewReader(v.o.Store, root, manifest.ReaderOptions{Cache: v.cache})
}

// acquire returns the file of ino and keeps it until release.
func (v *Volume) acquire(ino namespace.Ino) (*file, error) {
	f, err := v.take(ino)
	if err != nil || v.Shared() {
		return f, err
	}
	// A store that was a cluster's may have patches.
	if err := f.fresh(context.Background()); err != nil {
		v.release(f)
		return nil, err
	}
	return f, nil
}

// take is acquire of what may be stale.
func (v *Volume) take(ino namespace.Ino) (*file, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.closed {
		return nil, ErrClosed
	}
	f := v.files[ino]
	if f == nil {
		n, err := v.o.State.Inode(ino)
		if err != nil {
			return nil, err
		}
		if n.Mode&syscall.S_IFMT != syscall.S_IFREG {
			return nil, ErrNotRegular
		}
		f = v.newFile(n)
		v.files[ino] = f
	}
	f.opens++
	return f, nil
}

// release gives back what acquire returned. A file that is clean and not in use
// is forgotten; one without a name is reaped.
func (v *Volume) release(f *file) {
	v.mu.Lock()
	defer v.mu.Unlock()
	f.opens--
	v.forgetIfIdle(f)
}

// forgetIfIdle is called with v.mu held. Nobody may use f but who has acquired
// it: there may be another file of the inode by then.
func (v *Volume) forgetIfIdle(f *file) {
	if f.opens > 0 {
		return
	}
	if f.orphan {
		f.mu.Lock()
		v.mem.Add(-f.dirty.mem - f.frozen.mem)
		f.mu.Unlock()
		delete(v.files, f.ino)
	} else if f.clean() {
		delete(v.files, f.ino)
	}
}

// acquireIfPresent returns the file of ino if there is one in memory, else nil,
// and keeps it until release.
func (v *Volume) acquireIfPresent(ino namespace.Ino) *file {
	v.mu.Lock()
	defer v.mu.Unlock()
	f := v.files[ino]
	if f != nil {
		f.opens++
	}
	return f
}

// unclean returns the files that the namespace does not know all about and
// should, each to be released.
func (v *Volume) unclean() []*file {
	v.mu.Lock()
	defer v.mu.Unlock()
	var list []*file
	for _, f := range v.files {
		if !f.orphan && !f.clean() {
			f.opens++
			list = append(list, f)
		}
	}
	return list
}
