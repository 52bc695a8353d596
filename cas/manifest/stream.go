package manifest

import (
	"context"
	"io"

	"golang.org/x/sync/errgroup"

	"github.com/cairnfs/cairn/cas"
)

// WriteTo writes the whole file to out and returns how many bytes it wrote. See
// WriteRange.
func (r *Reader) WriteTo(ctx context.Context, out io.Writer) (int64, error) {
	return r.WriteRange(ctx, out, 0, r.root.Size)
}

// WriteRange writes up to n bytes from off on to out, in order, while blocks ahead
// are fetched and verified; it returns how many bytes it wrote. The cache keeps
// inner nodes, and leaves that the file repeats, as in a hole.
func (r *Reader) WriteRange(ctx context.Context, out io.Writer, off, n int64) (int64, error) {
	if off < 0 {
		return 0, errNegativeOffset
	}
	if n = min(n, r.root.Size-off); n <= 0 {
		return 0, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, groupCtx := errgroup.WithContext(ctx)
	// A piece is in both channels: inOrder bounds how many there are.
	inOrder := make(chan *piece, 4*r.parallel-2)
	toFetch := make(chan *piece, 4*r.parallel)
	group.Go(func() error {
		defer close(inOrder)
		defer close(toFetch)
		s := spans{emit: func(p *piece) error {
			r.announce(groupCtx, p)
			select {
			case inOrder <- p:
			case <-groupCtx.Done():
				return groupCtx.Err()
			}
			toFetch <- p // has room for as many as can be in inOrder, and two
			return nil
		}}
		if err := r.src.pieces(groupCtx, r.root.link(), off, off+n, place{}, s.add); err != nil {
			return err
		}
		return s.flush()
	})
	for range r.parallel {
		group.Go(func() error {
			for p := range toFetch {
				if err := p.fetch(groupCtx, &r.src); err != nil {
					return err
				}
			}
			return nil
		})
	}
	written, err := writePieces(groupCtx, out, inOrder, r.src.cache)
	if err != nil && groupCtx.Err() == nil {
		cancel()
		_ = group.Wait() // fails because of cancel, if at all
		return written, err
	}
	if groupErr := group.Wait(); groupErr != nil {
		return written, groupErr
	}
	return written, err
}

// writePieces writes what comes out of the channel. It ends early if ctx does.
func writePieces(ctx context.Context, out io.Writer, inOrder <-chan *piece, cache *Cache) (int64, error) {
	var written int64
	for p := range inOrder {
		select {
		case <-p.ready:
		case <-ctx.Done():
			return written, ctx.Err()
		}
		n, err := out.Write(p.data)
		written += int64(n)
		if p.buf != nil {
			cache.buffers.put(p.buf)
		}
		if p.cached != nil {
			cache.leaves.release(p.cached)
		}
		if err != nil {
			return written, err
		}
	}
	return written, ctx.Err()
}

// maxSpan is how many bytes of leaves in a row are fetched and written as one. A
// goroutine that waits for each leaf, and a write of it alone, would cost a sixth
// of reading a file from a local store.
const maxSpan = cas.MaxBlockSize

// spans joins leaves that are wanted whole and follow each other.
type spans struct {
	emit func(*piece) error
	open *piece // not emitted yet, may be nil
}

func (s *spans) add(p *piece) error {
	joins := p.data == nil && !p.keep && p.to-p.from == p.leaves[0].size
	if o := s.open; o != nil && joins && o.to+p.to <= maxSpan {
		o.leaves, o.to = append(o.leaves, p.leaves[0]), o.to+p.to
		return nil
	}
	if err := s.flush(); err != nil {
		return err
	}
	if joins {
		s.open = p
		return nil
	}
	return s.emit(p)
}

func (s *spans) flush() error {
	p := s.open
	if s.open = nil; p == nil {
		return nil
	}
	return s.emit(p)
}

// piece is a part of a leaf, several leaves, or bytes that stand in a node.
type piece struct {
	leaves   []link
	keep     bool          // use the cache, for the one leaf
	from, to int64         // of the leaves' bytes
	ready    chan struct{} // closed when data is there
	data     []byte
	buf      *[]byte      // in which data lies, or
	cached   *item[*leaf] // where it is kept
}

// fetch gets p's bytes. If it fails, p never becomes ready.
func (p *piece) fetch(ctx context.Context, s *source) error {
	if p.data == nil {
		all, err := p.get(ctx, s)
		if err != nil {
			return err
		}
		p.data = all[p.from:p.to]
	}
	close(p.ready)
	return nil
}

// get returns the leaves' bytes.
func (p *piece) get(ctx context.Context, s *source) ([]byte, error) {
	if p.keep {
		it, err := s.loadLeaf(ctx, p.leaves[0])
		if err != nil {
			return nil, err
		}
		p.cached = it
		return it.value.data, checkLeaf(p.leaves[0], len(it.value.data))
	}
	size := int64(0)
	for _, l := range p.leaves {
		size += min(l.size, cas.MaxBlockSize)
	}
	p.buf = s.cache.buffers.get(size)
	data := (*p.buf)[:0]
	for _, l := range p.leaves {
		b, err := s.store.Get(ctx, l.cid, data[len(data):])
		if err != nil {
			return nil, err
		}
		if err := checkLeaf(l, len(b.Data())); err != nil {
			return nil, err
		}
		if len(b.Data()) > 0 && &b.Data()[0] == &data[:len(data)+1][len(data)] {
			data = data[:len(data)+len(b.Data())] // read into its place
		} else {
			data = append(data, b.Data()...)
		}
	}
	return data, nil
}

// pieces calls fn for each piece of the content of l from offset from to offset
// to, in order.
func (s *source) pieces(ctx context.Context, l link, from, to int64, at place, fn func(*piece) error) error {
	if l.cid.Codec() == cas.Raw {
		return fn(&piece{leaves: []link{l}, keep: at.repeated, from: from, to: to, ready: make(chan struct{})})
	}
	n, err := s.node(ctx, l, at.depth)
	if err != nil {
		return err
	}
	if k := int64(len(n.data)); from < k {
		if err := fn(&piece{data: n.data[from:min(k, to)], ready: make(chan struct{})}); err != nil {
			return err
		}
	}
	for i, child := range n.links {
		end := n.ends[i]
		start := end - child.size
		if a, b := max(from, start), min(to, end); a < b {
			if err := s.pieces(ctx, child, a-start, b-start, at.of(n.links, i), fn); err != nil {
				return err
			}
		}
	}
	return nil
}
