//go:build linux

package mount

import (
	"sync"
	"sync/atomic"

	"github.com/cairnfs/cairn/volume"
)

// maxHandles is how many files can be open at once.
const maxHandles = 1 << 20

const handleChunk = 1 << 10

// handles maps the numbers by which the kernel names open files to the files.
// Finding one, which every read and write does, is two loads and takes no lock.
// Numbers begin at 1 and are used again after remove: the kernel has forgotten
// them by then.
type handles struct {
	chunks [maxHandles / handleChunk]atomic.Pointer[[handleChunk]atomic.Pointer[volume.Handle]]

	mu   sync.Mutex
	used uint64   // numbers ever given out, which are 1 … used
	free []uint64 // of those, the ones that are free
}

func (t *handles) slot(fh uint64) *atomic.Pointer[volume.Handle] {
	i := fh - 1 // of 0: beyond the end
	if i >= maxHandles {
		return nil
	}
	chunk := t.chunks[i/handleChunk].Load()
	if chunk == nil {
		return nil
	}
	return &chunk[i%handleChunk]
}

// add returns a number for h, or 0 if too many files are open.
func (t *handles) add(h *volume.Handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	var fh uint64
	if n := len(t.free); n > 0 {
		fh, t.free = t.free[n-1], t.free[:n-1]
	} else {
		if t.used == maxHandles {
			return 0
		}
		if t.used%handleChunk == 0 {
			t.chunks[t.used/handleChunk].Store(new([handleChunk]atomic.Pointer[volume.Handle]))
		}
		t.used++
		fh = t.used
	}
	t.slot(fh).Store(h)
	return fh
}

// get returns the file of number fh, nil if there is none.
func (t *handles) get(fh uint64) *volume.Handle {
	if s := t.slot(fh); s != nil {
		return s.Load()
	}
	return nil
}

// remove frees number fh and returns the file it stood for, nil if there was none.
func (t *handles) remove(fh uint64) *volume.Handle {
	s := t.slot(fh)
	if s == nil {
		return nil
	}
	h := s.Swap(nil)
	if h != nil {
		t.mu.Lock()
		t.free = append(t.free, fh)
		t.mu.Unlock()
	}
	return h
}

// drain removes all files and calls fn for each.
func (t *handles) drain(fn func(*volume.Handle)) {
	t.mu.Lock()
	used := t.used
	t.mu.Unlock()
	for fh := uint64(1); fh <= used; fh++ {
		if h := t.remove(fh); h != nil {
			fn(h)
		}
	}
}
