package invite

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/cairnfs/cairn/p2p"
)

const issuer = "12D3KooWAJjbRkp8FPF5MKgMU53aUTxWkqvDrs4zc1VMbwRwfsbE"

func sample() *Token {
	t := &Token{
		Version: Version,
		Cluster: "00112233445566778899aabbccddeeff",
		Issuer:  issuer,
		Addrs:   []string{"/ip4/192.168.1.7/tcp/4401", "/ip6/2001:db8::7/tcp/4401"},
		Role:    p2p.RoleStorage,
	}
	copy(t.ID[:], "the id, 16 bytes")
	copy(t.Seed[:], "the seed is something of 32 bytes")
	return t
}

// golden is sample as the first release wrote it.
const golden = "cairn1-AQARIjNEVWZ3iJmqu8zd7v90aGUgaWQsIDE2IGJ5dGVzdGhlIHNlZWQgaXMgc29tZXRoaW5nIG9mIDMyIGJ5dGUBNDEyRDNLb29XQUpqYlJrcDhGUEY1TUtnTVU1M2FVVHhXa3F2RHJzNHpjMVZNYndSd2ZzYkUCABkvaXA0LzE5Mi4xNjguMS43L3RjcC80NDAxABkvaXA2LzIwMDE6ZGI4Ojo3L3RjcC80NDAx"

func TestATokenIsOneLineThatParsesToItself(t *testing.T) {
	for _, change := range []func(*Token){
		func(*Token) {},
		func(tok *Token) { tok.Addrs = nil },
		func(tok *Token) { tok.Role = p2p.RoleClient },
	} {
		want := sample()
		change(want)
		text := want.String()
		if strings.ContainsAny(text, " \n") || !strings.HasPrefix(text, "cairn1-") {
			t.Errorf("%q", text)
		}
		got, err := Parse(text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
}

func TestTheFormatStaysAsItIs(t *testing.T) {
	if got := sample().String(); !strings.HasPrefix(got, golden) || len(got) != len(golden)+6 {
		t.Errorf("%s", got)
	}
}

func TestWhiteSpaceFromPastingIsIgnored(t *testing.T) {
	text := sample().String()
	for _, pasted := range []string{"  " + text + "\n", text[:80] + "\n" + text[80:160] + "\r\n\t" + text[160:]} {
		if _, err := Parse(pasted); err != nil {
			t.Errorf("%q: %v", pasted, err)
		}
	}
}

func TestATokenCutAnywhereIsTruncated(t *testing.T) {
	text := sample().String()
	for n := 1; n < len(text); n++ {
		if _, err := Parse(text[:n]); !errors.Is(err, ErrTruncated) {
			t.Errorf("the first %d of %d: %v", n, len(text), err)
		}
	}
}

func TestNoSingleTypingErrorIsAccepted(t *testing.T) {
	text := sample().String()
	for i := range text {
		for _, c := range []byte("aZ0-_!") {
			if text[i] == c {
				continue
			}
			if _, err := Parse(text[:i] + string(c) + text[i+1:]); err == nil {
				t.Errorf("%q for %q at %d", c, text[i], i)
			}
		}
		if _, err := Parse(text[:i] + text[i+1:]); err == nil {
			t.Errorf("without the character at %d", i)
		}
	}
}

func TestErrorsSayWhatIsWrong(t *testing.T) {
	text := sample().String()
	other := []byte{2, 1, 2, 3}
	for in, want := range map[string]error{
		"":            ErrNotAToken,
		"hello":       ErrNotAToken,
		"cairn":       ErrTruncated,
		"cairn2-AAAA": ErrVersion,
		prefix + encoding().EncodeToString(other): ErrVersion,
		text + "AAAA":                      ErrMistyped,
		text[:100] + "!" + text[101:]:      ErrMistyped,
		text[:60] + flip(text[60:]):        ErrMistyped,
		prefix + strings.Repeat("A", 5000): ErrTooLong,
		strings.Repeat(" ", 9000):          ErrTooLong,
	} {
		if _, err := Parse(in); !errors.Is(err, want) {
			t.Errorf("%.40q: %v, want %v", in, err, want)
		}
	}
}

// flip exchanges the first character for another.
func flip(s string) string {
	if s[0] == 'A' {
		return "B" + s[1:]
	}
	return "A" + s[1:]
}

func TestTokensThatSayWhatTheyCannotAreNotWritten(t *testing.T) {
	for name, change := range map[string]func(*Token){
		"version":          func(tok *Token) { tok.Version = 2 },
		"short cluster":    func(tok *Token) { tok.Cluster = "00" },
		"capitals":         func(tok *Token) { tok.Cluster = strings.ToUpper(tok.Cluster) },
		"no issuer":        func(tok *Token) { tok.Issuer = "" },
		"long issuer":      func(tok *Token) { tok.Issuer = p2p.PeerID(strings.Repeat("x", 300)) },
		"role":             func(tok *Token) { tok.Role = 9 },
		"many addresses":   func(tok *Token) { tok.Addrs = make([]string, MaxAddrs+1) },
		"empty address":    func(tok *Token) { tok.Addrs = []string{""} },
		"control sequence": func(tok *Token) { tok.Addrs = []string{"/ip4/\x1b[2J"} },
		"too long": func(tok *Token) {
			tok.Addrs = nil
			for range MaxAddrs {
				tok.Addrs = append(tok.Addrs, "/"+strings.Repeat("x", 200))
			}
		},
	} {
		tok := sample()
		change(tok)
		if tok.Validate() == nil || tok.String() != "" {
			t.Errorf("%s: %q", name, tok.String())
		}
	}
}

func challenge() Challenge {
	c := Challenge{Cluster: sample().Cluster, TokenID: sample().ID, Issuer: "issuer", Joiner: "joiner"}
	c.IssuerNonce[0], c.JoinerNonce[0] = 1, 2
	return c
}

func TestAProofIsValidForItsChallengeOnly(t *testing.T) {
	tok := sample()
	sig := Sign(tok.Seed, challenge())
	if !Verify(tok.PublicKey(), challenge(), sig) {
		t.Fatal("not valid")
	}
	for name, change := range map[string]func(*Challenge){
		"cluster":      func(c *Challenge) { c.Cluster = "f" + c.Cluster[1:] },
		"token":        func(c *Challenge) { c.TokenID[0]++ },
		"issuer":       func(c *Challenge) { c.Issuer += "x" },
		"joiner":       func(c *Challenge) { c.Joiner += "x" },
		"issuer nonce": func(c *Challenge) { c.IssuerNonce[31]++ },
		"joiner nonce": func(c *Challenge) { c.JoinerNonce[31]++ },
		"boundary":     func(c *Challenge) { c.Issuer, c.Joiner = "issuerj", "oiner" },
		"exchanged":    func(c *Challenge) { c.Issuer, c.Joiner = c.Joiner, c.Issuer },
	} {
		c := challenge()
		change(&c)
		if Verify(tok.PublicKey(), c, sig) {
			t.Errorf("valid with another %s", name)
		}
	}
}

func TestNothingElseIsAProof(t *testing.T) {
	tok, other := sample(), sample()
	other.Seed[0]++
	c := challenge()
	sig := Sign(tok.Seed, c)
	bare := ed25519.Sign(ed25519.NewKeyFromSeed(tok.Seed[:]), bytes.TrimPrefix(c.message(), []byte(domain)))
	for name, valid := range map[string]bool{
		"another seed":  Verify(other.PublicKey(), c, sig),
		"no key":        Verify(nil, c, sig),
		"half a key":    Verify(tok.PublicKey()[:16], c, sig),
		"no proof":      Verify(tok.PublicKey(), c, nil),
		"half a proof":  Verify(tok.PublicKey(), c, sig[:32]),
		"a changed one": Verify(tok.PublicKey(), c, append([]byte{sig[0] + 1}, sig[1:]...)),
		"no domain":     Verify(tok.PublicKey(), c, bare),
	} {
		if valid {
			t.Errorf("%s", name)
		}
	}
}

// FuzzParse feeds Parse anything. What it accepts, String writes as it was.
func FuzzParse(f *testing.F) {
	f.Add(sample().String())
	f.Add("cairn1-")
	f.Add("cairn2-AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := Parse(text)
		if err != nil {
			if tok != nil {
				t.Fatal("a token and an error")
			}
			return
		}
		if got := tok.String(); got != strings.Join(strings.Fields(text), "") {
			t.Fatalf("%q parses and is written as %q", text, got)
		}
	})
}
