//go:build linux && !race

package mount

const slowdown = 1
