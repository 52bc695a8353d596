package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// clusterTime bounds a run, and how long what it has started may take to end.
const clusterTime = 3 * time.Minute

func TestEveryMeasurementOfAClusterYieldsOneLine(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), clusterTime)
	defer cancel()
	dir := t.TempDir()
	var out bytes.Buffer
	if err := Run(ctx, Options{Dir: dir, Size: testSize, Cluster: 3, JSON: true, Out: &out}); err != nil {
		t.Error(err)
	}
	known := make(map[string]Result)
	var names []string
	for line := range bytes.Lines(out.Bytes()) {
		var r Result
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		names = append(names, r.Name)
		known[r.Name] = r
		if r.Seconds <= 0 || r.Bytes+r.Ops <= 0 || r.PeakRSS <= 0 {
			t.Errorf("%s", line)
		}
	}
	if !slices.Equal(names, ClusterNames()) {
		t.Errorf("measured %v, want %v", names, ClusterNames())
	}
	for name, peers := range map[string]int{"cluster.write-replicated": 1, "cluster.read-cold": 2} {
		r := known[name]
		if r.Limit != limitTLSStream || r.Ratio <= 0 || len(r.Ratios) != peers {
			t.Errorf("%s is compared with %q and %v", name, r.Limit, r.Ratios)
		}
		// The content does not compress, so each byte has crossed once at least.
		if r.Bytes != testSize || r.WireBytes < r.Bytes || r.WireBytes > 4*r.Bytes {
			t.Errorf("%s: %d bytes, %d on the wire", name, r.Bytes, r.WireBytes)
		}
	}
	if r := known["cluster.delta"]; r.WireBytes <= 0 || r.WireBytes > r.Bytes/2 {
		t.Errorf("%d bytes on the wire for a change of 1 %% of %d", r.WireBytes, r.Bytes)
	}
	if r := known["cluster.visible"]; r.P50us <= 0 || r.P99us < r.P50us {
		t.Errorf("visible after %v µs, 99 %% after %v", r.P50us, r.P99us)
	}
	nothingLeft(t, dir)
}

func TestAnInterruptedRunOfAClusterLeavesNothing(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	dir := t.TempDir()
	watch := &watcher{until: "cluster.write-replicated", then: interrupt}
	o := Options{
		Dir: dir, Size: testSize, Cluster: 2, JSON: true, Out: watch,
		Only: []string{"cluster.write-replicated", "cluster.create-1"},
	}
	if err := Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	nothingLeft(t, dir)
}

// watcher calls then when a figure is written.
type watcher struct {
	until string
	then  func()
}

func (w *watcher) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(w.until)) {
		w.then()
	}
	return len(p), nil
}

// nothingLeft fails if there are files or mounts in dir, or processes that name it.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), dir) {
		t.Errorf("mounts left behind (%v):\n%s", err, mounts)
	}
	// The guards of mounts whose nodes were killed end by themselves.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		running := processesOf(t, dir)
		if len(running) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still running: %q", running)
		}
	}
}

// processesOf returns the command lines that name dir.
func processesOf(t *testing.T, dir string) (lines []string) {
	t.Helper()
	running, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range running {
		if line, err := os.ReadFile(name); err == nil && bytes.Contains(line, []byte(dir)) {
			lines = append(lines, string(line))
		}
	}
	return lines
}

func TestAClusterOfOneIsRefused(t *testing.T) {
	for _, n := range []int{-1, 1, MaxCluster + 1} {
		dir := t.TempDir()
		if err := Run(t.Context(), Options{Dir: dir, Cluster: n, Out: &bytes.Buffer{}}); !errors.Is(err, ErrClusterSize) {
			t.Errorf("%d nodes: %v", n, err)
		}
	}
}

func TestTheClientChangesPartsOfAFile(t *testing.T) {
	const size = 16 << 20
	name := filepath.Join(t.TempDir(), "file")
	if _, err := writeFile(request{Path: name, Size: size, Seed: 1}); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	const count = 2*pieceSize + 3*page
	if _, err := changeParts(request{Path: name, Size: size, Count: count, Seed: 2}); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(name)
	if err != nil || len(after) != size {
		t.Fatalf("%d bytes, %v", len(after), err)
	}
	changed := 0
	for off := 0; off < size; off += page {
		if !bytes.Equal(before[off:off+page], after[off:off+page]) {
			changed += page
		}
	}
	if changed != count {
		t.Errorf("%d bytes are others, want %d", changed, count)
	}
}

func TestTheClientWritesUntilItIsDurable(t *testing.T) {
	dir := t.TempDir()
	if d, err := writeUntilSynced(request{Path: dir}); err != nil || d.Ops != 1 {
		t.Errorf("%v, %v", d, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(nameOf(request{Path: dir}, 0), &st); err != nil || st.Size != page {
		t.Errorf("%d bytes, %v", st.Size, err)
	}
}
