package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace"
)

// gate is a store in which Put waits while it is shut.
type gate struct {
	cas.Store
	entered chan struct{} // gets one for each Put
	open    chan struct{} // closed to let all pass
}

func (g *gate) Put(ctx context.Context, blocks ...cas.Block) error {
	select {
	case g.entered <- struct{}{}:
	default:
	}
	<-g.open
	return g.Store.Put(ctx, blocks...)
}

func (r *rig) shutGate() *gate {
	g := &gate{Store: r.full.Store, entered: make(chan struct{}, 1), open: make(chan struct{})}
	r.full.Store = g
	return g
}

// expectNothingHeld fails the test unless all memory was given back and no file
// is kept.
func (r *rig) expectNothingHeld() {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := r.mem.Load(); n != 0 {
		r.t.Errorf("%d dirty bytes are accounted for", n)
	}
	for ino, f := range r.files {
		r.t.Errorf("inode %d is kept: %d opens, clean %v, orphan %v", ino, f.opens, f.clean(), f.orphan)
	}
}

// What a worker moves down counts once, even when the file goes away meanwhile.
func TestMemoryOfAFileRemovedWhileItIsStreamedIsGivenBackOnce(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	g := r.shutGate()
	h := r.create("file")
	r.write(h, pattern(2<<20, 1), 0) // a worker begins to stream it
	<-g.entered
	r.must(r.Unlink(t.Context(), namespace.RootIno, "file"))
	h.Release()
	close(g.open)
	r.close() // waits for the worker
	r.expectNothingHeld()
}

// Background work that began with one struct of a file must not let go of
// another.
func TestBackgroundWorkKeepsTheFileItWorksOn(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("file")
	r.write(h, pattern(5<<10, 1), 0)
	held := r.unclean()
	r.must(h.Flush(t.Context()))
	h.Release()
	h = r.open(h.Ino())
	r.write(h, []byte("again"), 0)
	for _, f := range held {
		if f != h.f {
			t.Error("two structs for one inode")
		}
		r.release(f)
	}
	if r.acquireIfPresent(h.Ino()) != h.f {
		t.Error("an open file was let go of")
	}
	r.release(h.f)
	h.Release()
	r.close()
	r.expectNothingHeld()
}

func TestAFileThatSyncMadeCleanIsForgotten(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("file")
	r.write(h, []byte("small"), 0)
	h.Release() // without Flush, as after a write to a mapping
	r.must(r.Sync(t.Context()))
	r.expectNothingHeld()
	r.close()
}

// cell is the unit of the stress test: its bytes are all equal, so that a reader
// can tell a whole write from a torn one.
const cell = 4 << 10

// TestFilesUsedByManyAtOnceStayWhole has several goroutines write, read,
// truncate, sync, remove and make the same few files while the volume works in
// the background. Cells are written whole: whoever reads one sees one value.
// When all is quiet, nothing is held; and a restart finds the same bytes.
func TestFilesUsedByManyAtOnceStayWhole(t *testing.T) {
	const files, workers, rounds = 4, 6, 60 / slowdown
	seed := *seedFlag
	if seed == 0 {
		seed = 1
	}
	fs := vfs.NewCrashableMem()
	r := openRig(t, fs, 0)
	ticks := make(chan struct{}, 1)
	var background sync.WaitGroup
	background.Go(func() {
		s := &stress{r: r}
		for range ticks {
			s.check(r.foldOld(context.Background()))
			s.check(r.Sync(context.Background()))
			s.check(r.reapIdle(context.Background()))
		}
	})
	var all sync.WaitGroup
	for i := range workers {
		all.Go(func() {
			s := &stress{r: r, rnd: rand.New(rand.NewPCG(seed, uint64(i)))}
			for range rounds {
				s.use(fmt.Sprint("file", s.rnd.IntN(files)))
				select {
				case ticks <- struct{}{}:
				default:
				}
			}
		})
	}
	all.Wait()
	close(ticks)
	background.Wait()
	var want [files][]byte
	read := func(name string) []byte {
		a, err := r.Lookup(t.Context(), namespace.RootIno, name)
		if errors.Is(err, namespace.ErrNotFound) {
			return nil
		}
		r.must(err)
		h := r.open(a.Ino)
		defer h.Release()
		p := make([]byte, a.Size+1)
		n, err := h.Read(t.Context(), p, 0)
		r.must(err)
		if int64(n) != a.Size {
			t.Errorf("%s has %d bytes, stat says %d", name, n, a.Size)
		}
		return p[:n]
	}
	for i := range want {
		want[i] = read(fmt.Sprint("file", i))
	}
	r.close()
	r.expectNothingHeld()
	r = openRig(t, fs, 0)
	for i := range want {
		if got := read(fmt.Sprint("file", i)); !bytes.Equal(got, want[i]) {
			t.Errorf("file%d after a restart: %s (seed %d)", i, difference(got, want[i]), seed)
		}
	}
	r.expectNothingHeld()
	r.close()
}

type stress struct {
	r   *rig
	rnd *rand.Rand
}

// check allows for what others do to names meanwhile.
func (s *stress) check(err error) {
	s.r.t.Helper()
	if err != nil && !errors.Is(err, namespace.ErrNotFound) && !errors.Is(err, namespace.ErrExist) {
		s.r.t.Error(err)
	}
}

// use opens or makes the file, does something with it, and releases it.
func (s *stress) use(name string) {
	ctx := s.r.t.Context()
	var h *Handle
	a, err := s.r.Lookup(ctx, namespace.RootIno, name)
	if err == nil {
		h, err = s.r.Open(ctx, a.Ino, syscall.O_RDWR)
	} else {
		_, h, err = s.r.Create(ctx, namespace.RootIno, name, 0o644, syscall.O_RDWR, Caller{})
	}
	if err != nil {
		s.check(err)
		return
	}
	defer h.Release()
	for range 4 {
		at := cell * s.rnd.Int64N(64)
		switch s.rnd.IntN(18) {
		case 0, 1, 2:
			s.write(h, at, 1)
		case 3:
			s.write(h, at, s.rnd.IntN(600)+1)
		case 4:
			a, err := s.r.GetAttr(ctx, h.Ino())
			s.check(err)
			s.write(h, a.Size, 300)
		case 5:
			_, err = s.r.SetAttr(ctx, h.Ino(), SetAttr{Valid: SetSize, Size: at})
			s.check(err)
		case 6:
			s.check(h.Fsync(ctx, false))
		case 7:
			s.check(h.Flush(ctx))
		case 8:
			if s.rnd.IntN(4) == 0 {
				s.check(s.r.Unlink(ctx, namespace.RootIno, name))
				s.r.Forget(h.Ino())
			}
		case 9:
			_, err := s.r.GetXattr(ctx, h.Ino(), CIDAttr)
			s.check(err)
		case 10:
			_, err := s.r.SetAttr(ctx, h.Ino(), SetAttr{Valid: SetMtime, Mtime: s.rnd.Int64N(1e18)})
			s.check(err)
		case 11:
			h.f.move.Lock()
			s.check(h.f.record(true))
			h.f.move.Unlock()
		case 12:
			s.check(h.Zero(ctx, at, cell*s.rnd.Int64N(64), s.rnd.IntN(2) == 0))
		case 13, 14:
			s.copy(h, at)
		case 15:
			_, err := s.r.SetAttr(ctx, h.Ino(), SetAttr{Valid: SetMode, Mode: s.rnd.Uint32N(0o7777), KillPriv: s.rnd.IntN(2) == 0})
			s.check(err)
		case 16:
			if _, err := h.Seek(ctx, at, s.rnd.IntN(2) == 0); !errors.Is(err, ErrNoData) {
				s.check(err)
			}
		default:
			s.read(h, at)
		}
	}
}

func (s *stress) write(h *Handle, at int64, cells int) {
	p := bytes.Repeat([]byte{byte(s.rnd.IntN(255) + 1)}, cell*cells)
	_, err := h.Write(s.r.t.Context(), p, at)
	s.check(err)
}

// copy copies some cells to h, from any file, while others may do so the other way
// round.
func (s *stress) copy(h *Handle, at int64) {
	ctx := s.r.t.Context()
	a, err := s.r.Lookup(ctx, namespace.RootIno, fmt.Sprint("file", s.rnd.IntN(4)))
	if err != nil {
		s.check(err)
		return
	}
	src, err := s.r.Open(ctx, a.Ino, syscall.O_RDWR)
	if err != nil {
		s.check(err)
		return
	}
	defer src.Release()
	n := cell * s.rnd.Int64N(32)
	from := cell * s.rnd.Int64N(64)
	if a.Ino == h.Ino() {
		from = at + n // no overlap
	}
	if n > 0 {
		_, err = h.CopyRange(ctx, at, src, from, n)
		s.check(err)
	}
}

func (s *stress) read(h *Handle, at int64) {
	p := make([]byte, cell)
	n, err := h.Read(s.r.t.Context(), p, at)
	s.check(err)
	for _, b := range p[:n] {
		if b != p[0] {
			s.r.t.Errorf("inode %d: cell at %d has both %d and %d", h.Ino(), at, p[0], b)
			return
		}
	}
}
