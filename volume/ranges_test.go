package volume

import (
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
)

// What is shared may be the beginning of a tree that would reach beyond the end of
// any file.
func TestHolesBehindACopyAtTheLargestOffsetsAreFound(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	from, to := r.create("from"), r.create("to")
	r.write(from, pattern(1<<20, 1), 0)
	const off, n = maxSize - 64<<10, 32 << 10
	if copied, err := to.CopyRange(t.Context(), off, from, 0, n); err != nil || copied != n {
		t.Fatalf("copied %d bytes, %v", copied, err)
	}
	r.resize(to.Ino(), maxSize)
	if got, err := to.Seek(t.Context(), 0, false); err != nil || got != off {
		t.Errorf("data at %d, %v; want %d", got, err, int64(off))
	}
	if got, err := to.Seek(t.Context(), off, true); err != nil || got != off+n {
		t.Errorf("a hole at %d, %v; want %d", got, err, int64(off+n))
	}
	from.Release()
	to.Release()
	r.close()
}

func TestAZeroingThatFailsChangesNothing(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("file")
	r.write(h, pattern(10<<10, 1), 0)
	for i := range int64(maxRanges) {
		r.must(h.Zero(t.Context(), 20<<10+2*i, 1, false))
	}
	before, err := r.GetAttr(t.Context(), h.Ino())
	r.must(err)
	r.full.on.Store(true)
	if err := h.Zero(t.Context(), 0, 10, true); !errors.Is(err, cas.ErrNoSpace) {
		t.Errorf("on a full disk: %v", err)
	}
	if after, err := r.GetAttr(t.Context(), h.Ino()); err != nil || after != before {
		t.Errorf("attributes %+v, %v; were %+v", after, err, before)
	}
	r.full.on.Store(false)
	r.expect(h.Ino(), append(pattern(10<<10, 1), make([]byte, before.Size-10<<10)...))
	r.must(h.Zero(t.Context(), 0, 10, true))
	if n := h.f.dirty.byEnd.Len(); n != 1 {
		t.Errorf("%d extents are left", n)
	}
	h.Release()
	r.close()
}
