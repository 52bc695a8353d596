//go:build linux && race

package mount

// slowdown divides the amounts of some tests: the race detector makes all
// that is done here several times as expensive.
const slowdown = 8
