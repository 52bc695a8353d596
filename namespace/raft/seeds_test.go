//go:build !race

package raft

import "time"

// usualSeeds is how many simulations a normal run has.
const usualSeeds = 60

// liveTick is the tick of groups that run in real time: short, so that elections are.
const liveTick = 10 * time.Millisecond
