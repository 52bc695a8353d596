package manifest_test

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
)

// farStore is a store whose blocks are elsewhere.
type farStore struct {
	mem.Store
	mu    sync.Mutex
	named []cas.CID
	late  int // leaves that were got without having been named
}

func (f *farStore) Ahead() int64 { return 8 << 20 }

func (f *farStore) Prefetch(_ context.Context, cids []cas.CID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.named = append(f.named, cids...)
}

func (f *farStore) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	f.mu.Lock()
	if c.Codec() == cas.Raw {
		known := false
		for _, n := range f.named {
			known = known || n == c
		}
		if !known {
			f.late++
		}
	}
	f.mu.Unlock()
	return f.Store.Get(ctx, c, buf)
}

func TestBlocksOfAFileThatIsReadInOrderAreNamedBeforeTheyAreNeeded(t *testing.T) {
	var s farStore
	want := castest.Bytes(1, 40<<20)
	root := write(t, &s, manifest.Format{}, want)
	s.late = 0
	r := manifest.NewReader(&s, root, manifest.ReaderOptions{})
	p := make([]byte, 1<<20)
	read := func(off int64) {
		t.Helper()
		if _, err := r.ReadAt(t.Context(), p, off); err != nil || !bytes.Equal(p, want[off:off+int64(len(p))]) {
			t.Fatalf("read at %d: %v", off, err)
		}
	}
	for off := int64(0); off+2<<20 <= int64(len(want)); off += 2 << 20 {
		read(off + 1<<20) // as read-ahead does: not quite in order
		read(off)
	}
	if s.late > 0 {
		t.Errorf("%d leaves were read before they were named", s.late)
	}
	seen := map[cas.CID]bool{}
	for _, c := range s.named {
		if seen[c] {
			t.Fatalf("%v is named twice", c)
		}
		seen[c] = true
	}
	s.named = nil
	for _, off := range []int64{30 << 20, 3 << 20, 20 << 20, 11 << 20} {
		read(off)
	}
	if len(s.named) > 0 {
		t.Errorf("%d blocks are named by reads here and there", len(s.named))
	}
}

func TestBlocksOfAFileThatIsCopiedOutAreNamedFirst(t *testing.T) {
	var s farStore
	want := castest.Bytes(1, 10<<20)
	root := write(t, &s, manifest.Format{}, want)
	s.late = 0
	var out bytes.Buffer
	if _, err := manifest.NewReader(&s, root, manifest.ReaderOptions{}).WriteTo(t.Context(), &out); err != nil || !bytes.Equal(out.Bytes(), want) {
		t.Fatal(err)
	}
	if s.late > 0 {
		t.Errorf("%d leaves were read before they were named", s.late)
	}
}
