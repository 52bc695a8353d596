package volume

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cairnfs/cairn/namespace"
)

// refill tells which of the kernel's pages may lack what was written through it.
//
// The kernel puts what a program writes into its page first and asks for the write then.
// If it is told to drop the page in between, and another program has it read again before
// the write is carried out here, the page has what was before, and nothing would drop it.
// So who carries out a write looks whether its pages were read since they were dropped:
// the kernel writes to an inode once at a time.
type refill struct {
	dropped atomic.Bool // pages, since the last write

	mu       sync.Mutex
	dropping int        // times, under way
	read     byteRanges // since the last drop that has ended
	during   byteRanges // those of them since dropping is not 0
}

// byteRanges are ranges that were read, the kernel does that by pages.
type byteRanges []byteRange

type byteRange struct{ from, to int64 }

// maxByteRanges is how many of them are told apart.
const maxByteRanges = 64

func (b *byteRanges) add(r byteRange) {
	last := len(*b) - 1
	if last < 0 || last+1 < maxByteRanges && ((*b)[last].to < r.from || r.to < (*b)[last].from) {
		*b = append(*b, r)
		return
	}
	o := &(*b)[last]
	o.from, o.to = min(o.from, r.from), max(o.to, r.to)
}

func (b byteRanges) overlap(r byteRange) bool {
	return slices.ContainsFunc(b, func(o byteRange) bool { return r.from < o.to && o.from < r.to })
}

// drops says that pages may be dropped from now on.
func (r *refill) drops() { r.dropped.Store(true) }

// begin is called before all pages are dropped, and end after.
func (r *refill) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropping++
	r.drops()
}

func (r *refill) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dropping--; r.dropping == 0 {
		r.read, r.during = r.during, nil
	}
}

// reading is called before n bytes at off are read for the kernel.
func (r *refill) reading(off, n int64) {
	if !r.dropped.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read.add(byteRange{off, off + n})
	if r.dropping > 0 {
		r.during.add(byteRange{off, off + n})
	}
}

// written is called after n bytes at off were written, and reports whether the kernel may
// have pages of them from before.
func (r *refill) written(off, n int64) bool {
	if !r.dropped.Load() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	refilled := r.read.overlap(byteRange{off, off + n})
	r.read, r.during = nil, nil
	r.dropped.Store(r.dropping > 0)
	return refilled
}

// Dropping says that the kernel is about to drop all pages of an inode, and returns what
// is to be called when it has.
func (v *Volume) Dropping(ino namespace.Ino) (dropped func()) {
	f := v.acquireIfPresent(ino)
	if f == nil {
		return func() {} // nobody writes through the kernel
	}
	f.refill.begin()
	return func() {
		f.refill.end()
		v.release(f)
	}
}

// Refilled reports whether the kernel's pages may lack the n bytes at off that were
// written through the handle: they were dropped and read again before. Ask once after each
// write that went through pages; if so, drop them before it is answered.
func (h *Handle) Refilled(off, n int64) bool { return h.f.refill.written(off, n) }
