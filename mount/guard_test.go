//go:build linux

package mount

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
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

// withAndWithoutControl runs a test of guards that can, and that cannot, use the
// kernel's file system of FUSE connections, which is mounted on control or not.
func withAndWithoutControl(t *testing.T, test func(t *testing.T, control string)) {
	t.Run("without", func(t *testing.T) { test(t, t.TempDir()) })
	t.Run("with", func(t *testing.T) {
		needRoot(t)
		control := t.TempDir()
		ok(t, unix.Mount("none", control, "fusectl", 0, ""))
		t.Cleanup(func() {
			if err := detach(control); err != nil {
				t.Error(err)
			}
		})
		test(t, control)
	})
}

func TestAGuardEndsTheMountOfAProcessThatIsGone(t *testing.T) {
	withAndWithoutControl(t, func(t *testing.T, control string) {
		dir := newMount(t)
		write(t, filepath.Join(dir, "file"), "")
		args := guardOf(t, dir)
		ok(t, runGuard(control, []string{args[0] + "0", dir}, strings.NewReader(""), io.Discard))
		if _, err := os.ReadDir(dir); err != nil {
			t.Fatalf("by the guard of another mount: %v", err)
		}
		ok(t, runGuard(control, args, strings.NewReader(""), io.Discard))
		// Not served any more, or not even mounted.
		if _, err := os.ReadFile(filepath.Join(dir, "file")); err == nil {
			t.Error("the mount goes on")
		}
		if _, mounted := mountAt(dir); mounted { // by nobody
			ok(t, detach(dir))
		}
	})
}

// The kernel gives the number of a connection that has ended to the next one.
func TestAGuardThatComesLateEndsNoOtherMount(t *testing.T) {
	withAndWithoutControl(t, func(t *testing.T, control string) {
		vol, _ := openVolume(t, vfs.NewMem(), "node")
		first := mountVolume(t, vol, Options{})
		args := guardOf(t, first.Mountpoint())
		in, killed := io.Pipe()
		ready, out := io.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- runGuard(control, args, in, out) }()
		_, err := io.ReadFull(ready, make([]byte, len(guardReady)))
		ok(t, err)
		ok(t, first.Unmount())
		// Whoever else mounts something at this moment may get it first.
		var other string
		for try := 0; other == "" || guardOf(t, other)[0] != args[0]; try++ {
			if try == 100 {
				t.Fatal("no connection got the number again")
			}
			other = newMount(t)
		}
		ok(t, killed.Close())
		ok(t, <-ended)
		write(t, filepath.Join(other, "file"), "content")
		wantContent(t, filepath.Join(other, "file"), "content")
	})
}

func TestAGuardKnowsWhatItIsFor(t *testing.T) {
	for _, args := range [][]string{nil, {""}, {"", "/"}, {"../..", "/"}, {"1", "/", "more"}} {
		if err := RunGuard(args, strings.NewReader(""), io.Discard); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}
