//go:build linux

package mount

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/cas"
)

// What programs expect of attributes and permissions, each expectation checked on
// a mount and on the system's disk.

func TestModesOwnersAndTimes(t *testing.T) {
	needRoot(t)
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "file")
		write(t, path, "x")
		ok(t, unix.Chmod(path, 0o4751))
		if st := stat(t, path); st.Mode != unix.S_IFREG|0o4751 {
			t.Fatalf("mode %o", st.Mode)
		}
		ok(t, unix.Chown(path, 1234, 5678))
		ok(t, unix.Chown(path, -1, 42))
		if st := stat(t, path); st.Uid != 1234 || st.Gid != 42 {
			t.Fatalf("owner %d:%d", st.Uid, st.Gid)
		}
		set := func(atime, mtime unix.Timespec) unix.Stat_t {
			ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{atime, mtime}, 0))
			return stat(t, path)
		}
		past, early := unix.Timespec{Sec: 1_000_000_000, Nsec: 123_456_789}, unix.Timespec{Sec: -1000, Nsec: 5}
		omit, now := unix.Timespec{Nsec: unix.UTIME_OMIT}, unix.Timespec{Nsec: unix.UTIME_NOW}
		if st := set(past, early); st.Atim != past || st.Mtim != early {
			t.Fatalf("times %v, %v", st.Atim, st.Mtim)
		}
		if st := set(omit, past); st.Atim != past || st.Mtim != past {
			t.Fatalf("times %v, %v after changing one", st.Atim, st.Mtim)
		}
		before := time.Now().Add(-time.Second)
		st := set(now, omit)
		if got := time.Unix(st.Atim.Unix()); st.Mtim != past || got.Before(before) || got.After(time.Now().Add(time.Second)) {
			t.Fatalf("times %v, %v after setting one to now", st.Atim, st.Mtim)
		}
		if got := time.Unix(st.Ctim.Unix()); got.Before(before) {
			t.Fatalf("ctime %v is older than the change", got)
		}
	})
}

func TestTouchAfterWriteIsNotOlder(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		write(t, b, "")
		for range 100 {
			write(t, a, "x")
			ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, b, nil, 0))
			if ma, mb := stat(t, a).Mtim, stat(t, b).Mtim; mb.Nano() < ma.Nano() {
				t.Fatalf("touched at %v, after a write at %v", mb, ma)
			}
		}
	})
}

func TestWriteChangesTimes(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "file")
		write(t, path, "x")
		old := unix.Timespec{Sec: 1_000_000_000}
		age := func(path string) { ok(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{old, old}, 0)) }
		fd := open(t, path, unix.O_RDWR, 0)
		defer unix.Close(fd)
		for _, change := range []func() error{
			func() error { _, err := unix.Pwrite(fd, []byte("y"), 0); return err },
			func() error { return unix.Ftruncate(fd, 10) },
			func() error { return unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 10) },
		} {
			age(path)
			ok(t, change())
			if st := stat(t, path); st.Mtim == old {
				t.Fatal("mtime did not change with the content")
			}
		}
		age(path)
		ok(t, unix.Chmod(path, 0o600))
		if st := stat(t, path); st.Mtim != old {
			t.Fatal("mtime changed without the content")
		}
		for _, change := range []func() error{
			func() error { return os.Rename(path, path+"2") },
			func() error { return os.Link(path+"2", path) },
			func() error { return os.Remove(path + "2") },
			func() error { return os.Mkdir(path+"3", 0o755) },
		} {
			age(dir)
			ok(t, change())
			if st := stat(t, dir); st.Mtim == old {
				t.Fatal("mtime of the directory did not change with its names")
			}
		}
	})
}

func TestExtendedAttributes(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "file")
		write(t, path, "x")
		get := func(name string) string {
			p := make([]byte, 4096)
			n, err := unix.Getxattr(path, name, p)
			ok(t, err)
			return string(p[:n])
		}
		ok(t, unix.Setxattr(path, "user.a", []byte("one"), 0))
		ok(t, unix.Setxattr(path, "user.b", []byte("two"), unix.XATTR_CREATE))
		ok(t, unix.Setxattr(path, "user.empty", nil, 0))
		wantErr(t, unix.Setxattr(path, "user.a", nil, unix.XATTR_CREATE), unix.EEXIST)
		wantErr(t, unix.Setxattr(path, "user.c", nil, unix.XATTR_REPLACE), unix.ENODATA)
		ok(t, unix.Setxattr(path, "user.a", []byte("three"), unix.XATTR_REPLACE))
		if got := get("user.a") + get("user.b") + get("user.empty"); got != "threetwo" {
			t.Fatalf("values %q", got)
		}
		size, err := unix.Getxattr(path, "user.a", nil)
		ok(t, err)
		if size != 5 {
			t.Fatalf("size of the value %d, want 5", size)
		}
		_, err = unix.Getxattr(path, "user.a", make([]byte, 4))
		wantErr(t, err, unix.ERANGE)
		_, err = unix.Getxattr(path, "user.none", nil)
		wantErr(t, err, unix.ENODATA)

		size, err = unix.Listxattr(path, nil)
		ok(t, err)
		list := make([]byte, size)
		_, err = unix.Listxattr(path, list)
		ok(t, err)
		got := slices.DeleteFunc(strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00"),
			func(name string) bool { return !strings.HasPrefix(name, "user.") })
		slices.Sort(got)
		if want := "user.a user.b user.empty"; strings.Join(got, " ") != want {
			t.Fatalf("attributes %q, want %q", got, want)
		}
		ok(t, unix.Removexattr(path, "user.a"))
		wantErr(t, unix.Removexattr(path, "user.a"), unix.ENODATA)
	})
}

func TestCIDAttributeFollowsTheContent(t *testing.T) {
	dir := newMount(t)
	cid := func(name string) string {
		p := make([]byte, 200)
		n, err := unix.Getxattr(filepath.Join(dir, name), "user.cairn.cid", p)
		ok(t, err)
		if _, err := cas.ParseCID(string(p[:n])); err != nil {
			t.Fatal(err)
		}
		return string(p[:n])
	}
	content := strings.Repeat("some bytes ", 30_000)
	write(t, filepath.Join(dir, "a"), content)
	write(t, filepath.Join(dir, "b"), content)
	if cid("a") != cid("b") {
		t.Error("equal files have different CIDs")
	}
	was := cid("a")
	write(t, filepath.Join(dir, "a"), content+"!")
	if cid("a") == was {
		t.Error("another content has the same CID")
	}
	wantErr(t, unix.Setxattr(filepath.Join(dir, "a"), "user.cairn.cid", []byte("x"), 0), unix.EPERM)
}

func TestUmaskIsAppliedOnce(t *testing.T) {
	old := unix.Umask(0o027)
	defer unix.Umask(old)
	onMountAndDisk(t, func(t *testing.T, dir string) {
		ok(t, unix.Close(open(t, filepath.Join(dir, "file"), unix.O_CREAT|unix.O_RDWR, 0o666)))
		ok(t, unix.Mkdir(filepath.Join(dir, "dir"), 0o777))
		ok(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666))
		ok(t, unix.Symlink("x", filepath.Join(dir, "link")))
		for name, want := range map[string]uint32{"file": 0o640, "dir": 0o750, "fifo": 0o640, "link": 0o777} {
			if got := stat(t, filepath.Join(dir, name)).Mode & 0o7777; got != want {
				t.Errorf("%s has mode %o, want %o", name, got, want)
			}
		}
	})
}

func TestSpecialFiles(t *testing.T) {
	needRoot(t)
	test := func(t *testing.T, dir string) {
		for name, mode := range map[string]uint32{"fifo": unix.S_IFIFO, "socket": unix.S_IFSOCK, "null": unix.S_IFCHR, "disk": unix.S_IFBLK, "file": unix.S_IFREG} {
			path := filepath.Join(dir, name)
			ok(t, unix.Mknod(path, mode|0o600, int(unix.Mkdev(1, 3))))
			st := stat(t, path)
			if st.Mode != mode|0o600 {
				t.Errorf("%s has mode %o, want %o", name, st.Mode, mode|0o600)
			}
			if device := mode == unix.S_IFCHR || mode == unix.S_IFBLK; device && st.Rdev != unix.Mkdev(1, 3) {
				t.Errorf("%s is device %x", name, st.Rdev)
			}
		}
	}
	t.Run("mount", func(t *testing.T) {
		needFUSE(t)
		vol, _ := openVolume(t, vfs.NewMem(), "node")
		test(t, mountVolume(t, vol, Options{Dev: true}).Mountpoint())
	})
	t.Run("disk", func(t *testing.T) { test(t, t.TempDir()) })
}

func TestPermissionsAreChecked(t *testing.T) {
	needRoot(t)
	onMountAndDisk(t, func(t *testing.T, dir string) {
		openWay(t, dir)
		ok(t, unix.Chmod(dir, 0o1777))
		secret, program := filepath.Join(dir, "secret"), filepath.Join(dir, "program")
		ok(t, os.WriteFile(secret, []byte("x"), 0o600))
		write(t, program, "x")
		asUser(t, 1000, 1000, func() {
			_, err := unix.Open(secret, unix.O_RDONLY, 0)
			wantErr(t, err, unix.EACCES)
			wantErr(t, unix.Chmod(program, 0o777), unix.EPERM)
			wantErr(t, unix.Unlink(program), unix.EPERM) // sticky directory
			ok(t, unix.Mkdir(filepath.Join(dir, "mine"), 0o700))
			ok(t, unix.Close(open(t, filepath.Join(dir, "mine", "file"), unix.O_CREAT|unix.O_RDWR, 0o644)))
		})
		if st := stat(t, filepath.Join(dir, "mine", "file")); st.Uid != 1000 || st.Gid != 1000 {
			t.Errorf("owner %d:%d", st.Uid, st.Gid)
		}
	})
}

func TestSetuidIsLostToOthers(t *testing.T) {
	needRoot(t)
	onMountAndDisk(t, func(t *testing.T, dir string) {
		openWay(t, dir)
		path := filepath.Join(dir, "program")
		write(t, path, "x")
		for name, c := range map[string]struct {
			change func(fd int) error
			want   uint32
		}{
			"write by root":         {func(fd int) error { _, err := unix.Pwrite(fd, []byte("y"), 0); return err }, 0o6777},
			"truncate by root":      {func(fd int) error { return unix.Ftruncate(fd, 1) }, 0o6777},
			"chown":                 {func(int) error { return unix.Chown(path, 0, 0) }, 0o777},
			"chown that keeps both": {func(int) error { return unix.Chown(path, -1, -1) }, 0o777},
			"fallocate": {func(fd int) (err error) {
				asUser(t, 1000, 1000, func() { err = unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, 1) })
				return err
			}, 0o777},
			"punched hole": {func(fd int) (err error) {
				asUser(t, 1000, 1000, func() {
					err = unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 1)
				})
				return err
			}, 0o777},
			"copy": {func(fd int) (err error) {
				asUser(t, 1000, 1000, func() {
					from, to := int64(0), int64(10)
					_, err = unix.CopyFileRange(fd, &from, fd, &to, 1, 0)
				})
				return err
			}, 0o777},
			"write": {func(fd int) (err error) {
				asUser(t, 1000, 1000, func() { _, err = unix.Pwrite(fd, []byte("y"), 0) })
				return err
			}, 0o777},
			"truncate": {func(fd int) (err error) {
				asUser(t, 1000, 1000, func() { err = unix.Ftruncate(fd, 1) })
				return err
			}, 0o777},
			"truncating open": {func(int) (err error) {
				asUser(t, 1000, 1000, func() {
					var fd int
					if fd, err = unix.Open(path, unix.O_WRONLY|unix.O_TRUNC, 0); err == nil {
						err = unix.Close(fd)
					}
				})
				return err
			}, 0o777},
		} {
			// Whatever came before: nothing is copied out of an empty file.
			ok(t, os.WriteFile(path, []byte("x"), 0))
			ok(t, unix.Chmod(path, 0o6777))
			fd := open(t, path, unix.O_RDWR, 0)
			if err := c.change(fd); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			ok(t, unix.Close(fd))
			if got := stat(t, path).Mode & 0o7777; got != c.want {
				t.Errorf("%s leaves mode %o, want %o", name, got, c.want)
			}
		}
	})
}

func TestSetgidDirectoryPassesItsGroupOn(t *testing.T) {
	needRoot(t)
	onMountAndDisk(t, func(t *testing.T, dir string) {
		openWay(t, dir)
		d := filepath.Join(dir, "d")
		ok(t, unix.Mkdir(d, 0o777))
		ok(t, unix.Chown(d, 0, 55))
		ok(t, unix.Chmod(d, 0o2777))
		asUser(t, 1000, 1000, func() {
			ok(t, unix.Mkdir(filepath.Join(d, "sub"), 0o755))
			ok(t, unix.Close(open(t, filepath.Join(d, "file"), unix.O_CREAT|unix.O_RDWR, 0o644)))
		})
		if st := stat(t, filepath.Join(d, "sub")); st.Gid != 55 || st.Mode&unix.S_ISGID == 0 || st.Uid != 1000 {
			t.Errorf("directory: mode %o owner %d:%d", st.Mode, st.Uid, st.Gid)
		}
		if st := stat(t, filepath.Join(d, "file")); st.Gid != 55 || st.Mode&unix.S_ISGID != 0 {
			t.Errorf("file: mode %o group %d", st.Mode, st.Gid)
		}
	})
}

// openWay lets other users reach dir through the private directories above it.
func openWay(t testing.TB, dir string) {
	t.Helper()
	for d := filepath.Dir(dir); d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		ok(t, os.Chmod(d, 0o755))
	}
}
