package volume

import (
	"math"
	"sync"

	"github.com/cairnfs/cairn/namespace"
)

// making are the files that are being created. Until the log has answered, their inodes
// may be there, and without a name again because another node has removed it, and be
// open nowhere. Numbers ascend, so it cannot be those that were given out before.
type making struct {
	mu    sync.Mutex
	since map[namespace.Ino]int // creations by the number that was to be given out next
}

// begin says that a file is being created until end is called.
func (m *making) begin(next namespace.Ino) (end func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.since == nil {
		m.since = make(map[namespace.Ino]int)
	}
	m.since[next]++
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.since[next]--; m.since[next] == 0 {
			delete(m.since, next)
		}
	}
}

// from returns the lowest number that a file which is being created may have.
func (m *making) from() namespace.Ino {
	m.mu.Lock()
	defer m.mu.Unlock()
	lowest := namespace.Ino(math.MaxUint64)
	for next := range m.since {
		lowest = min(lowest, next)
	}
	return lowest
}
