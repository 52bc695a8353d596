//go:build race

package segment

// effort is by how much random tests are shortened: the race detector makes each
// lookup in Pebble a hundred times slower, because Pebble then records stacks.
const effort = 8
