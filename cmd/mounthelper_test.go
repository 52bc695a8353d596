package cmd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairnfs/cairn/node/control"
)

// needRoot skips a test of what only root can do, and fails it if that must not
// be.
func needRoot(t testing.TB) {
	t.Helper()
	needFUSE(t)
	switch {
	case os.Geteuid() == 0:
	case os.Getenv("CAIRN_REQUIRE_FUSE") == "1":
		t.Fatal("CAIRN_REQUIRE_FUSE=1, but this test needs root")
	default:
		t.Skip("this test needs root (CAIRN_REQUIRE_FUSE=1 makes that a failure)")
	}
}

// runHelper calls the program as mount(8) does, with nothing in the environment
// but env. It fails the test if what the helper leaves behind keeps its output
// open.
func runHelper(t testing.TB, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mount.cairn")
	if err := os.Symlink(cairn, path); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	c := exec.CommandContext(ctx, path, args...)
	c.Env = append([]string{}, env...) // not nil, which would stand for ours
	c.WaitDelay = deadline
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// sourceOf returns what the system shows as the device of the mount on path, ""
// if there is none.
func sourceOf(t testing.TB, path string) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == path {
			return f[0]
		}
	}
	return ""
}

// server returns the process that has the store in dir mounted.
func server(t testing.TB, dir string) int {
	t.Helper()
	out, errs, _ := run(t, dir, "status", "--json")
	var status control.Status
	if err := json.Unmarshal([]byte(out), &status); err != nil || len(status.Mounts) != 1 {
		t.Fatalf("%v: %s%s", err, out, errs)
	}
	return status.PID
}

// awaitEnd waits until a process that is no child of ours has ended.
func awaitEnd(t testing.TB, pid int) {
	t.Helper()
	for end := time.Now().Add(deadline); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		// That of a process which nobody has waited for yet is empty.
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || len(line) == 0 {
			return
		}
	}
	t.Fatalf("process %d does not end", pid)
}

func TestMountHelperMountsUntilUmount(t *testing.T) {
	needRoot(t)
	dir, mnt := paths(t)
	t.Cleanup(func() { unmountBelow(filepath.Dir(mnt)) })
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{dir, mnt, "-o", "rw,noexec,_netdev,nofail"}, ""},
		{[]string{"-nv", "-t", "cairn", "-o", "rw", "-o", "noexec", dir, mnt}, "mounted " + mnt + "\n"},
		{[]string{dir, mnt, "-s", "-o", "nonsense,noexec"}, ""},
	} {
		if out, errs, code := runHelper(t, nil, c.args...); code != 0 || out != c.says || errs != "" {
			t.Fatalf("%v: exit code %d: %q %q", c.args, code, out, errs)
		}
		if got := sourceOf(t, mnt); got != dir {
			t.Errorf("%v: the source is %q", c.args, got)
		}
		program := filepath.Join(mnt, "program")
		if err := os.WriteFile(program, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := exec.Command(program).Run(); !errors.Is(err, syscall.EACCES) {
			t.Errorf("%v: a program runs: %v", c.args, err)
		}
		pid := server(t, dir)
		if _, errs, code := runHelper(t, nil, dir, mnt); code != 32 || !strings.Contains(errs, "in use") {
			t.Errorf("mounted twice: exit code %d: %s", code, errs)
		}
		if out, err := exec.Command("umount", mnt).CombinedOutput(); err != nil {
			t.Fatalf("umount: %v: %s", err, out)
		}
		awaitEnd(t, pid)
		if out, errs, code := run(t, dir, "check"); code != 0 {
			t.Errorf("check: %s%s", out, errs)
		}
	}
}

func TestMountHelperFindsTheDefaultStore(t *testing.T) {
	needRoot(t)
	dir, mnt := paths(t)
	t.Cleanup(func() { unmountBelow(filepath.Dir(mnt)) })
	for _, c := range []struct{ env, args []string }{
		{[]string{"CAIRN_DIR=" + dir}, []string{"cairn", mnt}},
		{nil, []string{"cairn", mnt, "-o", "dir=" + dir}},
	} {
		if _, errs, code := runHelper(t, c.env, c.args...); code != 0 {
			t.Fatalf("%v: exit code %d: %s", c.args, code, errs)
		}
		if got := sourceOf(t, mnt); got != "cairn" {
			t.Errorf("%v: the source is %q", c.args, got)
		}
		if _, errs, code := run(t, dir, "umount", mnt); code != 0 {
			t.Error(errs)
		}
	}
}

func TestMountHelperFailsAsMountDoes(t *testing.T) {
	dir, mnt := paths(t)
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 1, "2 arg"},
		{[]string{dir}, 1, "2 arg"},
		{[]string{dir, mnt, "-x"}, 1, "-x"},
		{[]string{dir, ""}, 1, "MOUNTPOINT is empty"},
		{[]string{dir, mnt, "-o", "ro,nonsense"}, 1, "nonsense"},
		{[]string{dir, mnt, "-t", "ext4"}, 1, "not cairn"},
		{[]string{dir, mnt, "-N", "/proc/1/ns/mnt"}, 1, "nsenter"},
		{[]string{dir, mnt, "-o", "dir=/elsewhere"}, 1, "two data directories"},
		{[]string{"relative", mnt}, 1, "absolute path"},
		{[]string{"none", mnt, "-o", "dir=relative"}, 1, "absolute path"},
		{[]string{"cairn", mnt}, 1, "HOME"},
		{[]string{dir, dir + "/below"}, 1, "lies in the data directory"},
		{[]string{dir, mnt, "-o", "remount"}, 32, "mount -i"},
		{[]string{dir, mnt, "-f"}, 0, ""},
	} {
		out, errs, code := runHelper(t, nil, c.args...)
		if code != c.code || out != "" || !strings.Contains(errs, c.says) || strings.Count(errs, "\n") > 1 {
			t.Errorf("%v: exit code %d, want %d: %q %q", c.args, code, c.code, out, errs)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the store: %v", err)
	}
}

func TestMountHelperTellsWhatTheDaemonSays(t *testing.T) {
	needFUSE(t)
	dir, mnt := paths(t)
	_, errs, code := runHelper(t, nil, dir, filepath.Join(mnt, "no", "such"))
	if code != 32 || !strings.HasPrefix(errs, "cairn: mount on "+mnt) {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

func TestDeviceNodesNeedTheOptionDev(t *testing.T) {
	needRoot(t)
	dir, mnt := paths(t)
	null := filepath.Join(mnt, "null")
	for _, c := range []struct {
		options string
		want    error
	}{{"defaults", syscall.EPERM}, {"dev", nil}} {
		m := startMount(t, dir, mnt, "-o", c.options)
		if err := syscall.Mknod(null, syscall.S_IFCHR|0o666, 1<<8|3); !errors.Is(err, c.want) {
			t.Errorf("%s: mknod: %v, want %v", c.options, err, c.want)
		}
		if c.want == nil {
			if err := os.WriteFile(null, []byte("gone"), 0o644); err != nil {
				t.Error(err)
			}
		}
		m.signal(t, syscall.SIGTERM)
		if err := m.wait(t); err != nil {
			t.Error(err)
		}
	}
}
