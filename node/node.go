// Package node builds a store out of its layers, in order, and takes them down in
// reverse: the one place that knows how they stand on each other.
//
// A data directory holds
//
//	LOCK          whose lock makes its holder the owner (lock.go)
//	config        format version, id and chunk sizes of the store (config.go)
//	segments/     blocks: cas/segment
//	journal/      commands and written ranges: index/journal
//	index/        block locations and namespace, derived from these: index
//	control.sock  while a mount runs: node/control
//	cairn.log     of a mount in the background
//	key, member   of a member of a cluster (member.go)
//	cache/        blocks of other nodes that were read here: cas/cache
//	recovered/    what could not be stored under its name (volume/sharedsession.go)
//
// What decides correctness between the layers is here as well: the journal is
// synced behind the segments it refers to and the index is flushed behind both
// (layers.go), and the journal is trimmed behind the index (checkpoint.go).
package node

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/chunker"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/index/stamp"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/p2p/host"
	"github.com/cairnfs/cairn/volume"
)

// Options say how to open a store. Only Dir is required.
type Options struct {
	// Dir is the data directory.
	Dir string
	// Create makes the store if Dir does not exist or is empty.
	Create bool
	// Command is what this process does, for others that find the store in
	// use.
	Command string
	// Reserve is the disk space that blocks leave free, in bytes; 0 is the
	// larger of 1 GiB and 2 % of the disk, less than 0 is none.
	Reserve int64
	// CacheBytes is the memory for parts of the index that have been read; 0
	// is the default of package index.
	CacheBytes int64
	// Chunker is how a new store cuts files; the zero value is
	// chunker.DefaultParams.
	Chunker chunker.Params
	// History is how long overwritten names and attributes stay readable, 0
	// is 24 hours.
	History time.Duration

	// Offline opens the store of a member of a cluster without taking part in
	// it: what is here can be read, nothing can be changed.
	Offline bool
	// Listen is where a member listens from now on, HOST:PORT; default: where it
	// did, at first DefaultListen.
	Listen string
	// Name is what people call the node; default: the name of the host.
	Name string
	// BlockCache is the disk space, in bytes, for blocks of others that were read
	// here; 0 is DefaultBlockCache, less than 0 none.
	BlockCache int64
	// RepairRate bounds what repair sends to other nodes, in bytes a second; 0
	// does not.
	RepairRate int64

	FS     vfs.FS           // default: the operating system's
	Now    func() time.Time // default: time.Now
	Random io.Reader        // default: crypto/rand
	Logger *slog.Logger     // default: slog.Default

	// For tests:
	journalFile int64                               // size of a file of the journal
	network     func(host.Options) (network, error) // default: host.Open
	clock       func() time.Duration                // of sessions; default: the machine's
}

// DefaultBlockCache is the disk space for blocks of other nodes, in bytes.
const DefaultBlockCache = 10 << 30

func (o *Options) setDefaults() {
	if o.Chunker == (chunker.Params{}) {
		o.Chunker = chunker.DefaultParams()
	}
	if o.History == 0 {
		o.History = 24 * time.Hour
	}
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.network == nil {
		o.network = openHost
	}
}

// Node is an open store. It is a control.Node.
type Node struct {
	o       Options
	lock    *lock
	config  config
	format  manifest.Format
	index   *index.DB
	blocks  *segment.Store
	journal *journal.Journal
	state   *namespace.State
	log     *ordering
	stores  storage
	volume  *volume.Volume
	pinned  pinSizes
	uploads uploads
	own     *upload // of commands in this process
	collect *collector

	failed chan error

	checkpointing sync.Mutex
	kept          journal.Seq // first record that is needed, as of the last checkpoint

	memberFile memberFile
	logRecords []journal.Record        // of the group's log, if offline
	cluster    atomic.Pointer[cluster] // nil: alone, or offline
	founding   sync.Mutex
	membering  sync.Mutex                   // held while memberFile changes
	refusal    atomic.Pointer[raft.Refusal] // why the node is a member no more

	mu     sync.Mutex
	mounts []string

	stop    context.CancelFunc
	tending sync.WaitGroup
}

// Open opens the store in o.Dir. The caller closes it.
//
// Errors: *InUseError; ErrNoStore and ErrNotEmpty; ErrNewerFormat and
// ErrUnknownChunker, when nothing in the directory was touched; ErrDamaged, when
// durable data other than blocks is damaged; else the I/O error. Damaged blocks
// are found when they are read.
func Open(ctx context.Context, o Options) (*Node, error) {
	o.setDefaults()
	n := &Node{o: o, failed: make(chan error, 1)}
	n.own = n.newUpload()
	n.collect = newCollector(n)
	if err := n.open(ctx); err != nil {
		// What closing says is a consequence; the cause is enough to know.
		var closeErr error
		if c := n.cluster.Load(); c != nil {
			closeErr = c.close()
		}
		if closeErr = errors.Join(closeErr, n.release()); closeErr != nil {
			o.Logger.Debug("closing after a failed open", "err", closeErr)
		}
		return nil, explain(err)
	}
	return n, nil
}

func (n *Node) open(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		n.openDir, n.openIndex, n.openBlocks, n.openJournal, n.openNames, n.openVolume,
	} {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	tend, stop := context.WithCancel(context.WithoutCancel(ctx))
	n.stop = stop
	n.tending.Go(func() { n.tend(tend) })
	n.collect.start()
	n.tending.Go(func() { n.collect.run(tend) })
	return nil
}

// Close stores and syncs everything and gives the store up. Nothing may use the
// node or its volume any more.
func (n *Node) Close() error {
	n.stop()
	n.tending.Wait()
	err := n.volume.Close(context.Background())
	if c := n.cluster.Load(); c != nil {
		err = errors.Join(err, c.close())
	}
	if n.offline() {
		return errors.Join(err, n.release())
	}
	// After a failed sync nothing may be trimmed; what is in the journal is
	// applied again at the next start.
	if err == nil {
		err = n.checkpoint()
	}
	return errors.Join(err, n.release())
}

// offline reports whether the node is a member that takes no part.
func (n *Node) offline() bool { return n.log.offline }

// release closes what is open, from the top down.
func (n *Node) release() error {
	var err error
	if n.journal != nil {
		err = n.journal.Close()
	}
	if n.blocks != nil {
		err = errors.Join(err, n.blocks.Close())
	}
	if n.index != nil {
		// Closing the others has synced them, or has not.
		synced := err
		n.index.SetBarrier(func() error { return synced })
		err = errors.Join(err, n.index.Close())
	}
	if n.lock != nil {
		err = errors.Join(err, n.lock.release())
	}
	return err
}

// openDir makes this process the owner of the data directory and reads, or
// writes, the config.
func (n *Node) openDir(context.Context) error {
	o := &n.o
	// Before the lock, which would leave a file behind: what must not be
	// touched is found by reading.
	_, err := n.readConfig()
	switch {
	case errors.Is(err, ErrNoStore) && o.Create:
		// Unless another process has made it a store since.
		if err := checkEmpty(o.FS, o.Dir); err != nil {
			if _, still := n.readConfig(); still != nil {
				return err
			}
		}
		if err := makeDir(o.FS, o.Dir); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if o.FS == vfs.Default {
		if n.lock, err = acquireLock(o.Dir, o.Command); err != nil {
			return err
		}
	}
	if err := finishRejoin(o.FS, o.Dir); err != nil {
		return err
	}
	// Who held the lock before may have made the store just now.
	if n.memberFile, _, err = readMember(o.FS, o.Dir); err != nil {
		return err
	}
	n.refusal.Store(n.memberFile.Refused)
	if n.config, err = n.readConfig(); errors.Is(err, ErrNoStore) && o.Create {
		if n.memberFile.Joined { // how files are cut is up to the cluster
			return fmt.Errorf("%w: joining cluster %s was interrupted; join again", ErrNotEmpty, n.memberFile.Cluster)
		}
		if n.config, err = newConfig(o.Random, o.Now(), o.Chunker); err != nil {
			return err
		}
		if n.format, err = n.config.format(); err != nil {
			return err
		}
		// The directories are made before the config, and durably: a store
		// without one of them has lost it.
		for _, dir := range []string{segmentsDir, journalDir} {
			if err := o.FS.MkdirAll(n.path(dir), 0o700); err != nil {
				return err
			}
		}
		return writeConfig(o.FS, o.Dir, n.config)
	}
	if err != nil {
		return err
	}
	for _, dir := range []string{segmentsDir, journalDir} {
		if _, err := o.FS.Stat(n.path(dir)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: its directory %s is missing", ErrDamaged, dir)
		}
	}
	return nil
}

// readConfig reads the config and the format it stands for.
func (n *Node) readConfig() (config, error) {
	c, err := readConfig(n.o.FS, n.o.Dir)
	if err == nil {
		n.format, err = c.format()
	}
	return c, err
}

// Names in the data directory.
const (
	indexDir    = "index"
	segmentsDir = "segments"
	journalDir  = "journal"
)

func (n *Node) path(name string) string { return n.o.FS.PathJoin(n.o.Dir, name) }

// makeDir makes dir and the directories above it, durably.
func makeDir(fsys vfs.FS, dir string) error {
	var changed []string
	for d := dir; ; d = fsys.PathDir(d) {
		if _, err := fsys.Stat(d); err == nil || fsys.PathDir(d) == d {
			break
		}
		changed = append(changed, fsys.PathDir(d))
	}
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, d := range changed {
		if err := syncDir(fsys, d); err != nil {
			return err
		}
	}
	return nil
}

// checkEmpty returns ErrNotEmpty if dir holds more than what creating a store
// there leaves behind when it is interrupted.
func checkEmpty(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range names {
		switch name {
		case lockName, configName + ".tmp", keyName, keyName + ".tmp", memberName, memberName + ".tmp": // of a Join that was interrupted
		case segmentsDir, journalDir:
			if below, err := fsys.List(fsys.PathJoin(dir, name)); err != nil || len(below) > 0 {
				return fmt.Errorf("%w: it has %s, but no config file", ErrDamaged, name)
			}
		default:
			return fmt.Errorf("%w: %s", ErrNotEmpty, name)
		}
	}
	return nil
}

// openIndex opens the index. One that is unreadable is moved aside, and one that
// is lost is made anew from segments and journal, if the journal still has every
// command: names of files are nowhere else.
func (n *Node) openIndex(context.Context) (err error) {
	if err := n.checkSpace(); err != nil {
		return err
	}
	o := index.Options{
		FS: n.o.FS, Dir: n.path(indexDir), CacheBytes: n.o.CacheBytes, MemTableBytes: n.memTableBytes(), Logger: n.o.Logger, Random: n.o.Random,
	}
	n.index, err = index.Open(o)
	if unreadable(err) {
		if wholeErr := n.checkJournalWhole(); wholeErr != nil {
			return fmt.Errorf("%w: %w", wholeErr, err)
		}
		aside := n.path(indexDir + ".damaged-" + n.o.Now().UTC().Format("20060102T150405"))
		n.o.Logger.Error("index cannot be read; making it anew", "err", err, "moved to", aside)
		if err := n.o.FS.Rename(o.Dir, aside); err != nil {
			return err
		}
		n.index, err = index.Open(o)
	}
	if err != nil {
		return err
	}
	if n.kept, err = n.readKept(); err != nil || n.kept > 0 {
		return err
	}
	n.kept = 1
	return n.checkJournalWhole()
}

// minSpace is the disk space, in bytes, that opening the index may take: what was
// in memory at the end of the last process, and the files of a new one. Pebble
// ends the process when it cannot write its manifest.
const minSpace = 4 << 20

// checkSpace returns cas.ErrNoSpace if the disk is too full for the index.
func (n *Node) checkSpace() error {
	u, err := n.o.FS.GetDiskUsage(n.o.Dir)
	if err != nil {
		n.o.Logger.Debug("cannot tell how full the disk is", "err", err)
		return nil
	}
	if u.AvailBytes < minSpace {
		return fmt.Errorf("%w: opening a store takes %d MiB, the disk has %d KiB left", cas.ErrNoSpace, minSpace>>20, u.AvailBytes>>10)
	}
	return nil
}

// checkJournalWhole returns ErrDamaged if the journal does not go back to the
// first command.
func (n *Node) checkJournalWhole() error {
	j, err := journal.Open(journal.Options{FS: n.o.FS, Dir: n.path(journalDir), Logger: n.o.Logger, Random: n.o.Random})
	if err != nil {
		return err
	}
	first := j.First()
	if err := j.Close(); err != nil {
		return err
	}
	if first > 1 {
		return fmt.Errorf("%w: its index is lost, and with it the names of files, since the journal does not go back to the beginning", ErrDamaged)
	}
	return nil
}

// unreadable reports whether err, of opening the index, says that its files are
// damaged or incomplete. Pebble does not mark all such errors, but what they are
// not is an error of the system, or of a newer format.
func unreadable(err error) bool {
	var system syscall.Errno
	var newer *stamp.VersionError
	return err != nil && (errors.Is(err, fs.ErrNotExist) || !errors.As(err, &system) && !errors.As(err, &newer))
}
