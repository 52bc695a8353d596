package segment

import (
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
)

// The benchmarks run on the disk of the temporary directory and report, besides
// the time, what the whole process used of the processors per GB (10^9 bytes) of
// blocks, syncing and indexing in the background included.

const benchBlock = 64 << 10

func cpuTime(b *testing.B) time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// measure runs fn for b.N blocks of the given size.
func measure(b *testing.B, size int, fn func()) {
	b.ReportAllocs()
	b.SetBytes(int64(size))
	before := cpuTime(b)
	b.ResetTimer()
	fn()
	b.StopTimer()
	used := (cpuTime(b) - before).Seconds()
	b.ReportMetric(used/float64(b.N)/float64(size)*1e9, "cpu-s/GB")
}

func diskStore(b *testing.B) *node {
	n := start(b, vfs.Default, b.TempDir(), Options{})
	b.Cleanup(func() { n.stop(b) })
	return n
}

// blocks returns n blocks of random bytes that share memory: the i-th begins i
// bytes into it, so that many blocks can be made without measuring their making.
func benchBlocks(b *testing.B, n, size int) []cas.Block {
	data := castest.Bytes(1, size+n)
	blocks := make([]cas.Block, n)
	for i := range blocks {
		block, err := cas.NewBlock(cas.Raw, data[i:][:size:size])
		if err != nil {
			b.Fatal(err)
		}
		blocks[i] = block
	}
	return blocks
}

func BenchmarkPutNewInBatches(b *testing.B) { benchmarkPutNew(b, 16) }
func BenchmarkPutNewOneByOne(b *testing.B)  { benchmarkPutNew(b, 1) }

func benchmarkPutNew(b *testing.B, batch int) {
	s := diskStore(b)
	blocks := benchBlocks(b, b.N, benchBlock)
	measure(b, benchBlock, func() {
		for some := range slices.Chunk(blocks, batch) {
			if err := s.Put(b.Context(), some...); err != nil {
				b.Fatal(err)
			}
		}
		if err := s.Sync(b.Context()); err != nil {
			b.Fatal(err)
		}
	})
}

func BenchmarkPutDuplicate(b *testing.B) {
	s := diskStore(b)
	blocks := benchBlocks(b, 20_000, 4<<10)
	if err := s.Put(b.Context(), blocks...); err != nil {
		b.Fatal(err)
	}
	if err := s.retire(b.Context()); err != nil {
		b.Fatal(err)
	}
	if err := s.ix.Flush(); err != nil {
		b.Fatal(err)
	}
	measure(b, benchBlock, func() {
		for i := range b.N {
			if err := s.Put(b.Context(), blocks[i%len(blocks)]); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkGet(b *testing.B) {
	s := diskStore(b)
	blocks := benchBlocks(b, 4_000, benchBlock)
	if err := s.Put(b.Context(), blocks...); err != nil {
		b.Fatal(err)
	}
	if err := s.retire(b.Context()); err != nil {
		b.Fatal(err)
	}
	if err := s.ix.Flush(); err != nil {
		b.Fatal(err)
	}
	order := rand.New(rand.NewPCG(1, 2)).Perm(len(blocks))
	buf := make([]byte, benchBlock)
	measure(b, benchBlock, func() {
		for i := range b.N {
			if _, err := s.Get(b.Context(), blocks[order[i%len(order)]].CID(), buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkHash(b *testing.B) {
	data := castest.Bytes(1, benchBlock)
	measure(b, benchBlock, func() {
		for range b.N {
			_ = cas.Sum(cas.Raw, data)
		}
	})
}
