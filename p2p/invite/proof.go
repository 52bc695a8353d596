package invite

import (
	"crypto/ed25519"
	"encoding/binary"

	"github.com/cairnfs/cairn/p2p"
)

// NonceSize is the size of a nonce, in bytes. Each side draws its own at random for
// each attempt to join.
const NonceSize = 32

// Challenge is what a joiner signs.
type Challenge struct {
	Cluster     string
	TokenID     [16]byte
	Issuer      p2p.PeerID // the member that is asked, as it has proved itself
	Joiner      p2p.PeerID // likewise
	IssuerNonce [NonceSize]byte
	JoinerNonce [NonceSize]byte
}

// domain is signed in front, so that no signature made for something else is a
// proof, nor the other way round.
const domain = "cairn invite proof 1\x00"

// message encodes a challenge: each field with its length in front, so that no two
// challenges have the same encoding.
func (c *Challenge) message() []byte {
	m := []byte(domain)
	for _, field := range [][]byte{
		[]byte(c.Cluster), c.TokenID[:], []byte(c.Issuer), []byte(c.Joiner), c.IssuerNonce[:], c.JoinerNonce[:],
	} {
		m = binary.BigEndian.AppendUint64(m, uint64(len(field)))
		m = append(m, field...)
	}
	return m
}

// Sign proves to whoever knows the public key of the seed that the signer has the
// seed. The proof has 64 bytes.
func Sign(seed [ed25519.SeedSize]byte, c Challenge) []byte {
	return ed25519.Sign(ed25519.NewKeyFromSeed(seed[:]), c.message())
}

// Verify reports whether sig is the proof for just this challenge. Keys and proofs
// of a wrong size are false.
func Verify(pub ed25519.PublicKey, c Challenge, sig []byte) bool {
	return len(pub) == ed25519.PublicKeySize && ed25519.Verify(pub, c.message(), sig)
}
