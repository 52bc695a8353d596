//go:build simulation

package node

import (
	"crypto/rand"
	"flag"
	"fmt"
	mrand "math/rand/v2"
	"sync"
	"testing"
)

// A cluster is simulated: whole nodes, of which only the disk, the network and the
// clock are not real (simdisk_test.go, simnet_test.go, simtime_test.go). Programs on
// every node work with files that all share (simprogram_test.go), while the world
// (simworld_test.go) takes the power of nodes, cuts and slows links, fills disks and
// has them fail, lets nodes join, drains, removes and wipes them and puts old copies
// of their disks back. At every step replicas of the same index are compared, and at
// the end, when all is healed, everything that was acknowledged must be there and
// every block where it belongs (simcheck_test.go).
//
// The seed decides what happens and when. In which order goroutines run that could
// all run it does not decide; a seed that fails fails again often, not always.

var (
	simSeed  = flag.Int64("seed", -1, "simulate this one seed")
	simSeeds = flag.Int64("seeds", 20, "simulate so many seeds, from 1 on")
	simSteps = flag.Int("steps", 30, "events of a simulation before all is healed")
)

// seededReader gives random bytes by a seed.
type seededReader struct {
	mu  sync.Mutex
	rng *mrand.ChaCha8
}

func newSeededReader(a, b uint64) *seededReader {
	var seed [32]byte
	for i := range 8 {
		seed[i], seed[8+i] = byte(a>>(8*i)), byte(b>>(8*i))
	}
	return &seededReader{rng: mrand.NewChaCha8(seed)}
}

// Uint64 makes it a source that many goroutines may use.
func (r *seededReader) Uint64() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rng.Uint64()
}

func (r *seededReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rng.Read(p)
}

// Rules 1, 2, 3, 4, 6, 7, 10, 11, 14, 15, 17 and 19.
func TestASimulatedClusterKeepsItsPromises(t *testing.T) {
	from, to := int64(1), *simSeeds
	if *simSeed >= 0 {
		from, to = *simSeed, *simSeed
	}
	before := rand.Reader // etcd's raft draws from it how long an election waits
	defer func() { rand.Reader = before }()
	for seed := from; seed <= to; seed++ {
		ok := t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			rand.Reader = newSeededReader(uint64(seed), 1)
			var w *world
			inVirtualTime(t, func(t *testing.T) {
				w = newWorld(t, seed)
				w.run(*simSteps)
			})
			w.explain(t)
		})
		if !ok {
			t.Fatalf("replay with: go test ./node -tags simulation -ldflags=-checklinkname=0 -run TestASimulatedClusterKeepsItsPromises -seed %d -steps %d", seed, *simSteps)
		}
	}
}
