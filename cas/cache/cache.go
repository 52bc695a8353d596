// Package cache keeps blocks that a node has read and does not own: on its disk,
// up to a number of bytes, those used last. It promises nothing: a block that was
// put may be gone, after a crash, for lack of room, or because the disk fails; what
// is returned is right.
//
// The cache is a ring of files, named NNNNNNNNNN.cache, that are written once from
// their beginning to their end. When the limit is reached, the oldest file goes;
// blocks in it that were read since they were written are written again, to the
// newest. So blocks leave about in the order in which they were last used, and the
// disk sees large writes in sequence only. All numbers are little endian. A file
// begins with a page of 4096 bytes:
//
//	0  8  "cairnche"
//	8  4  version, 2
//	12    zero
//
// and goes on with records, one after the other or, with zeros between, from the next
// page on. Each is a header of 48 bytes and the block as it is:
//
//	0  4  "CrnC"
//	4  1  codec of the CID
//	5  3  zero
//	8  4  length of the block
//	12 32 BLAKE3 hash of the block
//	44 4  CRC32C of bytes 0 to 43
//
// Blocks that came together are kept as they came, in a parcel, which begins on a page
// with an index:
//
//	0  4  "CrnP"
//	4  4  number of blocks, at most 1024
//	8  4  length of the bytes behind the index, which are whole pages
//	12 4  CRC32C of bytes 0 to 11 and of the entries
//	16    entries, and zeros up to the next page
//
// An entry is 41 bytes: codec (1), where the block begins in those bytes (4), its length
// (4), its hash (32).
//
// Where blocks lie is known in memory only, about 100 bytes for each, and read from
// the headers at the start. Put copies to memory; a goroutine writes. Nothing is
// ever synced.
//
// What is written are whole pages, so that on Linux they go to the disk from where they
// are (O_DIRECT). A copy in the kernel's memory would cost as much as half of receiving
// the block, and push out what is read again: the kernel has the same bytes as pages of
// the file that they were read for.
package cache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/index/stamp"
)

// FormatVersion is the version of the cache's files. Open refuses a newer one, and empties
// a cache of an older one.
const FormatVersion = 2

// DefaultMaxBytes is the limit of a cache unless another is given.
const DefaultMaxBytes = 10 << 30

// A cache has at most 64 files of up to 256 MiB; a larger one has more of them.
const (
	filesWanted = 64
	minFileSize = 64 << 10
	maxFileSize = 256 << 20
)

// What waits to be written is bounded: pieces of up to a MiB, which leave room in a file
// for what is written again, or one block, or a parcel.
const (
	minMemory = 64 << 10
	maxPiece  = 1 << 20
	maxPieces = 12
)

// writeAfter is how long a block waits for others to be written with.
const writeAfter = time.Second

// Options say how to open a cache. Dir is required.
type Options struct {
	// FS holds the cache; nil is the operating system's file system.
	FS  vfs.FS
	Dir string
	// MaxBytes is the limit for all files together; 0 means DefaultMaxBytes.
	// Blocks larger than a sixty-fourth of it, or 64 KiB, are not kept.
	MaxBytes int64
	// Reserve is the disk space, in bytes, that the cache leaves to others: with less
	// its files go, the oldest first. 0 leaves none.
	Reserve int64
	// Logger is told of the first error of the disk; nil is slog.Default().
	Logger *slog.Logger
	// Random gives the identity of a new cache; nil is crypto/rand.
	Random io.Reader

	wait bool // Put waits for the disk instead of dropping blocks
}

// Stats counts what a cache holds.
type Stats struct {
	Blocks int64
	Bytes  int64 // of the files
	Hits   int64 // blocks returned since the start
	Misses int64 // and not
}

// place says where a block lies.
type place struct {
	file   uint32
	offset uint32 // of its bytes
	size   uint32
	codec  byte
	used   bool // read since it was written
}

// piece is what is written at once.
type piece struct {
	bytes   []byte
	records []record
	done    func() // of a parcel, else nil: nobody refers to bytes any more
}

// record is a block in a piece.
type record struct {
	hash   [cas.HashSize]byte
	codec  byte
	offset int // in bytes
	size   int
}

// Cache is the open cache. Its methods may be called from any number of goroutines.
// The errors of the disk are not among theirs: a block that cannot be read is
// cas.ErrNotFound, one that cannot be written is not there.
type Cache struct {
	o        Options
	fileSize int64

	mu       sync.Mutex
	places   map[[cas.HashSize]byte]place
	pending  map[[cas.HashSize]byte][]byte // blocks not written yet; their bytes lie in pieces
	filling  *piece
	writing  int      // pieces handed to the writer and not written
	spare    []*piece // that were written, to be used again
	files    map[uint32]*file
	bytes    int64 // of files
	stats    Stats
	closed   bool
	complain sync.Once

	// The rest belongs to the writer.
	active *file
	direct vfs.File // active, for writes around the kernel's memory; nil if there are none
	next   uint32
	index  []byte // of the parcel being written, on a page as O_DIRECT needs it

	pieces  chan *piece
	idle    *sync.Cond // signalled when a piece was written; uses mu
	stop    chan struct{}
	stopped sync.WaitGroup
}

// Open opens the cache in o.Dir, or makes one if that directory is missing or
// empty.
//
// Errors: *stamp.VersionError when the directory was written by a newer version
// (nothing in it was touched), stamp.ErrForeign, stamp.ErrDamaged, else the I/O
// error.
func Open(o Options) (*Cache, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Random == nil {
		o.Random = rand.Reader
	}
	_, err := stamp.Open(o.FS, o.Dir, "cache", FormatVersion, o.Random)
	if other := new(stamp.VersionError); errors.As(err, &other) && other.Found < FormatVersion {
		if err = o.FS.RemoveAll(o.Dir); err == nil {
			_, err = stamp.Open(o.FS, o.Dir, "cache", FormatVersion, o.Random)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open block cache: %w", err)
	}
	c := &Cache{
		o:        o,
		fileSize: min(maxFileSize, max(minFileSize, o.MaxBytes/filesWanted)),
		places:   make(map[[cas.HashSize]byte]place),
		pending:  make(map[[cas.HashSize]byte][]byte),
		files:    make(map[uint32]*file),
		pieces:   make(chan *piece, maxPieces),
		stop:     make(chan struct{}),
	}
	c.idle = sync.NewCond(&c.mu)
	if err := c.load(); err != nil {
		return nil, fmt.Errorf("open block cache: %w", err)
	}
	c.stopped.Go(c.write)
	return c, nil
}

// load reads which blocks the files hold. Files that cannot be read are removed.
func (c *Cache) load() error {
	names, err := c.o.FS.List(c.o.Dir)
	if err != nil {
		return err
	}
	var numbers []uint32
	for _, name := range names {
		digits, ok := strings.CutSuffix(name, suffix)
		n, err := strconv.ParseUint(digits, 10, 32)
		if ok && err == nil && name == fileName(uint32(n)) {
			numbers = append(numbers, uint32(n))
		}
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		c.next = n
		f, err := c.openFile(n)
		if err != nil {
			c.failed("open", err)
			c.remove(n)
			continue
		}
		c.files[n] = f
		c.bytes += f.size
		blocks := 0
		c.eachRecord(f, func(hash [cas.HashSize]byte, at place) {
			c.places[hash] = at
			blocks++
		})
		if blocks == 0 {
			c.drop(f)
		}
	}
	for c.bytes > c.o.MaxBytes {
		c.drop(c.oldest())
	}
	return nil
}

// Get returns a block that is held.
func (c *Cache) Get(ctx context.Context, cid cas.CID, buf []byte) (cas.Block, error) {
	if err := ctx.Err(); err != nil {
		return cas.Block{}, err
	}
	b, ok := c.get(cid, buf)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok {
		c.stats.Misses++
		return cas.Block{}, &cas.BlockError{Op: "get", CID: cid, Where: "cache", Err: cas.ErrNotFound}
	}
	c.stats.Hits++
	return b, nil
}

func (c *Cache) get(cid cas.CID, buf []byte) (cas.Block, bool) {
	hash := cid.Hash()
	c.mu.Lock()
	if data, ok := c.pending[hash]; ok && cid.Defined() {
		buf = append(buf[:0], data...)
		c.mu.Unlock()
		b, err := cas.Verify(cid, buf)
		return b, err == nil
	}
	at, ok := c.places[hash]
	if !ok || !cid.Defined() {
		c.mu.Unlock()
		return cas.Block{}, false
	}
	if !at.used {
		at.used = true
		c.places[hash] = at
	}
	f := c.files[at.file]
	if f == nil { // its headers could not be read when it was dropped
		delete(c.places, hash)
		c.mu.Unlock()
		return cas.Block{}, false
	}
	f.users++
	c.mu.Unlock()
	defer c.release(f)

	if cap(buf) < int(at.size) {
		buf = make([]byte, at.size)
	}
	buf = buf[:at.size]
	err := f.read(buf, int64(at.offset))
	if err == nil {
		var b cas.Block
		if b, err = cas.Verify(cid, buf); err == nil {
			return b, true
		}
	}
	c.failed("read", err)
	c.mu.Lock()
	defer c.mu.Unlock()
	if now, ok := c.places[hash]; ok && now.file == at.file && now.offset == at.offset {
		delete(c.places, hash)
	}
	return cas.Block{}, false
}

// Has says which blocks are held.
func (c *Cache) Has(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	has := make([]bool, len(cids))
	for i, cid := range cids {
		has[i] = cid.Defined() && c.holds(cid.Hash())
	}
	return has, nil
}

// holds is called with mu held.
func (c *Cache) holds(hash [cas.HashSize]byte) bool {
	if _, ok := c.pending[hash]; ok {
		return true
	}
	_, ok := c.places[hash]
	return ok
}

// Put takes over copies of the blocks. When the disk does not keep up, it drops
// them; it never waits. The only errors are the context's.
func (c *Cache) Put(ctx context.Context, blocks ...cas.Block) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range blocks {
		hash := b.CID().Hash()
		size := headerSize + len(b.Data())
		if !b.CID().Defined() || fileHeaderSize+int64(pages(size)) > c.fileSize || c.holds(hash) {
			continue
		}
		if !c.makeRoom(size) {
			return nil
		}
		c.pending[hash] = c.filling.add(hash, byte(b.CID().Codec()), b.Data())
	}
	return nil
}

// makeRoom sees to a piece being filled that has room for size bytes; mu is held. If
// too much waits to be written, it says so.
func (c *Cache) makeRoom(size int) bool {
	for !c.closed {
		if p := c.filling; p != nil && len(p.bytes)+size <= cap(p.bytes) {
			return true
		}
		c.hand()
		switch {
		case c.writing < maxPieces:
			c.filling = c.piece(max(size, min(maxPiece, c.half())))
		case c.o.wait:
			c.idle.Wait()
		default:
			return false
		}
	}
	return false
}

// piece returns an empty piece with so much room; mu is held.
func (c *Cache) piece(room int) *piece {
	if last := len(c.spare) - 1; last >= 0 && cap(c.spare[last].bytes) >= room {
		p := c.spare[last]
		c.spare = c.spare[:last]
		return p
	}
	room = pages(room)
	// So much memory begins with a page, as O_DIRECT needs it.
	return &piece{bytes: make([]byte, 0, max(room, minMemory))[:0:room]}
}

// add appends a block to the piece, which has room for it, and returns its copy.
func (p *piece) add(hash [cas.HashSize]byte, codec byte, data []byte) []byte {
	p.bytes = appendHeader(p.bytes, hash, codec, len(data))
	at := len(p.bytes)
	p.records = append(p.records, record{hash, codec, at, len(data)})
	p.bytes = append(p.bytes, data...)
	return p.bytes[at:len(p.bytes):len(p.bytes)]
}

// hand gives the piece being filled to the writer; mu is held. There is room: no
// more than maxPieces are ever made.
func (c *Cache) hand() {
	if c.filling == nil {
		return
	}
	c.pieces <- c.filling
	c.filling = nil
	c.writing++
}

// Flush returns when all that was put before is written, or could not be.
func (c *Cache) Flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.writing >= maxPieces {
		c.idle.Wait()
	}
	if !c.closed {
		c.hand()
	}
	for c.writing > 0 {
		c.idle.Wait()
	}
}

// Stats returns what the cache holds.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Blocks, s.Bytes = int64(len(c.places)+len(c.pending)), c.bytes
	return s
}

// Close writes what is to be written and closes the files. No other method may be
// running or called afterwards.
func (c *Cache) Close() error {
	c.Flush()
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	close(c.stop)
	c.stopped.Wait()
	first := c.endDirect()
	for _, f := range c.files {
		if err := f.File.Close(); err != nil && first == nil {
			first = err
		}
	}
	return first
}

// failed reports the first error of the disk.
func (c *Cache) failed(op string, err error) {
	c.complain.Do(func() {
		c.o.Logger.Warn("block cache does not work as it should; further errors are not reported",
			"dir", c.o.Dir, "op", op, "err", err)
	})
}
