package manifest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/ipfs/go-unixfsnode/data"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
)

func TestEveryPartOfAFileReadsAsItWasWritten(t *testing.T) {
	r := newRand(t)
	for _, f := range formats(t) {
		for range 10 {
			var s mem.Store
			b := content(r, r.IntN(60_000))
			size := int64(len(b))
			// A cache from nothing to everything.
			cache := manifest.NewCache(1 << r.IntN(20))
			rd := manifest.NewReader(&s, write(t, &s, f, b), manifest.ReaderOptions{Cache: cache, Parallel: r.IntN(4)})
			for range 25 {
				off, n := r.Int64N(size+10), r.Int64N(size+10)>>r.IntN(12)
				want := b[min(off, size):min(off+n, size)]
				p := make([]byte, n)
				got, err := rd.ReadAt(ctx, p, off)
				eof := int64(got) < n || off >= size
				if (err == io.EOF) != eof || err != nil && err != io.EOF || !bytes.Equal(p[:got], want) {
					t.Fatalf("ReadAt %d bytes at %d of %d = %d, %v", n, off, size, got, err)
				}
				var out bytes.Buffer
				written, err := rd.WriteRange(ctx, &out, off, n)
				if err != nil || written != int64(len(want)) || !bytes.Equal(out.Bytes(), want) {
					t.Fatalf("WriteRange %d bytes at %d of %d = %d, %v", n, off, size, written, err)
				}
			}
			var out bytes.Buffer
			if n, err := rd.WriteTo(ctx, &out); err != nil || n != size || !bytes.Equal(out.Bytes(), b) {
				t.Fatalf("WriteTo = %d, %v", n, err)
			}
		}
	}
}

func TestNegativeOffsetsAreRefused(t *testing.T) {
	var s mem.Store
	rd := manifest.NewReader(&s, write(t, &s, manifest.Format{}, []byte("x")), manifest.ReaderOptions{})
	if n, err := rd.ReadAt(ctx, make([]byte, 1), -1); n != 0 || err == nil || err == io.EOF {
		t.Errorf("ReadAt = %d, %v", n, err)
	}
	if n, err := rd.WriteRange(ctx, io.Discard, -1, 1); n != 0 || err == nil {
		t.Errorf("WriteRange = %d, %v", n, err)
	}
	if n, err := rd.WriteRange(ctx, io.Discard, 0, math.MaxInt64); n != 1 || err != nil {
		t.Errorf("WriteRange beyond the end = %d, %v", n, err)
	}
}

func TestSmallReadsOfALeafFetchItOnce(t *testing.T) {
	s := &counter{}
	root := write(t, s, manifest.Format{}, fixed(1, 1<<20))
	cache := manifest.NewCache(4 << 20)
	for i := range 2 {
		s.reset()
		rd := manifest.NewReader(s, root, manifest.ReaderOptions{Cache: cache})
		for off := int64(0); off < root.Size; off += 4096 {
			if _, err := rd.ReadAt(ctx, make([]byte, 4096), off); err != nil {
				t.Fatal(err)
			}
		}
		want := int64(s.Len()) // each block once
		if i == 1 {
			want = 0 // another reader finds all of them in the cache
		}
		if got := s.gets.Load(); got != want {
			t.Errorf("reader %d: %d blocks were fetched, want %d", i, got, want)
		}
	}
}

func TestBlocksThatAReadCoversAreNotCached(t *testing.T) {
	s := &counter{}
	root := write(t, s, manifest.Format{}, fixed(1, 1<<20))
	rd := manifest.NewReader(s, root, manifest.ReaderOptions{})
	for range 2 {
		s.reset()
		if _, err := rd.ReadAt(ctx, make([]byte, 1<<20), 0); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := s.gets.Load(), int64(s.Len()-1); got != want { // all but the root
		t.Errorf("%d blocks were fetched, want %d", got, want)
	}
}

func TestTheLeafOfAHoleIsFetchedOnce(t *testing.T) {
	s := &counter{}
	root := writeParts(t, s, manifest.Format{}, part{zeros: 1 << 25})
	rd := manifest.NewReader(s, root, manifest.ReaderOptions{})
	s.reset()
	p := fixed(1, 1<<20)
	for off := int64(0); off < root.Size; off += int64(len(p)) {
		if _, err := rd.ReadAt(ctx, p, off); err != nil || !bytes.Equal(p, make([]byte, len(p))) {
			t.Fatalf("at %d: error %v, or not zeros", off, err)
		}
	}
	if n, err := rd.WriteTo(ctx, io.Discard); n != root.Size || err != nil {
		t.Errorf("WriteTo = %d, %v", n, err)
	}
	if got := s.gets.Load(); got != 2 {
		t.Errorf("%d blocks were fetched, want the root and the leaf", got)
	}
}

func TestACacheHoldsNoMoreThanItsSize(t *testing.T) {
	s := &counter{}
	root := write(t, s, manifest.Format{}, fixed(1, 1<<20))
	rd := manifest.NewReader(s, root, manifest.ReaderOptions{Cache: manifest.NewCache(1 << 19)})
	for range 2 {
		s.reset()
		for off := int64(0); off < root.Size; off += 4096 {
			if _, err := rd.ReadAt(ctx, make([]byte, 4096), off); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Going round through more leaves than fit, the next one is always gone.
	if got, want := s.gets.Load(), int64(s.Len()-1); got != want {
		t.Errorf("%d blocks were fetched, want %d", got, want)
	}
}

func TestReadersShareACacheFromManyGoroutines(t *testing.T) {
	r := newRand(t)
	var s mem.Store
	b := content(r, 200_000)
	root := write(t, &s, small(t), b)
	cache := manifest.NewCache(10_000) // so small that buffers change hands all the time
	var wg sync.WaitGroup
	for range 8 {
		seed := r.Uint64()
		wg.Go(func() {
			rd := manifest.NewReader(&s, root, manifest.ReaderOptions{Cache: cache})
			for i := range 300 {
				off := int64((seed + uint64(i)*7919) % uint64(len(b)))
				p := make([]byte, min(600, root.Size-off))
				if _, err := rd.ReadAt(ctx, p, off); err != nil || !bytes.Equal(p, b[off:off+int64(len(p))]) {
					t.Errorf("at %d: wrong bytes or error %v", off, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// stubborn returns blocks in memory of its own.
type stubborn struct{ mem.Store }

func (s *stubborn) Get(ctx context.Context, c cas.CID, _ []byte) (cas.Block, error) {
	return s.Store.Get(ctx, c, nil)
}

func TestAStoreNeedNotUseTheBuffer(t *testing.T) {
	r := newRand(t)
	s := &stubborn{}
	f := small(t)
	b := content(r, 20_000)
	root := write(t, s, f, b)
	if !bytes.Equal(read(t, s, root), b) {
		t.Error("it reads differently")
	}
	var out bytes.Buffer
	if _, err := manifest.NewReader(s, root, manifest.ReaderOptions{}).WriteTo(ctx, &out); err != nil || !bytes.Equal(out.Bytes(), b) {
		t.Errorf("WriteTo: %v, or wrong bytes", err)
	}
	b, edits := randomEdits(r, b)
	if got, err := manifest.Rewrite(ctx, s, f, root, int64(len(b)), edits); err != nil || got != write(t, s, f, b) {
		t.Errorf("Rewrite: %v, %v", got, err)
	}
}

// gated lets Get through one by one, or ends it with its context.
type gated struct {
	mem.Store
	gate chan struct{}
	mu   sync.Mutex
	gets int
}

func (g *gated) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	g.mu.Lock()
	g.gets++
	g.mu.Unlock()
	select {
	case <-g.gate:
		return g.Store.Get(ctx, c, buf)
	case <-ctx.Done():
		return cas.Block{}, ctx.Err()
	}
}

func TestALeafIsFetchedOnceForAllWhoWaitForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &gated{gate: make(chan struct{})}
		rd := manifest.NewReader(s, write(t, s, manifest.Format{}, []byte("hello")), manifest.ReaderOptions{})
		for range 10 {
			go func() {
				p := make([]byte, 2)
				if _, err := rd.ReadAt(t.Context(), p, 1); err != nil || string(p) != "el" {
					t.Errorf("ReadAt: %v, %q", err, p)
				}
			}()
		}
		synctest.Wait()
		s.gate <- struct{}{}
		synctest.Wait()
		if s.gets != 1 {
			t.Errorf("it was fetched %d times", s.gets)
		}
	})
}

func TestAReaderThatGivesUpDoesNotFailTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &gated{gate: make(chan struct{})}
		rd := manifest.NewReader(s, write(t, s, manifest.Format{}, []byte("hello")), manifest.ReaderOptions{})
		results := make(chan error, 2)
		impatient, cancel := context.WithCancel(t.Context())
		get := func(ctx context.Context) {
			_, err := rd.ReadAt(ctx, make([]byte, 2), 1)
			results <- err
		}
		go get(impatient) // fetches
		synctest.Wait()
		go get(t.Context()) // waits for it
		synctest.Wait()
		cancel()
		synctest.Wait()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("the one that gave up: %v", err)
		}
		s.gate <- struct{}{}
		if err := <-results; err != nil {
			t.Errorf("the other: %v", err)
		}

		// And one that waits gives up without the one that fetches.
		rd = manifest.NewReader(s, manifest.Root{CID: cas.Sum(cas.Raw, []byte("hello")), Size: 5}, manifest.ReaderOptions{})
		impatient, cancel = context.WithCancel(t.Context())
		go get(t.Context())
		synctest.Wait()
		go get(impatient)
		synctest.Wait()
		cancel()
		if err := <-results; !errors.Is(err, context.Canceled) {
			t.Errorf("the one that gave up waiting: %v", err)
		}
		s.gate <- struct{}{}
		if err := <-results; err != nil {
			t.Errorf("the one that fetched: %v", err)
		}
	})
}

// slow blocks in Write until it is told.
type slow struct {
	next    chan error
	written int64
}

func (s *slow) Write(p []byte) (int, error) {
	if err := <-s.next; err != nil {
		return 0, err
	}
	s.written += int64(len(p))
	return len(p), nil
}

func TestWriteToReadsAheadOnlySoFar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &counter{}
		root := write(t, s, manifest.Format{}, fixed(1, 40<<20))
		for _, parallel := range []int{1, 2, 5} {
			s.reset()
			cache := manifest.NewCache(0)
			rd := manifest.NewReader(s, root, manifest.ReaderOptions{Cache: cache, Parallel: parallel})
			if _, err := rd.WriteTo(t.Context(), io.Discard); err != nil { // to have the inner nodes
				t.Fatal(err)
			}
			s.reset()
			out := &slow{next: make(chan error)}
			done := make(chan error)
			go func() {
				_, err := rd.WriteTo(t.Context(), out)
				done <- err
			}()
			for range 10 {
				synctest.Wait()
				// What is fetched at a time is little less than 1 MiB.
				if ahead := s.getBytes.Load() - out.written; ahead > int64(4*parallel)<<20 || ahead < int64(parallel)<<19 {
					t.Errorf("%d in parallel: %d bytes are fetched ahead", parallel, ahead)
				}
				out.next <- nil
			}
			out.next <- io.ErrClosedPipe // ends it, together with all goroutines
			if err := <-done; err != io.ErrClosedPipe {
				t.Errorf("error %v", err)
			}
		}
	})
}

func TestWriteToFailsIfABlockIsMissing(t *testing.T) {
	var s, parts mem.Store
	b := fixed(1, 20_000)
	root := write(t, &s, small(t), b)
	rd := manifest.NewReader(&parts, root, manifest.ReaderOptions{})
	if n, err := rd.WriteTo(ctx, io.Discard); n != 0 || !errors.Is(err, cas.ErrNotFound) {
		t.Errorf("no block: %d, %v", n, err)
	}
	blk, err := s.Get(ctx, root.CID, nil)
	if err == nil {
		err = parts.Put(ctx, blk)
	}
	if err != nil {
		t.Fatal(err)
	}
	if n, err := rd.WriteTo(ctx, io.Discard); n != 0 || !errors.Is(err, cas.ErrNotFound) {
		t.Errorf("the root only: %d, %v", n, err)
	}
	if _, err := rd.ReadAt(ctx, make([]byte, 10), 10_000); !errors.Is(err, cas.ErrNotFound) {
		t.Errorf("ReadAt: %v", err)
	}
	// Nothing behind a missing leaf is written, however early it is there.
	for range 20 {
		gap := &without{Store: &s, missing: leafAt(t, &s, root.CID, 10_000)}
		var out bytes.Buffer
		n, err := manifest.NewReader(gap, root, manifest.ReaderOptions{Parallel: 8}).WriteTo(ctx, &out)
		if !errors.Is(err, cas.ErrNotFound) || n > 10_000 || !bytes.Equal(out.Bytes(), b[:n]) {
			t.Errorf("a leaf: %d, %v, or wrong bytes", n, err)
		}
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := manifest.NewReader(&s, root, manifest.ReaderOptions{}).WriteTo(ended, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: %v", err)
	}
}

// without is a store that lacks one block.
type without struct {
	*mem.Store
	missing cas.CID
}

func (w *without) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	if c == w.missing {
		return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Err: cas.ErrNotFound}
	}
	return w.Store.Get(ctx, c, buf)
}

// leafAt returns the leaf with the byte at off.
func leafAt(t *testing.T, s cas.Getter, c cas.CID, off int64) cas.CID {
	t.Helper()
	for c.Codec() == cas.DagPB {
		pb, u := pbNode(t, s, c)
		i := int64(0)
		for ; off >= u.FieldBlockSizes().Lookup(i).Int(); i++ {
			off -= u.FieldBlockSizes().Lookup(i).Int()
		}
		c = linkCID(t, pb.FieldLinks().Lookup(i))
	}
	return c
}

// tampered returns the CID of a node that says what is given of the children.
func tampered(t *testing.T, s cas.Putter, links []pbLink, size uint64, sizes ...uint64) cas.CID {
	t.Helper()
	return putBlock(t, s, cas.DagPB, encodePB(t, links, encodeUnixFS(t, data.Data_File, nil, size, sizes)))
}

func TestNodesThatLieAreFoundOut(t *testing.T) {
	var s mem.Store
	leaf := pbLink{putBlock(t, &s, cas.Raw, make([]byte, 10)), "", 10}
	empty := pbLink{putBlock(t, &s, cas.Raw, nil), "", 0}
	inner := pbLink{tampered(t, &s, []pbLink{leaf}, 10, 10), "", 60}
	dir, err := manifest.Directory(ctx, &s, nil, manifest.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	chain := leaf.cid
	for range 70 {
		chain = tampered(t, &s, []pbLink{{chain, "", 10}}, 10, 10)
	}
	const alone, together = true, false // whether it can be seen in the one block
	for name, c := range map[string]struct {
		cid  cas.CID
		size int64
		seen bool
	}{
		"raw root of another length":         {leaf.cid, 11, together},
		"raw root that is shorter":           {leaf.cid, 9, together},
		"root of another length":             {inner.cid, 11, together},
		"filesize above the sum":             {tampered(t, &s, []pbLink{leaf}, 11, 10), 10, alone},
		"filesize below the sum":             {tampered(t, &s, []pbLink{leaf, leaf}, 10, 10, 10), 20, alone},
		"blocksize above a leaf":             {tampered(t, &s, []pbLink{{leaf.cid, "", 11}}, 11, 11), 11, together},
		"blocksize below a leaf":             {tampered(t, &s, []pbLink{{leaf.cid, "", 9}}, 9, 9), 9, together},
		"blocksizes that make up":            {tampered(t, &s, []pbLink{{leaf.cid, "", 9}, {leaf.cid, "", 11}}, 20, 9, 11), 20, together},
		"blocksize of an empty leaf":         {tampered(t, &s, []pbLink{{empty.cid, "", 10}, leaf}, 20, 10, 10), 20, together},
		"blocksize above a node":             {tampered(t, &s, []pbLink{inner}, 11, 11), 11, together},
		"blocksize below a node":             {tampered(t, &s, []pbLink{inner}, 9, 9), 9, together},
		"tsize above a leaf":                 {tampered(t, &s, []pbLink{{leaf.cid, "", 11}}, 10, 10), 10, alone},
		"fewer blocksizes":                   {tampered(t, &s, []pbLink{leaf, leaf}, 10, 10), 10, alone},
		"more blocksizes":                    {tampered(t, &s, []pbLink{leaf}, 10, 10, 0), 10, alone},
		"sizes that overflow":                {tampered(t, &s, []pbLink{inner, inner, inner}, 10, math.MaxInt64, math.MaxInt64, 12), 10, alone},
		"negative blocksize":                 {tampered(t, &s, []pbLink{inner, inner}, 10, 1<<64-10, 20), 10, alone},
		"leaf larger than a block":           {tampered(t, &s, []pbLink{{leaf.cid, "", 1 << 21}}, 1<<21, 1<<21), 1 << 21, alone},
		"a directory within":                 {tampered(t, &s, []pbLink{{dir.CID, "", 4}}, 10, 10), 10, together},
		"more levels than any file has":      {chain, 10, together},
		"dag-pb that is none":                {putBlock(t, &s, cas.DagPB, []byte("hello")), 5, alone},
		"dag-pb that is not UnixFS":          {putBlock(t, &s, cas.DagPB, encodePB(t, nil, []byte("hello"))), 5, alone},
		"dag-pb without data":                {putBlock(t, &s, cas.DagPB, nil), 5, alone},
		"UnixFS of unknown type":             {putBlock(t, &s, cas.DagPB, encodePB(t, nil, []byte{8, 9})), 5, alone},
		"UnixFS Metadata, which nobody uses": {putBlock(t, &s, cas.DagPB, encodePB(t, nil, []byte{8, 3})), 5, alone},
	} {
		root := manifest.Root{CID: c.cid, Size: c.size}
		rd := manifest.NewReader(&s, root, manifest.ReaderOptions{})
		p := make([]byte, min(c.size, 100))
		_, readErr := rd.ReadAt(ctx, p[:1], 0)
		if readErr == nil {
			_, readErr = rd.ReadAt(ctx, p, 0)
		}
		if readErr == nil {
			_, readErr = rd.ReadAt(ctx, p[1:], 1)
		}
		_, streamErr := rd.WriteTo(ctx, io.Discard)
		errs := map[string]error{"ReadAt": readErr, "WriteTo": streamErr}
		if c.seen {
			_, errs["Stat"] = manifest.Stat(ctx, &s, c.cid)
		}
		for what, err := range errs {
			var format *manifest.FormatError
			if !errors.As(err, &format) || !errors.Is(err, cas.ErrCorrupt) || !format.CID.Defined() {
				t.Errorf("%s: %s: error %v", name, what, err)
			} else if c.seen && format.CID != c.cid {
				t.Errorf("%s: %s: error names another block: %v", name, what, err)
			}
		}
	}
	if _, err := manifest.NewReader(&s, manifest.Root{CID: dir.CID, Size: 4}, manifest.ReaderOptions{}).ReadAt(ctx, make([]byte, 1), 0); !errors.Is(err, manifest.ErrNotFile) {
		t.Errorf("a directory: %v", err)
	}
}
