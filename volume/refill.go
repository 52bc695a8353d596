package volume

import (
	"sync"
	"sync/atomic"

	"github.com/cairnfs/cairn/namespace"
)

// refill tells whether the kernel's pages may lack what was written through it.
//
// The kernel puts what a program writes into its page first and asks for the write then.
// If it is told to drop the page in between, and another program has it read again before
// the write is carried out here, the page has what was before, and nothing would drop it.
// So who carries out a write looks whether pages were dropped and read since the write
// before: the kernel writes to an inode once at a time.
type refill struct {
	dropped atomic.Bool // pages, since the last write

	mu       sync.Mutex
	dropping int  // under way
	read     bool // since dropped
}

func (r *refill) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropping++
	r.dropped.Store(true)
}

func (r *refill) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropping--
}

// reading is called before bytes are read for the kernel.
func (r *refill) reading() {
	if !r.dropped.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.read = true
}

// written is called after bytes were written, and reports whether pages were dropped and
// then read before.
func (r *refill) written() bool {
	if !r.dropped.Load() {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.read
	r.read = false
	r.dropped.Store(r.dropping > 0)
	return was
}

// Dropping says that the kernel is about to drop pages of an inode, and returns what is
// to be called when it has.
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

// Refilled reports whether the kernel's pages may lack what was written through the
// handle last: they were dropped and read again meanwhile. Ask after each write that went
// through pages; if so, drop those that were written before it is answered, and ask again.
func (h *Handle) Refilled() bool { return h.f.refill.written() }
