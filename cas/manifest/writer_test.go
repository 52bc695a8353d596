package manifest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
)

func TestWhatWasWrittenCanBeRead(t *testing.T) {
	r := newRand(t)
	for _, f := range formats(t) {
		for range 10 {
			var s mem.Store
			b := content(r, r.IntN(60_000))
			w := manifest.NewWriter(&s, f)
			for from := 0; from < len(b); {
				to := min(from+1+r.IntN(5000), len(b))
				appendRandomly(t, r, w, b[from:to])
				if from = to; r.IntN(10) == 0 {
					if _, err := w.Snapshot(ctx); err != nil {
						t.Fatal(err)
					}
				}
				off := r.IntN(to + 2)
				p := make([]byte, r.IntN(to+10))
				n, err := w.ReadAt(ctx, p, int64(off))
				want := b[min(off, to):min(off+len(p), to)]
				if (err == io.EOF) != (n < len(p)) || err != nil && err != io.EOF || !bytes.Equal(p[:n], want) {
					t.Fatalf("%d bytes at %d of %d: %d, %v, want %d", len(p), off, to, n, err, len(want))
				}
			}
			if _, err := w.Finish(ctx); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, len(b))
			if _, err := w.ReadAt(ctx, p, 0); err != nil && err != io.EOF || !bytes.Equal(p, b) {
				t.Fatalf("after Finish: %v", err)
			}
		}
	}
}

func TestReadingLongHolesWhileWriting(t *testing.T) {
	w := manifest.NewWriter(&mem.Store{}, manifest.Format{})
	for range 3 { // of which the last is still pending
		if err := w.WriteZeros(ctx, 1<<60); err != nil {
			t.Fatal(err)
		}
		if err := w.Write(ctx, []byte("abc")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.WriteZeros(ctx, 1<<60); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 5)
	for i := range int64(3) {
		at := (i+1)<<60 + 3*i
		if n, err := w.ReadAt(ctx, p, at-1); n != 5 || err != nil || string(p) != "\x00abc\x00" {
			t.Errorf("at %d: %d, %v, %q", at, n, err, p)
		}
	}
	if n, err := w.ReadAt(ctx, p, w.Size()-2); n != 2 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
}

// failing refuses to put after so many blocks.
type failing struct {
	mem.Store
	left int
}

var errFull = errors.New("full")

func (f *failing) Put(ctx context.Context, blocks ...cas.Block) error {
	if f.left -= len(blocks); f.left < 0 {
		return errFull
	}
	return f.Store.Put(ctx, blocks...)
}

func TestAfterAFailedPutThereIsNoRoot(t *testing.T) {
	b := fixed(1, 20_000)
	for left := range 200 {
		s := &failing{left: left}
		w := manifest.NewWriter(s, small(t))
		err := w.Write(ctx, b)
		_, finishErr := w.Finish(ctx)
		if s.left >= 0 {
			if err != nil || finishErr != nil {
				t.Fatalf("nothing failed, but: %v, %v", err, finishErr)
			}
			return
		}
		s.left = 1 << 30 // room again: still blocks are missing
		_, again := w.Finish(ctx)
		if !errors.Is(finishErr, errFull) || !errors.Is(again, errFull) {
			t.Fatalf("after %d blocks: Write %v, Finish %v, again %v", left, err, finishErr, again)
		}
		if err := w.Write(ctx, nil); !errors.Is(err, errFull) {
			t.Fatalf("Write: %v", err)
		}
		if err := w.WriteZeros(ctx, 1); !errors.Is(err, errFull) {
			t.Fatalf("WriteZeros: %v", err)
		}
		if _, err := w.ReadFrom(ctx, bytes.NewReader(b)); !errors.Is(err, errFull) {
			t.Fatalf("ReadFrom: %v", err)
		}
		if _, err := w.ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, errFull) {
			t.Fatalf("ReadAt: %v", err)
		}
	}
	t.Error("200 blocks were not enough")
}

func TestAnErrorOfTheInputLeavesWhatWasReadBefore(t *testing.T) {
	var s mem.Store
	f := small(t)
	b := fixed(1, 5000)
	w := manifest.NewWriter(&s, f)
	n, err := w.ReadFrom(ctx, io.MultiReader(bytes.NewReader(b), iotest.ErrReader(io.ErrClosedPipe)))
	if n != 5000 || err != io.ErrClosedPipe {
		t.Errorf("ReadFrom = %d, %v", n, err)
	}
	if got, err := w.Finish(ctx); err != nil || got != write(t, &s, f, b) {
		t.Errorf("Finish = %v, %v", got, err)
	}
	w.Reset()
	if _, err := w.ReadFrom(ctx, iotest.ErrReader(nil)); err != io.ErrNoProgress {
		t.Errorf("an input that gives nothing for ever: %v", err)
	}
}

func TestAFinishedWriterTakesNothing(t *testing.T) {
	w := manifest.NewWriter(&mem.Store{}, manifest.Format{})
	if _, err := w.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.Write(ctx, []byte("x")); err == nil {
		t.Error("Write succeeds")
	}
	if _, err := w.Snapshot(ctx); err == nil {
		t.Error("Snapshot succeeds")
	}
	if w.Size() != 0 {
		t.Errorf("Size = %d", w.Size())
	}
}

func TestAnEndedContextEndsWriting(t *testing.T) {
	ended, cancel := context.WithCancel(ctx)
	cancel()
	w := manifest.NewWriter(&mem.Store{}, small(t))
	if err := w.Write(ended, fixed(1, 5000)); !errors.Is(err, context.Canceled) {
		t.Errorf("Write: %v", err)
	}
}
