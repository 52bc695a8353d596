//go:build linux

package mount

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// What the options of a mount change.

// mountsLine returns the source and the options of the mount on dir, as the
// kernel lists them.
func mountsLine(t *testing.T, dir string) (source string, options []string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	ok(t, err)
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 3 && unescape(f[1]) == dir {
			return unescape(f[0]), strings.Split(f[3], ",")
		}
	}
	t.Fatalf("%s is not mounted", dir)
	return "", nil
}

func TestTheKernelKnowsTheOptions(t *testing.T) {
	needFUSE(t)
	for name, c := range map[string]struct {
		options   Options
		has, lack string
	}{
		"none":     {Options{}, "rw nosuid nodev noatime default_permissions", "ro noexec relatime"},
		"narrow":   {Options{ReadOnly: true, NoExec: true}, "ro noexec nosuid nodev noatime", "rw"},
		"wide":     {Options{Suid: true, Dev: true}, "rw noatime", "nosuid nodev noexec"},
		"relatime": {Options{Relatime: true}, "relatime nosuid nodev", "noatime"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.options.Suid {
				needRoot(t)
			}
			vol, _ := openVolume(t, vfs.NewMem(), "node")
			source, options := mountsLine(t, mountVolume(t, vol, c.options).Mountpoint())
			for _, want := range strings.Fields(c.has) {
				if !slices.Contains(options, want) {
					t.Errorf("%v lacks %s", options, want)
				}
			}
			for _, not := range strings.Fields(c.lack) {
				if slices.Contains(options, not) {
					t.Errorf("%v has %s", options, not)
				}
			}
			if source != "cairn" {
				t.Errorf("the source is %q", source)
			}
		})
	}
}

func TestTheSourceIsShownAsItIs(t *testing.T) {
	needFUSE(t)
	for _, want := range []string{"/var/lib/cairn", `/with blank, comma\and#more`} {
		vol, _ := openVolume(t, vfs.NewMem(), "node")
		if got, _ := mountsLine(t, mountVolume(t, vol, Options{Source: want}).Mountpoint()); got != want {
			t.Errorf("the source is %q, want %q", got, want)
		}
	}
}

func TestDeviceNodesNeedTheOption(t *testing.T) {
	needRoot(t)
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	s := mountVolume(t, vol, Options{})
	p := func(name string) string { return filepath.Join(s.Mountpoint(), name) }
	null := int(unix.Mkdev(1, 3))
	wantErr(t, unix.Mknod(p("null"), unix.S_IFCHR|0o666, null), unix.EPERM)
	wantErr(t, unix.Mknod(p("disk"), unix.S_IFBLK|0o600, 0), unix.EPERM)
	ok(t, unix.Mknod(p("fifo"), unix.S_IFIFO|0o600, 0))
	ok(t, unix.Mknod(p("socket"), unix.S_IFSOCK|0o600, 0))
	ok(t, unix.Mknod(p("hidden"), unix.S_IFCHR, 0))
	if got := names(t, s.Mountpoint()); got != "fifo hidden socket" {
		t.Errorf("there is %q", got)
	}
	ok(t, s.Unmount())

	s = mountVolume(t, vol, Options{Dev: true})
	ok(t, unix.Mknod(p("null"), unix.S_IFCHR|0o666, null))
	f, err := os.OpenFile(p("null"), os.O_WRONLY, 0)
	ok(t, err)
	_, err = f.WriteString("goes nowhere")
	ok(t, err)
	ok(t, f.Close())
	ok(t, s.Unmount())

	// A node that is there by now cannot be opened without the option.
	mountVolume(t, vol, Options{Mountpoint: s.Mountpoint()})
	_, err = os.Open(p("null"))
	wantErr(t, err, unix.EACCES)
}

func TestOwnersCanBeOverridden(t *testing.T) {
	needRoot(t)
	uid, root := uint32(1234), uint32(0)
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	s := mountVolume(t, vol, Options{UID: &uid})
	p := func(name string) string { return filepath.Join(s.Mountpoint(), name) }
	owners := func(name string, wantUID, wantGID uint32) {
		t.Helper()
		if st := stat(t, p(name)); st.Uid != wantUID || st.Gid != wantGID {
			t.Errorf("%q is of %d:%d, want %d:%d", name, st.Uid, st.Gid, wantUID, wantGID)
		}
	}
	write(t, p("file"), "x")
	ok(t, os.Chmod(p("file"), 0o600))
	owners("file", 1234, 0)
	owners("", 1234, 0)
	ok(t, os.Chown(p("file"), 5, 6))
	owners("file", 1234, 6)
	openWay(t, s.Mountpoint())
	asUser(t, 1234, 1234, func() { // permissions are those of whom is shown
		fd, err := unix.Open(p("file"), unix.O_RDWR, 0)
		ok(t, err)
		ok(t, unix.Close(fd))
	})
	asUser(t, 5, 5, func() {
		_, err := unix.Open(p("file"), unix.O_RDWR, 0)
		wantErr(t, err, unix.EACCES)
	})
	ok(t, s.Unmount())

	s = mountVolume(t, vol, Options{UID: &root, GID: &root, Mountpoint: s.Mountpoint()})
	owners("file", 0, 0)
	ok(t, s.Unmount())
	mountVolume(t, vol, Options{Mountpoint: s.Mountpoint()})
	owners("file", 5, 6) // what was stored
}

func TestOnlyRootHonoursSetUserID(t *testing.T) {
	needRoot(t)
	results := make(chan error, 3)
	go func() {
		runtime.LockOSThread() // for good: the thread, which has another user from here on, ends with the goroutine
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 1000, ^uintptr(0)); errno != 0 {
			results <- errno
		}
		results <- checkSystem(Options{Suid: true})
		results <- checkSystem(Options{Dev: true})
	}()
	for range 2 {
		wantErr(t, <-results, ErrRootOnly)
	}
}
