package index

import (
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// markers takes a picture of what a power loss would leave whenever Pebble has created
// a marker.
type markers struct {
	*vfs.MemFS
	rng    *rand.Rand
	clones []*vfs.MemFS
}

func (m *markers) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := m.MemFS.Create(name, category)
	if err == nil && strings.HasPrefix(m.PathBase(name), markerPrefix) {
		for range 8 {
			m.clones = append(m.clones, m.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: m.rng}))
		}
	}
	return f, err
}

// Whatever of what was not synced a power loss takes, also while Pebble goes over to
// another manifest, the database opens with all that was flushed.
func TestAPowerLossBetweenTwoManifestsLeavesADatabase(t *testing.T) {
	fs := &markers{MemFS: vfs.NewCrashableMem(), rng: rand.New(rand.NewPCG(1, 1))}
	o := Options{FS: fs, Dir: "index", CacheBytes: 1 << 20, MemTableBytes: 1 << 20, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	for n := range 4 { // each start begins a manifest
		had := len(fs.clones)
		db, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 && len(fs.clones) == had {
			t.Fatal("no marker was created")
		}
		e := Entry{At: Location{Segment: 1, Offset: uint32(n)}}
		e.Hash[0] = byte(n)
		if err := errors.Join(db.AddBlocks([]Entry{e}, uint64(n)+1), db.Flush(), db.Close()); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			fs.clones = nil // what was not a database yet
		}
		for i, clone := range fs.clones[min(had, len(fs.clones)):] {
			lost := o
			lost.FS = clone
			db, err := Open(lost)
			if err != nil {
				t.Fatalf("start %d, picture %d: %v", n, i, err)
			}
			for k := range n {
				var hash Hash
				hash[0] = byte(k)
				if _, ok, err := db.Block(&hash); !ok || err != nil {
					t.Errorf("start %d, picture %d: block %d is gone (%v)", n, i, k, err)
				}
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
