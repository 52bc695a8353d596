package exchange

import (
	"errors"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/p2p"
)

// TestAPeerConfirmsWhatItHasIntactAndDurable is of rule 15.
func TestAPeerConfirmsWhatItHasIntactAndDurable(t *testing.T) {
	l, w := new(local), new(wire)
	var promised []cas.CID
	epoch := uint64(3)
	Serve(w, ServerOptions{
		Local: l, Boot: 7, Logger: quiet(),
		Epoch:   func() uint64 { return epoch },
		Promise: func(cids []cas.CID) { promised = append(promised, cids...) },
	})
	p := Peer{ID: "server", Transport: w}
	here, damaged, not := castest.Block(t, 1, 1000), castest.Block(t, 2, 1000), castest.Block(t, 3, 1000)
	if err := l.Put(t.Context(), here, damaged); err != nil {
		t.Fatal(err)
	}
	l.Corrupt(t, damaged.CID())
	nonce, cids := Nonce{9}, []cas.CID{here.CID(), damaged.CID(), not.CID()}
	proofs, err := p.Confirm(t.Context(), 3, &nonce, cids)
	if err != nil {
		t.Fatal(err)
	}
	if proofs[0] != Prove(&nonce, here) || proofs[1] != (Proof{}) || proofs[2] != (Proof{}) {
		t.Errorf("proofs %x", proofs)
	}
	if other := (Nonce{8}); proofs[0] == Prove(&other, here) || proofs[0] == Prove(&nonce, not) {
		t.Error("a proof is good for something else")
	}
	if l.syncs != 1 || len(promised) != 3 {
		t.Errorf("%d syncs, %d blocks promised", l.syncs, len(promised))
	}
	for _, e := range []uint64{0, 2, 4} {
		var refused *p2p.RemoteError
		if _, err := p.Confirm(t.Context(), e, &nonce, cids); !errors.As(err, &refused) {
			t.Errorf("as of epoch %d: %v", e, err)
		}
	}
	// It learns of other members while it makes sure.
	calls := 0
	Serve(w, ServerOptions{Local: l, Logger: quiet(), Epoch: func() uint64 { calls++; return uint64(2 + calls) }})
	if _, err := p.Confirm(t.Context(), 3, &nonce, cids); err == nil {
		t.Error("confirmed though the members changed meanwhile")
	}
	// A node that is asked by one of a version to come, or is in no cluster.
	Serve(w, ServerOptions{Local: l, Logger: quiet()})
	if _, err := p.Confirm(t.Context(), 0, &nonce, cids); err == nil {
		t.Error("confirmed by a node that knows no members")
	}
}
