package volume

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Archivers take a file without blocks for one without data, so there must never be
// fewer blocks than data.

func (r *rig) expectBlocks(h *Handle, what string, data int64) {
	r.t.Helper()
	a, err := r.GetAttr(r.t.Context(), h.Ino())
	r.must(err)
	if a.Blocks*512 < data {
		r.t.Errorf("%s: %d blocks, but there are %d bytes of data", what, a.Blocks, data)
	}
}

func TestHolesBehindTheEndOfACutFileAreNotCounted(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("file")
	const data, size = 1 << 20, 100 << 20
	r.write(h, pattern(data, 1), 0)
	r.resize(h.Ino(), size)
	r.must(h.Zero(t.Context(), data, size-data, false))
	_, err := r.GetXattr(t.Context(), h.Ino(), CIDAttr) // in one tree
	r.must(err)
	if a, err := r.GetAttr(t.Context(), h.Ino()); err != nil || a.Blocks*512 > 2*data {
		t.Fatalf("%d blocks, %v; the hole is not known", a.Blocks, err)
	}
	r.resize(h.Ino(), data)
	r.expectBlocks(h, "cut", data)
	r.resize(h.Ino(), size)
	r.expectBlocks(h, "extended again", data)
	h.Release()
	r.expectBlocks(h, "closed", data)
	r.close()
}

// Zeros may hide others that are on their way into the tree.
func TestAHoleIsTakenOffTheBlocksOnce(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("file")
	r.write(h, pattern(100<<10, 1), 0)
	r.must(h.Flush(t.Context()))
	r.must(h.Zero(t.Context(), 0, 60<<10, true))
	g := r.shutGate()
	done := make(chan error)
	go func() { _, err := h.f.cid(t.Context()); done <- err }()
	<-g.entered
	r.must(h.Zero(t.Context(), 0, 60<<10, true))
	r.expectBlocks(h, "while it is folded", 40<<10)
	close(g.open)
	r.must(<-done)
	r.expectBlocks(h, "folded", 40<<10)
	h.Release()
	r.close()
}

func TestAFileThatIsNotEmptyHasABlock(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("file")
	if a, err := r.GetAttr(t.Context(), h.Ino()); err != nil || a.Blocks != 0 {
		t.Errorf("an empty file has %d blocks, %v", a.Blocks, err)
	}
	r.resize(h.Ino(), 1<<40)
	r.expectBlocks(h, "open", 1)
	h.Release()
	r.expectBlocks(h, "closed", 1)
	r.close()
}
