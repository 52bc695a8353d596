package segment

import (
	"context"
	"io"
	"log/slog"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/index"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// node is a store with its index, as a node has them.
type node struct {
	*Store
	ix *index.DB
}

// open opens the store and the index that lie in a file system under dir.
func open2(t testing.TB, fs vfs.FS, dir string, o Options) *node {
	t.Helper()
	n, err := tryOpen(fs, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func tryOpen(fs vfs.FS, dir string, o Options) (*node, error) {
	if o.Logger == nil {
		o.Logger = quiet()
	}
	random := rand.NewChaCha8([32]byte{1})
	ix, err := index.Open(index.Options{FS: fs, Dir: fs.PathJoin(dir, "index"), Logger: o.Logger, Random: random,
		CacheBytes: 1 << 20, MemTableBytes: 1 << 20})
	if err != nil {
		return nil, err
	}
	o.FS, o.Dir, o.Index, o.Random = fs, fs.PathJoin(dir, "blocks"), ix, random
	if o.Reserve == 0 {
		o.Reserve = -1
	}
	s, err := Open(o)
	if err != nil {
		_ = ix.Close()
		return nil, err
	}
	return &node{s, ix}, nil
}

func (n *node) shut(t testing.TB) {
	t.Helper()
	if err := n.Store.Close(); err != nil {
		t.Error(err)
	}
	if err := n.ix.Close(); err != nil {
		t.Error(err)
	}
}

// corruptible can damage blocks on disk.
type corruptible struct{ *node }

func (n corruptible) Corrupt(t testing.TB, c cas.CID) {
	t.Helper()
	hash := c.Hash()
	at, ok, _, err := n.locate(&hash)
	if !ok || err != nil {
		t.Fatalf("locate %v: %v, %v", c, ok, err)
	}
	f, err := n.o.FS.OpenReadWrite(n.files.path(at.Segment), vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, at.Stored)
	if _, err := f.ReadAt(b, int64(at.Offset)+headerSize); err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 4
	if _, err := f.WriteAt(b, int64(at.Offset)+headerSize); err != nil {
		t.Fatal(err)
	}
}

func TestStoreKeepsTheContract(t *testing.T) {
	for name, fs := range map[string]vfs.FS{"on disk": vfs.Default, "in memory": nil} {
		t.Run(name, func(t *testing.T) {
			castest.Run(t, func(t testing.TB) cas.Store {
				dir, fs := "", fs
				if fs == nil {
					fs = vfs.NewMem()
				} else {
					dir = t.TempDir()
				}
				n := open2(t, fs, dir, Options{})
				t.Cleanup(func() { n.shut(t) })
				return corruptible{n}
			})
		})
	}
}

var _ = context.Background
