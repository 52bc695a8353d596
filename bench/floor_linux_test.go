package bench

import (
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// countingFS counts the bytes that the kernel asks for.
type countingFS struct {
	*floorFS
	read atomic.Int64
}

func (fs *countingFS) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	fs.read.Add(int64(len(buf)))
	return fs.floorFS.Read(cancel, in, buf)
}

func TestColdReadsReachTheServerAndWarmOnesDoNot(t *testing.T) {
	dir := t.TempDir()
	fs := &countingFS{floorFS: newFloor()}
	unmount, err := serveFloor(dir, fs)
	if err != nil {
		t.Fatal(err)
	}
	defer unmount()
	c, err := startClient(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.end()

	const pages = 16
	path := filepath.Join(dir, dataName)
	for _, step := range []struct {
		req  request
		read int64 // bytes that reach the server, at least
	}{
		{request{Op: opWrite, Path: path, Size: testSize}, 0},
		{request{Op: opRead, Path: path, Size: testSize}, testSize}, // writing does not fill the cache
		{request{Op: opRead, Path: path, Size: testSize}, 0},
		{request{Op: opDrop, Path: path}, 0},
		{request{Op: opRead, Path: path, Size: testSize}, testSize},
		{request{Op: opRead, Path: path, Size: testSize}, 0},
		{request{Op: opDrop, Path: path}, 0},
		{request{Op: opReadRandom, Path: path, Size: testSize, Count: pages}, pages * 4096},
	} {
		fs.read.Store(0)
		if _, err := c.do(step.req); err != nil {
			t.Fatal(err)
		}
		got := fs.read.Load()
		if got < step.read || step.read == 0 && got > 0 || got > 2*step.read {
			t.Errorf("%s: the server is asked for %d bytes, want %d", step.req.Op, got, step.read)
		}
	}
}

func TestTheFloorListsWhatWasMade(t *testing.T) {
	dir := t.TempDir()
	unmount, err := newFloor().mount(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unmount()
	c, err := startClient(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.end()

	const files = 1000 // which take several requests to list
	for _, req := range []request{
		{Op: opCreate, Path: dir, Count: files},
		{Op: opFind, Path: dir, Count: files},
		{Op: opReadTree, Path: dir, Count: files},
		{Op: opStat, Path: dir, Count: files, Files: files},
	} {
		if _, err := c.do(req); err != nil {
			t.Error(err)
		}
	}
}
