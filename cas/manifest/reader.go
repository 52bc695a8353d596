package manifest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/cairnfs/cairn/cas"
)

var errNegativeOffset = errors.New("manifest: negative offset")

// ReaderOptions tune a Reader. The zero value works.
type ReaderOptions struct {
	// Cache is shared with other Readers. If nil, the Reader has one of 4 MiB.
	Cache *Cache
	// Parallel is how many blocks WriteTo fetches at the same time, ahead of
	// what it writes: at most four times as many MiB are in memory. 0 means
	// 2, which suits a local store; a remote one wants more.
	Parallel int
}

// Reader reads the content of one file. Its methods may be called from any
// number of goroutines. Whatever it returns was verified against root: errors
// are those of the store, a *FormatError if the tree contradicts itself or
// root.Size, or ErrNotFile.
type Reader struct {
	src      source
	root     Root
	parallel int
	ahead    ahead
}

// NewReader returns a Reader of root; nothing is read yet. A store that is a
// Prefetcher is told what is likely to be read next.
func NewReader(store cas.Getter, root Root, o ReaderOptions) *Reader {
	if o.Parallel <= 0 {
		o.Parallel = 2
	}
	r := &Reader{src: newSource(store, o.Cache), root: root, parallel: o.Parallel}
	r.ahead.store, _ = store.(Prefetcher)
	return r
}

// Root returns what r reads.
func (r *Reader) Root() Root { return r.root }

// Size returns the length of the file in bytes.
func (r *Reader) Size() int64 { return r.root.Size }

// ReadAt reads as io.ReaderAt does: n < len(p) only with an error, which is
// io.EOF if the file ends there. Leaves that p covers are read straight into it;
// the cache keeps others, and those that a file repeats, as in a hole.
func (r *Reader) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errNegativeOffset
	}
	if off >= r.root.Size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), r.root.Size-off))
	if n == 0 {
		return 0, nil
	}
	r.lookAhead(ctx, off, int64(n))
	if err := r.src.readAt(ctx, r.root.link(), p[:n], off, place{}); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// link returns the link that a node above root would have, without its Tsize.
func (root Root) link() link { return link{cid: root.CID, size: root.Size} }

// source gets nodes and leaves, by way of a cache.
type source struct {
	store cas.Getter
	cache *Cache
}

func newSource(store cas.Getter, cache *Cache) source {
	if cache == nil {
		cache = NewCache(privateCache)
	}
	return source{store, cache}
}

// place says where in a tree a link stands.
type place struct {
	depth    int  // 0 is the root
	repeated bool // the same link stands beside it
}

// of returns the place of links[i] in a node at the given place.
func (p place) of(links []link, i int) place {
	return place{
		depth:    p.depth + 1,
		repeated: i > 0 && links[i-1].cid == links[i].cid || i+1 < len(links) && links[i+1].cid == links[i].cid,
	}
}

// readAt fills p with the content of the tree under l from off on. The range
// must lie in [0, l.size).
func (s *source) readAt(ctx context.Context, l link, p []byte, off int64, at place) error {
	if l.cid.Codec() == cas.Raw {
		return s.readLeaf(ctx, l, p, off, at.repeated)
	}
	n, err := s.node(ctx, l, at.depth)
	if err != nil {
		return err
	}
	if off < int64(len(n.data)) {
		k := copy(p, n.data[off:])
		p, off = p[k:], off+int64(k)
	}
	i, _ := slices.BinarySearch(n.ends, off+1) // the first that ends after off
	for ; len(p) > 0; i++ {
		k := min(int64(len(p)), n.ends[i]-off)
		if k == 0 {
			continue
		}
		start := n.ends[i] - n.links[i].size
		if err := s.readAt(ctx, n.links[i], p[:k], off-start, at.of(n.links, i)); err != nil {
			return err
		}
		p, off = p[k:], off+k
	}
	return nil
}

// readLinks reads from the content of links, one after the other, from off on,
// until p is full or the content ends.
func (s *source) readLinks(ctx context.Context, links []link, p []byte, off int64) (int, error) {
	n := 0
	for i, l := range links {
		if off >= l.size {
			off -= l.size
			continue
		}
		k := int(min(int64(len(p)-n), l.size-off))
		if k == 0 {
			break
		}
		if err := s.readAt(ctx, l, p[n:n+k], off, place{}.of(links, i)); err != nil {
			return n, err
		}
		n, off = n+k, 0
	}
	return n, nil
}

// readLeaf fills p from the raw block l. If p covers it, the cache gets it only if
// keep is set.
func (s *source) readLeaf(ctx context.Context, l link, p []byte, off int64, keep bool) error {
	it := s.cache.leaves.peek(l.cid)
	if it == nil && int64(len(p)) == l.size && !keep {
		b, err := s.store.Get(ctx, l.cid, p[:0:len(p)])
		if err != nil {
			return err
		}
		if err := checkLeaf(l, len(b.Data())); err != nil {
			return err
		}
		if &b.Data()[0] != &p[0] {
			copy(p, b.Data())
		}
		return nil
	}
	if it == nil {
		var err error
		if it, err = s.loadLeaf(ctx, l); err != nil {
			return err
		}
	}
	defer s.cache.leaves.release(it)
	if err := checkLeaf(l, len(it.value.data)); err != nil {
		return err
	}
	copy(p, it.value.data[off:])
	return nil
}

// loadLeaf returns the leaf by way of the cache; the caller releases it.
func (s *source) loadLeaf(ctx context.Context, l link) (*item[*leaf], error) {
	return s.cache.leaves.get(ctx, l.cid, func() (*leaf, int64, error) {
		buf := s.cache.buffers.get(min(l.size, cas.MaxBlockSize))
		b, err := s.store.Get(ctx, l.cid, *buf)
		if err != nil {
			s.cache.buffers.put(buf)
			return nil, 0, err
		}
		return &leaf{b.Data(), buf}, int64(max(len(b.Data()), len(*buf))), nil
	})
}

// checkLeaf compares a leaf's length with what the link to it says.
func checkLeaf(l link, length int) error {
	if int64(length) != l.size {
		return badNode(l.cid, "leaf has %d bytes, but the node above says %d", length, l.size)
	}
	return nil
}

// node returns the inner node l, for reading only.
func (s *source) node(ctx context.Context, l link, depth int) (*node, error) {
	it := s.cache.nodes.peek(l.cid)
	if it == nil {
		var err error
		it, err = s.cache.nodes.get(ctx, l.cid, func() (*node, int64, error) {
			n, err := getNode(ctx, s.store, l.cid)
			if err != nil {
				return nil, 0, err
			}
			return n, n.memory(), nil
		})
		if err != nil {
			return nil, err
		}
	}
	defer s.cache.nodes.release(it) // the node itself is the garbage collector's
	return it.value, checkFile(l, it.value, depth)
}

// checkFile checks that n may stand where l is, depth levels below the root.
func checkFile(l link, n *node, depth int) error {
	switch {
	case depth > maxDepth:
		return badNode(l.cid, "more than %d levels below the root", maxDepth)
	case n.isFile() && n.size == l.size:
		return nil
	case n.isFile():
		return badNode(l.cid, "file has %d bytes, but %d are expected", n.size, l.size)
	case depth == 0:
		return fmt.Errorf("%w: %v", ErrNotFile, l.cid)
	default:
		return badNode(l.cid, "not a part of a file, but stands in one")
	}
}

// getNode reads and decodes the dag-pb block c.
func getNode(ctx context.Context, store cas.Getter, c cas.CID) (*node, error) {
	b, err := store.Get(ctx, c, nil)
	if err != nil {
		return nil, err
	}
	return decodeNode(c, b.Data())
}
