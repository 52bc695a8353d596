package index

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/cairnfs/cairn/index/stamp"
)

// manyBlocks is a store of 64 GB in blocks of 64 KiB.
const manyBlocks = 1_000_000

func hashOf(seed, n uint64) Hash {
	var h Hash
	rng := rand.New(rand.NewPCG(seed, n))
	for i := 0; i < len(h); i += 8 {
		binary.LittleEndian.PutUint64(h[i:], rng.Uint64())
	}
	return h
}

func fill(b *testing.B) *DB {
	db := open(b, Options{Dir: b.TempDir() + "/index"})
	if err := db.ResetBlocks(stamp.ID{1}); err != nil {
		b.Fatal(err)
	}
	entries := make([]Entry, 0, 1000)
	for i := range uint64(manyBlocks) {
		entries = append(entries, Entry{Hash: hashOf(1, i), At: Location{Segment: uint32(i >> 12), Offset: uint32(i << 16), Stored: 1 << 16, Raw: 1 << 16}})
		if len(entries) == cap(entries) {
			if err := db.AddBlocks(entries, i); err != nil {
				b.Fatal(err)
			}
			entries = entries[:0]
		}
	}
	if err := db.Flush(); err != nil {
		b.Fatal(err)
	}
	return db
}

func BenchmarkBlock(b *testing.B) {
	db := fill(b)
	for name, seed := range map[string]uint64{"known": 1, "unknown": 2} {
		hashes := make([]Hash, 1<<16)
		for i := range hashes {
			hashes[i] = hashOf(seed, uint64(i)*15)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if _, ok, err := db.Block(&hashes[i%len(hashes)]); ok != (seed == 1) || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
	closeDB(b, db)
}

func BenchmarkAddBlocks(b *testing.B) {
	db := open(b, Options{Dir: b.TempDir() + "/index"})
	entries := make([]Entry, 1000)
	n := uint64(0)
	b.ReportAllocs()
	for b.Loop() {
		for i := range entries {
			entries[i] = Entry{Hash: hashOf(1, n), At: Location{Segment: 1, Offset: uint32(n)}}
			n++
		}
		if err := db.AddBlocks(entries, n); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/block")
	closeDB(b, db)
}
