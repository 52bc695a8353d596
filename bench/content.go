package bench

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
)

// pieceSize is how much is read or written at a time, in bytes: as much as FUSE
// takes in one request.
const pieceSize = 1 << 20

// stampEvery is the distance of the stamps in content; every chunk is longer.
const stampEvery = 4 << 10

// content makes bytes that do not compress and that occur nowhere else: the same
// MiB of random numbers again and again, with stamps in it that say the seed and
// the place. Making them costs next to nothing, so that a writer may do it while
// it is measured.
type content struct {
	seed  uint64
	piece [pieceSize]byte
}

func newContent(seed uint64) *content {
	c := &content{seed: seed}
	rand.NewChaCha8([32]byte{}).Read(c.piece[:])
	return c
}

// at returns the piece of pieceSize bytes at an offset; it is valid until the
// next call.
func (c *content) at(off int64) []byte {
	for i := 0; i < pieceSize; i += stampEvery {
		binary.LittleEndian.PutUint64(c.piece[i:], c.seed)
		binary.LittleEndian.PutUint64(c.piece[i+8:], uint64(off)+uint64(i))
	}
	return c.piece[:]
}

// writeTo writes the first size bytes to w.
func (c *content) writeTo(w io.Writer, size int64) error {
	for off := int64(0); off < size; off += pieceSize {
		if _, err := w.Write(c.at(off)[:min(pieceSize, size-off)]); err != nil {
			return err
		}
	}
	return nil
}
