// Package manifest turns the bytes of a file into a tree of blocks and back, and
// names, targets and metadata into UnixFS directories and symlinks, so that any
// IPFS node can read what a Cairn node stores.
//
// # The tree of a file
//
// The chunker cuts the bytes into chunks; each chunk is a raw block, a leaf. The
// CIDs of the leaves, in order, are level 0. Each level is cut into groups, each
// group becomes one dag-pb block (a UnixFS v1 File node with Blocksizes), and
// the CIDs of these nodes are the next level, until a level has one item, which
// is the root. Therefore:
//
//   - a file of one chunk is its raw leaf, without any node;
//   - the empty file is an empty File node, never a raw block of no bytes, which
//     other IPFS nodes do not exchange;
//   - all leaves of a tree lie at the same depth.
//
// A group ends after MaxLinks items, or earlier after an item whose hash, its
// first four bytes as a big-endian number, is below 2^32/(AvgLinks-MinLinks+1),
// provided it has MinLinks items; and at the end of its level. So groups, like
// chunks, are cut by content and fall back into step after an insertion: an edit
// in a huge file changes the nodes above it and hardly any other. MinLinks is at
// least 2, hence every level has at most half as many items as the one below it
// (rounded up) and the tree is finite. Only the last node of a level may have
// fewer than MinLinks items, or even one.
//
// That makes the root a pure function of the bytes and the Format. Writer,
// AppendTo and Rewrite all give that root, however the bytes came about.
//
// Holes cost nothing: the chunker never cuts a run of zeros before its Max, so a
// long hole is one leaf of Max zeros many times over, groups of that leaf are
// one node many times over, and so on up; the number of repeats at each level is
// computed, not counted.
//
// Trees that other IPFS tools made, with bytes in dag-pb leaves or in inner
// nodes, are read, appended to and rewritten as well, if they hash with BLAKE3.
// Of their leaves and nodes those that fit are kept, so that the root then
// depends on how the file was made, but the bytes are always the right ones.
//
// # Sources
//
// UnixFS: https://specs.ipfs.tech/unixfs/, dag-pb:
// https://ipld.io/specs/codecs/dag-pb/spec/, as implemented by
// github.com/ipfs/boxo and github.com/ipfs/go-unixfsnode.
package manifest

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/chunker"
)

// Store is what trees are written to: new blocks are put, and old ones read back
// when a tree is continued or changed.
type Store interface {
	cas.Getter
	cas.Putter
}

// Root names a file's content: the CID of its tree and its length in bytes. The
// zero Root is the empty file, of which nothing is stored.
type Root struct {
	CID  cas.CID
	Size int64
	// Holes is how many of the bytes are leaves of the Format's largest size
	// with nothing but zeros, all of which share one block. What returns a Root
	// says it, what takes one may be given 0 if it is not known; then Holes of
	// what is made from that are too few, and all else is the same.
	Holes int64
}

// Format decides the shape of the trees that are written; all fields must be the
// same throughout a cluster for equal content to have equal roots. The zero
// Format is the default one. Reading needs no Format.
type Format struct {
	// Chunker cuts the leaves. If nil, one with chunker.DefaultParams is made
	// for each Writer; sharing one saves that.
	Chunker *chunker.Chunker
	// MinLinks, AvgLinks and MaxLinks bound the links of inner nodes; see the
	// package documentation. If all are zero: 64, 256 and 1024, so that a
	// node is some 15 KiB, 70 KiB at most, and covers 16 MiB at 64 KiB per
	// chunk: larger nodes cost more to rewrite for one changed leaf, smaller
	// ones make the tree deeper for reading.
	MinLinks, AvgLinks, MaxLinks int
}

// maxMaxLinks bounds Format.MaxLinks. A link takes less than 80 bytes with its
// blocksize, so that a node stays well below cas.MaxBlockSize.
const maxMaxLinks = 8192

// maxDepth bounds how deep a tree is followed. No tree of this package is
// deeper: with MinLinks of 2, 62 levels hold 2^63 bytes.
const maxDepth = 64

// Errors of this package, besides those of the store. Compare with errors.Is.
var (
	// ErrFormat says that the fields of a Format contradict each other.
	ErrFormat = errors.New("unusable manifest format")
	// ErrFileTooLarge says that a file would exceed 2^63-1 bytes.
	ErrFileTooLarge = errors.New("file is larger than 2^63-1 bytes")
	// ErrEdits says that the edits for Rewrite overlap, or do not lie within
	// the new size.
	ErrEdits = errors.New("unusable edits")
	// ErrNotFile says that a CID names a directory or symlink, not a file.
	ErrNotFile = errors.New("not a file")
	// ErrNotDirectory says that a CID names a file or symlink.
	ErrNotDirectory = errors.New("not a directory")
	// ErrNoEntry says that a directory has no entry of the name asked for.
	ErrNoEntry = errors.New("no such entry in the directory")
)

// FormatError says that a block is what its CID names, but is not a node that
// can stand where it was found: its bytes do not parse, its parts contradict each
// other, or it contradicts the node that links to it. It matches cas.ErrCorrupt.
type FormatError struct {
	CID    cas.CID // the block concerned
	Reason string
	Err    error // the cause, if another error told it; may be nil
}

func (e *FormatError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("manifest %v: %s", e.CID, e.Reason)
	}
	return fmt.Sprintf("manifest %v: %s: %v", e.CID, e.Reason, e.Err)
}

// Unwrap makes errors.Is match cas.ErrCorrupt and the cause.
func (e *FormatError) Unwrap() []error {
	if e.Err == nil {
		return []error{cas.ErrCorrupt}
	}
	return []error{cas.ErrCorrupt, e.Err}
}

// badNode makes a FormatError without a cause.
func badNode(c cas.CID, reason string, args ...any) error {
	return &FormatError{CID: c, Reason: fmt.Sprintf(reason, args...)}
}

// shape is a Format checked and ready for use.
type shape struct {
	chunker            *chunker.Chunker
	maxChunk           int
	minLinks, maxLinks int
	endBelow           uint64 // a group may end after an item with a lower prefix
}

func (f Format) shape() (shape, error) {
	if f.MinLinks == 0 && f.AvgLinks == 0 && f.MaxLinks == 0 {
		f.MinLinks, f.AvgLinks, f.MaxLinks = 64, 256, 1024
	}
	if f.MinLinks < 2 || f.AvgLinks < f.MinLinks || f.MaxLinks < f.AvgLinks || f.MaxLinks > maxMaxLinks {
		return shape{}, fmt.Errorf("%w: links min %d, avg %d, max %d; want 2 <= min <= avg <= max <= %d",
			ErrFormat, f.MinLinks, f.AvgLinks, f.MaxLinks, maxMaxLinks)
	}
	if f.Chunker == nil {
		var err error
		if f.Chunker, err = chunker.New(chunker.DefaultParams()); err != nil {
			return shape{}, err
		}
	}
	return shape{
		chunker:  f.Chunker,
		maxChunk: f.Chunker.Params().Max,
		minLinks: f.MinLinks,
		maxLinks: f.MaxLinks,
		endBelow: (1 << 32) / uint64(f.AvgLinks-f.MinLinks+1),
	}, nil
}

// untilEnd returns how many more items equal to c a group of have items takes
// until it ends. It is 1 if the group ends with the first of them.
func (s *shape) untilEnd(have int, c cas.CID) int {
	hash := c.Hash()
	if uint64(binary.BigEndian.Uint32(hash[:4])) < s.endBelow {
		return max(1, s.minLinks-have)
	}
	return s.maxLinks - have
}
