package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/gc"
	"github.com/cairnfs/cairn/namespace"
)

// round takes a rig through rounds of collection, a step at a time, as a node does.
type round struct {
	records  *gc.Recorder
	eligible bool         // recording since the step of recording
	freed    atomic.Int64 // blocks
	marks    int          // at a time; 0: the default
}

func (g *round) recorder() *gc.Recorder {
	if g.records == nil {
		g.records = gc.NewRecorder(0)
	}
	return g.records
}

// sweep deletes what nothing refers to.
func (g *round) sweep(ctx context.Context, state *namespace.State, store cas.Getter, local gc.Local) error {
	roots, err := state.Roots()
	if err != nil {
		return err
	}
	defer roots.Close()
	if roots.Collection.Phase() != namespace.Sweeping {
		return errors.New("marked at another step")
	}
	res, err := gc.NewSweeper(gc.Options{
		Roots: func(ctx context.Context, each func(cas.CID, string) error) error {
			return roots.Each(ctx, 0, func(r namespace.Root) error { return each(r.CID, fmt.Sprint("inode ", r.Ino)) })
		},
		Get: store, Local: local, Keep: g.records.Has,
		Marks: g.marks, Rate: -1,
	}).Run(ctx)
	g.freed.Add(res.Deleted)
	return err
}

// collectStep does what the present step asks, and begins the next one.
func (r *rig) collectStep(ctx context.Context) error {
	g, col := &r.gc, r.state.Collection()
	var err error
	switch col.Phase() {
	case namespace.Idle:
		g.eligible = true
	case namespace.Recording:
		g.recorder().Start()
	case namespace.Renewing:
		g.recorder().Start()
		err = r.Renew(ctx)
	case namespace.Sweeping:
		if err = r.log.Sync(ctx); err == nil && g.eligible {
			err = g.sweep(ctx, r.state, r.blocks, r.blocks)
		}
		g.recorder().Stop()
	}
	if err != nil {
		return fmt.Errorf("%v: %w", col.Phase(), err)
	}
	return r.propose1(ctx, &namespace.NextStep{Step: col.Step + 1})
}

func (r *rig) propose1(ctx context.Context, op namespace.Op) error {
	_, err := r.propose(ctx, op)
	return err
}

func (r *rig) trimHistory(ctx context.Context) error {
	return r.propose1(ctx, &namespace.TrimHistory{Index: r.state.Applied()})
}

// collectAll runs a whole round.
func (r *rig) collectAll(ctx context.Context) error {
	for range 8 {
		if err := r.collectStep(ctx); err != nil {
			return err
		}
		if r.state.Collection().Phase() == namespace.Idle {
			return nil
		}
	}
	return errors.New("a round has no end")
}

// collectAll checks that after a round with no history nothing is left but what files
// refer to.
func (m *modelTest) collectAll() {
	ctx := m.t.Context()
	for m.r.state.Collection().Phase() != namespace.Idle {
		m.must(m.r.collectStep(ctx))
	}
	for _, f := range m.files {
		m.must(f.h.Fsync(ctx, false))
		f.h.f.move.Lock()
		m.must(f.h.f.commit(ctx))
		f.h.f.move.Unlock()
	}
	m.must(m.r.trimHistory(ctx))
	m.must(m.r.collectAll(ctx))
	live := make(map[cas.CID]bool)
	roots, err := m.r.state.Roots()
	m.must(err)
	defer roots.Close()
	w := gc.Walker{Get: m.r.blocks}
	m.must(roots.Each(ctx, 0, func(r namespace.Root) error {
		return w.Walk(ctx, r.CID, func(c cas.CID) error { live[c] = true; return nil })
	}))
	if got := m.r.blocks.Stats().Blocks; got != int64(len(live)) {
		m.fatalf("%d blocks are stored, files refer to %d", got, len(live))
	}
}

// collectStep does what the present step asks of every node, and begins the next one.
func (h *hub) collectStep(ctx context.Context) error {
	g, first := &h.gc, h.nodes[0]
	col := first.state.Collection()
	for _, m := range h.nodes {
		if err := m.Barrier(ctx); err != nil {
			return err
		}
		switch col.Phase() {
		case namespace.Recording:
			g.recorder().Start()
		case namespace.Renewing:
			if err := m.Renew(ctx); err != nil {
				return err
			}
		}
	}
	if col.Phase() == namespace.Sweeping {
		if err := g.sweep(ctx, first.state, &h.blocks, &h.blocks.Store); err != nil {
			return err
		}
		g.recorder().Stop()
	}
	h.append(&namespace.NextStep{Step: col.Step + 1})
	return first.Barrier(ctx)
}

func (h *hub) trimHistory() { h.append(&namespace.TrimHistory{Index: 1 << 60}) }

// Rule 16: the same for several nodes that share files: a round goes on when each of
// them has had promised again what it has written and not named.
func TestFilesOfSeveralNodesStayWhileBlocksAreCollected(t *testing.T) {
	h := newHub(t, 3)
	writers, stop := churn(t, func(worker int) *rig { return h.nodes[worker%3].rig }, 5)
	rounds := 0
	for ; h.gc.freed.Load() < 5_000/slowdown && !t.Failed(); rounds++ {
		h.trimHistory()
		orphans, err := h.nodes[0].state.Orphans()
		if err != nil {
			t.Fatal(err)
		}
		for _, ino := range orphans {
			open := false
			for _, m := range h.nodes {
				open = m.Holds([]namespace.Ino{ino})[0] || open
			}
			if !open {
				h.append(&namespace.Reap{Ino: ino})
			}
		}
		for range 4 {
			if err := h.collectStep(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	stop()
	writers.Wait()
	t.Logf("%d rounds collected %d blocks", rounds, h.gc.freed.Load())
}

// Rule 16: what a file has written and a stream has stored is promised in the step in
// which it began. When two rounds go by without the node, the command that names it is
// refused; the node looks for the blocks again and names it.
func TestContentThatIsNamedAfterRoundsWithoutTheNodeIsPromisedAgain(t *testing.T) {
	r := openRig(t, vfs.NewMem(), 0)
	content := noise(3<<20, 1)
	h := r.create("file")
	r.write(h, content, 0)
	h.f.move.Lock()
	r.must(h.f.drainTail(t.Context()))
	h.f.move.Unlock()
	r.gc.recorder().Start() // so that nothing is lost, as if another node had what is swept
	for range 8 {
		r.must(r.propose1(t.Context(), &namespace.NextStep{Step: r.state.Collection().Step + 1}))
	}
	if _, err := r.proposeCommand(t.Context(), &namespace.Command{Promised: 0, Ops: []namespace.Op{
		&namespace.Pin{CID: cas.Sum(cas.Raw, content)},
	}}); !errors.Is(err, namespace.ErrPromise) {
		t.Fatalf("a promise of two rounds ago: %v", err)
	}
	r.must(h.Fsync(t.Context(), false))
	r.must(h.Flush(t.Context()))
	h.Release()
	r.must(r.trimHistory(t.Context()))
	r.must(r.collectAll(t.Context()))
	h = r.open(h.Ino())
	got := make([]byte, len(content))
	if n, err := h.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got[:n], content) {
		t.Fatalf("%v; %s", err, difference(got[:n], content))
	}
	h.Release()
	r.close()
}

// Rule 16: a range that was copied from a file stays though the file is overwritten and
// its history forgotten, before the copy has a name for it, also after a power loss.
func TestACopiedRangeStaysWhenItsSourceIsCollected(t *testing.T) {
	fs := vfs.NewCrashableMem()
	r := openRig(t, fs, 0)
	content := noise(300<<10, 2)
	from := r.create("from")
	r.write(from, content, 0)
	r.must(from.Flush(t.Context()))
	to := r.create("to")
	if n, err := to.CopyRange(t.Context(), 0, from, 0, int64(len(content))); err != nil || n != int64(len(content)) {
		t.Fatal(n, err)
	}
	to.f.move.Lock()
	r.must(to.f.record(false)) // as memory pressure does: a restart replays it
	to.f.move.Unlock()
	r.must(r.Volume.o.Log.Sync(t.Context()))
	r.write(to, noise(int(300<<10), 3), 0) // over it in memory, and lost with the power
	r.must(r.propose1(t.Context(), &namespace.Truncate{Ino: from.Ino(), Size: 0}))
	for range 3 {
		r.must(r.trimHistory(t.Context()))
		r.must(r.collectAll(t.Context()))
	}
	crashed := fs.CrashClone(vfs.CrashCloneCfg{})
	r.abandon()
	r = openRig(t, crashed, 0)
	to = r.open(to.Ino())
	got := make([]byte, len(content))
	if n, err := to.Read(t.Context(), got, 0); err != nil || !bytes.Equal(got[:n], content) {
		t.Fatalf("%v; %s", err, difference(got[:n], content))
	}
	to.Release()
	r.close()
}

// Rule 16: nothing that a file needs is collected, whatever is done to files between
// the steps of a round, at full speed and with no history kept. Files are written and
// copied from each other by several goroutines while rounds follow each other.
func TestFilesStayWhileBlocksAreCollected(t *testing.T) {
	r := openRig(t, vfs.NewMem(), 0)
	r.gc.marks = 20_000 // few enough for several parts
	writers, stop := churn(t, func(int) *rig { return r }, 4)
	rounds := 0
	for ; r.gc.freed.Load() < 5_000/slowdown && !t.Failed(); rounds++ {
		r.must(r.ReapIdle(t.Context()))
		r.must(r.trimHistory(t.Context()))
		r.must(r.collectAll(t.Context()))
	}
	stop()
	writers.Wait()
	t.Logf("%d rounds collected %d blocks", rounds, r.gc.freed.Load())
	r.close()
}

// churn has goroutines write, copy, read and remove files, each its own, on the rigs
// that of returns, until the function it returns is called.
func churn(t *testing.T, of func(worker int) *rig, n int) (running *sync.WaitGroup, stop func()) {
	running = new(sync.WaitGroup)
	var over atomic.Bool
	for worker := range n {
		running.Go(func() {
			c := churner{t: t, r: of(worker), worker: worker, rnd: rand.New(rand.NewPCG(7, uint64(worker)))}
			for i := 0; !over.Load() && !t.Failed(); i++ {
				c.once(i)
			}
		})
	}
	return running, func() { over.Store(true) }
}

// noise returns bytes of which no part comes twice. The same seed begins with the same
// ones, so that blocks come back that are about to be collected.
func noise(n int, seed byte) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

type churner struct {
	t      *testing.T
	r      *rig
	worker int
	rnd    *rand.Rand
}

func (c *churner) check(err error, what string) bool {
	if err != nil {
		c.t.Errorf("worker %d: %s: %v", c.worker, what, err)
	}
	return err == nil
}

// remove removes a file, of which the kernel knows nothing any more.
func (c *churner) remove(name string) {
	a, err := c.r.Lookup(context.Background(), namespace.RootIno, name)
	if err == nil && c.check(c.r.Unlink(context.Background(), namespace.RootIno, name), "remove") {
		c.r.Forget(a.Ino)
	}
}

// once makes a file of random bytes and a copy of it with changes, in a random way, and
// reads both.
func (c *churner) once(i int) {
	ctx := context.Background()
	name := fmt.Sprintf("w%d-%d", c.worker, i%3)
	c.remove(name)
	_, h, err := c.r.Create(ctx, namespace.RootIno, name, 0o644, syscall.O_RDWR, Caller{})
	if !c.check(err, "create") {
		return
	}
	defer h.Release()
	content := noise(20<<10+c.rnd.IntN(1<<20)+c.rnd.IntN(2)*streamMin, byte(c.rnd.IntN(6)))
	for off := 0; off < len(content); off += 200 << 10 {
		if _, err := h.Write(ctx, content[off:min(len(content), off+200<<10)], int64(off)); !c.check(err, "write") {
			return
		}
	}
	if c.rnd.IntN(2) == 0 && !c.check(h.Flush(ctx), "flush") {
		return
	}
	copied := name + "-copy"
	c.remove(copied)
	_, to, err := c.r.Create(ctx, namespace.RootIno, copied, 0o644, syscall.O_RDWR, Caller{})
	if !c.check(err, "create copy") {
		return
	}
	defer to.Release()
	if _, err := to.CopyRange(ctx, 0, h, 0, int64(len(content))); !c.check(err, "copy") {
		return
	}
	// The original goes before the copy has a name for its content.
	if c.rnd.IntN(2) == 0 {
		if _, err := h.Write(ctx, noise(100<<10, 99), 0); !c.check(err, "overwrite") {
			return
		}
		if !c.check(h.Flush(ctx), "flush overwritten") {
			return
		}
	}
	want := bytes.Clone(content)
	change := noise(1+c.rnd.IntN(3000), byte(i))
	at := c.rnd.IntN(len(want) - len(change))
	copy(want[at:], change)
	if _, err := to.Write(ctx, change, int64(at)); !c.check(err, "change copy") {
		return
	}
	for range c.rnd.IntN(3) {
		if !c.check(to.Fsync(ctx, false), "fsync copy") {
			return
		}
	}
	if c.rnd.IntN(2) == 0 && !c.check(to.Flush(ctx), "flush copy") {
		return
	}
	got := make([]byte, len(want)+1)
	n, err := to.Read(ctx, got, 0)
	if c.check(err, "read copy") && !bytes.Equal(got[:n], want) {
		c.t.Errorf("worker %d: copy: %s", c.worker, difference(got[:n], want))
	}
}
