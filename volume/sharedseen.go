package volume

import (
	"sync"
	"syscall"

	"github.com/cairnfs/cairn/namespace"
)

// What the volume knows of the kernel's pages of files that other nodes write, too: of
// which version of the content they are.

// maxSeen bounds the inodes of which is remembered what the kernel has seen.
const maxSeen = 256 << 10

// Stale reports whether the kernel may have pages of content that another node has
// replaced. Ask after a lock was granted; if so, drop all pages of the inode before the
// kernel is told of the lock, and then call Dropped with the version.
func (h *Handle) Stale() (version uint64, stale bool) {
	version = h.f.outdated()
	return version, version != 0
}

// outdated returns the version of the content if the kernel may have pages of another,
// else 0.
func (f *file) outdated() uint64 {
	if !f.v.Shared() {
		return 0
	}
	version := f.version.Load()
	if f.v.seen.is(f.ino, version) {
		return 0
	}
	return version
}

// Version returns a version of the content of a regular file than which none older is
// read from now on, 0 if there is no such file.
func (v *Volume) Version(ino namespace.Ino) uint64 {
	n, err := v.o.State.Inode(ino)
	if err != nil || n.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return 0
	}
	v.o.State.Told() // or a file in memory may not know of it
	return n.Version
}

// Dropped says that the kernel's pages of the inode were dropped after Stale or Version
// had returned the version, or attributes with it as Outdated.
func (v *Volume) Dropped(ino namespace.Ino, version uint64) { v.seen.set(ino, version) }

// Unsure says that the kernel may spoil its pages of an inode until sure is called: they are
// outdated until then. It is nil if the file is not open: nobody reads such pages.
func (v *Volume) Unsure(ino namespace.Ino) (sure func()) {
	f := v.acquireIfPresent(ino)
	if f == nil {
		return nil
	}
	v.seen.doubt(ino, 1)
	return func() {
		v.seen.doubt(ino, -1)
		v.release(f)
	}
}

// arrived is called with each request about the handle. The first one says that the
// kernel knows of the handle, and so has dropped its pages if it was to.
func (h *Handle) arrived() {
	if h.answered.Load() && h.answered.CompareAndSwap(true, false) {
		h.f.v.seen.set(h.f.ino, h.version)
	}
}

// seen is the version of the content that the kernel may have pages of, for each
// inode.
type seen struct {
	mu     sync.Mutex
	at     map[namespace.Ino]uint64
	unsure map[namespace.Ino]int // what they are, so many times
}

func (s *seen) is(ino namespace.Ino, version uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, ok := s.at[ino]
	return ok && was == version && s.unsure[ino] == 0
}

// set says that the kernel has no pages of older versions.
func (s *seen) set(ino namespace.Ino, version uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	was, ok := s.at[ino]
	if s.at == nil || !ok && len(s.at) >= maxSeen {
		s.at = make(map[namespace.Ino]uint64)
	}
	s.at[ino] = max(was, version)
}

// advance says that what is new in a version was written through this kernel.
func (s *seen) advance(ino namespace.Ino, from, to uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if was, ok := s.at[ino]; ok && was == from {
		s.at[ino] = to
	}
}

func (s *seen) doubt(ino namespace.Ino, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsure == nil {
		s.unsure = make(map[namespace.Ino]int)
	}
	if s.unsure[ino] += n; s.unsure[ino] == 0 {
		delete(s.unsure, ino)
	}
}

func (s *seen) forget(ino namespace.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.at, ino)
}

func (s *seen) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = nil
}
