package cmd_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// serviceManager listens as a service manager does and hands out what it is told.
// The path of its socket is in the environment of the processes to come.
func serviceManager(t *testing.T) (told func() string, gone func()) {
	t.Helper()
	// The path of a socket is short.
	dir, err := os.MkdirTemp("", "cairn")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	gone = func() { l.Close(); os.RemoveAll(dir) }
	t.Cleanup(gone)
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		t.Helper()
		buf := make([]byte, 4096)
		if err := l.SetReadDeadline(time.Now().Add(deadline)); err != nil {
			t.Fatal(err)
		}
		n, err := l.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}, gone
}

func TestAServiceManagerIsToldHowItGoes(t *testing.T) {
	needFUSE(t)
	dir, mnt := paths(t)
	told, _ := serviceManager(t)
	m := startMount(t, dir, mnt)
	if got := told(); got != "READY=1\nSTATUS=Mounted on "+mnt {
		t.Errorf("when it was mounted: %q", got)
	}
	f, err := os.Create(filepath.Join(mnt, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m.signal(t, syscall.SIGTERM)
	if got := told(); got != "STOPPING=1\nSTATUS=Unmounting" {
		t.Errorf("at the end: %q", got)
	}
	if got := told(); !strings.HasPrefix(got, "STATUS=Waiting") {
		t.Errorf("while a file is open: %q", got)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.wait(t); err != nil {
		t.Error(err)
	}
}

func TestAServiceManagerIsToldWhichProcessIsTheDaemon(t *testing.T) {
	needFUSE(t)
	dir, mnt := paths(t)
	t.Cleanup(func() { unmountBelow(filepath.Dir(mnt)) })
	told, _ := serviceManager(t)
	if _, errs, code := run(t, dir, "mount", "--daemon", mnt); code != 0 {
		t.Fatal(errs)
	}
	if got, want := told(), fmt.Sprintf("\nMAINPID=%d", server(t, dir)); !strings.HasPrefix(got, "READY=1\n") || !strings.HasSuffix(got, want) {
		t.Errorf("%q, want %q at its end", got, want)
	}
	if _, errs, code := run(t, dir, "umount", mnt); code != 0 {
		t.Fatal(errs)
	}
	if got := told(); !strings.HasPrefix(got, "STOPPING=1\n") {
		t.Errorf("at the end: %q", got)
	}
}

func TestAServiceManagerThatHasGoneIsNoReasonToFail(t *testing.T) {
	needFUSE(t)
	dir, mnt := paths(t)
	_, gone := serviceManager(t)
	gone()
	m := startMount(t, dir, mnt)
	if line, err := m.lines.ReadString('\n'); err != nil || !strings.Contains(line, "cannot notify the service manager") {
		t.Errorf("said %q, %v", line, err)
	}
	m.signal(t, syscall.SIGTERM)
	if err := m.wait(t); err != nil {
		t.Error(err)
	}
}
