//go:build linux

package cluster

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestWhoMayNotJoinIsToldWhy(t *testing.T) {
	needsNet(t)
	r := newRig(t, 5)
	a, other, joiner := r.nodes[0], r.nodes[1], r.nodes[2]
	a.mount()
	other.mount() // a cluster of its own
	good := a.invite()
	mistyped := []byte(good)
	if mistyped[20]++; mistyped[20] > 'z' {
		mistyped[20] = 'a'
	}
	expired := a.invite("--ttl", "1s")
	until := time.Now().Add(time.Second)
	revoked := a.invite()
	a.must("invite", "--revoke", revoked)
	foreign := other.invite()
	other.stop() // its token leads nowhere now
	used := a.invite()
	user := r.nodes[3]
	user.mount("--join", used)
	bound := a.invite("--peer", user.status().Node.ID)
	eventually(t, settleTime, "the token expires", func() error {
		if time.Now().Before(until) {
			return errors.New("not yet")
		}
		return nil
	})

	for _, c := range []struct {
		name, token string
		code        int
		here        []string // on stderr
		there       string   // in the log of the member
	}{
		{"no token", "hello", 2, []string{"not an invitation"}, ""},
		{"mistyped", string(mistyped), 2, []string{"changed on its way"}, ""},
		{"cut off", good[:len(good)/2], 2, []string{"incomplete"}, ""},
		{"expired", expired, 1, []string{"refused", "expired", "cairn invite"}, "expired"},
		{"revoked", revoked, 1, []string{"refused", "invitation"}, "invitation"},
		{"used", used, 1, []string{"refused", "used"}, "used"},
		{"of another's", bound, 1, []string{"refused"}, "another"},
		{"of a cluster that does not answer", foreign, 5, []string{"cannot be reached"}, ""},
	} {
		before := len(a.log())
		out, errs, code := joiner.run("join", "--listen", joiner.listen, c.token)
		if code != c.code || out != "" {
			t.Errorf("%s: exit code %d, should be %d: %s%s", c.name, code, c.code, out, errs)
		}
		for _, part := range c.here {
			if !strings.Contains(errs, part) {
				t.Errorf("%s: stderr does not say %q: %s", c.name, part, errs)
			}
		}
		if !strings.HasPrefix(errs, "cairn: ") || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: not one line: %s", c.name, errs)
		}
		if log := a.log()[before:]; c.there != "" && (!strings.Contains(log, c.there) || !strings.Contains(log, "not let in")) {
			t.Errorf("%s: the member's log does not say %q: %s", c.name, c.there, log)
		}
		if strings.Contains(errs, c.token) && len(c.token) > 20 {
			t.Errorf("%s: the token is told: %s", c.name, errs)
		}
	}
	// After all that, the right token works.
	joiner.mount("--join", good)
	joiner.writable()
	r.awaitVoters(3, a, joiner)

	// A store cannot become another's.
	full := r.nodes[4]
	file := filepath.Join(t.TempDir(), "file")
	ok(t, os.WriteFile(file, []byte("x"), 0o644))
	full.must("add", "-q", file)
	for _, c := range []struct {
		name string
		on   *node
		say  string
	}{
		{"a store of its own", full, "empty"},
		{"a member", user, "already"},
	} {
		if c.on.runs() {
			c.on.stop()
		}
		if _, errs, code := c.on.run("join", "--listen", c.on.listen, a.invite()); code != 1 || !strings.Contains(errs, c.say) {
			t.Errorf("join with %s: exit code %d: %s", c.name, code, errs)
		}
	}
	full.wipe()
	ok(t, os.MkdirAll(full.dir, 0o700))
	ok(t, os.WriteFile(filepath.Join(full.dir, "mine"), []byte("x"), 0o644))
	if _, errs, code := full.run("join", "--listen", full.listen, a.invite()); code != 1 || !strings.Contains(errs, "other files") {
		t.Errorf("join with somebody's files: exit code %d: %s", code, errs)
	}

	// A key that others can read is not used.
	key := filepath.Join(user.dir, "key")
	info, err := os.Stat(key)
	ok(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the key has mode %v", info.Mode())
	}
	ok(t, os.Chmod(key, 0o644))
	said, err := user.tryStart("mounted "+user.mnt, "mount", "--listen", user.listen, user.mnt)
	if err == nil {
		t.Fatal("a key with mode 0644 was used")
	}
	if code := user.cmd.ProcessState.ExitCode(); code != 1 || said != "" {
		t.Errorf("a key with mode 0644: exit code %d: %s", code, said)
	}
	if log := user.logEnd(3); !strings.Contains(log, "0644") || !strings.Contains(log, "chmod 600") {
		t.Errorf("a key with mode 0644: %s", log)
	}
	ok(t, os.Chmod(key, 0o600))
	user.mount()
	user.writable()
}

// refusedAtStart starts a node that its cluster refuses. It ends with exit code 6, says
// why in one line, and so do its status, doctor and the members' logs.
func refusedAtStart(n *node, members []*node, why string) {
	n.t.Helper()
	var before []int
	for _, m := range members {
		before = append(before, len(m.log()))
	}
	said, err := n.tryStart("mounted "+n.mnt, "mount", "--listen", n.listen, n.mnt)
	if err == nil { // it began before anybody told it
		_ = n.awaitEnd() // with the exit code below
	}
	if code := n.cmd.ProcessState.ExitCode(); code != 6 {
		n.t.Errorf("%s: a refused node ended with code %d: %v, %s\n%s", n.name, code, err, said, n.logEnd(5))
	}
	if log := n.logEnd(1); !strings.HasPrefix(log, "cairn: ") || !strings.Contains(log, why) || !strings.Contains(log, "cairn join --rejoin TOKEN") {
		n.t.Errorf("%s: its last line does not say %q and what to do: %s", n.name, why, log)
	}
	told := false
	for i, m := range members {
		log := m.log()[before[i]:]
		told = told || strings.Contains(log, "a node is refused") && strings.Contains(log, why)
	}
	if len(members) > 0 && !told {
		n.t.Errorf("no member's log says that %s is refused because it is %s", n.name, why)
	}
	if out := n.must("status"); !strings.Contains(out, "refused") || !strings.Contains(out, why) {
		n.t.Errorf("status of a refused node: %s", out)
	}
	if out, _, code := n.run("doctor"); code != 1 || !strings.Contains(out, "problem: ") || !strings.Contains(out, "--rejoin") {
		n.t.Errorf("doctor on a refused node: exit code %d: %s", code, out)
	}
}

// rejoin makes a refused node a new member that has its blocks.
func (n *node) rejoin(by *node) {
	n.t.Helper()
	var was status
	ok(n.t, json.Unmarshal([]byte(n.must("status", "--json")), &was))
	stored := was.Store.Blocks
	n.must("join", "--rejoin", "--listen", n.listen, by.invite())
	n.mount()
	if got := n.status().Store.Blocks; got < stored {
		n.t.Errorf("%s has %d blocks, it had %d before it joined again", n.name, got, stored)
	}
}

// Rule 20: a member that was removed while it was down is told so, and can join again
// with its blocks.
func TestARemovedNodeIsToldAndCanRejoin(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	fill(t, r.nodes[0], "data", 5)
	r.awaitCopies(r.nodes...)
	gone := r.nodes[2]
	kill(gone)
	r.nodes[0].must("peers", "remove", gone.name)
	if _, errs, code := r.nodes[0].run("peers", "remove", gone.name); code != 3 {
		t.Errorf("removing it again: exit code %d: %s", code, errs)
	}
	if _, errs, code := r.nodes[0].run("peers", "remove", r.nodes[0].name); code != 1 {
		t.Errorf("removing oneself: exit code %d: %s", code, errs)
	}
	ok(t, writeSynced(r.nodes[0].path("later"), []byte("later")))
	refusedAtStart(gone, r.nodes[:2], "removed")
	// Also when nobody is there to tell it again.
	r.part(r.nodes[:2], r.nodes[2:])
	refusedAtStart(gone, nil, "removed")
	r.heal()
	gone.rejoin(r.nodes[0])
	if got, err := os.ReadFile(gone.path("later")); err != nil || string(got) != "later" {
		t.Errorf("%q, %v", got, err)
	}
	gone.writable()
	r.awaitVoters(3)
}

// Rule 4: an older copy of a data directory that is put back is refused on both sides,
// and nothing is lost.
func TestAnOldCopyOfADataDirectoryIsRefused(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
	ok(t, writeSynced(r.nodes[2].path("before"), []byte("before")))
	n := r.nodes[2]
	n.stop()
	saved := n.dir + ".saved"
	ok(t, os.CopyFS(saved, os.DirFS(n.dir)))
	n.mount()
	ok(t, writeSynced(n.path("after"), []byte("after")))
	n.stop()
	n.wipe()
	ok(t, os.Rename(saved, n.dir))
	for _, name := range []string{"key", "member"} {
		ok(t, os.Chmod(filepath.Join(n.dir, name), 0o600))
	}
	refusedAtStart(n, r.nodes[:2], "restored")
	for _, m := range r.nodes[:2] {
		for _, name := range []string{"before", "after"} {
			if got, err := os.ReadFile(m.path(name)); err != nil || string(got) != name {
				t.Errorf("%s has %q: %v", m.name, got, err)
			}
		}
	}
	n.rejoin(r.nodes[0])
	r.nodes[0].must("peers", "remove", n.former(r.nodes[0]))
	n.writable()
	if got, err := os.ReadFile(n.path("after")); err != nil || string(got) != "after" {
		t.Errorf("%q, %v", got, err)
	}
}

// former returns the id of the member that the node was before it joined again.
func (n *node) former(by *node) string {
	n.t.Helper()
	now := n.status().Node.ID
	for _, p := range by.status().Peers {
		if p.Name == n.name && p.ID != now {
			return p.ID
		}
	}
	n.t.Fatalf("%s does not know what %s was before", by.name, n.name)
	return ""
}

// Rule 20: who comes back after a new cluster was forced without it is refused.
func TestANodeOfAnOlderGenerationIsRefused(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 2)
	r.awaitVoters(2)
	ok(t, writeSynced(r.nodes[1].path("file"), []byte("x")))
	kill(r.nodes...)
	if out, _, code := r.nodes[0].run("recover", "--force-new-cluster"); code != 0 || !strings.Contains(out, "generation 1") {
		t.Fatalf("recover: exit code %d: %s", code, out)
	}
	r.nodes[0].mount()
	r.nodes[0].writable()
	refusedAtStart(r.nodes[1], r.nodes[:1], "generation")
	r.nodes[1].rejoin(r.nodes[0])
	r.nodes[1].writable()
	if got, err := os.ReadFile(r.nodes[1].path("file")); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
}
