//go:build linux

package fsx

import "bytes"

// pieceSize is the unit in which a model keeps bytes. It takes no part in what
// is tested.
const pieceSize = 64 << 10

var zeros [pieceSize]byte

// model is what a file must hold. Pieces that are absent are zeros, so that a
// file of terabytes with a few bytes in it costs as much as the few bytes.
type model struct {
	size   int64
	pieces map[int64]*[pieceSize]byte // by their number; nothing beyond size but zeros
}

func newModel() *model { return &model{pieces: make(map[int64]*[pieceSize]byte)} }

// each calls fn for the parts of [off, off+n) that lie in one piece each: the
// piece's number, and the part within the piece.
func each(off, n int64, fn func(piece, from, to int64)) {
	for end := off + n; off < end; {
		piece, from := off/pieceSize, off%pieceSize
		to := min(pieceSize, from+end-off)
		fn(piece, from, to)
		off += to - from
	}
}

// write puts p at off and extends the file if it ends before.
func (m *model) write(p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	m.size = max(m.size, off+int64(len(p)))
	each(off, int64(len(p)), func(piece, from, to int64) {
		b := m.pieces[piece]
		if b == nil {
			b = new([pieceSize]byte)
			m.pieces[piece] = b
		}
		p = p[copy(b[from:to], p):]
	})
}

// read fills p from off on; beyond the end with zeros.
func (m *model) read(p []byte, off int64) {
	each(off, int64(len(p)), func(piece, from, to int64) {
		b := m.pieces[piece]
		if b == nil {
			b = &zeros
		}
		p = p[copy(p, b[from:to]):]
	})
}

// zero makes [off, off+n) zeros. The size stays.
func (m *model) zero(off, n int64) {
	for piece, b := range m.pieces {
		start := piece * pieceSize
		from, to := max(off-start, 0), min(off+n-start, pieceSize)
		switch {
		case from == 0 && to == pieceSize:
			delete(m.pieces, piece)
		case from < to:
			clear(b[from:to])
		}
	}
}

// resize cuts the file, or extends it with zeros.
func (m *model) resize(size int64) {
	if size < m.size {
		m.zero(size, m.size-size+pieceSize)
	}
	m.size = size
}

// difference returns where the file differs from p at off, which is the index of
// the first byte of p that is wrong, or -1.
func (m *model) difference(p []byte, off int64) int {
	at, found := 0, -1
	each(off, int64(len(p)), func(piece, from, to int64) {
		b := m.pieces[piece]
		if b == nil {
			b = &zeros
		}
		part := p[at : at+int(to-from)]
		if found < 0 && !bytes.Equal(part, b[from:to]) {
			for i := range part {
				if part[i] != b[int(from)+i] {
					found = at + i
					break
				}
			}
		}
		at += len(part)
	})
	return found
}

// data returns the offset of the first byte of [off, off+n) that is not zero,
// or -1.
func (m *model) data(off, n int64) int64 {
	found := int64(-1)
	for piece, b := range m.pieces {
		start := piece * pieceSize
		from, to := max(off-start, 0), min(off+n-start, pieceSize)
		for i := from; i < to; i++ {
			if b[i] != 0 {
				if found < 0 || start+i < found {
					found = start + i
				}
				break
			}
		}
	}
	return found
}
