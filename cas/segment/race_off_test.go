//go:build !race

package segment

const effort = 1
