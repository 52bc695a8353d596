package rpc

import "sync"

// reused is the size from which on messages lie in memory that is used again; smaller
// ones are the garbage collector's.
const reused = 64 << 10

// Memory is where large messages lie, and goes back to when nobody refers to them any
// more. What is in it belongs to nobody: the garbage collector may take it. The zero
// Memory is empty, and nil keeps nothing.
type Memory struct {
	classes [8]sync.Pool // of *[]byte with so much capacity as classSize says
}

// classSize is a power of two, of payload, and room for what stands around it.
func classSize(class int) int { return reused << class / 8 * 9 }

// get returns memory with so many bytes, which hold anything.
func (m *Memory) get(size int) []byte {
	if m == nil || size < reused {
		return make([]byte, size)
	}
	for class := range m.classes {
		if classSize(class) < size {
			continue
		}
		if b, ok := m.classes[class].Get().(*[]byte); ok {
			return (*b)[:size]
		}
		return make([]byte, size, classSize(class))
	}
	return make([]byte, size)
}

// Put takes memory back that came from get.
func (m *Memory) Put(b []byte) {
	if m == nil {
		return
	}
	for class := range m.classes {
		if cap(b) == classSize(class) {
			m.classes[class].Put(&b)
		}
	}
}
