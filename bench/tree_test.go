package bench

import (
	"bytes"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/s2"
)

func TestSourceTreesAreAlwaysTheSame(t *testing.T) {
	tree := newTree(1000)
	if len(tree) != 1000 || !slices.Equal(tree, newTree(1000)) {
		t.Error("two trees of 1000 entries differ")
	}
	known := map[string]bool{".": true}
	var sizes []int64
	for i, e := range tree {
		if i > 0 && e.name <= tree[i-1].name {
			t.Errorf("%s comes after %s", e.name, tree[i-1].name)
		}
		if !known[path.Dir(e.name)] {
			t.Errorf("%s comes before its directory", e.name)
		}
		if e.dir {
			known[e.name] = true
		} else {
			sizes = append(sizes, e.size)
		}
	}
	slices.Sort(sizes)
	if n := len(sizes); n < 880 || n > 920 {
		t.Errorf("%d of 1000 entries are files", n)
	}
	if median := sizes[len(sizes)/2]; median < treeMedian*3/4 || median > treeMedian*4/3 {
		t.Errorf("half of the files have at most %d bytes, want about %d", median, treeMedian)
	}
}

func TestTextCompressesAsSourcesDo(t *testing.T) {
	const block = 64 << 10
	text := newText(1).at(0)[:block]
	if n := len(s2.Encode(nil, text)); n < block/4 || n > block/2 {
		t.Errorf("%d bytes of text are %d compressed", block, n)
	}
}

func TestATreeIsExtractedWithAndWithoutTar(t *testing.T) {
	tree := newTree(200)
	from := filepath.Join(t.TempDir(), "tree.tar")
	var b bytes.Buffer
	if err := writeTree(&b, tree, 1); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(from, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, searchPath := range []string{os.Getenv("PATH"), ""} {
		t.Setenv("PATH", searchPath)
		dir := filepath.Join(t.TempDir(), "tree")
		resp := serve(request{Op: opUntar, Path: dir, From: from, Count: int64(len(tree))})
		if resp.Error != "" || resp.Ops != int64(len(tree)) {
			t.Fatalf("with the PATH %q: %d entries, %s", searchPath, resp.Ops, resp.Error)
		}
		if noted := strings.Contains(resp.Note, "without tar"); searchPath == "" && !noted {
			t.Error("that tar is missing is not said")
		}
		if got := readEntries(t, dir); !slices.Equal(got, tree) {
			t.Errorf("with the PATH %q the tree is not what was packed", searchPath)
		}
		for _, op := range []string{opFind, opReadTree, opRemoveTree} {
			if resp := serve(request{Op: op, Path: dir, Count: int64(len(tree))}); resp.Error != "" {
				t.Errorf("%s: %s", op, resp.Error)
			}
		}
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("%s has left the tree: %v", opRemoveTree, err)
		}
	}
}

func readEntries(t *testing.T, dir string) []treeEntry {
	var entries []treeEntry
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := treeEntry{name: filepath.ToSlash(strings.TrimPrefix(name, dir+"/")), dir: d.IsDir()}
		if !e.dir {
			e.size = info.Size()
		}
		entries = append(entries, e)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(entries, func(a, b treeEntry) int { return strings.Compare(a.name, b.name) })
	return entries
}

func TestAMissingEntryIsNoticed(t *testing.T) {
	for _, op := range []string{opFind, opReadTree, opRemoveTree} {
		if resp := serve(request{Op: op, Path: t.TempDir(), Count: 1}); !strings.Contains(resp.Error, "0 entries instead of 1") {
			t.Errorf("%s of an empty directory: %q", op, resp.Error)
		}
	}
}
