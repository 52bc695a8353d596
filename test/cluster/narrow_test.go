//go:build linux

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// narrow limits what the machine sends, in tc's words, behind a queue as long as a
// router's.
func (ns netns) narrow(rate string) error {
	words := ns.inside("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "32kb", "latency", "50ms")
	return command(words[0], words[1:]...)
}

// Rule 22: while blocks take all that a line of 20 Mbit/s carries, in both directions,
// no leader is lost and small changes are made.
func TestOnASaturatedLineNoLeaderIsLostAndSmallChangesGoOn(t *testing.T) {
	needsNet(t, "tc")
	r := newCluster(t, 3)
	r.awaitVoters(3)
	for _, n := range r.nodes {
		ok(t, n.net.narrow("20mbit"))
	}
	leader := r.leader(r.nodes...)
	term := leader.status().Raft.Term
	follower := r.others(leader)[0]

	// To change the mode of an open file is one proposal, without lookups.
	path := follower.path("small")
	ok(t, writeSynced(path, nil))
	f, err := os.Open(path)
	ok(t, err)
	defer f.Close()

	change := func(i int) time.Duration {
		d, err := bounded(t, "chmod", func() error { return f.Chmod(0o600 + os.FileMode(i%2)) })
		ok(t, err)
		return d
	}
	idle := time.Duration(0)
	for i := range 10 {
		idle += change(i) / 10
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var writers sync.WaitGroup
	var mu sync.Mutex
	written := 0
	for i, n := range r.nodes {
		for k := range 2 {
			writers.Go(func() {
				for round := 0; ctx.Err() == nil; round++ {
					data := random(uint64(1_000_000*i+10_000*k+round), 4<<20)
					if err := writeSynced(n.path(fmt.Sprint("bulk-", n.name, "-", k)), data); err != nil && ctx.Err() == nil {
						t.Errorf("bulk on %s: %v", n.name, err)
						return
					}
					mu.Lock()
					written += len(data)
					mu.Unlock()
				}
			})
		}
	}
	time.Sleep(5 * time.Second) // until the queues are full
	var took []time.Duration
	for start := time.Now(); time.Since(start) < 30*time.Second; {
		took = append(took, change(len(took)))
		time.Sleep(100 * time.Millisecond)
	}
	for _, n := range r.nodes {
		if s := n.status(); s.Raft.Term != term || s.Raft.Leader == "" {
			t.Errorf("%s is in term %d and follows %q, it was term %d", n.name, s.Raft.Term, s.Raft.Leader, term)
		}
	}
	cancel()
	slices.Sort(took)
	most := took[len(took)*9/10] // a packet that is lost costs the line's time once more
	t.Logf("%d small changes, median %v, nine of ten in %v, slowest %v; %v before there was bulk",
		len(took), took[len(took)/2], most, took[len(took)-1], idle)
	if most > time.Second {
		t.Errorf("nine of ten small changes took up to %v", most)
	}
	for _, n := range r.nodes {
		words := n.net.inside("tc", "qdisc", "del", "dev", "eth0", "root")
		ok(t, command(words[0], words[1:]...))
	}
	writers.Wait()
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d MiB were written", written>>20)
	if written < 8<<20 {
		t.Error(errors.New("the line was hardly used: nothing is proved"))
	}
}
