package node

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	mrand "math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/node/control"
	"github.com/cairnfs/cairn/volume"
)

func noise(seed byte, size int) []byte {
	p := make([]byte, size)
	_, _ = mrand.NewChaCha8([32]byte{seed}).Read(p)
	return p
}

// remove removes a file, which nobody has open, for good.
func remove(t testing.TB, n *Node, name string) {
	t.Helper()
	a, err := n.volume.Lookup(t.Context(), namespace.RootIno, name)
	if err == nil {
		err = n.volume.Unlink(t.Context(), namespace.RootIno, name)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.volume.Forget(a.Ino)
}

// collectNow collects with no history kept.
func collectNow(t testing.TB, n control.Node) control.Collected {
	t.Helper()
	all, err := n.Collect(t.Context(), control.CollectOptions{Trim: true})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Rule 16: in a cluster a round that any node begins gives back the space of removed
// files on all of them, while files are written on all of them, and takes nothing else.
func TestAClusterCollectsWhatNothingRefersTo(t *testing.T) {
	a := openMember(t, Options{Dir: t.TempDir()})
	if _, err := a.Invite(t.Context(), control.InviteOptions{Listen: loopback}); err != nil {
		t.Fatal(err)
	}
	b := joined(t, a, t.TempDir())
	c := joined(t, a, t.TempDir())
	nodes := []*Node{a, b, c}
	const size = 3 << 20
	for i := range byte(6) {
		write(t, nodes[i%3].volume, fmt.Sprint("f", i), noise(i, size))
	}
	eventually(t, "three copies of everything", func() bool {
		return a.blocks.Stats().StoredBytes >= 6*size && b.blocks.Stats().StoredBytes >= 6*size && c.blocks.Stats().StoredBytes >= 6*size
	})
	for i := range 3 {
		remove(t, nodes[i], fmt.Sprint("f", i))
	}

	var over atomic.Bool
	var wg sync.WaitGroup
	written := make([]map[string]byte, 3)
	for k, n := range nodes {
		written[k] = make(map[string]byte)
		wg.Go(func() {
			for i := 0; !over.Load(); i++ {
				name, seed := fmt.Sprintf("w%d-%d", k, i), byte(i%3) // what is about to be collected, again
				if i%2 == 0 {
					seed = byte(100 + 30*k + i%30)
				}
				write(t, n.volume, name, noise(seed, 300<<10+i))
				written[k][name] = seed
			}
		})
	}
	first := collectNow(t, b)
	second := collectNow(t, c)
	over.Store(true)
	wg.Wait()
	// While files are created none that was removed is known to be closed, so that
	// it may take until the second round.
	if first.Nodes != 3 || second.Nodes != 3 || len(first.Absent) > 0 || first.Bytes+second.Bytes < size {
		t.Errorf("first round %+v, second %+v", first, second)
	}
	for k, n := range nodes {
		for name, seed := range written[k] {
			size := 0
			if _, err := fmt.Sscanf(name, fmt.Sprintf("w%d-%%d", k), &size); err != nil {
				t.Fatal(err)
			}
			for _, on := range nodes {
				if got := read(t, on.volume, name); !bytes.Equal(got, noise(seed, 300<<10+size)) {
					t.Errorf("%s on another node is not what was written", name)
				}
			}
			remove(t, n, name)
		}
	}
	// With nothing in between, two rounds leave what three files take.
	collectNow(t, a)
	eventually(t, "only what files refer to is left", func() bool {
		collectNow(t, a)
		for _, n := range nodes {
			if n.blocks.Stats().StoredBytes > 3*size*102/100 {
				return false
			}
		}
		return true
	})
	for i := byte(3); i < 6; i++ {
		for _, n := range nodes {
			if !bytes.Equal(read(t, n.volume, fmt.Sprint("f", i)), noise(i, size)) {
				t.Errorf("file %d is not what it was", i)
			}
		}
	}
	if err := a.Check(t.Context(), func(c cas.CID, err error) error { return fmt.Errorf("%v: %w", c, err) }); err != nil {
		t.Error(err)
	}
	s, err := a.Status(t.Context())
	if err != nil || s.GC.Round < 4 || s.GC.Phase != "idle" || s.GC.LastCompleted == "" || s.GC.Held != "" {
		t.Errorf("status %+v, %v", s.GC, err)
	}
}

// Rule 16: what a command is storing stays while rounds go by, until it is pinned or the
// command ends.
func TestWhatIsBeingUploadedIsNotCollected(t *testing.T) {
	n := openMember(t, Options{Dir: t.TempDir()})
	up, err := n.Upload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	roots := make([]manifest.Root, 2)
	for i := range roots {
		w := manifest.NewWriter(uploadStore{n, up}, n.Format())
		if err := w.Write(t.Context(), noise(byte(i), 1<<20)); err != nil {
			t.Fatal(err)
		}
		if roots[i], err = w.Finish(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if all := collectNow(t, n); all.Blocks != 0 {
			t.Fatalf("collected %+v", all)
		}
	}
	if err := up.Pin(t.Context(), control.Pin{CID: roots[0].CID, Name: "a"}); err != nil {
		t.Fatal(err)
	}
	if err := up.Close(); err != nil {
		t.Fatal(err)
	}
	if all := collectNow(t, n); all.Bytes < 1<<20 || all.Bytes > 2<<20 {
		t.Errorf("of two, of which one is pinned: collected %+v", all)
	}
	if _, err := manifest.Stat(t.Context(), n, roots[0].CID); err != nil {
		t.Error(err)
	}
	if err := n.Pin(t.Context(), control.Pin{CID: roots[1].CID}); !errors.Is(err, cas.ErrNotFound) {
		t.Errorf("pin of what was collected: %v", err)
	}
}

type uploadStore struct {
	cas.Getter
	control.Upload
}

// Rule 16: a manifest that cannot be read ends the sweep, and the status says of which
// file it is.
func TestAnUnreadableManifestIsNamedInTheStatus(t *testing.T) {
	n := openMember(t, Options{Dir: t.TempDir()})
	write(t, n.volume, "good", noise(1, 3<<20))
	write(t, n.volume, "bad", noise(2, 3<<20))
	a, err := n.volume.Lookup(t.Context(), namespace.RootIno, "bad")
	if err != nil {
		t.Fatal(err)
	}
	remove(t, n, "good")
	inode, err := n.state.Inode(a.Ino)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.blocks.Delete(t.Context(), []cas.CID{inode.Content.Root}, nil); err != nil {
		t.Fatal(err)
	}
	before := n.blocks.Stats().Blocks
	all := collectNow(t, n)
	if all.Nodes != 0 || n.blocks.Stats().Blocks != before {
		t.Errorf("collected %+v, %d of %d blocks left", all, n.blocks.Stats().Blocks, before)
	}
	s, err := n.Status(t.Context())
	if want := fmt.Sprintf("inode %d", a.Ino); err != nil || !bytes.Contains([]byte(s.GC.Held), []byte(want)) {
		t.Errorf("status says %q, not %s: %v", s.GC.Held, want, err)
	}
}

// Rule 16: a node that was started during a round sits it out, and the round goes on.
func TestANodeThatIsStartedDuringARoundSitsItOut(t *testing.T) {
	dir := t.TempDir()
	n := openMember(t, Options{Dir: dir})
	write(t, n.volume, "file", noise(1, 1<<20))
	remove(t, n, "file")
	n.stop() // nobody drives the round
	n.tending.Wait()
	if err := n.awaitReaped(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.trimTo(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := n.propose(t.Context(), &namespace.NextStep{Step: n.state.Collection().Step + 1}); err != nil {
			t.Fatal(err)
		}
	}
	n.close(t)
	n = openMember(t, Options{Dir: dir})
	eventually(t, "the end of the round", func() bool { return n.state.Collection().Round() == 1 })
	if r := n.collect.report(); r.Last.Round != 1 || r.Last.Blocks != 0 || r.Last.Why == "" {
		t.Errorf("the node took part: %+v", r)
	}
	if all := collectNow(t, n); all.Bytes < 1<<20 {
		t.Errorf("the next round: %+v", all)
	}
}

// Rule 17, rule 16: a disk that is full of files has room again when they were removed
// and what they consisted of is collected.
func TestAFullDiskIsFreed(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv("CAIRN_REQUIRE_FUSE") == "" {
		t.Skip("this test needs root, to mount a small disk (CAIRN_REQUIRE_FUSE=1 makes that a failure)")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=300m"); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	n, err := Open(t.Context(), Options{Dir: dir, Create: true, Reserve: 100 << 20, journalFile: 4 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.close(t)
	fill := func() (files int) {
		for ; ; files++ {
			_, h, err := n.volume.Create(t.Context(), namespace.RootIno, fmt.Sprint("f", files), 0o644, syscall.O_WRONLY, volume.Caller{})
			if err == nil {
				_, err = h.Write(t.Context(), noise(byte(files), 8<<20), 0)
				err = errors.Join(err, h.Fsync(t.Context(), false))
				h.Release()
			}
			if errors.Is(err, syscall.ENOSPC) || errors.Is(err, cas.ErrNoSpace) {
				return files
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	files := fill()
	if files < 5 {
		t.Fatalf("the disk is full with %d files", files)
	}
	for i := range files + 1 {
		if _, err := n.volume.Lookup(t.Context(), namespace.RootIno, fmt.Sprint("f", i)); err == nil {
			remove(t, n, fmt.Sprint("f", i))
		}
	}
	all := collectNow(t, n)
	if all.Bytes < int64(files)*8<<20 {
		t.Errorf("collected %+v of %d files", all, files)
	}
	eventually(t, "room for most of it again", func() bool {
		u, err := n.usage()
		return err == nil && u.Avail > uint64(files-2)*8<<20
	})
	again := fill()
	if again < files-2 {
		t.Errorf("there was room for %d files, then for %d", files, again)
	}
	remove(t, n, fmt.Sprint("f", again)) // which could not be stored, and so not closed
}

// A node does its part of a step when it has observed it, not before: it would sit a sweep
// out for which it has recorded everything, and go on recording after the round.
func TestAStepIsNotDoneBeforeItIsObserved(t *testing.T) {
	n, err := Open(t.Context(), Options{Dir: t.TempDir(), Create: true, Reserve: -1, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer n.close(t)
	collectNow(t, n)
	c := newCollector(n) // of another node, which is told of the end of the round only now
	c.started = true
	c.recorder.Start()
	if err := c.part(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.observe()
	if err := c.part(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.recorder.Complete() {
		t.Error("it records after the end of the round")
	}
	if step := n.state.Collection().Step; c.done != step {
		t.Errorf("it has done step %d, and %d is over", c.done, step)
	}
}
