//go:build linux

package mount

import (
	"math"
	"testing"

	"github.com/cairnfs/cairn/test/posix"
)

// A mount keeps every rule of package posix. The mount is served by a process of
// its own, as in real life.
func TestPosixRules(t *testing.T) {
	needFUSE(t)
	needRoot(t)
	dir := t.TempDir()
	_, finish := startChild(t, "serve", dir)
	t.Cleanup(func() {
		if err := finish(); err != nil {
			t.Error(err)
		}
		if _, mounted := mountAt(dir); mounted {
			t.Error("left behind, in use")
			ok(t, detach(dir))
		}
	})
	posix.Run(t, dir, posix.Traits{
		MaxFileSize: math.MaxInt64,
		MinTime:     math.MinInt64/1_000_000_000 - 1,
		MaxTime:     math.MaxInt64 / 1_000_000_000,
		HoleSize:    1 << 20,
		ZeroRange:   true,
		XattrSpace:  1<<16 + 1000,
	})
}
