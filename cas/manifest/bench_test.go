package manifest_test

import (
	"bytes"
	"context"
	"io"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/chunker"
)

// null takes blocks and keeps none.
type null struct{ mem.Store }

func (*null) Put(context.Context, ...cas.Block) error { return nil }

const benchSize = 64 << 20

// BenchmarkFloor is what the Writer cannot do without: chunking and hashing.
func BenchmarkFloor(b *testing.B) {
	c, err := chunker.New(chunker.DefaultParams())
	if err != nil {
		b.Fatal(err)
	}
	data := fixed(1, benchSize)
	b.SetBytes(benchSize)
	for b.Loop() {
		for rest := data; len(rest) > 0; {
			n := c.Cut(rest)
			cas.Sum(cas.Raw, rest[:n])
			rest = rest[n:]
		}
	}
}

// BenchmarkFloorRead is the same with reading into a buffer of 1 MiB.
func BenchmarkFloorRead(b *testing.B) {
	c, err := chunker.New(chunker.DefaultParams())
	if err != nil {
		b.Fatal(err)
	}
	data, buf := fixed(1, benchSize), make([]byte, 1<<20)
	b.SetBytes(benchSize)
	for b.Loop() {
		for r := bytes.NewReader(data); r.Len() > 0; {
			n, _ := r.Read(buf)
			for rest := buf[:n]; len(rest) > 0; {
				n := c.Cut(rest)
				cas.Sum(cas.Raw, rest[:n])
				rest = rest[n:]
			}
		}
	}
}

func BenchmarkWriter(b *testing.B) {
	data := fixed(1, benchSize)
	w := manifest.NewWriter(&null{}, manifest.Format{})
	finish := func(b *testing.B) {
		if _, err := w.Finish(ctx); err != nil {
			b.Fatal(err)
		}
		w.Reset()
	}
	b.Run("ReadFrom", func(b *testing.B) {
		b.SetBytes(benchSize)
		b.ReportAllocs()
		for b.Loop() {
			// Hides WriterTo and the like, as a file has none of use.
			if _, err := w.ReadFrom(ctx, struct{ io.Reader }{bytes.NewReader(data)}); err != nil {
				b.Fatal(err)
			}
			finish(b)
		}
	})
	for name, size := range map[string]int{"Write1MiB": 1 << 20, "Write128KiB": 128 << 10, "Write4KiB": 4 << 10} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(benchSize)
			b.ReportAllocs()
			for b.Loop() {
				for off := 0; off < benchSize; off += size {
					if err := w.Write(ctx, data[off:off+size]); err != nil {
						b.Fatal(err)
					}
				}
				finish(b)
			}
		})
	}
	b.Run("SmallFile", func(b *testing.B) {
		b.SetBytes(4 << 10)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := w.ReadFrom(ctx, bytes.NewReader(data[:4<<10])); err != nil {
				b.Fatal(err)
			}
			finish(b)
		}
	})
	b.Run("Zeros8EiB", func(b *testing.B) {
		for b.Loop() {
			if err := w.WriteZeros(ctx, math.MaxInt64); err != nil {
				b.Fatal(err)
			}
			finish(b)
		}
	})
}

func BenchmarkReader(b *testing.B) {
	var s mem.Store
	root := write(b, &s, manifest.Format{}, fixed(1, benchSize))
	r := manifest.NewReader(&s, root, manifest.ReaderOptions{})
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, c := range []struct {
		name string
		size int64
		next func(off int64) int64
	}{
		{"Random4KiB", 4 << 10, func(int64) int64 { return rnd.Int64N(benchSize/4096) * 4096 }},
		{"Sequential4KiB", 4 << 10, func(off int64) int64 { return (off + 4<<10) % benchSize }},
		{"Sequential128KiB", 128 << 10, func(off int64) int64 { return (off + 128<<10) % benchSize }},
		{"Sequential1MiB", 1 << 20, func(off int64) int64 { return (off + 1<<20) % benchSize }},
	} {
		b.Run(c.name, func(b *testing.B) {
			p := make([]byte, c.size)
			off := int64(0)
			b.SetBytes(c.size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.ReadAt(ctx, p, off); err != nil {
					b.Fatal(err)
				}
				off = c.next(off)
			}
		})
	}
	b.Run("WriteTo", func(b *testing.B) {
		b.SetBytes(benchSize)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := r.WriteTo(ctx, io.Discard); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRewrite4KiB(b *testing.B) {
	s := &counter{}
	root := write(b, s, manifest.Format{}, fixed(1, 4*benchSize))
	rnd := rand.New(rand.NewPCG(1, 1))
	data := bytes.NewReader(fixed(2, 4*benchSize))
	s.reset()
	b.ReportAllocs()
	for b.Loop() {
		e := manifest.Edit{Off: rnd.Int64N(root.Size - 4096), Len: 4096, Data: data}
		if _, err := manifest.Rewrite(ctx, s, manifest.Format{}, root, root.Size, []manifest.Edit{e}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(s.gets.Load())/float64(b.N), "gets/op")
	b.ReportMetric(float64(s.puts.Load())/float64(b.N), "puts/op")
	b.ReportMetric(float64(s.putBytes.Load())/float64(b.N), "putbytes/op")
}

func BenchmarkAppend4KiB(b *testing.B) {
	s := &counter{}
	root := write(b, s, manifest.Format{}, fixed(1, benchSize))
	p := fixed(2, 4096)
	b.ReportAllocs()
	for b.Loop() {
		w, err := manifest.AppendTo(ctx, s, manifest.Format{}, root)
		if err == nil {
			err = w.Write(ctx, p)
		}
		if err == nil {
			_, err = w.Finish(ctx)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
