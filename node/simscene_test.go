//go:build simulation

package node

import (
	"slices"
	"testing"
	"time"
)

// waitFor lets time pass until ok.
func (w *world) waitFor(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(30 * time.Minute); !ok(); time.Sleep(time.Second) {
		w.tendMachines()
		if time.Now().After(end) {
			w.t.Fatalf("not in time: %s", what)
		}
	}
}

func (m *machine) leads() bool {
	n := m.node()
	return n != nil && n.cluster.Load() != nil && n.cluster.Load().group.Status().Role == "leader"
}

func (m *machine) hasSession() bool {
	n := m.node()
	return n != nil && n.cluster.Load() != nil && n.cluster.Load().group.Session() != 0
}

// A node is away while another one joins, which leads when the first comes back: that
// one has never heard of its leader, and must let it in all the same.
func TestANodeThatWasAwayLetsInALeaderThatHasJoinedSince(t *testing.T) {
	inVirtualTime(t, func(t *testing.T) {
		w := newWorld(t, 1)
		w.healed.Store(true) // programs do nothing
		defer w.end(w.begin())
		away, last := w.machines[2], w.machines[3]
		for i, m := range w.machines[:3] {
			m.powerOn()
			w.waitFor("the node is a member", func() bool { return len(w.up()) == i+1 && w.together() == "" })
		}
		away.crash(0)
		disk := away.takeDisk()
		last.powerOn()
		w.waitFor("the last node has joined", last.hasSession)
		w.waitFor("it votes in place of the one that is away", func() bool {
			c := last.node().cluster.Load()
			return slices.Contains(c.group.Status().Voters, c.member.Raft)
		})
		w.waitFor("it leads", func() bool {
			for _, m := range w.machines[:2] {
				if m.leads() {
					w.partition([]*machine{m})
					time.Sleep(10 * time.Second)
					w.net.HealAll()
				}
			}
			return last.leads()
		})
		away.putDisk(disk)
		w.waitFor("the node that was away has a session", away.hasSession)
	})
}
