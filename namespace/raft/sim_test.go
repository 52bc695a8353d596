package raft

import (
	"crypto/rand"
	"flag"
	"fmt"
	"testing"
)

// A group is simulated: its nodes, their disks and the network between them, step
// by step in one goroutine and without a clock, all decided by a seed. What runs on
// a node is the Log but for its goroutines (simnode_test.go); the world around it
// loses, delays and repeats messages, cuts links, takes the power of nodes at the
// worst moments, wipes disks and puts old copies back (simworld_test.go, and
// simmembers_test.go for who belongs to the group); and in between it looks whether
// all is as it must be (simcheck_test.go).

var (
	seedFlag  = flag.Int64("seed", -1, "simulate this one seed")
	seedsFlag = flag.Int64("seeds", usualSeeds, "simulate so many seeds, from 1 on")
	stepsFlag = flag.Int("steps", 400, "steps of a simulation before all is healed")
)

// deterministic has raft draw the length of elections from a seed. It must not be
// used beside other tests.
func deterministic(seed int64, fn func()) {
	before := rand.Reader
	defer func() { rand.Reader = before }()
	rand.Reader = newStream(uint64(seed), 2)
	fn()
}

func simulate(t *testing.T, seed int64) (trace uint64) {
	deterministic(seed, func() {
		w := newWorld(t, seed)
		defer w.end()
		w.run(*stepsFlag)
		trace = w.trace.Sum64()
	})
	return trace
}

// Rules 1, 3, 4, 5, 6, 7, 9 and 19.
func TestASimulatedGroupKeepsItsPromises(t *testing.T) {
	from, to := int64(1), *seedsFlag
	if *seedFlag >= 0 {
		from, to = *seedFlag, *seedFlag
	}
	for seed := from; seed <= to; seed++ {
		if !t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { simulate(t, seed) }) {
			t.Fatalf("replay with: go test ./namespace/raft -run TestASimulatedGroupKeepsItsPromises -seed %d -steps %d", seed, *stepsFlag)
		}
	}
}

func TestASimulationIsTheSameEachTime(t *testing.T) {
	for seed := int64(1); seed <= 4; seed++ {
		if a, b := simulate(t, seed), simulate(t, seed); a != b {
			t.Errorf("seed %d went differently: %x and %x", seed, a, b)
		}
	}
}
