//go:build race

package raft

// usualSeeds is few where a simulation, which has no second goroutine to race with,
// takes ten times as long.
const usualSeeds = 10
