package index

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A location is stored in 19 bytes, little endian:
//
//	0   1  version, 1
//	1   1  codec
//	2   1  compression
//	3   4  segment
//	7   4  offset
//	11  4  stored length
//	15  4  raw length
const (
	locationVersion = 1
	locationSize    = 19
)

// ErrBadRecord says that a record of the database is damaged, or has a version or
// a length that this program does not know.
var ErrBadRecord = errors.New("unknown or damaged index record")

// Location says where a block lies. The zero Location is none: segments are
// numbered from 1.
type Location struct {
	Segment     uint32 // number of the segment file
	Offset      uint32 // of the record in it, in bytes
	Stored      uint32 // length of the payload as stored, in bytes
	Raw         uint32 // length of the block, in bytes
	Codec       byte   // of the CID under which the block was first stored
	Compression byte   // as in the segment's record header
}

// Append appends the stored form of l to b.
func (l Location) Append(b []byte) []byte {
	b = append(b, locationVersion, l.Codec, l.Compression)
	b = binary.LittleEndian.AppendUint32(b, l.Segment)
	b = binary.LittleEndian.AppendUint32(b, l.Offset)
	b = binary.LittleEndian.AppendUint32(b, l.Stored)
	return binary.LittleEndian.AppendUint32(b, l.Raw)
}

// ParseLocation reads what Append wrote. Its only error is ErrBadRecord.
func ParseLocation(b []byte) (Location, error) {
	if len(b) != locationSize || b[0] != locationVersion {
		return Location{}, fmt.Errorf("%w: location %x", ErrBadRecord, b)
	}
	return Location{
		Codec:       b[1],
		Compression: b[2],
		Segment:     binary.LittleEndian.Uint32(b[3:]),
		Offset:      binary.LittleEndian.Uint32(b[7:]),
		Stored:      binary.LittleEndian.Uint32(b[11:]),
		Raw:         binary.LittleEndian.Uint32(b[15:]),
	}, nil
}
