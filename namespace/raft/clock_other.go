//go:build !linux

package raft

import "time"

// newClock returns a monotonic time; whether it goes on while the machine sleeps is
// up to the system.
func newClock() func() time.Duration {
	start := time.Now()
	return func() time.Duration { return time.Since(start) }
}
