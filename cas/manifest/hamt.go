package manifest

// A large directory is a hash array mapped trie. The murmur3-x64-64 hash of a
// name, read from its top bits, says its way: at each level, log2(fanout) bits
// pick one of fanout places. A place holds one entry, under its name prefixed
// with the number of the place in hexadecimal, or a further shard, under the bare
// number, if several entries have the hash so far in common. UnixFS data has the
// bitmap of the places in use, the last place first, without leading zeros.
//
// Reading checks that every name stands where its hash says. That keeps List and
// Lookup of the same mind, and a trie in which shards are shared, to look larger
// than any memory, fails at the second sight of an entry.

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"github.com/ipfs/go-unixfsnode/data"
	"github.com/spaolacci/murmur3"

	"github.com/cairnfs/cairn/cas"
)

const (
	murmur3x64 = 0x22 // multicodec murmur3-x64-64
	hashBits   = 64
	fanout     = 256 // of the shards that are written
	maxFanout  = 1024
)

func hashName(name string) uint64 { return murmur3.Sum64([]byte(name)) }

// shardPath is the way from the root to a shard.
type shardPath struct {
	used   int    // bits of the hash
	prefix uint64 // these bits
}

// step returns the way on to a place among 1<<width.
func (p shardPath) step(place, width int) shardPath {
	return shardPath{p.used + width, p.prefix<<width | uint64(place)}
}

// leads reports whether a name of the given hash stands below p.
func (p shardPath) leads(hash uint64) bool { return hash>>(hashBits-p.used) == p.prefix }

// place returns where below p, among 1<<width places, a name of the given hash
// stands.
func (p shardPath) place(hash uint64, width int) int {
	return int(hash << p.used >> (hashBits - width))
}

type hashedEntry struct {
	Entry
	hash uint64
}

// putShards stores a directory as shards and returns the entry for its root.
func putShards(ctx context.Context, store cas.Putter, entries []Entry, meta Meta) (Entry, error) {
	hashed := make([]hashedEntry, len(entries))
	for i, e := range entries {
		hashed[i] = hashedEntry{e, hashName(e.Name)}
	}
	slices.SortFunc(hashed, func(a, b hashedEntry) int { return cmp.Compare(a.hash, b.hash) })
	return putShard(ctx, store, hashed, shardPath{}, meta)
}

// putShard stores the shard at p and those below it.
func putShard(ctx context.Context, store cas.Putter, entries []hashedEntry, p shardPath, meta Meta) (Entry, error) {
	width := bits.TrailingZeros(fanout)
	if p.used+width > hashBits {
		return Entry{}, &NameError{entries[0].Name, fmt.Sprintf("has the same hash as %q", entries[1].Name)}
	}
	n := &node{kind: data.Data_HAMTShard, fanout: fanout, meta: meta}
	bitmap := make([]byte, fanout/8)
	for len(entries) > 0 {
		place := p.place(entries[0].hash, width)
		end := slices.IndexFunc(entries, func(e hashedEntry) bool { return p.place(e.hash, width) != place })
		if end < 0 {
			end = len(entries)
		}
		e := entries[0].Entry
		if end > 1 {
			var err error
			if e, err = putShard(ctx, store, entries[:end], p.step(place, width), Meta{}); err != nil {
				return Entry{}, err
			}
		}
		e.Name = placeName(place, fanout) + e.Name
		n.entries = append(n.entries, e)
		bitmap[len(bitmap)-1-place/8] |= 1 << (place % 8)
		entries = entries[end:]
	}
	n.data = bytes.TrimLeft(bitmap, "\x00")
	return putNode(ctx, store, n)
}

// placeName returns the number of a place as it stands in front of names.
func placeName(place int, fanout int64) string {
	return fmt.Sprintf("%0*X", len(fmt.Sprintf("%X", fanout-1)), place)
}

// shard is a shard's node taken apart.
type shard struct {
	width  int
	places []int   // which are in use, ascending
	names  []Entry // without the number; the name of a further shard is empty
}

func openShard(c cas.CID, n *node) (*shard, error) {
	if n.kind != data.Data_HAMTShard {
		return nil, badNode(c, "not a shard, but stands in a sharded directory")
	}
	if n.fanout < 8 || n.fanout > maxFanout || bits.OnesCount64(uint64(n.fanout)) != 1 {
		return nil, badNode(c, "directory shard with fanout %d", n.fanout)
	}
	s := &shard{width: bits.TrailingZeros64(uint64(n.fanout))}
	prefix := len(placeName(0, n.fanout))
	bitmap := make([]byte, n.fanout/8)
	for _, e := range n.entries {
		if len(e.Name) < prefix {
			return nil, badNode(c, "link name %q in a directory shard", e.Name)
		}
		number, err := strconv.ParseUint(e.Name[:prefix], 16, 16)
		place := int(number)
		if err != nil || strings.ToUpper(e.Name[:prefix]) != e.Name[:prefix] {
			return nil, badNode(c, "link name %q in a directory shard", e.Name)
		}
		if place >= int(n.fanout) || len(s.places) > 0 && place <= s.places[len(s.places)-1] {
			return nil, badNode(c, "place %d of a directory shard out of order", place)
		}
		e.Name = e.Name[prefix:]
		s.places, s.names = append(s.places, place), append(s.names, e)
		bitmap[len(bitmap)-1-place/8] |= 1 << (place % 8)
	}
	if !bytes.Equal(bytes.TrimLeft(n.data, "\x00"), bytes.TrimLeft(bitmap, "\x00")) {
		return nil, badNode(c, "bitmap of a directory shard is not that of its links")
	}
	return s, nil
}

// appendShard appends the entries of the shard n and those below it.
func appendShard(ctx context.Context, store cas.Getter, to []Entry, c cas.CID, n *node, p shardPath) ([]Entry, error) {
	s, err := openShard(c, n)
	if err != nil {
		return nil, err
	}
	if p.used+s.width > hashBits {
		return nil, badNode(c, "sharded directory is too deep")
	}
	for i, e := range s.names {
		at := p.step(s.places[i], s.width)
		if e.Name != "" {
			if !at.leads(hashName(e.Name)) {
				return nil, badNode(c, "name %q stands in the wrong place", e.Name)
			}
			if len(to) == maxEntries {
				return nil, badNode(c, "more than %d entries", maxEntries)
			}
			to = append(to, e)
			continue
		}
		child, err := getShard(ctx, store, e.CID)
		if err != nil {
			return nil, err
		}
		if to, err = appendShard(ctx, store, to, e.CID, child, at); err != nil {
			return nil, err
		}
	}
	return to, nil
}

// getShard reads a shard below the root. An empty one is refused: without it,
// each shard read brings an entry.
func getShard(ctx context.Context, store cas.Getter, c cas.CID) (*node, error) {
	if c.Codec() != cas.DagPB {
		return nil, badNode(c, "not a shard, but stands in a sharded directory")
	}
	n, err := getNode(ctx, store, c)
	if err != nil {
		return nil, err
	}
	if len(n.entries) == 0 {
		return nil, badNode(c, "empty directory shard")
	}
	return n, nil
}

// lookupShard looks for name from the root shard n downwards.
func lookupShard(ctx context.Context, store cas.Getter, dir cas.CID, n *node, name string) (Entry, error) {
	hash := hashName(name)
	c, p := dir, shardPath{}
	for {
		s, err := openShard(c, n)
		if err != nil {
			return Entry{}, err
		}
		if p.used+s.width > hashBits {
			return Entry{}, badNode(c, "sharded directory is too deep")
		}
		place := p.place(hash, s.width)
		i, ok := slices.BinarySearch(s.places, place)
		if !ok || s.names[i].Name != "" && s.names[i].Name != name {
			return Entry{}, fmt.Errorf("%w: %q in %v", ErrNoEntry, name, dir)
		}
		if s.names[i].Name == name {
			return s.names[i], nil
		}
		c, p = s.names[i].CID, p.step(place, s.width)
		if n, err = getShard(ctx, store, c); err != nil {
			return Entry{}, err
		}
	}
}
