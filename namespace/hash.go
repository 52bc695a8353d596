package namespace

import (
	"encoding/binary"
	"math/bits"
)

// Names are hashed with SipHash-2-4, 128 bits (Aumasson, Bernstein: "SipHash: a
// fast short-input PRF", 2012), under the key of the namespace. It is keyed so
// that nobody who may create names can choose ones that collide.
//
// The first 63 bits order the entries of a directory and are their readdir
// cookie: a place in a directory is then a number that stays right whatever is
// created and removed meanwhile, and needs no open-file state. The other 64 bits
// let the cache tell names apart without holding them.

const (
	minCookie = 3 // 0 is the start of a directory, 1 and 2 are "." and ".."
	maxCookie = 1<<63 - 1
)

// hashName returns the cookie of name and the bits that tell it from other names
// with the same cookie.
func (s *State) hashName(name string) (cookie, check uint64) {
	a, b := sipHash128(s.key[0], s.key[1], name)
	return max(a&s.hashMask, minCookie), b
}

type sipState struct{ v0, v1, v2, v3 uint64 }

func (s *sipState) round() {
	s.v0 += s.v1
	s.v1 = bits.RotateLeft64(s.v1, 13) ^ s.v0
	s.v0 = bits.RotateLeft64(s.v0, 32)
	s.v2 += s.v3
	s.v3 = bits.RotateLeft64(s.v3, 16) ^ s.v2
	s.v0 += s.v3
	s.v3 = bits.RotateLeft64(s.v3, 21) ^ s.v0
	s.v2 += s.v1
	s.v1 = bits.RotateLeft64(s.v1, 17) ^ s.v2
	s.v2 = bits.RotateLeft64(s.v2, 32)
}

func (s *sipState) finish() uint64 {
	s.round()
	s.round()
	s.round()
	s.round()
	return s.v0 ^ s.v1 ^ s.v2 ^ s.v3
}

func sipHash128(k0, k1 uint64, name string) (uint64, uint64) {
	s := sipState{
		v0: k0 ^ 0x736f6d6570736575,
		v1: k1 ^ 0x646f72616e646f6d ^ 0xee,
		v2: k0 ^ 0x6c7967656e657261,
		v3: k1 ^ 0x7465646279746573,
	}
	rest := name
	for len(rest) >= 8 {
		m := uint64(rest[0]) | uint64(rest[1])<<8 | uint64(rest[2])<<16 | uint64(rest[3])<<24 |
			uint64(rest[4])<<32 | uint64(rest[5])<<40 | uint64(rest[6])<<48 | uint64(rest[7])<<56
		s.v3 ^= m
		s.round()
		s.round()
		s.v0 ^= m
		rest = rest[8:]
	}
	var last [8]byte
	copy(last[:], rest)
	last[7] = byte(len(name))
	m := binary.LittleEndian.Uint64(last[:])
	s.v3 ^= m
	s.round()
	s.round()
	s.v0 ^= m

	s.v2 ^= 0xee
	first := s.finish()
	s.v1 ^= 0xdd
	return first, s.finish()
}
