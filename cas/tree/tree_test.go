package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/cas/tree"
)

var long = time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)

// sample makes a tree with everything that is kept, and returns its path.
func sample(t *testing.T) string {
	dir := filepath.Join(t.TempDir(), "sample")
	mkdir(t, dir, "empty", "sub/deep/deeper")
	write(t, dir, "sub/a.txt", []byte("hello"), 0o640)
	write(t, dir, "sub/big", castest.Bytes(1, 1<<20+17), 0o755)
	write(t, dir, "sub/deep/none", nil, 0o600)
	write(t, dir, "zeros", make([]byte, 1<<20), 0o444)
	write(t, dir, "with blank, ümlaut and \xff\n", []byte("odd name"), 0o644)
	for link, target := range map[string]string{"sub/link": "a.txt", "dangling": "no/where", "up": "../../../etc", "abs": "/etc/passwd"} {
		if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(filepath.Join(dir, "sub/a.txt"), filepath.Join(dir, "hard")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"sub/a.txt", "sub/deep", "empty"} {
		if err := os.Chtimes(filepath.Join(dir, name), long, long); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "sub/deep"), 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "sub/deep"), 0o755) })
	return dir
}

func mkdir(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func write(t *testing.T, dir, name string, data []byte, mode fs.FileMode) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// describe returns a line for each entry of the tree at path.
func describe(t *testing.T, path string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(path, p)
		fmt.Fprintf(&b, "%q %v %v", rel, info.Mode(), info.ModTime().UnixNano())
		switch info.Mode().Type() {
		case 0:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %v", cas.Sum(cas.Raw, data))
		case fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %q", target)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func add(t *testing.T, store cas.Store, path string) tree.Entry {
	t.Helper()
	e, err := tree.Add(t.Context(), store, manifest.Format{}, path, tree.AddOptions{Recursive: true})
	if err != nil {
		t.Fatalf("add %s: %v", path, err)
	}
	return e
}

func get(t *testing.T, store cas.Getter, c cas.CID, out string, o tree.GetOptions) {
	t.Helper()
	if err := tree.Get(t.Context(), store, c, out, o); err != nil {
		t.Fatalf("get %s: %v", out, err)
	}
}

// entries returns the names in dir.
func entries(t *testing.T, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestATreeComesBackAsItWas(t *testing.T) {
	path := sample(t)
	store := new(mem.Store)
	root := add(t, store, path)
	out := filepath.Join(t.TempDir(), "out")
	get(t, store, root.CID, out, tree.GetOptions{})
	if got, want := describe(t, out), describe(t, path); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if again := add(t, store, out); again.CID != root.CID {
		t.Errorf("the copy has CID %v, the original %v", again.CID, root.CID)
	}
	if names := entries(t, filepath.Dir(out)); len(names) != 1 {
		t.Errorf("beside the tree there are %q", names)
	}
}

func TestEntriesAreReportedInOrderAndTheSameEachTime(t *testing.T) {
	path := sample(t)
	var first []tree.Entry
	for range 5 {
		var all []tree.Entry
		root, err := tree.Add(t.Context(), new(mem.Store), manifest.Format{}, path, tree.AddOptions{
			Recursive: true,
			Below:     func(e tree.Entry) error { all = append(all, e); return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, root)
		if first == nil {
			first = all
		}
		if !slices.Equal(all, first) {
			t.Fatalf("this time\n%v\nbefore\n%v", all, first)
		}
	}
	var names []string
	for _, e := range first {
		names = append(names, e.Name)
	}
	want := []string{
		"sample/abs", "sample/dangling", "sample/empty", "sample/hard",
		"sample/sub/a.txt", "sample/sub/big", "sample/sub/deep/deeper", "sample/sub/deep/none", "sample/sub/deep", "sample/sub/link", "sample/sub",
		"sample/up", "sample/with blank, ümlaut and \xff\n", "sample/zeros", "sample",
	}
	if !slices.Equal(names, want) {
		t.Errorf("names %q, want %q", names, want)
	}
}

func TestAFileAloneIsItsBytes(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int{0, 1, 100_000, 2<<20 + 5} {
		data := castest.Bytes(7, size)
		write(t, dir, "f", data, 0o700)
		store := new(mem.Store)
		e := add(t, store, filepath.Join(dir, "f"))
		w := manifest.NewWriter(store, manifest.Format{})
		if err := w.Write(t.Context(), data); err != nil {
			t.Fatal(err)
		}
		root, err := w.Finish(t.Context())
		if err != nil || e.CID != root.CID || e.Size != int64(size) || e.Name != "f" {
			t.Errorf("%d bytes: %+v, want CID %v (%v)", size, e, root.CID, err)
		}
		stream, err := tree.AddStream(t.Context(), store, manifest.Format{}, "-", bytes.NewReader(data), tree.AddOptions{})
		if err != nil || stream.CID != root.CID {
			t.Errorf("%d bytes as a stream: %v, %v", size, stream.CID, err)
		}
		if err := os.Symlink("f", filepath.Join(dir, "link")); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		if e := add(t, store, filepath.Join(dir, "link")); e.CID != root.CID {
			t.Errorf("through a link: %v, want %v", e.CID, root.CID)
		}
	}
}

func TestHolesAreZerosAndComeBackAsHoles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sparse")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 16 << 20
	want := make([]byte, size)
	for _, off := range []int{0, 3 << 20, 9<<20 + 12345} {
		copy(want[off:], castest.Bytes(uint64(off), 100_000))
		if _, err := f.WriteAt(want[off:off+100_000], int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	var read atomic.Int64
	store := new(mem.Store)
	e, err := tree.Add(t.Context(), store, manifest.Format{}, path, tree.AddOptions{Progress: func(n int64) { read.Add(n) }})
	if err != nil || read.Load() != size {
		t.Fatalf("progress %d of %d, %v", read.Load(), size, err)
	}
	plain, err := tree.AddStream(t.Context(), store, manifest.Format{}, "", bytes.NewReader(want), tree.AddOptions{})
	if err != nil || e.CID != plain.CID {
		t.Fatalf("with holes %v, as bytes %v, %v", e.CID, plain.CID, err)
	}
	out := filepath.Join(dir, "out")
	get(t, store, e.CID, out, tree.GetOptions{})
	got, err := os.ReadFile(out)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("bytes differ, %v", err)
	}
	info, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > size/4 {
		t.Errorf("the copy takes %d bytes of disk, it holds 300000", used)
	}
}

func TestSpecialFilesAreRefusedByName(t *testing.T) {
	dir := t.TempDir()
	mkdir(t, dir, "sub")
	if err := syscall.Mkfifo(filepath.Join(dir, "sub/pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, try := range map[string]func() error{
		"add a tree": func() error {
			_, err := tree.Add(t.Context(), new(mem.Store), manifest.Format{}, dir, tree.AddOptions{Recursive: true})
			return err
		},
		"add it alone": func() error {
			_, err := tree.Add(t.Context(), new(mem.Store), manifest.Format{}, filepath.Join(dir, "sub/pipe"), tree.AddOptions{})
			return err
		},
		"measure a tree": func() error {
			_, err := tree.Measure(t.Context(), dir, tree.AddOptions{Recursive: true})
			return err
		},
	} {
		if err := try(); !errors.Is(err, tree.ErrSpecial) || !strings.Contains(err.Error(), "sub/pipe") || !strings.Contains(err.Error(), "named pipe") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestDirectoriesNeedRecursive(t *testing.T) {
	_, err := tree.Add(t.Context(), new(mem.Store), manifest.Format{}, t.TempDir(), tree.AddOptions{})
	if !errors.Is(err, tree.ErrIsDir) {
		t.Error(err)
	}
}

func TestSkippedEntriesAreLeftOut(t *testing.T) {
	path := sample(t)
	skip := tree.AddOptions{Recursive: true, Skip: func(i fs.FileInfo) bool { return i.Name() == "sub" || i.Name() == "zeros" }}
	store := new(mem.Store)
	e, err := tree.Add(t.Context(), store, manifest.Format{}, path, skip)
	if err != nil {
		t.Fatal(err)
	}
	size, err := tree.Measure(t.Context(), path, skip)
	if err != nil || size != e.Size || size != int64(len("hello")+len("odd name")) {
		t.Errorf("measured %d, stored %d, %v", size, e.Size, err)
	}
	for _, name := range []string{"sub", "zeros"} {
		if _, err := manifest.Lookup(t.Context(), store, e.CID, name); !errors.Is(err, manifest.ErrNoEntry) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnErrorOfTheCallerEndsAdd(t *testing.T) {
	stop := errors.New("stop")
	_, err := tree.Add(t.Context(), new(mem.Store), manifest.Format{}, sample(t), tree.AddOptions{
		Recursive: true, Below: func(tree.Entry) error { return stop },
	})
	if !errors.Is(err, stop) {
		t.Error(err)
	}
}

// failing fails the n-th Put and all later ones.
type failing struct {
	mem.Store
	left atomic.Int64
}

var errFull = errors.New("full")

func (s *failing) Put(ctx context.Context, blocks ...cas.Block) error {
	if s.left.Add(-1) < 0 {
		return errFull
	}
	return s.Store.Put(ctx, blocks...)
}

func TestAFailingStoreEndsAddWhereverItFails(t *testing.T) {
	path := sample(t)
	for n := int64(0); ; n++ {
		store := new(failing)
		store.left.Store(n)
		_, err := tree.Add(t.Context(), store, manifest.Format{}, path, tree.AddOptions{Recursive: true})
		if err == nil {
			if n < 10 {
				t.Errorf("succeeded with %d puts", n)
			}
			return
		}
		if !errors.Is(err, errFull) || !strings.HasPrefix(err.Error(), "sample") {
			t.Fatalf("with %d puts: %v", n, err)
		}
	}
}

func TestNothingIsOverwrittenWithoutForce(t *testing.T) {
	store := new(mem.Store)
	file := add(t, store, filepath.Join(sample(t), "sub/a.txt"))
	dir := add(t, store, sample(t))
	there := t.TempDir()
	write(t, there, "file", []byte("old"), 0o644)
	mkdir(t, there, "dir/sub", "emptydir")
	if err := os.Symlink("nowhere", filepath.Join(there, "link")); err != nil {
		t.Fatal(err)
	}
	before := describe(t, there)
	for _, c := range []cas.CID{file.CID, dir.CID} {
		for _, name := range entries(t, there) {
			err := tree.Get(t.Context(), store, c, filepath.Join(there, name), tree.GetOptions{})
			if !errors.Is(err, fs.ErrExist) {
				t.Errorf("get to %s: %v", name, err)
			}
		}
	}
	if after := describe(t, there); after != before {
		t.Errorf("after\n%s\nbefore\n%s", after, before)
	}
}

func TestForceReplacesWhateverIsThere(t *testing.T) {
	path := sample(t)
	store := new(mem.Store)
	for what, c := range map[string]cas.CID{
		"file": add(t, store, filepath.Join(path, "sub/a.txt")).CID,
		"dir":  add(t, store, path).CID,
		"link": lookup(t, store, add(t, store, path).CID, "dangling"),
	} {
		there := t.TempDir()
		write(t, there, "file", []byte("old"), 0o644)
		mkdir(t, there, "dir/sub/closed", "emptydir", "target")
		if err := os.Chmod(filepath.Join(there, "dir/sub/closed"), 0); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("target", filepath.Join(there, "link")); err != nil {
			t.Fatal(err)
		}
		names := entries(t, there)
		fresh := filepath.Join(t.TempDir(), "x")
		get(t, store, c, fresh, tree.GetOptions{Force: true})
		want := describe(t, fresh)
		for _, name := range names {
			if name == "target" {
				continue
			}
			get(t, store, c, filepath.Join(there, name), tree.GetOptions{Force: true})
			got := describe(t, filepath.Join(there, name))
			if what == "file" { // it has no time of its own
				got, want = strings.Fields(got)[3], strings.Fields(want)[len(strings.Fields(want))-1]
			}
			if got != want {
				t.Errorf("%s over %s: got\n%s\nwant\n%s", what, name, got, want)
			}
		}
		if after := entries(t, there); fmt.Sprint(after) != fmt.Sprint(names) {
			t.Errorf("%s: left behind %q, before %q", what, after, names)
		}
		if inside := entries(t, filepath.Join(there, "target")); len(inside) > 0 {
			t.Errorf("%s: the link's target now holds %q", what, inside)
		}
	}
}

func lookup(t *testing.T, store cas.Getter, dir cas.CID, name string) cas.CID {
	t.Helper()
	e, err := manifest.Lookup(t.Context(), store, dir, name)
	if err != nil {
		t.Fatal(err)
	}
	return e.CID
}

// lacking does not have one of its blocks.
type lacking struct {
	*mem.Store
	cid cas.CID
}

func (s lacking) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	if c == s.cid {
		return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Err: cas.ErrCorrupt}
	}
	return s.Store.Get(ctx, c, buf)
}

func TestFailureLeavesNothingBehind(t *testing.T) {
	store := new(mem.Store)
	path := sample(t)
	root := add(t, store, path)
	for seen, todo := map[cas.CID]bool{}, []cas.CID{root.CID}; len(todo) > 0; todo = todo[1:] {
		if seen[todo[0]] {
			continue
		}
		seen[todo[0]] = true
		links, err := manifest.Links(t.Context(), store, todo[0])
		if err != nil {
			t.Fatal(err)
		}
		todo = append(todo, links...)
		dir := t.TempDir()
		write(t, dir, "old", []byte("old"), 0o644)
		for _, out := range []string{"old", "new"} {
			err = tree.Get(t.Context(), lacking{store, todo[0]}, root.CID, filepath.Join(dir, out), tree.GetOptions{Force: true})
			var block *cas.BlockError
			if !errors.As(err, &block) || block.CID != todo[0] {
				t.Errorf("without block %v: %v", todo[0], err)
			}
		}
		if names := entries(t, dir); len(names) != 1 {
			t.Errorf("without block %v: left behind %q", todo[0], names)
		}
		if data, err := os.ReadFile(filepath.Join(dir, "old")); string(data) != "old" {
			t.Errorf("without block %v: what was there is %q, %v", todo[0], data, err)
		}
	}
}

func TestCancelledGetLeavesNothingBehind(t *testing.T) {
	store := new(mem.Store)
	root := add(t, store, sample(t))
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	err := tree.Get(ctx, store, root.CID, filepath.Join(dir, "out"), tree.GetOptions{Progress: func(int64) { cancel() }})
	if !errors.Is(err, context.Canceled) || len(entries(t, dir)) > 0 {
		t.Errorf("%v, left behind %q", err, entries(t, dir))
	}
}

func TestSetIDBitsAreNotRestored(t *testing.T) {
	store := new(mem.Store)
	w := manifest.NewWriter(store, manifest.Format{})
	if err := w.Write(t.Context(), []byte("#!/bin/sh\n")); err != nil {
		t.Fatal(err)
	}
	root, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if root, err = manifest.WithMeta(t.Context(), store, root, manifest.Meta{Mode: 0o7755, HasMode: true}); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	get(t, store, root.CID, out, tree.GetOptions{})
	info, err := os.Stat(out)
	if err != nil || info.Mode() != 0o755|fs.ModeSticky {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestOutMustNameAnEntry(t *testing.T) {
	store := new(mem.Store)
	root := add(t, store, sample(t))
	dir := t.TempDir()
	for _, out := range []string{"", ".", "..", "/", dir + "/..", dir + "/x/../.."} {
		if err := tree.Get(t.Context(), store, root.CID, out, tree.GetOptions{Force: true}); err == nil {
			t.Errorf("get to %q succeeded", out)
		}
	}
	if err := tree.Get(t.Context(), store, root.CID, filepath.Join(dir, "no/such"), tree.GetOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a parent: %v", err)
	}
}

// TestRandomTrees adds trees made by a seed, gets them and compares.
func TestRandomTrees(t *testing.T) {
	for range 8 {
		seed := rand.Uint64()
		t.Logf("seed %#x", seed)
		r := rand.New(rand.NewPCG(seed, 0))
		dir := filepath.Join(t.TempDir(), "r")
		mkdir(t, dir, "")
		dirs := []string{"."}
		for i := range 60 {
			name := filepath.Join(dirs[r.IntN(len(dirs))], fmt.Sprintf("%d%s", i, strings.Repeat("n", r.IntN(200))))
			switch r.IntN(4) {
			case 0:
				mkdir(t, dir, name)
				dirs = append(dirs, name)
			case 1:
				if err := os.Symlink(strings.Repeat("t", 1+r.IntN(300)), filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
			default:
				write(t, dir, name, castest.Bytes(r.Uint64(), 1<<r.IntN(20)), fs.FileMode(0o400+r.IntN(0o400)))
			}
		}
		store := new(mem.Store)
		root := add(t, store, dir)
		out := filepath.Join(t.TempDir(), "out")
		get(t, store, root.CID, out, tree.GetOptions{})
		if got, want := describe(t, out), describe(t, dir); got != want {
			t.Fatalf("seed %#x: got\n%s\nwant\n%s", seed, got, want)
		}
	}
}
