//go:build linux

package cluster

import (
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

func TestARemovedNodeIsNotLetInAgain(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	r.awaitVoters(3)
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
	// It may mount, as a member that hears nothing may, or end; it sees nothing new.
	_, err := gone.tryStart("mounted "+gone.mnt, "mount", "--listen", gone.listen, gone.mnt)
	t.Logf("a removed node starts: %v\n%s", err, gone.logEnd(3))
	if err == nil {
		if err := writeSynced(gone.path("x"), []byte("x")); err == nil {
			t.Error("a removed node can write")
		}
		if _, err := os.ReadFile(gone.path("later")); err == nil {
			t.Error("a removed node sees what came later")
		}
	}
}
