// Package placement says which members own a block: weighted rendezvous hashing
// over a View. It is pure, so that every node computes the same answer from the
// same View, and there is no lookup service.
//
// Every member draws a number for every block, u in (0, 1), from the hash of the
// block and its own id, and its cost is -log2(u) / weight. The members with the
// lowest costs own the block. The minimum of exponential variables falls on each
// with a probability proportional to its rate, so the blocks spread by weight; and
// a member's cost depends on nothing but the member, so a member that joins takes
// its share and nothing else moves.
//
// All of it is arithmetic on integers, the same on every machine: -log2(u) is a
// fixed-point number, interpolated from a table, and two costs are compared by
// multiplying crosswise instead of dividing.
package placement

import (
	"encoding/binary"
	"math/bits"
	"slices"

	"github.com/zeebo/blake3"

	"github.com/cairnfs/cairn/p2p"
)

// Table answers for one View. It is never changed, and may be used by any number
// of goroutines.
type Table struct {
	copies  int
	members []member // that own, in order of id
}

type member struct {
	id     p2p.PeerID
	a, b   uint64 // from its id, to mix with the hash of a block
	weight uint64 // GiB, at least 1
}

// New returns the table of the members of v that own blocks. A member's weight is
// its capacity, rounded to GiB, and at least one.
func New(v p2p.View) *Table {
	t := &Table{copies: v.Owners()}
	for i := range v.Members {
		m := &v.Members[i]
		if !m.Owns() {
			continue
		}
		sum := blake3.Sum256([]byte(m.ID))
		t.members = append(t.members, member{
			id:     m.ID,
			a:      binary.LittleEndian.Uint64(sum[:]),
			b:      binary.LittleEndian.Uint64(sum[8:]),
			weight: max(1, m.Capacity>>30+m.Capacity>>29&1),
		})
	}
	slices.SortFunc(t.members, func(x, y member) int {
		if x.id < y.id {
			return -1
		}
		return 1
	})
	return t
}

// Copies returns how many owners each block has.
func (t *Table) Copies() int { return t.copies }

// Len returns how many members own blocks.
func (t *Table) Len() int { return len(t.members) }

// small is how many members are ranked without allocation.
const small = 16

// bid is what a member bids for a block.
type bid struct {
	m    *member
	cost uint64 // -log2(u) with 32 binary places, at least 1; to be divided by the weight
}

// before says whether x comes before y: by cost, and for equal ones by id. No two
// bids of a block are equal, so that every way of sorting gives the same order.
func (x *bid) before(y *bid) bool {
	xHigh, xLow := bits.Mul64(x.cost, y.m.weight)
	yHigh, yLow := bits.Mul64(y.cost, x.m.weight)
	if xHigh != yHigh {
		return xHigh < yHigh
	}
	return xLow < yLow || xLow == yLow && x.m.id < y.m.id
}

// best returns the n best bids in order. buf is used if it is large enough.
func (t *Table) best(hash *[32]byte, n int, buf []bid) []bid {
	x, y := binary.LittleEndian.Uint64(hash[:]), binary.LittleEndian.Uint64(hash[8:])
	best := buf[:0]
	if n > small && n == len(t.members) {
		for i := range t.members {
			best = append(best, t.members[i].bid(x, y))
		}
		slices.SortFunc(best, func(x, y bid) int {
			if x.before(&y) {
				return -1
			}
			return 1
		})
		return best
	}
	for i := range t.members {
		b := t.members[i].bid(x, y)
		at := len(best)
		if at == n {
			if n == 0 || !b.before(&best[n-1]) {
				continue
			}
			at--
		} else {
			best = append(best, bid{})
		}
		for ; at > 0 && b.before(&best[at-1]); at-- {
			best[at] = best[at-1]
		}
		best[at] = b
	}
	return best
}

// Rank appends to buf[:0] all members that own blocks, those first that are to
// have the block with the given hash.
func (t *Table) Rank(hash *[32]byte, buf []p2p.PeerID) []p2p.PeerID {
	return t.first(hash, len(t.members), buf)
}

// Owners appends to buf[:0] the members that own the block, the first one first.
// They are what Rank begins with.
func (t *Table) Owners(hash *[32]byte, buf []p2p.PeerID) []p2p.PeerID {
	return t.first(hash, t.copies, buf)
}

func (t *Table) first(hash *[32]byte, n int, buf []p2p.PeerID) []p2p.PeerID {
	var room [small]bid
	bids := room[:0]
	if n > small {
		bids = make([]bid, 0, n)
	}
	bids = t.best(hash, n, bids)
	buf = buf[:0]
	for i := range bids {
		buf = append(buf, bids[i].m.id)
	}
	return buf
}

// Owns says whether the member owns the block with the given hash.
func (t *Table) Owns(hash *[32]byte, id p2p.PeerID) bool {
	var room [small]p2p.PeerID
	return slices.Contains(t.Owners(hash, room[:0]), id)
}

// bid draws the member's number for a block and returns what it bids.
func (m *member) bid(x, y uint64) bid {
	high, low := bits.Mul64(x^m.a, y^m.b|1)
	high, low = bits.Mul64(high^low^m.b, mixer)
	return bid{m, negLog2(high ^ low)}
}

// mixer is an odd number with as many ones as zeros and no pattern.
const mixer = 0x9e3779b97f4a7c15

// log2Cells is the number of cells into which the table cuts [1, 2). Between their
// ends the logarithm is interpolated, which makes it less than 0.2 % wrong, also
// close to zero, where members compete.
const (
	log2Bits  = 8
	log2Cells = 1 << log2Bits
)

// log2Table[i] is log2(1 + i/log2Cells) with 32 binary places.
var log2Table = makeLog2Table()

// makeLog2Table computes the logarithms digit by digit: squaring a number doubles
// its logarithm, and that it has become 2 or more says that the next digit is 1.
func makeLog2Table() (table [log2Cells + 1]uint64) {
	for i := range table {
		x := uint64(1)<<63 + uint64(i)<<(63-log2Bits) // in [1, 2), with 63 binary places
		if i == log2Cells {
			table[i] = 1 << 32
			continue
		}
		for range 32 {
			x, _ = bits.Mul64(x, x) // in [1, 4), with 62 binary places
			table[i] <<= 1
			if x>>63 != 0 {
				table[i] |= 1
			} else {
				x <<= 1
			}
		}
	}
	return table
}

// negLog2 returns -log2(h / 2^64) with 32 binary places, at least 1; 0 counts as 1.
func negLog2(h uint64) uint64 {
	zeros := bits.LeadingZeros64(h | 1)
	h = (h | 1<<(63-zeros)) << zeros << 1 // the binary places
	cell := h >> (64 - log2Bits)
	within := h << log2Bits >> 32
	low := log2Table[cell]
	log := low + (log2Table[cell+1]-low)*within>>32
	return uint64(zeros+1)<<32 - log
}
