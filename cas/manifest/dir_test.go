package manifest_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ipfs/go-unixfsnode/data"
	"github.com/ipfs/go-unixfsnode/data/builder"
	dagpb "github.com/ipld/go-codec-dagpb"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"
	"github.com/multiformats/go-multihash"
	"github.com/spaolacci/murmur3"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
)

func list(t testing.TB, s cas.Getter, dir cas.CID) []manifest.Entry {
	t.Helper()
	var entries []manifest.Entry
	err := manifest.List(ctx, s, dir, func(e manifest.Entry) error {
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// entry stands for a file whose content is its name.
func entry(name string) manifest.Entry {
	return manifest.Entry{Name: name, CID: cas.Sum(cas.Raw, []byte(name)), DAGSize: int64(len(name))}
}

func TestADirectoryListsItsEntriesByName(t *testing.T) {
	r := newRand(t)
	for _, n := range []int{0, 1, 2, 1000, 6000} {
		var s mem.Store
		var want []manifest.Entry
		for _, name := range names(r, n) {
			want = append(want, entry(name))
		}
		given := slices.Clone(want)
		dir, err := manifest.Directory(ctx, &s, given, manifest.Meta{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(given, want) {
			t.Error("the entries given were changed")
		}
		slices.SortFunc(want, func(a, b manifest.Entry) int { return strings.Compare(a.Name, b.Name) })
		if got := list(t, &s, dir.CID); !slices.Equal(got, want) {
			t.Errorf("%d entries: listed %d, not the same in order", n, len(got))
		}
		for i, e := range want {
			if i%100 > 0 {
				continue
			}
			if got, err := manifest.Lookup(ctx, &s, dir.CID, e.Name); err != nil || got != e {
				t.Fatalf("Lookup %q = %v, %v, want %v", e.Name, got, err, e)
			}
			if got, err := manifest.Lookup(ctx, &s, dir.CID, e.Name+"\x01"); !errors.Is(err, manifest.ErrNoEntry) {
				t.Fatalf("Lookup of what is not there = %v, %v", got, err)
			}
		}
		for _, name := range []string{"", ".", "..", "a/b", "\x00"} {
			if _, err := manifest.Lookup(ctx, &s, dir.CID, name); !errors.Is(err, manifest.ErrNoEntry) {
				t.Errorf("Lookup %q: %v", name, err)
			}
		}
		again, err := manifest.Directory(ctx, &s, want, manifest.Meta{})
		if err != nil || again != dir {
			t.Errorf("in another order: %v, %v, want %v", again, err, dir)
		}
		info, err := manifest.Stat(ctx, &s, dir.CID)
		if err != nil || info != (manifest.Info{Kind: manifest.KindDirectory, DAGSize: dir.DAGSize}) {
			t.Errorf("Stat = %+v, %v", info, err)
		}
	}
}

func TestListEndsWhenItsCallerWants(t *testing.T) {
	var s mem.Store
	dir, err := manifest.Directory(ctx, &s, []manifest.Entry{entry("a"), entry("b")}, manifest.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	calls := 0
	err = manifest.List(ctx, &s, dir.CID, func(manifest.Entry) error { calls++; return enough })
	if err != enough || calls != 1 {
		t.Errorf("%d calls, error %v", calls, err)
	}
}

func TestNamesThatLeadAstrayAreNotWritten(t *testing.T) {
	var s mem.Store
	for _, name := range []string{"", ".", "..", "/", "a/b", "/etc", "../a", "a\x00b"} {
		_, err := manifest.Directory(ctx, &s, []manifest.Entry{entry("ok"), {Name: name, CID: entry("x").CID}}, manifest.Meta{})
		var bad *manifest.NameError
		if !errors.As(err, &bad) || bad.Name != name {
			t.Errorf("%q: error %v", name, err)
		}
	}
	var bad *manifest.NameError
	if _, err := manifest.Directory(ctx, &s, []manifest.Entry{entry("a"), entry("b"), entry("a")}, manifest.Meta{}); !errors.As(err, &bad) {
		t.Errorf("the same name twice: %v", err)
	}
	if _, err := manifest.Directory(ctx, &s, []manifest.Entry{{Name: "a"}}, manifest.Meta{}); err == nil {
		t.Error("an entry without CID is written")
	}
	for _, name := range []string{"...", ".a", "a\\b", "\xff\xfe", "a b\n", strings.Repeat("x", 5000)} {
		dir, err := manifest.Directory(ctx, &s, []manifest.Entry{entry(name)}, manifest.Meta{})
		if err != nil {
			t.Errorf("%q: error %v", name, err)
		} else if got := list(t, &s, dir.CID); !slices.Equal(got, []manifest.Entry{entry(name)}) {
			t.Errorf("%q comes back as %v", name, got)
		}
	}
}

func putDirectory(t *testing.T, s cas.Putter, names ...string) cas.CID {
	t.Helper()
	var links []pbLink
	for _, name := range names {
		links = append(links, pbLink{entry("x").CID, name, 1})
	}
	return putBlock(t, s, cas.DagPB, encodePB(t, links, []byte{8, byte(data.Data_Directory)}))
}

func TestNamesThatLeadAstrayAreNotReturned(t *testing.T) {
	var s mem.Store
	for _, name := range []string{"", ".", "..", "/", "a/b", "/etc", "../a", "a\x00b"} {
		for what, dir := range map[string]cas.CID{
			"plain":   putDirectory(t, &s, "ok", name),
			"sharded": shard(t, &s, 256, "", name),
		} {
			if what == "sharded" && name == "" {
				continue // that is how a shard within a shard is called
			}
			calls := 0
			err := manifest.List(ctx, &s, dir, func(manifest.Entry) error { calls++; return nil })
			var format *manifest.FormatError
			var bad *manifest.NameError
			if !errors.As(err, &format) || format.CID != dir || !errors.As(err, &bad) || bad.Name != name || calls > 0 {
				t.Errorf("%s: %q: error %v, %d calls", what, name, err, calls)
			}
			if e, err := manifest.Lookup(ctx, &s, dir, name); err == nil {
				t.Errorf("%s: Lookup %q = %v", what, name, e)
			}
		}
	}
	if err := manifest.List(ctx, &s, putDirectory(t, &s, "a", "a"), nil); !errors.Is(err, cas.ErrCorrupt) {
		t.Errorf("the same name twice: %v", err)
	}
}

// An old tool may have written links in another order.
func TestUnsortedDirectoriesAreListedByName(t *testing.T) {
	var s mem.Store
	links := encodePB(t, []pbLink{{entry("b").CID, "b", 1}}, nil)
	links = links[:len(links)-2] // without data
	links = append(links, encodePB(t, []pbLink{{entry("a").CID, "a", 1}}, []byte{8, byte(data.Data_Directory)})...)
	dir := putBlock(t, &s, cas.DagPB, links)
	if got := list(t, &s, dir); !slices.Equal(got, []manifest.Entry{entry("a"), entry("b")}) {
		t.Errorf("listed %v", got)
	}
}

func TestADirectoryIsShardedWhenItsBlockExceeds256KiB(t *testing.T) {
	var s mem.Store
	const limit = 256 << 10
	var entries []manifest.Entry
	for i := range 1700 {
		entries = append(entries, entry(fmt.Sprintf("%0100d", i)))
	}
	e, err := manifest.Directory(ctx, &s, entries, manifest.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	// What is missing makes one more entry, which takes 47 bytes beside its name.
	var size int64
	for _, e := range entries {
		size += e.DAGSize
	}
	missing := limit - int(e.DAGSize-size) - 47
	for _, c := range []struct {
		length int
		kind   int64
	}{{missing, data.Data_Directory}, {missing + 1, data.Data_HAMTShard}} {
		dir, err := manifest.Directory(ctx, &s, append(entries, entry(strings.Repeat("x", c.length))), manifest.Meta{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.Get(ctx, dir.CID, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, u := pbNode(t, &s, dir.CID); u.FieldDataType().Int() != c.kind {
			t.Errorf("last name of %d bytes: type %d in a block of %d bytes", c.length, u.FieldDataType().Int(), len(b.Data()))
		}
		if c.kind == data.Data_Directory && len(b.Data()) != limit {
			t.Errorf("the largest plain directory has %d bytes", len(b.Data()))
		}
	}
}

// shard stores a shard with entries of the given names, and for names that begin
// with "shard:" further shards of that CID. All stand where their hash says, seen
// from a shard under the given places.
func shard(t *testing.T, s cas.Putter, fanout int, under string, names ...string) cas.CID {
	t.Helper()
	bitmap := make([]byte, fanout/8)
	var links []pbLink
	for _, name := range names {
		sum := murmur3.Sum64([]byte(name)) << (4 * len(under))
		place := int(sum >> 56)
		if fanout == 16 {
			place = int(sum >> 60)
		}
		l := entry(name)
		link := pbLink{l.CID, fmt.Sprintf("%0*X%s", len(fmt.Sprintf("%X", fanout-1)), place, name), uint64(l.DAGSize)}
		bitmap[len(bitmap)-1-place/8] |= 1 << (place % 8)
		links = append(links, link)
	}
	return putShardNode(t, s, fanout, bitmap, links...)
}

func putShardNode(t *testing.T, s cas.Putter, fanout int, bitmap []byte, links ...pbLink) cas.CID {
	t.Helper()
	u, err := builder.BuildUnixFS(func(b *builder.Builder) {
		builder.DataType(b, data.Data_HAMTShard)
		builder.Data(b, bytes.TrimLeft(bitmap, "\x00"))
		builder.HashType(b, 0x22)
		builder.Fanout(b, uint64(fanout))
	})
	if err != nil {
		t.Fatal(err)
	}
	return putBlock(t, s, cas.DagPB, encodePB(t, links, data.EncodeUnixFSData(u)))
}

func TestShardsOfOtherWidthsAreRead(t *testing.T) {
	r := newRand(t)
	for _, fanout := range []int{8, 16, 1024} {
		var s mem.Store
		var want []manifest.Entry
		var links []dagpb.PBLink
		for _, name := range names(r, 300) {
			want = append(want, entry(name))
			l, err := builder.BuildUnixFSDirectoryEntry(name, int64(len(name)), cidlink.Link{Cid: entry(name).CID.IPLD()})
			if err != nil {
				t.Fatal(err)
			}
			links = append(links, l)
		}
		l, _, err := builder.BuildUnixFSShardedDirectory(fanout, multihash.MURMUR3X64_64, links, linkSystem(t, &s))
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(want, func(a, b manifest.Entry) int { return strings.Compare(a.Name, b.Name) })
		if got := list(t, &s, blake3(t, l)); !slices.Equal(got, want) {
			t.Errorf("fanout %d: listed %d entries", fanout, len(got))
		}
		for _, e := range want {
			if got, err := manifest.Lookup(ctx, &s, blake3(t, l), e.Name); err != nil || got != e {
				t.Fatalf("fanout %d: Lookup %q = %v, %v", fanout, e.Name, got, err)
			}
		}
	}
}

func TestShardsThatLieAreFoundOut(t *testing.T) {
	var s mem.Store
	name := "hello"
	good := shard(t, &s, 256, "", name)
	place := int(murmur3.Sum64([]byte(name)) >> 56)
	bit := func(places ...int) []byte {
		b := make([]byte, 32)
		for _, p := range places {
			b[31-p/8] |= 1 << (p % 8)
		}
		return b
	}
	at := func(place int, name string) pbLink {
		return pbLink{entry(name).CID, fmt.Sprintf("%02X%s", place, name), 5}
	}
	down := func(place int, c cas.CID) pbLink { return pbLink{c, fmt.Sprintf("%02X", place), 5} }
	deep := shard(t, &s, 256, "", name)
	for i := 8; i >= 0; i-- {
		place := int(murmur3.Sum64([]byte(name)) << (8 * i) >> 56)
		deep = putShardNode(t, &s, 256, bit(place), down(place, deep))
	}
	empty := putShardNode(t, &s, 256, nil)
	// Ever so many entries, if two places could share a shard.
	shared := shard(t, &s, 256, "00", "a")
	many := putShardNode(t, &s, 256, bit(0, 1), down(0, shared), down(1, shared))
	for what, dir := range map[string]cas.CID{
		"name in the wrong place":   putShardNode(t, &s, 256, bit(place^1), at(place^1, name)),
		"shard in the wrong place":  putShardNode(t, &s, 256, bit(place^1), down(place^1, good)),
		"bitmap without a link":     putShardNode(t, &s, 256, bit(), at(place, name)),
		"link without its bit":      putShardNode(t, &s, 256, bit(place, place^1), at(place, name)),
		"bitmap that is too long":   putShardNode(t, &s, 256, append([]byte{1}, bit(place)...), at(place, name)),
		"place twice":               putShardNode(t, &s, 256, bit(place), at(place, name), at(place, name)),
		"place in small letters":    putShardNode(t, &s, 256, bit(0xab), pbLink{good, "ab" + name, 1}),
		"place that is no number":   putShardNode(t, &s, 256, bit(0), pbLink{good, "+0" + name, 1}),
		"name without a place":      putShardNode(t, &s, 256, bit(0), pbLink{good, "0", 1}),
		"fanout 0":                  putShardNode(t, &s, 0, nil),
		"fanout 4":                  putShardNode(t, &s, 4, nil),
		"fanout that is no power":   putShardNode(t, &s, 24, nil),
		"fanout beyond all measure": putShardNode(t, &s, 1<<40, nil),
		"empty shard within":        putShardNode(t, &s, 256, bit(place), down(place, empty)),
		"a leaf as a shard":         putShardNode(t, &s, 256, bit(place), down(place, entry(name).CID)),
		"a directory as a shard":    putShardNode(t, &s, 256, bit(place), down(place, putDirectory(t, &s, "a"))),
		"more levels than bits":     deep,
		"one shard in two places":   many,
		"another hash":              putBlock(t, &s, cas.DagPB, encodePB(t, nil, []byte{8, byte(data.Data_HAMTShard), 0x28, 0x12, 0x30, 0x80, 2})),
		"no hash":                   putBlock(t, &s, cas.DagPB, encodePB(t, nil, []byte{8, byte(data.Data_HAMTShard), 0x30, 0x80, 2})),
		"no fanout":                 putBlock(t, &s, cas.DagPB, encodePB(t, nil, []byte{8, byte(data.Data_HAMTShard), 0x28, 0x22})),
	} {
		var format *manifest.FormatError
		if err := manifest.List(ctx, &s, dir, func(manifest.Entry) error { return nil }); !errors.As(err, &format) {
			t.Errorf("%s: List: %v", what, err)
		}
		if e, err := manifest.Lookup(ctx, &s, dir, name); err == nil && e.CID != entry(name).CID {
			t.Errorf("%s: Lookup = %v", what, e)
		} else if err != nil && !errors.As(err, &format) && !errors.Is(err, manifest.ErrNoEntry) {
			t.Errorf("%s: Lookup: %v", what, err)
		}
	}
	if got := list(t, &s, good); len(got) != 1 {
		t.Errorf("the good one has %d entries", len(got))
	}
	if got := list(t, &s, empty); len(got) != 0 {
		t.Errorf("the empty one has %d entries", len(got))
	}
}

func TestMetadataComesBack(t *testing.T) {
	var s mem.Store
	f := small(t)
	var large []manifest.Entry
	for i := range 6000 {
		large = append(large, entry(fmt.Sprint("entry ", i)))
	}
	for _, meta := range []manifest.Meta{
		{},
		{Mode: 0o644, HasMode: true}, // the default one of files
		{Mode: 0o755, HasMode: true}, // and of directories
		{Mode: 0, HasMode: true},
		{Mode: 0o7777, HasMode: true},
		{Mtime: time.Unix(0, 0).UTC()},
		{Mtime: time.Unix(0, 1).UTC()},
		{Mtime: time.Unix(-1, 999_999_999).UTC(), Mode: 0o600, HasMode: true},
		{Mtime: time.Unix(1<<40, 5).UTC()},
	} {
		check := func(what string, c cas.CID, err error, want manifest.Info) {
			t.Helper()
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			got, err := manifest.Stat(ctx, &s, c)
			got.DAGSize = 0
			if want.Meta = meta; err != nil || got != want {
				t.Errorf("%s: Stat = %+v, %v, want %+v", what, got, err, want)
			}
		}
		for _, n := range []int{0, 1, 20_000} {
			plain := write(t, &s, f, fixed(1, n))
			root, err := manifest.WithMeta(ctx, &s, plain, meta)
			check(fmt.Sprint("file of ", n), root.CID, err, manifest.Info{Kind: manifest.KindFile, Size: int64(n)})
			if root.Size != int64(n) || !bytes.Equal(read(t, &s, root), fixed(1, n)) {
				t.Errorf("file of %d bytes reads differently", n)
			}
			if none, err := manifest.WithMeta(ctx, &s, root, manifest.Meta{}); err != nil || none != plain {
				t.Errorf("without metadata it is %v, %v, want %v", none, err, plain)
			}
			if other, err := manifest.WithMeta(ctx, &s, write(t, &s, f, fixed(1, n)), meta); err != nil || other != root {
				t.Errorf("%v, %v, want %v", other, err, root)
			}
		}
		e, err := manifest.Symlink(ctx, &s, "a/../b", meta)
		check("symlink", e.CID, err, manifest.Info{Kind: manifest.KindSymlink, Target: "a/../b"})
		e, err = manifest.Directory(ctx, &s, nil, meta)
		check("directory", e.CID, err, manifest.Info{Kind: manifest.KindDirectory})
		e, err = manifest.Directory(ctx, &s, large, meta)
		check("sharded directory", e.CID, err, manifest.Info{Kind: manifest.KindDirectory})
		if got := list(t, &s, e.CID); len(got) != len(large) {
			t.Errorf("%d entries", len(got))
		}
	}
}

func TestTheZeroRootTakesMetadata(t *testing.T) {
	var s mem.Store
	root, err := manifest.WithMeta(ctx, &s, manifest.Root{}, manifest.Meta{})
	if want := write(t, &s, manifest.Format{}, nil); err != nil || root != want {
		t.Errorf("%v, %v, want %v", root, err, want)
	}
}

func TestAMtimeOutOfRangeIsRefused(t *testing.T) {
	var s mem.Store
	mtime := func(nanos uint32) []byte {
		return []byte{8, byte(data.Data_File), 0x18, 0, 0x42, 7, 8, 1, 0x15, byte(nanos), byte(nanos >> 8), byte(nanos >> 16), byte(nanos >> 24)}
	}
	for nanos, ok := range map[uint32]bool{0: true, 999_999_999: true, 1e9: false, 1<<32 - 1: false} {
		info, err := manifest.Stat(ctx, &s, putBlock(t, &s, cas.DagPB, encodePB(t, nil, mtime(nanos))))
		if ok && (err != nil || !info.Meta.Mtime.Equal(time.Unix(1, int64(nanos)))) || !ok && !errors.Is(err, cas.ErrCorrupt) {
			t.Errorf("%d ns: %v, %v", nanos, info.Meta.Mtime, err)
		}
	}
}

func TestSymlinkTargetsThatCannotBeAreRefused(t *testing.T) {
	var s mem.Store
	for _, target := range []string{"", "a\x00b"} {
		if _, err := manifest.Symlink(ctx, &s, target, manifest.Meta{}); err == nil {
			t.Errorf("%q is written", target)
		}
		block := append([]byte{8, byte(data.Data_Symlink), 0x12, byte(len(target))}, target...)
		if info, err := manifest.Stat(ctx, &s, putBlock(t, &s, cas.DagPB, encodePB(t, nil, block))); !errors.Is(err, cas.ErrCorrupt) {
			t.Errorf("%q is read: %v, %v", target, info, err)
		}
	}
}

func TestKindsAreNotMistakenForEachOther(t *testing.T) {
	var s mem.Store
	link, err := manifest.Symlink(ctx, &s, "a", manifest.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := manifest.Directory(ctx, &s, nil, manifest.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	short, long := write(t, &s, small(t), []byte("a")), write(t, &s, small(t), fixed(1, 5000))
	for _, c := range []cas.CID{link.CID, short.CID, long.CID} {
		if err := manifest.List(ctx, &s, c, nil); !errors.Is(err, manifest.ErrNotDirectory) {
			t.Errorf("List: %v", err)
		}
		if _, err := manifest.Lookup(ctx, &s, c, "a"); !errors.Is(err, manifest.ErrNotDirectory) {
			t.Errorf("Lookup: %v", err)
		}
	}
	for _, c := range []cas.CID{link.CID, dir.CID} {
		if _, err := manifest.WithMeta(ctx, &s, manifest.Root{CID: c}, manifest.Meta{}); !errors.Is(err, manifest.ErrNotFile) {
			t.Errorf("WithMeta: %v", err)
		}
	}
	missing := cas.Sum(cas.DagPB, []byte("missing"))
	if _, err := manifest.Stat(ctx, &s, missing); !errors.Is(err, cas.ErrNotFound) {
		t.Errorf("Stat of a missing block: %v", err)
	}
	if err := manifest.List(ctx, &s, missing, nil); !errors.Is(err, cas.ErrNotFound) {
		t.Errorf("List of a missing block: %v", err)
	}
}

func TestFollowingLinksFindsEveryBlock(t *testing.T) {
	r := newRand(t)
	var s mem.Store
	var entries []manifest.Entry
	for _, name := range names(r, 6000) {
		e := entry(name)
		putBlock(t, &s, cas.Raw, []byte(name))
		entries = append(entries, e)
	}
	link, err := manifest.Symlink(ctx, &s, "a", manifest.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	link.Name = "link"
	file := manifest.Entry{Name: "file", CID: write(t, &s, small(t), fixed(1, 50_000)).CID}
	dir, err := manifest.Directory(ctx, &s, append(entries, link, file), manifest.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[cas.CID]bool{dir.CID: true}
	for todo := []cas.CID{dir.CID}; len(todo) > 0; {
		links, err := manifest.Links(ctx, &s, todo[0])
		if err != nil {
			t.Fatal(err)
		}
		todo = todo[1:]
		for _, c := range links {
			if !seen[c] {
				seen[c] = true
				todo = append(todo, c)
			}
		}
	}
	if len(seen) != s.Len() {
		t.Errorf("%d blocks are found of %d", len(seen), s.Len())
	}
}
