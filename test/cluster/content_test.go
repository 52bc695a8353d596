//go:build linux

package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// random returns bytes that follow from the seed and do not compress.
func random(seed uint64, size int) []byte {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	data := make([]byte, size)
	_, _ = rand.NewChaCha8(key).Read(data) // never fails
	return data
}

// writeSynced writes a file and returns when it and its name are durable.
func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// holds returns an error unless the file has these bytes.
func holds(path string, want []byte) error {
	got, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s has %d other bytes than the %d it should", path, len(got), len(want))
	}
	return nil
}

// files are names below a mount and what they hold.
type files map[string][]byte

// fill writes n files of sizes up to 2 MiB, durably, below a new directory.
func fill(t testing.TB, on *node, dir string, n int) files {
	t.Helper()
	if err := os.MkdirAll(on.path(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	sizes := []int{0, 1, 100, 5000, 70_000, 400_000, 2 << 20}
	all := files{}
	for i := range n {
		name := filepath.Join(dir, fmt.Sprint("f", i))
		all[name] = random(uint64(len(dir)*1000+i), sizes[i%len(sizes)])
		if err := writeSynced(on.path(name), all[name]); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// check reads all files on a node.
func (f files) check(t testing.TB, on *node) {
	t.Helper()
	bad := 0
	for name, want := range f {
		_, err := bounded(t, "a read of "+name+" on "+on.name, func() error { return holds(on.path(name), want) })
		if err != nil {
			if bad++; bad <= 5 {
				t.Errorf("on %s: %v", on.name, err)
			}
		}
	}
	if bad > 5 {
		t.Errorf("on %s: %d of %d files are not as they should be", on.name, bad, len(f))
	}
}

// pace is the least time between two files: what is written is read again on every
// node.
const pace = 20 * time.Millisecond

// load writes files on some nodes, durably and one after the other on each, and
// keeps what was acknowledged.
type load struct {
	t      testing.TB
	pace   time.Duration
	stop   chan struct{}
	once   sync.Once // closes stop
	all    sync.WaitGroup
	mu     sync.Mutex
	acked  files
	count  map[*node]int
	gap    map[*node]time.Duration // the longest time between two
	last   map[*node]time.Time
	failed map[*node][]error // of attempts
}

// startLoad begins to write below dir, which is made on the first node.
func startLoad(t testing.TB, dir string, nodes ...*node) *load {
	t.Helper()
	return startPacedLoad(t, dir, pace, nodes...)
}

func startPacedLoad(t testing.TB, dir string, pace time.Duration, nodes ...*node) *load {
	t.Helper()
	l := &load{
		t: t, pace: pace, stop: make(chan struct{}), acked: files{}, count: map[*node]int{}, gap: map[*node]time.Duration{},
		last: map[*node]time.Time{}, failed: map[*node][]error{},
	}
	if err := os.Mkdir(nodes[0].path(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	nodes[0].r.loads = append(nodes[0].r.loads, l)
	for i, n := range nodes {
		l.last[n] = time.Now()
		l.all.Go(func() { l.write(n, i, dir) })
	}
	return l
}

func (l *load) write(on *node, seed int, dir string) {
	sizes := []int{50, 3000, 20_000, 300_000}
	for i := 0; ; i++ {
		select {
		case <-l.stop:
			return
		default:
		}
		name := filepath.Join(dir, fmt.Sprintf("%s-%d", on.name, i))
		data := random(uint64(seed)<<32|uint64(i), sizes[i%len(sizes)])
		if err := writeSynced(on.path(name), data); err != nil {
			l.mu.Lock()
			l.failed[on] = append(l.failed[on], fmt.Errorf("%s: %w", time.Now().Format("15:04:05.000"), err))
			l.mu.Unlock()
			select {
			case <-l.stop:
			case <-time.After(pause):
			}
			continue
		}
		l.mu.Lock()
		now := time.Now()
		l.acked[name] = data
		l.count[on]++
		l.gap[on] = max(l.gap[on], now.Sub(l.last[on]))
		l.last[on] = now
		l.mu.Unlock()
		time.Sleep(l.pace)
	}
}

// end stops the writers.
func (l *load) end() {
	l.t.Helper()
	l.halt()
	_, _ = bounded(l.t, "a writer", func() error { l.all.Wait(); return nil })
}

// halt has the writers stop after what they are doing.
func (l *load) halt() { l.once.Do(func() { close(l.stop) }) }

// awaitMore waits until each of the nodes has written so many more files.
func (l *load) awaitMore(more int, nodes ...*node) time.Duration {
	l.t.Helper()
	l.mu.Lock()
	want := map[*node]int{}
	for _, n := range nodes {
		want[n] = l.count[n] + more
	}
	l.mu.Unlock()
	return eventually(l.t, settleTime, fmt.Sprint(more, " more files of each writer"), func() error {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, n := range nodes {
			if l.count[n] < want[n] {
				var last error
				if f := l.failed[n]; len(f) > 0 {
					last = f[len(f)-1]
				}
				return fmt.Errorf("%s has written %d of %d, %d attempts failed, the last with %v", n.name, l.count[n], want[n], len(l.failed[n]), last)
			}
		}
		return nil
	})
}

// report logs how it went, and returns how many attempts failed on some nodes.
func (l *load) report(nodes ...*node) (failed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range nodes {
		l.t.Logf("%s: %d files acknowledged, %d attempts failed, longest pause %v", n.name, l.count[n], len(l.failed[n]), l.gap[n].Round(time.Millisecond))
		for i, err := range l.failed[n] {
			if i < 5 {
				l.t.Logf("  %v", err)
			}
		}
		failed += len(l.failed[n])
	}
	return failed
}
