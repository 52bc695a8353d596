package chunker

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// small has chunks so short that a test sees thousands of them.
var small = Params{Algorithm: GearJump, Min: 64, Avg: 256, Max: 1024}

func newChunker(t testing.TB, p Params) *Chunker {
	t.Helper()
	c, err := New(p)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// random returns n bytes of ChaCha8, the same for a seed in every Go version.
func random(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// text returns n bytes of numbered lines, which repeat much and hash poorly.
func text(n int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "line %08d of a file that says much the same all the time\n", i)
	}
	return b.Bytes()[:n]
}

// lengths cuts all of data.
func lengths(cut func([]byte) int, data []byte) []int {
	var ns []int
	for len(data) > 0 {
		n := cut(data)
		ns = append(ns, n)
		data = data[n:]
	}
	return ns
}

// reference is the definition in the package documentation, with the hash of
// every position computed afresh.
func reference(p Params) func([]byte) int {
	gear := newGear()
	one := ^uint64(0) / uint64(p.Avg)
	return func(data []byte) int {
		jumped := p.Min
		for n := p.Min; n <= len(data) && n <= p.Max; n++ {
			if n < jumped {
				continue
			}
			var h uint64
			for k := range 64 {
				h += gear[data[n-1-k]] << k
			}
			if h < 4*one/3 || h < 12*one && n > p.Avg-(p.Avg-p.Min)/3 {
				return n
			}
			if h < 128*one {
				jumped = n + 3*p.Avg/128
			}
		}
		return min(len(data), p.Max)
	}
}

func TestSameCutsAsTheDefinition(t *testing.T) {
	odd := Params{Algorithm: GearJump, Min: 101, Avg: 333, Max: 1009}
	tight := Params{Algorithm: GearJump, Min: MinAvg - 1, Avg: MinAvg, Max: MinAvg + 1}
	for _, p := range []Params{small, odd, tight, DefaultParams()} {
		cut, want := newChunker(t, p).Cut, reference(p)
		for name, data := range map[string][]byte{
			"random": random(1, 160<<10),
			"text":   text(160 << 10),
			"sparse": slices.Concat(random(2, 50<<10), make([]byte, 100<<10), random(3, 50<<10)),
		} {
			if got, want := lengths(cut, data), lengths(want, data); !slices.Equal(got, want) {
				t.Errorf("%+v, %s: cuts %v, by definition %v", p, name, got, want)
			}
		}
	}
}

func TestGoldenCuts(t *testing.T) {
	// These numbers are part of the stored format: if they change, files that
	// clusters have stored no longer share chunks with the same files added
	// now. Another algorithm needs another id.
	gear := newGear()
	sum := sha256.New()
	for _, g := range gear {
		sum.Write(binary.LittleEndian.AppendUint64(nil, g))
	}
	const wantGear = "64b45925f299ae86780aa67f7bae000f664d52a5a7d0a245f5e77cd289c2b500"
	if got := hex.EncodeToString(sum.Sum(nil)); got != wantGear {
		t.Errorf("gear table has SHA-256 %s, want %s", got, wantGear)
	}

	for _, g := range []struct {
		name  string
		p     Params
		data  []byte
		first []int  // lengths of the first chunks
		count int    // number of chunks
		sum   string // SHA-256 of all lengths as decimal lines
	}{
		{"random, default sizes", DefaultParams(), random(20, 4<<20),
			[]int{65450, 63260, 62927, 71631, 16430, 48577, 24214, 57014},
			64, "71fb67fe8c37349ec69014cb9434e09401474c59003373ca2a2433b4e4894323"},
		{"random, small sizes", small, random(21, 64<<10),
			[]int{329, 251, 222, 195, 304, 231, 193, 230},
			265, "54b3b2d457cd7d3c9c3a13a8ff4183e4c73eb42458e1036510e64a5787151e0d"},
		{"text, default sizes", DefaultParams(), text(4 << 20),
			[]int{51070, 55789, 67071, 82961, 58538, 90292, 16958, 75031},
			66, "c1624050d1a2e0e8cec1930608ef883b2cf87edeacaa7dd2a7d1851b2821b7a0"},
		{"hole between data", DefaultParams(), slices.Concat(random(22, 300_000), make([]byte, 1_000_000), random(23, 300_000)),
			[]int{59353, 57816, 80326, 49373, 262144, 262144, 262144, 262144},
			14, "cd077a297c41d1ea181297a908fccf5115efb4ba5e5fec457c9718d55b9c5004"},
	} {
		ns := lengths(newChunker(t, g.p).Cut, g.data)
		sum := sha256.New()
		for _, n := range ns {
			fmt.Fprintln(sum, n)
		}
		first := ns[:min(8, len(ns))]
		if got := hex.EncodeToString(sum.Sum(nil)); got != g.sum || len(ns) != g.count || !slices.Equal(first, g.first) {
			t.Errorf("%s: %d chunks, sum %s, beginning %#v", g.name, len(ns), got, first)
		}
	}
}

func TestBounds(t *testing.T) {
	for _, p := range []Params{small, DefaultParams()} {
		c := newChunker(t, p)
		for _, n := range []int{0, 1, p.Min - 1, p.Min, p.Min + 1, p.Avg, p.Max, 20*p.Max + 17} {
			data := random(byte(n), n)
			ns := lengths(c.Cut, data)
			total := 0
			for i, k := range ns {
				if k > p.Max || k < p.Min && i < len(ns)-1 || k == 0 {
					t.Errorf("%d bytes: chunk %d of %d has %d bytes, bounds %d and %d", n, i, len(ns), k, p.Min, p.Max)
				}
				total += k
			}
			if total != n {
				t.Errorf("chunks of %d bytes hold %d", n, total)
			}
		}
	}
	if n := newChunker(t, small).Cut(nil); n != 0 {
		t.Errorf("Cut(nil) = %d, want 0", n)
	}
}

func TestACutDependsOnNothingAroundTheChunk(t *testing.T) {
	c := newChunker(t, small)
	data := random(4, 40<<10)
	ns := lengths(c.Cut, data)
	off := 0
	for i, n := range ns {
		if rest := lengths(c.Cut, data[off:]); !slices.Equal(rest, ns[i:]) {
			t.Fatalf("cutting from the boundary at %d gives %v, want %v", off, rest[:min(5, len(rest))], ns[i:])
		}
		if len(data)-off >= small.Max {
			other := append(bytes.Clone(data[off:off+n]), random(5, small.Max-n)...)
			if got := c.Cut(other); got != n {
				t.Fatalf("chunk at %d has %d bytes, but %d when other bytes follow it", off, n, got)
			}
		}
		off += n
	}
}

func TestAnEditChangesFewChunks(t *testing.T) {
	const edits, most, mean = 60, 12, 2.0
	c := newChunker(t, small)
	data := random(6, 48<<10)
	held := map[[32]byte]bool{}
	each := func(data []byte, f func(sum [32]byte)) {
		for _, n := range lengths(c.Cut, data) {
			f(sha256.Sum256(data[:n]))
			data = data[n:]
		}
	}
	each(data, func(sum [32]byte) { held[sum] = true })

	r := rand.New(rand.NewPCG(1, 2))
	total := 0
	for range edits {
		at := r.IntN(len(data))
		for name, edited := range map[string][]byte{
			"inserted": slices.Insert(bytes.Clone(data), at, byte(r.Uint32())),
			"deleted":  slices.Delete(bytes.Clone(data), at, at+1),
			"changed":  slices.Replace(bytes.Clone(data), at, at+1, data[at]+1),
		} {
			fresh := 0
			each(edited, func(sum [32]byte) {
				if !held[sum] {
					fresh++
				}
			})
			if fresh > most {
				t.Errorf("one byte %s at %d changes %d chunks, want at most %d", name, at, fresh, most)
			}
			total += fresh
		}
	}
	if got := float64(total) / (3 * edits); got > mean {
		t.Errorf("an edit of one byte changes %.2f chunks on average, want at most %.2f", got, mean)
	}
}

func TestAverageLengthOfRandomChunks(t *testing.T) {
	for _, p := range []Params{small, {GearJump, 1 << 10, 4 << 10, 16 << 10}, DefaultParams()} {
		data := random(7, 600*p.Avg)
		ns := lengths(newChunker(t, p).Cut, data)
		if avg := float64(len(data)) / float64(len(ns)); avg < 0.92*float64(p.Avg) || avg > 1.06*float64(p.Avg) {
			t.Errorf("%+v: chunks of random bytes have %.0f bytes on average", p, avg)
		}
	}
}

func TestARunOfEqualBytesIsCutAtMaxOnly(t *testing.T) {
	tight := Params{Algorithm: GearJump, Min: MinMin, Avg: MinAvg, Max: 16 << 10}
	for _, p := range []Params{tight, small} {
		c := newChunker(t, p)
		for b := range 256 {
			if n := c.Cut(bytes.Repeat([]byte{byte(b)}, p.Max+1)); n != p.Max {
				t.Errorf("%+v: a run of bytes %#02x is cut at %d", p, b, n)
			}
		}
	}
	c := newChunker(t, DefaultParams())
	if n := c.Cut(make([]byte, c.Params().Max+1)); n != c.Params().Max {
		t.Errorf("zeros are cut at %d", n)
	}
}

func TestAHoleBetweenDataIsCutAtMaxOnly(t *testing.T) {
	const before, hole, after = 10_000, 50_000, 10_000
	data := slices.Concat(random(8, before), make([]byte, hole), random(9, after))
	off := 0
	for _, n := range lengths(newChunker(t, small).Cut, data) {
		if off >= before && off+n <= before+hole && n != small.Max {
			t.Errorf("chunk of %d zeros at %d, want %d", n, off-before, small.Max)
		}
		off += n
	}
}

func TestUnusableParamsAreRefused(t *testing.T) {
	for _, tt := range []struct {
		p    Params
		want error
	}{
		{Params{}, ErrAlgorithm},
		{Params{"gearjump-v9", 16 << 10, 64 << 10, 256 << 10}, ErrAlgorithm},
		{Params{GearJump, 0, 64 << 10, 256 << 10}, ErrBounds},
		{Params{GearJump, MinMin - 1, 64 << 10, 256 << 10}, ErrBounds},
		{Params{GearJump, MinMin, MinAvg - 1, 256 << 10}, ErrBounds},
		{Params{GearJump, -1 << 20, 64 << 10, 256 << 10}, ErrBounds},
		{Params{GearJump, 64 << 10, 64 << 10, 256 << 10}, ErrBounds},
		{Params{GearJump, 16 << 10, 256 << 10, 256 << 10}, ErrBounds},
		{Params{GearJump, 16 << 10, 8 << 10, 256 << 10}, ErrBounds},
		{Params{GearJump, 16 << 10, 64 << 10, MaxMax + 1}, ErrBounds},
	} {
		if c, err := New(tt.p); !errors.Is(err, tt.want) || c != nil {
			t.Errorf("New(%+v) = %v, %v; want %v", tt.p, c, err, tt.want)
		}
	}
	if c, err := New(DefaultParams()); err != nil || c.Params() != DefaultParams() {
		t.Errorf("New(DefaultParams()) = %+v, %v", c, err)
	}
}

func TestCutDoesNotAllocate(t *testing.T) {
	c := newChunker(t, DefaultParams())
	data := random(10, c.Params().Max)
	if n := testing.AllocsPerRun(10, func() { c.Cut(data) }); n != 0 {
		t.Errorf("Cut allocates %v times", n)
	}
}

func FuzzCut(f *testing.F) {
	f.Add(uint16(64), uint16(192), uint16(768), text(5000))
	f.Add(uint16(300), uint16(1), uint16(1), random(11, 3000))
	f.Add(uint16(64), uint16(1500), uint16(3000), make([]byte, 4000))
	f.Fuzz(func(t *testing.T, least, toAvg, toMax uint16, data []byte) {
		p := Params{GearJump, int(least), int(least) + int(toAvg), int(least) + int(toAvg) + int(toMax)}
		c, err := New(p)
		if err != nil {
			return
		}
		if got, want := lengths(c.Cut, data), lengths(reference(p), data); !slices.Equal(got, want) {
			t.Errorf("%+v: cuts %v, by definition %v", p, got, want)
		}
	})
}

// BenchmarkCut cuts 1 MiB, which stays in the processor's cache as the read
// buffer of a writer does.
func BenchmarkCut(b *testing.B) {
	for name, data := range map[string][]byte{"random": random(12, 1<<20), "zeros": make([]byte, 1<<20)} {
		b.Run(name, func(b *testing.B) {
			c := newChunker(b, DefaultParams())
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				for rest := data; len(rest) > 0; {
					rest = rest[c.Cut(rest):]
				}
			}
		})
	}
}
