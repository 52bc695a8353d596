package volume

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A write into the middle of a large file costs what is written, not what is
// there: a record of the journal when it is synced, and when it is folded the chunks
// around it and the nodes above them.
func TestAWriteIntoALargeFileCostsWhatItChanges(t *testing.T) {
	fs := vfs.NewCrashableMem()
	r := openRig(t, fs, 0)
	h := r.create("file")
	const size = 32 << 20
	for off := int64(0); off < size; off += 1 << 20 {
		r.write(h, pattern(1<<20, byte(off>>20)), off)
	}
	r.must(h.Flush(t.Context()))
	r.must(h.Fsync(t.Context(), false))

	const rounds = 50
	before, record := r.blocks.Stats(), r.journal.Last()
	for i := range int64(rounds) {
		r.write(h, pattern(4<<10, 99), (i*7919<<10)%(size-4<<10))
		r.must(h.Fsync(t.Context(), false))
	}
	after := r.blocks.Stats()
	if n := after.RawBytes - before.RawBytes; n > 0 {
		t.Errorf("%d synced writes of 4 KiB stored %d bytes of blocks", rounds, n)
	}
	if n := r.journal.Last() - record; n > 2*rounds {
		t.Errorf("%d synced writes made %d records", rounds, n)
	}

	f := h.f
	f.move.Lock()
	err := f.commit(t.Context())
	f.move.Unlock()
	r.must(err)
	folded := r.blocks.Stats()
	if n := folded.RawBytes - after.RawBytes; n > rounds*64<<10 {
		t.Errorf("folding %d writes of 4 KiB stored %d bytes of blocks", rounds, n)
	}
	h.Release()
	r.close()
}
