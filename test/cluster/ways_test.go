//go:build linux

package cluster

import (
	"errors"
	"fmt"
	"os/exec"
	"testing"
)

// share has every node write files, and every other read them.
func share(t testing.TB, dir string, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		all := fill(t, n, dir+"-"+n.name, 14)
		for _, other := range nodes {
			all.check(t, other)
		}
	}
}

// connected says at how many addresses of others a machine has connections to or
// from the port of nodes by TCP.
func (ns netns) connected(t testing.TB) int {
	t.Helper()
	words := ns.inside("ss", "-Htn", "state", "established", "( sport = 4101 or dport = 4101 )")
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("ss: %v: %s", err, out)
	}
	lines := 0
	for _, b := range out {
		if b == '\n' {
			lines++
		}
	}
	return lines
}

func TestWhereAFirewallLetsOnlyUDPThroughAClusterWorksByQUICAndReturnsToTCP(t *testing.T) {
	needsNet(t, "ss")
	r := newRig(t, 3)
	apart := r.nodes[2]
	ok(t, apart.net.refuseTCP())
	r.nodes[0].mount()
	for _, n := range r.nodes[1:] {
		n.mount("--join", r.nodes[0].invite())
	}
	r.awaitVoters(3)
	share(t, "udp", r.nodes...)
	r.awaitCopies(r.nodes...)
	if n := apart.net.connected(t); n != 0 {
		t.Errorf("%d connections by TCP pass a firewall that drops it", n)
	}
	l := startPacedLoad(t, "load", 0, r.nodes...)
	l.awaitMore(5, r.nodes...)

	ok(t, apart.net.admit())
	took := eventually(t, settleTime, "connections by TCP", func() error {
		if n := apart.net.connected(t); n < 2 {
			return fmt.Errorf("%d", n)
		}
		return nil
	})
	t.Logf("TCP instead of QUIC %v after the firewall let it through", took)
	l.awaitMore(20, r.nodes...)
	l.end()
	if failed := l.report(r.nodes...); failed > 0 {
		t.Errorf("%d attempts failed", failed)
	}
	share(t, "tcp", r.nodes...)
}

func TestANodeBehindARouterThatHidesItReadsAndWritesAndIsRead(t *testing.T) {
	needsNet(t)
	r := newRig(t, 2)
	hidden := r.lan.hide(t)
	behind := r.addAt(&hidden)
	r.nodes[0].mount()
	for _, n := range r.nodes[1:] {
		n.mount("--join", r.nodes[0].invite())
	}
	r.awaitVoters(3)
	share(t, "first", r.nodes...)
	large := random(1, 64<<20)
	ok(t, writeSynced(behind.path("large"), large))
	for _, n := range r.nodes[:2] {
		ok(t, holds(n.path("large"), large))
	}

	// Whoever is started again is found by those that were there.
	for _, n := range []*node{behind, r.nodes[0]} {
		kill(n)
		n.mount()
		n.writable()
		again := fmt.Sprint("again-", n.name)
		eventually(t, settleTime, "files of "+n.name+" elsewhere", func() error {
			data := random(7, 300_000)
			err := writeSynced(n.path(again), data)
			for _, other := range r.others(n) {
				err = errors.Join(err, holds(other.path(again), data))
			}
			return err
		})
	}
	share(t, "later", r.nodes...)
}
