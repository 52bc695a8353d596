package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/node"
)

// rig is what measurements share. Parts are set up when the first measurement
// asks for them, outside of what is measured, and taken down by close in the
// reverse order.
type rig struct {
	o       Options
	dir     string // all files are in it
	closers []func() error

	seed uint64 // of the content made last

	nodes   cluster
	child   *client
	node    *node.Node
	places  map[string]*place
	added   cas.CID // of the file that was added last
	written bool    // whether there is a file in the mount
}

// spaceFactor times Options.Size is the space that a run takes at most.
const spaceFactor = 18

func newRig(o Options) (*rig, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(o.Dir, &fs); err != nil {
		return nil, err
	}
	if free := int64(fs.Bavail) * int64(fs.Bsize); free/spaceFactor < o.Size {
		return nil, fmt.Errorf("%w: %d times the size needed, %d MiB free; choose a smaller size", unix.ENOSPC, spaceFactor, free>>20)
	}
	dir, err := os.MkdirTemp(o.Dir, "bench-*")
	if err != nil {
		return nil, err
	}
	r := &rig{o: o, dir: dir, places: make(map[string]*place)}
	r.atEnd(func() error { return os.RemoveAll(dir) })
	return r, nil
}

func (r *rig) atEnd(f func() error) { r.closers = append(r.closers, f) }

func (r *rig) close() error {
	var errs []error
	for _, f := range slices.Backward(r.closers) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

// count is how many operations a measurement makes that counts them.
func (r *rig) count() int64 { return min(r.o.Size>>16, 1<<14) }

// entries is how many entries a source tree has, and how many files are created.
func (r *rig) entries() int64 { return max(r.count()/2, 64) }

// syncs is how often a measurement waits for the disk that does it again and again.
func (r *rig) syncs() int64 { return max(r.count()/64, 16) }

// fileSize is the size of the file that places are compared with, in bytes.
func (r *rig) fileSize() int64 { return min(2*r.o.Size, 2<<30) }

// newSeed returns a seed for content that nothing has had before.
func (r *rig) newSeed() uint64 {
	r.seed++
	return r.seed
}

// client returns the client process.
func (r *rig) client(ctx context.Context) (*client, error) {
	if r.child == nil {
		c, err := startClient(ctx, r.o.Client)
		if err != nil {
			return nil, fmt.Errorf("client: %w", err)
		}
		r.child = c
		// How it ends tells nothing that its answers have not told.
		r.atEnd(func() error { _ = c.end(); return nil })
	}
	return r.child, nil
}

// measureClient has the client do the requests in turn; the last is measured.
func (r *rig) measureClient(ctx context.Context, reqs ...request) (sample, error) {
	c, err := r.client(ctx)
	if err != nil {
		return sample{}, err
	}
	last := len(reqs) - 1
	for _, req := range reqs[:last] {
		if _, err := c.do(req); err != nil {
			return sample{}, err
		}
	}
	return c.measure(reqs[last])
}

func (r *rig) storeDir() string { return filepath.Join(r.dir, "store") }

// openNode returns a node of a new store.
func (r *rig) openNode(ctx context.Context) (*node.Node, error) {
	if r.node == nil {
		n, err := node.Open(ctx, node.Options{
			Dir: r.storeDir(), Create: true, Command: "bench", Logger: r.o.Logger,
		})
		if err != nil {
			return nil, err
		}
		r.node = n
		r.atEnd(n.Close)
	}
	return r.node, nil
}
