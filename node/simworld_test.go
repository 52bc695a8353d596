//go:build simulation

package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/memnet"
)

// world is a simulation.
type world struct {
	t     *testing.T
	seed  int64
	rng   *rand.Rand // of the one goroutine in which run is
	start time.Time
	dir   string // for what nodes write beside their disk
	net   *memnet.Network

	machines []*machine
	running  sync.WaitGroup // whatever must have ended before the world does
	healed   atomic.Bool
	quiet    atomic.Bool // programs do little
	trouble  string      // what is wrong with the network or a disk at present

	members
	history
	dumps map[string]uint64 // hashes of the namespace, by position
}

// world's limits.
const (
	simMachines = 5
	simPatience = 20 * time.Minute // in which a healed cluster must come to rest
)

func newWorld(t *testing.T, seed int64) *world {
	w := &world{
		t: t, seed: seed, rng: rand.New(rand.NewPCG(uint64(seed), 0)), start: time.Now(), dir: t.TempDir(),
		net: memnet.New(), dumps: make(map[string]uint64),
	}
	w.history.init()
	w.members.init(w.rng)
	for i := range simMachines {
		m := &machine{w: w, name: fmt.Sprint("m", i), role: p2p.RoleStorage, rng: rand.New(rand.NewPCG(uint64(seed), 10+uint64(i)))}
		m.disk = newSimDisk(vfs.NewCrashableMem(), w.rng.Uint64())
		w.machines = append(w.machines, m)
	}
	w.machines[0].founder = true
	if w.limit > 2 && w.chance(400) {
		w.machines[w.limit-1].role = p2p.RoleClient
	}
	return w
}

// note tells what happens, to whoever wants to know.
func (w *world) note(format string, args ...any) {
	if os.Getenv("CAIRN_SIM") != "" {
		fmt.Printf("%9.3f %s\n", time.Since(w.start).Seconds(), fmt.Sprintf(format, args...))
	}
}

// failf tells that a promise was broken.
func (w *world) failf(format string, args ...any) {
	w.t.Helper()
	w.t.Errorf("seed %d, after %.3f s: %s", w.seed, time.Since(w.start).Seconds(), fmt.Sprintf(format, args...))
	w.note("FAILED: "+format, args...)
}

func (w *world) logger(name string) *slog.Logger {
	if os.Getenv("CAIRN_LOG") == "" {
		return slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
}

// run is the simulation.
func (w *world) run(steps int) {
	defer w.end(w.begin())
	w.machines[0].powerOn()
	for step := 0; step < steps && !w.t.Failed(); step++ {
		time.Sleep(time.Duration(w.rng.Int64N(int64(4 * time.Second))))
		w.event()
		w.tendMachines()
		w.compare()
	}
	w.heal()
	if !w.t.Failed() {
		w.rest()
	}
}

// begin has the operator begin to work, who stops when ctx is cancelled.
func (w *world) begin() (cancel func()) {
	ctx, cancel := context.WithCancel(context.Background())
	w.running.Go(func() { w.administrate(ctx) })
	return cancel
}

// end ends everything.
func (w *world) end(cancel func()) {
	cancel()
	for _, m := range w.machines {
		m.shutDown()
	}
	w.running.Wait()
	time.Sleep(time.Minute) // memberlist does not wait for what it began; what goes on then has leaked
}

// heal ends all that goes wrong, and the programs.
func (w *world) heal() {
	w.note("heal")
	w.healed.Store(true)
	w.calm()
	w.net.SetDelay(nil)
}

// rest waits until the cluster has come to rest and looks whether all is there.
func (w *world) rest() {
	why := "?"
	for deadline := time.Now().Add(simPatience); time.Now().Before(deadline) && !w.t.Failed(); time.Sleep(2 * time.Second) {
		w.tendMachines()
		if why = w.unrest(); why == "" {
			w.final()
			return
		}
	}
	w.failf("the cluster does not come to rest within %v: %s", simPatience, why)
}

// tendMachines starts again what has ended by itself, or whose time has come.
func (w *world) tendMachines() {
	for _, m := range w.machines {
		m.tend()
	}
}

func (w *world) chance(permille int) bool { return w.rng.IntN(1000) < permille }

// up returns the machines on which a node runs.
func (w *world) up() (all []*machine) {
	for _, m := range w.machines {
		if m.node() != nil {
			all = append(all, m)
		}
	}
	return all
}

func (w *world) any() *machine {
	all := w.up()
	if len(all) == 0 {
		return nil
	}
	return all[w.rng.IntN(len(all))]
}

// event is something that may happen to a cluster.
func (w *world) event() {
	if w.trouble != "" && w.chance(500) {
		w.note("the network and the disks are whole again")
		w.calm()
	}
	m := w.any()
	if m == nil {
		return
	}
	switch w.rng.IntN(20) {
	case 0, 1, 2:
		m.crash(w.pause())
	case 3:
		w.note("all lose their power")
		for _, m := range w.up() {
			m.crash(w.pause())
		}
	case 4:
		m.stop(w.pause())
	case 5, 6:
		w.disturbNetwork(m)
	case 7:
		w.note("links of %s stall", m.name)
		w.trouble = "links"
		for _, other := range w.machines {
			if w.chance(600) {
				w.stall(m, other)
			}
			if w.chance(600) {
				w.stall(other, m)
			}
		}
	case 8:
		w.slow()
	case 9, 10:
		if n := m.node(); n != nil {
			w.note("checkpoint of %s", m.name)
			if err := n.checkpoint(); err != nil && m.node() == n && !m.troubled() {
				w.note("checkpoint of %s: %v", m.name, err)
			}
		}
	case 11:
		w.note("the disk of %s is full", m.name)
		w.trouble = "disk"
		left := []uint64{10, 20}[w.rng.IntN(2)] // for deletes, or not even for those
		m.disturb(func(d *simDisk) { d.full, d.left = true, d.capacity/left })
	case 12:
		dir := []string{segmentsDir, journalDir}[w.rng.IntN(2)]
		w.note("the disk of %s fails below %s", m.name, dir)
		w.trouble = "disk"
		m.disturb(func(d *simDisk) { d.failing = dir })
	case 13:
		m.disturb(func(d *simDisk) { d.capacity = simCapacity/2 + uint64(w.rng.Int64N(simCapacity)) })
	case 14:
		w.sleepLong()
	default:
		w.memberEvent(m)
	}
}

// pause is how long a machine stays off.
func (w *world) pause() time.Duration {
	if w.chance(200) {
		return time.Duration(w.rng.Int64N(int64(40 * time.Second)))
	}
	return time.Duration(w.rng.Int64N(int64(5 * time.Second)))
}

// sleepLong lets so much time pass that sessions end, or rarely so much that members
// count as away.
func (w *world) sleepLong() {
	d := 15 * time.Second
	if w.chance(100) {
		d = 11 * time.Minute
	}
	w.note("%v pass", d)
	w.quiet.Store(d > time.Minute) // or files that only grow get too large
	defer w.quiet.Store(false)
	for range 10 {
		time.Sleep(d / 10)
		w.tendMachines()
	}
}

func (w *world) disturbNetwork(m *machine) {
	w.trouble = "network"
	switch w.rng.IntN(3) {
	case 0:
		w.note("%s is cut off", m.name)
		w.partition([]*machine{m})
	case 1:
		var alone []*machine
		for _, other := range w.machines {
			if w.chance(500) {
				alone = append(alone, other)
			}
		}
		w.note("the network is split in two")
		w.partition(alone)
	case 2:
		other := w.any()
		w.note("%s and %s do not reach each other", m.name, other.name)
		if a, b := m.peer(), other.peer(); a != b {
			w.net.Cut(a, b)
		}
	}
}

// partition cuts the links between alone and all others.
func (w *world) partition(alone []*machine) {
	in := make(map[*machine]bool)
	for _, m := range alone {
		in[m] = true
	}
	for _, a := range alone {
		for _, b := range w.machines {
			if x, y := a.peer(), b.peer(); !in[b] && x != "" && y != "" {
				w.net.Cut(x, y)
			}
		}
	}
}

func (w *world) stall(from, to *machine) {
	if a, b := from.peer(), to.peer(); a != "" && b != "" && a != b {
		w.net.Stall(a, b)
	}
}

// slow has messages take time, or get lost.
func (w *world) slow() {
	most := time.Duration(1+w.rng.IntN(300)) * time.Millisecond
	loss := w.rng.IntN(20)
	w.note("messages take up to %v, %d %% are lost", most, loss)
	w.trouble = "slow"
	src := newSeededReader(w.rng.Uint64(), 2)
	rng := rand.New(src)
	w.net.SetDelay(func(from, to p2p.PeerID) time.Duration { return time.Duration(rng.Int64N(int64(most))) })
	w.net.SetFilter(func(p2p.PeerID, p2p.PeerID, p2p.Protocol) error {
		if rng.IntN(100) < loss {
			return memnet.ErrLost
		}
		return nil
	})
}

// calm makes network and disks whole.
func (w *world) calm() {
	w.trouble = ""
	w.net.HealAll()
	w.net.SetDelay(w.usual())
	w.net.SetFilter(nil)
	for _, m := range w.machines {
		m.disturb(func(d *simDisk) { d.full, d.failing = false, "" })
	}
}

// usual is how long messages take when nothing is wrong.
func (w *world) usual() func(p2p.PeerID, p2p.PeerID) time.Duration {
	rng := rand.New(newSeededReader(uint64(w.seed), 4))
	return func(p2p.PeerID, p2p.PeerID) time.Duration {
		return time.Duration(rng.Int64N(int64(2 * time.Millisecond)))
	}
}
