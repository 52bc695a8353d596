package volume

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
)

// The largest extent that a stream can be given while the disk gets full, of bytes
// that are nowhere yet, must not cost the stream what it holds.
func TestADiskThatGetsFullWithinALargeExtentLosesNothing(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("file")
	want := make([]byte, 3<<20+maxExtent)
	for rnd, i := rand.New(rand.NewPCG(1, 0)), 0; i < len(want); i++ {
		want[i] = byte(rnd.Uint32())
	}
	h.f.move.Lock() // so that no worker takes it in small pieces
	r.write(h, want[:3<<20], 0)
	r.must(h.f.drainTail(t.Context()))
	for off := 3 << 20; off < len(want); off += smallExtent {
		r.write(h, want[off:off+smallExtent], int64(off))
	}
	r.full.on.Store(true)
	err := h.f.drainTail(t.Context())
	h.f.move.Unlock()
	if err != nil && !errors.Is(err, cas.ErrNoSpace) {
		t.Fatal(err)
	}
	if err := h.Flush(t.Context()); !errors.Is(err, cas.ErrNoSpace) {
		t.Errorf("flush on a full disk: %v", err)
	}
	r.full.on.Store(false)
	r.must(h.Flush(t.Context()))
	h.Release()
	r.expect(h.Ino(), want)
	r.close()
}
