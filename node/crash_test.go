package node

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/node/control"
)

// promises are what a store has acknowledged to be durable.
type promises struct {
	mu    sync.Mutex
	more  sync.Cond // signalled for every promise, and when a worker ends
	pins  map[cas.CID]string
	files map[string]string
}

func newPromises() *promises {
	p := &promises{pins: make(map[cas.CID]string), files: make(map[string]string)}
	p.more.L = &p.mu
	return p
}

func (p *promises) keep(do func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	do()
	p.more.Broadcast()
}

// await returns when there are n more promises, or the test has failed.
func (p *promises) await(t *testing.T, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n += len(p.files) + len(p.pins); len(p.files)+len(p.pins) < n && !t.Failed(); {
		p.more.Wait()
	}
}

// copyOf returns what is promised by now.
func (p *promises) copyOf() *promises {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := newPromises()
	for k, v := range p.pins {
		c.pins[k] = v
	}
	for k, v := range p.files {
		c.files[k] = v
	}
	return c
}

// work pins blocks and writes files until stop is closed.
func (p *promises) work(t *testing.T, n *Node, r *rand.Rand, id string, stop chan struct{}) {
	defer p.keep(func() {})
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		name := fmt.Sprintf("%s-%d", id, i)
		switch r.IntN(5) {
		case 0:
			if err := n.checkpoint(); err != nil {
				t.Error(err)
				return
			}
		case 1, 2:
			b := castest.Block(t, r.Uint64N(1000), 1+r.IntN(60_000))
			if err := n.Put(t.Context(), b); err != nil {
				t.Error(err)
				return
			}
			if r.IntN(2) == 0 {
				continue // not promised
			}
			if err := n.Pin(t.Context(), control.Pin{CID: b.CID(), Name: name}); err != nil {
				t.Error(err)
				return
			}
			p.keep(func() { p.pins[b.CID()] = name })
		default:
			data := castest.Bytes(r.Uint64(), 1+r.IntN(1<<(3+r.IntN(14))))
			writeFile(t, n, name, data)
			p.keep(func() { p.files[name] = string(data) })
		}
	}
}

// hold checks that n keeps the promises, and what needs none: whatever has a name
// has its bytes.
func (p *promises) hold(t *testing.T, n *Node) {
	t.Helper()
	found := make(map[cas.CID]bool)
	err := n.Pins(t.Context(), func(pin control.Pin) error {
		found[pin.CID] = true
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for c, name := range p.pins {
		if !found[c] {
			t.Errorf("pin %s of %v is lost", name, c)
		}
	}
	for name, want := range p.files {
		if readFile(t, n, name) != want {
			t.Errorf("file %s has other bytes", name)
		}
	}
	err = n.Check(t.Context(), func(c cas.CID, err error) error { return fmt.Errorf("%v: %w", c, err) })
	if err != nil {
		t.Errorf("check: %v", err)
	}
}

// Rule 2: data before name on disk, too.
// TestPowerLossKeepsWhatWasAcknowledged cuts the power at some moment while
// several goroutines write, keeps any part of what was not synced, opens what is
// left, and goes on with that.
func TestPowerLossKeepsWhatWasAcknowledged(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %#x (the order of goroutines is not the seed's)", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	fs := vfs.NewCrashableMem()
	p := newPromises()
	for round := range 7 {
		o := options("/above/store")
		o.FS = fs
		o.journalFile = 64 << 10
		n, err := Open(t.Context(), o)
		if err != nil {
			t.Fatalf("seed %#x, round %d: %v", seed, round, err)
		}
		p.hold(t, n)
		if t.Failed() {
			t.Fatalf("seed %#x, round %d", seed, round)
		}
		stop := make(chan struct{})
		var workers sync.WaitGroup
		for id := range 3 {
			r := rand.New(rand.NewPCG(r.Uint64(), 0))
			workers.Go(func() { p.work(t, n, r, fmt.Sprintf("%d-%d", round, id), stop) })
		}
		p.await(t, 1+r.IntN(60))
		promised := p.copyOf()
		percent := []int{0, 100, r.IntN(101)}[r.IntN(3)]
		crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(r.Uint64(), 0))})
		close(stop)
		workers.Wait()
		closeNode(t, n)
		fs, p = crashed, promised
	}
}
