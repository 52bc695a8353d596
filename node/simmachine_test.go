//go:build simulation

package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/chunker"
	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/p2p"
)

// machine has a disk, and while it is on, a process.
type machine struct {
	w       *world
	name    string
	role    p2p.Role
	founder bool // its store is made, not joined

	mu      sync.Mutex
	rng     *rand.Rand
	id      p2p.PeerID
	disk    *simDisk
	proc    *process // nil: off
	on      bool     // is to run
	back    time.Time
	invited string // token to join with
	waiting bool   // for a token
	refused int    // times that a token was of no use
	old     *simDisk
	oldID   p2p.PeerID
	stale   bool // its disk was put back
	rotten  bool // bytes of its disk have changed by themselves
	end     error
}

// process is a run of a node, from power on to power off.
type process struct {
	m    *machine
	disk *simDisk
	seed uint64
	ctx  context.Context
	kill context.CancelFunc
	over chan struct{} // closed when nothing runs any more

	mu    sync.Mutex
	dead  bool // nothing that it says counts
	hosts []*simHost
	node  *Node
}

var errDead = errors.New("the power is off")

// simChunks are small, so that small files have many blocks.
var simChunks = chunker.Params{Algorithm: chunker.GearJump, Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10}

func (m *machine) peer() p2p.PeerID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.id
}

func (m *machine) setPeer(id p2p.PeerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.id = id
}

func (m *machine) process() *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.proc
}

// node returns the node that runs, nil if there is none.
func (m *machine) node() *Node {
	if p := m.process(); p != nil {
		return p.running()
	}
	return nil
}

func (m *machine) disturb(change func(*simDisk)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.disk.set(func() { change(m.disk) })
}

// troubled reports whether its disk is full or failing.
func (m *machine) troubled() (bad bool) {
	m.disturb(func(d *simDisk) { bad = d.full || d.failing != "" })
	return bad
}

func (m *machine) powerOn() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.on = true
	m.begin()
}

// begin starts a process. m.mu is held.
func (m *machine) begin() {
	p := &process{m: m, disk: m.disk, seed: m.rng.Uint64(), over: make(chan struct{})}
	p.ctx, p.kill = context.WithCancel(context.Background())
	m.proc = p
	m.w.running.Go(p.run)
}

// tend starts a process again that has ended, and one whose time has come.
func (m *machine) tend() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc != nil {
		select {
		case <-m.proc.over:
			m.proc = nil
		default:
			return
		}
	}
	if m.on && (time.Now().After(m.back) || m.w.healed.Load()) {
		m.begin()
	}
}

// crash takes the power for a while.
func (m *machine) crash(pause time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc == nil {
		return
	}
	m.w.note("%s loses its power for %v", m.name, pause)
	m.proc.die()
	m.disk = m.disk.crash(m.rng)
	m.proc, m.back = nil, time.Now().Add(pause)
}

// die ends a process that has no chance to do anything more.
func (p *process) die() {
	p.mu.Lock()
	p.dead = true
	for _, h := range p.hosts {
		h.Transport.Close()
	}
	p.mu.Unlock()
	p.kill()
}

// stop ends the process in good order.
func (m *machine) stop(pause time.Duration) {
	m.mu.Lock()
	p := m.proc
	m.back = time.Now().Add(pause)
	m.mu.Unlock()
	if p != nil {
		m.w.note("%s stops", m.name)
		p.kill()
	}
}

// shutDown ends what runs, for good.
func (m *machine) shutDown() {
	m.mu.Lock()
	m.on = false
	m.mu.Unlock()
	m.stop(0)
}

// takeDisk keeps the machine off until putDisk.
func (m *machine) takeDisk() *simDisk {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.on = false
	return m.disk
}

func (m *machine) putDisk(d *simDisk) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.on, m.disk = true, d
}

// wipe takes the power and the disk.
func (m *machine) wipe() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.proc != nil {
		m.proc.die()
	}
	m.disk = newSimDisk(newMem(), m.rng.Uint64())
	m.proc, m.invited, m.stale, m.old, m.id, m.refused = nil, "", false, nil, "", 0
	m.rotten = false
	m.founder = false // there is a cluster, which it joins anew
}

// alive calls fn unless what the process says does not count any more.
func (p *process) alive(fn func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return false
	}
	fn()
	return true
}

func (p *process) running() *Node {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead || p.ctx.Err() != nil {
		return nil
	}
	return p.node
}

func (p *process) options() Options {
	return Options{
		Dir: filepath.Join(p.m.w.dir, p.m.name), Create: p.m.founder, Listen: "127.0.0.1:4101", Name: p.m.name, Reserve: simCapacity / 8,
		Chunker: simChunks, FS: p.disk, Random: newSeededReader(p.seed, 5), Logger: p.m.w.logger(p.m.name),
		journalFile: 256 << 10, network: p.host,
		clock: func() time.Duration { return time.Since(p.m.w.start) },
	}
}

// run is what a machine does while it is on.
func (p *process) run() {
	defer close(p.over)
	defer p.kill()
	if !p.join() {
		return
	}
	n, err := Open(p.ctx, p.options())
	if err != nil {
		p.ended(fmt.Errorf("open: %w", err))
		return
	}
	p.mu.Lock()
	p.node = n
	p.mu.Unlock()
	p.m.w.note("%s runs", p.m.name)
	var programs sync.WaitGroup
	for i := range 2 {
		g := newProgram(p, n, i)
		programs.Go(g.run)
	}
	var cause error
	select {
	case <-p.ctx.Done():
	case cause = <-n.Failed():
		p.ended(cause)
		p.die()
	}
	programs.Wait()
	if err := n.Close(); err != nil {
		p.alive(func() { p.m.w.note("close of %s: %v", p.m.name, err) })
	}
}

// join makes the machine a member, if it is none. It reports whether it is one.
func (p *process) join() bool {
	o := p.options()
	for p.ctx.Err() == nil {
		if _, err := readConfig(o.FS, o.Dir); !errors.Is(err, ErrNoStore) || p.m.founder {
			return true
		}
		p.m.mu.Lock()
		token := p.m.invited
		p.m.waiting = token == ""
		p.m.mu.Unlock()
		if token != "" {
			_, err := Join(p.ctx, JoinOptions{Dir: o.Dir, Token: token, Listen: o.Listen, Name: o.Name, FS: o.FS, Random: o.Random, Logger: o.Logger, network: p.host})
			if err == nil {
				p.m.w.note("%s has joined", p.m.name)
				return true
			}
			p.m.w.note("%s cannot join yet: %v", p.m.name, err)
			p.m.mu.Lock()
			p.m.refused++
			p.m.mu.Unlock()
		}
		select {
		case <-p.ctx.Done():
		case <-time.After(time.Second):
		}
	}
	return false
}

// ended looks at why a process has ended by itself.
func (p *process) ended(err error) {
	m, w := p.m, p.m.w
	p.mu.Lock()
	dead := p.dead
	p.mu.Unlock()
	if dead || p.ctx.Err() != nil {
		return
	}
	w.note("%s ends: %v", m.name, err)
	troubled := m.troubled()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.back = time.Now().Add(time.Second)
	var refusal *raft.Refusal
	refused := errors.As(err, &refusal)
	switch {
	case refused && refusal.Kind == raft.Restored && m.stale, refused && refusal.Kind == raft.Removed && w.isLeaving(m):
		m.end, m.on = err, false
	case errors.Is(err, ErrNoNames):
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ENOSPC), errors.Is(err, cas.ErrNoSpace):
	default:
		w.failf("%s (disk in trouble: %v) ended: %v", m.name, troubled, err)
	}
}
