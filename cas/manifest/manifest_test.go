package manifest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/ipfs/go-unixfsnode/data"
	dagpb "github.com/ipld/go-codec-dagpb"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/chunker"
)

var ctx = context.Background()

// small is a Format whose trees are high although the files are short.
func small(t testing.TB) manifest.Format { return newFormat(t, 64, 256, 512, 2, 4, 8) }

func newFormat(t testing.TB, minChunk, avgChunk, maxChunk, minLinks, avgLinks, maxLinks int) manifest.Format {
	t.Helper()
	c, err := chunker.New(chunker.Params{Algorithm: chunker.GearJump, Min: minChunk, Avg: avgChunk, Max: maxChunk})
	if err != nil {
		t.Fatal(err)
	}
	return manifest.Format{Chunker: c, MinLinks: minLinks, AvgLinks: avgLinks, MaxLinks: maxLinks}
}

// newRand returns a random source whose seed is logged; CAIRN_SEED replays one.
func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("CAIRN_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CAIRN_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// fixed returns n bytes of ChaCha8, the same for a seed in every Go version.
func fixed(seed byte, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// content returns up to n bytes in stretches of different kinds: random bytes,
// zeros, one other byte, and copies of what was there before.
func content(r *rand.Rand, n int) []byte {
	b := make([]byte, 0, n)
	for len(b) < n {
		k := min(1+r.IntN(1<<(1+r.IntN(14))), n-len(b))
		switch r.IntN(6) {
		case 0:
			b = append(b, make([]byte, k)...)
		case 1:
			b = append(b, bytes.Repeat([]byte{byte(1 + r.IntN(255))}, k)...)
		case 2:
			from := r.IntN(len(b) + 1)
			b = append(b, b[from:min(from+k, len(b))]...)
		default:
			for range k {
				b = append(b, byte(r.Uint32()))
			}
		}
	}
	return b
}

// counter counts what goes through it to a store.
type counter struct {
	mem.Store
	gets, puts, getBytes, putBytes atomic.Int64
}

func (c *counter) Get(ctx context.Context, k cas.CID, buf []byte) (cas.Block, error) {
	b, err := c.Store.Get(ctx, k, buf)
	c.gets.Add(1)
	c.getBytes.Add(int64(len(b.Data())))
	return b, err
}

func (c *counter) Put(ctx context.Context, blocks ...cas.Block) error {
	for _, b := range blocks {
		c.puts.Add(1)
		c.putBytes.Add(int64(len(b.Data())))
	}
	return c.Store.Put(ctx, blocks...)
}

func (c *counter) reset() {
	for _, n := range []*atomic.Int64{&c.gets, &c.puts, &c.getBytes, &c.putBytes} {
		n.Store(0)
	}
}

func write(t testing.TB, s manifest.Store, f manifest.Format, b []byte) manifest.Root {
	t.Helper()
	w := manifest.NewWriter(s, f)
	if err := w.Write(ctx, b); err != nil {
		t.Fatal(err)
	}
	root, err := w.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func read(t testing.TB, s cas.Getter, root manifest.Root) []byte {
	t.Helper()
	b := make([]byte, root.Size)
	n, err := manifest.NewReader(s, root, manifest.ReaderOptions{}).ReadAt(ctx, b, 0)
	if err != nil && !(err == io.EOF && root.Size == 0) {
		t.Fatalf("ReadAt = %d, %v", n, err)
	}
	return b
}

// pbNode decodes a stored dag-pb block with the IPLD library.
func pbNode(t testing.TB, s cas.Getter, c cas.CID) (dagpb.PBNode, data.UnixFSData) {
	t.Helper()
	b, err := s.Get(ctx, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	nb := dagpb.Type.PBNode.NewBuilder()
	if err := dagpb.DecodeBytes(nb, b.Data()); err != nil {
		t.Fatal(err)
	}
	pb := nb.Build().(dagpb.PBNode)
	u, err := data.DecodeUnixFSData(pb.FieldData().Must().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return pb, u
}

func linkCID(t testing.TB, l dagpb.PBLink) cas.CID {
	t.Helper()
	c, err := cas.FromIPLD(l.FieldHash().Link().(cidlink.Link).Cid)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestAFileOfOneChunkIsItsRawLeaf(t *testing.T) {
	s := &counter{}
	b := []byte("hello")
	root := write(t, s, manifest.Format{}, b)
	if want := (manifest.Root{CID: cas.Sum(cas.Raw, b), Size: 5}); root != want {
		t.Errorf("root = %v, want %v", root, want)
	}
	if n := s.puts.Load(); n != 1 {
		t.Errorf("%d blocks were put, want the leaf only", n)
	}
}

func TestTheEmptyFileIsAnEmptyNode(t *testing.T) {
	var s mem.Store
	root := write(t, &s, manifest.Format{}, nil)
	b, err := s.Get(ctx, root.CID, nil)
	if err != nil {
		t.Fatal(err)
	}
	// What every version of IPFS stores for it: type File, filesize 0.
	if want := []byte{0x0a, 4, 8, 2, 0x18, 0}; !bytes.Equal(b.Data(), want) || root.CID.Codec() != cas.DagPB || root.Size != 0 {
		t.Errorf("root %v: block %x, want %x", root, b.Data(), want)
	}
	if got := read(t, &s, root); len(got) != 0 {
		t.Errorf("it reads as %q", got)
	}
}

func TestTheZeroRootReadsAsTheEmptyFile(t *testing.T) {
	r := manifest.NewReader(&mem.Store{}, manifest.Root{}, manifest.ReaderOptions{})
	if n, err := r.ReadAt(ctx, make([]byte, 1), 0); n != 0 || err != io.EOF {
		t.Errorf("ReadAt = %d, %v", n, err)
	}
	if n, err := r.WriteTo(ctx, io.Discard); n != 0 || err != nil {
		t.Errorf("WriteTo = %d, %v", n, err)
	}
}

// TestRootsNeverChange pins the format: a change here means that no content in
// any cluster is found again under its old root.
func TestRootsNeverChange(t *testing.T) {
	var s mem.Store
	for _, c := range []struct {
		name string
		f    manifest.Format
		data []byte
		want string
	}{
		{"empty", manifest.Format{}, nil, "bafyb4icvwknbzf4e6xryxlucewpmolohxpxn6kzveuc24mpae2ytsacb4y"},
		{"hello", manifest.Format{}, []byte("hello"), "bafkr4ihkr4ld3m4gqkjf4reryxsy2s5tkbxprqkow6fin2iiyvreuzzab4"},
		{"3 MiB", manifest.Format{}, fixed(1, 3<<20), "bafyb4ihdqwpsgp45jrf6n32vldb46msoyrzifa4iyf5x7vkrzb2u2unfb4"},
		{"3 MiB of zeros", manifest.Format{}, make([]byte, 3<<20), "bafyb4igautwk6lgxnahw2r2gu4r7rwnddhdsmtza7irjzxxw66lv2zphxe"},
		{"200 KB in small nodes", small(t), fixed(2, 200_000), "bafyb4igj5ikz3hzfsjm3ecnghybdgvb67qeqj4lgupilezenydyswn5kna"},
	} {
		if got := write(t, &s, c.f, c.data).CID.String(); got != c.want {
			t.Errorf("%s: root %s, want %s", c.name, got, c.want)
		}
	}
	w := manifest.NewWriter(&s, manifest.Format{})
	if err := w.WriteZeros(ctx, 1<<50); err != nil {
		t.Fatal(err)
	}
	root, err := w.Finish(ctx)
	if want := "bafyb4ihrwmipesrasrxv5t3eucftfrvkhydzyj5xflvn7syjgr3vcodqwy"; err != nil || root.CID.String() != want {
		t.Errorf("1 PiB of zeros: root %v, %v, want %s", root.CID, err, want)
	}
}

// TestInnerNodesSayTheTruth walks trees and compares what each node says of its
// children with the children.
func TestInnerNodesSayTheTruth(t *testing.T) {
	r := newRand(t)
	f := small(t)
	for range 20 {
		var s mem.Store
		b := content(r, r.IntN(100_000))
		root := write(t, &s, f, b)
		var depths []int
		var walk func(c cas.CID, depth int) (size, dag int64)
		walk = func(c cas.CID, depth int) (size, dag int64) {
			blk, err := s.Get(ctx, c, nil)
			if err != nil {
				t.Fatal(err)
			}
			dag = int64(len(blk.Data()))
			if c.Codec() == cas.Raw {
				depths = append(depths, depth)
				return dag, dag
			}
			pb, u := pbNode(t, &s, c)
			if n := pb.FieldLinks().Length(); n > int64(f.MaxLinks) || n != u.FieldBlockSizes().Length() {
				t.Fatalf("%d links, %d blocksizes", n, u.FieldBlockSizes().Length())
			}
			for i := range pb.FieldLinks().Length() {
				l := pb.FieldLinks().Lookup(i)
				k, d := walk(linkCID(t, l), depth+1)
				if got := u.FieldBlockSizes().Lookup(i).Int(); got != k {
					t.Errorf("blocksize %d of a child of %d bytes", got, k)
				}
				if got := l.FieldTsize().Must().Int(); got != d {
					t.Errorf("tsize %d of a child of %d bytes of blocks", got, d)
				}
				if got := l.FieldName().Must().String(); got != "" {
					t.Errorf("link has the name %q", got)
				}
				size, dag = size+k, dag+d
			}
			if got := u.FieldFileSize().Must().Int(); got != size {
				t.Errorf("filesize %d of a node of %d bytes", got, size)
			}
			return size, dag
		}
		if size, _ := walk(root.CID, 0); size != int64(len(b)) || root.Size != size {
			t.Errorf("the tree has %d bytes, the root %d, the file %d", size, root.Size, len(b))
		}
		for _, d := range depths {
			if d != depths[0] {
				t.Fatalf("leaves at depths %d and %d", depths[0], d)
			}
		}
	}
}

func TestAFormatMustMakeSense(t *testing.T) {
	var s mem.Store
	for _, f := range []manifest.Format{
		{MinLinks: 1, AvgLinks: 4, MaxLinks: 8}, // would never come to a root
		{MinLinks: 4, AvgLinks: 3, MaxLinks: 8},
		{MinLinks: 4, AvgLinks: 8, MaxLinks: 7},
		{MinLinks: 4, AvgLinks: 8, MaxLinks: 1 << 20},
		{MaxLinks: 8},
	} {
		w := manifest.NewWriter(&s, f)
		_, finishErr := w.Finish(ctx)
		_, appendErr := manifest.AppendTo(ctx, &s, f, manifest.Root{})
		_, rewriteErr := manifest.Rewrite(ctx, &s, f, manifest.Root{}, 1, nil)
		w.Reset()
		for _, err := range []error{w.Write(ctx, []byte("x")), finishErr, appendErr, rewriteErr} {
			if !errors.Is(err, manifest.ErrFormat) {
				t.Errorf("%+v: error %v", f, err)
			}
		}
	}
}

// reference computes the root of b from the definition of the format, level by
// level, with none of the package's machinery.
func reference(t testing.TB, s cas.Putter, f manifest.Format, b []byte) manifest.Root {
	t.Helper()
	type item struct {
		c           cas.CID
		size, tsize uint64
	}
	node := func(items []item) item {
		var sum item
		sizes := make([]uint64, len(items))
		links := make([]pbLink, len(items))
		for i, it := range items {
			sizes[i], links[i] = it.size, pbLink{it.c, "", it.tsize}
			sum.size, sum.tsize = sum.size+it.size, sum.tsize+it.tsize
		}
		block := encodePB(t, links, encodeUnixFS(t, data.Data_File, nil, sum.size, sizes))
		sum.tsize += uint64(len(block))
		sum.c = putBlock(t, s, cas.DagPB, block)
		return sum
	}
	var level []item
	holes := 0
	for rest := b; len(rest) > 0; {
		n := f.Chunker.Cut(rest)
		if n == f.Chunker.Params().Max && len(bytes.Trim(rest[:n], "\x00")) == 0 {
			holes += n
		}
		level = append(level, item{putBlock(t, s, cas.Raw, rest[:n]), uint64(n), uint64(n)})
		rest = rest[n:]
	}
	if len(level) == 0 {
		return manifest.Root{CID: node(nil).c}
	}
	for len(level) > 1 {
		var up []item
		start := 0
		for i, it := range level {
			hash, n := it.c.Hash(), i+1-start
			prefix := uint64(hash[0])<<24 | uint64(hash[1])<<16 | uint64(hash[2])<<8 | uint64(hash[3])
			ends := n >= f.MinLinks && prefix < (1<<32)/uint64(f.AvgLinks-f.MinLinks+1)
			if ends || n == f.MaxLinks || i == len(level)-1 {
				up = append(up, node(level[start:i+1]))
				start = i + 1
			}
		}
		level = up
	}
	return manifest.Root{CID: level[0].c, Size: int64(len(b)), Holes: int64(holes)}
}

func ExampleWriter() {
	store := &mem.Store{}
	w := manifest.NewWriter(store, manifest.Format{})
	_ = w.Write(ctx, []byte("hello, "))
	_ = w.Write(ctx, []byte("world\n"))
	root, err := w.Finish(ctx)
	fmt.Println(root.Size, err)
	_, err = manifest.NewReader(store, root, manifest.ReaderOptions{}).WriteTo(ctx, os.Stdout)
	fmt.Println(err)
	// Output:
	// 13 <nil>
	// hello, world
	// <nil>
}
