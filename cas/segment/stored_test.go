package segment

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/index"
)

// listAll pages through the store.
func listAll(t testing.TB, s *Store, limit int) (all []cas.CID) {
	t.Helper()
	var after index.Hash
	for {
		page, err := s.List(context.Background(), after, limit, nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(page) > limit {
			t.Fatalf("a page of %d, want %d at most", len(page), limit)
		}
		all = append(all, page...)
		if len(page) < limit {
			return all
		}
		after = page[len(page)-1].Hash()
	}
}

func TestListPagesThroughAllBlocksOnceInOrderWhetherIndexedOrNot(t *testing.T) {
	n := start(t, vfs.NewMem(), "", small())
	defer n.stop(t)
	blocks := someBlocks(t, 1, 200)
	var want []cas.CID
	for i, b := range blocks {
		put(t, n.Store, b)
		want = append(want, b.CID())
		if i%50 == 20 {
			syncS(t, n.Store)
			before := n.ix.Blocks().IndexedTo
			for deadline := time.Now().Add(time.Minute); n.ix.Blocks().IndexedTo == before; time.Sleep(time.Millisecond) {
				select {
				case n.wake <- struct{}{}:
				default:
				}
				if time.Now().After(deadline) {
					t.Fatal("blocks are not indexed")
				}
			}
		}
	}
	byHash := func(a, b cas.CID) int {
		x, y := a.Hash(), b.Hash()
		return bytes.Compare(x[:], y[:])
	}
	slices.SortFunc(want, byHash)
	want = slices.Compact(want)
	for _, limit := range []int{1, 7, len(want), 1000} {
		if got := listAll(t, n.Store, limit); !slices.Equal(got, want) {
			t.Errorf("pages of %d: %d blocks, want %d", limit, len(got), len(want))
		}
	}
	fs := corruptible{n}
	fs.Corrupt(t, want[3])
	if _, err := n.Get(context.Background(), want[3], nil); !errors.Is(err, cas.ErrCorrupt) {
		t.Fatal(err)
	}
	if got := listAll(t, n.Store, 10); len(got) != len(want)-1 || slices.Contains(got, want[3]) {
		t.Errorf("a block found damaged is listed")
	}
	if _, err := n.Stored(context.Background(), want[3], nil); !errors.Is(err, cas.ErrNotFound) {
		t.Errorf("Stored of a block found damaged: %v", err)
	}
}

func TestTheStoredFormOfABlockMakesTheBlockAgain(t *testing.T) {
	n := start(t, vfs.NewMem(), "", Options{})
	defer n.stop(t)
	text, err := cas.NewBlock(cas.DagPB, bytes.Repeat([]byte("all work and no play "), 3000))
	if err != nil {
		t.Fatal(err)
	}
	empty, err := cas.NewBlock(cas.Raw, nil)
	if err != nil {
		t.Fatal(err)
	}
	noise := castest.Block(t, 1, cas.MaxBlockSize)
	put(t, n.Store, text, noise, empty)
	buf := make([]byte, 0, cas.MaxBlockSize)
	for _, b := range []cas.Block{text, noise, empty} {
		st, err := n.Stored(context.Background(), b.CID(), buf)
		if err != nil {
			t.Fatal(err)
		}
		if st.CID != b.CID() || st.Raw != len(b.Data()) || len(st.Payload) > st.Raw {
			t.Errorf("stored form of %d bytes: %d of %d", len(b.Data()), len(st.Payload), st.Raw)
		}
		got, err := st.Block(nil)
		if err != nil || !bytes.Equal(got.Data(), b.Data()) {
			t.Errorf("it makes %d bytes: %v", len(got.Data()), err)
		}
		plain := Plain(b)
		if got, err := plain.Block(nil); err != nil || !bytes.Equal(got.Data(), b.Data()) {
			t.Errorf("plain form: %v", err)
		}
	}
	st, err := n.Stored(context.Background(), text.CID(), buf)
	if err != nil || st.Compression != compressS2 || len(st.Payload) > st.Raw/10 {
		t.Errorf("text is read as %d bytes: %v", len(st.Payload), err)
	}
	if _, err := n.Stored(context.Background(), cas.Sum(cas.Raw, []byte("other")), nil); !errors.Is(err, cas.ErrNotFound) {
		t.Error(err)
	}
}

func TestAStoredFormThatLiesIsCorrupt(t *testing.T) {
	b := castest.Block(t, 1, 1000)
	for name, change := range map[string]func(*Stored){
		"other bytes":             func(s *Stored) { s.Payload = castest.Bytes(2, 1000) },
		"shorter":                 func(s *Stored) { s.Payload = s.Payload[:999] },
		"a length that is wrong":  func(s *Stored) { s.Raw++ },
		"a negative length":       func(s *Stored) { s.Raw = -1 },
		"a length that is huge":   func(s *Stored) { s.Raw = 1 << 30 },
		"an unknown compression":  func(s *Stored) { s.Compression = 9 },
		"compression it has not":  func(s *Stored) { s.Compression = compressS2 },
		"no CID":                  func(s *Stored) { s.CID = cas.CID{} },
		"the CID of other bytes":  func(s *Stored) { s.CID = cas.Sum(cas.Raw, nil) },
		"a bomb of decompression": func(s *Stored) { s.Compression, s.Payload = compressS2, []byte{0xff, 0xff, 0xff, 0x7f, 0} },
	} {
		s := Plain(b)
		change(&s)
		got, err := s.Block(nil)
		var block *cas.BlockError
		if !errors.Is(err, cas.ErrCorrupt) || !errors.As(err, &block) || got.CID().Defined() {
			t.Errorf("%s: %v", name, err)
		}
	}
}
