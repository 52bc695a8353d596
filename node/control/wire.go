package control

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/chunker"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/p2p/replica"
)

// The protocol: HTTP/1.1, paths below /v1/. Small calls carry JSON, lists one
// JSON value a line. Blocks are binary:
//
//	CID list   36 bytes each, the binary form of CIDv1
//	put        for each block: CID, length (4 bytes, big endian), bytes
//	get answer for each CID asked for, in order: tag (1 byte), length (4 bytes,
//	           big endian), then the bytes (tag 0) or a JSON error (tag 1)
//	has answer one byte for each CID: 0 or 1
//
// A failed call answers with a status of 400 or more and a JSON error, whose
// code stands for the error that errors.Is finds on the other side.

// protocolVersion changes when either side would misunderstand the other.
const protocolVersion = 2

// Limits on what one request may carry.
const (
	maxPut   = 4 << 20  // bytes of a put, framing included
	maxGet   = 64       // CIDs of a get
	maxHas   = 4096     // CIDs of a has
	maxJSON  = 1 << 20  // bytes of a JSON body, or of one line of a list
	maxError = 64 << 10 // bytes of an error
	maxPins  = 500      // pins, or CIDs to unpin, of a request
)

const (
	putHeader = cas.CIDSize + 4
	getHeader = 1 + 4
)

const (
	tagBlock byte = 0
	tagError byte = 1
)

// hello is the first thing a client asks for.
type hello struct {
	Protocol int            `json:"protocol"`
	Chunker  chunker.Params `json:"chunker"`
}

// wireCode names an error on the wire.
type wireCode struct {
	code   string
	err    error
	status int
}

// wireCodes returns the errors that keep their identity on the wire, the most
// particular first.
func wireCodes() []wireCode {
	return []wireCode{
		{"notFound", cas.ErrNotFound, http.StatusNotFound},
		{"corrupt", cas.ErrCorrupt, http.StatusInternalServerError},
		{"tooLarge", cas.ErrTooLarge, http.StatusRequestEntityTooLarge},
		{"noSpace", cas.ErrNoSpace, http.StatusInsufficientStorage},
		{"badCID", cas.ErrBadCID, http.StatusBadRequest},
		{"notPinned", ErrNotPinned, http.StatusNotFound},
		{"protocol", ErrProtocol, http.StatusBadRequest},
		{"noCluster", namespace.ErrNoCluster, http.StatusNotFound},
		{"noMember", namespace.ErrNoMember, http.StatusNotFound},
		{"noInvite", namespace.ErrNoInvite, http.StatusNotFound},
		{"unknown", raft.ErrTimeout, http.StatusGatewayTimeout},
		{"noQuorum", raft.ErrNoQuorum, http.StatusServiceUnavailable},
		{"tooFewCopies", replica.ErrTooFewCopies, http.StatusServiceUnavailable},
		{"unavailable", ErrUnavailable, http.StatusServiceUnavailable},
		{"unavailable", context.Canceled, http.StatusServiceUnavailable},
		{"timeout", context.DeadlineExceeded, http.StatusGatewayTimeout},
	}
}

// wireError is an error on the wire.
type wireError struct {
	Code    string  `json:"code"`
	Message string  `json:"message"`
	CID     cas.CID `json:"cid,omitzero"` // with Op and Where: a cas.BlockError
	Op      string  `json:"op,omitempty"`
	Where   string  `json:"where,omitempty"`
}

// toWire returns err as it is sent, and the HTTP status for it.
func toWire(err error) (wireError, int) {
	w := wireError{Code: "failed", Message: err.Error()}
	status := http.StatusInternalServerError
	for _, c := range wireCodes() {
		if errors.Is(err, c.err) {
			w.Code, status = c.code, c.status
			break
		}
	}
	var block *cas.BlockError
	if errors.As(err, &block) {
		w.CID, w.Op, w.Where, w.Message = block.CID, block.Op, block.Where, block.Err.Error()
	}
	if len(w.Message) > maxError/8 {
		w.Message = w.Message[:maxError/8]
	}
	return w, status
}

// err returns the error that was sent.
func (w wireError) err() error {
	var err error = &remoteError{message: w.Message}
	for _, c := range wireCodes() {
		if c.code != w.Code {
			continue
		}
		if err = c.err; c.err.Error() != w.Message {
			err = &remoteError{message: w.Message, kind: c.err}
		}
		break
	}
	if w.CID.Defined() {
		return &cas.BlockError{Op: w.Op, CID: w.CID, Where: w.Where, Err: err}
	}
	return err
}

// remoteError is an error of the other process: its words, and what it is.
type remoteError struct {
	message string
	kind    error // may be nil
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.kind }

// appendCIDs appends the list that parseCIDs reads.
func appendCIDs(b []byte, cids []cas.CID) []byte {
	for _, c := range cids {
		b = c.Append(b)
	}
	return b
}

// parseCIDs reads a list of at most limit CIDs.
func parseCIDs(b []byte, limit int) ([]cas.CID, error) {
	if len(b)%cas.CIDSize != 0 || len(b)/cas.CIDSize > limit {
		return nil, fmt.Errorf("%w: a list of CIDs of %d bytes", ErrProtocol, len(b))
	}
	cids := make([]cas.CID, 0, len(b)/cas.CIDSize)
	for ; len(b) > 0; b = b[cas.CIDSize:] {
		c, err := cas.CIDFromBytes(b[:cas.CIDSize])
		if err != nil {
			return nil, err
		}
		cids = append(cids, c)
	}
	return cids, nil
}

// parsePut reads and verifies the blocks of a put; they refer to b.
func parsePut(b []byte) ([]cas.Block, error) {
	var blocks []cas.Block
	for len(b) > 0 {
		if len(b) < putHeader {
			return nil, fmt.Errorf("%w: put ends in a header", ErrProtocol)
		}
		c, err := cas.CIDFromBytes(b[:cas.CIDSize])
		if err != nil {
			return nil, err
		}
		n := binary.BigEndian.Uint32(b[cas.CIDSize:])
		if b = b[putHeader:]; uint64(n) > uint64(len(b)) {
			return nil, fmt.Errorf("%w: put ends in a block", ErrProtocol)
		}
		block, err := cas.Verify(c, b[:n:n])
		if err != nil {
			return nil, err
		}
		blocks, b = append(blocks, block), b[n:]
	}
	return blocks, nil
}

// putBody is the body of a put of blocks, read without copying them together.
type putBody struct {
	blocks []cas.Block
	head   [putHeader]byte
	pos    int // in the header and data of blocks[0]
}

// putSize returns the length of the body.
func putSize(blocks []cas.Block) (n int64) {
	for _, b := range blocks {
		n += int64(putHeader + len(b.Data()))
	}
	return n
}

func (r *putBody) Read(p []byte) (n int, err error) {
	for n < len(p) && len(r.blocks) > 0 {
		b := r.blocks[0]
		if r.pos == 0 {
			binary.BigEndian.PutUint32(b.CID().Append(r.head[:0])[:putHeader][cas.CIDSize:], uint32(len(b.Data())))
		}
		var m int
		if r.pos < putHeader {
			m = copy(p[n:], r.head[r.pos:])
		} else {
			m = copy(p[n:], b.Data()[r.pos-putHeader:])
		}
		n, r.pos = n+m, r.pos+m
		if r.pos == putHeader+len(b.Data()) {
			r.blocks, r.pos = r.blocks[1:], 0
		}
	}
	if n == 0 && len(r.blocks) == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (r *putBody) Close() error { return nil }

// writeBlock writes one entry of a get answer.
func writeBlock(w io.Writer, tag byte, data []byte) error {
	var head [getHeader]byte
	head[0] = tag
	binary.BigEndian.PutUint32(head[1:], uint32(len(data)))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

// readEntry reads one entry of a get answer, into buf if that is large enough.
func readEntry(r io.Reader, buf []byte) (tag byte, data []byte, err error) {
	var head [getHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > cas.MaxBlockSize {
		return 0, nil, fmt.Errorf("%w: block of %d bytes", ErrProtocol, n)
	}
	if uint64(n) > uint64(cap(buf)) {
		buf = make([]byte, n)
	}
	_, err = io.ReadFull(r, buf[:n])
	return head[0], buf[:n], err
}

// entryBlock returns what an entry says of the block that c names.
func entryBlock(c cas.CID, tag byte, data []byte) (cas.Block, error) {
	if tag != tagBlock {
		return cas.Block{}, decodeError(data)
	}
	return cas.Verify(c, data)
}

// decodeError reads a JSON error.
func decodeError(data []byte) error {
	var w wireError
	if err := json.Unmarshal(data, &w); err != nil || w.Message == "" {
		return fmt.Errorf("%w: unreadable error %.100q", ErrProtocol, data)
	}
	return w.err()
}
