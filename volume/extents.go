package volume

import (
	"sync"

	"github.com/tidwall/btree"

	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/index/journal"
)

// Changed ranges of a file that are not part of its tree yet are kept as extents:
// non-overlapping, ordered by offset. The bytes of one are in memory, in a journal
// record, or both; or it has none of its own, because they are zeros or those of
// another file's tree. This file is the map of them and holds no lock.

// Sizes of extents, in bytes. One write of FUSE makes at most a smallExtent; what
// follows it without a gap is appended up to a maxExtent. So a stream that is
// stored as fast as it comes goes in small pieces, and one that comes faster in
// larger ones, which are stored more efficiently.
const (
	smallExtent = 1 << 20
	maxExtent   = 8 << 20
)

// extent is one changed range. An extent with seq != 0 is never changed in
// place: its bytes must stay those of the record.
type extent struct {
	off  int64
	n    int64
	kind extentKind
	mem  []byte           // of written: n bytes, or nil when they are only in the journal
	seq  journal.Seq      // record that holds the bytes or says what they are; 0: none
	at   journal.Location // of written: payload of that record
	pos  int64            // of written: where in the payload the extent begins; of shared: where in the tree
	tree *manifest.Reader // of shared
}

// extentKind says what the bytes of an extent are.
type extentKind uint8

const (
	written extentKind = iota
	zeros              // of a punched hole, or of space that was allocated
	shared             // those of a tree that is stored, as copy_file_range makes them
)

func (e extent) end() int64 { return e.off + e.n }

// slice returns the part [from, to) of e.
func (e extent) slice(from, to int64) extent {
	d := from - e.off
	s := e
	s.off, s.n, s.pos = from, to-from, e.pos+d
	if e.mem != nil {
		s.mem = e.mem[d : d+s.n : d+s.n]
	}
	return s
}

// extents is a set of extents. The zero value is empty.
type extents struct {
	pool *buffers // may be nil

	byEnd btree.Map[int64, extent] // keyed by end, so that a search finds what reaches past an offset
	mem   int64                    // bytes of memory taken
	bytes int64                    // bytes of written extents
	refer int64                    // bytes of shared extents
	holes int                      // extents of zeros
	loose int64                    // bytes of written extents without a record
}

func (m *extents) empty() bool { return m.byEnd.Len() == 0 }

func (m *extents) add(e extent) {
	m.byEnd.Set(e.end(), e)
	m.count(e, 1)
}

func (m *extents) remove(e extent) {
	m.byEnd.Delete(e.end())
	m.count(e, -1)
}

func (m *extents) count(e extent, sign int64) {
	switch e.kind {
	case zeros:
		m.holes += int(sign)
		return
	case shared:
		m.refer += sign * e.n
		return
	}
	m.bytes += sign * e.n
	if e.mem != nil {
		m.mem += sign * int64(cap(e.mem))
	}
	if e.seq == 0 {
		m.loose += sign * e.n
	}
}

// each calls fn for the extents that overlap [from, to), in order, until fn
// returns false. fn must not change the map.
func (m *extents) each(from, to int64, fn func(extent) bool) {
	if from >= to {
		return
	}
	m.byEnd.Ascend(from+1, func(_ int64, e extent) bool {
		return e.off < to && fn(e)
	})
}

// overlapping returns the extents that overlap [from, to), in order.
func (m *extents) overlapping(from, to int64) []extent {
	var list []extent
	m.each(from, to, func(e extent) bool {
		list = append(list, e)
		return true
	})
	return list
}

// clear removes [from, to), splitting the extents that straddle its ends.
func (m *extents) clear(from, to int64) {
	for _, e := range m.overlapping(from, to) {
		m.remove(e)
		if e.off < from {
			m.add(e.slice(e.off, from))
		}
		if e.end() > to {
			m.add(e.slice(to, e.end()))
		}
	}
}

// put replaces whatever overlaps e by e.
func (m *extents) put(e extent) {
	m.clear(e.off, e.end())
	m.add(e)
}

// write copies p into the map at off.
func (m *extents) write(p []byte, off int64) {
	if m.extend(p, off) || m.overwrite(p, off) {
		return
	}
	m.clear(off, off+int64(len(p)))
	m.add(extent{off: off, n: int64(len(p)), mem: append(m.pool.get(len(p)), p...)})
}

// extend appends p to the extent that ends at off, if there is one in memory
// with nothing behind it and room to grow. It makes many small writes in a row
// one extent.
func (m *extents) extend(p []byte, off int64) bool {
	e, ok := m.byEnd.Get(off)
	if !ok || e.kind != written || e.seq != 0 || e.n+int64(len(p)) > maxExtent {
		return false
	}
	overlaps := false
	m.each(off, off+int64(len(p)), func(extent) bool { overlaps = true; return false })
	if overlaps {
		return false
	}
	m.remove(e)
	if need := len(e.mem) + len(p); need > cap(e.mem) {
		small := e.mem
		e.mem = append(m.pool.get(need), small...)
		m.pool.put(small)
	}
	e.mem = append(e.mem, p...)
	e.n = int64(len(e.mem))
	m.add(e)
	return true
}

// overwrite copies p into an extent that covers it whole and has no record.
func (m *extents) overwrite(p []byte, off int64) bool {
	done := false
	m.each(off, off+1, func(e extent) bool {
		if e.off <= off && e.end() >= off+int64(len(p)) && e.kind == written && e.seq == 0 {
			copy(e.mem[off-e.off:], p)
			done = true
		}
		return false
	})
	return done
}

// run returns the extents that follow each other without a gap from off on, up to
// the first one whose bytes are another tree's: should that be damaged, a stream
// that was given it would be lost.
func (m *extents) run(off int64) []extent {
	var list []extent
	m.byEnd.Ascend(off+1, func(_ int64, e extent) bool {
		if e.off != off || e.kind == shared {
			return false
		}
		list = append(list, e)
		off = e.end()
		return true
	})
	return list
}

// stream is run up to the last extent that was written: zeros behind it may be
// written yet.
func (m *extents) stream(off int64) []extent {
	run := m.run(off)
	for len(run) > 0 && run[len(run)-1].kind != written {
		run = run[:len(run)-1]
	}
	return run
}

// snapshot returns a copy that stays as it is, at no cost.
func (m *extents) snapshot() extents { return extents{byEnd: *m.byEnd.Copy()} }

// end returns where the last extent ends.
func (m *extents) end() (int64, bool) {
	end, _, ok := m.byEnd.Max()
	return end, ok
}

// all returns every extent in order.
func (m *extents) all() []extent { return m.byEnd.Values() }

// under puts the extents of lower into m where m has nothing: what was on its
// way out comes back beneath what was written since.
func (m *extents) under(lower *extents) {
	for _, e := range lower.all() {
		from := e.off
		for _, above := range m.overlapping(e.off, e.end()) {
			if above.off > from {
				m.add(e.slice(from, above.off))
			}
			from = above.end()
		}
		if from < e.end() {
			m.add(e.slice(from, e.end()))
		}
	}
}

// oldest returns the lowest record that an extent lives in, 0 if none does.
func (m *extents) oldest() journal.Seq {
	var low journal.Seq
	m.byEnd.Scan(func(_ int64, e extent) bool {
		if e.seq != 0 && (low == 0 || e.seq < low) {
			low = e.seq
		}
		return true
	})
	return low
}

// buffers hands out memory for extents. That of streams is used again: clearing
// and mapping fresh memory costs a tenth of the whole write. A nil *buffers works
// as well.
type buffers struct {
	small sync.Pool // of *[smallExtent]byte
	large sync.Pool // of *[maxExtent]byte
}

// get returns an empty slice with room for n bytes. Sizes are powers of two from
// 4 KiB to smallExtent, then maxExtent, so that appending copies each byte about
// twice at most.
func (b *buffers) get(n int) []byte {
	if n > smallExtent {
		if b != nil {
			if p, ok := b.large.Get().(*[maxExtent]byte); ok {
				return p[:0]
			}
		}
		return make([]byte, 0, maxExtent)
	}
	size := 4 << 10
	for size < n {
		size *= 2
	}
	if size == smallExtent && b != nil {
		if p, ok := b.small.Get().(*[smallExtent]byte); ok {
			return p[:0]
		}
	}
	return make([]byte, 0, size)
}

// put takes back the memory of an extent that nobody can read any more. What
// was cut off a larger extent has the capacity of its length: it is passed over,
// unless it has just the length of a small one.
func (b *buffers) put(mem []byte) {
	if b == nil {
		return
	}
	switch cap(mem) {
	case smallExtent:
		b.small.Put((*[smallExtent]byte)(mem[:smallExtent]))
	case maxExtent:
		b.large.Put((*[maxExtent]byte)(mem[:maxExtent]))
	}
}
