package control_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/chunker"
	"github.com/cairnfs/cairn/node/control"
)

// fakeNode is a node in memory. Its errors can be chosen.
type fakeNode struct {
	mem.Store
	fakeCluster
	format manifest.Format

	mu      sync.Mutex
	pins    []control.Pin
	damaged []cas.CID
	get     func(cas.CID) error
	puts    int // bytes put
	uploads []*fakeUpload
}

func newFake(t testing.TB) *fakeNode {
	p := chunker.DefaultParams()
	p.Max *= 2
	c, err := chunker.New(p)
	if err != nil {
		t.Fatal(err)
	}
	return &fakeNode{format: manifest.Format{Chunker: c}}
}

func (n *fakeNode) Format() manifest.Format { return n.format }
func (n *fakeNode) Close() error            { return nil }

func (n *fakeNode) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	if n.get != nil {
		if err := n.get(c); err != nil {
			return cas.Block{}, err
		}
	}
	return n.Store.Get(ctx, c, buf)
}

func (n *fakeNode) Put(ctx context.Context, blocks ...cas.Block) error {
	n.mu.Lock()
	for _, b := range blocks {
		n.puts += len(b.Data())
	}
	n.mu.Unlock()
	return n.Store.Put(ctx, blocks...)
}

func (n *fakeNode) Status(context.Context) (control.Status, error) {
	return control.Status{Dir: "/there", PID: 17, Store: control.StoreStatus{Blocks: int64(n.Len())}, Mounts: []string{"/mnt"}}, nil
}

func (n *fakeNode) Check(_ context.Context, bad func(cas.CID, error) error) error {
	for _, c := range n.damaged {
		if err := bad(c, &cas.BlockError{Op: "get", CID: c, Where: "segment 3", Err: cas.ErrCorrupt}); err != nil {
			return err
		}
	}
	return nil
}

func (n *fakeNode) Pins(_ context.Context, fn func(control.Pin) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.pins {
		if err := fn(p); err != nil {
			return err
		}
	}
	return nil
}

func (n *fakeNode) Pin(_ context.Context, pins ...control.Pin) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pins = append(n.pins, pins...)
	return nil
}

func (n *fakeNode) Unpin(_ context.Context, cids ...cas.CID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range cids {
		i := slices.IndexFunc(n.pins, func(p control.Pin) bool { return p.CID == c })
		if i < 0 {
			return fmt.Errorf("%v: %w", c, control.ErrNotPinned)
		}
		n.pins = slices.Delete(n.pins, i, i+1)
	}
	return nil
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// serve serves n in a new directory until t ends and returns the directory.
func serve(t testing.TB, n control.Node) string {
	t.Helper()
	dir := t.TempDir()
	serveIn(t, n, dir)
	return dir
}

func serveIn(t testing.TB, n control.Node, dir string) {
	t.Helper()
	l, err := control.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(n, quiet())
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Close(context.Background()), <-served); err != nil {
			t.Error(err)
		}
	})
}

func dial(t testing.TB, dir string) *control.Client {
	t.Helper()
	c, err := control.Dial(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// corrupting is a client whose node's blocks can be damaged.
type corrupting struct {
	*control.Client
	node *fakeNode
}

func (c corrupting) Corrupt(_ testing.TB, cid cas.CID) {
	c.node.get = func(asked cas.CID) error {
		if asked == cid {
			return &cas.BlockError{Op: "get", CID: cid, Err: cas.ErrCorrupt}
		}
		return nil
	}
}

func TestClientIsAStore(t *testing.T) {
	castest.Run(t, func(t testing.TB) cas.Store {
		n := newFake(t)
		return corrupting{dial(t, serve(t, n)), n}
	})
}

func TestClientSaysWhatTheNodeSays(t *testing.T) {
	n := newFake(t)
	c := dial(t, serve(t, n))
	if got, want := c.Format().Chunker.Params(), n.format.Chunker.Params(); got != want {
		t.Errorf("format %v, want %v", got, want)
	}
	got, err := c.Status(t.Context())
	want, _ := n.Status(t.Context())
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("status %+v, %v, want %+v", got, err, want)
	}
	n.damaged = []cas.CID{cas.Sum(cas.Raw, []byte("a")), cas.Sum(cas.DagPB, []byte("b"))}
	var found []cas.CID
	err = c.Check(t.Context(), func(cid cas.CID, err error) error {
		var block *cas.BlockError
		if !errors.As(err, &block) || block.Where != "segment 3" || !errors.Is(err, cas.ErrCorrupt) {
			t.Errorf("check says %v", err)
		}
		found = append(found, cid)
		return nil
	})
	if err != nil || !slices.Equal(found, n.damaged) {
		t.Errorf("check found %v, %v, want %v", found, err, n.damaged)
	}
	stop := errors.New("stop")
	if err := c.Check(t.Context(), func(cas.CID, error) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("check ended by its caller: %v", err)
	}
}

func TestPinsOfAnyNumberTravel(t *testing.T) {
	n := newFake(t)
	c := dial(t, serve(t, n))
	var pins []control.Pin
	var cids []cas.CID
	for i := range 1234 {
		cid := cas.Sum(cas.Raw, fmt.Append(nil, i))
		pins = append(pins, control.Pin{CID: cid, Name: strings.Repeat("\x01", control.MaxPinName)})
		cids = append(cids, cid)
	}
	if err := c.Pin(t.Context(), pins...); err != nil {
		t.Fatal(err)
	}
	var got []control.Pin
	err := c.Pins(t.Context(), func(p control.Pin) error { got = append(got, p); return nil })
	if err != nil || !slices.Equal(got, pins) {
		t.Fatalf("%d pins, %v, want %d", len(got), err, len(pins))
	}
	if err := c.Unpin(t.Context(), cids...); err != nil {
		t.Fatal(err)
	}
	if err := c.Unpin(t.Context(), cids[0]); !errors.Is(err, control.ErrNotPinned) || !strings.Contains(err.Error(), cids[0].String()) {
		t.Errorf("unpin of what is not pinned: %v", err)
	}
}

func TestErrorsKeepTheirIdentity(t *testing.T) {
	n := newFake(t)
	c := dial(t, serve(t, n))
	cid := cas.Sum(cas.Raw, []byte("x"))
	for _, kind := range []error{cas.ErrNotFound, cas.ErrCorrupt, cas.ErrTooLarge, cas.ErrNoSpace, cas.ErrBadCID, control.ErrNotPinned} {
		n.get = func(cas.CID) error { return &cas.BlockError{Op: "get", CID: cid, Where: "there", Err: kind} }
		_, err := c.Get(t.Context(), cid, nil)
		var block *cas.BlockError
		if !errors.Is(err, kind) || !errors.As(err, &block) || *block != (cas.BlockError{Op: "get", CID: cid, Where: "there", Err: kind}) {
			t.Errorf("%v arrives as %#v", kind, err)
		}
		n.get = func(cas.CID) error { return fmt.Errorf("reading: %w", kind) }
		if _, err := c.Get(t.Context(), cid, nil); !errors.Is(err, kind) || err.Error() != "reading: "+kind.Error() {
			t.Errorf("wrapped %v arrives as %v", kind, err)
		}
	}
	n.get = func(cas.CID) error { return errors.New("disk on fire") }
	if _, err := c.Get(t.Context(), cid, nil); err == nil || err.Error() != "disk on fire" {
		t.Errorf("an error of no kind arrives as %v", err)
	}
}

func TestBlocksThatTheNodeHasAreNotSent(t *testing.T) {
	n := newFake(t)
	c := dial(t, serve(t, n))
	old, fresh := castest.Block(t, 1, 5000), castest.Block(t, 2, 700)
	if err := c.Put(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	n.puts = 0
	if err := c.Put(t.Context(), old, fresh, old); err != nil {
		t.Fatal(err)
	}
	if n.puts != 700 {
		t.Errorf("%d bytes sent, want the 700 new ones", n.puts)
	}
}

func TestPutsOfAnySizeAreSplit(t *testing.T) {
	n := newFake(t)
	c := dial(t, serve(t, n))
	var blocks []cas.Block
	for i := range uint64(14) {
		blocks = append(blocks, castest.Block(t, i, cas.MaxBlockSize))
	}
	if err := c.Put(t.Context(), blocks...); err != nil {
		t.Fatal(err)
	}
	if n.Len() != len(blocks) {
		t.Errorf("%d blocks arrived of %d", n.Len(), len(blocks))
	}
}

func TestWithoutANodeDialSaysUnavailable(t *testing.T) {
	dir := t.TempDir()
	if _, err := control.Dial(t.Context(), dir); !errors.Is(err, control.ErrUnavailable) {
		t.Errorf("no socket: %v", err)
	}
	l, err := control.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	leaveStale(t, l, dir)
	if _, err := control.Dial(t.Context(), dir); !errors.Is(err, control.ErrUnavailable) {
		t.Errorf("socket of a dead process: %v", err)
	}
	serveIn(t, newFake(t), dir)
	dial(t, dir)
}

// leaveStale leaves a socket in dir as a killed process does.
func leaveStale(t *testing.T, l net.Listener, dir string) {
	path := filepath.Join(dir, control.SocketName)
	if err := os.Rename(path, path+".kept"); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".kept", path); err != nil {
		t.Fatal(err)
	}
}

func TestSocketIsForItsOwnerAndGoesWithTheServer(t *testing.T) {
	dir := t.TempDir()
	l, err := control.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, control.SocketName)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v, want mode 0600", info, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after Close: %v", err)
	}
}

func TestNothingButASocketIsReplaced(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, control.SocketName)
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := control.Listen(dir); err == nil {
		l.Close()
		t.Error("a file was replaced by the socket")
	}
	if data, err := os.ReadFile(path); string(data) != "mine" {
		t.Errorf("file is now %q, %v", data, err)
	}
}

func TestLongDirectoriesWork(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 40))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	n := newFake(t)
	serveIn(t, n, dir)
	if err := dial(t, dir).Put(t.Context(), castest.Block(t, 1, 100)); err != nil || n.Len() != 1 {
		t.Errorf("put through a long path: %v", err)
	}
}

// TestBadRequestsAreRefused sends what no client of ours sends.
func TestBadRequestsAreRefused(t *testing.T) {
	n := newFake(t)
	dir := serve(t, n)
	block := castest.Block(t, 1, 100)
	frame := append(block.CID().Bytes(), 0, 0, 0, 100)
	for _, c := range []struct {
		what, method, path string
		body               string
		chunked            bool
	}{
		{"an unknown call", "GET", "/v1/nothing", "", false},
		{"another method", "GET", "/v1/sync", "", false},
		{"a put that ends in a header", "POST", "/v1/blocks/put", "short", false},
		{"a put that ends in a block", "POST", "/v1/blocks/put", string(frame) + "short", false},
		{"a put of other bytes", "POST", "/v1/blocks/put", string(frame) + strings.Repeat("x", 100), false},
		{"a put of more than 4 MiB", "POST", "/v1/blocks/put", strings.Repeat("x", 4<<20+1), false},
		{"a put of unknown length", "POST", "/v1/blocks/put", string(frame) + string(block.Data()), true},
		{"a get of half a CID", "POST", "/v1/blocks/get", "half", false},
		{"a get of many CIDs", "POST", "/v1/blocks/get", strings.Repeat(string(block.CID().Bytes()), 65), false},
		{"a get of another hash", "POST", "/v1/blocks/get", "\x01\x55\x12\x20" + strings.Repeat("x", 32), false},
		{"pins that are no JSON", "POST", "/v1/pins", "[", false},
		{"pins of no CID", "POST", "/v1/pins", `[{"cid":"QmPZ9gcCEpqKTo6aq61g2nXGUhM4iCL3ewB6LDXZCtioEB"}]`, false},
	} {
		status, body := send(t, dir, c.method, c.path, c.body, c.chunked)
		if status < 400 || !strings.Contains(body, `"message":`) {
			t.Errorf("%s: status %d, %q", c.what, status, body)
		}
	}
	if n.Len() != 0 {
		t.Errorf("%d blocks were stored", n.Len())
	}
}

func send(t *testing.T, dir, method, path, body string, chunked bool) (status int, answer string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			return net.Dial("unix", filepath.Join(dir, control.SocketName))
		},
	}}
	var r io.Reader = strings.NewReader(body)
	if chunked {
		r = io.MultiReader(r)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://node"+path, r)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if errors.Is(err, syscall.EPIPE) && len(body) > 1<<20 {
		// The server has answered and closed before it had read so much.
		return http.StatusRequestEntityTooLarge, `{"message":"not read"}`
	}
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(data)
}

// TestGetsThatTravelTogetherFailAlone has Gets of every outcome under way at once,
// some of them cancelled at a random moment.
func TestGetsThatTravelTogetherFailAlone(t *testing.T) {
	n := newFake(t)
	c := dial(t, serve(t, n))
	var blocks []cas.Block
	for i := range uint64(50) {
		blocks = append(blocks, castest.Block(t, i, 1+int(i)*1000))
	}
	if err := c.Put(t.Context(), blocks...); err != nil {
		t.Fatal(err)
	}
	broken := blocks[7].CID()
	n.get = func(c cas.CID) error {
		if c == broken {
			return &cas.BlockError{Op: "get", CID: c, Err: cas.ErrCorrupt}
		}
		return nil
	}
	absent := castest.Block(t, 1000, 10).CID()
	seed := rand.Uint64()
	t.Logf("seed %#x", seed)
	var all sync.WaitGroup
	for id := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, id))
		all.Go(func() {
			buf := make([]byte, cas.MaxBlockSize)
			for range 50 {
				ctx, cancel := context.WithCancel(t.Context())
				want := blocks[r.IntN(len(blocks))].CID()
				impatient := r.IntN(5) == 0
				switch {
				case impatient:
					go cancel()
				case r.IntN(5) == 0:
					want = absent
				}
				b, err := c.Get(ctx, want, buf)
				switch {
				case impatient && errors.Is(err, context.Canceled):
				case want == absent && errors.Is(err, cas.ErrNotFound):
				case want == broken && errors.Is(err, cas.ErrCorrupt):
				case err == nil && b.CID() == want && cas.Sum(cas.Raw, b.Data()) == want:
				default:
					t.Errorf("seed %#x: get %v: %v, %v", seed, want, b.CID(), err)
				}
				cancel()
			}
		})
	}
	all.Wait()
}

// TestCloseEndsWhatDoesNotEnd has a request under way that waits for ever.
func TestCloseEndsWhatDoesNotEnd(t *testing.T) {
	dir := t.TempDir()
	l, err := control.Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := &waitingNode{fakeNode: newFake(t), called: make(chan struct{})}
	s := control.NewServer(n, quiet())
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	c := dial(t, dir)
	result := make(chan error, 1)
	go func() { result <- c.Sync(t.Context()) }()
	<-n.called
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Close: %v", err)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if err := <-result; !errors.Is(err, control.ErrUnavailable) {
		t.Errorf("the request under way: %v", err)
	}
}

type waitingNode struct {
	*fakeNode
	called chan struct{}
}

func (n *waitingNode) Sync(ctx context.Context) error {
	close(n.called)
	<-ctx.Done()
	return ctx.Err()
}
