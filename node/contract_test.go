package node_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/node"
	"github.com/cairnfs/cairn/node/control"
)

// openNode opens a new store until t ends.
func openNode(t testing.TB) (*node.Node, string) {
	t.Helper()
	dir := t.TempDir()
	n, err := node.Open(context.Background(), node.Options{Dir: dir, Create: true, Reserve: -1, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n, dir
}

// openClient opens a new store and connects to it as another process would.
func openClient(t testing.TB) (*control.Client, string) {
	t.Helper()
	n, dir := openNode(t)
	l, err := control.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(n, slog.New(slog.DiscardHandler))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c, err := control.Dial(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(c.Close(), s.Close(context.Background()), <-served); err != nil {
			t.Error(err)
		}
	})
	return c, dir
}

// TestNodes is the contract of control.Node, whichever side of the socket it is.
func TestNodes(t *testing.T) {
	for name, open := range map[string]func(testing.TB) (control.Node, string){
		"own":    func(t testing.TB) (control.Node, string) { return openNode(t) },
		"client": func(t testing.TB) (control.Node, string) { return openClient(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Run("is a store", func(t *testing.T) {
				castest.Run(t, func(t testing.TB) cas.Store {
					n, _ := open(t)
					return n
				})
			})
			for what, test := range map[string]func(*testing.T, control.Node, string){
				"pins are kept until they are removed, all or none":  testPins,
				"status counts blocks, pins and what they stand for": testStatus,
				"check names the damaged block":                      testCheckDamage,
				"check names the missing block":                      testCheckMissing,
			} {
				t.Run(what, func(t *testing.T) {
					n, dir := open(t)
					test(t, n, dir)
				})
			}
		})
	}
}

func testPins(t *testing.T, n control.Node, _ string) {
	if err := n.Pin(t.Context(), control.Pin{CID: cas.Sum(cas.Raw, []byte("nowhere"))}); err == nil {
		t.Error("what is not stored was pinned")
	}
	a, b, c := store(t, n, 1, 10).CID, store(t, n, 2, 500_000).CID, store(t, n, 3, 10).CID
	pin := func(pins ...control.Pin) {
		t.Helper()
		if err := n.Pin(t.Context(), pins...); err != nil {
			t.Fatal(err)
		}
	}
	want := func(want map[control.Pin]bool) {
		t.Helper()
		count := 0
		err := n.Pins(t.Context(), func(p control.Pin) error {
			if count++; !want[p] {
				t.Errorf("there is a pin %v", p)
			}
			return nil
		})
		if err != nil || count != len(want) {
			t.Errorf("%d pins, %v, want %v", count, err, want)
		}
	}
	want(nil)
	pin()
	pin(control.Pin{CID: a, Name: "first"}, control.Pin{CID: b})
	pin(control.Pin{CID: a, Name: "again"})
	want(map[control.Pin]bool{{CID: a, Name: "again"}: true, {CID: b}: true})
	if err := n.Pin(t.Context(), control.Pin{CID: c}, control.Pin{CID: c, Name: strings.Repeat("x", control.MaxPinName+1)}); err == nil {
		t.Error("a pin with a name too long was accepted")
	}
	if err := n.Unpin(t.Context(), a, c); !errors.Is(err, control.ErrNotPinned) {
		t.Errorf("unpin of what is not pinned: %v", err)
	}
	want(map[control.Pin]bool{{CID: a, Name: "again"}: true, {CID: b}: true})
	if err := n.Unpin(t.Context(), a, b); err != nil {
		t.Error(err)
	}
	want(nil)
}

// store stores size bytes as a file.
func store(t *testing.T, n control.Node, seed uint64, size int) manifest.Root {
	t.Helper()
	w := manifest.NewWriter(n, n.Format())
	if err := w.Write(t.Context(), castest.Bytes(seed, size)); err != nil {
		t.Fatal(err)
	}
	root, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func status(t *testing.T, n control.Node) control.Status {
	t.Helper()
	s, err := n.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testStatus(t *testing.T, n control.Node, dir string) {
	s := status(t, n)
	if s.DedupRatio != 1 || s.Store.Blocks != 0 || s.Dir != dir || s.PID != os.Getpid() || len(s.ID) != 32 {
		t.Errorf("empty store: %+v", s)
	}
	const size = 1 << 20
	root := store(t, n, 1, size)
	store(t, n, 1, size)
	if err := n.Pin(t.Context(), control.Pin{CID: root.CID, Name: "x"}); err != nil {
		t.Fatal(err)
	}
	s = status(t, n)
	if s.Store.Blocks < 4 || s.Store.RawBytes < size || s.Store.RawBytes > size+size/10 || s.Store.StoredBytes == 0 {
		t.Errorf("store: %+v", s.Store)
	}
	if s.Pins != (control.PinStatus{Count: 1, LogicalBytes: size}) {
		t.Errorf("pins: %+v", s.Pins)
	}
	if want := size / float64(s.Store.RawBytes); s.DedupRatio != want {
		t.Errorf("dedup ratio %v, want %v", s.DedupRatio, want)
	}
}

// checked returns what a check finds.
func checked(t *testing.T, n control.Node) map[cas.CID]error {
	t.Helper()
	found := make(map[cas.CID]error)
	err := n.Check(t.Context(), func(c cas.CID, err error) error { found[c] = err; return nil })
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func testCheckDamage(t *testing.T, n control.Node, dir string) {
	block := castest.Block(t, 5, 40_000)
	if err := n.Put(t.Context(), block); err != nil {
		t.Fatal(err)
	}
	store(t, n, 1, 300_000)
	if err := n.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found := checked(t, n); len(found) > 0 {
		t.Errorf("before: %v", found)
	}
	segments, err := filepath.Glob(filepath.Join(dir, "segments", "*.segment"))
	if err != nil || len(segments) != 1 {
		t.Fatal(segments, err)
	}
	data, err := os.ReadFile(segments[0])
	if err != nil {
		t.Fatal(err)
	}
	at := strings.Index(string(data), string(block.Data()[1000:1100]))
	if at < 0 {
		t.Fatal("the block's bytes are not in the segment")
	}
	data[at] ^= 1
	f, err := os.OpenFile(segments[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data[at:at+1], int64(at)); err != nil {
		t.Fatal(err)
	}
	found := checked(t, n)
	if err := found[block.CID()]; len(found) != 1 || !errors.Is(err, cas.ErrCorrupt) {
		t.Errorf("found %v, want %v", found, block.CID())
	}
	if _, err := n.Get(t.Context(), block.CID(), nil); !errors.Is(err, cas.ErrCorrupt) {
		t.Errorf("get: %v", err)
	}
}

func testCheckMissing(t *testing.T, n control.Node, _ string) {
	have := store(t, n, 1, 300_000)
	missing := cas.Sum(cas.Raw, []byte("not here"))
	dir, err := manifest.Directory(t.Context(), n, []manifest.Entry{{Name: "a", CID: have.CID}, {Name: "b", CID: missing}}, manifest.Meta{})
	if err != nil {
		t.Fatal(err)
	}
	gone := cas.Sum(cas.DagPB, []byte("nor this"))
	if err := n.Pin(t.Context(), control.Pin{CID: dir.CID}, control.Pin{CID: gone}); err != nil {
		t.Fatal(err)
	}
	found := checked(t, n)
	if len(found) != 2 || !errors.Is(found[missing], cas.ErrNotFound) || !errors.Is(found[gone], cas.ErrNotFound) {
		t.Errorf("found %v", found)
	}
}
