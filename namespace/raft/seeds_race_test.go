//go:build race

package raft

import "time"

// usualSeeds is few where a simulation, which has no second goroutine to race with,
// takes ten times as long.
const usualSeeds = 10

// liveTick leaves time to programs that run ten times slower.
const liveTick = 40 * time.Millisecond
