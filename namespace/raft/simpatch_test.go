package raft

import (
	"encoding/binary"

	"github.com/cairnfs/cairn/namespace"
)

// patch is a small change of a file's content, or what is done to a file with such.
func (w *world) patch(n *simNode) namespace.Op {
	const name = "patched"
	f, err := n.state.Lookup(namespace.RootIno, name)
	switch p := f.Patches; {
	case err != nil:
		return &namespace.Create{Parent: namespace.RootIno, Name: name, Mode: namespace.TypeRegular, Size: 1}
	case w.chance(100):
		return &namespace.Truncate{Ino: f.Ino, Size: f.Size / 2}
	case p.Count > 0 && w.chance(200):
		c := namespace.Content{Inline: make([]byte, min(f.Size, namespace.MaxInline))}
		c.Length = int64(len(c.Inline))
		return &namespace.FoldContent{Ino: f.Ino, Below: p.Below, UpTo: f.Version, Content: c}
	}
	off := int64(w.rng.IntN(4000))
	data := binary.AppendUvarint(nil, w.rng.Uint64())
	return &namespace.PatchContent{
		Ino: f.Ino, Base: f.Version, Size: max(f.Size, off+int64(len(data))), Mtime: 1, Ranges: []namespace.Range{{Off: off, Data: data}},
	}
}
