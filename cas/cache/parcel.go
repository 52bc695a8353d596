package cache

import (
	"encoding/binary"
	"hash/crc32"

	"github.com/cairnfs/cairn/cas"
)

// The format of a parcel is described in the package comment.
const (
	parcelMagic = "CrnP"
	parcelHead  = 16
	parcelEntry = 1 + 4 + 4 + cas.HashSize
	maxParcel   = 1024 // blocks
)

// Adopt is Put of blocks that lie in memory, each where at says, without copies of them:
// memory must not change until done is called, which is when it was written, or was not
// for lack of room or because the disk fails.
func (c *Cache) Adopt(memory []byte, blocks []cas.Block, at []int, done func()) {
	if !c.adopt(memory, blocks, at, done) {
		done()
	}
}

func (c *Cache) adopt(memory []byte, blocks []cas.Block, at []int, done func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := &piece{bytes: memory, done: done}
	for i, b := range blocks {
		if hash := b.CID().Hash(); b.CID().Defined() && !c.holds(hash) && len(p.records) < maxParcel {
			p.records = append(p.records, record{hash, byte(b.CID().Codec()), at[i], len(b.Data())})
		}
	}
	if len(p.records) == 0 || fileHeaderSize+int64(pages(indexSize(len(p.records)))+pages(len(memory))) > c.fileSize {
		return false
	}
	for c.writing+c.making() >= maxPieces {
		if !c.o.wait {
			return false
		}
		c.idle.Wait()
	}
	if c.closed {
		return false
	}
	for _, r := range p.records {
		c.pending[r.hash] = memory[r.offset:][:r.size:r.size]
	}
	c.pieces <- p
	c.writing++
	return true
}

// making returns how many pieces are being filled; mu is held.
func (c *Cache) making() int {
	if c.filling == nil {
		return 0
	}
	return 1
}

func indexSize(records int) int { return parcelHead + records*parcelEntry }

// indexOf returns the index of a parcel, good until the next call; it is the writer's.
func (c *Cache) indexOf(p *piece) []byte {
	if c.index == nil {
		c.index = make([]byte, max(pages(indexSize(maxParcel)), minMemory))
	}
	end := indexSize(len(p.records))
	b := c.index[:pages(end)]
	copy(b, parcelMagic)
	binary.LittleEndian.PutUint32(b[4:], uint32(len(p.records)))
	binary.LittleEndian.PutUint32(b[8:], uint32(pages(len(p.bytes))))
	at := b[parcelHead:]
	for _, r := range p.records {
		at[0] = r.codec
		binary.LittleEndian.PutUint32(at[1:], uint32(r.offset))
		binary.LittleEndian.PutUint32(at[5:], uint32(r.size))
		copy(at[9:], r.hash[:])
		at = at[parcelEntry:]
	}
	clear(at)
	binary.LittleEndian.PutUint32(b[12:], indexSum(b[:end]))
	return b
}

func indexSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:12], crcTable), crcTable, b[parcelHead:])
}

// eachOfParcel calls fn for the blocks of the parcel at an offset and returns where it
// ends; ok is false if it is damaged or was cut short.
func (c *Cache) eachOfParcel(f *file, offset int64, fn func(hash [cas.HashSize]byte, at place)) (next int64, ok bool) {
	var head [parcelHead]byte
	if err := f.read(head[:], offset); err != nil {
		c.failed("read", err)
		return 0, false
	}
	count, size := binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint32(head[8:])
	if count > maxParcel {
		return 0, false
	}
	end := parcelHead + int(count)*parcelEntry
	begin := offset + int64(pages(end))
	if next = begin + int64(size); next > f.size {
		return 0, false
	}
	index := make([]byte, end)
	if err := f.read(index, offset); err != nil {
		c.failed("read", err)
		return 0, false
	}
	if indexSum(index) != binary.LittleEndian.Uint32(index[12:]) {
		return 0, false
	}
	for e := index[parcelHead:]; len(e) > 0; e = e[parcelEntry:] {
		at, n := binary.LittleEndian.Uint32(e[1:]), binary.LittleEndian.Uint32(e[5:])
		if n > cas.MaxBlockSize || uint64(at)+uint64(n) > uint64(size) {
			return 0, false
		}
		fn([cas.HashSize]byte(e[9:]), place{file: f.number, offset: uint32(begin) + at, size: n, codec: e[0]})
	}
	return next, true
}
