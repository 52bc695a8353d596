//go:build linux

package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"
)

// storedBytes returns what a node says that its blocks take on disk.
func (n *node) storedBytes() int64 {
	n.t.Helper()
	var s struct {
		Store struct{ StoredBytes int64 }
	}
	if err := json.Unmarshal([]byte(n.must("status", "--json")), &s); err != nil {
		n.t.Fatal(err)
	}
	return s.Store.StoredBytes
}

// Rule 16: the space of removed files comes back on all nodes, under load, also when one
// is killed in the middle; everything else stays what it was.
func TestRemovedFilesGiveTheirSpaceBackOnAllNodes(t *testing.T) {
	r := newCluster(t, 3)
	a, b, c := r.nodes[0], r.nodes[1], r.nodes[2]
	kept := fill(t, a, "kept", 8)
	gone := fill(t, b, "removed", 14)
	r.awaitCopies(r.nodes...)
	before := make([]int64, 3)
	size := int64(0)
	for name, data := range gone {
		size += int64(len(data))
		if err := os.Remove(b.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	for i, n := range r.nodes {
		before[i] = n.storedBytes()
	}
	l := startLoad(t, "load", a, b)
	freed := regexp.MustCompile(`freed (\d+) blocks`)
	collect := func(on *node) int {
		t.Helper()
		out := on.must("gc", "--keep", "0s")
		m := freed.FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("gc says %q", out)
		}
		n, _ := strconv.Atoi(m[1])
		return n
	}
	blocks := collect(a)
	l.end()
	blocks += collect(b)
	if blocks == 0 {
		t.Error("nothing was freed")
	}
	written := int64(0)
	for _, data := range l.acked {
		written += int64(len(data))
	}
	for i, n := range r.nodes {
		if now := n.storedBytes(); now > before[i]-size*9/10+written*11/10 {
			t.Errorf("%s: %d bytes before, %d now, with %d removed and %d written", n.name, before[i], now, size, written)
		}
	}

	// A node that is killed during a round sits out, and the round goes on without it.
	more := fill(t, a, "more", 7)
	for name := range more {
		if err := os.Remove(a.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	ended := make(chan string, 1)
	go func() {
		_, errs, code := a.run("gc", "--keep", "0s")
		ended <- fmt.Sprint(code, errs)
	}()
	time.Sleep(200 * time.Millisecond)
	kill(c)
	if said := <-ended; said[0] != '0' {
		t.Errorf("gc while a node is killed: %s", said)
	}
	c.mount()
	collect(c)
	for _, n := range r.nodes {
		kept.check(t, n)
		l.acked.check(t, n)
		if out, errs, code := n.run("check"); code != 0 {
			t.Errorf("%s: check: %s%s", n.name, out, errs)
		}
		if _, err := os.Stat(n.path(filepath.Join("removed", "f0"))); !os.IsNotExist(err) {
			t.Errorf("%s: a removed file is there: %v", n.name, err)
		}
	}
}
