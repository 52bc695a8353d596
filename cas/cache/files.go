package cache

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
)

// The formats are described in the package comment.
const (
	suffix         = ".cache"
	fileMagic      = "cairnche"
	pageSize       = 4 << 10 // the least that O_DIRECT writes, of any disk
	fileHeaderSize = pageSize
	recordMagic    = "CrnC"
	headerSize     = 48
)

// pages returns how many bytes the pages have that n bytes take.
func pages(n int) int { return (n + pageSize - 1) / pageSize * pageSize }

var crcTable = crc32.MakeTable(crc32.Castagnoli)

func fileName(n uint32) string { return fmt.Sprintf("%010d%s", n, suffix) }

func (c *Cache) path(n uint32) string { return c.o.FS.PathJoin(c.o.Dir, fileName(n)) }

func appendHeader(b []byte, hash [cas.HashSize]byte, codec byte, size int) []byte {
	at := len(b)
	b = append(b, recordMagic...)
	b = append(b, codec, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	b = append(b, hash[:]...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[at:], crcTable))
}

// parseHeader reads what appendHeader wrote.
func parseHeader(b []byte) (hash [cas.HashSize]byte, codec byte, size int, ok bool) {
	if len(b) < headerSize || string(b[:4]) != recordMagic ||
		binary.LittleEndian.Uint32(b[44:]) != crc32.Checksum(b[:44], crcTable) {
		return hash, 0, 0, false
	}
	n := binary.LittleEndian.Uint32(b[8:])
	return [cas.HashSize]byte(b[12:44]), b[4], int(n), n <= cas.MaxBlockSize
}

// file is one file of the ring.
type file struct {
	vfs.File
	number uint32
	size   int64 // of what was written; of the active file the writer's
	users  int   // goroutines that read it; guarded by the cache's mu
	gone   bool  // is to be closed by the last of them
}

// read fills p from the given offset.
func (f *file) read(p []byte, offset int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := f.ReadAt(p, offset)
	if n == len(p) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// openFile opens a file that was written earlier.
func (c *Cache) openFile(n uint32) (*file, error) {
	v, err := c.o.FS.Open(c.path(n))
	if err != nil {
		return nil, err
	}
	f := &file{File: v, number: n}
	info, err := v.Stat()
	if err == nil {
		f.size = info.Size()
		var head [fileHeaderSize]byte
		if err = f.read(head[:], 0); err == nil &&
			(string(head[:8]) != fileMagic || binary.LittleEndian.Uint32(head[8:]) != FormatVersion || f.size > math.MaxUint32) {
			err = fmt.Errorf("%s is no file of a cache", c.path(n))
		}
	}
	if err != nil {
		_ = v.Close()
		return nil, err
	}
	return f, nil
}

// eachRecord calls fn for the records of a file, up to where it is damaged or was
// cut short, and says whether it is whole.
func (c *Cache) eachRecord(f *file, fn func(hash [cas.HashSize]byte, at place)) (whole bool) {
	var head [headerSize]byte
	offset := int64(fileHeaderSize)
	for offset+headerSize <= f.size {
		if err := f.read(head[:], offset); err != nil {
			c.failed("read", err)
			return false
		}
		if string(head[:4]) == parcelMagic {
			next, ok := c.eachOfParcel(f, offset, fn)
			if !ok {
				return false
			}
			offset = next
			continue
		}
		hash, codec, size, ok := parseHeader(head[:])
		if next := int64(pages(int(offset))); head[0] == 0 && next > offset {
			offset = next
			continue
		}
		if !ok || offset+headerSize+int64(size) > f.size {
			return false
		}
		offset += headerSize
		fn(hash, place{file: f.number, offset: uint32(offset), size: uint32(size), codec: codec})
		offset += int64(size)
	}
	return int64(pages(int(offset))) == f.size
}

// release lets go of a file that was being read.
func (c *Cache) release(f *file) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.users--; f.users == 0 && f.gone {
		_ = f.File.Close()
	}
}

// drop removes a file and forgets what is in it. The writer's, or load's.
func (c *Cache) drop(f *file) {
	whole := c.eachRecord(f, func(hash [cas.HashSize]byte, at place) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if now, ok := c.places[hash]; ok && now.file == at.file {
			delete(c.places, hash)
		}
	})
	c.mu.Lock()
	if !whole {
		maps.DeleteFunc(c.places, func(_ [cas.HashSize]byte, at place) bool { return at.file == f.number })
	}
	delete(c.files, f.number)
	c.bytes -= f.size
	f.gone = true
	if f.users == 0 {
		_ = f.File.Close()
	}
	c.mu.Unlock()
	c.remove(f.number)
}

func (c *Cache) remove(n uint32) {
	if err := c.o.FS.Remove(c.path(n)); err != nil {
		c.failed("remove", err)
	}
}

// write is the goroutine that writes pieces.
func (c *Cache) write() {
	tick := time.NewTicker(writeAfter)
	defer tick.Stop()
	for {
		select {
		case p := <-c.pieces:
			c.writePiece(p)
			c.mu.Lock()
			c.writing--
			// No block of it is pending any more, so nobody refers to its bytes.
			if p.done == nil {
				c.spare = append(c.spare, &piece{bytes: p.bytes[:0], records: p.records[:0]})
			}
			c.idle.Broadcast()
			c.mu.Unlock()
			if p.done != nil {
				p.done()
			}
		case <-tick.C:
			c.mu.Lock()
			if c.writing == 0 {
				c.hand()
				c.spare = nil // an idle cache keeps no memory
			}
			c.mu.Unlock()
			c.yield()
		case <-c.stop:
			return
		}
	}
}

// writePiece writes a piece and enters its blocks. If it cannot be written, its
// blocks are forgotten.
func (c *Cache) writePiece(p *piece) {
	rest := pages(len(p.bytes)) - len(p.bytes)
	var index []byte
	if p.done != nil {
		index = c.indexOf(p)
	}
	offset, err := c.append(index, append(p.bytes, make([]byte, rest)...))
	if err != nil {
		c.failed("write", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range p.records {
		delete(c.pending, r.hash)
		if err == nil {
			c.places[r.hash] = place{
				file: c.active.number, offset: uint32(offset) + uint32(r.offset), size: uint32(r.size), codec: r.codec,
			}
		}
	}
}

// append writes an index, if there is one, and bytes to the active file, or to a new one
// if they do not fit or the last attempt failed, and returns where the bytes are.
func (c *Cache) append(index, b []byte) (offset int64, err error) {
	size := int64(len(index) + len(b))
	if c.active != nil && c.active.size+size > c.fileSize {
		c.active = nil
	}
	if c.active == nil {
		if err := c.roll(size); err != nil {
			return 0, err
		}
	}
	offset = c.active.size
	for _, part := range [][]byte{index, b} {
		if len(part) == 0 {
			continue
		}
		if err := c.writeAt(part, offset); err != nil {
			if c.active.size == fileHeaderSize {
				c.drop(c.active)
			}
			c.active = nil
			return 0, err
		}
		offset += int64(len(part))
	}
	c.mu.Lock()
	c.active.size += size
	c.bytes += size
	c.mu.Unlock()
	return offset - int64(len(b)), nil
}

// writeAt writes whole pages to the active file: directly to the disk, unless its file
// system does not want that.
func (c *Cache) writeAt(b []byte, offset int64) error {
	if c.direct != nil {
		if _, err := c.direct.WriteAt(b, offset); err == nil {
			return nil
		}
		if err := c.endDirect(); err != nil {
			return err
		}
	}
	_, err := c.active.WriteAt(b, offset)
	return err
}

// beginDirect prepares for writes to the active file that go directly to the disk.
func (c *Cache) beginDirect() {
	v, err := c.o.FS.OpenReadWrite(c.path(c.active.number), vfs.WriteCategoryUnspecified)
	if err != nil {
		return // there is another way
	}
	if setDirect(v) != nil {
		_ = v.Close() // nothing was written to it
		return
	}
	c.direct = v
}

// endDirect ends such writes.
func (c *Cache) endDirect() error {
	if c.direct == nil {
		return nil
	}
	err := c.direct.Close()
	c.direct = nil
	return err
}

// roll makes a new file the active one, with room for need bytes, and removes old
// ones so that there is room for it.
func (c *Cache) roll(need int64) error {
	if err := c.endDirect(); err != nil {
		c.failed("close", err)
	}
	var again piece
	defer func() { c.forget(again.records) }()
	for {
		oldest, short := c.oldest(), c.allowed() < c.fileSize
		if oldest == nil && short {
			return errShort
		}
		if oldest == nil || !short && c.total()+c.fileSize <= c.o.MaxBytes {
			break
		}
		// What is written again is read into memory.
		c.addUsed(&again, oldest, min(c.half(), maxAgain))
		c.drop(oldest)
	}
	c.next++
	v, err := c.o.FS.OpenReadWrite(c.path(c.next), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	f := &file{File: v, number: c.next, size: fileHeaderSize}
	var head [fileHeaderSize]byte
	copy(head[:], fileMagic)
	binary.LittleEndian.PutUint32(head[8:], FormatVersion)
	if _, err := f.WriteAt(head[:], 0); err != nil {
		_ = v.Close()
		c.remove(c.next)
		return err
	}
	c.mu.Lock()
	c.files[f.number] = f
	c.bytes += f.size
	c.mu.Unlock()
	c.active = f
	c.beginDirect()
	// A block or parcel that takes more than half a file is written instead.
	if len(again.records) == 0 || f.size+int64(pages(len(again.bytes)))+need > c.fileSize {
		return nil
	}
	c.writePiece(&again)
	again.records = nil
	if c.active != f { // it failed
		return fmt.Errorf("%s cannot be written", c.path(f.number))
	}
	return nil
}

// half returns how many bytes, in whole pages, go twice into a file.
func (c *Cache) half() int { return int(c.fileSize-fileHeaderSize) / 2 / pageSize * pageSize }

// maxAgain bounds the memory for blocks that are written again.
const maxAgain = 16 << 20

// oldest returns the oldest file.
func (c *Cache) oldest() (f *file) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, other := range c.files {
		if f == nil || other.number < f.number {
			f = other
		}
	}
	return f
}

func (c *Cache) total() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes
}

// forget says that blocks that are pending will not be written.
func (c *Cache) forget(records []record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range records {
		delete(c.pending, r.hash)
	}
}

// addUsed adds to p the blocks of a file that were read since they were written, until
// it has so many bytes. They are pending then, so that readers do not miss them.
func (c *Cache) addUsed(p *piece, f *file, most int) {
	c.eachRecord(f, func(hash [cas.HashSize]byte, at place) {
		c.mu.Lock()
		now, ok := c.places[hash]
		c.mu.Unlock()
		if !ok || now.file != at.file || now.offset != at.offset || !now.used || len(p.bytes)+headerSize+int(at.size) > most {
			return
		}
		data := make([]byte, at.size)
		if err := f.read(data, int64(at.offset)); err != nil {
			c.failed("read", err)
			return
		}
		if _, err := cas.Verify(cas.NewCID(cas.Codec(at.codec), hash), data); err != nil {
			return
		}
		data = p.add(hash, at.codec, data)
		c.mu.Lock()
		c.pending[hash] = data
		c.mu.Unlock()
	})
}
