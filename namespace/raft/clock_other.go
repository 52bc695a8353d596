//go:build !linux

package raft

import "time"

var started = time.Now()

// bootTime is monotonic; whether it goes on while the machine sleeps is up to the
// system.
func bootTime() time.Duration { return time.Since(started) }
