//go:build !race

package raft

// usualSeeds is how many simulations a normal run has.
const usualSeeds = 60
