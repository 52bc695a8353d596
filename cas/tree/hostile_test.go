package tree_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ipfs/go-unixfsnode/data"
	"github.com/ipfs/go-unixfsnode/data/builder"
	dagpb "github.com/ipld/go-codec-dagpb"
	"github.com/ipld/go-ipld-prime/datamodel"
	"github.com/ipld/go-ipld-prime/fluent/qp"
	cidlink "github.com/ipld/go-ipld-prime/linking/cid"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/cas/tree"
)

// Directories as a stranger may have stored them: package manifest would not
// write them, so they are put together block by block.

type named struct {
	name string
	cid  cas.CID
}

// rawDirectory stores a directory block with the links just as they are given.
func rawDirectory(t *testing.T, store cas.Store, links ...named) cas.CID {
	t.Helper()
	ufs, err := builder.BuildUnixFS(func(b *builder.Builder) { builder.DataType(b, data.Data_Directory) })
	if err != nil {
		t.Fatal(err)
	}
	node, err := qp.BuildMap(dagpb.Type.PBNode, 2, func(m datamodel.MapAssembler) {
		qp.MapEntry(m, "Links", qp.List(int64(len(links)), func(list datamodel.ListAssembler) {
			for _, l := range links {
				qp.ListEntry(list, qp.Map(3, func(m datamodel.MapAssembler) {
					qp.MapEntry(m, "Hash", qp.Link(cidlink.Link{Cid: l.cid.IPLD()}))
					qp.MapEntry(m, "Name", qp.String(l.name))
					qp.MapEntry(m, "Tsize", qp.Int(1))
				}))
			}
		}))
		qp.MapEntry(m, "Data", qp.Bytes(data.EncodeUnixFSData(ufs)))
	})
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := dagpb.AppendEncode(nil, node)
	if err != nil {
		t.Fatal(err)
	}
	b, err := cas.NewBlock(cas.DagPB, encoded)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b.CID()
}

func TestHostileDirectoriesWriteNothingOutside(t *testing.T) {
	store := new(mem.Store)
	block := castest.Block(t, 1, 100)
	if err := store.Put(t.Context(), block); err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	link, err := manifest.Symlink(t.Context(), store, outside, manifest.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	file := block.CID()
	for what, links := range map[string][]named{
		"parent":            {{"../x", file}},
		"parent itself":     {{"..", file}},
		"directory itself":  {{".", file}},
		"slash":             {{"a/b", file}},
		"absolute":          {{outside + "/x", file}},
		"empty":             {{"", file}},
		"NUL":               {{"a\x00b", file}},
		"twice":             {{"a", file}, {"a", file}},
		"through a link":    {{"a", link.CID}, {"a", rawDirectory(t, store, named{"x", file})}},
		"through a link, 2": {{"a", link.CID}, {"a/x", file}},
		"too long":          {{strings.Repeat("n", 256), file}},
	} {
		for where, root := range map[string]cas.CID{
			"above": rawDirectory(t, store, links...),
			"below": rawDirectory(t, store, named{"good", file}, named{"sub", rawDirectory(t, store, links...)}),
		} {
			dir := filepath.Join(t.TempDir(), "work")
			mkdir(t, dir, "")
			err := tree.Get(t.Context(), store, root, filepath.Join(dir, "out"), tree.GetOptions{})
			if err == nil {
				t.Errorf("%s, %s: get succeeded", what, where)
			}
			if what != "too long" && !errors.Is(err, cas.ErrCorrupt) {
				t.Errorf("%s, %s: %v is no integrity error", what, where, err)
			}
			if left := entries(t, filepath.Dir(dir)); len(left) != 1 {
				t.Errorf("%s, %s: beside the directory there are %q", what, where, left)
			}
			for _, d := range []string{dir, outside} {
				if left := entries(t, d); len(left) > 0 {
					t.Errorf("%s, %s: left behind %q", what, where, left)
				}
			}
		}
	}
}

func TestLinksAreMadeButNotFollowed(t *testing.T) {
	store := new(mem.Store)
	outside := t.TempDir()
	write(t, outside, "f", []byte("theirs"), 0o600)
	before := describe(t, outside)
	link, err := manifest.Symlink(t.Context(), store, filepath.Join(outside, "f"), manifest.Meta{Mode: 0o777, HasMode: true, Mtime: long})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	get(t, store, rawDirectory(t, store, named{"link", link.CID}), filepath.Join(dir, "out"), tree.GetOptions{})
	get(t, store, link.CID, filepath.Join(dir, "alone"), tree.GetOptions{})
	for _, name := range []string{"out/link", "alone"} {
		if target, err := os.Readlink(filepath.Join(dir, name)); err != nil || target != filepath.Join(outside, "f") {
			t.Errorf("%s points to %q, %v", name, target, err)
		}
	}
	if after := describe(t, outside); after != before {
		t.Errorf("the target is now\n%s\nbefore\n%s", after, before)
	}
}

func TestDirectoriesWithoutEndAreRefused(t *testing.T) {
	store := new(mem.Store)
	root := rawDirectory(t, store)
	for range tree.MaxDepth + 1 {
		root = rawDirectory(t, store, named{"d", root})
	}
	dir := t.TempDir()
	err := tree.Get(t.Context(), store, root, filepath.Join(dir, "out"), tree.GetOptions{})
	if !errors.Is(err, tree.ErrTooDeep) {
		t.Error(err)
	}
	if left := entries(t, dir); len(left) > 0 {
		t.Errorf("left behind %q", left)
	}
}
