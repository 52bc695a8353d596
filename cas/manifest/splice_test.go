package manifest_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
)

// Parts of stored files become parts of others without their bytes.

func TestPartsOfTreesGiveTheCanonicalRoot(t *testing.T) {
	r := newRand(t)
	for _, f := range formats(t) {
		for range 20 {
			var s mem.Store
			a, b := content(r, r.IntN(1<<(1+r.IntN(17)))), content(r, r.IntN(1<<(1+r.IntN(17))))
			rootA, rootB := write(t, &s, f, a), write(t, &s, f, b)
			from := r.IntN(len(b) + 1)
			n := r.IntN(len(b) - from + 1)
			if r.IntN(3) == 0 {
				from, n = 0, len(b)
			}

			w := manifest.NewWriter(&s, f)
			appendRandomly(t, r, w, a)
			if err := w.AppendTree(ctx, rootB, int64(from), int64(n)); err != nil {
				t.Fatal(err)
			}
			appendRandomly(t, r, w, a)
			got, err := w.Finish(ctx)
			whole := bytes.Join([][]byte{a, b[from : from+n], a}, nil)
			if want := reference(t, &mem.Store{}, f, whole); err != nil || got != want {
				t.Fatalf("appended %d of %d bytes at %d between %d: %v, %v, want %v", n, len(b), from, len(a), got, err, want)
			}

			at := r.IntN(len(a) + 1)
			e := manifest.Edit{Off: int64(at), Len: int64(n), Tree: &rootB, TreeOff: int64(from)}
			size := max(len(a), at+n)
			got, err = manifest.Rewrite(ctx, &s, f, rootA, int64(size), []manifest.Edit{e})
			whole = append(bytes.Clone(a), make([]byte, size-len(a))...)
			copy(whole[at:], b[from:from+n])
			if want := reference(t, &mem.Store{}, f, whole); err != nil || got != want {
				t.Fatalf("copied %d of %d bytes at %d over those at %d of %d: %v, %v, want %v", n, len(b), from, at, len(a), got, err, want)
			}
		}
	}
}

func TestAPartOfATreeCostsItsTwoEnds(t *testing.T) {
	f := newFormat(t, 64, 256, 1024, 4, 16, 64)
	s := &counter{}
	root := write(t, s, f, fixed(1, 1<<22))
	s.reset()
	w := manifest.NewWriter(s, f)
	if err := w.Write(ctx, []byte("something before it")); err != nil {
		t.Fatal(err)
	}
	if err := w.AppendTree(ctx, root, 12345, 1<<22-54321); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	if gets, puts := s.gets.Load(), s.puts.Load(); gets > 120 || puts > 120 {
		t.Errorf("%d blocks were read and %d written, of %d", gets, puts, s.Len())
	}
}

func TestPartsThatATreeDoesNotHaveAreRefused(t *testing.T) {
	var s mem.Store
	root := write(t, &s, manifest.Format{}, fixed(1, 100))
	for _, r := range [][2]int64{{-1, 5}, {0, -1}, {0, 101}, {100, 1}, {101, 0}, {1 << 62, 1 << 62}} {
		w := manifest.NewWriter(&s, manifest.Format{})
		if err := w.AppendTree(ctx, root, r[0], r[1]); !errors.Is(err, manifest.ErrEdits) {
			t.Errorf("%d bytes at %d: %v", r[1], r[0], err)
		}
		if got, err := w.Finish(ctx); err != nil || got.Size != 0 {
			t.Errorf("after %d bytes at %d were refused: %v, %v", r[1], r[0], got, err)
		}
	}
}

// Data and holes alternate from the start of a file to its end; a hole has zeros
// only, and one of many leaves is found whatever else the file has.
func TestHolesAreFound(t *testing.T) {
	r := newRand(t)
	for _, f := range formats(t) {
		hole := f.Chunker.Params().Max
		for range 20 {
			var s mem.Store
			var b []byte
			for range r.IntN(5) {
				b = append(b, content(r, r.IntN(5000))...)
				b = append(b, make([]byte, r.IntN(20*hole))...)
			}
			root := write(t, &s, f, b)
			rd := manifest.NewReader(&s, root, manifest.ReaderOptions{})
			var inHoles int64
			for at := int64(0); at < root.Size; {
				data, err := rd.NextData(ctx, f, at)
				if err != nil || data < at || data > root.Size || len(bytes.Trim(b[at:data], "\x00")) > 0 {
					t.Fatalf("data from %d on is at %d of %d, %v", at, data, root.Size, err)
				}
				inHoles += data - at
				if at, err = rd.NextHole(ctx, f, data); err != nil || at < data || at == data && data < root.Size {
					t.Fatalf("the hole from %d on is at %d of %d, %v", data, at, root.Size, err)
				}
			}
			if inHoles != root.Holes {
				t.Fatalf("%d bytes are in holes, the root says %d", inHoles, root.Holes)
			}
			// From within a hole, too.
			if n := r.Int64N(root.Size + 1); n < root.Size {
				data, err := rd.NextData(ctx, f, n)
				next, err2 := rd.NextHole(ctx, f, n)
				if err != nil || err2 != nil || (data == n) == (next == n) {
					t.Fatalf("at %d of %d there is data at %d and a hole at %d, %v, %v", n, root.Size, data, next, err, err2)
				}
			}
		}
	}
}

func TestHolesOfTheLargestFileAreFoundAtOnce(t *testing.T) {
	f := manifest.Format{}
	s := &counter{}
	const at = 1<<62 + 12345
	root := writeParts(t, s, f, part{zeros: at}, part{fixed(1, 300_000), 1<<62 - 500_000})
	rd := manifest.NewReader(s, root, manifest.ReaderOptions{})
	s.reset()
	data, err := rd.NextData(ctx, f, 1)
	if err != nil || data > at || data < at-1<<20 {
		t.Errorf("data is at %d, %v, want %d", data, err, at)
	}
	next, err := rd.NextHole(ctx, f, data)
	if err != nil || next < at+300_000 || next > at+1<<20 {
		t.Errorf("the hole behind it is at %d, %v", next, err)
	}
	if end, err := rd.NextData(ctx, f, next); err != nil || end < root.Size-1<<20 {
		t.Errorf("the next data is at %d of %d, %v", end, root.Size, err)
	}
	if gets := s.gets.Load(); gets > 300 {
		t.Errorf("%d blocks were read", gets)
	}
}
