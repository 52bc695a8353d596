package cmd_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/node"
	"github.com/cairnfs/cairn/node/control"
)

// deadline ends processes that hang, so that a failure is told as one.
const deadline = 60 * time.Second

// run runs the binary on the store in dir and returns its output and exit code.
func run(t testing.TB, dir string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	c := exec.CommandContext(ctx, cairn, args...)
	c.Env = append(os.Environ(), "CAIRN_DIR="+dir)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), c.ProcessState.ExitCode()
}

// mounted is a process that serves a mount.
type mounted struct {
	*exec.Cmd
	lines  *bufio.Reader // of its stderr
	path   string
	exited chan error
}

// startMount mounts the store in dir on path and returns when it is ready.
func startMount(t testing.TB, dir, path string, flags ...string) *mounted {
	t.Helper()
	c := exec.Command(cairn, slices.Concat([]string{"mount"}, flags, []string{path})...)
	c.Env = append(os.Environ(), "CAIRN_DIR="+dir)
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	errs, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = w
	if err := errors.Join(c.Start(), w.Close()); err != nil {
		t.Fatal(err)
	}
	m := &mounted{Cmd: c, lines: bufio.NewReader(errs), path: path, exited: make(chan error, 1)}
	t.Cleanup(func() {
		_ = c.Process.Kill() // fails if it has ended
		unmountBelow(filepath.Dir(path))
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != "mounted "+path+"\n" {
		said, _ := m.lines.ReadString('\n')
		t.Fatalf("mount said %q, %v; %s", line, err, said)
	}
	go func() { m.exited <- c.Wait() }()
	return m
}

// wait returns how the process ended.
func (m *mounted) wait(t testing.TB) error {
	t.Helper()
	select {
	case err := <-m.exited:
		return err
	case <-time.After(deadline):
		t.Fatal("the process does not end")
		return nil
	}
}

func (m *mounted) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := m.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// paths returns a data directory and a mount point.
func paths(t testing.TB) (dir, mnt string) {
	base := t.TempDir()
	mnt = filepath.Join(base, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(base, "store"), mnt
}

// writeSynced writes a file and fsyncs it and its directory.
func writeSynced(t testing.TB, path string, data []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestAKilledMountIsReplacedAndLosesNothingSynced(t *testing.T) {
	needFUSE(t)
	dir, mnt := paths(t)
	files := map[string][]byte{}
	for round := range 3 {
		m := startMount(t, dir, mnt)
		for name, want := range files {
			if got, err := os.ReadFile(filepath.Join(mnt, name)); err != nil || !bytes.Equal(got, want) {
				t.Errorf("round %d: %s: %d bytes, %v, want %d", round, name, len(got), err, len(want))
			}
		}
		for i, size := range []int{0, 100, 70_000, 3 << 20} {
			name := string(rune('a'+round)) + string(rune('0'+i))
			files[name] = castest.Bytes(uint64(round*10+i), size)
			writeSynced(t, filepath.Join(mnt, name), files[name])
		}
		m.signal(t, syscall.SIGKILL)
		if err := m.wait(t); err == nil {
			t.Error("a killed process ended well")
		}
		if err := syscall.Statfs(mnt, new(syscall.Statfs_t)); !errors.Is(err, syscall.ENOTCONN) {
			t.Errorf("mount point of the killed process: %v", err)
		}
	}
	if out, errs, code := run(t, dir, "check"); code != 0 {
		t.Errorf("check: %s%s", out, errs)
	}
	if _, errs, code := run(t, dir, "umount", mnt); code != 0 {
		t.Errorf("umount of what a killed process left: %s", errs)
	}
	if _, err := os.Stat(mnt); err != nil {
		t.Error(err)
	}
}

func TestSignalsEndAMountInOrder(t *testing.T) {
	needFUSE(t)
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		dir, mnt := paths(t)
		m := startMount(t, dir, mnt)
		if err := os.WriteFile(filepath.Join(mnt, "f"), []byte("not synced"), 0o644); err != nil {
			t.Fatal(err)
		}
		m.signal(t, s)
		if err := m.wait(t); err != nil {
			t.Errorf("%v: %v", s, err)
		}
		if _, err := os.Stat(filepath.Join(mnt, "f")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v: still mounted: %v", s, err)
		}
		m = startMount(t, dir, mnt)
		if got, err := os.ReadFile(filepath.Join(mnt, "f")); string(got) != "not synced" {
			t.Errorf("%v: after a clean end the file holds %q, %v", s, got, err)
		}
		m.signal(t, s)
		if err := m.wait(t); err != nil {
			t.Error(err)
		}
	}
}

func TestAMountInUseIsWaitedForUntilTheSecondSignal(t *testing.T) {
	needFUSE(t)
	for _, patient := range []bool{true, false} {
		dir, mnt := paths(t)
		m := startMount(t, dir, mnt)
		f, err := os.Create(filepath.Join(mnt, "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString("kept"); err != nil {
			t.Fatal(err)
		}
		m.signal(t, syscall.SIGTERM)
		line, err := m.lines.ReadString('\n')
		if err != nil || !strings.Contains(line, "is in use") || !strings.Contains(line, "interrupt again") {
			t.Fatalf("said %q, %v", line, err)
		}
		if patient {
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		} else {
			m.signal(t, syscall.SIGTERM)
		}
		if err := m.wait(t); err != nil {
			t.Errorf("patient %v: %v", patient, err)
		}
		m = startMount(t, dir, mnt)
		if got, err := os.ReadFile(filepath.Join(mnt, "f")); string(got) != "kept" {
			t.Errorf("patient %v: afterwards the file holds %q, %v", patient, got, err)
		}
		m.signal(t, syscall.SIGTERM)
		if err := m.wait(t); err != nil {
			t.Error(err)
		}
	}
}

func TestAKilledDaemonIsReplaced(t *testing.T) {
	needFUSE(t)
	dir, mnt := paths(t)
	t.Cleanup(func() { unmountBelow(filepath.Dir(mnt)) })
	for range 2 {
		if out, errs, code := run(t, dir, "mount", "--daemon", mnt); code != 0 || out != "mounted "+mnt+"\n" {
			t.Fatalf("exit code %d: %s%s", code, out, errs)
		}
		out, _, _ := run(t, dir, "status", "--json")
		var status control.Status
		if err := json.Unmarshal([]byte(out), &status); err != nil || len(status.Mounts) != 1 {
			t.Fatalf("%v: %s", err, out)
		}
		if err := syscall.Kill(status.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	if _, errs, code := run(t, dir, "mount", "--daemon", mnt); code != 0 {
		t.Error(errs)
	}
	if _, errs, code := run(t, dir, "umount", mnt); code != 0 {
		t.Error(errs)
	}
}

func TestCommandsAtOnceWaitForEachOther(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "store")
	var all sync.WaitGroup
	for i := range 4 {
		name := filepath.Join(base, string(rune('a'+i)))
		if err := os.WriteFile(name, castest.Bytes(uint64(i), 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			if _, errs, code := run(t, dir, "add", name); code != 0 {
				t.Errorf("exit code %d: %s", code, errs)
			}
		})
	}
	all.Wait()
	out, _, _ := run(t, dir, "pin", "ls")
	if n := strings.Count(out, "\n"); n != 4 {
		t.Errorf("%d pins: %s", n, out)
	}
}

// rawNode is a dag-pb block of a UnixFS directory with one link, written by hand:
// no part of the program would write it.
func rawNode(t *testing.T, name string, to cas.CID) cas.Block {
	t.Helper()
	field := func(tag byte, value []byte) []byte {
		if len(value) > 127 {
			t.Fatal("too long for one byte of length")
		}
		return append([]byte{tag, byte(len(value))}, value...)
	}
	link := append(field(0x0a, to.Bytes()), field(0x12, []byte(name))...)
	link = append(link, 0x18, 1)
	b, err := cas.NewBlock(cas.DagPB, append(field(0x12, link), field(0x0a, []byte{0x08, 1})...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHostileDirectoriesAreRefused(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "store")
	n, err := node.Open(t.Context(), node.Options{Dir: dir, Create: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	file := castest.Block(t, 1, 10)
	blocks := []cas.Block{file}
	for _, name := range []string{"../x", "a/b", "..", ".", "", "/x", "fine"} {
		blocks = append(blocks, rawNode(t, name, file.CID()))
	}
	if err := errors.Join(n.Put(t.Context(), blocks...), n.Close()); err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(base, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		t.Fatal(err)
	}
	for i, b := range blocks[1:] {
		_, errs, code := run(t, dir, "get", b.CID().String(), "-o", filepath.Join(work, "out"))
		if last := i == len(blocks)-2; last != (code == 0) || !last && (code != 4 || !strings.Contains(errs, b.CID().String())) {
			t.Errorf("block %d: exit code %d: %s", i, code, errs)
		}
		for parent, want := range map[string]int{base: 2, work: 0} {
			if code == 0 && parent == work {
				want = 1
			}
			if names, err := os.ReadDir(parent); err != nil || len(names) != want {
				t.Errorf("block %d: in %s there are %v, %v", i, parent, names, err)
			}
		}
	}
}

func TestAddWaitingForInputCanBeInterrupted(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "store")
	c := exec.Command(cairn, "add", "-")
	c.Env = append(os.Environ(), "CAIRN_DIR="+dir)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var errs bytes.Buffer
	c.Stderr = &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	m := &mounted{Cmd: c, exited: make(chan error, 1)}
	go func() { m.exited <- c.Wait() }()
	t.Cleanup(func() { _ = c.Process.Kill() })
	// More than fits into the pipe: it has begun to read.
	if _, err := in.Write(castest.Bytes(1, 1<<20)); err != nil {
		t.Fatal(err)
	}
	m.signal(t, syscall.SIGINT)
	err = m.wait(t)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || errs.String() != "cairn: interrupted\n" {
		t.Errorf("%v: %s", err, errs.String())
	}
	if out, errs, code := run(t, dir, "pin", "ls"); code != 0 || out != "" {
		t.Errorf("pins afterwards: %s%s", out, errs)
	}
}

func TestWithoutFUSEMountSaysSo(t *testing.T) {
	needFUSE(t) // who may not mount cannot take the device away either
	flags := "-m"
	if os.Geteuid() != 0 {
		flags = "-rm"
	}
	dir, mnt := paths(t)
	c := exec.Command("unshare", flags, "sh", "-c", `mount -t tmpfs none /dev && exec "$0" mount "$1"`, cairn, mnt)
	c.Env = append(os.Environ(), "CAIRN_DIR="+dir)
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 5 || !strings.HasPrefix(string(out), "cairn: mount on "+mnt+": ") {
		t.Errorf("%v: %s", err, out)
	}
	if _, errs, code := run(t, dir, "status"); code != 0 {
		t.Errorf("the store afterwards: %s", errs)
	}
}

// TestANodeThatDiesIsNoReaderThatHasGone: both are broken pipes.
func TestANodeThatDiesIsNoReaderThatHasGone(t *testing.T) {
	needFUSE(t)
	dir, mnt := paths(t)
	serving := startMount(t, dir, mnt)
	c := exec.Command(cairn, "add", "-")
	c.Env = append(os.Environ(), "CAIRN_DIR="+dir)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs bytes.Buffer
	c.Stderr = &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	adding := &mounted{Cmd: c, exited: make(chan error, 1)}
	t.Cleanup(func() { _ = c.Process.Kill() })
	if _, err := in.Write(castest.Bytes(1, 8<<20)); err != nil {
		t.Fatal(err)
	}
	serving.signal(t, syscall.SIGKILL)
	if err := serving.wait(t); err == nil {
		t.Error("a killed process ended well")
	}
	_, _ = in.Write(castest.Bytes(2, 8<<20)) // fails if add has ended by then
	in.Close()
	go func() { adding.exited <- c.Wait() }()
	err = adding.wait(t)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 5 || !strings.Contains(errs.String(), "node does not answer") {
		t.Errorf("%v: %s", err, errs.String())
	}
}
