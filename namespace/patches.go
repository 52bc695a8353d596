package namespace

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/cairnfs/cairn/namespace/namespacepb"
)

// Small changes of content travel in the log itself. A patch is some bytes that lie
// above a file's content (the newest hide the older ones) until they are folded into
// it: it is durable and visible wherever the log is, and needs no block.
//
// A patch has the index of its command for a number, and never changes. An inode says
// which patches are above its content: those from Patches.First to its Version. So a
// value of history shows the bytes of its time for as long as its patches are kept.
// Those that leave the current value go to history with it if the value before may
// refer to them, which is when they are older than the beginning of the current one;
// all others are gone at once.
//
// History prefers values without patches: while there are many, they are kept once in
// ten minutes instead of once a minute, so that history consists of blocks.
//
// FoldContent puts content in place of that below and of the patches up to one; those
// that came meanwhile stay. Neither the bytes nor the Version change by it, so nobody
// who writes is disturbed, and the value is replaced in history, too. It is refused if the content below is another one by then,
// or was cut.

// Limits of patches.
const (
	MaxPatch       = 64 << 10 // bytes of one; ErrInvalid
	MaxPatchRanges = 256      // of one; ErrInvalid
	MaxPatches     = 4096     // of an inode; ErrPatches
	MaxPatchCost   = 16 << 20 // bytes of those of an inode, as stored; ErrPatches
	MaxAllPatches  = 64 << 20 // bytes of all; ErrPatches

	patchOverhead = 64 // bytes that a patch costs besides its value, about

	manyPatches     = 64 << 10                // bytes
	coalescePatches = int64(10 * time.Minute) // of log time, while there are many
)

// Patches says which patches lie above the content of an inode. The zero Patches says
// that none do.
type Patches struct {
	First uint64 // number of the oldest
	Count uint32
	Cost  uint32 // bytes that they take
	Cut   int64  // to which all are cut, as the file was that short since; 0: they are not
	Below uint64 // tells the content below from what it was before and will be
}

// Range is bytes at an offset of a file.
type Range struct {
	Off  int64
	Data []byte
}

// PatchContent lays a few bytes over the content of a regular file. If there are too
// many already it fails with ErrPatches, until they are folded or SetContent has
// replaced all.
type PatchContent struct {
	Ino    Ino
	Base   uint64  // as in SetContent, else ErrConflict
	Ranges []Range // at least one, in order, without overlap
	Size   int64   // of the file then, not less than it was
	Mtime  int64   // as in SetContent
}

// FoldContent makes Content what the content and its patches are together.
type FoldContent struct {
	Ino     Ino
	Below   uint64 // Patches.Below of the inode that Content was made from, else ErrConflict
	UpTo    uint64 // Version of that inode: Content contains the patches up to this one
	Content Content
}

func (op *PatchContent) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_PatchContent{PatchContent: &namespacepb.PatchContent{
		Ino: uint64(op.Ino), Base: op.Base, Ranges: encodeRanges(op.Ranges), Size: uint64(op.Size), Mtime: op.Mtime}}
}

func (op *FoldContent) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_FoldContent{FoldContent: &namespacepb.FoldContent{
		Ino: uint64(op.Ino), Below: op.Below, Upto: op.UpTo, Content: encodeContent(&op.Content)}}
}

func decodePatchContent(m *namespacepb.PatchContent) (*PatchContent, error) {
	ranges, err := decodeRanges(m.GetRanges())
	return &PatchContent{Ino: Ino(m.GetIno()), Base: m.GetBase(), Ranges: ranges, Size: int64(m.GetSize()), Mtime: m.GetMtime()}, err
}

func decodeFoldContent(m *namespacepb.FoldContent) (*FoldContent, error) {
	op := &FoldContent{Ino: Ino(m.GetIno()), Below: m.GetBelow(), UpTo: m.GetUpto()}
	var err error
	if c := m.GetContent(); c != nil {
		op.Content, err = decodeContent(c)
	}
	return op, err
}

func encodeRanges(ranges []Range) []*namespacepb.Range {
	var ms []*namespacepb.Range
	for _, r := range ranges {
		ms = append(ms, &namespacepb.Range{Off: uint64(r.Off), Data: r.Data})
	}
	return ms
}

func decodeRanges(ms []*namespacepb.Range) ([]Range, error) {
	var ranges []Range
	for _, m := range ms {
		if hasUnknown(m) {
			return nil, fmt.Errorf("%w: unknown field of a range", ErrVersion)
		}
		ranges = append(ranges, Range{Off: int64(m.GetOff()), Data: m.GetData()})
	}
	return ranges, nil
}

func decodePatch(value []byte) (*namespacepb.Patch, []Range, error) {
	m := &namespacepb.Patch{}
	if err := unmarshal(value, m); err != nil {
		return nil, nil, fmt.Errorf("patch: %w", err)
	}
	ranges, err := decodeRanges(m.Ranges)
	return m, ranges, err
}

func (p *Patches) encode(m *namespacepb.Patches) *namespacepb.Patches {
	if p.First == 0 {
		return nil
	}
	m.First, m.Count, m.Cost, m.Cut, m.Below = p.First, p.Count, p.Cost, uint64(p.Cut), p.Below
	return m
}

func decodePatches(m *namespacepb.Patches) (Patches, error) {
	if m == nil {
		return Patches{}, nil
	}
	if hasUnknown(m) {
		return Patches{}, fmt.Errorf("%w: unknown field of patches", ErrVersion)
	}
	if m.First == 0 {
		return Patches{}, fmt.Errorf("%w: patches without the first", ErrCorrupt)
	}
	return Patches{First: m.First, Count: m.Count, Cost: m.Cost, Cut: int64(m.Cut), Below: m.Below}, nil
}

func patchKey(b []byte, ino Ino, number uint64) []byte {
	return binary.BigEndian.AppendUint64(numberKey(b, tagPatch, uint64(ino)), number)
}

// splitPatchTail takes apart a patch's key from its tag on.
func splitPatchTail(tail []byte) (ino Ino, number uint64, ok bool) {
	if len(tail) != 1+16 || tail[0] != tagPatch {
		return 0, 0, false
	}
	return Ino(binary.BigEndian.Uint64(tail[1:])), binary.BigEndian.Uint64(tail[9:]), true
}

// check says whether the ranges can be a patch of a file of the given size.
func (op *PatchContent) check() error {
	end, bytes := int64(0), 0
	for _, r := range op.Ranges {
		if len(r.Data) == 0 || r.Off < end || r.Off > op.Size-int64(len(r.Data)) {
			return fmt.Errorf("%w: %d bytes at %d of a patch", ErrInvalid, len(r.Data), r.Off)
		}
		end = r.Off + int64(len(r.Data))
		bytes += len(r.Data)
	}
	if bytes == 0 || bytes > MaxPatch || len(op.Ranges) > MaxPatchRanges {
		return fmt.Errorf("%w: patch of %d bytes in %d ranges", ErrInvalid, bytes, len(op.Ranges))
	}
	return nil
}

func (t *txn) patchContent(op *PatchContent) (*stagedInode, error) {
	n, err := t.file(op.Ino)
	if err != nil {
		return nil, err
	}
	if err := t.turn(n.ino); err != nil {
		return nil, err
	}
	switch {
	case op.Base != n.version:
		return nil, fmt.Errorf("%w: base %d, have %d", ErrConflict, op.Base, n.version)
	case op.Size < n.size || n.patch != nil:
		return nil, fmt.Errorf("%w: patch to %d bytes of a file of %d", ErrInvalid, op.Size, n.size)
	}
	if err := op.check(); err != nil {
		return nil, err
	}
	p := &n.patches
	value := marshalRecord(&namespacepb.Patch{Cut: uint64(p.Cut), Ranges: encodeRanges(op.Ranges), Time: t.logTime})
	cost := patchCost(value)
	if p.Count >= MaxPatches || p.Cost+cost > MaxPatchCost || t.meta.patches+uint64(cost) > MaxAllPatches {
		return nil, ErrPatches
	}
	t.touchPatched(n)
	if p.First == 0 {
		p.First, p.Below = t.index, n.version
	}
	p.Count, p.Cost, p.Cut = p.Count+1, p.Cost+cost, 0
	t.meta.patches += uint64(cost)
	n.patch = value
	n.size, n.version, n.named = op.Size, t.index, true
	if op.Mtime != 0 {
		n.wrote(op.Mtime, false)
	}
	return n, nil
}

// touchPatched is touch for one more patch.
func (t *txn) touchPatched(n *stagedInode) {
	if n.patches.Cost > manyPatches && t.logTime-n.beganTime < coalescePatches && !t.pinned(n.began) {
		n.dirty = true
		return
	}
	t.touch(n)
}

func patchCost(value []byte) uint32 { return uint32(len(value)) + patchOverhead }

func (t *txn) foldContent(op *FoldContent) (*stagedInode, error) {
	n, err := t.file(op.Ino)
	if err != nil {
		return nil, err
	}
	if t.collect.remembers() {
		return nil, fmt.Errorf("%w: content is folded after the round of collection", ErrConflict)
	}
	if p := &n.patches; p.First == 0 || op.Below != p.Below || op.UpTo < max(p.First, p.Below) || op.UpTo > n.version {
		return nil, fmt.Errorf("%w: patches of %d up to %d, have %d", ErrConflict, op.Below, op.UpTo, p.Below)
	}
	if err := op.Content.check(n.size); err != nil {
		return nil, err
	}
	n.dirty = true // but not touched: a reader of history sees the same bytes
	n.setContent(&op.Content)
	return n, t.dropPatches(n, op.UpTo)
}

// dropPatches takes the patches up to a number away from above the content, which is
// another one, or the same in another form.
func (t *txn) dropPatches(n *stagedInode, upTo uint64) error {
	was := n.patches
	if was.First == 0 {
		return nil
	}
	t.meta.patches -= uint64(was.Cost)
	n.patches, n.dropped = Patches{}, min(upTo, t.index)
	if upTo >= n.version {
		n.patch = nil
		return nil
	}
	rest := Patches{Below: t.index}
	count := func(number uint64, value []byte) {
		if rest.First == 0 {
			rest.First = number
		}
		rest.Count++
		rest.Cost += patchCost(value)
	}
	err := eachPatch(t.s.db, n.ino, upTo+1, n.version, func(number uint64, _, value []byte) error {
		count(number, value)
		return nil
	})
	if err != nil {
		return t.fail(err)
	}
	if n.patch != nil {
		count(t.index, n.patch)
	}
	if rest.First != 0 { // else only the size has changed since
		n.patches = rest
		t.meta.patches += uint64(rest.Cost)
	}
	return nil
}

// cutPatches limits the patches to the first size bytes of the file.
func (t *txn) cutPatches(n *stagedInode, size int64) error {
	p := &n.patches
	switch {
	case p.First == 0:
	case size == 0:
		return t.dropPatches(n, t.index)
	case p.Cut == 0 || size < p.Cut:
		p.Cut, p.Below = size, t.index
	default:
		p.Below = t.index
	}
	return nil
}

// writePatches stores what the command did to the patches of n.
func (t *txn) writePatches(b *pebble.Batch, n *stagedInode) error {
	if n.patch != nil {
		if err := b.Set(patchKey(nil, n.ino, t.index), n.patch, nil); err != nil {
			return err
		}
	}
	first, last := n.old.patches.First, n.dropped
	if !n.alive {
		last = t.index
	}
	if !n.stored || first == 0 || last == 0 {
		return nil
	}
	return eachPatch(t.s.db, n.ino, first, last, func(number uint64, key, value []byte) error {
		if !n.alive || number < n.began {
			if err := t.writeHistory(b, key, value); err != nil {
				return err
			}
		}
		return b.Delete(key, nil)
	})
}

// eachPatch calls fn for the current patches of an inode with numbers from first to
// last, in order.
func eachPatch(db pebble.Reader, ino Ino, first, last uint64, fn func(number uint64, key, value []byte) error) error {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: patchKey(nil, ino, first), UpperBound: patchKey(nil, ino, last+1)})
	if err != nil {
		return err
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		_, number, ok := splitPatchTail(it.Key()[1:])
		if !ok {
			return fmt.Errorf("%w: patch key %x", ErrCorrupt, it.Key())
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := fn(number, it.Key(), value); err != nil {
			return err
		}
	}
	return it.Error()
}
