// Package invite is what an invited node is given, and how it proves that it was.
//
// # Token
//
// A token is one line to be pasted: "cairn1-" and, in base64url without padding,
//
//	version   uint8      1
//	cluster   [16]byte   id of the cluster
//	id        [16]byte   by which the cluster knows the invitation
//	seed      [32]byte   ed25519; whoever has it has been invited
//	role      uint8      what the new member will be for
//	issuer    string     peer id of a member
//	addrs     uint8      number of addresses, at most MaxAddrs
//	          strings    multiaddrs of the issuer
//	checksum  [4]byte    the first of SHA-256 over all before
//
// where a string is a uint8 or, for addresses, a big-endian uint16 with its length,
// and its bytes. The version is checked first, so that later ones may differ in all
// the rest. The checksum finds typing errors; it protects nothing.
//
// # Proof
//
// The cluster knows only the public key of an invitation. The joiner signs, with the
// seed, a Challenge that both sides have contributed a nonce to and that names both:
// a proof is of use neither to another joiner nor with another issuer, nor twice.
package invite

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/cairnfs/cairn/p2p"
)

// Limits of a token.
const (
	Version  = 1       // the one that Parse knows
	MaxSize  = 4 << 10 // bytes of its text
	MaxAddrs = 32

	prefix    = "cairn1-"
	maxIssuer = 128 // bytes of a peer id
	maxAddr   = 512 // bytes of an address
	sumSize   = 4
	fixedSize = 1 + 16 + 16 + 32 + 1 // what stands before the first string
)

// Errors of Parse. Compare with errors.Is.
var (
	ErrNotAToken = errors.New("not an invitation: it begins with " + prefix)
	ErrTruncated = errors.New("the invitation is incomplete: copy the whole line")
	ErrMistyped  = errors.New("the invitation has been changed on its way: copy it again")
	ErrVersion   = errors.New("the invitation is of another version of cairn")
	ErrTooLong   = fmt.Errorf("an invitation has at most %d characters", MaxSize)
	ErrInvalid   = errors.New("the invitation says what it cannot")
)

// Token is an invitation. It holds a secret: whoever reads it can join.
type Token struct {
	Version int // Version
	Cluster string
	Issuer  p2p.PeerID
	Addrs   []string // multiaddrs at which the issuer listens, MaxAddrs at most
	ID      [16]byte
	Seed    [ed25519.SeedSize]byte
	Role    p2p.Role
}

// PublicKey returns the key that verifies proofs made with the seed.
func (t *Token) PublicKey() ed25519.PublicKey {
	return ed25519.NewKeyFromSeed(t.Seed[:]).Public().(ed25519.PublicKey)
}

// Validate returns why a token cannot be written, ErrInvalid or ErrVersion.
func (t *Token) Validate() error {
	if t.Version != Version {
		return fmt.Errorf("%w: version %d, this is %d", ErrVersion, t.Version, Version)
	}
	if c, err := hex.DecodeString(t.Cluster); err != nil || len(c) != 16 || hex.EncodeToString(c) != t.Cluster {
		return fmt.Errorf("%w: cluster %q is not 32 hexadecimal digits", ErrInvalid, t.Cluster)
	}
	if !plain(string(t.Issuer), maxIssuer) {
		return fmt.Errorf("%w: issuer %q", ErrInvalid, t.Issuer)
	}
	if t.Role != p2p.RoleStorage && t.Role != p2p.RoleClient {
		return fmt.Errorf("%w: %v", ErrInvalid, t.Role)
	}
	if len(t.Addrs) > MaxAddrs {
		return fmt.Errorf("%w: %d addresses, at most %d", ErrInvalid, len(t.Addrs), MaxAddrs)
	}
	for _, a := range t.Addrs {
		if !plain(a, maxAddr) {
			return fmt.Errorf("%w: address %q", ErrInvalid, a)
		}
	}
	if n := len(t.text()); n > MaxSize {
		return fmt.Errorf("%w: %d characters, at most %d", ErrInvalid, n, MaxSize)
	}
	return nil
}

// plain reports whether s is printable ASCII of 1 to limit bytes.
func plain(s string, limit int) bool {
	return s != "" && len(s) <= limit && !strings.ContainsFunc(s, func(r rune) bool {
		return r > unicode.MaxASCII || !unicode.IsGraphic(r) || r == ' '
	})
}

// String returns the line to be pasted, which contains the secret; "" if the token
// is not valid.
func (t *Token) String() string {
	if t.Validate() != nil {
		return ""
	}
	return t.text()
}

// text encodes a token whose strings are within their limits.
func (t *Token) text() string {
	cluster, _ := hex.DecodeString(t.Cluster)
	b := []byte{byte(t.Version)}
	b = append(b, cluster...)
	b = append(b, t.ID[:]...)
	b = append(b, t.Seed[:]...)
	b = append(b, byte(t.Role), byte(len(t.Issuer)))
	b = append(b, t.Issuer...)
	b = append(b, byte(len(t.Addrs)))
	for _, a := range t.Addrs {
		b = binary.BigEndian.AppendUint16(b, uint16(len(a)))
		b = append(b, a...)
	}
	sum := sha256.Sum256(b)
	return prefix + encoding().EncodeToString(append(b, sum[:sumSize]...))
}

// encoding takes each text for one token only: trailing bits must be zero.
func encoding() *base64.Encoding { return base64.RawURLEncoding.Strict() }

// Parse reads what String returned, with white space around it or inside, as line
// breaks come with pasting.
//
// Errors: ErrNotAToken, ErrTruncated, ErrMistyped, ErrVersion, ErrTooLong and
// ErrInvalid.
func Parse(text string) (*Token, error) {
	if len(text) > 2*MaxSize { // white space is not counted, but bounded
		return nil, ErrTooLong
	}
	text = strings.Join(strings.Fields(text), "")
	if len(text) > MaxSize {
		return nil, ErrTooLong
	}
	body, ok := strings.CutPrefix(text, prefix)
	if !ok {
		if strings.HasPrefix(prefix, text) && text != "" {
			return nil, ErrTruncated
		}
		if v, ok := strings.CutPrefix(text, "cairn"); ok && strings.Contains(v, "-") && strings.IndexByte("0123456789", v[0]) >= 0 {
			return nil, ErrVersion
		}
		return nil, ErrNotAToken
	}
	b, err := encoding().DecodeString(body)
	if err != nil {
		// A part of a group of four that is no byte is what cutting leaves, too.
		if whole, err := base64.RawURLEncoding.DecodeString(body[:len(body)/4*4]); err == nil {
			if _, err := decode(whole); errors.Is(err, ErrTruncated) {
				return nil, ErrTruncated
			}
		}
		return nil, ErrMistyped
	}
	return decode(b)
}

// decode reads the bytes of a token. Where they end is found first: a token that
// lacks its end is told apart from one that has changed.
func decode(b []byte) (*Token, error) {
	if len(b) == 0 {
		return nil, ErrTruncated
	}
	if b[0] != Version {
		return nil, fmt.Errorf("%w: version %d, this is %d", ErrVersion, b[0], Version)
	}
	r := reader{rest: b}
	t := &Token{Version: int(r.next(1)[0])}
	t.Cluster = hex.EncodeToString(r.next(16))
	copy(t.ID[:], r.next(16))
	copy(t.Seed[:], r.next(len(t.Seed)))
	t.Role = p2p.Role(r.number(1))
	t.Issuer = p2p.PeerID(r.next(r.number(1)))
	count := r.number(1)
	for range count {
		t.Addrs = append(t.Addrs, string(r.next(r.number(2))))
		if r.short {
			break
		}
	}
	body := len(b) - len(r.rest)
	sum := r.next(sumSize)
	if r.short {
		return nil, ErrTruncated
	}
	if want := sha256.Sum256(b[:body]); len(r.rest) > 0 || !bytes.Equal(sum, want[:sumSize]) {
		return nil, ErrMistyped
	}
	if err := t.Validate(); err != nil {
		return nil, err
	}
	return t, nil
}

// reader takes bytes from the front. When there are too few it returns zeros, and
// says so in short.
type reader struct {
	rest  []byte
	short bool
}

func (r *reader) next(n int) []byte {
	if r.short || n > len(r.rest) {
		r.short, r.rest = true, nil
		return make([]byte, n)
	}
	p := r.rest[:n]
	r.rest = r.rest[n:]
	return p
}

// number reads a big-endian number of 1 or 2 bytes.
func (r *reader) number(size int) int {
	n := 0
	for _, b := range r.next(size) {
		n = n<<8 | int(b)
	}
	return n
}
