package node

import (
	"testing"

	"github.com/cairnfs/cairn/namespace"
)

// Rule 10: files without a name that are open for long keep no others from being removed.
func TestAllFilesWithoutANameHaveTheirTurn(t *testing.T) {
	var all []namespace.Ino
	for i := range 2*reapBatch + 10 {
		all = append(all, namespace.Ino(3*i+5))
	}
	c := &cluster{}
	for round := range 3 {
		seen := make(map[namespace.Ino]bool)
		for range 3 {
			some := c.someOrphans(all)
			if len(some) > reapBatch {
				t.Fatalf("%d at a time", len(some))
			}
			for _, ino := range some {
				seen[ino] = true
			}
		}
		if len(seen) != len(all) {
			t.Errorf("in round %d, %d of %d had their turn", round, len(seen), len(all))
		}
	}
	if some := c.someOrphans(all[:1]); len(some) != 1 {
		t.Errorf("one is left, and not found: %v", some)
	}
}
