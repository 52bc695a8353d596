package journal

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/cairnfs/cairn/index/stamp"
)

// A record is a header of 40 bytes and the payload. Numbers are little endian.
//
//	0   4  CRC32C of bytes 4 to 39, seeded (see below)
//	4   4  CRC32C of the payload
//	8   4  length of the payload
//	12  1  version, 1
//	13  1  kind; 0 marks a record without number, see below
//	14  2  zero
//	16  8  seq
//	24  8  mark
//	32  8  synced: the last seq known to be durable when the record was written
//
// The header's CRC starts from that of the journal's ID and the file's number,
// and is combined with the record's offset. A record is therefore valid in one
// place only: neither an old file's bytes nor a copy of the journal inside a
// payload can pass for a record when damage has to be searched for what follows.
//
// A record of kind 0 has no payload and repeats the seq of the one before. It
// exists for its synced field: it is written some time after a sync when no other
// record came to say so.
const (
	headerSize    = 40
	recordVersion = 1
)

// table is the CRC32C polynomial, for which processors have an instruction.
var table = crc32.MakeTable(crc32.Castagnoli)

func updateSum(sum uint32, p []byte) uint32 { return crc32.Update(sum, table, p) }

// seedOf returns the checksum with which those of a file's headers begin.
func seedOf(id stamp.ID, first Seq) uint32 {
	var b [len(id) + 8]byte
	copy(b[:], id[:])
	binary.LittleEndian.PutUint64(b[len(id):], uint64(first))
	return updateSum(0, b[:])
}

type header struct {
	payloadSum uint32
	length     uint32
	kind       Kind
	seq        Seq
	mark       uint64
	synced     Seq
}

// append adds the header's stored form to b.
func (h *header) append(b []byte, seed uint32, offset int64) []byte {
	n := len(b)
	b = append(b, make([]byte, headerSize)...)
	p := b[n:]
	binary.LittleEndian.PutUint32(p[4:], h.payloadSum)
	binary.LittleEndian.PutUint32(p[8:], h.length)
	p[12] = recordVersion
	p[13] = byte(h.kind)
	binary.LittleEndian.PutUint64(p[16:], uint64(h.seq))
	binary.LittleEndian.PutUint64(p[24:], h.mark)
	binary.LittleEndian.PutUint64(p[32:], uint64(h.synced))
	binary.LittleEndian.PutUint32(p, headerSum(p, seed, offset))
	return b
}

func headerSum(p []byte, seed uint32, offset int64) uint32 {
	return updateSum(seed, p[4:headerSize]) ^ uint32(offset) ^ uint32(offset>>32)
}

// parseHeader reads a header at the given offset; ok is false if there is none.
// The cheap checks come first: damage is searched byte by byte.
func parseHeader(p []byte, seed uint32, offset int64) (h header, ok bool) {
	if len(p) < headerSize || p[12] != recordVersion || p[14] != 0 || p[15] != 0 {
		return header{}, false
	}
	h = header{
		payloadSum: binary.LittleEndian.Uint32(p[4:]),
		length:     binary.LittleEndian.Uint32(p[8:]),
		kind:       Kind(p[13]),
		seq:        Seq(binary.LittleEndian.Uint64(p[16:])),
		mark:       binary.LittleEndian.Uint64(p[24:]),
		synced:     Seq(binary.LittleEndian.Uint64(p[32:])),
	}
	ok = h.length <= MaxPayload && h.synced <= h.seq &&
		binary.LittleEndian.Uint32(p) == headerSum(p, seed, offset)
	return h, ok
}
