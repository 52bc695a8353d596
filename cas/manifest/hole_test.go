package manifest_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"

	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
)

// part is a stretch of a file: bytes, or so many zeros.
type part struct {
	data  []byte
	zeros int64
}

// writeParts writes the file and returns its root.
func writeParts(t *testing.T, s manifest.Store, f manifest.Format, parts ...part) manifest.Root {
	t.Helper()
	w := manifest.NewWriter(s, f)
	for _, p := range parts {
		if err := w.Write(ctx, p.data); err != nil {
			t.Fatal(err)
		}
		if err := w.WriteZeros(ctx, p.zeros); err != nil {
			t.Fatal(err)
		}
	}
	root, err := w.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestTheLargestFileCostsAHandfulOfNodes(t *testing.T) {
	for _, f := range []manifest.Format{{}, small(t)} {
		s := &counter{}
		root := writeParts(t, s, f, part{zeros: math.MaxInt64})
		if root.Size != math.MaxInt64 {
			t.Errorf("size %d", root.Size)
		}
		if n := s.puts.Load(); n > 130 { // two nodes per level, at most 62 levels
			t.Errorf("%d blocks were put", n)
		}
		// The blocks would be more than 2^63 bytes together, which Tsize cannot say.
		info, err := manifest.Stat(ctx, s, root.CID)
		if err != nil || info.Size != math.MaxInt64 || info.DAGSize != math.MaxInt64 {
			t.Errorf("Stat = %+v, %v", info, err)
		}
		p := fixed(1, 100)
		if n, err := manifest.NewReader(s, root, manifest.ReaderOptions{}).ReadAt(ctx, p, math.MaxInt64-50); n != 50 || err != io.EOF || !bytes.Equal(p[:50], make([]byte, 50)) {
			t.Errorf("its end reads as %d bytes, %v: %x", n, err, p)
		}
	}
}

func TestAFileCannotExceedTheLargestSize(t *testing.T) {
	var s mem.Store
	w := manifest.NewWriter(&s, manifest.Format{})
	if err := w.WriteZeros(ctx, math.MaxInt64-1); err != nil {
		t.Fatal(err)
	}
	if err := w.Write(ctx, []byte("ab")); !errors.Is(err, manifest.ErrFileTooLarge) {
		t.Errorf("Write: %v", err)
	}
	if err := w.WriteZeros(ctx, 2); !errors.Is(err, manifest.ErrFileTooLarge) {
		t.Errorf("WriteZeros: %v", err)
	}
	if n, err := w.ReadFrom(ctx, bytes.NewReader([]byte("ab"))); n != 0 || !errors.Is(err, manifest.ErrFileTooLarge) {
		t.Errorf("ReadFrom: %d, %v", n, err)
	}
	// It goes on nevertheless, up to the limit.
	if err := w.Write(ctx, []byte("a")); err != nil || w.Size() != math.MaxInt64 {
		t.Errorf("Write: %v, size %d", err, w.Size())
	}
	if _, err := w.Finish(ctx); err != nil {
		t.Errorf("Finish: %v", err)
	}
}

func TestNegativeNumbersOfZerosAreRefused(t *testing.T) {
	w := manifest.NewWriter(&mem.Store{}, manifest.Format{})
	if err := w.WriteZeros(ctx, -1); err == nil || w.Size() != 0 {
		t.Errorf("error %v, size %d", err, w.Size())
	}
}

// Each step makes the largest file from the one before and compares it with the
// same content written at once. Were any step to walk over a hole leaf by leaf,
// it would not end.
func TestEditsInHolesAreCanonicalAndCheap(t *testing.T) {
	for _, f := range []manifest.Format{{}, small(t), newFormat(t, 64, 256, 257, 2, 2, 2), newFormat(t, 64, 1000, 1100, 2, 100, 100)} {
		s := &counter{}
		const size, at, at2 = math.MaxInt64, 1<<62 + 12345, 1<<40 + 7
		a, b := fixed(1, 5000), fixed(2, 20_000)
		edit := func(root manifest.Root, size int64, edits ...manifest.Edit) manifest.Root {
			t.Helper()
			s.reset()
			root, err := manifest.Rewrite(ctx, s, f, root, size, edits)
			if err != nil {
				t.Fatal(err)
			}
			if gets, puts := s.gets.Load(), s.puts.Load(); gets > 500 || puts > 1000 {
				t.Errorf("%d blocks were read and %d written", gets, puts)
			}
			return root
		}
		check := func(what string, got manifest.Root, parts ...part) {
			t.Helper()
			if want := writeParts(t, s, f, parts...); got != want {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
		data := func(off int64, b []byte) manifest.Edit {
			return manifest.Edit{Off: off, Len: int64(len(b)), Data: shifted{bytes.NewReader(b), off}}
		}
		la, lb := int64(len(a)), int64(len(b))

		root := edit(manifest.Root{}, size)
		check("grown from nothing", root, part{zeros: size})
		root = edit(root, size, data(at, a))
		check("bytes in a hole", root, part{zeros: at}, part{a, size - at - la})
		root = edit(root, size, data(at2, b))
		check("bytes in the first hole", root, part{zeros: at2}, part{b, at - at2 - lb}, part{a, size - at - la})
		both := edit(manifest.Root{}, size, data(at2, b), data(at, a))
		check("both at once", both, part{zeros: at2}, part{b, at - at2 - lb}, part{a, size - at - la})
		short := edit(root, at+10)
		check("cut off", short, part{zeros: at2}, part{b, at - at2 - lb}, part{a[:10], 0})
		long := edit(short, size)
		check("grown again", long, part{zeros: at2}, part{b, at - at2 - lb}, part{a[:10], size - at - 10})
		root = edit(root, size, manifest.Edit{Off: at2 + 1000, Len: at})
		check("punched", root, part{zeros: at2}, part{b[:1000], size - at2 - 1000})
		root = edit(root, size, manifest.Edit{Off: 0, Len: size})
		check("punched out", root, part{zeros: size})

		s.reset()
		w, err := manifest.AppendTo(ctx, s, f, short)
		if err == nil {
			err = w.WriteZeros(ctx, 1<<60)
		}
		if err == nil {
			err = w.Write(ctx, a)
		}
		if err != nil {
			t.Fatal(err)
		}
		root, err = w.Finish(ctx)
		if err != nil {
			t.Fatal(err)
		}
		check("appended to", root, part{zeros: at2}, part{b, at - at2 - lb}, part{a[:10], 1 << 60}, part{a, 0})
		got := make([]byte, 2*la)
		if n, err := manifest.NewReader(s, root, manifest.ReaderOptions{}).ReadAt(ctx, got, root.Size-2*la); err != nil || !bytes.Equal(got[la:], a) || !bytes.Equal(got[:la], make([]byte, la)) {
			t.Errorf("the end reads differently: %d, %v", n, err)
		}
	}
}

func TestAHoleStoresItsLeafOnce(t *testing.T) {
	s := &counter{}
	w := manifest.NewWriter(s, manifest.Format{})
	for range 100 {
		if err := w.WriteZeros(ctx, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.puts.Load(); n > 1 {
		t.Errorf("%d blocks were put", n)
	}
}
