package raft

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

func TestAGroupGrowsAndAgrees(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	a := g.found()
	a.must(mkdir("one"))
	b := a.join(p2p.RoleStorage)
	g.voters(2)
	b.must(mkdir("two"))
	c := b.join(p2p.RoleStorage)
	g.voters(3)
	c.must(mkdir("three"))
	d := c.join(p2p.RoleClient) // rule 19: never votes
	d.must(mkdir("four"))
	g.agree()
	e := d.join(p2p.RoleStorage)
	f := e.join(p2p.RoleStorage)
	g.voters(5)
	f.must(mkdir("five"))
	g.agree()
	for _, name := range []string{"before", "one", "two", "three", "four", "five"} {
		if _, err := f.state.Lookup(namespace.RootIno, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatWasAcknowledgedIsSeenAfterABarrier(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	a := g.found()
	b := a.join(p2p.RoleStorage)
	c := a.join(p2p.RoleStorage)
	g.voters(3)
	nodes := []*member{a, b, c}
	for i := range 60 {
		name := fmt.Sprint("n", i)
		nodes[i%3].must(mkdir(name))
		reader := nodes[(i+1)%3]
		if err := reader.log.Barrier(context.Background()); err != nil {
			t.Fatal(err)
		}
		if _, err := reader.state.Lookup(namespace.RootIno, name); err != nil {
			t.Fatalf("%s after a barrier: %v", name, err)
		}
	}
}

func TestTheGroupGoesOnWithoutItsLeader(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	a := g.found()
	b := a.join(p2p.RoleStorage)
	c := a.join(p2p.RoleStorage)
	g.voters(3)
	for _, m := range []*member{a, b, c} {
		m.must(mkdir(fmt.Sprint("by ", m.id)))
	}
	leader := g.leader()
	var wg sync.WaitGroup
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	for _, m := range []*member{a, b, c} {
		if m == leader {
			continue
		}
		for w := range 4 {
			wg.Go(func() {
				for i := range 40 {
					name := fmt.Sprintf("%d-%d-%d", m.id, w, i)
					if _, err := m.propose(mkdir(name)); err == nil {
						mu.Lock()
						acknowledged[name] = true
						mu.Unlock()
					} else if !errors.Is(err, namespace.ErrSession) {
						t.Error(err)
					}
				}
			})
		}
	}
	fs := leader.crash()
	wg.Wait()
	g.leader()
	back := g.start(leader.id, fs)
	if err := back.log.Barrier(context.Background()); err != nil {
		t.Fatal(err)
	}
	for name := range acknowledged {
		if _, err := back.state.Lookup(namespace.RootIno, name); err != nil {
			t.Errorf("%s was acknowledged: %v", name, err)
		}
	}
	if len(acknowledged) < 100 {
		t.Errorf("only %d of 320 commands were acknowledged", len(acknowledged))
	}
	g.agree()
}

func TestAMinorityRefusesAndLosesItsSession(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	g.ttl = 100 * liveTick
	a := g.found()
	b := a.join(p2p.RoleStorage)
	c := a.join(p2p.RoleStorage)
	g.voters(3)
	ino := a.must(mkdir("file")).Inodes[0].Ino
	for _, m := range []*member{a, b, c} {
		m.must(mkdir(fmt.Sprint(m.id))) // everybody has a session
	}
	cut := g.leader()
	old := cut.log.Session()
	cut.must(&namespace.LockRange{Session: old, Ino: ino, Kind: namespace.LockFile, End: 1, Mode: namespace.Exclusive})
	g.net.Isolate(peerName(cut.id))
	eventually(t, "the node that is cut off does not rely on its session any more", func() bool { return cut.log.Session() == 0 })
	if _, err := cut.propose(mkdir("refused")); err == nil {
		t.Error("a minority acknowledged a change")
	}
	other := a
	if other == cut {
		other = b
	}
	// Rule 7: fencing. The others get the lock once the session has ended.
	eventually(t, "the lock of the node that is cut off is free", func() bool {
		_, err := other.propose(&namespace.LockRange{Session: other.log.Session(), Ino: ino, Kind: namespace.LockFile, End: 1, Mode: namespace.Exclusive})
		return err == nil
	})
	g.net.HealAll()
	eventually(t, "there is another session", func() bool { s := cut.log.Session(); return s != 0 && s != old })
	cut.must(mkdir("again"))
	g.agree()
	if _, err := cut.state.Lookup(namespace.RootIno, "refused"); err == nil {
		t.Log("what a minority refused was carried out later, as unknown outcomes may be")
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if cut.ends == 0 {
		t.Error("the node was not told that its session ended")
	}
}

// A retry never applies twice, whatever the network does to the messages.
func TestEachCommandIsCarriedOutOnceOverABadNetwork(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	a := g.found()
	b := a.join(p2p.RoleStorage)
	c := a.join(p2p.RoleStorage)
	g.voters(3)
	var n int
	var mu sync.Mutex
	g.net.SetFilter(func(from, to p2p.PeerID, p p2p.Protocol) error {
		mu.Lock()
		defer mu.Unlock()
		if n++; n%7 == 0 {
			return p2p.ErrUnreachable
		}
		return nil
	})
	var wg sync.WaitGroup
	var made, refused int
	for _, m := range []*member{a, b, c} {
		for range 3 {
			wg.Go(func() {
				for i := range 40 {
					// Each name is made by one of nine.
					_, err := m.propose(mkdir(fmt.Sprint(i)))
					mu.Lock()
					switch {
					case err == nil:
						made++
					case errors.Is(err, namespace.ErrExist):
						refused++
					default:
						t.Error(err)
					}
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	g.net.SetFilter(nil)
	if made != 40 || refused != 8*40 {
		t.Errorf("%d were made and %d refused, of 40 names and 9 who make each", made, refused)
	}
	g.agree()
}

func TestALaggingNodeGetsTheWholeNamespace(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	a := g.found()
	b := a.join(p2p.RoleStorage)
	c := a.join(p2p.RoleStorage)
	g.voters(3)
	c.must(mkdir("c was here"))
	fs := c.crash()
	big := make([]byte, namespace.MaxInline)
	for i := range 60 {
		ops := []namespace.Op{}
		for j := range 30 {
			ops = append(ops, &namespace.Create{Parent: namespace.RootIno, Name: fmt.Sprintf("%d-%d", i, j), Mode: namespace.TypeRegular,
				Size: int64(len(big)), Content: &namespace.Content{Inline: big, Length: int64(len(big))}})
		}
		a.must(ops...)
	}
	for _, m := range []*member{a, b} {
		m.log.do(context.Background(), func() { m.log.store.kept = 512 << 10 })
		keep, err := m.log.Checkpoint()
		if err == nil {
			err = m.checkpoint(keep)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if first, _ := a.log.store.FirstIndex(); first < 10 {
		t.Fatalf("the log still begins at %d", first)
	}
	back := g.start(3, fs)
	d := back.join(p2p.RoleStorage)
	d.must(mkdir("d"))
	back.must(mkdir("back"))
	g.agree()
	// And it survives a power loss at once.
	fs = d.crash()
	g.start(d.id, fs).must(mkdir("d again"))
	g.agree()
}

func TestLeadershipIsHandedOverAtShutdown(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	a := g.found()
	a.join(p2p.RoleStorage)
	a.join(p2p.RoleStorage)
	g.voters(3)
	leader := g.leader()
	other := g.node(leader.id%3 + 1)
	begin := time.Now()
	leader.stop()
	other.must(mkdir("goes on"))
	t.Logf("the next change took %v", time.Since(begin).Round(time.Millisecond))
}

func TestVotersThatAreGoneAreReplaced(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	a := g.found()
	for range 3 {
		a.join(p2p.RoleStorage)
	}
	g.voters(3)
	leader := g.leader()
	var gone *member
	for _, id := range leader.log.Status().Voters {
		if id != leader.id {
			gone = g.node(id)
		}
	}
	gone.crash()
	leader.must(&namespace.SetMember{Member: p2p.Member{ID: peerName(gone.id), State: p2p.Away}, Mask: namespace.MemberState})
	eventually(t, "another member votes in its place", func() bool {
		for _, m := range []uint64{1, 2, 3, 4} {
			if n := g.node(m); n != nil && n.log.Status().Role == "leader" {
				voters := n.log.Status().Voters
				for _, v := range voters {
					if v == gone.id {
						return false
					}
				}
				return len(voters) == 3
			}
		}
		return false
	})
	leader.must(&namespace.RemoveMember{ID: peerName(gone.id)})
	leader.must(mkdir("goes on"))
}

// A node that is sent the namespace needs the commands after it when it has it all.
func TestANodeThatIsSentTheNamespaceCatchesUpWithABusyGroup(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	a := g.found()
	big := make([]byte, namespace.MaxInline)
	file := func(name string) *namespace.Create {
		return &namespace.Create{Parent: namespace.RootIno, Name: name, Mode: namespace.TypeRegular,
			Size: int64(len(big)), Content: &namespace.Content{Inline: big, Length: int64(len(big))}}
	}
	for i := range 60 {
		ops := []namespace.Op{}
		for j := range 30 {
			ops = append(ops, file(fmt.Sprintf("%d-%d", i, j)))
		}
		a.must(ops...)
	}
	a.log.do(context.Background(), func() { a.log.store.kept = 512 << 10 })
	checkpoint := func() {
		keep, err := a.log.Checkpoint()
		if err == nil {
			err = a.checkpoint(keep)
		}
		if err != nil {
			t.Error(err)
		}
	}
	checkpoint()
	g.net.SetFilter(func(_, _ p2p.PeerID, p p2p.Protocol) error {
		if p == protocolSnapshot {
			time.Sleep(150 * time.Millisecond) // the line is slow
		}
		return nil
	})
	b := a.join(p2p.RoleStorage)
	done := make(chan struct{})
	var busy sync.WaitGroup
	busy.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			if _, err := a.propose(file(fmt.Sprint("busy ", i))); err != nil && !errors.Is(err, namespace.ErrSession) {
				t.Error(err)
			}
			if i%32 == 0 {
				checkpoint()
			}
			time.Sleep(5 * time.Millisecond) // so that one can catch up that has as little of the processor
		}
	})
	defer busy.Wait()
	defer close(done)
	eventually(t, "the new node votes", func() bool { return len(b.log.Status().Voters) == 2 })
}
