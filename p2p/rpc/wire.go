// Package rpc carries requests and answers, many at a time, over one long-lived
// stream of bytes. The side that opened the stream asks (Client), the other
// answers (Serve).
//
// # Format
//
// A stream is a sequence of frames in each direction. A frame is a header of nine
// bytes, little endian, and a payload:
//
//	size  uint32  bytes of payload
//	id    uint32  which request this is about, chosen by the client
//	kind  uint8   request, answer, failure, too large, cancel
//
// The payload travels in chunks of 64 KiB, the last one as long as it happens to
// be. Between two chunks there is one byte: 1 says that another follows, 0 that
// the sender has thought better of it, and that the next frame follows. A message
// that nobody waits for any more thus costs at most a chunk.
//
// # Invariants
//
// An id is in use from its request until the first answer, failure or too large
// that has it, cancelled or not; at most MaxOutstanding are in use. A request that
// was withdrawn was never made. A cancel asks for an answer soon, whatever it is;
// one that comes after the answer is ignored. Whoever breaks a rule has the stream
// closed, and no size is believed before it is compared with the limits.
package rpc

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/cairnfs/cairn/p2p"
)

// MaxOutstanding is how many requests are on their way over a stream; more wait
// for their turn with the client.
const MaxOutstanding = 64

const (
	headerSize = 9
	chunkSize  = 64 << 10
	readBuffer = 4 << 10 // for headers and small messages; what a large one has in it is copied twice
	// believed is how much memory a header alone can claim, in bytes: that of a
	// block. When that much of the payload has come, the rest is allocated, so that
	// receiving a large one copies little.
	believed = 16 * chunkSize
	// maxText is the largest text of a failure, in bytes.
	maxText = 4 << 10

	goesOn    = 1
	withdrawn = 0
)

type kind uint8

const (
	kindRequest  kind = 1
	kindAnswer   kind = 2
	kindFailure  kind = 3 // the handler's error, as text
	kindTooLarge kind = 4 // the answer exceeds p2p.MaxMessage
	kindCancel   kind = 5
)

// errProtocol says that the peer sent what it may not.
var errProtocol = errors.New("peer does not keep to the protocol")

type header struct {
	size uint32
	id   uint32
	kind kind
}

func (h header) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, h.size)
	b = binary.LittleEndian.AppendUint32(b, h.id)
	return append(b, byte(h.kind))
}

// decoder reads frames: header, then payload or skip, and again.
type decoder struct {
	r      *bufio.Reader
	max    uint32 // the largest request or answer
	memory *Memory
}

func newDecoder(r io.Reader, limit int, memory *Memory) *decoder {
	return &decoder{bufio.NewReaderSize(r, readBuffer), uint32(min(limit, p2p.MaxMessage)), memory}
}

// header returns the next header, io.EOF if the stream ends before it. Its size is
// within the limit of its kind.
func (d *decoder) header() (header, error) {
	b, err := d.r.Peek(headerSize)
	if err != nil {
		if err == io.EOF && len(b) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return header{}, err
	}
	h := header{
		size: binary.LittleEndian.Uint32(b),
		id:   binary.LittleEndian.Uint32(b[4:]),
		kind: kind(b[8]),
	}
	if _, err := d.r.Discard(headerSize); err != nil {
		return header{}, err
	}
	var limit uint32
	switch h.kind {
	case kindRequest, kindAnswer:
		limit = d.max
	case kindFailure:
		limit = maxText
	case kindTooLarge, kindCancel:
	default:
		return header{}, fmt.Errorf("%w: kind %d", errProtocol, h.kind)
	}
	if h.size > limit {
		return header{}, fmt.Errorf("%w: %d bytes of kind %d, at most %d", errProtocol, h.size, h.kind, limit)
	}
	return h, nil
}

// payload returns the size bytes that follow a header, in memory of their own;
// whole is false if the sender withdrew them.
func (d *decoder) payload(size uint32) (p []byte, whole bool, err error) {
	p = d.memory.get(int(min(size, believed)))
	defer func() {
		if !whole {
			d.memory.Put(p)
			p = nil
		}
	}()
	for at := uint32(0); at < size; {
		if at == believed {
			larger := d.memory.get(int(size))
			copy(larger, p)
			d.memory.Put(p)
			p = larger
		}
		end := min(at+chunkSize, size)
		// With the byte that stands behind the chunk, if there is room until the
		// next chunk overwrites it: to read it alone would fill d.r with more of
		// the payload, only to copy that once more.
		ahead := min(end+1, uint32(len(p)))
		if _, err := io.ReadFull(d.r, p[at:ahead]); err != nil {
			return p, false, noEOF(err)
		}
		at = end
		var more bool
		if ahead > end {
			more, err = goes(p[end])
		} else {
			more, err = d.more(at, size)
		}
		if !more || err != nil {
			return p, false, err
		}
	}
	return p, true, nil
}

// skip reads past the size bytes that follow a header.
func (d *decoder) skip(size uint32) error {
	for at := uint32(0); at < size; {
		end := min(at+chunkSize, size)
		if _, err := d.r.Discard(int(end - at)); err != nil {
			return noEOF(err)
		}
		at = end
		if more, err := d.more(at, size); !more || err != nil {
			return err
		}
	}
	return nil
}

// more reads what stands between two chunks, nothing after the last one.
func (d *decoder) more(at, size uint32) (bool, error) {
	if at == size {
		return true, nil
	}
	b, err := d.r.ReadByte()
	if err != nil {
		return false, noEOF(err)
	}
	return goes(b)
}

// goes reads the byte between two chunks.
func goes(b byte) (on bool, err error) {
	if b != goesOn && b != withdrawn {
		return false, fmt.Errorf("%w: %d between chunks", errProtocol, b)
	}
	return b == goesOn, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
