package volume

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
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
