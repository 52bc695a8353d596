package control

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"

	"github.com/cairnfs/cairn/cas"
)

func someBlocks(t testing.TB) []cas.Block {
	var blocks []cas.Block
	for i, n := range []int{1, 0, 1000, 70_000, 3} {
		b, err := cas.NewBlock(cas.Raw, bytes.Repeat([]byte{byte(i)}, n))
		if err != nil {
			t.Fatal(err)
		}
		blocks = append(blocks, b)
	}
	return blocks
}

func TestPutBodyReadsTheSameInPiecesOfAnySize(t *testing.T) {
	blocks := someBlocks(t)
	for name, read := range map[string]func(io.Reader) io.Reader{
		"at once":      func(r io.Reader) io.Reader { return r },
		"byte by byte": iotest.OneByteReader,
		"in halves":    iotest.HalfReader,
	} {
		body, err := io.ReadAll(read(&putBody{blocks: blocks}))
		if err != nil || int64(len(body)) != putSize(blocks) {
			t.Fatalf("%s: %d bytes, %v, want %d", name, len(body), err, putSize(blocks))
		}
		got, err := parsePut(body)
		if err != nil || len(got) != len(blocks) {
			t.Fatalf("%s: %d blocks, %v", name, len(got), err)
		}
		for i := range got {
			if got[i].CID() != blocks[i].CID() || !bytes.Equal(got[i].Data(), blocks[i].Data()) {
				t.Errorf("%s: block %d is another", name, i)
			}
		}
	}
}

// FuzzWire feeds arbitrary bytes to everything that reads what the other side
// sent. Whatever is accepted must be a block with the bytes its CID names.
func FuzzWire(f *testing.F) {
	body, err := io.ReadAll(&putBody{blocks: someBlocks(f)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	var answer bytes.Buffer
	_ = writeBlock(&answer, tagBlock, []byte("data"))
	_ = writeBlock(&answer, tagError, []byte(`{"code":"notFound","message":"block not found"}`))
	f.Add(answer.Bytes())
	f.Add([]byte{tagBlock, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		if blocks, err := parsePut(data); err == nil {
			for _, b := range blocks {
				if cas.Sum(b.CID().Codec(), b.Data()) != b.CID() {
					t.Fatal("put accepted bytes that their CID does not name")
				}
			}
		}
		if cids, err := parseCIDs(data, maxGet); err == nil && len(cids) > maxGet {
			t.Fatalf("%d CIDs accepted", len(cids))
		}
		c := cas.Sum(cas.Raw, []byte("data"))
		for r := bytes.NewReader(data); ; {
			tag, entry, err := readEntry(r, nil)
			if err != nil {
				break
			}
			if b, err := entryBlock(c, tag, entry); err == nil && string(b.Data()) != "data" {
				t.Fatalf("%q accepted as a block of other bytes", b.Data())
			}
		}
	})
}
