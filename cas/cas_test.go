package cas_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"testing"

	"github.com/ipfs/go-cid"
	"github.com/multiformats/go-multihash"
	_ "github.com/multiformats/go-multihash/register/blake3"

	"github.com/cairnfs/cairn/cas"
)

// helloCID is the CID of "hello world" as a raw block, helloHash its BLAKE3 digest
// as b3sum prints it. They must never change.
const (
	helloCID  = "bafkr4igxjga67jykbseaxdmmdgc5a5o3zp3htom2l6mrjznk7fvyggu6eq"
	helloHash = "d74981efa70a0c880b8d8c1985d075dbcbf679b99a5f9914e5aaf96b831a9e24"
)

func TestKnownCID(t *testing.T) {
	hello := []byte("hello world")
	if h := cas.Sum(cas.Raw, hello).Hash(); hex.EncodeToString(h[:]) != helloHash {
		t.Errorf("BLAKE3 is %x, want %s", h, helloHash)
	}
	// go-multihash uses another implementation of BLAKE3.
	mh, err := multihash.Sum(hello, multihash.BLAKE3, 32)
	if err != nil {
		t.Fatal(err)
	}
	if other := cid.NewCidV1(cid.Raw, mh).String(); other != helloCID {
		t.Errorf("go-multihash and go-cid say %s", other)
	}
	if c := cas.Sum(cas.Raw, hello); c.String() != helloCID {
		t.Errorf("Sum = %v, want %s", c, helloCID)
	}
}

func TestACIDSurvivesEveryForm(t *testing.T) {
	for _, codec := range []cas.Codec{cas.Raw, cas.DagPB} {
		c := cas.Sum(codec, []byte("hello world"))
		if got := cas.NewCID(c.Codec(), c.Hash()); got != c {
			t.Errorf("from its parts: %v", got)
		}
		if got, err := cas.CIDFromBytes(c.Bytes()); got != c || err != nil {
			t.Errorf("through bytes: %v, %v", got, err)
		}
		if len(c.Bytes()) != cas.CIDSize {
			t.Errorf("%d bytes, want CIDSize", len(c.Bytes()))
		}
		if got, err := cas.ParseCID(c.String()); got != c || err != nil {
			t.Errorf("through text: %v, %v", got, err)
		}
		if got, err := cas.FromIPLD(c.IPLD()); got != c || err != nil {
			t.Errorf("through go-cid: %v, %v", got, err)
		}
		if !bytes.Equal(c.IPLD().Bytes(), c.Bytes()) || c.IPLD().String() != c.String() {
			t.Errorf("go-cid writes %v otherwise", c)
		}
		base58, err := c.IPLD().StringOfBase('z')
		if err != nil {
			t.Fatal(err)
		}
		if got, err := cas.ParseCID(base58); got != c || err != nil {
			t.Errorf("through base58: %v, %v", got, err)
		}
		type doc struct{ CID, None cas.CID }
		text, err := json.Marshal(doc{CID: c})
		if err != nil {
			t.Fatal(err)
		}
		var got doc
		if err := json.Unmarshal(text, &got); err != nil || got != (doc{CID: c}) {
			t.Errorf("through JSON %s: %+v, %v", text, got, err)
		}
	}
}

func TestTheZeroCIDNamesNothing(t *testing.T) {
	var c cas.CID
	if c.Defined() || len(c.Bytes()) != 0 || c.IPLD() != cid.Undef || c.String() != "(no CID)" {
		t.Errorf("zero CID: %v, %x, %v, %q", c.Defined(), c.Bytes(), c.IPLD(), c)
	}
	if _, err := cas.CIDFromBytes(nil); !errors.Is(err, cas.ErrBadCID) {
		t.Errorf("no bytes: %v", err)
	}
}

func TestOtherCIDsAreRefused(t *testing.T) {
	sum := func(code uint64, length int) multihash.Multihash {
		mh, err := multihash.Sum([]byte("hello world"), code, length)
		if err != nil {
			t.Fatal(err)
		}
		return mh
	}
	blake := sum(multihash.BLAKE3, 32)
	for name, k := range map[string]cid.Cid{
		"version 0":          cid.NewCidV0(sum(multihash.SHA2_256, 32)),
		"sha256":             cid.NewCidV1(cid.Raw, sum(multihash.SHA2_256, 32)),
		"identity":           cid.NewCidV1(cid.Raw, sum(multihash.IDENTITY, -1)),
		"blake3, 64 bytes":   cid.NewCidV1(cid.Raw, sum(multihash.BLAKE3, 64)),
		"blake3, 16 bytes":   cid.NewCidV1(cid.Raw, sum(multihash.BLAKE3, 16)),
		"dag-cbor":           cid.NewCidV1(cid.DagCBOR, blake),
		"libp2p-key":         cid.NewCidV1(cid.Libp2pKey, blake),
		"undefined":          cid.Undef,
		"codec of two bytes": cid.NewCidV1(0x0129, blake),
	} {
		if c, err := cas.FromIPLD(k); !errors.Is(err, cas.ErrBadCID) || c.Defined() {
			t.Errorf("%s: FromIPLD = %v, %v", name, c, err)
		}
		if c, err := cas.CIDFromBytes(k.Bytes()); !errors.Is(err, cas.ErrBadCID) || c.Defined() {
			t.Errorf("%s: CIDFromBytes = %v, %v", name, c, err)
		}
		if !k.Defined() {
			continue
		}
		if c, err := cas.ParseCID(k.String()); !errors.Is(err, cas.ErrBadCID) || c.Defined() {
			t.Errorf("%s: ParseCID = %v, %v", name, c, err)
		}
	}
}

func TestMalformedCIDsAreRefused(t *testing.T) {
	good := cas.Sum(cas.Raw, nil).Bytes()
	for name, b := range map[string][]byte{
		"cut short":          good[:len(good)-1],
		"a byte too many":    append(bytes.Clone(good), 0),
		"version 2":          append([]byte{2}, good[1:]...),
		"only a prefix":      good[:4],
		"long varint":        append([]byte{1, 0xd5, 0}, good[2:]...),
		"varint without end": bytes.Repeat([]byte{0xff}, 36),
	} {
		if c, err := cas.CIDFromBytes(b); !errors.Is(err, cas.ErrBadCID) || c.Defined() {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
	for _, s := range []string{"", "b", helloCID[1:], helloCID + "a", "hello world", "/ipfs/" + helloCID + "/x"} {
		if c, err := cas.ParseCID(s); !errors.Is(err, cas.ErrBadCID) || c.Defined() {
			t.Errorf("%q: %v, %v", s, c, err)
		}
	}
}

func TestABlockIsOnlyMadeOfTheBytesItsCIDNames(t *testing.T) {
	data := []byte("hello world")
	b, err := cas.NewBlock(cas.Raw, data)
	if err != nil || b.CID() != cas.Sum(cas.Raw, data) || !bytes.Equal(b.Data(), data) {
		t.Errorf("NewBlock = %v, %v", b, err)
	}
	if v, err := cas.Verify(b.CID(), data); err != nil || v.CID() != b.CID() || !bytes.Equal(v.Data(), data) {
		t.Errorf("Verify of the right bytes = %v, %v", v, err)
	}
	for _, wrong := range [][]byte{nil, data[1:], append(bytes.Clone(data), 0), []byte("hello World")} {
		v, err := cas.Verify(b.CID(), wrong)
		var block *cas.BlockError
		if !errors.Is(err, cas.ErrCorrupt) || !errors.As(err, &block) || block.CID != b.CID() || v.CID().Defined() {
			t.Errorf("Verify of %q = %v, %v", wrong, v, err)
		}
	}
	large := make([]byte, cas.MaxBlockSize+1)
	if _, err := cas.NewBlock(cas.Raw, large); !errors.Is(err, cas.ErrTooLarge) {
		t.Errorf("NewBlock of a large block: %v", err)
	}
	if _, err := cas.Verify(cas.Sum(cas.Raw, large), large); !errors.Is(err, cas.ErrTooLarge) {
		t.Errorf("Verify of a large block: %v", err)
	}
}

func FuzzCIDFromBytes(f *testing.F) {
	f.Add(cas.Sum(cas.Raw, nil).Bytes())
	f.Add(cas.Sum(cas.DagPB, []byte("x")).Bytes())
	f.Add([]byte{0x12, 0x20})
	f.Add([]byte{1, 0x55, 0x1e, 0x20})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := cas.CIDFromBytes(b)
		switch {
		case err == nil && !bytes.Equal(c.Bytes(), b):
			t.Errorf("%x reads as %v, which is written %x", b, c, c.Bytes())
		case err != nil && (!errors.Is(err, cas.ErrBadCID) || c.Defined()):
			t.Errorf("%x: %v, %v", b, c, err)
		}
	})
}

func FuzzParseCID(f *testing.F) {
	f.Add(helloCID)
	f.Add("QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG")
	f.Add("z")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := cas.ParseCID(s)
		if err != nil {
			if !errors.Is(err, cas.ErrBadCID) || c.Defined() {
				t.Errorf("%q: %v, %v", s, c, err)
			}
			return
		}
		if again, err := cas.ParseCID(c.String()); err != nil || again != c {
			t.Errorf("%q reads as %v, which reads as %v, %v", s, c, again, err)
		}
	})
}
