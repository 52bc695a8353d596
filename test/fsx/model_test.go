//go:build linux

package fsx

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestTheModelIsABufferOfBytes compares the model, which is made of pieces, with
// a plain slice.
func TestTheModelIsABufferOfBytes(t *testing.T) {
	const most = 5 * pieceSize
	rnd := rand.New(rand.NewPCG(1, 0))
	m, want := newModel(), []byte(nil)
	resize := func(n int64) {
		if n > int64(len(want)) {
			want = append(want, make([]byte, n-int64(len(want)))...)
		}
		want = want[:n]
	}
	for range 3000 {
		off, n := rnd.Int64N(most), rnd.Int64N(most/2)
		switch rnd.IntN(3) {
		case 0:
			p := bytes.Repeat([]byte{byte(rnd.Uint32())}, int(n))
			m.write(p, off)
			if n > 0 {
				resize(max(int64(len(want)), off+n))
				copy(want[off:], p)
			}
		case 1:
			m.zero(off, n)
			clear(want[min(off, int64(len(want))):min(off+n, int64(len(want)))])
		case 2:
			m.resize(off)
			resize(off)
		}
		if m.size != int64(len(want)) || m.difference(want, 0) >= 0 {
			t.Fatalf("%d bytes, want %d; the first that differs is %d", m.size, len(want), m.difference(want, 0))
		}
		got := make([]byte, min(n, max(0, m.size-off)))
		m.read(got, off)
		if len(got) > 0 && !bytes.Equal(got, want[off:off+int64(len(got))]) {
			t.Fatalf("bytes read at %d differ", off)
		}
		first := int64(bytes.IndexFunc(got, func(r rune) bool { return r != 0 }))
		if first >= 0 {
			first += off
		}
		if data := m.data(off, int64(len(got))); data != first {
			t.Fatalf("first byte of data from %d on is %d, want %d", off, data, first)
		}
		if len(got) > 0 {
			i := rnd.IntN(len(got))
			got[i]++
			if d := m.difference(got, off); d != i {
				t.Fatalf("difference is at %d, want %d", d, i)
			}
		}
	}
}
