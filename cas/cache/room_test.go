package cache

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
)

func TestWhileThereIsRoomNothingLeaves(t *testing.T) {
	c := open(t, vfs.NewMem(), 4<<20)
	defer closeCache(t, c)
	if room := c.Room(); room < 3<<20 || room > 4<<20 {
		t.Errorf("an empty cache of 4 MiB has room for %d bytes", room)
	}
	var all []cas.Block
	for i := uint64(0); c.Room() > 20_000; i++ {
		b := castest.Block(t, i, 20_000)
		put(t, c, b)
		if all = append(all, b); len(all) > 300 {
			t.Fatalf("%d blocks are held, and there is room for %d bytes", len(all), c.Room())
		}
	}
	if len(all) < 100 {
		t.Errorf("after %d blocks there is no room any more", len(all))
	}
	for _, b := range all {
		if !holds(t, c, b) {
			t.Fatal("a block has left")
		}
	}
	for i := range uint64(300) {
		put(t, c, castest.Block(t, 1000+i, 20_000))
	}
	if room := c.Room(); room > 20_000+c.fileSize {
		t.Errorf("a full cache has room for %d bytes", room)
	}
}

// sharedDisk is a disk that has other uses than the cache.
type sharedDisk struct {
	vfs.FS
	t      testing.TB
	size   int64
	others atomic.Int64 // bytes that they take up
}

func (d *sharedDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{TotalBytes: uint64(d.size), AvailBytes: uint64(d.free())}, nil
}

func (d *sharedDisk) free() int64 { return max(0, d.size-d.others.Load()-diskSize(d.t, d.FS)) }

// Rule 17: what the log and the index need of a disk is not taken up by blocks that are
// on other nodes as well, however large the cache may be.
func TestACacheLeavesToOthersWhatIsTheirs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const reserve = 1 << 20
		disk := &sharedDisk{FS: vfs.NewMem(), t: t, size: 4 << 20}
		c, err := Open(Options{FS: disk, Dir: "cache", MaxBytes: 16 << 20, Reserve: reserve, Logger: quiet(), wait: true})
		if err != nil {
			t.Fatal(err)
		}
		defer closeCache(t, c)
		next := uint64(0)
		fill := func() (last cas.Block) {
			for range 400 {
				last = castest.Block(t, next, 20_000)
				next++
				put(t, c, last)
				c.Flush()
				if free := disk.free(); free < reserve {
					t.Fatalf("%d bytes of the disk are left", free)
				}
			}
			return last
		}
		if last := fill(); !holds(t, c, last) {
			t.Error("a block that was put last is not held")
		}
		if size := diskSize(t, disk); size < 2<<20 {
			t.Errorf("the cache holds %d bytes, and 3 MiB are for it", size)
		}
		if room := c.Room(); room > c.fileSize {
			t.Errorf("there is room for %d bytes more", room)
		}

		disk.others.Store(2 << 20)
		time.Sleep(time.Minute)
		if free := disk.free(); free < reserve {
			t.Errorf("others need more, and %d bytes are left", free)
		}
		if last := fill(); !holds(t, c, last) {
			t.Error("a block that was put last is not held")
		}

		disk.others.Store(4 << 20)
		time.Sleep(time.Minute)
		if size := diskSize(t, disk); size != 0 {
			t.Errorf("others need all, and the cache holds %d bytes", size)
		}
		put(t, c, castest.Block(t, next, 20_000))
		c.Flush()
		if size := diskSize(t, disk); size != 0 {
			t.Errorf("the disk is full, and the cache holds %d bytes", size)
		}

		disk.others.Store(0)
		if last := fill(); !holds(t, c, last) {
			t.Error("there is space again, and a block is not held")
		}
	})
}
