package chunker

// The gear hash of a stream: h = 2*h + gear[b] for each byte b, mod 2^64. A
// byte's part leaves the hash by the top after 64 more, so the hash is one of
// the last 64 bytes, with the top bits depending on all of them.

import (
	"encoding/binary"

	"github.com/zeebo/blake3"
)

// window is how many bytes the hash covers: one per bit.
const window = 64

// gear gives each byte value its random number.
type gear [256]uint64

// newGear computes the table of gearjump-v1: entry i is bytes 8i to 8i+8 of the
// BLAKE3 extended output for the text "cairn chunker gearjump-v1", little endian,
// with the top bit cleared.
//
// In a run of one byte b the hash becomes gear[b]*(2^64-1), that is -gear[b].
// With the top bit of gear[b] clear that is at least 2^63, above every threshold
// (MinAvg sees to that): a run of equal bytes, such as a hole in a sparse file, is
// cut at Max only.
func newGear() gear {
	var out [256 * 8]byte
	h := blake3.New()
	// Neither of the two can fail, by their documentation.
	_, _ = h.WriteString("cairn chunker " + GearJump)
	_, _ = h.Digest().Read(out[:])
	var g gear
	for i := range g {
		g[i] = binary.LittleEndian.Uint64(out[8*i:]) &^ (1 << 63)
	}
	return g
}

// roll2 returns the hash after a, and after a and b. Both come from h directly,
// so that the chain from one pair to the next is one shift-and-add long: with
// the hashes computed one from the other, the processor waits for that chain.
func (g *gear) roll2(h uint64, a, b byte) (ha, hab uint64) {
	ga := g[a]
	return h<<1 + ga, h<<2 + (ga<<1 + g[b])
}

// find returns the least length n >= window of d whose last window bytes hash to
// less than threshold, and that hash; n is 0 if there is none.
//
// This loop is what chunking costs. Eight bytes per round keep it free of
// bounds checks and of most of the loop's own work.
func (g *gear) find(d []byte, threshold uint64) (n int, h uint64) {
	if len(d) < window {
		return 0, 0
	}
	for _, b := range d[:window-1] {
		h = h<<1 + g[b]
	}
	i := window - 1
	for ; i+8 <= len(d); i += 8 {
		e := (*[8]byte)(d[i:])
		var k uint64
		if k, h = g.roll2(h, e[0], e[1]); k < threshold {
			return i + 1, k
		} else if h < threshold {
			return i + 2, h
		}
		if k, h = g.roll2(h, e[2], e[3]); k < threshold {
			return i + 3, k
		} else if h < threshold {
			return i + 4, h
		}
		if k, h = g.roll2(h, e[4], e[5]); k < threshold {
			return i + 5, k
		} else if h < threshold {
			return i + 6, h
		}
		if k, h = g.roll2(h, e[6], e[7]); k < threshold {
			return i + 7, k
		} else if h < threshold {
			return i + 8, h
		}
	}
	for ; i < len(d); i++ {
		if h = h<<1 + g[d[i]]; h < threshold {
			return i + 1, h
		}
	}
	return 0, h
}
