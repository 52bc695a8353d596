package node

import (
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/namespace"
)

// lateClock is the clock of a node, which a test sets forward.
type lateClock struct{ ahead atomic.Int64 }

func (c *lateClock) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *lateClock) set(d time.Duration) { c.ahead.Store(int64(d)) }

// shownDisk is a disk of which the test says how full it is.
type shownDisk struct {
	vfs.FS
	avail atomic.Uint64
}

const shownSize = 100 << 30

func (d *shownDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	avail := d.avail.Load()
	return vfs.DiskUsage{AvailBytes: avail, TotalBytes: shownSize, UsedBytes: shownSize - avail}, nil
}

// Rule 16: a round begins without being asked for, each day, and sooner where the disk
// is nearly full; never just after the start, and of several nodes it is the leader's to
// begin the daily one.
func TestRoundsBeginByThemselves(t *testing.T) {
	clock, disk := &lateClock{}, &shownDisk{FS: vfs.Default}
	disk.avail.Store(shownSize / 2)
	n, err := Open(t.Context(), Options{Dir: t.TempDir(), Create: true, Reserve: -1, Now: clock.now, FS: disk, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.close(t)
	ended := func(rounds uint64) func() bool {
		return func() bool { return n.state.Collection().Round() == rounds }
	}
	due := func(after time.Duration, leads bool) bool {
		return n.collect.due(namespace.Collection{Time: clock.now().Add(-after).UnixNano()}, leads)
	}

	clock.set(collectPatient - time.Minute)
	if due(2*collectEvery, true) {
		t.Error("a round is due just after the start")
	}
	clock.set(collectPatient + time.Minute)
	eventually(t, "the first round of a store that has had none", ended(1))
	for _, c := range []struct {
		after          time.Duration // since the last round
		avail          uint64
		leader, others bool
	}{
		{collectEvery - time.Minute, shownSize / 2, false, false},
		{collectEvery + time.Minute, shownSize / 2, true, false},
		{collectIfFull - time.Minute, 1 << 30, false, false},
		{collectIfFull + time.Minute, 1 << 30, true, true},
	} {
		disk.avail.Store(c.avail)
		if leader, others := due(c.after, true), due(c.after, false); leader != c.leader || others != c.others {
			t.Errorf("%v after the last round, with %d of %d bytes left: due to the leader %v, to others %v, want %v and %v",
				c.after, c.avail, uint64(shownSize), leader, others, c.leader, c.others)
		}
	}
	disk.avail.Store(shownSize / 2)
	clock.set(collectPatient + collectEvery + time.Hour)
	eventually(t, "the round of the next day", ended(2))
	disk.avail.Store(1 << 30)
	clock.set(collectPatient + collectEvery + 3*time.Hour)
	eventually(t, "a round because the disk is nearly full", ended(3))
}
