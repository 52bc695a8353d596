//go:build linux

package mount

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/chunker"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/solo"
	"github.com/cairnfs/cairn/volume"
)

// openVolume opens the volume below dir of fs with everything it stands on. It
// stays open until close, which the end of the test calls as well.
func openVolume(t testing.TB, fs vfs.FS, dir string) (vol *volume.Volume, close func()) {
	t.Helper()
	vol, stop, err := openNode(fs, dir)
	if err != nil {
		t.Fatal(err)
	}
	close = sync.OnceFunc(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(close)
	return vol, close
}

// openNode is openVolume without a test.
func openNode(fs vfs.FS, dir string) (vol *volume.Volume, stop func() error, err error) {
	var (
		db     *index.DB
		blocks *segment.Store
		log    *journal.Journal
		state  *namespace.State
		chunks *chunker.Chunker
	)
	for _, step := range []func() error{
		func() error { return fs.MkdirAll(dir, 0o755) },
		func() (err error) {
			chunks, err = chunker.New(chunker.DefaultParams())
			return err
		},
		func() (err error) {
			db, err = index.Open(index.Options{FS: fs, Dir: fs.PathJoin(dir, "index")})
			return err
		},
		func() (err error) {
			blocks, err = segment.Open(segment.Options{FS: fs, Dir: fs.PathJoin(dir, "segments"), Index: db, Reserve: -1})
			return err
		},
		func() (err error) {
			log, err = journal.Open(journal.Options{FS: fs, Dir: fs.PathJoin(dir, "journal")})
			return err
		},
		func() (err error) {
			state, err = namespace.Open(db.Pebble(), namespace.Options{})
			return err
		},
	} {
		if err := step(); err != nil {
			return nil, nil, err
		}
	}
	commands := solo.Open(state, log, blocks.Mark)
	db.SetBarrier(func() error {
		if err := blocks.Sync(context.Background()); err != nil {
			return err
		}
		return log.Sync(context.Background())
	})
	vol = volume.New(volume.Options{
		Store: blocks, Format: manifest.Format{Chunker: chunks}, State: state, Log: commands, Journal: log,
		Usage: func() (volume.Usage, error) { return volume.Usage{Total: 1 << 40, Free: 1 << 39, Avail: 1 << 38}, nil },
	})
	err = log.Replay(0, blocks.ValidMark(), func(rec journal.Record) error {
		if rec.Kind == journal.KindRange {
			return vol.Replay(rec)
		}
		return commands.Replay(rec)
	})
	if err == nil {
		err = vol.Start(context.Background())
	}
	if err == nil && os.Geteuid() != 0 { // so that the user who runs the tests may write
		_, err = vol.SetAttr(context.Background(), namespace.RootIno, volume.SetAttr{
			Valid: volume.SetUID | volume.SetGID, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
		})
	}
	stop = func() error {
		return errors.Join(vol.Close(context.Background()), log.Close(), blocks.Close(), db.Close())
	}
	return vol, stop, err
}
