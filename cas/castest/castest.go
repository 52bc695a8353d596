// Package castest is the contract of cas.Store as tests. Every store passes it:
// one on disk, one in memory, a remote peer, a cluster.
package castest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cairnfs/cairn/cas"
)

// Corrupter is implemented by the stores under test whose stored bytes can be
// damaged.
type Corrupter interface {
	// Corrupt changes the stored bytes of the block, which the store holds, so
	// that they no longer hash to c.
	Corrupt(t testing.TB, c cas.CID)
}

// Run tests stores made by open. Each call of open returns a store of its own,
// empty, which open closes when its t ends. Where a store is also a Corrupter, it
// is tested that damage is noticed.
func Run(t *testing.T, open func(t testing.TB) cas.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, cas.Store)
	}{
		{"a block that was put can be read back, whatever its size", testSizes},
		{"a block that was not put is not found", testNotFound},
		{"putting a block again changes nothing", testDuplicates},
		{"bytes are one block under either codec", testCodecs},
		{"Get uses the buffer if it is large enough, else another", testBuffer},
		{"Put keeps no reference to the bytes", testPutCopies},
		{"Has answers for each CID in order", testHas},
		{"Put, Has and Sync of nothing succeed", testNothing},
		{"a cancelled context ends every operation and stores nothing", testCancelled},
		{"any number of goroutines may put and get the same and other blocks", testConcurrency},
		{"damaged bytes are reported, never returned", testCorruption},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

// Bytes returns n bytes that depend on seed and do not compress.
func Bytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	// ChaCha8.Read never fails.
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

// Block returns the raw block of Bytes(seed, n).
func Block(t testing.TB, seed uint64, n int) cas.Block {
	t.Helper()
	return newBlock(t, cas.Raw, Bytes(seed, n))
}

func newBlock(t testing.TB, codec cas.Codec, data []byte) cas.Block {
	t.Helper()
	b, err := cas.NewBlock(codec, data)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func put(t testing.TB, s cas.Store, blocks ...cas.Block) {
	t.Helper()
	if err := s.Put(t.Context(), blocks...); err != nil {
		t.Fatalf("Put: %v", err)
	}
}

// wantBlock fails unless the store returns the block for c.
func wantBlock(t testing.TB, s cas.Store, c cas.CID, data []byte, buf []byte) cas.Block {
	t.Helper()
	b, err := s.Get(t.Context(), c, buf)
	if err != nil {
		t.Errorf("Get: %v", err)
		return cas.Block{}
	}
	if b.CID() != c {
		t.Errorf("Get(%v) returned a block with CID %v", c, b.CID())
	}
	if !bytes.Equal(b.Data(), data) {
		t.Errorf("Get(%v) returned %d other bytes", c, len(b.Data()))
	}
	return b
}

// wantError fails unless err is of the given kind and names the block.
func wantError(t testing.TB, err, is error, c cas.CID) {
	t.Helper()
	if !errors.Is(err, is) {
		t.Errorf("error %v, want %v", err, is)
	}
	var block *cas.BlockError
	if !errors.As(err, &block) || block.CID != c {
		t.Errorf("error %#v does not name block %v", err, c)
	}
}

// contents are bytes that a store might treat differently.
func contents() map[string][]byte {
	return map[string][]byte{
		"empty":                nil,
		"one byte":             {7},
		"a short text":         []byte("hello world"),
		"4 KiB of zeros":       make([]byte, 4<<10),
		"64 KiB":               Bytes(1, 64<<10),
		"64 KiB that compress": bytes.Repeat([]byte("all work and no play "), 64<<10/21),
		"half of it compresses": append(
			Bytes(2, 32<<10), make([]byte, 32<<10)...),
		"the largest block, less one byte": Bytes(3, cas.MaxBlockSize-1),
		"the largest block":                Bytes(4, cas.MaxBlockSize),
		"the largest block of zeros":       make([]byte, cas.MaxBlockSize),
	}
}

func testSizes(t *testing.T, s cas.Store) {
	for name, data := range contents() {
		b := newBlock(t, cas.Raw, data)
		put(t, s, b)
		if wantBlock(t, s, b.CID(), data, nil); t.Failed() {
			t.Fatalf("%s: before Sync", name)
		}
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Fatalf("Sync: %v", err)
	}
	for name, data := range contents() {
		if wantBlock(t, s, cas.Sum(cas.Raw, data), data, nil); t.Failed() {
			t.Fatalf("%s: after Sync", name)
		}
	}
	if _, err := cas.NewBlock(cas.Raw, make([]byte, cas.MaxBlockSize+1)); !errors.Is(err, cas.ErrTooLarge) {
		t.Errorf("a larger block can be made: %v", err)
	}
}

func testNotFound(t *testing.T, s cas.Store) {
	put(t, s, Block(t, 1, 100))
	c := cas.Sum(cas.DagPB, []byte("never put"))
	for range 2 {
		_, err := s.Get(t.Context(), c, nil)
		wantError(t, err, cas.ErrNotFound, c)
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.Get(t.Context(), cas.CID{}, nil)
	wantError(t, err, cas.ErrNotFound, cas.CID{})
}

func testDuplicates(t *testing.T, s cas.Store) {
	b := Block(t, 1, 1000)
	put(t, s, b, b)
	put(t, s, b)
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, s, Block(t, 2, 10), b, b)
	wantBlock(t, s, b.CID(), b.Data(), nil)
}

func testCodecs(t *testing.T, s cas.Store) {
	data := []byte("bytes are bytes")
	put(t, s, newBlock(t, cas.DagPB, data))
	for _, codec := range []cas.Codec{cas.Raw, cas.DagPB} {
		wantBlock(t, s, cas.Sum(codec, data), data, nil)
	}
	put(t, s, newBlock(t, cas.Raw, data))
	has, err := s.Has(t.Context(), cas.Sum(cas.Raw, data), cas.Sum(cas.DagPB, data))
	if err != nil || !has[0] || !has[1] {
		t.Errorf("Has = %v, %v", has, err)
	}
}

func testBuffer(t *testing.T, s cas.Store) {
	large, small := Block(t, 1, 1000), newBlock(t, cas.Raw, bytes.Repeat([]byte("s"), 500))
	put(t, s, large, small)
	for _, size := range []int{0, 1, 499, 500, 999, 1000, 5000} {
		for _, b := range []cas.Block{large, small} {
			buf := make([]byte, size)
			for i := range buf {
				buf[i] = 0xee
			}
			got := wantBlock(t, s, b.CID(), b.Data(), buf[:size/2])
			if cap(got.Data()) > 0 && size > 0 && &got.Data()[0] == &buf[0] {
				continue // its bytes are in buf
			}
			again := wantBlock(t, s, b.CID(), b.Data(), nil)
			for i := range buf {
				buf[i] = 0xdd // the caller uses buf for something else
			}
			for _, own := range []cas.Block{got, again} {
				if !bytes.Equal(own.Data(), b.Data()) {
					t.Errorf("a block of %d bytes changed with a buffer of %d that it is not in", len(b.Data()), size)
				}
			}
		}
	}
}

func testPutCopies(t *testing.T, s cas.Store) {
	data := Bytes(1, 70_000)
	want := bytes.Clone(data)
	b := newBlock(t, cas.Raw, data)
	put(t, s, b)
	clear(data)
	wantBlock(t, s, b.CID(), want, nil)
	if err := s.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantBlock(t, s, b.CID(), want, nil)
}

func testHas(t *testing.T, s cas.Store) {
	var cids []cas.CID
	for i := range uint64(20) {
		b := Block(t, i, 10+int(i))
		cids = append(cids, b.CID())
		if i%3 == 0 {
			put(t, s, b)
		}
		if i == 10 {
			if err := s.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	has, err := s.Has(t.Context(), cids...)
	if err != nil || len(has) != len(cids) {
		t.Fatalf("Has = %v, %v", has, err)
	}
	for i := range has {
		if has[i] != (i%3 == 0) {
			t.Errorf("Has says %v of block %d", has[i], i)
		}
	}
}

func testNothing(t *testing.T, s cas.Store) {
	if err := s.Put(t.Context()); err != nil {
		t.Errorf("Put: %v", err)
	}
	if has, err := s.Has(t.Context()); len(has) != 0 || err != nil {
		t.Errorf("Has = %v, %v", has, err)
	}
	if err := s.Sync(t.Context()); err != nil {
		t.Errorf("Sync: %v", err)
	}
}

func testCancelled(t *testing.T, s cas.Store) {
	held, other := Block(t, 1, 100), Block(t, 2, 100)
	put(t, s, held)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Get(ctx, held.CID(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Get: %v", err)
	}
	if err := s.Put(ctx, other); !errors.Is(err, context.Canceled) {
		t.Errorf("Put: %v", err)
	}
	if _, err := s.Has(ctx, held.CID()); !errors.Is(err, context.Canceled) {
		t.Errorf("Has: %v", err)
	}
	if err := s.Sync(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Sync: %v", err)
	}
	has, err := s.Has(t.Context(), held.CID(), other.CID())
	if err != nil || !has[0] || has[1] {
		t.Errorf("afterwards Has = %v, %v, want [true false]", has, err)
	}
}

func testConcurrency(t *testing.T, s cas.Store) {
	const workers, rounds, shared = 8, 40, 25
	blocks := make([]cas.Block, shared)
	for i := range blocks {
		blocks[i] = Block(t, uint64(i), 1000+i*997)
	}
	var wg sync.WaitGroup
	for w := range uint64(workers) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(w, 0))
			buf := make([]byte, 64<<10)
			for i := range uint64(rounds) {
				own, common := Block(t, 1000+w*rounds+i, rng.IntN(3000)), blocks[rng.IntN(shared)]
				if err := s.Put(t.Context(), own, common); err != nil {
					t.Errorf("Put: %v", err)
					return
				}
				wantBlock(t, s, common.CID(), common.Data(), buf)
				wantBlock(t, s, own.CID(), own.Data(), buf)
				if i%8 == 0 {
					if err := s.Sync(t.Context()); err != nil {
						t.Errorf("Sync: %v", err)
					}
				}
				if has, err := s.Has(t.Context(), own.CID(), common.CID()); err != nil || !has[0] || !has[1] {
					t.Errorf("Has = %v, %v", has, err)
				}
			}
		})
	}
	wg.Wait()
	for _, b := range blocks {
		put(t, s, b)
		wantBlock(t, s, b.CID(), b.Data(), nil)
	}
}

func testCorruption(t *testing.T, s cas.Store) {
	corrupter, ok := s.(Corrupter)
	if !ok {
		return // nothing can be damaged in this store
	}
	for i, data := range [][]byte{Bytes(1, 5000), bytes.Repeat([]byte("compressible "), 500), {42}} {
		b := newBlock(t, cas.Raw, data)
		intact := Block(t, uint64(100+i), 300)
		put(t, s, b, intact)
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		corrupter.Corrupt(t, b.CID())
		buf := make([]byte, 1<<20)
		got, err := s.Get(t.Context(), b.CID(), buf)
		wantError(t, err, cas.ErrCorrupt, b.CID())
		if got.CID().Defined() || got.Data() != nil {
			t.Errorf("a block came with the error: %v", got.CID())
		}
		wantBlock(t, s, intact.CID(), intact.Data(), buf)
	}
}
