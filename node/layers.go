package node

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/index/stamp"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/solo"
	"github.com/cairnfs/cairn/volume"
)

func (n *Node) openBlocks(context.Context) (err error) {
	n.blocks, err = segment.Open(segment.Options{
		FS: n.o.FS, Dir: n.path(segmentsDir), Index: n.index, Reserve: n.o.Reserve, Logger: n.o.Logger, Random: n.o.Random,
		Touched: n.collect.recorder.Promised,
	})
	return err
}

// openJournal opens the journal such that it never makes a command durable whose
// blocks are not: whoever syncs it also syncs commands of others.
func (n *Node) openJournal(context.Context) (err error) {
	n.journal, err = journal.Open(journal.Options{
		FS: n.o.FS, Dir: n.path(journalDir), FileSize: n.o.journalFile, Spare: journalSpare, Logger: n.o.Logger, Random: n.o.Random,
		SyncBlocks: func(ctx context.Context, mark uint64) error { return n.blocks.SyncTo(ctx, mark) },
	})
	return err
}

func (n *Node) openNames(context.Context) error {
	o := namespace.Options{Logger: n.o.Logger}
	id, err := hex.DecodeString(n.config.ID)
	if err != nil || copy(o.HashKey[:], id) != len(o.HashKey) {
		return fmt.Errorf("%w: id %q", ErrDamaged, n.config.ID)
	}
	if n.state, err = namespace.Open(n.index.Pebble(), o); err != nil {
		return err
	}
	n.state.Observe(n.observe)
	return nil
}

// openVolume replays the journal and starts the volume.
//
// The journal is read to its end first and its commands are applied after that:
// applying makes the index flush now and then, for which the journal must be
// synced, and it cannot be while it is being replayed.
func (n *Node) openVolume(ctx context.Context) error {
	n.log = &ordering{solo: solo.Open(n.state, n.journal, n.blocks.Mark), failed: n.failed}
	n.stores.use(n.blocks)
	n.volume = volume.New(volume.Options{
		Store: &n.stores, Format: n.format, State: n.state, Log: n.log, Journal: n.journal,
		Usage: n.usage, Now: n.o.Now, Logger: n.o.Logger, Recover: n.recovery,
	})
	clustered, err := n.clustered()
	if err != nil {
		return err
	}
	n.log.offline = clustered && n.o.Offline
	if clustered && !n.o.Offline {
		if err := n.openCluster(ctx); err != nil {
			return err
		}
	}
	if err := n.replay(); err != nil {
		return err
	}
	if clustered {
		return n.startCluster(ctx)
	}
	if err := n.volume.Start(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("start volume: %w", err)
	}
	if n.state.Applied() > 0 {
		return n.raiseAlone(ctx)
	}
	// The first command of a store is durable before its first block.
	if n.blocks.Stats().Blocks > 0 {
		return fmt.Errorf("%w: there are blocks, but index and journal with the names of files are lost", ErrDamaged)
	}
	return n.ownRoot(ctx)
}

// replay reads what the journal holds.
func (n *Node) replay() error {
	group := n.log.cluster()
	var commands []journal.Record // without payloads
	err := n.journal.Replay(n.kept, n.blocks.ValidMark(), func(rec journal.Record) error {
		switch rec.Kind {
		case journal.KindRange:
			return n.volume.Replay(rec)
		case journal.KindLog:
			if group == nil { // of a member that takes no part now
				rec.Payload = bytes.Clone(rec.Payload)
				n.logRecords = append(n.logRecords, rec)
				return nil
			}
			return group.Replay(rec)
		case journal.KindCommand:
			rec.Payload = nil
			commands = append(commands, rec)
			return nil
		}
		return fmt.Errorf("%w: journal record %d is of an unknown kind %d", ErrDamaged, rec.Seq, rec.Kind)
	})
	if err != nil {
		return err
	}
	n.index.SetBarrier(n.syncLogs)
	var buf []byte
	for _, rec := range commands {
		buf = append(buf[:0], make([]byte, rec.At.Len)...)
		if err := n.journal.ReadAt(buf, rec.At, 0); err != nil {
			return err
		}
		rec.Payload = buf
		if err := n.log.solo.Replay(rec); err != nil {
			return err
		}
	}
	return nil
}

// startCluster is the end of openVolume on a member.
func (n *Node) startCluster(ctx context.Context) error {
	c := n.cluster.Load()
	if c == nil {
		return nil // offline: read only
	}
	n.volume.Share(c.group)
	if err := n.volume.Start(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("start volume: %w", err)
	}
	if err := c.group.Start(); err != nil {
		return err
	}
	c.start(ctx)
	if err := n.awaitNames(ctx); err != nil {
		return errors.Join(err, n.volume.Close(context.WithoutCancel(ctx)))
	}
	if err := c.awaitSession(ctx); err != nil {
		return errors.Join(err, n.volume.Close(context.WithoutCancel(ctx)))
	}
	return nil
}

// ownRoot is the first command of a new store: the root directory belongs to
// whoever made the store, as a directory that mkdir(1) makes.
func (n *Node) ownRoot(ctx context.Context) error {
	now := n.o.Now().UnixNano()
	_, err := n.propose(ctx, &namespace.SetAttr{
		Ino: namespace.RootIno, Mode: 0o755, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Atime: now, Mtime: now,
		Mask: namespace.AttrMode | namespace.AttrUID | namespace.AttrGID | namespace.AttrAtime | namespace.AttrMtime,
	})
	return err
}

// syncLogs makes durable what the index may refer to: blocks, then commands.
func (n *Node) syncLogs() error {
	if err := n.blocks.Sync(context.Background()); err != nil {
		return err
	}
	return n.journal.Sync(context.Background())
}

// The space that blocks leave free unless Options.Reserve says otherwise, as
// package segment has it.
const (
	minReserve      = 1 << 30
	reserveFraction = 50 // of the disk
)

// The space that is left free, whatever the reserve, when new content and new names stop.
// Pebble must be able to write its memtables, 128 MiB at most, and to compact, else
// commands wait for that without end: when less than low is left every command is
// refused. A small disk is not used up by it, and has smaller memtables.
const (
	minFloor          = 256 << 20
	floorDiskFraction = 8 // of the disk
	low               = 192 << 20
	lowDiskFraction   = 12
	minMemTable       = 1 << 20
	memTableFraction  = 128
	journalSpare      = 8 << 20
)

// memTableBytes returns the size of the index's memtables, of which it has four.
func (n *Node) memTableBytes() uint64 {
	u, err := n.o.FS.GetDiskUsage(n.o.Dir)
	if err != nil {
		return 0 // the default
	}
	return min(index.DefaultMemTableBytes, max(minMemTable, u.TotalBytes/memTableFraction))
}

// floor returns the disk space, in bytes, that new content and new names leave free.
func (n *Node) floor(u vfs.DiskUsage) uint64 {
	reserve := uint64(max(n.o.Reserve, 0))
	if n.o.Reserve == 0 {
		reserve = max(minReserve, u.TotalBytes/reserveFraction)
	}
	return max(reserve, min(minFloor, u.TotalBytes/floorDiskFraction))
}

// cacheReserve is the disk space, in bytes, that blocks of other nodes leave free. They go
// before new content stops, and before a full disk has unused blocks collected.
func (n *Node) cacheReserve() int64 {
	u, err := n.o.FS.GetDiskUsage(n.o.Dir)
	if err != nil {
		return 0 // nor can the cache tell
	}
	return int64(2 * n.floor(u))
}

// usage says how full the disk is. What must be left free is not available.
func (n *Node) usage() (volume.Usage, error) {
	u, err := n.o.FS.GetDiskUsage(n.o.Dir)
	if err != nil {
		return volume.Usage{}, err
	}
	return volume.Usage{
		Total: u.TotalBytes,
		Free:  u.TotalBytes - min(u.TotalBytes, u.UsedBytes),
		Avail: u.AvailBytes - min(u.AvailBytes, n.floor(u)),
		Low:   u.AvailBytes < min(low, u.TotalBytes/lowDiskFraction),
	}, nil
}

// explain makes of an error of the layers below what Open says of it.
func explain(err error) error {
	var newer *stamp.VersionError
	if errors.As(err, &newer) {
		return fmt.Errorf("%w: %w", ErrNewerFormat, err)
	}
	var gap *solo.GapError
	var undecoded *solo.DecodeError
	// Pebble's marks on errors are not those that errors.Is looks for.
	damaged := errors.As(err, &gap) || errors.As(err, &undecoded) || pebble.IsCorruptionError(err)
	for _, kind := range []error{
		stamp.ErrForeign, stamp.ErrDamaged, journal.ErrCorrupt,
		namespace.ErrCorrupt, solo.ErrDiverged, volume.ErrRecord,
	} {
		damaged = damaged || errors.Is(err, kind)
	}
	if damaged && !errors.Is(err, ErrDamaged) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}
