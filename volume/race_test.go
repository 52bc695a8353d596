//go:build race

package volume

// slowdown is how much less the model test does under the race detector, which
// makes hashing and comparing bytes thirty times as slow.
const slowdown = 5
