package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/cairnfs/cairn/namespace"
)

const patchedSize = 300_000

// newPatchedHub returns nodes that share a file, and its content. Patches are folded
// when the test says so.
func newPatchedHub(t *testing.T, n int) (h *hub, content []byte) {
	h = newHub(t, n)
	for _, m := range h.nodes {
		m.Volume.o.patchFold = namespace.MaxPatches + 1
	}
	content = pattern(patchedSize, 1)
	h.nodes[0].createFile("file", content)
	return h, content
}

// patch writes and syncs, and returns content with that in it.
func (m *member) patch(f *Handle, content, p []byte, off int) []byte {
	m.t.Helper()
	m.put(f, p, int64(off))
	m.must(f.Fsync(context.Background(), true))
	return overlay(content, p, off)
}

// patches says what the node's namespace has of patches of the file.
func (m *member) patches(name string) namespace.Patches {
	m.t.Helper()
	n, err := m.state.Inode(m.find(name))
	m.must(err)
	return n.Patches
}

func (m *member) fold(name string) {
	m.t.Helper()
	f, err := m.acquire(m.find(name))
	m.must(err)
	defer m.release(f)
	m.must(f.foldPatches(context.Background()))
}

// Rule 18: a small write that is synced stores no block, however often that is done,
// and other nodes see it.
func TestASmallSyncedWriteStoresNoBlock(t *testing.T) {
	h, want := newPatchedHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	f := a.openFile("file", syscall.O_RDWR)
	before := h.blocks.puts.Load()
	for i := range 50 {
		want = a.patch(f, want, fmt.Appendf(nil, "change %d", i), i*977*31%patchedSize)
	}
	if stored := h.blocks.puts.Load() - before; stored != 0 {
		t.Errorf("%d blocks were stored for 50 small changes", stored)
	}
	b.shows("file", want)
	if p := b.patches("file"); p.Count != 50 {
		t.Errorf("there are %d patches", p.Count)
	}
	a.closeFile(f)
	b.fold("file")
	if p := b.patches("file"); p != (namespace.Patches{}) {
		t.Errorf("patches are left: %+v", p)
	}
	a.shows("file", want)
	b.shows("file", want)
}

// Rule 18: patches that are folded between when a file is looked up and when they are read
// are not missed, neither by who reads nor in what is written above.
func TestAFoldWhileAFileIsOpenedIsSeen(t *testing.T) {
	h, want := newPatchedHub(t, 3)
	a, b, c := h.nodes[0], h.nodes[1], h.nodes[2]
	f := a.openFile("file", syscall.O_RDWR)
	want = a.patch(f, want, []byte("patched"), 1000)
	a.closeFile(f)
	b.must(b.Barrier(t.Context()))
	looked, err := b.acquire(b.find("file"))
	b.must(err)
	defer b.release(looked)
	a.fold("file")
	b.must(b.Barrier(t.Context()))
	b.shows("file", want)
	w := b.openFile("file", syscall.O_RDWR)
	b.put(w, bytes.Repeat([]byte("w"), 2*namespace.MaxPatch), 1004) // so much names content
	b.closeFile(w)
	c.shows("file", overlay(want, bytes.Repeat([]byte("w"), 2*namespace.MaxPatch), 1004))
}

// Rule 18: folding is no change that anybody notices: not the kernel, whose pages stay
// right, and not one who writes.
func TestNobodyNoticesAFold(t *testing.T) {
	h, want := newPatchedHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	f := a.openFile("file", syscall.O_RDWR)
	want = a.patch(f, want, []byte("first"), 5)
	r := b.openFile("file", syscall.O_RDONLY)
	b.content(r) // the kernel has pages by now
	var events []Event
	stop := b.Watch(func(e []Event) { events = append(events, e...) })
	a.put(f, []byte("not synced"), 50)
	b.fold("file")
	b.must(b.Barrier(t.Context()))
	stop()
	for _, e := range events {
		if e.Content || e.All {
			t.Errorf("a fold drops pages: %+v", e)
		}
	}
	again := b.openFile("file", syscall.O_RDONLY)
	if !again.KeepCache() {
		t.Error("an open after a fold drops pages")
	}
	again.Release()
	a.must(a.Barrier(t.Context()))
	want = a.patch(f, overlay(want, []byte("not synced"), 50), []byte("second"), 100)
	if got := a.content(f); !bytes.Equal(got, want) {
		t.Errorf("the writer sees %s", brief(got))
	}
	b.must(b.Barrier(t.Context()))
	if got := b.content(r); !bytes.Equal(got, want) {
		t.Errorf("the reader sees %s", brief(got))
	}
	if p := b.patches("file"); p.Count != 1 {
		t.Errorf("what was written after the fold is %+v", p)
	}
	a.closeFile(f)
	r.Release()
}

// Rule 18: what a node has synced is there without it, and is folded without it.
func TestPatchesOfANodeThatIsGoneAreFoldedByTheLeader(t *testing.T) {
	h, want := newPatchedHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	f := a.openFile("file", syscall.O_RDWR)
	want = a.patch(f, want, []byte("synced"), 1000)
	a.put(f, []byte("not synced"), 2000)
	h.append(&namespace.EndSession{Session: a.Session()})
	a.setCut(true)
	b.shows("file", want)
	b.must(b.FoldAbandoned())
	if p := b.patches("file"); p.Count != 1 {
		t.Errorf("patches that may be somebody's: %+v", p)
	}
	h.ahead.Store(int64(2 * patchIdle))
	b.must(b.FoldAbandoned())
	eventually(t, "a fold of what was abandoned", func() bool { return b.patches("file").Count == 0 })
	b.shows("file", want)
	a.setCut(false)
	a.session.Store(0)
	a.SessionEnded()
	a.newSession()
	a.shows("file", want)
	f.Release()
}

func TestPatchesAreFoldedByTheNodeThatMadeThemWhenTheyAreOldOrMany(t *testing.T) {
	h, want := newPatchedHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	f := a.openFile("file", syscall.O_RDWR)
	want = a.patch(f, want, []byte("one"), 1000)
	a.closeFile(f)
	a.must(a.foldOldPatches())
	b.must(b.foldOldPatches())
	if p := a.patches("file"); p.Count != 1 {
		t.Errorf("new patches: %+v", p)
	}
	h.ahead.Store(int64(2 * patchFoldAfter))
	b.must(b.foldOldPatches()) // they are not its own
	if p := a.patches("file"); p.Count != 1 {
		t.Errorf("patches of another node: %+v", p)
	}
	a.must(a.foldOldPatches())
	eventually(t, "a fold of what is old", func() bool { return a.patches("file").Count == 0 })

	a.Volume.o.patchFold = 5
	f = a.openFile("file", syscall.O_RDWR)
	for i := range 5 {
		want = a.patch(f, want, []byte("many"), i)
	}
	eventually(t, "a fold of many", func() bool { return a.patches("file").Count == 0 })
	a.closeFile(f)
	b.shows("file", want)
}

func TestWithoutRoomForPatchesAnFsyncNamesContent(t *testing.T) {
	h, want := newPatchedHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	f := a.openFile("file", syscall.O_RDWR)
	ino := f.Ino()
	n, err := a.state.Inode(ino)
	a.must(err)
	for i := range namespace.MaxPatches { // by another who does not fold
		i = h.append(&namespace.PatchContent{Ino: ino, Base: n.Version, Size: n.Size, Ranges: []namespace.Range{{Off: int64(i), Data: []byte{7}}}})
		n.Version = uint64(i)
	}
	a.must(a.Barrier(t.Context()))
	for i := range namespace.MaxPatches {
		want[i] = 7
	}
	if p := a.patches("file"); p.Count != namespace.MaxPatches {
		t.Fatalf("%+v", p)
	}
	want = a.patch(f, want, []byte("one more"), 9000)
	b.must(b.Barrier(t.Context()))
	if p := b.patches("file"); p.Count != 0 {
		t.Errorf("%d patches are left", p.Count)
	}
	b.shows("file", want)
	a.closeFile(f)
}

// Whatever asks for the content of a file gets it with its patches.
func TestAFileWithPatchesIsLikeOneWithout(t *testing.T) {
	h, want := newPatchedHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	f := a.openFile("file", syscall.O_RDWR)
	want = a.patch(f, want, []byte("inside"), 70_000)
	_, err := a.SetAttr(t.Context(), f.Ino(), SetAttr{Valid: SetSize, Size: patchedSize + 500_000})
	a.must(err)
	want = a.patch(f, overlay(want, make([]byte, 500_000), len(want)), []byte("in the hole"), patchedSize+200_000)
	_, err = a.SetAttr(t.Context(), f.Ino(), SetAttr{Valid: SetSize, Size: patchedSize + 300_000})
	a.must(err)
	want = a.patch(f, want[:patchedSize+300_000], []byte("more"), 70_002)
	a.closeFile(f)
	b.createFile("plain", want)
	if p := b.patches("file"); p.Count != 3 {
		t.Fatalf("there are %d patches", p.Count)
	}
	for _, m := range []*member{a, b} {
		m.shows("file", want)
		f, plain := m.openFile("file", syscall.O_RDONLY), m.openFile("plain", syscall.O_RDONLY)
		for _, s := range []struct {
			off  int64
			hole bool
			want int64
		}{{0, true, patchedSize}, {patchedSize, false, patchedSize + 200_000}, {patchedSize + 200_000, true, patchedSize + 200_011}} {
			if got, err := f.Seek(t.Context(), s.off, s.hole); err != nil || got != s.want {
				t.Errorf("%s: hole (%t) after %d is at %d, %v; want %d", m.peer, s.hole, s.off, got, err, s.want)
			}
		}
		attr, err := m.GetAttr(t.Context(), f.Ino())
		m.must(err)
		if attr.Blocks < patchedSize/512 || attr.Blocks > (attr.Size+511)/512 {
			t.Errorf("%s: %d blocks of %d bytes", m.peer, attr.Blocks, attr.Size)
		}
		one, err := m.GetXattr(t.Context(), f.Ino(), CIDAttr)
		m.must(err)
		other, err := m.GetXattr(t.Context(), plain.Ino(), CIDAttr)
		m.must(err)
		if !bytes.Equal(one, other) {
			t.Errorf("%s: its CID is %s, that of a file with the same content %s", m.peer, one, other)
		}
		f.Release()
		plain.Release()
	}
	_, copied, err := b.Create(t.Context(), namespace.RootIno, "copy", 0o644, syscall.O_RDWR, Caller{})
	b.must(err)
	src := b.openFile("file", syscall.O_RDONLY)
	n, err := copied.CopyRange(t.Context(), 10, src, 60_000, int64(len(want)-60_000))
	if err != nil || n != int64(len(want)-60_000) {
		t.Errorf("copied %d bytes, %v", n, err)
	}
	src.Release()
	b.closeFile(copied)
	a.shows("copy", append(make([]byte, 10), want[60_000:]...))
}

// Rule 9: history has the content of its time.
func TestHistoryOfAFileHasItsPatches(t *testing.T) {
	h, want := newPatchedHub(t, 1)
	a := h.nodes[0]
	f := a.openFile("file", syscall.O_RDWR)
	want = a.patch(f, want, []byte("then"), 500)
	h.append(&namespace.Snapshot{Name: "then"})
	a.must(a.Barrier(t.Context()))
	at := a.state.Applied()
	now := a.patch(f, want, []byte("now!"), 500)
	a.closeFile(f)
	a.fold("file")
	a.shows("file", now)
	n, patches, err := a.state.At(at).Patches(f.Ino())
	a.must(err)
	then := a.newFile(n)
	then.base = a.patchedBase(n, patches)
	got := make([]byte, n.Size)
	if _, err := then.read(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("as of then the file is %s, %v", brief(got), err)
	}
}

func TestAFoldThatComesTooLateFoldsNothing(t *testing.T) {
	h, want := newPatchedHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	f := a.openFile("file", syscall.O_RDWR)
	want = a.patch(f, want, []byte("one"), 1000)
	n, err := a.state.Inode(f.Ino())
	a.must(err)
	late := &namespace.FoldContent{Ino: f.Ino(), Below: n.Patches.Below, UpTo: n.Version, Content: n.Content}
	_, err = b.SetAttr(t.Context(), f.Ino(), SetAttr{Valid: SetSize, Size: 1002})
	b.must(err)
	if _, err := a.propose(t.Context(), late); !errors.Is(err, namespace.ErrConflict) {
		t.Errorf("a fold of what was cut since: %v", err)
	}
	want = a.patch(f, want[:1002], []byte("two"), 2000)
	b.fold("file")
	b.shows("file", want)
	a.shows("file", want)
	a.closeFile(f)
}

// Rule 18: patches of which a truncation has left nothing are folded like others, and those
// that are made above them.
func TestPatchesThatWereCutAwayAreFolded(t *testing.T) {
	h, want := newPatchedHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	f := a.openFile("file", syscall.O_RDWR)
	resize := func(size int) {
		_, err := a.SetAttr(t.Context(), f.Ino(), SetAttr{Valid: SetSize, Size: int64(size)})
		a.must(err)
		want = overlay(want, nil, size)[:size]
	}
	want = a.patch(f, want, []byte("cut away"), 200_000)
	resize(100_000)
	b.must(b.Barrier(t.Context()))
	b.fold("file")
	if p := b.patches("file"); p != (namespace.Patches{}) {
		t.Errorf("patches are left: %+v", p)
	}
	b.shows("file", want)
	want = a.patch(f, want, []byte("cut away"), 90_000)
	resize(80_000)
	resize(85_000)
	want = a.patch(f, want, []byte("above"), 70_000)
	a.fold("file")
	if p := a.patches("file"); p != (namespace.Patches{}) {
		t.Errorf("patches are left: %+v", p)
	}
	want = a.patch(f, want, []byte("cut away"), 80_000)
	resize(70_000)
	a.put(f, pattern(2<<20, 3), 70_000)
	want = append(want, pattern(2<<20, 3)...)
	eventually(t, "a stream", func() bool { return f.f.basis().stream != nil })
	a.fold("file") // closing the file does it
	a.closeFile(f)
	a.shows("file", want)
	b.shows("file", want)
}

// Rule 18: the leader gets to all files, however many there are that it does not fold.
func TestFilesWithoutANameDoNotKeepOthersFromBeingFolded(t *testing.T) {
	h, want := newPatchedHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	for range maxAbandoned {
		a.createFile("gone", want)
		f := a.openFile("gone", syscall.O_RDWR)
		defer f.Release()
		a.patch(f, want, []byte("patch"), 0)
		a.must(a.Unlink(t.Context(), namespace.RootIno, "gone"))
	}
	a.createFile("last", want)
	f := a.openFile("last", syscall.O_RDWR)
	want = a.patch(f, want, []byte("patch"), 0)
	a.closeFile(f)
	b.must(b.Barrier(t.Context()))
	h.ahead.Store(int64(2 * patchIdle))
	b.must(b.FoldAbandoned())
	b.must(b.FoldAbandoned())
	eventually(t, "a fold of the last file", func() bool { return b.patches("last").Count == 0 })
	b.shows("last", want)
}
