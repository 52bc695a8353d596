package cas

import (
	"fmt"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	"github.com/zeebo/blake3"
)

// Codec says how to read a block's bytes: it is the multicodec code in the CID.
type Codec byte

// The two codecs that Cairn stores.
const (
	Raw   Codec = 0x55 // file bytes
	DagPB Codec = 0x70 // a UnixFS node: inner node of a file, directory, symlink
)

// HashSize is the length of a BLAKE3 digest as used in CIDs, in bytes.
const HashSize = 32

// cidPrefix is what the bytes of a CID begin with, but for the codec in the
// second place: version 1, codec, multihash code, digest length. All are
// varints of one byte.
var cidPrefix = [4]byte{1, 0, multihash.BLAKE3, HashSize}

// CIDSize is the length of a CID in binary form, in bytes.
const CIDSize = len(cidPrefix) + HashSize

// CID addresses a block by the BLAKE3 hash of its bytes. It is a comparable
// value of 33 bytes, so that maps of millions of them hold no pointers; Bytes
// and String give the interchange forms of CIDv1. The zero CID names nothing.
type CID struct {
	codec Codec
	hash  [HashSize]byte
}

// NewCID returns the CID with the given parts.
func NewCID(codec Codec, hash [HashSize]byte) CID { return CID{codec, hash} }

// Sum returns the CID of data.
func Sum(codec Codec, data []byte) CID { return CID{codec, blake3.Sum256(data)} }

// Codec returns the codec part.
func (c CID) Codec() Codec { return c.codec }

// Hash returns the BLAKE3 digest.
func (c CID) Hash() [HashSize]byte { return c.hash }

// Defined reports whether c names anything.
func (c CID) Defined() bool { return c.codec != 0 }

// Append appends the binary form of CIDv1 to b; of the zero CID, nothing.
func (c CID) Append(b []byte) []byte {
	if !c.Defined() {
		return b
	}
	b = append(b, cidPrefix[0], byte(c.codec), cidPrefix[2], cidPrefix[3])
	return append(b, c.hash[:]...)
}

// Bytes returns the binary form of CIDv1.
func (c CID) Bytes() []byte { return c.Append(make([]byte, 0, CIDSize)) }

// IPLD returns c as the CID type of the IPFS libraries.
func (c CID) IPLD() cid.Cid {
	if !c.Defined() {
		return cid.Undef
	}
	_, k, err := cid.CidFromBytes(c.Bytes())
	if err != nil {
		panic("cas: own CID does not parse: " + err.Error())
	}
	return k
}

// String returns c in base32, e.g. "bafkr4i…" for raw blocks; for the zero CID
// "(no CID)".
func (c CID) String() string {
	if !c.Defined() {
		return "(no CID)"
	}
	return c.IPLD().String()
}

// ParseCID reads a CID in any multibase. It fails with ErrBadCID and the reason.
func ParseCID(s string) (CID, error) {
	k, err := cid.Decode(s)
	if err != nil {
		return CID{}, fmt.Errorf("%w: %q: %v", ErrBadCID, s, err)
	}
	return FromIPLD(k)
}

// CIDFromBytes reads the binary form of CIDv1; b must hold nothing else.
func CIDFromBytes(b []byte) (CID, error) {
	if len(b) != CIDSize || b[0] != cidPrefix[0] || b[2] != cidPrefix[2] || b[3] != cidPrefix[3] {
		k, err := cid.Cast(b)
		if err != nil {
			return CID{}, fmt.Errorf("%w: %v", ErrBadCID, err)
		}
		return FromIPLD(k)
	}
	c := CID{codec: Codec(b[1]), hash: [HashSize]byte(b[len(cidPrefix):])}
	if c.codec != Raw && c.codec != DagPB {
		return CID{}, fmt.Errorf("%w: codec %#x", ErrBadCID, b[1])
	}
	return c, nil
}

// FromIPLD takes over a CID of the IPFS libraries if it is one that Cairn uses.
func FromIPLD(k cid.Cid) (CID, error) {
	p := k.Prefix()
	switch {
	case p.Version != 1:
		return CID{}, fmt.Errorf("%w: %v is a CIDv%d", ErrBadCID, k, p.Version)
	case p.MhType != multihash.BLAKE3 || p.MhLength != HashSize:
		return CID{}, fmt.Errorf("%w: %v is hashed with %s (%d bytes), not BLAKE3 (%d bytes)",
			ErrBadCID, k, multihash.Codes[p.MhType], p.MhLength, HashSize)
	case p.Codec != uint64(Raw) && p.Codec != uint64(DagPB):
		return CID{}, fmt.Errorf("%w: %v has codec %#x", ErrBadCID, k, p.Codec)
	}
	mh := k.Hash()
	return CID{Codec(p.Codec), [HashSize]byte(mh[len(mh)-HashSize:])}, nil
}

// MarshalText writes c as String does; the zero CID is the empty text.
func (c CID) MarshalText() ([]byte, error) {
	if !c.Defined() {
		return nil, nil
	}
	return []byte(c.String()), nil
}

// UnmarshalText reads what MarshalText writes.
func (c *CID) UnmarshalText(text []byte) (err error) {
	if len(text) == 0 {
		*c = CID{}
		return nil
	}
	*c, err = ParseCID(string(text))
	return err
}
