//go:build linux

package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/cas"
)

// Mounting, unmounting and mounting again.

func TestMountIsNamedAndTuned(t *testing.T) {
	dir := newMount(t)
	m, mounted := mountAt(dir)
	if !mounted || m.fstype != "fuse.cairn" {
		t.Fatalf("mounted %+v", m)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	ok(t, err)
	line := ""
	for l := range strings.Lines(string(mounts)) {
		if strings.Contains(l, dir) {
			line = l
		}
	}
	for _, part := range []string{"cairn " + dir + " fuse.cairn", "nosuid", "nodev", "default_permissions"} {
		if !strings.Contains(line, part) {
			t.Errorf("%q is not in the mount's line %q", part, line)
		}
	}
	if os.Geteuid() == 0 {
		kb, err := os.ReadFile("/sys/class/bdi/" + m.device + "/read_ahead_kb")
		ok(t, err)
		if got := strings.TrimSpace(string(kb)); got != fmt.Sprint(readAheadKB) {
			t.Errorf("read-ahead is %s KiB", got)
		}
	}
	var st unix.Statfs_t
	ok(t, unix.Statfs(dir, &st))
	if st.Blocks*uint64(st.Bsize) != 1<<40 || st.Bavail*uint64(st.Bsize) != 1<<38 || st.Namelen != 255 || st.Files == 0 {
		t.Errorf("statfs: %+v", st)
	}
}

func TestMountPointIsCreated(t *testing.T) {
	needFUSE(t)
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	dir := filepath.Join(t.TempDir(), "shared with blank")
	s := mountVolume(t, vol, Options{Mountpoint: dir})
	write(t, filepath.Join(dir, "file"), "x")
	ok(t, s.Unmount())
	if got := names(t, dir); got != "" {
		t.Errorf("the directory below holds %q", got)
	}
}

func TestBadMountPointsAreRefused(t *testing.T) {
	needFUSE(t)
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "")
	for path, want := range map[string]error{
		filepath.Join(dir, "none", "below"): os.ErrNotExist,
		filepath.Join(dir, "file"):          unix.ENOTDIR,
		filepath.Join(dir, "file", "below"): unix.ENOTDIR,
	} {
		if s, err := Mount(t.Context(), vol, Options{Mountpoint: path}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", path, err, want)
			if err == nil {
				leaveNothing(t, s)
			}
		}
	}
}

func TestLiveMountIsNotMountedOver(t *testing.T) {
	dir := newMount(t)
	write(t, filepath.Join(dir, "file"), "x")
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	s, err := Mount(t.Context(), vol, Options{Mountpoint: dir})
	if err == nil {
		leaveNothing(t, s)
	}
	wantErr(t, err, ErrMounted)
	wantContent(t, filepath.Join(dir, "file"), "x")
}

func TestHiddenFilesAreWarnedAbout(t *testing.T) {
	needFUSE(t)
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "below"), "x")
	var log syncBuffer
	s := mountVolume(t, vol, Options{Mountpoint: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if !strings.Contains(log.String(), "not empty") {
		t.Errorf("logged %q", log.String())
	}
	if got := names(t, dir); got != "" {
		t.Errorf("mount holds %q", got)
	}
	ok(t, s.Unmount())
	wantContent(t, filepath.Join(dir, "below"), "x")
}

func TestMountLeftByAKilledNodeIsReplaced(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	t.Cleanup(func() {
		for m, mounted := mountAt(dir); mounted && m.fstype == fsType; m, mounted = mountAt(dir) {
			ok(t, detach(dir))
		}
	})
	for range 2 {
		node, _ := startChild(t, "serve", dir)
		write(t, filepath.Join(dir, "file"), "of the child")
		stat(t, dir) // so that the kernel can answer stat from its cache
		ok(t, node.Process.Kill())
		node.Wait()
		if _, err := os.ReadFile(filepath.Join(dir, "file")); !errors.Is(err, unix.ENOTCONN) {
			t.Fatalf("the dead mount answers %v", err)
		}
		vol, _ := openVolume(t, vfs.NewMem(), "node")
		s := mountVolume(t, vol, Options{Mountpoint: dir})
		if got := names(t, dir); got != "" {
			t.Fatalf("new mount holds %q", got)
		}
		ok(t, s.Unmount())
		if m, mounted := mountAt(dir); mounted {
			t.Fatalf("below was still %+v", m)
		}
	}
}

func TestBusyMountIsNotUnmounted(t *testing.T) {
	needFUSE(t)
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	s := mountVolume(t, vol, Options{})
	path := filepath.Join(s.Mountpoint(), "file")
	f, err := os.Create(path)
	ok(t, err)
	defer f.Close()
	err = s.Unmount()
	var busy *BusyError
	if !errors.As(err, &busy) || !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "fuser -vm "+s.Mountpoint()) {
		t.Fatalf("unmount: %v", err)
	}
	if err := Unmount(s.Mountpoint(), false); !errors.Is(err, unix.EBUSY) {
		t.Fatalf("unmount: %v", err)
	}
	_, err = f.WriteString("still works")
	ok(t, err)
	ok(t, Unmount(s.Mountpoint(), true))
	_, err = os.Lstat(path)
	wantErr(t, err, os.ErrNotExist)
	_, err = f.WriteString(", and after")
	ok(t, err)
	ok(t, f.Close())
	s.Wait() // the last user is gone
	ok(t, s.Unmount())
	wantErr(t, Unmount(s.Mountpoint(), false), ErrNotMounted)
}

func TestUnmountFromOutsideEndsTheServer(t *testing.T) {
	needFUSE(t)
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	s := mountVolume(t, vol, Options{})
	ok(t, Unmount(s.Mountpoint(), false))
	s.Wait()
	ok(t, s.Unmount())
}

func TestCancelledMountLeavesNothing(t *testing.T) {
	needFUSE(t)
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	dir := filepath.Join(t.TempDir(), "new")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s, err := Mount(ctx, vol, Options{Mountpoint: dir})
	if err == nil { // it may have been ready first
		leaveNothing(t, s)
		return
	}
	wantErr(t, err, context.Canceled)
	if m, mounted := mountAt(dir); mounted {
		t.Fatalf("left behind: %+v", m)
	}
}

func TestPanicInARequestIsItsError(t *testing.T) {
	needFUSE(t)
	var log syncBuffer
	dir := t.TempDir()
	s, err := Mount(t.Context(), nil, Options{Mountpoint: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	if err == nil {
		leaveNothing(t, s)
	}
	wantErr(t, err, unix.EIO)
	if !strings.Contains(log.String(), "panic") || !strings.Contains(log.String(), "filesystem.go") {
		t.Errorf("logged %s", log.String())
	}
	if m, mounted := mountAt(dir); mounted {
		t.Errorf("left behind: %+v", m)
	}
}

func TestReadOnlyMountRefusesChanges(t *testing.T) {
	needFUSE(t)
	fs := vfs.NewMem()
	vol, _ := openVolume(t, fs, "node")
	s := mountVolume(t, vol, Options{})
	path := filepath.Join(s.Mountpoint(), "file")
	write(t, path, "x")
	ok(t, s.Unmount())
	mountVolume(t, vol, Options{Mountpoint: s.Mountpoint(), ReadOnly: true})
	wantContent(t, path, "x")
	wantErr(t, os.WriteFile(path, nil, 0o644), unix.EROFS)
	wantErr(t, os.Remove(path), unix.EROFS)
	wantErr(t, os.Chmod(path, 0o600), unix.EROFS)
}

func TestRemountKeepsEverything(t *testing.T) {
	needRoot(t)
	needFUSE(t)
	disk, base := t.TempDir(), vfs.Default
	dir := t.TempDir()
	vol, closeVolume := openVolume(t, base, disk)
	s := mountVolume(t, vol, Options{Mountpoint: dir})
	p := func(name string) string { return filepath.Join(dir, name) }

	write(t, p("small"), "a few bytes")
	ok(t, os.WriteFile(p("large"), bytes.Repeat([]byte("0123456789abcdef"), 200_000), 0o600))
	f, err := os.OpenFile(p("large"), os.O_WRONLY, 0)
	ok(t, err)
	_, err = f.WriteAt([]byte("changed in the middle"), 1<<20)
	ok(t, err)
	ok(t, f.Truncate(5<<20))
	ok(t, f.Close())
	ok(t, os.MkdirAll(p("d/e/f"), 0o711))
	ok(t, os.Link(p("small"), p("d/hard")))
	ok(t, os.Symlink("../small", p("d/soft")))
	ok(t, unix.Mknod(p("d/fifo"), unix.S_IFIFO|0o640, 0))
	ok(t, unix.Setxattr(p("small"), "user.note", []byte("kept"), 0))
	ok(t, unix.Chown(p("d/e"), 1, 2))
	ok(t, unix.Chmod(p("d/e"), 0o2775))
	past := []unix.Timespec{{Sec: 1e9, Nsec: 1}, {Sec: 1e9, Nsec: 2}}
	for _, name := range []string{"small", "large", "d/soft", "d"} {
		ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, p(name), past, unix.AT_SYMLINK_NOFOLLOW))
	}
	before := describe(t, dir)
	ok(t, s.Unmount())
	closeVolume()

	vol, _ = openVolume(t, base, disk)
	mountVolume(t, vol, Options{Mountpoint: dir})
	after := describe(t, dir)
	for i := range max(len(before), len(after)) {
		if i >= len(before) || i >= len(after) || before[i] != after[i] {
			t.Fatalf("before:\n%s\nafter:\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
		}
	}
	if len(before) != 9 {
		t.Fatalf("%d files", len(before))
	}
}

// describe returns a line about each file below dir: all that stat says but for
// the number of the device, and its content.
func describe(t testing.TB, dir string) []string {
	t.Helper()
	var lines []string
	ok(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st := stat(t, path)
		content := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			p, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			attr := make([]byte, 100)
			n, err := unix.Getxattr(path, "user.note", attr)
			content = fmt.Sprintf("%v %q %v", cas.Sum(cas.Raw, p), attr[:max(n, 0)], err)
		case unix.S_IFLNK:
			if content, err = os.Readlink(path); err != nil {
				return err
			}
		}
		lines = append(lines, fmt.Sprintf("%s inode %d mode %o links %d owner %d:%d device %d size %d times %v %v %v: %s",
			path, st.Ino, st.Mode, st.Nlink, st.Uid, st.Gid, st.Rdev, st.Size, st.Atim, st.Mtim, st.Ctim, content))
		return nil
	}))
	slices.Sort(lines)
	return lines
}

func TestFileHandlesSurviveARemount(t *testing.T) {
	needRoot(t)
	needFUSE(t)
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	s := mountVolume(t, vol, Options{})
	dir := s.Mountpoint()
	ok(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
	write(t, filepath.Join(dir, "d", "file"), "found again")
	handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, filepath.Join(dir, "d", "file"), 0)
	ok(t, err)
	ok(t, s.Unmount())
	mountVolume(t, vol, Options{Mountpoint: dir})
	root := open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	defer unix.Close(root)
	fd, err := unix.OpenByHandleAt(root, handle, unix.O_RDONLY)
	ok(t, err)
	defer unix.Close(fd)
	p := make([]byte, 100)
	n, err := unix.Read(fd, p)
	ok(t, err)
	if string(p[:n]) != "found again" {
		t.Fatalf("read %q", p[:n])
	}
}

// syncBuffer is a bytes.Buffer that a logger and a test can use at once.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
