package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cairnfs/cairn/namespace"
)

// Rule 11: an open asks how far the log is, and waits for it.
func TestAnOpenSeesWhatWasClosedBeforeOnAnyNode(t *testing.T) {
	h := newHub(t, 3)
	a, b, c := h.nodes[0], h.nodes[1], h.nodes[2]
	for _, size := range []int{10, 5000, 300_000, 3 << 20} {
		name := fmt.Sprint("file of ", size)
		want := pattern(size, 1)
		a.createFile(name, want)
		b.shows(name, want)
		c.shows(name, want)
		// In place, into a file that the others have in memory.
		kept := c.openFile(name, syscall.O_RDONLY)
		w := b.openFile(name, syscall.O_WRONLY)
		b.put(w, []byte("changed"), int64(size/2))
		want = overlay(want, []byte("changed"), size/2)
		b.closeFile(w)
		a.shows(name, want)
		c.shows(name, want)
		if got := c.content(kept); !bytes.Equal(got, want) {
			t.Errorf("a handle that was open before shows %s", brief(got))
		}
		kept.Release()
	}
}

func overlay(content, p []byte, off int) []byte {
	size := max(len(content), off+len(p))
	content = append(bytes.Clone(content), make([]byte, size-len(content))...)
	copy(content[off:], p)
	return content
}

func TestOpenWithTruncationIsSeenEverywhere(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("file", pattern(100_000, 1))
	b.shows("file", pattern(100_000, 1))
	w := b.openFile("file", syscall.O_WRONLY|syscall.O_TRUNC)
	a.shows("file", nil)
	b.put(w, []byte("new"), 0)
	b.closeFile(w)
	a.shows("file", []byte("new"))
}

// Rule 8: content builds on a version, and a mismatch is laid anew.
func TestWritesOfTwoNodesToDifferentRangesBothSurvive(t *testing.T) {
	for _, size := range []int{100, 100_000} {
		h := newHub(t, 2)
		a, b := h.nodes[0], h.nodes[1]
		want := pattern(size, 1)
		a.createFile("file", want)
		wa, wb := a.openFile("file", syscall.O_RDWR), b.openFile("file", syscall.O_RDWR)
		a.put(wa, []byte("from a"), 10)
		b.put(wb, []byte("from b"), 40)
		b.put(wb, []byte("behind the end"), int64(size+5))
		if got := a.content(wa); !bytes.Equal(got, overlay(want, []byte("from a"), 10)) {
			t.Fatalf("a does not read what it wrote: %s", brief(got))
		}
		a.must(wa.Fsync(t.Context(), false))
		b.closeFile(wb)
		a.must(a.Barrier(t.Context()))
		want = overlay(overlay(overlay(want, []byte("from a"), 10), []byte("from b"), 40), []byte("behind the end"), size+5)
		if got := a.content(wa); !bytes.Equal(got, want) {
			t.Errorf("a shows %s", brief(got))
		}
		a.closeFile(wa)
		a.shows("file", want)
		b.shows("file", want)
	}
}

func TestStreamsOfTwoNodesAreLaidOverEachOther(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("file", nil)
	wa, wb := a.openFile("file", syscall.O_RDWR), b.openFile("file", syscall.O_RDWR)
	one, two := pattern(5<<20, 1), pattern(2<<20, 2)
	for off := 0; off < len(one); off += 1 << 20 {
		a.put(wa, one[off:off+1<<20], int64(off))
	}
	b.put(wb, two, 0)
	b.put(wb, two, 7<<20)
	b.closeFile(wb)
	a.closeFile(wa)
	want := overlay(overlay(two, two, 7<<20), one, 0)
	a.shows("file", want)
	b.shows("file", want)
}

func TestWhereWritesOverlapTheLastCloseWins(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("file", []byte("0123456789"))
	wa, wb := a.openFile("file", syscall.O_RDWR), b.openFile("file", syscall.O_RDWR)
	a.put(wa, []byte("AAAA"), 2)
	b.put(wb, []byte("BBBB"), 4)
	b.closeFile(wb)
	a.closeFile(wa)
	for _, m := range h.nodes {
		m.shows("file", []byte("01AAAABB89"))
	}
}

func TestATruncateAndWritesOfAnotherNodeKeepTheirOrder(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("file", pattern(50_000, 1))
	w := b.openFile("file", syscall.O_RDWR)
	b.put(w, []byte("late"), 20_000)
	_, err := a.SetAttr(t.Context(), w.Ino(), SetAttr{Valid: SetSize, Size: 10})
	a.must(err)
	b.closeFile(w)
	want := overlay(pattern(50_000, 1)[:10], []byte("late"), 20_000)
	a.shows("file", want)
	b.shows("file", want)
}

// Rule 8: appends go to the end, wherever the kernel thought that was.
func TestAppendsOfAllNodesAreKeptWholeAndInOrder(t *testing.T) {
	const records = 60
	h := newHub(t, 3)
	h.nodes[0].createFile("log", []byte("start\n"))
	var wg sync.WaitGroup
	for i, m := range h.nodes {
		wg.Go(func() {
			w := m.openFile("log", syscall.O_WRONLY|syscall.O_APPEND)
			for r := range records {
				m.put(w, record(i, r), 0)
				switch r % 5 {
				case 0:
					m.must(w.Flush(context.Background()))
				case 3:
					m.must(w.Fsync(context.Background(), false))
				}
			}
			m.closeFile(w)
		})
	}
	wg.Wait()
	for _, m := range h.nodes {
		f := m.openFile("log", syscall.O_RDONLY)
		checkRecords(t, m.content(f), len(h.nodes), records)
		f.Release()
	}
}

func record(node, n int) []byte {
	return fmt.Appendf(nil, "node %d record %d %s\n", node, n, strings.Repeat("x", n*17%300))
}

// checkRecords fails the test unless every node's records are there, in its order.
func checkRecords(t *testing.T, content []byte, nodes, records int) {
	t.Helper()
	next := make([]int, nodes)
	lines := strings.SplitAfter(string(content), "\n")
	for _, line := range lines[1 : len(lines)-1] {
		var node, n int
		if _, err := fmt.Sscanf(line, "node %d record %d", &node, &n); err != nil {
			t.Fatalf("broken record %q: %v", line, err)
		}
		if n != next[node] || line != string(record(node, n)) {
			t.Fatalf("record %q of node %d, want number %d", line, node, next[node])
		}
		next[node]++
	}
	for node, n := range next {
		if n != records {
			t.Errorf("%d records of node %d", n, node)
		}
	}
}

// Rule 6: a timeout means that the outcome is unknown.
func TestAnAppendWhoseOutcomeIsUnknownIsThereOnce(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("log", []byte("start\n"))
	w := a.openFile("log", syscall.O_WRONLY|syscall.O_APPEND)
	a.put(w, record(0, 0), 0)
	a.setDeaf(true)
	if err := w.Flush(t.Context()); !errors.Is(err, errNoMajority) {
		t.Fatalf("a flush without an answer: %v", err)
	}
	a.setDeaf(false)
	v := b.openFile("log", syscall.O_WRONLY|syscall.O_APPEND)
	b.put(v, record(1, 0), 0)
	b.closeFile(v)
	a.put(w, record(0, 1), 0)
	a.closeFile(w)
	want := bytes.Join([][]byte{[]byte("start\n"), record(0, 0), record(1, 0), record(0, 1)}, nil)
	a.shows("log", want)
	b.shows("log", want)
}

func TestAppendsAndWritesInPlaceOfOneNodeBothCount(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("file", []byte("0123456789"))
	app, rw := a.openFile("file", syscall.O_WRONLY|syscall.O_APPEND), a.openFile("file", syscall.O_RDWR)
	a.put(app, []byte("append"), 0)
	a.put(rw, []byte("in"), 0)
	a.put(rw, []byte("P"), 12) // within what was appended
	other := b.openFile("file", syscall.O_WRONLY|syscall.O_APPEND)
	b.put(other, []byte("other"), 0)
	b.closeFile(other)
	a.must(rw.Flush(t.Context()))
	want := []byte("in23456789otherapPend")
	if got := a.content(rw); !bytes.Equal(got, want) {
		t.Fatalf("a shows %s, want %s", brief(got), brief(want))
	}
	a.put(app, []byte("+"), 0)
	a.put(rw, []byte("end"), 30) // ends the tail
	a.closeFile(app)
	a.closeFile(rw)
	want = overlay(append(want, '+'), []byte("end"), 30)
	a.shows("file", want)
	b.shows("file", want)
}

func TestKernelPagesAreKeptOnlyIfNoOtherNodeWrote(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("file", []byte("one"))
	keeps := func(m *member, want bool) {
		t.Helper()
		f := m.openFile("file", syscall.O_RDONLY)
		defer f.Release()
		if f.KeepCache() != want {
			t.Errorf("%s keeps pages: %v", m.peer, !want)
		}
	}
	keeps(a, true) // written here
	keeps(b, false)
	keeps(b, true)
	w := a.openFile("file", syscall.O_RDWR)
	a.put(w, []byte("two"), 0)
	a.closeFile(w)
	keeps(a, true)
	keeps(b, false)
	attr, err := a.SetAttr(t.Context(), a.find("file"), SetAttr{Valid: SetSize, Size: 1})
	a.must(err)
	keeps(a, false) // it may have what was cut
	a.Dropped(attr.Ino, attr.Outdated)
	keeps(a, true)
	// What the kernel is not answered with says nothing of its pages.
	keeps(b, false)
	w = a.openFile("file", syscall.O_RDWR)
	a.put(w, []byte("three"), 0)
	a.closeFile(w)
	w, err = b.Open(t.Context(), b.find("file"), syscall.O_RDWR) // to write pages that a mapping has changed
	b.must(err)
	_, err = w.WritePages(t.Context(), []byte("3"), 0)
	b.must(err)
	b.closeFile(w)
	keeps(b, false)
}

// While somebody takes over what is new, nobody goes on with what was before: the kernel may
// have been told that it will not see that again.
func TestWhoComesWhileWhatIsNewIsTakenOverWaitsForIt(t *testing.T) {
	h := newHub(t, 2)
	m, other := h.nodes[0], h.nodes[1]
	m.createFile("file", []byte("old"))
	f := m.openFile("file", syscall.O_RDONLY)
	defer f.Release()
	g := other.openFile("file", syscall.O_WRONLY)
	other.put(g, []byte("newer"), 0)
	other.closeFile(g)
	m.must(m.Barrier(context.Background()))
	takeOver := func() chan error {
		done := make(chan error, 1)
		go func() { done <- f.f.fresh(context.Background()) }()
		return done
	}
	f.f.mu.Lock() // nobody gets further than the beginning
	first := takeOver()
	eventually(t, "somebody takes over what is new", func() bool {
		free := f.f.move.TryLock()
		if free {
			f.f.move.Unlock()
		}
		return !free
	})
	second := takeOver()
	select {
	case <-second:
		t.Error("somebody went on with what was before")
	case <-time.After(20 * time.Millisecond):
		defer func() { m.must(<-second) }()
	}
	f.f.mu.Unlock()
	m.must(<-first)
	if got := m.content(f); string(got) != "newer" {
		t.Errorf("read %q", got)
	}
}

func TestWhoIsCutOffReadsWhatItHoldsAndRefusesChanges(t *testing.T) {
	h := newHub(t, 3)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("file", []byte("old"))
	a.createFile("other", []byte("old"))
	a.shows("file", []byte("old"))
	w := a.openFile("other", syscall.O_RDWR)
	a.setCut(true)
	f := b.openFile("file", syscall.O_WRONLY|syscall.O_TRUNC)
	b.put(f, []byte("new"), 0)
	b.closeFile(f)
	b.createFile("third", nil)
	a.shows("file", []byte("old"))
	if _, err := a.Lookup(t.Context(), namespace.RootIno, "third"); !errors.Is(err, namespace.ErrNotFound) {
		t.Errorf("lookup: %v", err)
	}
	if _, err := a.Open(t.Context(), w.Ino(), syscall.O_RDWR); !errors.Is(err, errNoMajority) {
		t.Errorf("open for writing: %v", err)
	}
	if _, _, err := a.Create(t.Context(), namespace.RootIno, "new", 0o644, syscall.O_RDWR, Caller{}); !errors.Is(err, errNoMajority) {
		t.Errorf("create: %v", err)
	}
	a.put(w, []byte("not lost"), 0)
	if err := w.Flush(t.Context()); !errors.Is(err, errNoMajority) {
		t.Errorf("flush: %v", err)
	}
	a.setCut(false)
	a.closeFile(w)
	b.shows("other", []byte("not lost"))
	a.shows("file", []byte("new"))
	a.shows("third", nil)
	a.expectNothingHeld()
}

func TestAFileUnlinkedElsewhereStaysReadableWhereItIsOpen(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("file", pattern(100_000, 1))
	f := b.openFile("file", syscall.O_RDWR)
	a.must(a.Unlink(t.Context(), namespace.RootIno, "file"))
	b.must(b.Barrier(t.Context()))
	b.put(f, []byte("still"), 5)
	b.must(f.Fsync(t.Context(), false))
	a.must(a.reapIdle(t.Context()))
	if got := b.content(f); !bytes.Equal(got, overlay(pattern(100_000, 1), []byte("still"), 5)) {
		t.Fatalf("%s", brief(got))
	}
	if got := b.Holds([]namespace.Ino{f.Ino(), 1 << 40}); !got[0] || got[1] {
		t.Errorf("b holds %v", got)
	}
	ino := f.Ino()
	b.closeFile(f)
	if b.Holds([]namespace.Ino{ino})[0] || a.Holds([]namespace.Ino{ino})[0] {
		t.Error("held without a handle")
	}
	res, err := a.propose(t.Context(), &namespace.Reap{Ino: ino})
	a.must(errors.Join(err, res.Err))
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.orphans) != 0 {
		t.Errorf("orphans %v are remembered", a.orphans)
	}
}

// Another node may have looked the file up just before it was unlinked here.
func TestAFileThatGetsANameElsewhereKeepsWhatIsWrittenHere(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("file", pattern(100_000, 1))
	f := a.openFile("file", syscall.O_RDWR)
	ino := b.find("file")
	a.must(a.Unlink(t.Context(), namespace.RootIno, "file"))
	a.put(f, []byte("written"), 5)
	_, err := b.Link(t.Context(), ino, namespace.RootIno, "again")
	b.must(err)
	a.must(a.Barrier(t.Context()))
	a.closeFile(f)
	for _, m := range h.nodes {
		m.shows("again", overlay(pattern(100_000, 1), []byte("written"), 5))
	}
}

func TestWatchersLearnWhatOthersChanged(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	a.createFile("file", []byte("one"))
	b.must(b.Barrier(t.Context()))
	var mu sync.Mutex
	var own, others []Event
	watch := func(m *member, events *[]Event) {
		t.Cleanup(m.Watch(func(e []Event) {
			mu.Lock()
			defer mu.Unlock()
			*events = append(*events, e...)
		}))
	}
	watch(a, &own)
	watch(b, &others)
	f := a.openFile("file", syscall.O_RDWR)
	a.put(f, []byte("two"), 0)
	a.closeFile(f)
	a.must(a.Unlink(t.Context(), namespace.RootIno, "file"))
	b.must(b.Barrier(t.Context()))
	mu.Lock()
	defer mu.Unlock()
	if len(own) != 0 {
		t.Errorf("a was told of its own: %+v", own)
	}
	var content, entry bool
	for _, e := range others {
		content = content || e.Ino == f.Ino() && e.Content
		entry = entry || e.Parent == namespace.RootIno && e.Name == "file" && e.Was == f.Ino() && e.Is == 0
	}
	if !content || !entry {
		t.Errorf("b was told %+v", others)
	}
}

func TestWhatASharedVolumeSpillsIsNotReplayed(t *testing.T) {
	rec := rangeRecord{Ino: 5, Off: 1, N: 2, Mtime: 3, First: true, Spill: true}
	p := append(rec.encode(), "ab"...)
	got, err := decodeRange(p)
	if err != nil || got != rec {
		t.Fatalf("%+v, %v", got, err)
	}
	if p[1] != rangeFirst|rangeSpill {
		t.Errorf("flags %#x", p[1])
	}
}

func TestANewFileThatIsStreamedIsNotReadAgain(t *testing.T) {
	h := newHub(t, 2)
	a := h.nodes[0]
	_, f, err := a.Create(t.Context(), namespace.RootIno, "file", 0o644, syscall.O_WRONLY, Caller{})
	a.must(err)
	want := pattern(12<<20, 1)
	for off := 0; off < len(want); off += 1 << 20 {
		a.put(f, want[off:off+1<<20], int64(off))
	}
	a.closeFile(f)
	if n := h.blocks.gets.Load(); n != 0 {
		t.Errorf("%d blocks were read", n)
	}
	h.nodes[1].shows("file", want)
}
