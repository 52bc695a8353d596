package rpc

import pool "github.com/libp2p/go-buffer-pool"

// reused is the size from which on messages lie in memory that is used again; smaller
// ones are the garbage collector's.
const reused = 64 << 10

// Memory is where large messages lie, and goes back to when nobody refers to them any
// more. What is in it belongs to nobody: the garbage collector may take it. The zero
// Memory is empty, and nil keeps nothing.
type Memory struct{ pool pool.BufferPool }

// get returns memory with so many bytes, which hold anything.
func (m *Memory) get(size int) []byte {
	if m == nil || size < reused {
		return make([]byte, size)
	}
	return m.pool.Get(size)
}

// Put takes memory back.
func (m *Memory) Put(b []byte) {
	if m != nil && cap(b) >= reused {
		m.pool.Put(b)
	}
}
