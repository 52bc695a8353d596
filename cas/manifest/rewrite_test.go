package manifest_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
)

// cost returns how many blocks an edit of n bytes reads and writes on average.
func cost(t *testing.T, s *counter, f manifest.Format, root manifest.Root, n int64) (gets, puts float64) {
	t.Helper()
	r := newRand(t)
	const rounds = 60
	s.reset()
	for range rounds {
		data := fixed(byte(r.Uint32()), int(n))
		e := manifest.Edit{Off: r.Int64N(root.Size - n), Len: n}
		e.Data = shifted{bytes.NewReader(data), e.Off}
		if _, err := manifest.Rewrite(ctx, s, f, root, root.Size, []manifest.Edit{e}); err != nil {
			t.Fatal(err)
		}
	}
	return float64(s.gets.Load()) / rounds, float64(s.puts.Load()) / rounds
}

// shifted is r, from the offset by on.
type shifted struct {
	r  io.ReaderAt
	by int64
}

func (s shifted) ReadAt(p []byte, off int64) (int, error) { return s.r.ReadAt(p, off-s.by) }

func TestAnEditCostsTheLogarithmOfTheFile(t *testing.T) {
	f := newFormat(t, 64, 256, 1024, 4, 16, 64)
	var gets, puts [3]float64
	for i, size := range []int{1 << 16, 1 << 19, 1 << 22} {
		s := &counter{}
		root := write(t, s, f, fixed(byte(i), size))
		gets[i], puts[i] = cost(t, s, f, root, 16)
		t.Logf("file of %d blocks: an edit reads %.1f blocks and writes %.1f", s.Len(), gets[i], puts[i])
	}
	// 8 times the size, or 64 times, is one or two levels more. A level costs the
	// node over the edit, and now and then its neighbours.
	for i := range gets {
		if limit := 8 + 3*float64(i); gets[i] > limit || puts[i] > limit {
			t.Errorf("size %d: an edit reads %.1f blocks and writes %.1f, more than %.0f", i, gets[i], puts[i], limit)
		}
	}
}

func TestAppendingCostsTheRightmostPathOnly(t *testing.T) {
	f := newFormat(t, 64, 256, 1024, 4, 16, 64)
	s := &counter{}
	root := write(t, s, f, fixed(1, 1<<22))
	s.reset()
	w, err := manifest.AppendTo(ctx, s, f, root)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(ctx, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	if gets, puts := s.gets.Load(), s.puts.Load(); gets > 6 || puts > 7 {
		t.Errorf("one byte more reads %d blocks and writes %d", gets, puts)
	}
}

func TestRewriteWithoutChangeReadsNoLeaf(t *testing.T) {
	f := newFormat(t, 64, 256, 1024, 4, 16, 64)
	s := &counter{}
	root := write(t, s, f, fixed(1, 1<<20))
	s.reset()
	got, err := manifest.Rewrite(ctx, s, f, root, root.Size, nil)
	if err != nil || got != root {
		t.Fatalf("Rewrite = %v, %v, want %v", got, err, root)
	}
	if gets := s.gets.Load(); gets > 5 {
		t.Errorf("%d blocks were read", gets)
	}
}

func TestEditsThatContradictAreRefused(t *testing.T) {
	var s mem.Store
	root := write(t, &s, manifest.Format{}, make([]byte, 100))
	for name, edits := range map[string][]manifest.Edit{
		"overlap":           {{Off: 10, Len: 10}, {Off: 19, Len: 5}},
		"overlap, unsorted": {{Off: 19, Len: 5}, {Off: 10, Len: 10}},
		"same place":        {{Off: 10, Len: 10}, {Off: 10, Len: 1}},
		"beyond the end":    {{Off: 95, Len: 6}},
		"far beyond":        {{Off: math.MaxInt64, Len: math.MaxInt64}},
		"negative offset":   {{Off: -1, Len: 5}},
		"negative length":   {{Off: 5, Len: -1}},
	} {
		if _, err := manifest.Rewrite(ctx, &s, manifest.Format{}, root, 100, edits); !errors.Is(err, manifest.ErrEdits) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if _, err := manifest.Rewrite(ctx, &s, manifest.Format{}, root, -1, nil); !errors.Is(err, manifest.ErrEdits) {
		t.Errorf("negative size: error %v", err)
	}
	touching := []manifest.Edit{{Off: 20, Len: 5}, {Off: 10, Len: 10}, {Off: 15, Len: 0}}
	if got, err := manifest.Rewrite(ctx, &s, manifest.Format{}, root, 100, touching); err != nil || got != root {
		t.Errorf("edits that touch: %v, %v", got, err)
	}
}

func TestEditDataThatEndsTooEarlyIsAnError(t *testing.T) {
	var s mem.Store
	e := manifest.Edit{Off: 5, Len: 10, Data: bytes.NewReader(make([]byte, 14))}
	if _, err := manifest.Rewrite(ctx, &s, manifest.Format{}, manifest.Root{}, 20, []manifest.Edit{e}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", err)
	}
}

// A base that is not what its size says must not become part of a new file.
func TestABaseOfAnotherSizeIsRefused(t *testing.T) {
	var s mem.Store
	f := small(t)
	for _, n := range []int{0, 50, 5000} {
		root := write(t, &s, f, fixed(1, n))
		for _, wrong := range []int64{-1, 0, root.Size - 1, root.Size + 1, math.MaxInt64} {
			if wrong == root.Size {
				continue
			}
			base := manifest.Root{CID: root.CID, Size: wrong}
			if _, err := manifest.AppendTo(ctx, &s, f, base); !errors.Is(err, cas.ErrCorrupt) {
				t.Errorf("%d bytes said to be %d: AppendTo: %v", n, wrong, err)
			}
			e := manifest.Edit{Off: 0, Len: 1}
			if _, err := manifest.Rewrite(ctx, &s, f, base, 10, []manifest.Edit{e}); !errors.Is(err, cas.ErrCorrupt) {
				t.Errorf("%d bytes said to be %d: Rewrite: %v", n, wrong, err)
			}
		}
	}
}

func TestADirectoryIsNoBase(t *testing.T) {
	var s mem.Store
	dir, err := manifest.Directory(ctx, &s, nil, manifest.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := manifest.AppendTo(ctx, &s, small(t), manifest.Root{CID: dir.CID, Size: 5}); !errors.Is(err, manifest.ErrNotFile) {
		t.Errorf("AppendTo: %v", err)
	}
}

func TestMetadataOfTheBaseIsLeftOut(t *testing.T) {
	var s mem.Store
	f := small(t)
	for _, n := range []int{0, 50, 5000} {
		root := write(t, &s, f, fixed(1, n))
		base, err := manifest.WithMeta(ctx, &s, root, manifest.Meta{Mode: 0o600, HasMode: true})
		if err != nil || base == root {
			t.Fatalf("WithMeta = %v, %v", base, err)
		}
		if got, err := manifest.Rewrite(ctx, &s, f, base, root.Size, nil); err != nil || got != root {
			t.Errorf("%d bytes: Rewrite = %v, %v, want %v", n, got, err, root)
		}
		w, err := manifest.AppendTo(ctx, &s, f, base)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := w.Finish(ctx); err != nil || got != root {
			t.Errorf("%d bytes: AppendTo and Finish = %v, %v, want %v", n, got, err, root)
		}
	}
}
