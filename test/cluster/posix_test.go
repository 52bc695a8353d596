//go:build linux

package cluster

import (
	"math"
	"testing"

	"github.com/cairnfs/cairn/test/fsx"
	"github.com/cairnfs/cairn/test/posix"
)

// TestPosixRules: a mount of a member of a cluster keeps every rule of package
// posix, as that of a single node does.
func TestPosixRules(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	n := r.others(r.leader(r.nodes...))[0]
	posix.Run(t, n.mnt, posix.Traits{
		MaxFileSize: math.MaxInt64,
		MinTime:     math.MinInt64/1_000_000_000 - 1,
		MaxTime:     math.MaxInt64 / 1_000_000_000,
		HoleSize:    1 << 20,
		// An fsync cuts what was written into chunks, and these may begin and
		// end in a hole.
		HoleEdge:   256 << 10,
		ZeroRange:  true,
		XattrSpace: 1<<16 + 1000,
	})
	agree(t, ".", r.nodes...)
}

// TestRandomOperationsOnAFile: see package fsx. The seed is in the failure.
func TestRandomOperationsOnAFile(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 2)
	for seed, n := range r.nodes {
		if err := fsx.Run(t.Context(), fsx.Options{Dir: n.mnt, Seed: uint64(seed + 1), Ops: 3000}); err != nil {
			t.Errorf("on %s: %v", n.name, err)
		}
	}
}
