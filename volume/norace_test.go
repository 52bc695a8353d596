//go:build !race

package volume

const slowdown = 1
