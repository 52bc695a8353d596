//go:build linux

package cluster

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// sqlite runs SQL on a database and returns what is said.
func sqlite(path, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	c := exec.CommandContext(ctx, "sqlite3", "-bail", path)
	c.Stdin = strings.NewReader(sql)
	out, err := c.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// mustSQL is sqlite for what has to work.
func mustSQL(t testing.TB, path, sql string) string {
	t.Helper()
	out, err := sqlite(path, sql)
	if err != nil {
		t.Fatalf("sqlite3 %s: %v: %s\n%s", path, err, out, sql)
	}
	return out
}

func TestTwoNodesUpdateOneSQLiteDatabase(t *testing.T) {
	needsNet(t, "sqlite3")
	r := newCluster(t, 3)
	r.awaitVoters(3)
	const each = 25
	mustSQL(t, r.nodes[0].path("db"), "pragma journal_mode=delete; create table n(x integer); insert into n values(0); create table t(who, i, blob);")
	errs := parallel(t, r.nodes, func(_ int, n *node) error {
		// Reading before writing, as programs do that count: without the lock
		// that begin immediate takes, updates would be lost.
		for i := range each {
			out, err := sqlite(n.path("db"), fmt.Sprintf(`pragma busy_timeout=60000; begin immediate;
update n set x = (select x from n) + 1; insert into t values('%s', %d, hex(randomblob(500))); commit;`, n.name, i))
			if err != nil {
				return fmt.Errorf("%s, %d: %w: %s", n.name, i, err, out)
			}
		}
		return nil
	})
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	for _, n := range r.nodes {
		if got := mustSQL(t, n.path("db"), "pragma integrity_check;"); got != "ok" {
			t.Errorf("on %s the database is not whole: %s", n.name, got)
		}
		want := fmt.Sprint(each * len(r.nodes))
		if got := mustSQL(t, n.path("db"), "select x from n; select count(*) from t; select count(distinct who || ' ' || i) from t;"); got != want+"\n"+want+"\n"+want {
			t.Errorf("on %s there are %q of %s updates", n.name, got, want)
		}
	}
}

// TestASQLiteDatabaseInWALModeBelongsToOneNodeAtATime: it takes memory that all
// users share, which two machines have not.
func TestASQLiteDatabaseInWALModeBelongsToOneNodeAtATime(t *testing.T) {
	needsNet(t, "sqlite3")
	r := newCluster(t, 2)
	a, b := r.nodes[0], r.nodes[1]
	mustSQL(t, a.path("db"), "pragma journal_mode=wal; create table t(x); insert into t values('before');")
	// One that stays open on a.
	holder := exec.CommandContext(t.Context(), "sqlite3", "-bail", a.path("db"))
	in, err := holder.StdinPipe()
	ok(t, err)
	var said bytes.Buffer
	holder.Stdout, holder.Stderr = &said, &said
	ok(t, holder.Start())
	_, err = fmt.Fprintln(in, "pragma busy_timeout=60000; insert into t values('held');")
	ok(t, err)
	eventually(t, settleTime, "the row of the process that stays", func() error {
		if out := mustSQL(t, a.path("db"), "pragma busy_timeout=20000; select count(*) from t;"); !strings.HasSuffix(out, "2") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	inserted := 2
	for i := range 5 {
		out, err := sqlite(b.path("db"), "insert into t values('other');")
		t.Logf("the other node is told: %v: %s", err, out)
		if err == nil {
			t.Errorf("%d: a database in WAL mode that is open on another node was written to", i)
			inserted++
		}
		_, err = fmt.Fprintln(in, "insert into t values('more');")
		ok(t, err)
		inserted++
	}
	ok(t, in.Close())
	if err := holder.Wait(); err != nil {
		t.Errorf("the node that had it first: %v: %s", err, &said)
	}
	for _, n := range []*node{b, a, b} {
		eventually(t, settleTime, "the database can be used elsewhere once it is closed", func() error {
			out, err := sqlite(n.path("db"), "pragma integrity_check; select count(*) from t;")
			if err == nil && out != fmt.Sprintf("ok\n%d", inserted) {
				t.Fatalf("on %s: %s, should be %d rows", n.name, out, inserted)
			}
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			return err
		})
		mustSQL(t, n.path("db"), "insert into t values('later');")
		inserted++
	}
}
