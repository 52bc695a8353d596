package membership

import (
	"slices"
	"testing"
	"time"

	"github.com/cairnfs/cairn/p2p"
)

func everyone(p2p.PeerID) bool { return true }

func (t *table) is(id p2p.PeerID) p2p.Health {
	h, _ := t.health(id)
	return h
}

func TestAMemberThatDoesNotAnswerIsSuspectUntilItDoes(t *testing.T) {
	t.Parallel()
	tab := newTable()
	tab.joined("a")
	if h := tab.is("a"); h != p2p.Alive {
		t.Fatalf("joined: %v", h)
	}
	before := time.Now()
	tab.outcome("a", time.Now(), false)
	if h, at := tab.health("a"); h != p2p.Suspect || at.Before(before) {
		t.Errorf("after silence: %v, last alive at %v", h, at)
	}
	_, was := tab.health("a")
	tab.outcome("a", time.Now(), true)
	if h := tab.is("a"); h != p2p.Alive {
		t.Errorf("after an answer: %v", h)
	}
	tab.outcome("a", time.Now(), false)
	tab.left("a")
	if h, at := tab.health("a"); h != p2p.Dead || at.Before(was) {
		t.Errorf("after it left: %v, last alive at %v", h, at)
	}
}

func TestSilenceOnAnOlderRequestSaysNothing(t *testing.T) {
	t.Parallel()
	tab := newTable()
	old := time.Now()
	tab.joined("a")
	tab.outcome("a", old, false)
	if h := tab.is("a"); h != p2p.Alive {
		t.Errorf("it was sent before the member came up: %v", h)
	}
	late := time.Now().Add(time.Second)
	tab.outcome("a", late, true)
	tab.outcome("a", late.Add(-time.Millisecond), false)
	if h := tab.is("a"); h != p2p.Alive {
		t.Errorf("a later one was answered: %v", h)
	}
}

func TestNothingIsKeptOfWhoNeverCameUp(t *testing.T) {
	t.Parallel()
	tab := newTable()
	tab.outcome("a", time.Now(), true)
	tab.outcome("a", time.Now(), false)
	tab.left("a")
	if len(tab.peers) != 0 || tab.is("a") != p2p.Dead {
		t.Errorf("kept: %v", tab.peers)
	}
}

func TestChangesAreToldOnceAndNonMembersForgottenWhenTheyAreDown(t *testing.T) {
	t.Parallel()
	tab := newTable()
	tab.joined("a")
	told := func(member bool, want ...change) {
		t.Helper()
		if got := tab.changes(func(p2p.PeerID) bool { return member }); !slices.Equal(got, want) {
			t.Errorf("told %v, want %v", got, want)
		}
	}
	told(true, change{"a", p2p.Alive})
	told(true)
	told(false, change{"a", p2p.Dead})
	told(false)
	if len(tab.peers) != 1 {
		t.Error("forgotten while it is up")
	}
	told(true, change{"a", p2p.Alive}) // it is a member again, and was up all the time
	told(false, change{"a", p2p.Dead})
	tab.left("a")
	told(false)
	if len(tab.peers) != 0 {
		t.Error("not forgotten")
	}
}

func TestNobodyComesUpInAClosedTable(t *testing.T) {
	t.Parallel()
	tab := newTable()
	tab.joined("a")
	tab.close()
	tab.joined("b")
	tab.joined("a")
	for _, id := range []p2p.PeerID{"a", "b"} {
		if h := tab.is(id); h != p2p.Dead {
			t.Errorf("%s is %v", id, h)
		}
	}
	if got := tab.changes(everyone); len(got) != 0 {
		t.Errorf("changes: %v", got)
	}
}
