package segment

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// syncer makes segments durable. Syncing is shared: whoever finds no sync under
// way leads one for everything appended so far, and those who come meanwhile wait
// for it and, if it did not cover their blocks, for the next one.
type syncer struct {
	dir vfs.File // of the segments

	mu     sync.Mutex
	err    error      // of the sync that failed
	files  []vfs.File // that may hold unsynced bytes, the one being appended to last
	made   bool       // a file was added since dir was synced
	synced uint64     // mark up to which everything is durable
	round  chan struct{}
}

// begin adds the file to which blocks are appended from now on.
func (y *syncer) begin(f vfs.File) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.files = append(y.files, f)
	y.made = true
}

// failed returns the error of the sync that failed.
func (y *syncer) failed() error {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.err
}

// fail makes err the error of everything from now on.
func (y *syncer) fail(err error) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.err == nil {
		y.err = err
	}
}

// durable returns the mark up to which everything is durable.
func (y *syncer) durable() uint64 {
	y.mu.Lock()
	defer y.mu.Unlock()
	return y.synced
}

// syncTo returns when everything before target is durable. end returns the end of
// what was appended.
func (y *syncer) syncTo(ctx context.Context, target uint64, end func() uint64) error {
	y.mu.Lock()
	defer y.mu.Unlock()
	for y.synced < target {
		if y.err != nil {
			return y.err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if y.round == nil {
			y.lead(end)
			continue
		}
		round := y.round
		y.mu.Unlock()
		select {
		case <-round:
		case <-ctx.Done():
		}
		y.mu.Lock()
	}
	return nil
}

// lead syncs once; mu is held, but for the sync itself. Files before the last one
// are complete, so that they are done with afterwards.
func (y *syncer) lead(end func() uint64) {
	upTo := end() // before looking at files: what lies before it is in one of them
	files, made := append([]vfs.File(nil), y.files...), y.made
	y.round = make(chan struct{})
	y.made = false
	y.mu.Unlock()
	var err error
	if made {
		err = y.dir.Sync()
	}
	for _, f := range files {
		if err == nil {
			err = f.SyncData()
		}
	}
	y.mu.Lock()
	close(y.round)
	y.round = nil
	if err != nil {
		y.err = fmt.Errorf("sync of segments failed, the store must be opened again: %w", err)
		return
	}
	y.synced = upTo
	for len(files) > 1 {
		if err := y.files[0].Close(); err != nil {
			y.err = fmt.Errorf("close segment: %w", err)
		}
		files, y.files = files[1:], y.files[1:]
	}
}

func (y *syncer) close() error {
	y.mu.Lock()
	defer y.mu.Unlock()
	var err error
	for _, f := range y.files {
		err = errors.Join(err, f.Close())
	}
	y.files = nil
	return err
}

// Sync returns when every block whose Put has returned is durable. A cancelled
// context ends the waiting, not the sync.
func (s *Store) Sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.syncer.syncTo(ctx, s.table.mark(), s.table.mark)
}

// SyncTo returns when everything before the mark is durable, at once if it is: what
// must be durable before a journal record that carries the mark is. Sync serves
// those who do not know which blocks matter.
func (s *Store) SyncTo(ctx context.Context, mark uint64) error {
	return s.syncer.syncTo(ctx, mark, s.table.mark)
}

// Failed returns why the store must be opened again, nil if it need not.
func (s *Store) Failed() error { return s.syncer.failed() }

// retireAll is the goroutine that moves entries from the table to the index
// whenever it is woken.
func (s *Store) retireAll(ctx context.Context) {
	flushed := s.lastSegment()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		if err := s.retire(ctx); err != nil {
			if ctx.Err() == nil {
				s.o.Logger.Error("block store failed", "err", err)
				s.syncer.fail(err)
				s.table.signal()
			}
			continue
		}
		// A full segment is a good moment to make the index durable: what is
		// in it need not be scanned after a crash.
		if now, _ := position(s.ix.Blocks().IndexedTo); now != flushed {
			if err := s.ix.Flush(); err != nil {
				s.o.Logger.Warn("index is not flushed", "err", err)
			}
			flushed = now
		}
	}
}

func (s *Store) lastSegment() uint32 {
	s.tail.Lock()
	defer s.tail.Unlock()
	return s.tail.last
}

// indexTo returns when the index has all that lies before the mark.
func (s *Store) indexTo(ctx context.Context, mark uint64) error {
	for s.ix.Blocks().IndexedTo < mark {
		if err := s.retire(ctx); err != nil {
			return err
		}
	}
	return nil
}

// retire syncs what is in the table and moves it to the index.
func (s *Store) retire(ctx context.Context) error {
	s.settling.Lock()
	defer s.settling.Unlock()
	entries, upTo := s.table.turn(s.entries[:0])
	s.entries = entries
	if err := s.syncer.syncTo(ctx, upTo, s.table.mark); err != nil {
		return err
	}
	if upTo == s.ix.Blocks().IndexedTo && len(entries) == 0 {
		return nil
	}
	if err := s.ix.AddBlocks(entries, upTo); err != nil {
		return err
	}
	s.table.retired()
	return nil
}
