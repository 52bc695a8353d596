package gc

import (
	"encoding/binary"

	"github.com/cairnfs/cairn/cas"
)

// Key is what is remembered of a block.
func Key(c cas.CID) uint64 {
	hash := c.Hash()
	return KeyOf(&hash)
}

// KeyOf is Key of a block with the given hash. Keys sort as the hashes do.
func KeyOf(hash *[cas.HashSize]byte) uint64 { return binary.BigEndian.Uint64(hash[:]) }

// Set is a set of keys: a table in which a key lies in the first free place from
// where its upper bits say, at most three quarters full. It takes 11 to 22 bytes for
// each. The zero Set is empty.
type Set struct {
	slots []uint64 // 0: free; the length is a power of two
	shift uint     // of a key, to where it belongs
	n     int      // keys in slots
	zero  bool     // whether the key 0 is there
}

const minSlots = 1 << 10

// Len returns how many keys there are.
func (s *Set) Len() int {
	if s.zero {
		return s.n + 1
	}
	return s.n
}

// Has reports whether the key is there.
func (s *Set) Has(key uint64) bool {
	if key == 0 || s.n == 0 {
		return key == 0 && s.zero
	}
	return s.slots[s.find(key)] == key
}

// Add adds the key and reports whether it was not there.
func (s *Set) Add(key uint64) bool {
	if key == 0 {
		was := s.zero
		s.zero = true
		return !was
	}
	if 4*(s.n+1) > 3*len(s.slots) {
		s.grow()
	}
	at := s.find(key)
	if s.slots[at] == key {
		return false
	}
	s.slots[at] = key
	s.n++
	return true
}

// find returns the place of the key, or where it would go.
func (s *Set) find(key uint64) int {
	mask := len(s.slots) - 1
	at := int(mix(key)>>s.shift) & mask
	for s.slots[at] != 0 && s.slots[at] != key {
		at = (at + 1) & mask
	}
	return at
}

// mix spreads keys that agree in their upper bits, as those of a part of all blocks
// do.
func mix(key uint64) uint64 { return key * 0x9e3779b97f4a7c15 }

func (s *Set) grow() {
	old := s.slots
	size := max(minSlots, 2*len(old))
	s.slots, s.shift = make([]uint64, size), 64
	for n := size; n > 1; n >>= 1 {
		s.shift--
	}
	for _, key := range old {
		if key != 0 {
			s.slots[s.find(key)] = key
		}
	}
}
