//go:build simulation

package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/node/control"
	"github.com/cairnfs/cairn/p2p"
)

// members are who should belong to the simulated cluster, and what its operator does
// to that end.
type members struct {
	limit int // machines that are to belong to it

	admin    sync.Mutex
	leaving  *machine   // that is being removed, or whose disk is gone
	removing p2p.PeerID // as which
	draining bool       // it must be drained before
	wiped    bool       // its disk is gone
}

func newMem() *vfs.MemFS { return vfs.NewCrashableMem() }

func (ms *members) init(rng *rand.Rand) { ms.limit = []int{1, 2, 3, 3, 4, 5, 5}[rng.IntN(7)] }

func (w *world) isLeaving(m *machine) bool {
	w.admin.Lock()
	defer w.admin.Unlock()
	return w.leaving == m
}

// memberEvent is a change of who belongs to the cluster.
func (w *world) memberEvent(m *machine) {
	switch on := w.on(); {
	case len(on) < w.limit && w.chance(700):
		for _, m := range w.machines {
			if !slices.Contains(on, m) {
				w.note("%s is to join", m.name)
				m.powerOn()
				return
			}
		}
	case w.chance(700):
		w.settle()
		if m = w.any(); m == nil {
			return
		}
		switch w.rng.IntN(5) {
		case 4:
			w.rot(m)
		case 0:
			m.copyDisk()
		case 1:
			w.lose(m)
		case 2:
			w.retire(m)
		case 3:
			if m.hasCopy() {
				w.putBack(m)
			} else {
				m.copyDisk()
			}
		}
	default:
		copies := w.rng.IntN(4)
		if copies == 1 {
			copies = 2
		}
		w.running.Go(func() {
			if n := m.node(); n != nil && n.cluster.Load() != nil {
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				w.note("copies are to be %d: %v", copies, n.SetCopies(ctx, copies))
			}
		})
	}
}

// settle lets the cluster come to where it can stand more, while programs go on. It
// may take long only if members were away for long.
func (w *world) settle() {
	w.calm()
	for range 30 {
		if w.steady() == "" {
			return
		}
		time.Sleep(time.Second)
		w.tendMachines()
	}
}

// on returns the machines that are to belong to the cluster.
func (w *world) on() (all []*machine) {
	for _, m := range w.machines {
		m.mu.Lock()
		if m.on || m.end != nil {
			all = append(all, m)
		}
		m.mu.Unlock()
	}
	return all
}

// copyDisk keeps a copy of the disk, as a backup does.
func (m *machine) copyDisk() {
	if s := m.w.steady(); s != "" {
		m.w.note("no copy of the disk of %s: %s", m.name, s)
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.w.note("the disk of %s is copied", m.name)
	m.old, m.oldID = m.disk.clone(0, m.rng), m.id
}

func (m *machine) hasCopy() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.old != nil && m.oldID == m.id
}

// lose wipes the disk of a machine whose loss the cluster must survive.
func (w *world) lose(m *machine) {
	if s := w.steady(); s != "" {
		w.note("%s does not lose its disk: %s", m.name, s)
		return
	}
	w.note("%s loses its disk", m.name)
	w.leave(m, false)
	m.wipe()
	m.mu.Lock()
	m.on = false
	m.mu.Unlock()
}

// rot changes a byte of a block that a machine has, and has all that it has verified,
// as check does.
func (w *world) rot(m *machine) {
	n := m.node()
	if s := w.steady(); s != "" || n == nil {
		w.note("%s keeps its bytes: %s", m.name, s)
		return
	}
	// What is not in the index yet counts as a torn tail at the next start.
	if err := n.index.Flush(); err != nil {
		w.note("%s keeps its bytes: %v", m.name, err)
		return
	}
	var disk *simDisk
	m.disturb(func(d *simDisk) { disk = d })
	const head = 512 // more than that of the file
	indexed := n.index.Blocks().IndexedTo
	segment, end := indexed>>32, int64(uint32(indexed))
	if end <= head {
		return
	}
	at := head + w.rng.Int64N(end-head)
	if err := disk.flip(n.o.FS.PathJoin(n.path(segmentsDir), fmt.Sprintf("%010d.segment", segment)), at); err != nil {
		w.failf("flip a byte: %v", err)
	}
	m.rotten = true
	bad := 0
	err := n.blocks.Check(context.Background(), func(cas.CID, error) { bad++ })
	w.note("byte %d of %d of the blocks of %s is another one, %d are bad: %v", at, end, m.name, bad, err)
}

// retire has a machine leave, after its blocks were moved.
func (w *world) retire(m *machine) {
	if len(w.on()) < 2 || m == w.machines[0] && len(w.on()) < 3 {
		return
	}
	w.admin.Lock()
	busy := w.leaving != nil
	w.admin.Unlock()
	if busy || m.peer() == "" {
		return
	}
	w.note("%s is to be drained and removed", m.name)
	w.leave(m, true)
}

func (w *world) leave(m *machine, drain bool) {
	w.admin.Lock()
	defer w.admin.Unlock()
	w.leaving, w.removing, w.draining, w.wiped = m, m.peer(), drain, !drain
	m.mu.Lock()
	m.founder = false
	m.mu.Unlock()
}

// putBack puts an older copy of its disk in a machine. Whether its log is too old the
// others can tell if they have all that it acknowledged; see the simulation of the log.
func (w *world) putBack(m *machine) {
	if s := w.steady(); s != "" || !w.level() {
		w.note("no old copy is put back in %s: %s", m.name, s)
		return
	}
	w.note("an old copy of the disk of %s is put back", m.name)
	w.admin.Lock()
	w.leaving, w.removing, w.draining, w.wiped = m, m.peer(), false, false
	w.admin.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.proc.die()
	m.proc, m.disk, m.stale, m.old = nil, m.old, true, nil
	m.back = time.Now()
}

// level reports whether all voters know the same log and term, and none is about to
// begin another.
func (w *world) level() bool {
	var last, term uint64
	for i, m := range w.up() {
		n := m.node()
		if n == nil {
			return false
		}
		s := n.cluster.Load().group.Status()
		if i > 0 && (s.Last != last || s.Term != term) || s.Role == "candidate" {
			return false
		}
		last, term = s.Last, s.Term
	}
	return true
}

// administrate does what an operator does, until ctx ends.
func (w *world) administrate(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(700 * time.Millisecond):
		}
		w.admin.Lock()
		leaving, id, draining, wiped := w.leaving, w.removing, w.draining, w.wiped
		w.admin.Unlock()
		if leaving != nil {
			w.see(ctx, leaving, id, draining, wiped)
			continue
		}
		for _, m := range w.machines {
			w.invite(ctx, m)
		}
	}
}

// operate has any node do something, with the patience that people have.
func (w *world) operate(ctx context.Context, not *machine, fn func(context.Context, *Node) error) error {
	for i := range w.machines {
		m := w.machines[(i+int(time.Now().Unix()))%len(w.machines)]
		n := m.node()
		if n == nil || m == not {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		return fn(ctx, n)
	}
	return errDead
}

// invite gets a token for a machine that waits for one.
func (w *world) invite(ctx context.Context, m *machine) {
	m.mu.Lock()
	waiting := m.waiting && m.invited == "" && m.on && m.proc != nil
	again := m.refused > 20
	if again {
		m.refused = 0
	}
	m.mu.Unlock()
	if again { // whoever invited it is gone
		w.leave(m, false)
		m.wipe()
		return
	}
	if !waiting {
		return
	}
	var inv control.Invitation
	err := w.operate(ctx, m, func(ctx context.Context, n *Node) (err error) {
		inv, err = n.Invite(ctx, control.InviteOptions{Role: m.role.String()})
		return err
	})
	w.note("%s is invited: %v", m.name, err)
	if err == nil {
		m.mu.Lock()
		m.invited, m.waiting = inv.Token, false
		m.mu.Unlock()
	}
}

// see takes the next step for a machine that leaves or has left its disk.
func (w *world) see(ctx context.Context, m *machine, id p2p.PeerID, draining, wiped bool) {
	m.mu.Lock()
	refused, stale := m.end != nil, m.stale
	m.mu.Unlock()
	switch {
	case stale && !refused: // it may have been in time
		if w.steady() == "" {
			w.note("%s has caught up", m.name)
			m.mu.Lock()
			m.stale = false
			m.mu.Unlock()
			w.done()
		}
		return
	case draining && !refused:
		if n := m.node(); n == nil || n.cluster.Load() == nil || !n.cluster.Load().replica.Drained() {
			_ = w.operate(ctx, nil, func(ctx context.Context, n *Node) error { return n.DrainPeer(ctx, string(id), false) })
			return
		}
	}
	err := w.operate(ctx, m, func(ctx context.Context, n *Node) error { return n.RemovePeer(ctx, string(id)) })
	w.note("%s is removed: %v", m.name, err)
	if err != nil && !errors.Is(err, namespace.ErrNoMember) {
		return
	}
	m.wipe()
	m.mu.Lock()
	m.end, m.on = nil, true
	m.mu.Unlock()
	w.done()
}

func (w *world) done() {
	w.admin.Lock()
	defer w.admin.Unlock()
	w.leaving = nil
}
