package exchange

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/segment"
)

// The messages. Numbers are little endian. A request is
//
//	0  1  version, 1
//	1  1  operation: 1 have, 2 want, 3 put, 4 sync, 5 confirm
//	2  1  flags: 1 check (of want), 2 sync (of put), 4 peek (of have)
//	3  2  count, at most 1024; 0 for sync
//	5     so many entries
//
// The entries of have, want and confirm are CIDs: codec (1), hash (32); before those of
// confirm come the epoch (8) and a nonce (32). Those of put are blocks: codec (1), hash
// (32), compression (1), raw length (4), length of the payload (4), payload. An answer is
//
//	0  1  version, 1
//	1  1  operation, that of the request
//	2  8  boot: the number of the run of the node that answers
//	10 2  count, that of the request
//	12    so many entries
//
// The entries of have and put are status (1). Those of want are status (1),
// compression (1), raw length (4), length of the payload (4), payload; only held
// blocks have more than a status. Those of confirm are proofs (16), zero for none.
const (
	wireVersion = 1

	opHave    = 1
	opWant    = 2
	opPut     = 3
	opSync    = 4
	opConfirm = 5

	flagCheck = 1 // the answering node verifies what it sends
	flagSync  = 2 // what is put is durable before the answer
	flagPeek  = 4 // the answer is no promise to keep the block

	requestHead = 5
	confirmHead = 8 + 32
	answerHead  = 12
	cidSize     = 1 + cas.HashSize
	formSize    = 1 + 4 + 4 // compression, raw length, length of the payload
)

// Status is what an answer says of a block.
type status byte

const (
	statusNo      status = 0 // not held
	statusYes     status = 1 // held; stored
	statusLater   status = 2 // held, but the answer is full: ask again
	statusCorrupt status = 3 // held, but damaged; sent, but not what its CID names
	statusFull    status = 4 // not stored for lack of space
	statusFailed  status = 5 // cannot be read or written
)

// Limits of a message.
const (
	// MaxBlocks is how many blocks a message may concern.
	MaxBlocks = 1024
	// MaxPayload is how many bytes of blocks a message may carry, as stored.
	MaxPayload = 4 << 20

	// An answer may begin its last block when it is almost full.
	maxAnswer = answerHead + MaxBlocks*entryHead + MaxPayload + cas.MaxBlockSize
	entryHead = 1 + formSize
)

// ErrBadMessage says that a peer sent what is no message of this protocol, or not
// what it was asked for: bytes that do not hash to their CID, too.
var ErrBadMessage = errors.New("bad message of the block protocol")

func badMessage(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrBadMessage, fmt.Sprintf(format, args...))
}

// request is a request that was received. Payloads refer to its bytes.
type request struct {
	op     byte
	flags  byte
	cids   []cas.CID
	blocks []segment.Stored // of put, with the same CIDs
	epoch  uint64           // of confirm
	nonce  Nonce            // of confirm
}

// appendRequest appends what comes before the entries.
func appendRequest(b []byte, op, flags byte, count int) []byte {
	b = append(b, wireVersion, op, flags)
	return binary.LittleEndian.AppendUint16(b, uint16(count))
}

func appendCID(b []byte, c cas.CID) []byte {
	hash := c.Hash()
	return append(append(b, byte(c.Codec())), hash[:]...)
}

// appendForm appends what comes before a payload.
func appendForm(b []byte, s *segment.Stored) []byte {
	b = append(b, s.Compression)
	b = binary.LittleEndian.AppendUint32(b, uint32(s.Raw))
	return binary.LittleEndian.AppendUint32(b, uint32(len(s.Payload)))
}

// parser takes a message apart. After the first thing that is not there, bad is
// set and everything else is empty.
type parser struct {
	b   []byte
	bad bool
}

var zeros [cidSize]byte

// take returns the next n bytes, or zeros.
func (p *parser) take(n int) []byte {
	if p.bad || len(p.b) < n {
		p.bad = true
		return zeros[:min(n, len(zeros))]
	}
	b := p.b[:n:n]
	p.b = p.b[n:]
	return b
}

func (p *parser) cid() cas.CID {
	b := p.take(cidSize)
	codec := cas.Codec(b[0])
	if codec != cas.Raw && codec != cas.DagPB {
		p.bad = true
		return cas.CID{}
	}
	return cas.NewCID(codec, [cas.HashSize]byte(b[1:]))
}

// stored reads the form and payload of the block with the given CID.
func (p *parser) stored(c cas.CID) segment.Stored {
	b := p.take(formSize)
	raw, n := binary.LittleEndian.Uint32(b[1:]), binary.LittleEndian.Uint32(b[5:])
	if raw > cas.MaxBlockSize || n > raw {
		p.bad = true
		return segment.Stored{}
	}
	s := segment.Stored{CID: c, Raw: int(raw), Compression: b[0]}
	if s.Payload = p.take(int(n)); p.bad {
		return segment.Stored{}
	}
	return s
}

// done returns an error unless the message was read to its end without one.
func (p *parser) done(what string) error {
	if p.bad {
		return badMessage("%s is cut short or out of range", what)
	}
	if len(p.b) > 0 {
		return badMessage("%s has %d bytes too many", what, len(p.b))
	}
	return nil
}

// parseRequest reads a request.
func parseRequest(b []byte) (r request, err error) {
	p := parser{b: b}
	head := p.take(requestHead)
	if p.bad {
		return r, badMessage("a request of %d bytes", len(b))
	}
	if head[0] != wireVersion {
		return r, badMessage("version %d, this node knows %d", head[0], wireVersion)
	}
	r.op, r.flags = head[1], head[2]
	if r.op == opConfirm {
		r.epoch = binary.LittleEndian.Uint64(p.take(8))
		r.nonce = Nonce(p.take(len(r.nonce)))
	}
	count := int(binary.LittleEndian.Uint16(head[3:]))
	// Nothing is allocated for entries that are not there.
	if count > MaxBlocks || count*cidSize > len(p.b) {
		return r, badMessage("%d blocks in %d bytes", count, len(b))
	}
	r.cids = make([]cas.CID, 0, count)
	payload := 0
	for range count {
		switch r.op {
		case opHave, opWant, opConfirm:
			r.cids = append(r.cids, p.cid())
		case opPut:
			s := p.stored(p.cid())
			payload += len(s.Payload)
			r.cids = append(r.cids, s.CID)
			r.blocks = append(r.blocks, s)
		}
	}
	if r.op < opHave || r.op > opConfirm || payload > MaxPayload {
		return r, badMessage("operation %d with %d bytes", r.op, payload)
	}
	return r, p.done("request")
}

// appendAnswer appends what comes before the entries.
func appendAnswer(b []byte, op byte, boot uint64, count int) []byte {
	b = append(b, wireVersion, op)
	b = binary.LittleEndian.AppendUint64(b, boot)
	return binary.LittleEndian.AppendUint16(b, uint16(count))
}

// parseAnswer reads what comes before the entries of an answer to a request with
// count entries.
func parseAnswer(b []byte, op byte, count int) (p parser, boot uint64, err error) {
	p.b = b
	head := p.take(answerHead)
	if p.bad {
		return p, 0, badMessage("an answer of %d bytes", len(b))
	}
	if head[0] != wireVersion || head[1] != op || int(binary.LittleEndian.Uint16(head[10:])) != count {
		return p, 0, badMessage("an answer to something else (%x)", head)
	}
	return p, binary.LittleEndian.Uint64(head[2:]), nil
}

// parseStatuses reads the answer to have, put or sync.
func parseStatuses(b []byte, op byte, count int) (of []status, boot uint64, err error) {
	p, boot, err := parseAnswer(b, op, count)
	if err != nil {
		return nil, 0, err
	}
	of = make([]status, count)
	for i := range of {
		of[i] = status(p.take(1)[0])
	}
	return of, boot, p.done("answer")
}

// wanted is the answer about one block that was wanted.
type wanted struct {
	status status
	stored segment.Stored
	at     int // where the payload is in the answer
}

// parseWanted reads the answer to want. Payloads refer to b.
func parseWanted(b []byte, cids []cas.CID) ([]wanted, error) {
	p, _, err := parseAnswer(b, opWant, len(cids))
	if err != nil {
		return nil, err
	}
	of := make([]wanted, len(cids))
	for i := range of {
		if of[i].status = status(p.take(1)[0]); of[i].status == statusYes {
			of[i].stored = p.stored(cids[i])
			of[i].at = len(b) - len(p.b) - len(of[i].stored.Payload)
		}
	}
	return of, p.done("answer")
}
