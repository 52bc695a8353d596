package journal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Syncing is shared: whoever finds no sync under way leads one for everything
// appended so far, and those who come meanwhile wait for it and, if it did not
// cover their records, for the next one, which one of them leads. However many
// callers there are, at most two syncs pass before each is answered.

// Sync returns when everything appended before the call is durable. A cancelled
// ctx ends the waiting, not the sync.
//
// Errors: ENOSPC, when the disk is full (try again when there is space); that of
// SyncBlocks; the context's error; otherwise the journal has failed.
func (j *Journal) Sync(ctx context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.syncTo(ctx, j.last)
}

// syncTo makes records up to target durable; mu is held, but for the time of
// waiting and of the sync itself.
func (j *Journal) syncTo(ctx context.Context, target Seq) error {
	for j.synced < target {
		if j.err != nil {
			return j.err
		}
		if j.closed {
			return ErrClosed
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if j.round != nil {
			j.await(ctx)
			continue
		}
		if err := j.lead(ctx); err != nil {
			return err
		}
	}
	return nil
}

// await waits for the end of the sync under way or of ctx; mu is held outside.
func (j *Journal) await(ctx context.Context) {
	round := j.round
	j.mu.Unlock()
	select {
	case <-round:
	case <-ctx.Done():
	}
	j.mu.Lock()
}

// lead syncs everything appended so far, and before that the blocks it refers to;
// mu is held, but not while that takes place.
func (j *Journal) lead(ctx context.Context) error {
	if err := j.flush(); err != nil {
		return err
	}
	upTo, mark := j.last, j.mark
	if err := j.syncFiles(ctx, mark, append(slices.Clone(j.unsynced), j.current)); err != nil {
		return err
	}
	j.synced = upTo
	if j.o.FlushAfter > 0 && j.timer == nil && !j.closed {
		j.arm()
	}
	return nil
}

// syncFiles syncs files, of which all but the current one are full, and closes
// those. No other sync is under way.
func (j *Journal) syncFiles(ctx context.Context, mark uint64, files []vfs.File) error {
	current := j.current
	j.round = make(chan struct{})
	j.mu.Unlock()
	var err, blocks error
	if mark > 0 && j.o.SyncBlocks != nil {
		blocks = j.o.SyncBlocks(ctx, mark)
	}
	for _, f := range files {
		if err == nil && blocks == nil {
			err = f.SyncData()
		}
	}
	j.mu.Lock()
	close(j.round)
	j.round = nil
	if err != nil {
		return j.fail("sync", err)
	}
	if blocks != nil {
		return fmt.Errorf("sync of the blocks that the journal refers to: %w", blocks)
	}
	for _, f := range files {
		if f != current {
			j.unsynced = j.unsynced[1:]
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		return j.fail("close", err)
	}
	return nil
}

// roll goes on in a new file. mu is held, but may be released for a sync, so that
// others may have filled the new file on return.
func (j *Journal) roll() error {
	if err := j.flush(); err != nil {
		return err
	}
	f, err := j.create(j.last + 1)
	if err != nil {
		return err
	}
	j.unsynced = append(slices.Clone(j.unsynced), j.current)
	j.begin(f, file{first: j.last + 1})
	for len(j.unsynced) > maxUnsynced && j.err == nil {
		if j.round != nil {
			j.await(context.Background())
			continue
		}
		// This does not count as synced: the blocks were not.
		if err := j.syncFiles(context.Background(), 0, slices.Clone(j.unsynced)); err != nil {
			return err
		}
	}
	return j.err
}

// create makes the file whose first record will be the given one, durably. Its
// space is set aside at once, because a sync that has to allocate blocks as well
// takes up to ten times as long; where that cannot be done, it goes without.
func (j *Journal) create(first Seq) (vfs.File, error) {
	f, err := j.o.FS.OpenReadWrite(j.path(uint64(first)), vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	room, err := j.setAside(f)
	if err == nil {
		err = j.dir.Sync()
	}
	switch {
	case isFull(err):
		return nil, errors.Join(err, f.Close(), j.unmake(first))
	case err != nil:
		return nil, errors.Join(j.fail("create", err), f.Close())
	}
	j.room = room
	return f, nil
}

// unmake removes a file for which there is no space. If its name may still be there, it
// says after a crash that records of that number do not count in the file before: those
// that come then have to begin the file of that name.
func (j *Journal) unmake(first Seq) error {
	err := j.o.FS.Remove(j.path(uint64(first)))
	if err == nil {
		err = j.dir.Sync()
	}
	switch {
	case isFull(err):
		j.room = j.end()
	case err != nil:
		return j.fail("create", err)
	}
	return nil
}

// setAside makes space on the disk for f and returns how far. What is appended
// stays in memory for a while, so a disk that fills up in between must not be
// able to refuse it: on a full disk there is no new file, and Append says so.
func (j *Journal) setAside(f vfs.File) (room int64, err error) {
	for room = j.o.FileSize; ; room /= 2 {
		err := j.checkSpare(room)
		if err == nil {
			err = f.Preallocate(0, room)
		}
		switch {
		case err == nil:
			return room, nil
		case !isFull(err):
			j.o.Logger.Debug("no space set aside for the journal", "err", err)
			return j.o.FileSize, nil
		case room <= minRoom:
			return 0, fmt.Errorf("append to journal: %w", err)
		}
	}
}

// checkSpare returns ENOSPC if room more bytes on the disk would take of what is to
// be left to others. A file system that cannot tell is taken to be large.
func (j *Journal) checkSpare(room int64) error {
	if j.o.Spare <= 0 {
		return nil
	}
	u, err := j.o.FS.GetDiskUsage(j.o.Dir)
	if err == nil && int64(u.AvailBytes)-room < j.o.Spare {
		return fmt.Errorf("%w: the last %d MiB of the disk are for the index", syscall.ENOSPC, j.o.Spare>>20)
	}
	return nil
}

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// begin makes f the file to append to.
func (j *Journal) begin(f vfs.File, what file) {
	j.current = f
	j.seed = seedOf(j.id, what.first)
	j.written = what.size
	j.files = append(j.files, what)
}

// flush gives the buffer to the operating system. When the disk is full the
// buffer stays as it is; any other error is the end of the journal.
func (j *Journal) flush() error {
	if j.err != nil {
		return j.err
	}
	if len(j.buf) == 0 {
		return nil
	}
	if err := j.writeAt(j.buf, j.written); err != nil {
		return err
	}
	j.written += int64(len(j.buf))
	j.buf = j.buf[:0]
	return nil
}

func (j *Journal) writeAt(p []byte, offset int64) error {
	_, err := j.current.WriteAt(p, offset)
	switch {
	case err == nil:
		return nil
	case isFull(err):
		return fmt.Errorf("append to journal: %w", err)
	}
	return j.fail("append", err)
}

// fail records the error after which nothing works any more.
func (j *Journal) fail(what string, err error) error {
	if j.err == nil {
		j.err = fmt.Errorf("%s of journal failed, it must be opened again: %w", what, err)
		j.o.Logger.Error("journal failed", "op", what, "err", err)
	}
	return j.err
}

// record writes a record of kind 0 if no record says yet how far the journal is
// durable.
func (j *Journal) record() error {
	if j.synced == j.recorded || j.end()+headerSize > j.room {
		return nil
	}
	if err := j.add(header{seq: j.last, synced: j.synced}, nil); err != nil {
		return err
	}
	j.files[len(j.files)-1].size = j.end()
	return j.flush()
}

// arm starts the timer after which the buffer is flushed.
func (j *Journal) arm() {
	j.timer = time.AfterFunc(j.o.FlushAfter, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		j.timer = nil
		if j.closed || j.err != nil {
			return
		}
		err := j.flush()
		if err == nil {
			err = j.record()
		}
		if err != nil && j.err == nil {
			j.arm() // the disk is full; later there may be space
		}
	})
}
