package manifest_test

// The root of a file is a function of its bytes and the Format. These tests make
// the same bytes in every way the package has and compare the roots with the
// one that the definition gives.

import (
	"bytes"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
)

// formats vary in what is likely: cuts at Max, groups of maximal size, high and
// flat trees.
func formats(t testing.TB) []manifest.Format {
	return []manifest.Format{
		small(t),
		newFormat(t, 64, 256, 257, 2, 2, 2),
		newFormat(t, 64, 1000, 1100, 2, 100, 100),
		newFormat(t, 64, 256, 512, 3, 3, 50),
		newFormat(t, 200, 300, 1000, 8, 16, 64),
	}
}

// append writes b to w in pieces of random sizes by random methods.
func appendRandomly(t testing.TB, r *rand.Rand, w *manifest.Writer, b []byte) {
	t.Helper()
	for len(b) > 0 {
		n := 1 + r.IntN(min(len(b), 1<<(1+r.IntN(16))))
		zeros := 0
		for zeros < len(b) && b[zeros] == 0 {
			zeros++
		}
		var err error
		switch {
		case zeros > 0 && r.IntN(2) == 0:
			n = min(n, zeros)
			err = w.WriteZeros(ctx, int64(n))
		case r.IntN(4) == 0:
			var rd io.Reader = bytes.NewReader(b[:n])
			if r.IntN(2) == 0 {
				rd = iotest.HalfReader(iotest.DataErrReader(rd))
			}
			var got int64
			if got, err = w.ReadFrom(ctx, rd); got != int64(n) {
				t.Fatalf("ReadFrom = %d, want %d", got, n)
			}
		default:
			p := bytes.Clone(b[:n])
			err = w.Write(ctx, p)
			clear(p) // the writer keeps nothing of it
		}
		if err != nil {
			t.Fatal(err)
		}
		b = b[n:]
	}
}

func TestWriterGivesTheCanonicalRoot(t *testing.T) {
	r := newRand(t)
	for _, f := range formats(t) {
		for range 40 {
			var s mem.Store
			b := content(r, r.IntN(1<<(1+r.IntN(17))))
			w := manifest.NewWriter(&s, f)
			appendRandomly(t, r, w, b)
			got, err := w.Finish(ctx)
			if want := reference(t, &mem.Store{}, f, b); err != nil || got != want {
				t.Fatalf("Finish = %v, %v, want %v", got, err, want)
			}
			if !bytes.Equal(read(t, &s, got), b) {
				t.Fatal("it reads differently")
			}
		}
	}
}

func TestSnapshotsAreCanonicalAndChangeNothing(t *testing.T) {
	r := newRand(t)
	for _, f := range formats(t) {
		for range 5 {
			var s mem.Store
			b := content(r, r.IntN(50_000))
			w := manifest.NewWriter(&s, f)
			for from := 0; from < len(b); {
				to := min(from+1+r.IntN(10_000), len(b))
				appendRandomly(t, r, w, b[from:to])
				from = to
				got, err := w.Snapshot(ctx)
				if want := reference(t, &mem.Store{}, f, b[:to]); err != nil || got != want {
					t.Fatalf("Snapshot = %v, %v, want %v", got, err, want)
				}
				if !bytes.Equal(read(t, &s, got), b[:to]) {
					t.Fatal("the snapshot reads differently")
				}
			}
		}
	}
}

func TestAppendToGoesOnAsIfItHadWrittenAll(t *testing.T) {
	r := newRand(t)
	for _, f := range formats(t) {
		for range 20 {
			var s mem.Store
			b := content(r, r.IntN(60_000))
			from := r.IntN(len(b) + 1)
			w, err := manifest.AppendTo(ctx, &s, f, write(t, &s, f, b[:from]))
			if err != nil {
				t.Fatal(err)
			}
			if w.Size() != int64(from) {
				t.Fatalf("Size = %d, want %d", w.Size(), from)
			}
			appendRandomly(t, r, w, b[from:])
			got, err := w.Finish(ctx)
			if want := reference(t, &mem.Store{}, f, b); err != nil || got != want {
				t.Fatalf("Finish = %v, %v, want %v", got, err, want)
			}
		}
	}
}

// randomEdits changes a copy of b, and returns it with the edits that do the same.
func randomEdits(r *rand.Rand, b []byte) ([]byte, []manifest.Edit) {
	size := len(b)
	switch r.IntN(4) {
	case 0:
		size = r.IntN(size + 1)
	case 1:
		size += r.IntN(1 << (1 + r.IntN(16)))
	}
	changed := make([]byte, size)
	copy(changed, b)
	var edits []manifest.Edit
	for at := r.IntN(size/2 + 1); at < size && len(edits) < 5; {
		n := min(r.IntN(1<<(1+r.IntN(13))), size-at)
		e := manifest.Edit{Off: int64(at), Len: int64(n)}
		if r.IntN(3) == 0 {
			clear(changed[at : at+n])
		} else {
			copy(changed[at:], content(r, n))
			e.Data = bytes.NewReader(bytes.Clone(changed[:at+n]))
		}
		edits = append(edits, e)
		if at += n; r.IntN(4) > 0 { // else the next one touches this one
			at += r.IntN(size + 1)
		}
	}
	r.Shuffle(len(edits), func(i, j int) { edits[i], edits[j] = edits[j], edits[i] })
	return changed, edits
}

func TestRewriteGivesTheCanonicalRoot(t *testing.T) {
	r := newRand(t)
	for _, f := range formats(t) {
		for range 30 {
			var s mem.Store
			b := content(r, r.IntN(1<<(1+r.IntN(17))))
			root := write(t, &s, f, b)
			for range 6 {
				var edits []manifest.Edit
				b, edits = randomEdits(r, b)
				got, err := manifest.Rewrite(ctx, &s, f, root, int64(len(b)), edits)
				if want := reference(t, &mem.Store{}, f, b); err != nil || got != want {
					t.Fatalf("Rewrite = %v, %v, want %v", got, err, want)
				}
				root = got
			}
			if !bytes.Equal(read(t, &s, root), b) {
				t.Fatal("it reads differently")
			}
		}
	}
}

// Random edits hardly ever fall on the edges of leaves and nodes; these do.
func TestRewriteAtEveryOffsetGivesTheCanonicalRoot(t *testing.T) {
	f := newFormat(t, 64, 256, 300, 2, 3, 4)
	b := slices.Concat(fixed(3, 500), make([]byte, 400), fixed(4, 300))
	var s mem.Store
	root := write(t, &s, f, b)
	for at := 0; at <= len(b); at++ {
		for _, n := range []int{1, 70} {
			changed := bytes.Clone(b)
			copy(changed[at:], fixed(5, n))
			edit := manifest.Edit{Off: int64(at), Len: int64(min(n, len(b)-at)), Data: bytes.NewReader(changed)}
			got, err := manifest.Rewrite(ctx, &s, f, root, int64(len(b)), []manifest.Edit{edit})
			if want := write(t, &s, f, changed); err != nil || got != want {
				t.Fatalf("%d bytes at %d: %v, %v, want %v", n, at, got, err, want)
			}
		}
		got, err := manifest.Rewrite(ctx, &s, f, root, int64(at), nil)
		want := write(t, &s, f, b[:at])
		if err != nil || got != want {
			t.Fatalf("cut to %d: %v, %v, want %v", at, got, err, want)
		}
		w, err := manifest.AppendTo(ctx, &s, f, want)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Write(ctx, b[at:]); err != nil {
			t.Fatal(err)
		}
		if got, err := w.Finish(ctx); err != nil || got != root {
			t.Fatalf("appended from %d on: %v, %v, want %v", at, got, err, root)
		}
	}
}

func TestAResetWriterIsANewOne(t *testing.T) {
	r := newRand(t)
	f := small(t)
	var s mem.Store
	w := manifest.NewWriter(&s, f)
	for range 50 {
		b := content(r, r.IntN(20_000))
		appendRandomly(t, r, w, b)
		if r.IntN(3) > 0 { // else it is reset in the middle
			got, err := w.Finish(ctx)
			if want := reference(t, &mem.Store{}, f, b); err != nil || got != want {
				t.Fatalf("Finish = %v, %v, want %v", got, err, want)
			}
		}
		w.Reset()
	}
}
