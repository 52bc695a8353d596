//go:build linux

package cluster

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// writer is a program that inserts rows into a database, one after the other.
type writer struct {
	acked atomic.Int64 // rows of which it was told that they are there
	cmd   *exec.Cmd
	done  chan struct{}
}

// startWriter begins to insert the rows 1, 2, … into table t.
func startWriter(t *testing.T, path string) *writer {
	t.Helper()
	w := &writer{cmd: exec.Command("sqlite3", "-bail", path), done: make(chan struct{})}
	in, err := w.cmd.StdinPipe()
	ok(t, err)
	out, err := w.cmd.StdoutPipe()
	ok(t, err)
	ok(t, w.cmd.Start())
	go func() { // until the program is gone
		io.WriteString(in, "pragma busy_timeout=60000; pragma synchronous=full;\n")
		for i := 1; ; i++ {
			if _, err := fmt.Fprintf(in, "insert into t values(%d, hex(randomblob(100))); select 'row', %d;\n", i, i); err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(w.done)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var i int64
			if _, err := fmt.Sscanf(lines.Text(), "row|%d", &i); err == nil {
				w.acked.Store(i)
			}
		}
		w.cmd.Wait()
	}()
	t.Cleanup(func() { w.end() })
	return w
}

func (w *writer) end() {
	w.cmd.Process.Kill()
	<-w.done
}

// Rule 18: what a database was told is durable is there on other nodes, also when its
// node is killed before the small changes became blocks; and they become blocks
// without it.
func TestWhatADatabaseSyncedSurvivesTheKillOfItsNode(t *testing.T) {
	needsNet(t, "sqlite3")
	r := newCluster(t, 3)
	r.awaitVoters(3)
	dead := r.others(r.leader(r.nodes...))[0]
	rest := r.others(dead)
	mustSQL(t, dead.path("db"), `pragma journal_mode=delete; create table t(i integer primary key, b);
create table filler(b); insert into filler values(randomblob(2000000));`)
	w := startWriter(t, dead.path("db"))
	eventually(t, settleTime, "rows that are patches", func() error {
		if n := w.acked.Load(); n < 40 {
			return fmt.Errorf("%d rows", n)
		}
		if rest[0].status().Namespace.PatchBytes == 0 {
			return fmt.Errorf("there are no patches")
		}
		return nil
	})
	kill(dead)
	w.end()
	acked := w.acked.Load()
	t.Logf("%d rows were acknowledged; %d bytes of patches are left", acked, rest[0].status().Namespace.PatchBytes)
	for _, n := range rest {
		var out string
		eventually(t, settleTime, "the locks of the killed node to end", func() (err error) {
			out, err = sqlite(n.path("db"), "pragma busy_timeout=1000; pragma integrity_check; select count(*), max(i) from t; select length(b) from filler;")
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			return err
		})
		var count, last, filler int64
		if _, err := fmt.Sscanf(strings.ReplaceAll(out, "\n", " "), "1000 ok %d|%d %d", &count, &last, &filler); err != nil || count != last || count < acked || filler != 2000000 {
			t.Errorf("on %s, of %d rows that were acknowledged: %s", n.name, acked, out)
		}
	}
	eventually(t, 3*time.Minute, "the patches of the killed node to become blocks", func() error {
		if left := rest[0].status().Namespace.PatchBytes; left > 0 {
			return fmt.Errorf("%d bytes are left", left)
		}
		return nil
	})
	dead.mount()
	dead.writable()
	for _, n := range r.nodes {
		if got := mustSQL(t, n.path("db"), "pragma integrity_check; select count(*) >= "+fmt.Sprint(acked)+" from t;"); got != "ok\n1" {
			t.Errorf("on %s: %s", n.name, got)
		}
		n.must("check")
	}
}
