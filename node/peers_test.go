package node

import (
	"errors"
	"testing"

	"github.com/cairnfs/cairn/node/control"
)

func TestTheLastMemberThatStoresBlocksIsNotDrained(t *testing.T) {
	a := openMember(t, Options{Dir: t.TempDir()})
	if _, err := a.Invite(t.Context(), control.InviteOptions{Listen: loopback}); err != nil {
		t.Fatal(err)
	}
	self := func(n *Node) string { return string(n.cluster.Load().self) }
	if err := a.DrainPeer(t.Context(), self(a), false); !errors.Is(err, errLastOwner) {
		t.Errorf("the only member is drained: %v", err)
	}
	b := joined(t, a, t.TempDir())
	drain := func(n *Node, undo bool, want error) {
		t.Helper()
		if err := a.DrainPeer(t.Context(), self(n), undo); !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
		}
	}
	drain(a, false, nil)
	drain(b, false, errLastOwner)
	drain(a, false, nil) // again
	drain(a, true, nil)
	drain(b, false, nil)
}
