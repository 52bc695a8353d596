package manifest

import "context"

// NextData returns the first offset from off on that lies in data, and the size
// of the file if there is none. What is data and what is a hole goes by the leaves
// of Format f: holes are those of its largest size with nothing but zeros. No leaf
// is read. Errors: as of reading.
func (r *Reader) NextData(ctx context.Context, f Format, off int64) (int64, error) {
	return r.next(ctx, f, off, false)
}

// NextHole is NextData for holes. It looks at the nodes above all data in between.
func (r *Reader) NextHole(ctx context.Context, f Format, off int64) (int64, error) {
	return r.next(ctx, f, off, true)
}

func (r *Reader) next(ctx context.Context, f Format, off int64, wantHole bool) (int64, error) {
	if off < 0 {
		return 0, errNegativeOffset
	}
	if off >= r.root.Size || r.root.Holes == 0 && wantHole {
		return r.root.Size, nil
	}
	if r.root.Holes == 0 {
		return off, nil
	}
	s, err := f.shape()
	if err != nil {
		return 0, err
	}
	c, err := newCursor(ctx, r.src.store, r.root, off)
	if err != nil {
		return 0, err
	}
	h := holes{shape: &s}
	for off < r.root.Size {
		end, hole, err := h.span(ctx, c, off, r.root.Size)
		if err != nil {
			return 0, err
		}
		if hole == wantHole {
			return off, nil
		}
		off = end
	}
	return r.root.Size, nil
}
