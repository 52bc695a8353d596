package volume

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cairnfs/cairn/namespace"
)

// sharedFile is what a file must hold: the content that is named, and above it what
// each node has written and not named yet.
type sharedFile struct {
	ino   namespace.Ino
	named []byte
	nodes []pending
}

// pending is what a node has written and not named yet.
type pending struct {
	writes []patch // in place, in order
	tail   []byte  // appended
}

type patch struct {
	off int
	p   []byte
}

// body is the file without its tail.
func (f *sharedFile) body(node int) []byte {
	content := f.named
	for _, w := range f.nodes[node].writes {
		content = overlay(content, w.p, w.off)
	}
	return content
}

func (f *sharedFile) view(node int) []byte { return slices.Concat(f.body(node), f.nodes[node].tail) }

func (f *sharedFile) name(node int) {
	f.named = f.view(node)
	f.nodes[node] = pending{}
}

func (f *sharedFile) write(node, off int, p []byte) {
	n := &f.nodes[node]
	start, end := len(f.body(node)), off+len(p)
	switch {
	case len(n.tail) == 0 || end <= start:
	case off >= start && end <= start+len(n.tail):
		copy(n.tail[off-start:], p)
		return
	default:
		f.name(node)
		n = &f.nodes[node]
	}
	n.writes = append(n.writes, patch{off, p})
}

type sharedHandle struct {
	*Handle
	node int
	file *sharedFile
}

type sharedModel struct {
	t       *testing.T
	seed    uint64
	rnd     *rand.Rand
	hub     *hub
	files   []*sharedFile
	names   map[string]*sharedFile
	handles []*sharedHandle
	trace   []string
}

func (m *sharedModel) fatalf(format string, args ...any) {
	m.t.Helper()
	for _, line := range m.trace[max(0, len(m.trace)-30):] {
		m.t.Log(line)
	}
	m.t.Fatalf("%s\nreplay with: go test ./volume -run TestNodesShareFilesAsTheModelSays -seed %d", fmt.Sprintf(format, args...), m.seed)
}

func (m *sharedModel) must(err error) {
	m.t.Helper()
	if err != nil {
		m.fatalf("%v", err)
	}
}

func (m *sharedModel) log(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf("%4d ", len(m.trace))+fmt.Sprintf(format, args...))
}

// TestNodesShareFilesAsTheModelSays performs random operations on a few nodes, one
// after the other, and compares what each sees with a model: what a node has written
// it sees at once, others when it is named, at the latest by close and fsync.
func TestNodesShareFilesAsTheModelSays(t *testing.T) {
	var seeds []uint64
	for s := range *seedsFlag {
		seeds = append(seeds, s+1)
	}
	if *seedFlag != 0 {
		seeds = []uint64{*seedFlag}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			m := &sharedModel{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 1)), names: make(map[string]*sharedFile)}
			m.hub = newHub(t, 2+int(seed%2))
			for _, n := range m.hub.nodes {
				n.o.turnTime = 5 * time.Millisecond
			}
			m.create("a")
			m.create("b")
			for _, h := range slices.Clone(m.handles) {
				m.log("node %d makes %d large", h.node, h.Ino())
				p := pattern(50_000, byte(h.Ino()))
				h.file.write(h.node, 0, p)
				m.hub.nodes[h.node].put(h.Handle, p, 0)
				h.file.name(h.node)
				m.must(h.Flush(t.Context()))
			}
			for range *stepsFlag {
				for _, n := range m.hub.nodes {
					m.must(n.Barrier(t.Context())) // events are there, too
				}
				m.do()
			}
			for len(m.handles) > 0 {
				m.close(m.handles[0])
			}
			for _, n := range m.hub.nodes {
				m.must(n.Barrier(t.Context()))
			}
			for _, f := range m.files {
				for i := range m.hub.nodes {
					m.compare(i, f)
				}
			}
			for _, n := range m.hub.nodes {
				n.expectNothingHeld()
			}
			patches, folds := m.hub.patches()
			t.Logf("%d patches, %d folds", patches, folds)
		})
	}
}

func (m *sharedModel) node() (int, *member) {
	i := m.rnd.IntN(len(m.hub.nodes))
	return i, m.hub.nodes[i]
}

func (m *sharedModel) create(name string) {
	i, n := m.node()
	a, h, err := n.Create(m.t.Context(), namespace.RootIno, name, 0o644, syscall.O_RDWR, Caller{})
	m.must(err)
	f := &sharedFile{ino: a.Ino, nodes: make([]pending, len(m.hub.nodes))}
	m.files, m.names[name] = append(m.files, f), f
	m.handles = append(m.handles, &sharedHandle{h, i, f})
	m.log("node %d creates %q, inode %d", i, name, a.Ino)
}

func (m *sharedModel) do() {
	if len(m.handles) == 0 {
		m.open()
		return
	}
	h := m.handles[m.rnd.IntN(len(m.handles))]
	if m.rnd.IntN(20) == 0 {
		m.takeTurn(h)
	}
	switch k := m.rnd.IntN(100); {
	case k < 12:
		m.open()
	case k < 20:
		m.patch(h)
	case k < 45:
		m.write(h)
	case k < 60:
		m.compare(h.node, h.file)
		m.read(h)
	case k < 68:
		m.sync(h)
	case k < 73:
		m.unanswered(h)
	case k < 78:
		m.truncate(h)
	case k < 82:
		m.zero(h)
	case k < 85:
		m.rename()
	case k < 89:
		m.fold(h.file)
	case k < 91:
		m.log("node %d does its background work", h.node)
		m.must(m.hub.nodes[h.node].foldOld(m.t.Context()))
		m.must(m.hub.nodes[h.node].Volume.Sync(m.t.Context()))
		for _, f := range m.files {
			if !m.orphan(h.node, f) {
				f.name(h.node)
			}
		}
	case k < 91:
		m.log("collect: %v", m.hub.nodes[0].state.Collection().Phase())
		m.must(m.hub.collectStep(m.t.Context()))
	case k < 93:
		m.log("trim history")
		m.hub.trimHistory()
	default:
		m.close(h)
	}
}

// orphan reports whether the node has removed the file's name, and so names what is
// written to it only when asked to by fsync.
func (m *sharedModel) orphan(node int, f *sharedFile) bool {
	n := m.hub.nodes[node]
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.Volume.files[f.ino] != nil && n.Volume.files[f.ino].orphan
}

func (f *sharedFile) pending(node int) bool {
	return len(f.nodes[node].writes) > 0 || len(f.nodes[node].tail) > 0
}

func (m *sharedModel) open() {
	i, n := m.node()
	name := []string{"a", "b"}[m.rnd.IntN(2)]
	f := m.names[name]
	if f == nil {
		m.create(name)
		return
	}
	flags := uint32(syscall.O_RDWR)
	switch m.rnd.IntN(4) {
	case 0:
		flags |= syscall.O_APPEND
	case 1:
		if m.rnd.IntN(3) == 0 {
			flags |= syscall.O_TRUNC
			f.name(i)
			f.named = nil
		}
	}
	m.log("node %d opens %q, inode %d, with %#x", i, name, f.ino, flags)
	h, err := n.Open(m.t.Context(), n.find(name), flags)
	m.must(err)
	if h.Ino() != f.ino {
		m.fatalf("opened inode %d", h.Ino())
	}
	m.handles = append(m.handles, &sharedHandle{h, i, f})
	m.compare(i, f)
}

func (m *sharedModel) bytes() []byte {
	n := 1 + m.rnd.IntN(300)
	switch m.rnd.IntN(20) {
	case 0:
		n = 1 + m.rnd.IntN(100_000)
	case 1:
		n = 1<<20 + m.rnd.IntN(1000) // enough for a stream
	}
	return pattern(n, byte(m.rnd.Uint32()))
}

func (m *sharedModel) write(h *sharedHandle) {
	p := m.bytes()
	size := len(h.file.view(h.node))
	off := m.rnd.IntN(size + 100)
	if m.rnd.IntN(3) == 0 {
		off = size
	}
	if h.flags&syscall.O_APPEND != 0 {
		m.log("node %d appends %d bytes to %d", h.node, len(p), h.Ino())
		n := &h.file.nodes[h.node]
		n.tail = append(n.tail, p...)
	} else {
		m.log("node %d writes %d bytes at %d to %d", h.node, len(p), off, h.Ino())
		h.file.write(h.node, off, p)
	}
	_, err := h.Write(m.t.Context(), p, int64(off))
	m.must(err)
}

func (m *sharedModel) read(h *sharedHandle) {
	want := h.file.view(h.node)
	off := m.rnd.IntN(len(want) + 1)
	p := make([]byte, m.rnd.IntN(5000))
	n, err := h.Read(m.t.Context(), p, int64(off))
	m.must(err)
	if want = want[off:min(len(want), off+len(p))]; !bytes.Equal(p[:n], want) {
		m.fatalf("node %d reads %s of inode %d at %d, want %s", h.node, brief(p[:n]), h.Ino(), off, brief(want))
	}
}

// compare looks at the whole file as the node sees it.
func (m *sharedModel) compare(node int, f *sharedFile) {
	m.t.Helper()
	n, want := m.hub.nodes[node], f.view(node)
	h, err := n.Volume.open(m.t.Context(), f.ino, syscall.O_RDONLY)
	m.must(err)
	defer h.Release()
	a, err := n.GetAttr(m.t.Context(), f.ino)
	m.must(err)
	if a.Size != int64(len(want)) {
		m.fatalf("node %d: inode %d has size %d, want %d", node, f.ino, a.Size, len(want))
	}
	got := make([]byte, len(want)+1)
	k, err := h.Read(m.t.Context(), got, 0)
	m.must(err)
	if !bytes.Equal(got[:k], want) {
		at := 0
		for at < min(k, len(want)) && got[at] == want[at] {
			at++
		}
		m.fatalf("node %d: inode %d differs at %d of %d", node, f.ino, at, len(want))
	}
}

func (m *sharedModel) sync(h *sharedHandle) {
	h.file.name(h.node)
	if m.rnd.IntN(2) == 0 {
		m.log("node %d syncs %d", h.node, h.Ino())
		m.must(h.Fsync(m.t.Context(), false))
		return
	}
	m.log("node %d flushes %d", h.node, h.Ino())
	if m.orphan(h.node, h.file) {
		m.must(h.Fsync(m.t.Context(), false)) // close names nothing of what has no name
		return
	}
	m.must(h.Flush(m.t.Context()))
}

// unanswered names what was written without learning of it at first.
func (m *sharedModel) unanswered(h *sharedHandle) {
	n := m.hub.nodes[h.node]
	if n.othersFirst(h.Ino()) {
		return // it would have no answer to that it queues, and name nothing
	}
	m.log("node %d syncs %d without an answer", h.node, h.Ino())
	n.setDeaf(true)
	err := h.Fsync(m.t.Context(), false)
	n.setDeaf(false)
	if !h.file.pending(h.node) {
		m.must(err)
		return
	}
	if !errors.Is(err, errNoMajority) {
		m.fatalf("a sync without an answer: %v", err)
	}
	h.file.name(h.node)
}

// takeTurn puts the node into the queue for the file. It may use its turn next, or the
// others have to put it out.
func (m *sharedModel) takeTurn(h *sharedHandle) {
	m.log("node %d takes its turn with %d", h.node, h.Ino())
	m.hub.append(&namespace.TakeTurn{Session: m.hub.nodes[h.node].Session(), Ino: h.Ino()})
	for _, n := range m.hub.nodes {
		m.must(n.Barrier(m.t.Context()))
	}
}

func (m *sharedModel) truncate(h *sharedHandle) {
	size := m.rnd.IntN(len(h.file.view(h.node)) + 200)
	m.log("node %d truncates %d to %d", h.node, h.Ino(), size)
	h.file.name(h.node)
	h.file.named = append(bytes.Clone(h.file.named), make([]byte, 200)...)[:size]
	_, err := m.hub.nodes[h.node].SetAttr(m.t.Context(), h.Ino(), SetAttr{Valid: SetSize, Size: int64(size)})
	m.must(err)
}

func (m *sharedModel) zero(h *sharedHandle) {
	if len(h.file.nodes[h.node].tail) > 0 {
		h.file.name(h.node)
	}
	off, n := m.rnd.IntN(len(h.file.view(h.node))+10), 1+m.rnd.IntN(5000)
	m.log("node %d zeroes %d bytes of %d at %d", h.node, n, h.Ino(), off)
	h.file.write(h.node, off, make([]byte, n))
	m.must(h.Zero(m.t.Context(), int64(off), int64(n), false))
}

// patch syncs a few small writes, as a database does.
func (m *sharedModel) patch(h *sharedHandle) {
	for range 1 + m.rnd.IntN(9) {
		size := len(h.file.view(h.node))
		off, p := m.rnd.IntN(size+100), pattern(1+m.rnd.IntN(300), byte(m.rnd.Uint32()))
		m.log("node %d writes %d bytes at %d to %d and syncs", h.node, len(p), off, h.Ino())
		if h.flags&syscall.O_APPEND != 0 {
			n := &h.file.nodes[h.node]
			n.tail = append(n.tail, p...)
		} else {
			h.file.write(h.node, off, p)
		}
		_, err := h.Write(m.t.Context(), p, int64(off))
		m.must(err)
		m.must(h.Fsync(m.t.Context(), true))
		h.file.name(h.node)
	}
}

// fold folds the patches of a file on any node, which nobody notices.
func (m *sharedModel) fold(file *sharedFile) {
	i, n := m.node()
	m.log("node %d folds the patches of %d", i, file.ino)
	f, err := n.acquire(file.ino)
	m.must(err)
	defer n.release(f)
	m.must(f.foldPatches(m.t.Context()))
	m.compare(i, file)
}

func (m *sharedModel) rename() {
	i, n := m.node()
	from, to := "a", "b"
	if m.rnd.IntN(2) == 0 {
		from, to = to, from
	}
	m.log("node %d renames %q to %q", i, from, to)
	err := n.Rename(m.t.Context(), namespace.RootIno, from, namespace.RootIno, to, 0)
	if m.names[from] == nil {
		if !errors.Is(err, namespace.ErrNotFound) {
			m.fatalf("rename of nothing: %v", err)
		}
		return
	}
	m.must(err)
	m.names[to] = m.names[from]
	delete(m.names, from)
}

func (m *sharedModel) close(h *sharedHandle) {
	m.log("node %d closes %d", h.node, h.Ino())
	if m.orphan(h.node, h.file) {
		m.must(h.Fsync(m.t.Context(), false))
	}
	m.must(h.Flush(m.t.Context()))
	h.file.name(h.node)
	h.Release()
	m.handles = slices.DeleteFunc(m.handles, func(o *sharedHandle) bool { return o == h })
}
