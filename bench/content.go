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

// content makes bytes that occur nowhere else: the same MiB again and again, with
// stamps in it that say the seed and the place. Making them costs next to nothing,
// so that a writer may do it while it is measured.
type content struct {
	seed  uint64
	piece [pieceSize]byte
}

// newContent returns content that does not compress.
func newContent(seed uint64) *content {
	c := &content{seed: seed}
	rand.NewChaCha8([32]byte{}).Read(c.piece[:])
	return c
}

// newText returns content that compresses as the sources of programs do, to a
// third.
func newText(seed uint64) *content {
	c := &content{seed: seed}
	rnd := rand.New(rand.NewPCG(0, 0))
	var phrases [1 << 12]string // what is written again and again
	for i := range phrases {
		for range 1 + rnd.IntN(6) {
			phrases[i] += word(rnd) + separators[rnd.IntN(len(separators))]
		}
	}
	common := rand.NewZipf(rnd, 1.4, 8, uint64(len(phrases)-1))
	for text := c.piece[:]; len(text) > 0; {
		text = text[copy(text, phrases[common.Uint64()]):]
	}
	return c
}

var separators = [...]string{" ", " ", " ", ", ", ".", "(", ") ", ")\n", " := ", "\n\t", "\n\t\t", " {\n\t", "\n}\n\n"}

// word returns two to ten letters, some more often than others.
func word(rnd *rand.Rand) string {
	const letters = "etaoinsrhldcumfpgwybvkxjqz"
	w := make([]byte, 2+rnd.IntN(9))
	for i := range w {
		w[i] = letters[min(rnd.IntN(len(letters)), rnd.IntN(len(letters)))]
	}
	return string(w)
}

// at returns the piece of pieceSize bytes at an offset that is a multiple of it;
// it is valid until the next call.
func (c *content) at(off int64) []byte {
	for i := int64(0); i < pieceSize; i += stampEvery {
		c.stamp(off + i)
	}
	return c.piece[:]
}

// pageAt is at for a page.
func (c *content) pageAt(off int64) []byte {
	c.stamp(off)
	return c.piece[off%pieceSize:][:page]
}

// stamp makes the stampEvery bytes at an offset those of that place.
func (c *content) stamp(off int64) {
	at := c.piece[off%pieceSize:]
	binary.LittleEndian.PutUint64(at, c.seed)
	binary.LittleEndian.PutUint64(at[8:], uint64(off))
}

// writeTo writes the first size bytes to w.
func (c *content) writeTo(w io.Writer, size int64) error { return c.copyTo(w, 0, size) }

// copyTo writes size bytes from an offset on to w.
func (c *content) copyTo(w io.Writer, off, size int64) error {
	for end := off + size; off < end; {
		in := off % pieceSize
		n, err := w.Write(c.at(off - in)[in:min(pieceSize, in+end-off)])
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}
