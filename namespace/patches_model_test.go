package namespace

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/cairnfs/cairn/namespace/namespacepb"
)

// Patches, said plainly: a list of what was laid over the content, and of cuts.

// layOver sets the patches. The cut of those that are cut last, and the number of the
// content below, stay.
func (n *modelInode) layOver(patches []modelPatch) {
	for len(patches) > 0 && patches[0].ranges == nil {
		patches = patches[1:]
	}
	was := n.Patches
	n.patches, n.Patches = patches, Patches{}
	for i, p := range patches {
		if p.ranges == nil {
			if n.Patches.Cut == 0 || p.size < n.Patches.Cut {
				n.Patches.Cut = p.size
			}
			continue
		}
		if i == 0 {
			n.Patches.First, n.Patches.Below = p.number, was.Below
		}
		n.Patches.Cut = 0
		n.Patches.Count++
		n.Patches.Cost += p.cost
	}
}

// cut is the part of a Truncate that the patches see.
func (n *modelInode) cut(index uint64, size int64) {
	if n.Patches.First == 0 {
		return
	}
	if size == 0 {
		n.layOver(nil)
		return
	}
	n.layOver(append(slices.Clip(n.patches), modelPatch{number: index, size: size}))
	n.Patches.Below = index
}

func (m *model) patch(_ int64, n *modelInode, op *PatchContent) error {
	switch {
	case op.Base != n.Version:
		return ErrConflict
	case op.Size < n.Size, len(n.patches) > 0 && n.patches[len(n.patches)-1].number == m.applied, len(op.Ranges) == 0:
		return ErrInvalid
	}
	last, total := int64(0), 0
	for _, r := range op.Ranges {
		if r.Off < last || len(r.Data) == 0 || r.Off+int64(len(r.Data)) > op.Size {
			return ErrInvalid
		}
		last = r.Off + int64(len(r.Data))
		total += len(r.Data)
	}
	if total > MaxPatch || len(op.Ranges) > MaxPatchRanges {
		return ErrInvalid
	}
	value := marshalRecord(&namespacepb.Patch{Cut: uint64(n.Patches.Cut), Ranges: encodeRanges(op.Ranges), Time: m.logTime})
	if n.Patches.First == 0 {
		n.Patches.Below = n.Version
	}
	if pinned := n.Began <= m.latest; n.Patches.Cost <= manyPatches || m.logTime-n.beganTime >= coalescePatches || pinned {
		m.touched[n.Ino] = true
	}
	n.layOver(append(slices.Clip(n.patches), modelPatch{number: m.applied, ranges: op.Ranges, cost: patchCost(value)}))
	n.Size, n.Version = op.Size, m.applied
	n.wrote(op.Mtime, false)
	return nil
}

// modelLayers says which bytes the patches make what.
func modelLayers(patches []modelPatch) string {
	bytes := map[int64]byte{}
	for _, p := range patches {
		if p.ranges == nil {
			for off := range bytes {
				if off >= p.size {
					delete(bytes, off)
				}
			}
		}
		lay(bytes, p.ranges)
	}
	return describeLayers(bytes)
}

func layers(ranges []Range) string {
	bytes := map[int64]byte{}
	lay(bytes, ranges)
	return describeLayers(bytes)
}

func lay(bytes map[int64]byte, ranges []Range) {
	for _, r := range ranges {
		for i, b := range r.Data {
			bytes[r.Off+int64(i)] = b
		}
	}
}

func describeLayers(bytes map[int64]byte) string {
	var offs []int64
	for off := range bytes {
		offs = append(offs, off)
	}
	slices.Sort(offs)
	var s strings.Builder
	for _, off := range offs {
		fmt.Fprintf(&s, "%d:%02x ", off, bytes[off])
	}
	return s.String()
}

// patch makes a patch of a file, mostly one that can be laid over it.
func (g *generator) patch() Op {
	op := &PatchContent{Ino: g.file(), Mtime: g.now - g.Int64N(60*second)}
	n := g.m.inodes[op.Ino]
	if n == nil {
		return op
	}
	if g.IntN(6) > 0 {
		op.Base = n.Version
	}
	off := int64(0)
	for range 1 + g.IntN(3) {
		off += g.Int64N(400)
		data := bytes.Repeat([]byte{byte(g.Uint32())}, 1+g.IntN(30))
		op.Ranges = append(op.Ranges, Range{off, data})
		off += int64(len(data))
	}
	op.Size = max(n.Size, off)
	switch g.IntN(12) {
	case 0:
		op.Size -= 5
	case 1:
		op.Ranges[0].Off += 3
	case 2:
		op.Size += 100
	}
	return op
}

// fold folds some of the patches of a file, if there are any.
func (g *generator) fold() Op {
	op := &FoldContent{Ino: g.ino(func(n *modelInode) bool { return n.Patches.First != 0 })}
	n := g.m.inodes[op.Ino]
	if n == nil {
		return op
	}
	if g.IntN(6) > 0 {
		op.Below = n.Patches.Below
	}
	op.UpTo = n.Version - min(n.Version, uint64(g.IntN(2)*g.IntN(60)))
	op.Content = tree(1 + g.Int64N(1000))
	op.Content.Length = min(op.Content.TreeSize, n.Size)
	return op
}
