//go:build linux

package mount

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/test/posix"
	"github.com/cairnfs/cairn/volume"
)

// Helpers of the tests that use real mounts. What may block inside the kernel
// while it holds a processor of this process (page faults in a mapping) is done
// by a child process: this binary, started again with a role.

const (
	childRole = "CAIRN_TEST_ROLE"
	childArg  = "CAIRN_TEST_ARG"
)

func TestMain(m *testing.M) {
	posix.Child()
	if role := os.Getenv(childRole); role != "" {
		if err := child(role, os.Getenv(childArg)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child plays a role. It prints "ready" when the test may go on, and ends when
// its standard input does.
func child(role, arg string) error {
	switch role {
	case "serve":
		return serveDirectory(arg)
	case "map":
		return writeMapped(arg)
	case "dirty":
		return holdDirty(arg)
	case "lock":
		return lockAsTold(arg)
	case "files":
		return testFiles(arg)
	}
	return errors.New("no such role")
}

func ready() { fmt.Println("ready") }

func untilParentIsDone() { io.Copy(io.Discard, os.Stdin) }

// startChild starts a child and waits until it is ready. finish lets it end and
// reports how it did.
func startChild(t *testing.T, role, arg string) (cmd *exec.Cmd, finish func() error) {
	t.Helper()
	cmd, stdin, _ := startTalkingChild(t, role, arg)
	return cmd, func() error {
		stdin.Close()
		return cmd.Wait()
	}
}

// startTalkingChild starts a child, waits until it is ready, and returns its
// standard input and output.
func startTalkingChild(t *testing.T, role, arg string) (cmd *exec.Cmd, in io.WriteCloser, out *bufio.Reader) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childRole+"="+role, childArg+"="+arg)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	out = bufio.NewReader(stdout)
	line, err := out.ReadString('\n')
	if err != nil || line != "ready\n" {
		t.Fatalf("child %s is not ready: %q, %v", role, line, err)
	}
	return cmd, stdin, out
}

// needFUSE ends a test that cannot mount here.
func needFUSE(t testing.TB) {
	t.Helper()
	why := ""
	if err := checkSystem(Options{}); err != nil {
		why = err.Error()
	} else if os.Geteuid() == 0 {
		f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
		if err != nil {
			why = err.Error()
		} else {
			f.Close()
		}
	}
	if why == "" {
		return
	}
	if os.Getenv("CAIRN_REQUIRE_FUSE") == "1" {
		t.Fatal("CAIRN_REQUIRE_FUSE=1, but this system cannot mount: " + why)
	}
	t.Skip("this system cannot mount (CAIRN_REQUIRE_FUSE=1 makes that a failure): " + why)
}

// needRoot ends a test of what only root can do.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CAIRN_REQUIRE_FUSE") == "1" {
		t.Fatal("CAIRN_REQUIRE_FUSE=1, but this test needs root")
	}
	t.Skip("this test needs root (CAIRN_REQUIRE_FUSE=1 makes that a failure)")
}

// mountVolume mounts vol until the end of the test.
func mountVolume(t testing.TB, vol *volume.Volume, o Options) *Server {
	t.Helper()
	needFUSE(t)
	if runtime.GOMAXPROCS(0) < 2 {
		t.Fatal("a process that uses its own mount needs GOMAXPROCS of at least 2")
	}
	if o.Mountpoint == "" {
		o.Mountpoint = t.TempDir()
	}
	s, err := Mount(t.Context(), vol, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { leaveNothing(t, s) })
	return s
}

// leaveNothing unmounts s, by force if it must, so that a failing test does not
// leave a mount behind, nor files open in it: a process that serves a mount and
// has such files waits for itself when it ends.
func leaveNothing(t testing.TB, s *Server) {
	t.Helper()
	err := s.Unmount()
	if err != nil {
		t.Error(err)
		closeBelow(s.Mountpoint())
		err = s.Unmount()
	}
	if err != nil {
		t.Error(err)
		if err := detach(s.Mountpoint()); err != nil {
			t.Error(err)
		}
	}
	if m, ok := mountAt(s.Mountpoint()); ok {
		t.Errorf("left behind: %+v", m)
	}
}

// closeBelow closes the files below dir that this process has open.
func closeBelow(dir string) {
	const fds = "/proc/self/fd/"
	list, _ := os.ReadDir(fds)
	for _, e := range list {
		target, err := os.Readlink(fds + e.Name())
		if fd, nerr := strconv.Atoi(e.Name()); err == nil && nerr == nil && strings.HasPrefix(target, dir+"/") {
			unix.Close(fd)
		}
	}
}

// newMount mounts a new volume that lives in memory and returns the mount point.
func newMount(t testing.TB) string {
	t.Helper()
	needFUSE(t)
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	return mountVolume(t, vol, Options{}).Mountpoint()
}

// onMountAndDisk runs a test of what any local file system does, on a mount and,
// to test the test, in a directory of the system's disk.
func onMountAndDisk(t *testing.T, test func(t *testing.T, dir string)) {
	t.Run("mount", func(t *testing.T) { test(t, newMount(t)) })
	t.Run("disk", func(t *testing.T) { test(t, t.TempDir()) })
}

// ok fails the test if err is not nil.
func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantErr fails the test unless err is want.
func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	ok(t, os.WriteFile(path, []byte(content), 0o644))
}

func wantContent(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	ok(t, err)
	if string(got) != want {
		if len(got)+len(want) > 200 {
			t.Fatalf("%s: %d bytes differ from the %d wanted", path, len(got), len(want))
		}
		t.Fatalf("%s holds %q, want %q", path, got, want)
	}
}

func stat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

func names(t testing.TB, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	ok(t, err)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}

// asUser runs fn on a thread with the rights of an ordinary user, as far as
// files are concerned.
func asUser(t testing.TB, uid, gid int, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if err := errors.Join(unix.Setfsgid(gid), unix.Setfsuid(uid)); err != nil {
			t.Error(err)
			return
		}
		fn()
	}()
	<-done
	if t.Failed() {
		t.FailNow()
	}
}

// open is os.OpenFile without its own ideas of modes and retries.
func open(t testing.TB, path string, flags int, mode uint32) int {
	t.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
	if err != nil {
		t.Fatalf("open %s: %v", path, err)
	}
	return fd
}

// serveDirectory mounts a new volume on a directory.
func serveDirectory(mountpoint string) error {
	vol, stop, err := openNode(vfs.NewMem(), "node")
	if err != nil {
		return err
	}
	s, err := Mount(context.Background(), vol, Options{Mountpoint: mountpoint})
	if err != nil {
		return err
	}
	ready()
	untilParentIsDone()
	return errors.Join(s.Unmount(), stop())
}

// writeMapped changes a file through a shared mapping.
func writeMapped(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if p[0] != 'a' {
		return fmt.Errorf("mapped file begins with %q", p[0])
	}
	copy(p[4094:], "MAPPED")
	if err := unix.Msync(p, unix.MS_SYNC); err != nil {
		return err
	}
	ready()
	untilParentIsDone()
	return unix.Munmap(p)
}
