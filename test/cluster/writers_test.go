//go:build linux

package cluster

import (
	"bytes"
	"errors"
	"fmt"

	"os"
	"slices"
	"testing"
	"time"
)

// Rule 8: who is refused queues, so nobody starves.
func TestNodesThatWriteOneFileAllTheTimeAllGetTheirTurn(t *testing.T) {
	needsNet(t)
	const (
		slot    = 4096
		lasting = 5 * time.Second
	)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	ok(t, writeSynced(r.nodes[0].path("shared"), make([]byte, slot*3)))
	type tally struct {
		commits int
		longest time.Duration
		last    []byte
	}
	all := make([]tally, len(r.nodes))
	errs := parallel(t, r.nodes, func(i int, n *node) error {
		f, err := os.OpenFile(n.path("shared"), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		mine := &all[i]
		for start := time.Now(); time.Since(start) < lasting; mine.commits++ {
			mine.last = bytes.Repeat(fmt.Appendf(nil, "%07d ", mine.commits), slot/8)
			begun := time.Now()
			_, err := f.WriteAt(mine.last, int64(i*slot))
			if err = errors.Join(err, f.Sync()); err != nil {
				return fmt.Errorf("%s, write %d: %w", n.name, mine.commits, err)
			}
			mine.longest = max(mine.longest, time.Since(begun))
		}
		return f.Close()
	})
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	var want []byte
	var counts []int
	for i, n := range r.nodes {
		t.Logf("%s: %d writes named, the slowest after %v", n.name, all[i].commits, all[i].longest.Round(time.Millisecond))
		want, counts = append(want, all[i].last...), append(counts, all[i].commits)
	}
	t.Logf("%.0f writes named a second", float64(counts[0]+counts[1]+counts[2])/lasting.Seconds())
	if least, most := slices.Min(counts), slices.Max(counts); least*4 < most {
		t.Errorf("one node named %d writes while another named %d", least, most)
	}
	for _, n := range r.nodes {
		ok(t, holds(n.path("shared"), want))
	}
}
