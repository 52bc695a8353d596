package volume

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/namespace"
)

// Each writer has every sixth slot of a file to itself, and reads its own all the
// while; in the end all slots are what was written last.
func TestManyWritersOnManyNodesLoseNothing(t *testing.T) {
	const (
		slot  = 3000
		slots = 150
	)
	h := newHub(t, 3)
	h.nodes[0].createFile("file", nil)
	want := make([]byte, slot*slots)
	var wg sync.WaitGroup
	for w := range 6 {
		m := h.nodes[w%3]
		rnd := rand.New(rand.NewPCG(uint64(w), 7))
		wg.Go(func() {
			f := m.openFile("file", syscall.O_RDWR)
			for range 150 / slowdown {
				at := (rnd.IntN(slots/6)*6 + w) * slot
				mine := want[at : at+slot]
				copy(mine, pattern(slot, byte(rnd.Uint32())))
				m.put(f, mine, int64(at))
				got := make([]byte, slot)
				if n, err := f.Read(context.Background(), got, int64(at)); err != nil || n != slot || !bytes.Equal(got, mine) {
					t.Errorf("writer %d reads %d bytes at %d, %v, not what it wrote", w, n, at, err)
					return
				}
				switch rnd.IntN(10) {
				case 0:
					m.must(f.Flush(context.Background()))
				case 1:
					m.must(f.Fsync(context.Background(), true))
				case 2:
					m.closeFile(f)
					f = m.openFile("file", syscall.O_RDWR)
				case 3:
					m.must(m.Volume.Sync(context.Background()))
				}
			}
			m.closeFile(f)
		})
	}
	wg.Wait()
	for _, m := range h.nodes {
		f := m.openFile("file", syscall.O_RDONLY)
		got := m.content(f)
		f.Release()
		if !bytes.Equal(append(got, make([]byte, len(want)-len(got))...), want) {
			t.Errorf("%s does not show what was written last", m.peer)
		}
	}
}

// In each round every node counts on in a place of its own, and then all find what all have
// counted, while patches are folded.
func TestWhatWasSyncedIsSeenByWhoeverOpensWhilePatchesAreFolded(t *testing.T) {
	const (
		nodes = 4
		slot  = 3000
		size  = 200_000
	)
	h := newHub(t, nodes)
	for _, m := range h.nodes {
		m.Volume.o.patchFold = 2
	}
	h.nodes[0].createFile("file", make([]byte, size))
	all := func(do func(i int, m *member, f *Handle)) {
		var wg sync.WaitGroup
		for i, m := range h.nodes {
			wg.Go(func() {
				f := m.openFile("file", syscall.O_RDWR)
				defer f.Release()
				do(i, m, f)
			})
		}
		wg.Wait()
	}
	for n := 1; n <= 150/slowdown && !t.Failed(); n++ {
		all(func(i int, m *member, f *Handle) {
			m.put(f, bytes.Repeat([]byte{byte(n)}, slot), int64(i*slot))
			if (n+i)%8 == 0 { // more than a patch: names content
				m.put(f, make([]byte, size-nodes*slot), nodes*slot)
			}
			m.must(f.Fsync(context.Background(), true))
		})
		want := append(bytes.Repeat([]byte{byte(n)}, nodes*slot), make([]byte, size-nodes*slot)...)
		all(func(i int, m *member, f *Handle) {
			if got := m.content(f); !bytes.Equal(got, want) {
				t.Errorf("in round %d %s finds %v, and what else it is to find: %v", n, m.peer,
					[]byte{got[0], got[slot], got[2*slot], got[3*slot]}, bytes.Equal(got[nodes*slot:], want[nodes*slot:]))
			}
		})
	}
}

// Appends go on while sessions end. What a node was told is named must be there, whole
// and once; what it was not told may be.
func TestAppendsThatWereNamedSurviveLostSessions(t *testing.T) {
	h := newHub(t, 3)
	h.nodes[0].createFile("log", nil)
	var (
		wg sync.WaitGroup
		mu sync.Mutex
	)
	named := make(map[string]bool)
	for i, m := range h.nodes {
		rnd := rand.New(rand.NewPCG(uint64(i), 9))
		wg.Go(func() {
			for r := range 40 {
				f := m.openFile("log", syscall.O_WRONLY|syscall.O_APPEND)
				line := fmt.Sprintf("node %d record %d\n", i, r)
				m.put(f, []byte(line), 0)
				if rnd.IntN(4) == 0 {
					m.loseSession()
					m.newSession()
				}
				if f.Flush(context.Background()) == nil {
					mu.Lock()
					named[line] = true
					mu.Unlock()
				}
				f.Release()
			}
		})
	}
	wg.Wait()
	f := h.nodes[0].openFile("log", syscall.O_RDONLY)
	content := h.nodes[0].content(f)
	f.Release()
	seen := make(map[string]bool)
	for _, line := range bytes.SplitAfter(content, []byte("\n")) {
		if seen[string(line)] {
			t.Errorf("%q is there twice", line)
		}
		seen[string(line)] = true
	}
	for line := range named {
		if !seen[line] {
			t.Errorf("%q is lost", line)
		}
	}
	if len(named) == 0 {
		t.Error("nothing was named")
	}
}

func TestWhatCannotBeNamedWhenTheVolumeClosesIsSaved(t *testing.T) {
	h := newHub(t, 2)
	a := h.nodes[0]
	a.createFile("file", []byte("old"))
	f := a.openFile("file", syscall.O_RDWR)
	a.put(f, []byte("new"), 0)
	f.Release()
	a.setCut(true)
	if err := a.Volume.Close(t.Context()); err == nil {
		t.Error("closed without an error")
	}
	a.setCut(false)
	saved, ok := a.recovery.Load(fmt.Sprintf("%d-file", f.Ino()))
	if !ok || saved.(*recovered).String() != "new" {
		t.Error("what was written was not saved")
	}
}

// alone is a cluster of which nobody else is a member.
type alone struct{}

func (alone) Barrier(context.Context) error { return nil }

func (alone) Session() namespace.SessionID { return 1 }

func TestWhatWasSyncedBeforeTheVolumeWasSharedIsReplayedOnce(t *testing.T) {
	fs := vfs.NewCrashableMem()
	r := openRig(t, fs, 0)
	h := r.create("file")
	r.write(h, pattern(100_000, 1), 0)
	r.must(h.Flush(t.Context()))
	r.write(h, []byte("synced"), 5)
	r.must(h.Fsync(t.Context(), false)) // a record of the journal
	want := overlay(pattern(100_000, 1), []byte("synced"), 5)
	r, fs = r.powerLoss(fs)
	r.expect(h.Ino(), want)
	r.Share(alone{})
	r.must(r.Volume.Sync(t.Context()))
	// Another node's content says how far this node's records are contained, too.
	n, err := r.state.Inode(h.Ino())
	r.must(err)
	if n.Content.Folded == 0 {
		t.Error("what was replayed is not named")
	}
	f := r.open(h.Ino())
	r.write(f, []byte("shared"), 5)
	r.must(f.f.record(true)) // as for want of memory
	r.must(f.Flush(t.Context()))
	f.Release()
	r.must(r.journal.Sync(t.Context()))
	r, _ = r.powerLoss(fs)
	r.expect(h.Ino(), overlay(want, []byte("shared"), 5))
	r.close()
}
