//go:build simulation

package node

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// simDisk is a disk that takes time to sync, may be full or fail, and loses what was
// not synced with the power.
type simDisk struct {
	vfs.FS
	mem *vfs.MemFS

	mu       sync.Mutex
	rng      *rand.Rand
	slow     time.Duration // a sync takes at most
	full     bool
	left     uint64 // bytes, while it is full
	failing  string // syncs of files below this directory fail
	capacity uint64
}

const simCapacity = 1 << 30 // as a disk has at first

func newSimDisk(mem *vfs.MemFS, seed uint64) *simDisk {
	d := &simDisk{mem: mem, rng: rand.New(rand.NewPCG(seed, 3)), slow: 10 * time.Millisecond, capacity: simCapacity}
	d.FS = errorfs.Wrap(mem, errorfs.InjectorFunc(d.inject))
	return d
}

func (d *simDisk) inject(op errorfs.Op) error {
	switch op.Kind {
	case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
		d.mu.Lock()
		takes := time.Duration(d.rng.Int64N(int64(d.slow)))
		failing := d.failing
		d.mu.Unlock()
		time.Sleep(takes)
		if failing != "" && strings.Contains(op.Path, failing) {
			return syscall.EIO
		}
	case errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpCreate, errorfs.OpFilePreallocate:
		// Blocks stop at the reserve; only what has its space already goes on.
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.full && (strings.Contains(op.Path, segmentsDir) || op.Kind == errorfs.OpFilePreallocate) {
			return syscall.ENOSPC
		}
	}
	return nil
}

func (d *simDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	u := vfs.DiskUsage{TotalBytes: d.capacity, AvailBytes: d.capacity / 2}
	if d.full {
		u.AvailBytes = d.left
	}
	u.UsedBytes = u.TotalBytes - u.AvailBytes
	return u, nil
}

func (d *simDisk) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

// flip changes a byte of a file, durably.
func (d *simDisk) flip(path string, at int64) error {
	f, err := d.mem.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err = f.ReadAt(b, at); err == nil {
		b[0] ^= 0x55
		_, err = f.WriteAt(b, at)
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// crash returns the disk as it may be after a power loss at this moment.
func (d *simDisk) crash(rng *rand.Rand) *simDisk {
	percent := []int{0, 100, rng.IntN(101)}[rng.IntN(3)]
	return d.clone(percent, rng)
}

func (d *simDisk) clone(percent int, rng *rand.Rand) *simDisk {
	mem := d.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(rng.Uint64(), 0))})
	c := newSimDisk(mem, rng.Uint64())
	d.set(func() { c.capacity, c.slow = d.capacity, d.slow })
	return c
}
