package exchange

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/zeebo/blake3"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/p2p"
)

// Before a node drops its copy of a block, those who own the block confirm theirs. That
// is more than "have". The owner reads and verifies the block and makes it durable; it
// proves that it has the bytes, by a hash of them under a key that the one who asks has
// drawn, who has the bytes, too; and it does so only while it knows the same members, so
// that of two nodes of which each takes the other for the owner neither drops the
// block on account of the other.

// proofSize is the length of a proof, in bytes.
const proofSize = 16

// Nonce is the key of proofs. It is drawn for each request.
type Nonce [32]byte

// Proof is what only a node that has the bytes of a block can say. The zero Proof is
// none.
type Proof [proofSize]byte

// Prove returns the proof of a block.
func Prove(n *Nonce, b cas.Block) (p Proof) {
	h, err := blake3.NewKeyed(n[:])
	if err != nil {
		panic(err) // the key has the right length
	}
	_, _ = h.Write(b.Data()) // never fails
	_, _ = h.Digest().Read(p[:])
	return p
}

// errOtherEpoch is the answer of a node that knows other members than the one who asks.
var errOtherEpoch = errors.New("this node knows other members")

// Confirm has the peer prove which of at most MaxBlocks blocks it has, intact and
// durable, and that it knows the members as of the given epoch. A block that it does
// not have has no proof.
func (p Peer) Confirm(ctx context.Context, epoch uint64, nonce *Nonce, cids []cas.CID) ([]Proof, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b := appendRequest(make([]byte, 0, requestHead+confirmHead+len(cids)*cidSize), opConfirm, 0, len(cids))
	b = append(binary.LittleEndian.AppendUint64(b, epoch), nonce[:]...)
	for _, c := range cids {
		b = appendCID(b, c)
	}
	answer, err := p.Transport.Call(ctx, p.ID, Protocol, b)
	if err != nil {
		return nil, fmt.Errorf("confirm: %s: %w", p.where(), err)
	}
	proofs, err := parseProofs(answer, len(cids))
	if err != nil {
		return nil, fmt.Errorf("confirm: %s: %w", p.where(), err)
	}
	return proofs, nil
}

// parseProofs reads the answer to confirm.
func parseProofs(b []byte, count int) ([]Proof, error) {
	p, _, err := parseAnswer(b, opConfirm, count)
	if err != nil {
		return nil, err
	}
	proofs := make([]Proof, count)
	for i := range proofs {
		proofs[i] = Proof(p.take(proofSize))
	}
	return proofs, p.done("answer")
}

// confirm answers for what is here.
func (s *server) confirm(ctx context.Context, from p2p.PeerID, r *request) ([]byte, error) {
	current := func() bool { return s.o.Epoch != nil && s.o.Epoch() == r.epoch }
	if !current() {
		return nil, errOtherEpoch
	}
	room, err := s.room.acquire(ctx, from, cas.MaxBlockSize)
	if err != nil {
		return nil, err
	}
	defer room.release()
	buf := make([]byte, cas.MaxBlockSize)
	proofs := make([]Proof, len(r.cids))
	for i, c := range r.cids {
		b, err := s.o.Local.Get(ctx, c, buf)
		switch {
		case err == nil:
			proofs[i] = Prove(&r.nonce, b)
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
	}
	// From now on they are kept, as if they were put.
	s.promise(r.cids)
	has, err := s.o.Local.Has(ctx, r.cids...)
	if err != nil {
		return nil, err
	}
	if err := s.o.Local.Sync(ctx); err != nil {
		return nil, err
	}
	if !current() {
		return nil, errOtherEpoch
	}
	b := appendAnswer(make([]byte, 0, answerHead+len(proofs)*proofSize), opConfirm, s.o.Boot, len(proofs))
	for i := range proofs {
		if !has[i] {
			proofs[i] = Proof{}
		}
		b = append(b, proofs[i][:]...)
	}
	return b, nil
}

// promise tells that answers are about to be given by which others rely on blocks.
func (s *server) promise(cids []cas.CID) {
	if s.o.Promise != nil {
		s.o.Promise(cids)
	}
}
