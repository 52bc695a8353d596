package segment

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/klauspost/compress/s2"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/index/stamp"
)

// The formats are described in the package comment.
const (
	fileHeaderSize = 64
	fileMagic      = "cairnseg"
	fileVersion    = 1

	headerSize    = 52
	recordMagic   = "CrnB"
	recordVersion = 1
)

// How a payload is compressed.
const (
	compressNone byte = 0
	compressS2   byte = 1
)

// crcTable is the CRC32C polynomial, for which processors have an instruction.
var crcTable = crc32.MakeTable(crc32.Castagnoli)

// fileHeader is the header of a segment.
type fileHeader struct {
	segment   uint32
	store     stamp.ID
	continues uint64
	synced    uint64
}

func (h *fileHeader) append(b []byte) []byte {
	n := len(b)
	b = append(b, fileMagic...)
	b = binary.LittleEndian.AppendUint32(b, fileVersion)
	b = binary.LittleEndian.AppendUint32(b, h.segment)
	b = append(b, h.store[:]...)
	b = binary.LittleEndian.AppendUint64(b, h.continues)
	b = binary.LittleEndian.AppendUint64(b, h.synced)
	b = append(b, make([]byte, 12)...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[n:], crcTable))
}

func parseFileHeader(b []byte) (h fileHeader, ok bool) {
	if len(b) < fileHeaderSize || string(b[:8]) != fileMagic ||
		binary.LittleEndian.Uint32(b[8:]) != fileVersion ||
		binary.LittleEndian.Uint32(b[60:]) != crc32.Checksum(b[:60], crcTable) {
		return fileHeader{}, false
	}
	return fileHeader{
		segment:   binary.LittleEndian.Uint32(b[12:]),
		store:     stamp.ID(b[16:32]),
		continues: binary.LittleEndian.Uint64(b[32:]),
		synced:    binary.LittleEndian.Uint64(b[40:]),
	}, true
}

// header is the header of a record.
type header struct {
	codec       byte
	compression byte
	stored, raw uint32
	hash        index.Hash
}

// seedOf returns the checksum with which those of a segment's records begin.
func seedOf(id stamp.ID, segment uint32) uint32 {
	var b [len(id) + 4]byte
	copy(b[:], id[:])
	binary.LittleEndian.PutUint32(b[len(id):], segment)
	return crc32.Checksum(b[:], crcTable)
}

func headerSum(p []byte, seed uint32, offset int64) uint32 {
	return crc32.Update(seed, crcTable, p[:headerSize-4]) ^ uint32(offset)
}

// put writes the header's stored form to p.
func (h *header) put(p []byte, seed uint32, offset int64) {
	copy(p, recordMagic)
	p[4], p[5], p[6], p[7] = recordVersion, 0, h.compression, h.codec
	binary.LittleEndian.PutUint32(p[8:], h.stored)
	binary.LittleEndian.PutUint32(p[12:], h.raw)
	copy(p[16:], h.hash[:])
	binary.LittleEndian.PutUint32(p[48:], headerSum(p, seed, offset))
}

// parseHeader reads the header at the given offset; ok is false if there is none.
func parseHeader(p []byte, seed uint32, offset int64) (h header, ok bool) {
	if len(p) < headerSize || string(p[:4]) != recordMagic || p[4] != recordVersion || p[5] != 0 {
		return header{}, false
	}
	h = header{
		compression: p[6],
		codec:       p[7],
		stored:      binary.LittleEndian.Uint32(p[8:]),
		raw:         binary.LittleEndian.Uint32(p[12:]),
		hash:        index.Hash(p[16:48]),
	}
	return h, h.plausible() && binary.LittleEndian.Uint32(p[48:]) == headerSum(p, seed, offset)
}

// plausible says whether there can be such a record.
func (h *header) plausible() bool {
	switch h.compression {
	case compressNone:
		return h.stored == h.raw && h.raw <= cas.MaxBlockSize
	case compressS2:
		return h.stored < h.raw && h.raw <= cas.MaxBlockSize
	}
	return false
}

// verify says whether the payload is that of the block that the header names. buf is
// used to decompress, and returned, larger perhaps.
func (h *header) verify(payload, buf []byte) ([]byte, bool) {
	if h.compression == compressS2 {
		if payload = expand(payload, h.raw, buf); payload == nil {
			return buf, false
		}
		buf = payload
	}
	// The codec plays no part in the hash.
	_, err := cas.Verify(cas.NewCID(cas.Raw, h.hash), payload)
	return buf, err == nil
}

// size is the length of the whole record.
func (h *header) size() int64 { return headerSize + int64(h.stored) }

func (h *header) at(segment uint32, offset int64) index.Location {
	return index.Location{
		Segment:     segment,
		Offset:      uint32(offset),
		Stored:      h.stored,
		Raw:         h.raw,
		Codec:       h.codec,
		Compression: h.compression,
	}
}

// expand decompresses a payload into buf, which is reallocated if it is too small.
// It returns nil if the payload is not raw bytes compressed.
func expand(payload []byte, raw uint32, buf []byte) []byte {
	n, err := s2.DecodedLen(payload)
	if err != nil || n != int(raw) {
		return nil
	}
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	data, err := s2.Decode(buf[:n], payload)
	if err != nil {
		return nil
	}
	return data
}

// Compression is worth its time if it saves an eighth. Whether it will is guessed
// from a sample, so that what does not compress, which is most of what takes up
// space, costs next to nothing.
const (
	sampleSize      = 4 << 10
	minCompressible = 256 // shorter blocks are stored as they are
)

// pays says whether n bytes instead of raw are worth compression.
func pays(n, raw int) bool { return n <= raw-raw/8 }

// packedSize is room for the compressed payloads of any group: they are shorter
// than the blocks, but S2 wants more space than that to work in.
const packedSize = groupBytes + groupBytes/4

// compress returns data compressed, in the group's buffer, or nil if that does not
// pay.
func (g *group) compress(data []byte) []byte {
	if len(data) < minCompressible {
		return nil
	}
	sample := data
	if len(data) > 2*sampleSize {
		// From the middle: what files begin with is often not typical.
		sample = data[len(data)/2:][:sampleSize]
	}
	if n := s2.EstimateBlockSize(sample); n < 0 || !pays(n, len(sample)) {
		return nil
	}
	if g.packed == nil {
		g.packed = make([]byte, 0, packedSize)
	}
	free := g.packed[len(g.packed):cap(g.packed)]
	if s2.MaxEncodedLen(len(data)) > len(free) {
		return nil
	}
	c := s2.Encode(free, data)
	if !pays(len(c), len(data)) {
		return nil
	}
	g.packed = g.packed[:len(g.packed)+len(c)]
	return c
}
