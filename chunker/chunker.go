// Package chunker says where to cut a stream of bytes into chunks so that equal
// content gives equal chunks, wherever in a stream it stands.
//
// A cut depends on content, not on offset: a byte inserted into a file changes
// the chunk around it and, as a rule, no other. The method comes from two papers.
// From FastCDC (Xia et al., USENIX ATC 2016; two bytes at a time: IEEE TPDS 2020):
// a gear hash rolls over the bytes and a chunk ends where the hash is small; the
// bytes before Min are skipped; and chunk lengths are normalised, that is, cuts
// are rare before a certain length and frequent after it. From Jin et al.,
// "Accelerating Content-Defined Chunking for Data Deduplication Based on
// Speculative Jump" (IEEE TPDS 2023): where the hash is small, but not enough for
// a cut, the search jumps ahead, so that most bytes are never looked at.
//
// # The algorithm gearjump-v1
//
// The hash of a position is that of the 64 bytes before it:
//
//	gear[b63] + gear[b62]<<1 + … + gear[b0]<<63   (mod 2^64, b63 is the newest)
//
// where gear is a fixed table of 256 numbers below 2^63 (see newGear). With
// one = (2^64-1) / Avg, and all divisions rounded down, the length n of a chunk
// is found so:
//
//  1. Begin with n = Min.
//  2. Go on to the first length from n on whose hash is below 128*one. If there
//     is none up to Max, the chunk has Max bytes, or all that are left.
//  3. If the hash is below 4*one/3, or below 12*one and n is over
//     Avg - (Avg-Min)/3, the chunk has n bytes.
//  4. Else add 3*Avg/128 to n and go on with step 2.
//
// So in random bytes one position in Avg/128 makes a jump of three times that
// length, a quarter of the positions is looked at, and a chunk ends at one
// position in 3*Avg, later at one in Avg/3. Chunks have Avg bytes on average if
// Min is Avg/4 and Max at least 4*Avg.
//
// Where two streams come to hold the same bytes, their searches may be out of
// step, but meet as soon as one jumps where the other is looking, which is within
// a few times 2 KiB (by default) and long before the next cut.
//
// # Measured
//
// With 16/64/256 KiB, against "fastcdc-v1.0.0" of the library
// github.com/PlakarKorp/go-cdc-chunkers 1.1.0, on an Intel Sapphire Rapids core.
// Reading is from the page cache through a buffer of 1 MiB, hashing is cas.NewBlock:
//
//	                                           here   library
//	cutting alone, in cache, GB/s              10.5      1.75
//	read + cut, GB per CPU-second               4.7      1.8
//	read + cut + hash, GB per CPU-second        2.0      1.2
//	average length on random bytes, KiB        63       73
//	stored again of 192 MiB random bytes:
//	  500 inserted, deleted, changed bytes     18 %     20 %
//	  pieces of 500 KiB in another order       22 %     40 %
//	stored again of a tar of Go's source tree:
//	  200 of 11,000 files edited               12 %     12 %
//	  pieces of 500 KiB in another order       24 %     36 %
//
// Without the jumps this hash does 3.0 GB/s on the bytes it looks at and 3.6
// overall, and what is stored again differs by less than 1 %. The factor 3
// between average and thresholds stores least over edits and moved content
// together: a higher one saves up to a tenth after edits, but costs up to three
// times as much after moves, since searches that begin at different places come
// into step later.
package chunker

import (
	"errors"
	"fmt"
)

// GearJump is the id of the one algorithm so far; the package documentation
// defines it. It will always give the same cuts: a better one gets another id.
const GearJump = "gearjump-v1"

// Limits of Params, in bytes.
const (
	// MinMin is the least Min: what the hash covers.
	MinMin = window
	// MinAvg is the least Avg. Below it, a run of equal bytes could be cut.
	MinAvg = 256
	// MaxMax is the greatest Max: what one block may hold.
	MaxMax = 1 << 20
)

// Errors of New. Compare with errors.Is.
var (
	// ErrAlgorithm says that Params.Algorithm is not one this version knows.
	ErrAlgorithm = errors.New("unknown chunking algorithm")
	// ErrBounds says that Params.Min, Avg and Max do not go together.
	ErrBounds = errors.New("unusable chunk sizes")
)

// Params determine every cut. They are part of a cluster's format: content that
// was cut with other Params shares no chunks. There are no defaults for single
// fields; start from DefaultParams.
type Params struct {
	Algorithm string // GearJump
	Min       int    // no chunk but the last of a stream is shorter, bytes
	Avg       int    // average length on random bytes
	Max       int    // no chunk is longer
}

// DefaultParams returns gearjump-v1 with 16, 64 and 256 KiB.
func DefaultParams() Params {
	return Params{Algorithm: GearJump, Min: 16 << 10, Avg: 64 << 10, Max: 256 << 10}
}

func (p Params) check() error {
	switch {
	case p.Algorithm != GearJump:
		return fmt.Errorf("%w %q: this version knows %q", ErrAlgorithm, p.Algorithm, GearJump)
	case p.Min < MinMin:
		return fmt.Errorf("%w: min %d is below %d", ErrBounds, p.Min, MinMin)
	case p.Avg < MinAvg:
		return fmt.Errorf("%w: avg %d is below %d", ErrBounds, p.Avg, MinAvg)
	case p.Max > MaxMax:
		return fmt.Errorf("%w: max %d is above %d", ErrBounds, p.Max, MaxMax)
	case p.Min >= p.Avg || p.Avg >= p.Max:
		return fmt.Errorf("%w: min %d, avg %d, max %d do not increase", ErrBounds, p.Min, p.Avg, p.Max)
	}
	return nil
}

// Chunker cuts by fixed Params. It does not change after New, so any number of
// goroutines may use one.
type Chunker struct {
	params Params
	normal int // up to this length cuts are rare, then frequent
	jump   int
	// A hash below trigger makes a jump, below rare or frequent a cut.
	trigger, rare, frequent uint64
	gear                    gear
}

// New returns a Chunker, or ErrAlgorithm or ErrBounds with the reason.
func New(p Params) (*Chunker, error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	one := ^uint64(0) / uint64(p.Avg)
	return &Chunker{
		params:   p,
		normal:   p.Avg - (p.Avg-p.Min)/3,
		jump:     3 * p.Avg / 128,
		trigger:  128 * one,
		rare:     4 * one / 3,
		frequent: 12 * one,
		gear:     newGear(),
	}, nil
}

// Params returns what New was given.
func (c *Chunker) Params() Params { return c.params }

// Cut returns the length of the first chunk of data, 0 only for no data. data
// must hold at least Params.Max bytes, or be all that is left of the stream.
//
// The result is a function of data[:result] and of whether the stream ends
// there: nothing before or after the chunk matters. So cutting may start again
// at any cut, and gives the same cuts from there on.
func (c *Chunker) Cut(data []byte) int {
	if len(data) <= c.params.Min {
		return len(data)
	}
	data = data[:min(len(data), c.params.Max)]
	for n := c.params.Min; n <= len(data); n += c.jump {
		start := n - window
		k, h := c.gear.find(data[start:], c.trigger)
		if k == 0 {
			break
		}
		n = start + k
		if h < c.rare || n > c.normal && h < c.frequent {
			return n
		}
	}
	return len(data)
}
