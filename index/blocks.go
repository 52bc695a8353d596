package index

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/index/stamp"
)

// The block space holds one key per block, SpaceBlocks followed by its hash, and
// one summary: counters, and up to where in the segments everything is indexed.
// Both change in one batch, so that whatever prefix of batches survives a crash,
// the counters fit the locations, and scanning from the position finds the rest.

// Hash is the BLAKE3 digest of a block: its key, whatever the codec of its CID.
type Hash = [cas.HashSize]byte

// Entry is a block and where it lies.
type Entry struct {
	Hash Hash
	At   Location
	// Was is the location that At replaces, zero for a block that is new.
	Was Location
}

// Summary describes the block space as a whole.
type Summary struct {
	Store       stamp.ID // of the segments that the locations refer to
	IndexedTo   uint64   // position in the segments before which every block is indexed
	Blocks      int64
	RawBytes    int64 // sum of the blocks' lengths
	StoredBytes int64 // sum of their lengths as stored, without headers
}

// summaryKey is the key of the summary record: version 1, store, then the four
// numbers in the order of the struct, little endian.
const (
	summaryKey     = string(SpaceMeta) + "blocks"
	summaryVersion = 1
	summarySize    = 1 + 16 + 4*8
)

// blockSpace is the summary in memory; mu is held while a batch that changes it
// is committed, which makes read-modify-write of the counters safe.
type blockSpace struct {
	mu      sync.Mutex
	summary Summary
	value   []byte // reused for the stored form
}

func (s *blockSpace) load(p *pebble.DB) error {
	v, closer, err := p.Get([]byte(summaryKey))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	s.summary, err = parseSummary(v)
	return errors.Join(err, closer.Close())
}

func (s Summary) append(b []byte) []byte {
	b = append(b, summaryVersion)
	b = append(b, s.Store[:]...)
	b = binary.LittleEndian.AppendUint64(b, s.IndexedTo)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.Blocks))
	b = binary.LittleEndian.AppendUint64(b, uint64(s.RawBytes))
	return binary.LittleEndian.AppendUint64(b, uint64(s.StoredBytes))
}

func parseSummary(b []byte) (Summary, error) {
	if len(b) != summarySize || b[0] != summaryVersion {
		return Summary{}, fmt.Errorf("%w: summary of blocks %x", ErrBadRecord, b)
	}
	return Summary{
		Store:       stamp.ID(b[1:]),
		IndexedTo:   binary.LittleEndian.Uint64(b[17:]),
		Blocks:      int64(binary.LittleEndian.Uint64(b[25:])),
		RawBytes:    int64(binary.LittleEndian.Uint64(b[33:])),
		StoredBytes: int64(binary.LittleEndian.Uint64(b[41:])),
	}, nil
}

// Blocks returns the summary as of the last batch.
func (db *DB) Blocks() Summary {
	db.blocks.mu.Lock()
	defer db.blocks.mu.Unlock()
	return db.blocks.summary
}

// Block returns where the block with the given hash lies; ok says whether it is
// known.
//
// It is a seek instead of a Get because most blocks asked for by a writer are not
// known, and Get does not use the bloom filters of the last level, where most of
// the index is: it would read from the disk for every new block of a store whose
// index exceeds the cache.
func (db *DB) Block(hash *Hash) (at Location, ok bool, err error) {
	it, err := db.pebble.NewIter(&pebble.IterOptions{UseL6Filters: true, KeyTypes: pebble.IterKeyTypePointsOnly})
	if err != nil {
		return Location{}, false, err
	}
	key, pooled := db.blockKeys.Get().(*[1 + cas.HashSize]byte)
	if !pooled {
		key = new([1 + cas.HashSize]byte)
	}
	defer db.blockKeys.Put(key)
	key[0] = SpaceBlocks
	copy(key[1:], hash[:])
	if ok = it.SeekPrefixGE(key[:]); ok {
		at, err = ParseLocation(it.Value())
	}
	if err = errors.Join(err, it.Close()); err != nil && pebble.IsCorruptionError(err) {
		err = fmt.Errorf("%w: %w", ErrBadRecord, err)
	}
	return at, ok && err == nil, err
}

// AddBlocks commits entries and the position indexedTo in one batch. Where an
// entry takes the place of another, Was must be the location it has now. The
// bytes that the entries refer to must be durable already.
func (db *DB) AddBlocks(entries []Entry, indexedTo uint64) error {
	s := &db.blocks
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.summary
	sum.IndexedTo = indexedTo
	b := db.pebble.NewBatchWithSize(len(entries)*(cas.HashSize+locationSize+8) + 128)
	defer b.Close()
	for i := range entries {
		e := &entries[i]
		op := b.SetDeferred(1+cas.HashSize, locationSize)
		op.Key[0] = SpaceBlocks
		copy(op.Key[1:], e.Hash[:])
		e.At.Append(op.Value[:0])
		if err := op.Finish(); err != nil {
			return err
		}
		if e.Was == (Location{}) {
			sum.Blocks++
		}
		sum.RawBytes += int64(e.At.Raw) - int64(e.Was.Raw)
		sum.StoredBytes += int64(e.At.Stored) - int64(e.Was.Stored)
	}
	return db.commitSummary(b, sum)
}

// DeleteBlocks forgets blocks, in one batch. At must be the location each has now. If
// that does not survive a crash, they are known again, where they were.
func (db *DB) DeleteBlocks(entries []Entry) error {
	s := &db.blocks
	s.mu.Lock()
	defer s.mu.Unlock()
	sum := s.summary
	b := db.pebble.NewBatchWithSize(len(entries)*(1+cas.HashSize+8) + 128)
	defer b.Close()
	for i := range entries {
		e := &entries[i]
		op := b.DeleteDeferred(1 + cas.HashSize)
		op.Key[0] = SpaceBlocks
		copy(op.Key[1:], e.Hash[:])
		if err := op.Finish(); err != nil {
			return err
		}
		sum.Blocks--
		sum.RawBytes -= int64(e.At.Raw)
		sum.StoredBytes -= int64(e.At.Stored)
	}
	return db.commitSummary(b, sum)
}

// ResetBlocks forgets all blocks and starts over for the given store, with
// position 0.
func (db *DB) ResetBlocks(store stamp.ID) error {
	db.blocks.mu.Lock()
	defer db.blocks.mu.Unlock()
	b := db.pebble.NewBatch()
	defer b.Close()
	if err := b.DeleteRange([]byte{SpaceBlocks}, []byte{SpaceBlocks + 1}, nil); err != nil {
		return err
	}
	return db.commitSummary(b, Summary{Store: store})
}

// commitSummary commits b with the summary in it; blocks.mu is held.
func (db *DB) commitSummary(b *pebble.Batch, sum Summary) error {
	s := &db.blocks
	s.value = sum.append(s.value[:0])
	if err := b.Set([]byte(summaryKey), s.value, nil); err != nil {
		return err
	}
	if err := b.Commit(pebble.NoSync); err != nil {
		return err
	}
	s.summary = sum
	return nil
}

// EachBlock calls fn for every block known when it was called, in order of hash,
// until fn fails.
func (db *DB) EachBlock(fn func(*Hash, Location) error) error {
	return db.eachBlock([]byte{SpaceBlocks}, fn)
}

// EachBlockAfter is EachBlock for the blocks whose hash is greater than after.
func (db *DB) EachBlockAfter(after *Hash, fn func(*Hash, Location) error) error {
	key := make([]byte, 0, 1+cas.HashSize+1)
	key = append(append(key, SpaceBlocks), after[:]...)
	return db.eachBlock(append(key, 0), fn)
}

func (db *DB) eachBlock(lower []byte, fn func(*Hash, Location) error) error {
	it, err := db.pebble.NewIter(&pebble.IterOptions{
		LowerBound: lower,
		UpperBound: []byte{SpaceBlocks + 1},
	})
	if err != nil {
		return err
	}
	var hash Hash
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var at Location
		if len(it.Key()) != 1+len(hash) {
			err = fmt.Errorf("%w: block key %x", ErrBadRecord, it.Key())
			break
		}
		if at, err = ParseLocation(it.Value()); err == nil {
			copy(hash[:], it.Key()[1:])
			err = fn(&hash, at)
		}
	}
	return errors.Join(err, it.Close())
}
