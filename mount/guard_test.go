package mount

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// guardOf returns the arguments of a guard of the mount at path.
func guardOf(t *testing.T, path string) []string {
	t.Helper()
	m, ok := mountAt(path)
	if !ok {
		t.Fatal("not mounted")
	}
	_, minor, _ := strings.Cut(m.device, ":")
	return []string{minor, path}
}

func TestAGuardThatIsDismissedDoesNothing(t *testing.T) {
	dir := newMount(t)
	var out bytes.Buffer
	if err := RunGuard(guardOf(t, dir), strings.NewReader("quit"), &out); err != nil || out.String() != guardReady {
		t.Fatalf("%q %v", out.String(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Error(err)
	}
}

func TestAGuardEndsTheMountOfAProcessThatIsGone(t *testing.T) {
	dir := newMount(t)
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	args := guardOf(t, dir)
	if err := RunGuard([]string{args[0] + "0", dir}, strings.NewReader(""), io.Discard); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadDir(dir); err != nil {
		t.Fatalf("by the guard of another mount: %v", err)
	}
	if err := RunGuard(args, strings.NewReader(""), io.Discard); err != nil {
		t.Fatal(err)
	}
	// Not served any more, or not even mounted.
	if _, err := os.ReadFile(filepath.Join(dir, "file")); err == nil {
		t.Error("the mount goes on")
	}
}

func TestAGuardKnowsWhatItIsFor(t *testing.T) {
	for _, args := range [][]string{nil, {""}, {"", "/"}, {"../..", "/"}, {"1", "/", "more"}} {
		if err := RunGuard(args, strings.NewReader(""), io.Discard); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}
