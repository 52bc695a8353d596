package node

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/namespace"
)

// Rule 10: files without a name that are open for long keep no others from being removed.
func TestAllFilesWithoutANameHaveTheirTurn(t *testing.T) {
	var all []namespace.Ino
	for i := range 2*reapBatch + 10 {
		all = append(all, namespace.Ino(3*i+5))
	}
	c := &cluster{}
	for round := range 3 {
		seen := make(map[namespace.Ino]bool)
		for range 3 {
			some := c.someOrphans(all)
			if len(some) > reapBatch {
				t.Fatalf("%d at a time", len(some))
			}
			for _, ino := range some {
				seen[ino] = true
			}
		}
		if len(seen) != len(all) {
			t.Errorf("in round %d, %d of %d had their turn", round, len(seen), len(all))
		}
	}
	if some := c.someOrphans(all[:1]); len(some) != 1 {
		t.Errorf("one is left, and not found: %v", some)
	}
}

// What a session's end leaves of files is saved however many are lost at once.
func TestRecoveredFilesOfOneNameAreAllKept(t *testing.T) {
	now := time.Now()
	n := &Node{o: Options{Dir: t.TempDir(), FS: vfs.Default, Now: func() time.Time { return now }}}
	want := make(map[string]bool)
	for i := range 3 {
		w, err := n.recovery("12-file")
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprint("version ", i)
		if _, err := w.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		want[text] = true
	}
	files, err := filepath.Glob(filepath.Join(n.path(recoverDir), "*-12-file"))
	if err != nil || len(files) != len(want) {
		t.Fatalf("%q, %v", files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil || !want[string(text)] {
			t.Errorf("%s holds %q, %v", name, text, err)
		}
		delete(want, string(text))
	}
}
