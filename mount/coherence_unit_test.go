//go:build linux

package mount

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/volume"
)

// What the kernel is told, and what it is answered, without a kernel.

// loneCluster is a cluster whose other nodes the test plays.
type loneCluster struct{}

func (loneCluster) Barrier(context.Context) error { return nil }
func (loneCluster) Session() namespace.SessionID  { return 7 }

// toldKernel writes down what it is told.
type toldKernel struct {
	kernel
	mu      sync.Mutex
	told    []string
	unknown map[uint64]int // inodes that it does not have yet, so many times
	blocked chan struct{}  // if not nil: names are dropped when it is closed
}

func (b *batch) empty() bool { return !b.all && len(b.names)+len(b.inodes) == 0 }

func newToldKernel(t testing.TB) *toldKernel {
	t.Helper()
	k := &toldKernel{kernel: newKernel(t), unknown: make(map[uint64]int)}
	k.server = dropper{k, k.vol}
	k.coherent.start(k.server)
	t.Cleanup(k.OnUnmount)
	return k
}

func newSharedKernel(t testing.TB) *toldKernel {
	k := newToldKernel(t)
	k.vol.Share(loneCluster{})
	k.coherent.shared()
	eventually(t, "what was before is remembered", func() bool {
		k.coherent.mu.Lock()
		defer k.coherent.mu.Unlock()
		return k.coherent.seeded
	})
	return k
}

func (k *toldKernel) InodeNotify(node uint64, off, length int64) fuse.Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.unknown[node] > 0 {
		k.unknown[node]--
		return fuse.ENOENT
	}
	k.told = append(k.told, fmt.Sprintf("inode %d from %d", node, off))
	return fuse.OK
}

func (k *toldKernel) EntryNotify(parent uint64, name string) fuse.Status {
	k.mu.Lock()
	blocked := k.blocked
	k.mu.Unlock()
	if blocked != nil {
		<-blocked
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.told = append(k.told, fmt.Sprintf("name %s in %d", name, parent))
	return fuse.OK
}

func (k *toldKernel) wasTold(what string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Contains(k.told, what)
}

func (k *toldKernel) wantTold(what string) {
	k.t.Helper()
	eventually(k.t, "told: "+what, func() bool { return k.wasTold(what) })
}

// other has another node make a change.
func (k *toldKernel) other(c namespace.Change) {
	c.Session = 8
	k.vol.Observe(&c)
}

func (k *toldKernel) otherMoves(name string, was, is uint64) {
	k.other(namespace.Change{Entries: []namespace.EntryChange{
		{Parent: namespace.RootIno, Name: name, Was: namespace.Ino(was), Is: namespace.Ino(is)},
	}})
}

func (k *toldKernel) openAs(thread uint32, node uint64, flags uint32) (fuse.OpenOut, fuse.Status) {
	in := fuse.OpenIn{InHeader: header(node), Flags: flags}
	in.Pid = thread
	var out fuse.OpenOut
	status := k.Open(nil, &in, &out)
	return out, status
}

func (k *toldKernel) wantOpen(thread uint32, node uint64, want fuse.Status) {
	k.t.Helper()
	_, status := k.openAs(thread, node, syscall.O_RDONLY)
	k.want(status, want)
}

func (k *toldKernel) lookup(thread uint32, parent uint64, name string) (out fuse.EntryOut) {
	k.t.Helper()
	h := header(parent)
	h.Pid = thread
	k.want(k.Lookup(nil, &h, name, &out), fuse.OK)
	return out
}

const estale = fuse.Status(syscall.ESTALE)

// Rule 11: the kernel may have used an entry that another node has changed.
func TestAnOpenByANameThatChangedIsStaleOncePerThread(t *testing.T) {
	k := newSharedKernel(t)
	node, _ := k.create("f", 0o644)
	k.wantOpen(1, node, fuse.OK)
	k.otherMoves("f", node, 99)
	k.wantOpen(1, node, estale)
	if !k.wasTold("name f in 1") {
		t.Error("answered before the kernel knew")
	}
	k.wantOpen(1, node, fuse.OK)
	k.wantOpen(1, node, fuse.OK)
	k.wantOpen(2, node, estale)
	k.wantOpen(2, node, fuse.OK)
	k.otherMoves("f", node, 98) // the kernel has no such name any more
	k.wantOpen(1, node, fuse.OK)
	k.lookup(1, 1, "f")
	k.otherMoves("f", node, 97)
	k.wantOpen(1, node, estale)
	k.wantOpen(1, node, fuse.OK)
}

func TestAnOpenBelowADirectoryThatMovedIsStale(t *testing.T) {
	k := newSharedKernel(t)
	var dir, below fuse.EntryOut
	k.want(k.Mkdir(nil, &fuse.MkdirIn{InHeader: header(1), Mode: 0o755}, "d", &dir), fuse.OK)
	k.want(k.Mkdir(nil, &fuse.MkdirIn{InHeader: header(dir.NodeId), Mode: 0o755}, "e", &below), fuse.OK)
	var file fuse.CreateOut
	k.want(k.Create(nil, &fuse.CreateIn{InHeader: header(below.NodeId), Flags: syscall.O_RDWR, Mode: 0o644}, "f", &file), fuse.OK)
	other, _ := k.create("g", 0o644)
	k.otherMoves("d", dir.NodeId, 99)
	k.wantOpen(1, file.NodeId, estale)
	k.wantOpen(1, file.NodeId, fuse.OK)
	k.wantOpen(3, other, fuse.OK)
}

func TestASecondAnswerIsNeverStale(t *testing.T) {
	k := newSharedKernel(t)
	a, _ := k.create("f", 0o644)
	k.otherMoves("f", a, 99)
	k.wantOpen(1, a, estale)
	b := k.lookup(1, 1, "f") // the kernel looks again
	k.otherMoves("f", b.NodeId, 98)
	k.wantOpen(1, b.NodeId, fuse.OK) // and has found it in time
	k.lookup(1, 1, "f")
	k.otherMoves("f", b.NodeId, 97)
	k.wantOpen(1, b.NodeId, estale)
	k.wantOpen(1, b.NodeId, fuse.OK)

	// A create that finds a name is one answer, too.
	c := k.lookup(1, 1, "f")
	in := fuse.CreateIn{InHeader: header(1), Flags: syscall.O_RDWR | syscall.O_CREAT, Mode: 0o644}
	k.want(k.Create(nil, &in, "f", new(fuse.CreateOut)), estale)
	c = k.lookup(1, 1, "f")
	k.otherMoves("f", c.NodeId, 96)
	k.wantOpen(1, c.NodeId, fuse.OK)
}

func TestAFileThatIsGoneIsLookedForAgainOnce(t *testing.T) {
	k := newSharedKernel(t)
	k.wantOpen(1, 12345, estale)
	k.wantOpen(1, 12345, fuse.ENOENT)
}

func TestAStaleOpenTruncatesNothing(t *testing.T) {
	k := newSharedKernel(t)
	node, fh := k.create("f", 0o644)
	_, status := k.Write(nil, &fuse.WriteIn{InHeader: header(node), Fh: fh}, []byte("text"))
	k.want(status, fuse.OK)
	k.otherMoves("f", node, 99)
	_, status = k.openAs(1, node, syscall.O_WRONLY|syscall.O_TRUNC)
	k.want(status, estale)
	if a := k.attr(node); a.Size != 4 {
		t.Errorf("size %d", a.Size)
	}
	_, status = k.openAs(1, node, syscall.O_WRONLY|syscall.O_TRUNC)
	k.want(status, fuse.OK)
	if a := k.attr(node); a.Size != 0 {
		t.Errorf("size %d", a.Size)
	}
}

// Rule 12: no reply waits for the kernel without end.
func TestAnOpenDoesNotWaitForTheKernelForEver(t *testing.T) {
	k := newSharedKernel(t)
	node, _ := k.create("f", 0o644)
	blocked := make(chan struct{})
	k.mu.Lock()
	k.blocked = blocked
	k.mu.Unlock()
	defer close(blocked)
	k.otherMoves("f", node, 99)
	k.wantOpen(1, node, estale)
	k.wantOpen(1, node, fuse.OK)
	k.wantOpen(1, node, estale) // the kernel has the name still
}

func TestAFileHandleOpensWhatHasNoName(t *testing.T) {
	k := newSharedKernel(t)
	node, _ := k.create("f", 0o644)
	k.Forget(node, 1)
	k.lookup(1, node, ".")
	k.otherMoves("f", node, 99)
	k.other(namespace.Change{All: true})
	k.wantOpen(1, node, fuse.OK)
}

func TestOwnRenamesAndRemovalsAreNoChangesOfOthers(t *testing.T) {
	k := newSharedKernel(t)
	f, _ := k.create("f", 0o644)
	g, _ := k.create("g", 0o644)
	k.want(k.Rename(nil, &fuse.RenameIn{InHeader: header(1), Newdir: 1}, "f", "h"), fuse.OK)
	h := header(1)
	k.want(k.Unlink(nil, &h, "g"), fuse.OK)
	k.otherMoves("f", 0, 99)
	k.otherMoves("g", 0, 98)
	k.wantOpen(1, f, fuse.OK)
	k.wantOpen(1, g, fuse.OK)
	k.otherMoves("h", f, 97)
	k.wantOpen(1, f, estale)
}

func TestTheKernelIsToldOfWhatItKnows(t *testing.T) {
	k := newSharedKernel(t)
	f, _ := k.create("f", 0o644)
	g, _ := k.create("g", 0o644)
	k.other(namespace.Change{Inodes: []namespace.InodeChange{
		{Ino: namespace.Ino(f)}, {Ino: namespace.Ino(g), Content: true}, {Ino: 99, Content: true},
	}})
	k.wantTold(fmt.Sprintf("inode %d from -1", f))
	k.wantTold(fmt.Sprintf("inode %d from 0", g))
	k.otherMoves("never seen", 0, 99)
	k.wantTold("name never seen in 1")
	k.wantTold("inode 1 from 0")
	if k.wasTold("inode 99 from 0") {
		t.Error("told of what it does not know")
	}
}

func TestAnInodeThatIsOnItsWayToTheKernelIsToldOfLater(t *testing.T) {
	k := newSharedKernel(t)
	f, _ := k.create("f", 0o644)
	k.mu.Lock()
	k.unknown[f] = 3
	k.mu.Unlock()
	k.other(namespace.Change{Inodes: []namespace.InodeChange{{Ino: namespace.Ino(f)}}})
	k.wantTold(fmt.Sprintf("inode %d from -1", f))
}

func TestAnswersAreKeptShorterWhileOthersChangeThings(t *testing.T) {
	k := newToldKernel(t)
	node, _ := k.create("f", 0o644)
	h := header(1)
	var out fuse.EntryOut
	k.want(k.Lookup(nil, &h, "absent", &out), fuse.OK)
	if e := k.lookup(1, 1, "f"); out.EntryTimeout() != cacheFor || e.EntryTimeout() != cacheFor {
		t.Error("a volume of one node is not kept for long")
	}
	k.vol.Share(loneCluster{})
	k.want(k.Lookup(nil, &h, "absent", &out), fuse.ENOENT)
	if e := k.lookup(1, 1, "f"); e.EntryTimeout() != sharedFor || e.AttrTimeout() != sharedFor {
		t.Error("timeouts", e.EntryTimeout(), e.AttrTimeout())
	}
	// The kernel takes what SETATTR answers even if it was told of a change since.
	var attr fuse.AttrOut
	k.want(k.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: header(node), Valid: fuse.FATTR_MODE, Mode: 0o600}}, &attr), fuse.OK)
	if attr.Timeout() != 0 {
		t.Error("what was set is kept for", attr.Timeout())
	}
	q := k.asked(&h, "f")
	k.otherMoves("f", node, 99) // between the look at the volume and the answer
	k.other(namespace.Change{Inodes: []namespace.InodeChange{{Ino: namespace.Ino(node)}}})
	a, err := k.vol.Lookup(t.Context(), namespace.RootIno, "f")
	ok(t, err)
	k.entry(q, &a, &out)
	if out.EntryTimeout() != 0 || out.AttrTimeout() != 0 {
		t.Error("the kernel keeps what is old:", out.EntryTimeout(), out.AttrTimeout())
	}
}

// Rule 13.
func TestAppendingToASharedFilePassesTheKernelsCacheBy(t *testing.T) {
	k := newToldKernel(t)
	node, _ := k.create("f", 0o644)
	out, _ := k.openAs(1, node, syscall.O_RDWR|syscall.O_APPEND)
	if out.OpenFlags != fuse.FOPEN_KEEP_CACHE {
		t.Errorf("flags %#x", out.OpenFlags)
	}
	k.vol.Share(loneCluster{})
	out, _ = k.openAs(1, node, syscall.O_RDWR|syscall.O_APPEND)
	if out.OpenFlags&fuse.FOPEN_DIRECT_IO == 0 {
		t.Errorf("flags %#x", out.OpenFlags)
	}
	in := fuse.WriteIn{InHeader: header(node), Fh: out.Fh, Flags: syscall.O_RDWR | syscall.O_APPEND, WriteFlags: fuse.WRITE_LOCKOWNER}
	for i, want := range []bool{false, true} { // at 0 it is in place, and then at 4
		if _, status := k.Write(nil, &in, []byte("text")); status != fuse.OK {
			t.Fatal(status)
		}
		if k.wasTold(fmt.Sprintf("inode %d from 0", node)) != want {
			t.Errorf("write %d: told %v", i, k.told)
		}
	}
}

// The kernel has what is written in its page before it asks for the write, and may have
// dropped and read that again before the write is carried out.
func TestPagesThatWereReadAgainBeforeAWriteAreDropped(t *testing.T) {
	k := newSharedKernel(t)
	node, fh := k.create("f", 0o644)
	write := func(flags uint32) {
		t.Helper()
		in := fuse.WriteIn{InHeader: header(node), Fh: fh, Offset: 8192, Flags: syscall.O_RDWR, WriteFlags: flags}
		_, status := k.Write(nil, &in, []byte("text"))
		k.want(status, fuse.OK)
	}
	read := func(off uint64) {
		t.Helper()
		_, status := k.Read(nil, &fuse.ReadIn{InHeader: header(node), Fh: fh, Offset: off}, make([]byte, 4096))
		k.want(status, fuse.OK)
	}
	drop := func() {
		t.Helper()
		k.mu.Lock()
		k.told = nil
		k.mu.Unlock()
		k.other(namespace.Change{Inodes: []namespace.InodeChange{{Ino: namespace.Ino(node), Content: true}}})
		k.wantTold(fmt.Sprintf("inode %d from 0", node))
		k.coherent.settle(node) // and it is over
	}
	again := fmt.Sprintf("inode %d from 8192", node)
	wants := func(what string, want bool) {
		t.Helper()
		if k.wasTold(again) != want {
			t.Errorf("%s: told %v", what, k.told)
		}
	}
	write(0) // what an open has dropped counts until then
	read(8192)
	write(0)
	wants("nothing was dropped", false)
	drop()
	write(0)
	wants("nothing was read since", false)
	read(8192)
	write(0)
	wants("it was written since", false)
	drop()
	read(4096)
	read(12288)
	write(0)
	wants("others were read since", false)
	drop()
	read(8192)
	drop()
	write(0)
	wants("it was dropped since", false)
	drop()
	read(8192)
	write(fuse.WRITE_LOCKOWNER)
	wants("it is past the pages", false)
	write(0)
	wants("it was dropped and read", true)
}

func TestPagesOfWhichTheContentChangedAreNotKept(t *testing.T) {
	k := newSharedKernel(t)
	node, _ := k.create("f", 0o644)
	g, fh := k.create("g", 0o644)
	for _, fh := range []uint64{fh, 0} { // the kernel says that it has what it was answered
		if fh == 0 {
			out, _ := k.openAs(1, g, syscall.O_RDONLY)
			fh = out.Fh
		}
		_, status := k.Read(nil, &fuse.ReadIn{InHeader: header(g), Fh: fh}, make([]byte, 1))
		k.want(status, fuse.OK)
	}
	blocked := make(chan struct{})
	k.mu.Lock()
	k.blocked, k.told = blocked, nil
	k.mu.Unlock()
	k.otherMoves("unknown", 0, 99)
	k.other(namespace.Change{Inodes: []namespace.InodeChange{{Ino: namespace.Ino(node), Content: true}, {Ino: namespace.Ino(g)}}})
	out, status := k.openAs(1, node, syscall.O_RDONLY)
	k.want(status, fuse.OK)
	if !k.wasTold(fmt.Sprintf("inode %d from 0", node)) { // before the open is answered
		t.Errorf("flags %#x, told %v", out.OpenFlags, k.told)
	}
	out, _ = k.openAs(1, g, syscall.O_RDONLY)
	if out.OpenFlags&fuse.FOPEN_KEEP_CACHE == 0 {
		t.Errorf("flags %#x", out.OpenFlags)
	}
	close(blocked)
}

func TestEdgesAreForgottenWithTheirInodes(t *testing.T) {
	k := newSharedKernel(t)
	var dir fuse.EntryOut
	k.want(k.Mkdir(nil, &fuse.MkdirIn{InHeader: header(1), Mode: 0o755}, "d", &dir), fuse.OK)
	for i := range 10 {
		var out fuse.EntryOut
		k.want(k.Mkdir(nil, &fuse.MkdirIn{InHeader: header(dir.NodeId), Mode: 0o755}, fmt.Sprint(i), &out), fuse.OK)
		defer k.Forget(out.NodeId, 1)
	}
	c := k.coherent
	if c.edges.n != 11 {
		t.Errorf("%d edges", c.edges.n)
	}
	k.otherMoves("d", dir.NodeId, 99)
	k.Forget(dir.NodeId, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.edges.n != 0 || len(c.edges.up)+len(c.edges.down)+len(c.edges.marks) != 0 {
		t.Errorf("%+v", c.edges)
	}
}

// Rule 12: what waits to be told is bounded.
func TestWhatIsRememberedIsBounded(t *testing.T) {
	var e edges
	at := time.Unix(1, 0)
	for i := range uint64(maxEdges + 10) {
		e.add(1, fmt.Sprint(i), i+2)
	}
	for i := range uint64(maxMarks + 10) {
		e.mark(i+2, i+1, at)
	}
	if e.n != maxEdges || len(e.up) != maxEdges || len(e.marks) != maxMarks || len(e.order) != maxMarks {
		t.Errorf("%d edges, %d marks", e.n, len(e.marks))
	}
	if e.lost(2, 0, at) != 0 || e.lost(maxMarks+11, 0, at) == 0 {
		t.Error("the oldest mark is to go")
	}
	if e.lost(maxMarks+11, maxMarks+10, at.Add(2*markFor)) != 0 || e.lost(maxMarks+11, 0, at.Add(2*markFor)) == 0 {
		t.Error("a mark counts for some time after the kernel knows")
	}
	var c callers
	for i := range uint32(maxCallers + 10) {
		c.tell(i, 0, 1)
	}
	if len(c) != maxCallers {
		t.Errorf("%d callers", len(c))
	}
	b := newBatch()
	for i := range maxPending + 10 {
		b.name(1, fmt.Sprint(i))
	}
	if !b.all || len(b.names)+len(b.inodes) != 0 {
		t.Errorf("%d names", len(b.names))
	}
}

// Rule 12: the kernel throws the answer to a question away that it asked before it was
// told of a change, and goes by the size that it had. So once an open or a lock is
// answered it is told nothing more of what had changed before.
func TestNoNotificationComesAfterTheRequestThatSawToIt(t *testing.T) {
	k := newSharedKernel(t)
	node, _ := k.create("f", 0o644)
	k.lookup(1, 1, "f")
	blocked := make(chan struct{})
	k.mu.Lock()
	k.blocked, k.told = blocked, nil // requests told it, too
	k.mu.Unlock()
	notified := fmt.Sprintf("inode %d from 0", node)
	settled := func(events ...volume.Event) (content, any bool) {
		k.coherent.observe(append(events, volume.Event{Parent: namespace.RootIno, Name: "other"}))
		eventually(t, "inodes wait behind a name", func() bool {
			k.coherent.mu.Lock()
			defer k.coherent.mu.Unlock()
			return k.coherent.current != nil
		})
		content, any = k.coherent.settle(node)
		if content, any := k.coherent.settle(node); content || any {
			t.Error("it is seen to twice")
		}
		close(blocked)
		eventually(t, "all is told", func() bool {
			k.coherent.mu.Lock()
			defer k.coherent.mu.Unlock()
			return k.coherent.current == nil && k.coherent.pending.empty()
		})
		return content, any
	}
	if content, any := settled(volume.Event{Ino: namespace.Ino(node), Content: true}); !content || !any {
		t.Errorf("content %v, anything %v", content, any)
	}
	if k.wasTold(notified) {
		t.Error("told of what an open has seen to")
	}
	k.coherent.observe([]volume.Event{{Ino: namespace.Ino(node), Content: true}})
	k.wantTold(notified) // what comes later
}

// Rule 12: what is being told when an open or a lock comes is waited for.
func TestARequestWaitsForTheNotificationThatIsUnderWay(t *testing.T) {
	k := newSharedKernel(t)
	node, _ := k.create("f", 0o644)
	k.mu.Lock() // so the notification does not end
	k.coherent.observe([]volume.Event{{Ino: namespace.Ino(node), Content: true}})
	eventually(t, "the kernel is being told", func() bool {
		k.coherent.mu.Lock()
		defer k.coherent.mu.Unlock()
		return k.coherent.telling == node
	})
	done := make(chan bool)
	go func() {
		k.coherent.settle(node)
		done <- k.wasTold(fmt.Sprintf("inode %d from 0", node))
	}()
	select {
	case <-done:
		t.Error("it does not wait")
	case <-time.After(20 * time.Millisecond):
	}
	k.mu.Unlock()
	if !<-done {
		t.Error("it went on before the kernel was told")
	}
}

func TestWhatAllIsToldLeavesOutWhatRequestsSawTo(t *testing.T) {
	b := newBatch()
	b.everything()
	if content, any := b.leave(5); !content || !any {
		t.Error("not all of it is to be told")
	}
	if content, any := b.leave(5); content || any {
		t.Error("it is told twice")
	}
	b.inode(5, true)
	if _, any := b.leave(5); !any {
		t.Error("what changed since is not told")
	}
}

func TestAMountThatIsNotSharedRemembersNothing(t *testing.T) {
	k := newToldKernel(t)
	node, _ := k.create("f", 0o644)
	k.lookup(1, 1, "f")
	k.wantOpen(1, node, fuse.OK)
	k.other(namespace.Change{All: true})
	if c := k.coherent; c.edges.n != 0 || c.seq.Load() != 0 || c.began.Load() || len(k.told) != 0 {
		t.Errorf("%d edges, told %v", c.edges.n, k.told)
	}
}
