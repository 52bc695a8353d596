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

	"golang.org/x/sys/unix"
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

// Rule 13: every write that carries O_DSYNC or O_SYNC is durable before its reply. In a
// cluster that means named on a majority, and its content on two nodes: the one that
// wrote it is killed while the file is still open.
func TestASyncedWriteIsOnOtherNodesBeforeItReturns(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	a, b := r.nodes[0], r.nodes[1]
	want := files{}
	for i, how := range []struct {
		name         string
		flags, write int
	}{
		{"dsync", unix.O_DSYNC, 0}, {"sync", unix.O_SYNC, 0}, {"one-write", 0, unix.RWF_DSYNC}, {"append", unix.O_APPEND | unix.O_DSYNC, 0},
	} {
		for _, size := range []int{100, 70_000, 900_000} {
			name := fmt.Sprint(how.name, size)
			want[name] = random(uint64(i*10+size), size)
			fd, err := unix.Open(a.path(name), unix.O_WRONLY|unix.O_CREAT|how.flags, 0o644)
			ok(t, err)
			defer unix.Close(fd) // of a mount that is gone by then
			half := size / 2
			for _, part := range []struct{ from, to int }{{0, half}, {half, size}} {
				n, err := unix.Pwritev2(fd, [][]byte{want[name][part.from:part.to]}, int64(part.from), how.write)
				if err != nil || n != part.to-part.from {
					t.Fatalf("write %s: %d, %v", name, n, err)
				}
			}
		}
	}
	kill(a)
	r.leader(r.others(a)...)
	b.writable()
	want.check(t, b)
}
