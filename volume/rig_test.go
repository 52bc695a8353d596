package volume

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/chunker"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/solo"
)

// rig is a volume with everything below it, on a file system in memory that can
// lose power.
type rig struct {
	*Volume
	t       testing.TB
	db      *index.DB
	blocks  *segment.Store
	full    *full
	journal *journal.Journal
	state   *namespace.State
	log     *solo.Log
	gc      round
}

// full is a store that has no space left while it is switched on.
type full struct {
	cas.Store
	on atomic.Bool
}

func (s *full) Put(ctx context.Context, blocks ...cas.Block) error {
	if s.on.Load() {
		return cas.ErrNoSpace
	}
	return s.Store.Put(ctx, blocks...)
}

func testFormat(t testing.TB) manifest.Format {
	t.Helper()
	// Small chunks, so that small files have deep trees.
	c, err := chunker.New(chunker.Params{Algorithm: chunker.DefaultParams().Algorithm, Min: 256, Avg: 1024, Max: 4096})
	if err != nil {
		t.Fatal(err)
	}
	return manifest.Format{Chunker: c}
}

// openRig opens the store on fs; of the journal, records from keep on are needed.
// Background work is left to the test: the
// volume's own clock ticks once an hour.
func openRig(t testing.TB, fs vfs.FS, keep journal.Seq) *rig {
	t.Helper()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	r := &rig{t: t}
	quiet := slog.New(slog.DiscardHandler)
	var err error
	r.db, err = index.Open(index.Options{FS: fs, Dir: "index", Logger: quiet})
	must(err)
	r.blocks, err = segment.Open(segment.Options{FS: fs, Dir: "segments", Index: r.db, Reserve: -1, Logger: quiet, Touched: r.gc.recorder().Promised})
	must(err)
	r.journal, err = journal.Open(journal.Options{FS: fs, Dir: "journal", Logger: quiet, SyncBlocks: r.blocks.SyncTo})
	must(err)
	r.state, err = namespace.Open(r.db.Pebble(), namespace.Options{})
	must(err)
	log := solo.Open(r.state, r.journal, r.blocks.Mark)
	r.log = log
	r.db.SetBarrier(func() error {
		if err := r.blocks.Sync(context.Background()); err != nil {
			return err
		}
		return r.journal.Sync(context.Background())
	})
	r.full = &full{Store: r.blocks}
	r.Volume = New(Options{
		Store: r.full, Format: testFormat(t), State: r.state, Log: log, Journal: r.journal,
		Usage:        func() (Usage, error) { return Usage{Total: 1 << 40, Free: 1 << 39, Avail: 1 << 39}, nil },
		SyncInterval: time.Hour,
		shareMin:     8 << 10,
	})
	must(r.journal.Replay(keep, r.blocks.ValidMark(), func(rec journal.Record) error {
		if rec.Kind == journal.KindRange {
			return r.Replay(rec)
		}
		return log.Replay(rec)
	}))
	must(r.Start(ctx))
	return r
}

// close stops the rig as a clean shutdown does.
func (r *rig) close() {
	r.t.Helper()
	for _, stop := range []func() error{
		func() error { return r.Volume.Close(context.Background()) },
		r.journal.Close, r.blocks.Close, r.db.Close,
	} {
		if err := stop(); err != nil {
			r.t.Fatal(err)
		}
	}
}

// abandon stops the goroutines and closes the files of a disk that is not needed
// any more.
func (r *rig) abandon() {
	r.stop()
	r.done.Wait()
	for _, stop := range []func() error{r.journal.Close, r.blocks.Close, r.db.Close} {
		if err := stop(); err != nil {
			r.t.Error(err)
		}
	}
}
