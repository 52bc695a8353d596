//go:build linux

package mount

import (
	"maps"
	"slices"
	"sync"
)

const lookupShards = 64

// lookups counts, for each inode the kernel knows, how often it was told of it.
// The kernel gives the counts back when it forgets inodes, some at a time and
// concurrently with new answers; an inode is forgotten when its count is back
// at zero. There are as many counts as the kernel keeps inodes in its memory.
type lookups [lookupShards]struct {
	mu sync.Mutex
	n  map[uint64]uint64
	_  [48]byte // a cache line for each shard
}

// add counts one more answer that named ino.
func (l *lookups) add(ino uint64) {
	s := &l[ino%lookupShards]
	s.mu.Lock()
	if s.n == nil {
		s.n = make(map[uint64]uint64)
	}
	s.n[ino]++
	s.mu.Unlock()
}

// forget takes n answers back and reports whether none are left.
func (l *lookups) forget(ino, n uint64) bool {
	s := &l[ino%lookupShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if left := s.n[ino]; left > n {
		s.n[ino] = left - n
		return false
	}
	delete(s.n, ino)
	return true
}

// has reports whether the kernel knows ino.
func (l *lookups) has(ino uint64) bool {
	s := &l[ino%lookupShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n[ino] > 0
}

// each calls fn for the inodes that the kernel knows. Those that it forgets, or is
// told of, meanwhile may be among them.
func (l *lookups) each(fn func(ino uint64)) {
	for i := range l {
		s := &l[i]
		s.mu.Lock()
		known := slices.Collect(maps.Keys(s.n))
		s.mu.Unlock()
		for _, ino := range known {
			fn(ino)
		}
	}
}

// drain forgets all inodes and calls fn for each.
func (l *lookups) drain(fn func(ino uint64)) {
	for i := range l {
		s := &l[i]
		s.mu.Lock()
		known := s.n
		s.n = nil
		s.mu.Unlock()
		for ino := range known {
			fn(ino)
		}
	}
}
