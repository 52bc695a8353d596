package manifest_test

// Interoperation with the libraries of IPFS: what we write, they read, and what
// they write, we read.

import (
	"bytes"
	"fmt"
	"hash"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-unixfsnode"
	"github.com/ipfs/go-unixfsnode/data"
	"github.com/ipfs/go-unixfsnode/data/builder"
	dagpb "github.com/ipld/go-codec-dagpb"
	"github.com/ipld/go-ipld-prime"
	"github.com/ipld/go-ipld-prime/codec"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/fluent/qp"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/ipld/go-ipld-prime/node/basicnode"
	"github.com/multiformats/go-multihash"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
)

// pbLink is a link of a dag-pb node.
type pbLink struct {
	cid   cas.CID
	name  string
	tsize uint64
}

// encodePB encodes a dag-pb node with the IPLD library.
func encodePB(t testing.TB, links []pbLink, unixfs []byte) []byte {
	t.Helper()
	n, err := qp.BuildMap(dagpb.Type.PBNode, 2, func(m datamodel.MapAssembler) {
		qp.MapEntry(m, "Links", qp.List(int64(len(links)), func(list datamodel.ListAssembler) {
			for _, l := range links {
				qp.ListEntry(list, qp.Map(3, func(m datamodel.MapAssembler) {
					qp.MapEntry(m, "Hash", qp.Link(cidlink.Link{Cid: l.cid.IPLD()}))
					qp.MapEntry(m, "Name", qp.String(l.name))
					qp.MapEntry(m, "Tsize", qp.Int(int64(l.tsize)))
				}))
			}
		}))
		qp.MapEntry(m, "Data", qp.Bytes(unixfs))
	})
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := dagpb.Encode(n, &buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// encodeUnixFS encodes a File or Raw with go-unixfsnode.
func encodeUnixFS(t testing.TB, kind int64, inline []byte, size uint64, sizes []uint64) []byte {
	t.Helper()
	n, err := builder.BuildUnixFS(func(b *builder.Builder) {
		builder.DataType(b, kind)
		if inline != nil {
			builder.Data(b, inline)
		}
		builder.FileSize(b, size)
		builder.BlockSizes(b, sizes)
	})
	if err != nil {
		t.Fatal(err)
	}
	return data.EncodeUnixFSData(n)
}

// putBlock stores b and returns its CID.
func putBlock(t testing.TB, s cas.Putter, codec cas.Codec, b []byte) cas.CID {
	t.Helper()
	blk, err := cas.NewBlock(codec, b)
	if err == nil {
		err = s.Put(ctx, blk)
	}
	if err != nil {
		t.Fatal(err)
	}
	return blk.CID()
}

// linkSystem is a store as the IPLD libraries see it. They check the hashes.
//
// The builder of go-unixfsnode insists on SHA2-256 in the CIDs it makes. Here it
// gets BLAKE3 digests under that name, which are given their right name wherever
// they are stored: in links, before a block is hashed, and in what blake3 returns.
func linkSystem(t testing.TB, s manifest.Store) *ipld.LinkSystem {
	ls := cidlink.DefaultLinkSystem()
	ls.StorageReadOpener = func(_ ipld.LinkContext, l ipld.Link) (io.Reader, error) {
		b, err := s.Get(ctx, blake3(t, l), nil)
		return bytes.NewReader(b.Data()), err
	}
	ls.StorageWriteOpener = func(ipld.LinkContext) (io.Writer, ipld.BlockWriteCommitter, error) {
		var buf bytes.Buffer
		return &buf, func(l ipld.Link) error {
			b, err := cas.Verify(blake3(t, l), buf.Bytes())
			if err != nil {
				return err
			}
			return s.Put(ctx, b)
		}, nil
	}
	ls.HasherChooser = func(ipld.LinkPrototype) (hash.Hash, error) {
		return multihash.GetHasher(multihash.BLAKE3)
	}
	choose := ls.EncoderChooser
	ls.EncoderChooser = func(p ipld.LinkPrototype) (codec.Encoder, error) {
		encode, err := choose(p)
		return func(n datamodel.Node, w io.Writer) error {
			pb, ok := n.(dagpb.PBNode)
			if !ok {
				return encode(n, w)
			}
			var links []pbLink
			for i := range pb.FieldLinks().Length() {
				l := pb.FieldLinks().Lookup(i)
				links = append(links, pbLink{
					blake3(t, l.FieldHash().Link()),
					l.FieldName().Must().String(), uint64(l.FieldTsize().Must().Int()),
				})
			}
			_, err := w.Write(encodePB(t, links, pb.FieldData().Must().Bytes()))
			return err
		}, err
	}
	return &ls
}

// blake3 returns the CID that l would be if its digest were called BLAKE3.
func blake3(t testing.TB, l ipld.Link) cas.CID {
	t.Helper()
	c := l.(cidlink.Link).Cid
	mh, err := multihash.Decode(c.Hash())
	if err != nil {
		t.Fatal(err)
	}
	return cas.NewCID(cas.Codec(c.Prefix().Codec), [32]byte(mh.Digest))
}

// load reads c with go-unixfsnode, as a file or directory.
func load(t testing.TB, s manifest.Store, c cas.CID) datamodel.Node {
	t.Helper()
	ls := linkSystem(t, s)
	ls.HasherChooser = cidlink.DefaultLinkSystem().HasherChooser
	var proto datamodel.NodePrototype = dagpb.Type.PBNode
	if c.Codec() == cas.Raw {
		proto = basicnode.Prototype.Bytes
	}
	n, err := ls.Load(ipld.LinkContext{Ctx: ctx}, cidlink.Link{Cid: c.IPLD()}, proto)
	if err == nil {
		n, err = unixfsnode.Reify(ipld.LinkContext{Ctx: ctx}, n, ls)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestOtherToolsReadOurFiles(t *testing.T) {
	r := newRand(t)
	for range 20 {
		var s mem.Store
		b := content(r, r.IntN(100_000))
		root := write(t, &s, small(t), b)
		if r.IntN(2) == 0 {
			var err error
			root, err = manifest.WithMeta(ctx, &s, root, manifest.Meta{Mode: 0o600, HasMode: true, Mtime: time.Unix(1, 2)})
			if err != nil {
				t.Fatal(err)
			}
		}
		got, err := load(t, &s, root.CID).AsBytes()
		if err != nil || !bytes.Equal(got, b) {
			t.Fatalf("file of %d bytes: read %d bytes, %v", len(b), len(got), err)
		}
		if len(b) == 0 {
			continue
		}
		// And from any place, which depends on the sizes in inner nodes.
		f, err := load(t, &s, root.CID).(datamodel.LargeBytesNode).AsLargeBytes()
		if err != nil {
			t.Fatal(err)
		}
		off := r.Int64N(int64(len(b)))
		if _, err := f.Seek(off, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, b[off:]) {
			t.Fatalf("from %d on: read %d bytes, %v", off, len(got), err)
		}
	}
}

func TestWeReadTheFilesOfOtherTools(t *testing.T) {
	r := newRand(t)
	for _, size := range []int{1, 1000, 20_000, 100_000} {
		var s mem.Store
		b := content(r, size)
		l, dagSize, err := builder.BuildUnixFSFile(bytes.NewReader(b), "size-100", linkSystem(t, &s))
		if err != nil {
			t.Fatal(err)
		}
		c := blake3(t, l)
		info, err := manifest.Stat(ctx, &s, c)
		if want := (manifest.Info{Kind: manifest.KindFile, Size: int64(size), DAGSize: int64(dagSize)}); err != nil || info != want {
			t.Errorf("Stat = %+v, %v, want %+v", info, err, want)
		}
		if got := read(t, &s, manifest.Root{CID: c, Size: int64(size)}); !bytes.Equal(got, b) {
			t.Errorf("file of %d bytes reads differently", size)
		}
	}
}

// foreign stores b as a tree of any shape that UnixFS allows: leaves may be raw or
// dag-pb blocks of either type, or bytes within nodes, at any depth.
func foreign(t testing.TB, r *rand.Rand, s cas.Putter, b []byte, depth int) (cas.CID, uint64) {
	t.Helper()
	size := uint64(len(b))
	if depth == 0 || len(b) < 2 || r.IntN(6) == 0 {
		var block []byte
		switch r.IntN(3) {
		case 0:
			return putBlock(t, s, cas.Raw, b), size
		case 1:
			block = encodePB(t, nil, encodeUnixFS(t, data.Data_File, b, size, nil))
		case 2:
			block = encodePB(t, nil, encodeUnixFS(t, data.Data_Raw, b, size, nil))
		}
		return putBlock(t, s, cas.DagPB, block), uint64(len(block))
	}
	var inline []byte
	if r.IntN(3) == 0 {
		n := r.IntN(len(b))
		inline, b = b[:n], b[n:]
	}
	var links []pbLink
	var sizes []uint64
	var dag uint64
	for last := false; !last; {
		n := r.IntN(len(b) + 1)
		if last = len(links) == 5; last {
			n = len(b)
		}
		c, d := foreign(t, r, s, b[:n], depth-1)
		links, sizes = append(links, pbLink{c, "", d}), append(sizes, uint64(n))
		b, dag = b[n:], dag+d
	}
	block := encodePB(t, links, encodeUnixFS(t, data.Data_File, inline, size, sizes))
	return putBlock(t, s, cas.DagPB, block), dag + uint64(len(block))
}

func TestTreesOfAnyShapeAreReadAppendedToAndRewritten(t *testing.T) {
	r := newRand(t)
	f := small(t)
	for range 200 {
		var s mem.Store
		b := content(r, r.IntN(20_000))
		c, dag := foreign(t, r, &s, b, r.IntN(5))
		root := manifest.Root{CID: c, Size: int64(len(b))}
		info, err := manifest.Stat(ctx, &s, c)
		if err != nil || info.Size != root.Size || info.DAGSize != int64(dag) {
			t.Fatalf("Stat = %+v, %v, want %d bytes in blocks of %d", info, err, root.Size, dag)
		}
		if got := read(t, &s, root); !bytes.Equal(got, b) {
			t.Fatal("it reads differently")
		}
		var out bytes.Buffer
		if _, err := manifest.NewReader(&s, root, manifest.ReaderOptions{}).WriteTo(ctx, &out); err != nil || !bytes.Equal(out.Bytes(), b) {
			t.Fatalf("it streams differently: %v", err)
		}
		more := content(r, r.IntN(2000))
		w, err := manifest.AppendTo(ctx, &s, f, root)
		if err != nil {
			t.Fatal(err)
		}
		appendRandomly(t, r, w, more)
		longer, err := w.Finish(ctx)
		if err != nil || !bytes.Equal(read(t, &s, longer), slices.Concat(b, more)) {
			t.Fatalf("it reads differently when appended to: %v", err)
		}
		changed, edits := randomEdits(r, b)
		other, err := manifest.Rewrite(ctx, &s, f, root, int64(len(changed)), edits)
		if err != nil || !bytes.Equal(read(t, &s, other), changed) {
			t.Fatalf("it reads differently when rewritten: %v", err)
		}
	}
}

// names returns n different names, some of them not UTF-8 or hexadecimal at the
// start like the prefixes in shards.
func names(r *rand.Rand, n int) []string {
	seen := make(map[string]bool)
	for len(seen) < n {
		name := fmt.Sprintf("%c%X-%0*d", rune(1+r.IntN(2000)), r.IntN(256), r.IntN(60)+1, r.IntN(1000*n))
		seen[strings.ReplaceAll(name, "/", "\xff")] = true
	}
	return slices.Collect(maps.Keys(seen))
}

func TestOtherToolsReadOurDirectories(t *testing.T) {
	r := newRand(t)
	for _, n := range []int{0, 1, 100, 10_000} {
		var s mem.Store
		want := make(map[string]cas.CID)
		var entries []manifest.Entry
		for _, name := range names(r, n) {
			b := []byte(name)
			want[name] = cas.Sum(cas.Raw, b)
			entries = append(entries, manifest.Entry{Name: name, CID: want[name], DAGSize: int64(len(b))})
		}
		dir, err := manifest.Directory(ctx, &s, entries, manifest.Meta{Mode: 0o755, HasMode: true})
		if err != nil {
			t.Fatal(err)
		}
		node := load(t, &s, dir.CID)
		if int(node.Length()) != n {
			t.Errorf("%d entries, want %d", node.Length(), n)
		}
		for it := node.MapIterator(); !it.Done(); {
			k, v, err := it.Next()
			if err != nil {
				t.Fatal(err)
			}
			name, _ := k.AsString()
			l, _ := v.AsLink()
			if c := blake3(t, l); c != want[name] {
				t.Fatalf("%q is %v, want %v", name, c, want[name])
			}
			if _, err := node.LookupByString(name); err != nil {
				t.Fatalf("%q is not found: %v", name, err)
			}
		}
	}
}

// The libraries agree with us about every byte of a directory, sharded or not.
func TestOurDirectoriesAreThoseOfOtherTools(t *testing.T) {
	r := newRand(t)
	for _, n := range []int{0, 1, 100, 10_000} {
		var s, theirs mem.Store
		var entries []manifest.Entry
		var links []dagpb.PBLink
		for _, name := range names(r, n) {
			b := []byte(name)
			c := cas.Sum(cas.Raw, b)
			entries = append(entries, manifest.Entry{Name: name, CID: c, DAGSize: int64(len(b))})
			l, err := builder.BuildUnixFSDirectoryEntry(name, int64(len(b)), cidlink.Link{Cid: c.IPLD()})
			if err != nil {
				t.Fatal(err)
			}
			links = append(links, l)
		}
		got, err := manifest.Directory(ctx, &s, entries, manifest.Meta{})
		if err != nil {
			t.Fatal(err)
		}
		l, dagSize, err := builder.BuildUnixFSDirectory(links, linkSystem(t, &theirs))
		if err != nil {
			t.Fatal(err)
		}
		if want := (manifest.Entry{CID: blake3(t, l), DAGSize: int64(dagSize)}); got != want {
			t.Errorf("%d entries: %v, want %v", n, got, want)
		}
		var listed []manifest.Entry
		err = manifest.List(ctx, &theirs, blake3(t, l), func(e manifest.Entry) error {
			listed = append(listed, e)
			return nil
		})
		slices.SortFunc(entries, func(a, b manifest.Entry) int { return strings.Compare(a.Name, b.Name) })
		if err != nil || !slices.Equal(listed, entries) {
			t.Errorf("%d entries: listed %d, %v", n, len(listed), err)
		}
	}
}

func TestWeReadTheSymlinksOfOtherTools(t *testing.T) {
	var s, theirs mem.Store
	l, dagSize, err := builder.BuildUnixFSSymlink("../a/b", linkSystem(t, &theirs))
	if err != nil {
		t.Fatal(err)
	}
	got, err := manifest.Symlink(ctx, &s, "../a/b", manifest.Meta{})
	if want := (manifest.Entry{CID: blake3(t, l), DAGSize: int64(dagSize)}); err != nil || got != want {
		t.Errorf("Symlink = %v, %v, want %v", got, err, want)
	}
	info, err := manifest.Stat(ctx, &theirs, blake3(t, l))
	if err != nil || info.Kind != manifest.KindSymlink || info.Target != "../a/b" {
		t.Errorf("Stat = %+v, %v", info, err)
	}
}
