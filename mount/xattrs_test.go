//go:build linux

package mount

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What xattr(7) and its pages of section 2 say, checked on a mount and on the
// system's disk where that can hold it.

// attributes lists the names of an inode's attributes.
func listXattrs(t testing.TB, path string) []string {
	t.Helper()
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	ok(t, err)
	names := strings.SplitAfter(string(list[:n]), "\x00")
	for i, name := range names {
		names[i] = strings.TrimSuffix(name, "\x00")
	}
	return names[:len(names)-1]
}

func TestNamesOfAttributes(t *testing.T) {
	needRoot(t)
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "file")
		write(t, path, "x")
		for name, want := range map[string]error{
			"user.a": nil, "security.a": nil, "trusted.a": nil, "user.\xff": nil, "user." + strings.Repeat("n", 250): nil,
			"user." + strings.Repeat("n", 251): unix.ERANGE, "": unix.ERANGE,
			"user.": unix.EINVAL, "trusted.": unix.EINVAL, "security.": unix.EINVAL,
			"system.": unix.EOPNOTSUPP, "system.a": unix.EOPNOTSUPP, "system.posix_acl_accesses": unix.EOPNOTSUPP,
			"other.a": unix.EOPNOTSUPP, "a": unix.EOPNOTSUPP, "user": unix.EOPNOTSUPP, "User.a": unix.EOPNOTSUPP,
		} {
			err := unix.Setxattr(path, name, []byte("value"), 0)
			if !errors.Is(err, want) {
				t.Errorf("set %q: %v, want %v", name, err, want)
			}
			_, err = unix.Getxattr(path, name, make([]byte, 10))
			if !errors.Is(err, want) {
				t.Errorf("get %q: %v, want %v", name, err, want)
			}
			if listed := slices.Contains(listXattrs(t, path), name); listed != (want == nil) {
				t.Errorf("%q is listed: %t", name, listed)
			}
			if err := unix.Removexattr(path, name); !errors.Is(err, want) {
				t.Errorf("remove %q: %v, want %v", name, err, want)
			}
		}
	})
}

func TestConditionsOfSettingAnAttribute(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "file")
		write(t, path, "x")
		set := func(flags int) error { return unix.Setxattr(path, "user.a", []byte("x"), flags) }
		wantErr(t, set(unix.XATTR_REPLACE), unix.ENODATA)
		wantErr(t, set(unix.XATTR_CREATE|unix.XATTR_REPLACE), unix.ENODATA)
		wantErr(t, set(4), unix.EINVAL)
		ok(t, set(unix.XATTR_CREATE))
		wantErr(t, set(unix.XATTR_CREATE), unix.EEXIST)
		wantErr(t, set(unix.XATTR_CREATE|unix.XATTR_REPLACE), unix.EEXIST)
		ok(t, set(unix.XATTR_REPLACE))
		// Of an access control list there is always one: no condition counts.
		list := aclValue("u::rw-,u:20:rwx,g::r--,m::rwx,o::---")
		for _, flags := range []int{unix.XATTR_REPLACE, unix.XATTR_CREATE, unix.XATTR_CREATE} {
			ok(t, unix.Setxattr(path, aclAccess, list, flags))
		}
	})
}

func TestSizesAreAskedForWithAnEmptyBuffer(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "file")
		write(t, path, "x")
		ok(t, unix.Setxattr(path, "user.a", []byte("value"), 0))
		ok(t, unix.Setxattr(path, "user.empty", nil, 0))
		setACL(t, path, aclAccess, "u::rw-,g::r--,m::rwx,o::---")
		for name, size := range map[string]int{"user.a": 5, "user.empty": 0, aclAccess: 4 + 4*8} {
			got, err := unix.Getxattr(path, name, nil)
			ok(t, err)
			full, err := unix.Getxattr(path, name, make([]byte, max(size, 1)))
			ok(t, err)
			if got != size || full != size {
				t.Errorf("%s has %d bytes, then %d, want %d", name, got, full, size)
			}
			if size > 0 {
				_, err = unix.Getxattr(path, name, make([]byte, size-1))
				wantErr(t, err, unix.ERANGE)
			}
		}
		size, err := unix.Listxattr(path, nil)
		ok(t, err)
		_, err = unix.Listxattr(path, make([]byte, size-1))
		wantErr(t, err, unix.ERANGE)
		n, err := unix.Listxattr(path, make([]byte, size))
		ok(t, err)
		if n != size {
			t.Errorf("list of %d bytes, want %d", n, size)
		}
	})
}

// The system's disk may have less room for attributes.
func TestAttributesHoldUpTo64KiB(t *testing.T) {
	path := filepath.Join(newMount(t), "file")
	write(t, path, "x")
	value := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	ok(t, unix.Setxattr(path, "user.a", value, 0))
	got := make([]byte, len(value))
	n, err := unix.Getxattr(path, "user.a", got)
	ok(t, err)
	if !bytes.Equal(got[:n], value) {
		t.Errorf("got %d bytes that differ from the %d set", n, len(value))
	}
	wantErr(t, unix.Setxattr(path, "user.a", append(value, 'x'), 0), unix.E2BIG)
}

func TestUserAttributesAreOfFilesAndDirectories(t *testing.T) {
	needRoot(t)
	onMountAndDisk(t, func(t *testing.T, dir string) {
		link, fifo, sub := filepath.Join(dir, "link"), filepath.Join(dir, "fifo"), filepath.Join(dir, "sub")
		ok(t, unix.Symlink("sub", link))
		ok(t, unix.Mkfifo(fifo, 0o600))
		ok(t, unix.Mkdir(sub, 0o700))
		for _, path := range []string{link, fifo} {
			wantErr(t, unix.Lsetxattr(path, "user.a", []byte("x"), 0), unix.EPERM)
			_, err := unix.Lgetxattr(path, "user.a", nil)
			wantErr(t, err, unix.ENODATA)
			ok(t, unix.Lsetxattr(path, "trusted.a", []byte("x"), 0))
		}
		ok(t, unix.Setxattr(link, "user.a", []byte("x"), 0)) // follows the link
		if got := listXattrs(t, sub); !slices.Contains(got, "user.a") {
			t.Errorf("directory has attributes %q", got)
		}
	})
}

func TestTrustedAttributesAreForRoot(t *testing.T) {
	needRoot(t)
	onMountAndDisk(t, func(t *testing.T, dir string) {
		openWay(t, dir)
		ok(t, unix.Chmod(dir, 0o755))
		path := filepath.Join(dir, "file")
		write(t, path, "x")
		ok(t, unix.Chown(path, 1000, 1000))
		for _, name := range []string{"trusted.a", "security.a", "user.a"} {
			ok(t, unix.Setxattr(path, name, []byte("x"), 0))
		}
		if got := listXattrs(t, path); !slices.Contains(got, "trusted.a") {
			t.Errorf("root sees %q", got)
		}
		asUser(t, 1000, 1000, func() {
			none := [2]unix.CapUserData{} // this thread has no capability left
			ok(t, unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]))
			got := listXattrs(t, path)
			if slices.Contains(got, "trusted.a") || !slices.Contains(got, "security.a") || !slices.Contains(got, "user.a") {
				t.Errorf("the owner sees %q", got)
			}
			_, err := unix.Getxattr(path, "trusted.a", nil)
			wantErr(t, err, unix.ENODATA)
			wantErr(t, unix.Setxattr(path, "trusted.a", nil, 0), unix.EPERM)
			wantErr(t, unix.Removexattr(path, "trusted.a"), unix.EPERM)
		})
	})
}

func TestWritingTakesCapabilitiesAway(t *testing.T) {
	needRoot(t)
	// Version 2 of the format, cap_net_raw permitted and effective.
	capability := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	for _, word := range []uint32{1 << 13, 0, 0, 0} {
		capability = binary.LittleEndian.AppendUint32(capability, word)
	}
	const name = "security.capability"
	onMountAndDisk(t, func(t *testing.T, dir string) {
		openWay(t, dir)
		ok(t, unix.Chmod(dir, 0o755))
		path := filepath.Join(dir, "file")
		writeTo := func(path string) error {
			fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err == nil {
				_, err = unix.Write(fd, []byte("more"))
				err = errors.Join(err, unix.Close(fd))
			}
			return err
		}
		for how, change := range map[string]func() error{
			"written by root": func() error { return writeTo(path) },
			"written": func() (err error) {
				asUser(t, 1000, 1000, func() { err = writeTo(path) })
				return err
			},
			"truncated by root": func() error { return unix.Truncate(path, 0) },
			"truncated": func() (err error) {
				asUser(t, 1000, 1000, func() { err = unix.Truncate(path, 0) })
				return err
			},
			"given away": func() error { return unix.Chown(path, 5, 5) },
		} {
			ok(t, os.WriteFile(path, []byte("program"), 0o777))
			ok(t, unix.Chmod(path, 0o777))
			ok(t, unix.Setxattr(path, name, capability, 0))
			if _, err := unix.Getxattr(path, name, nil); err != nil {
				t.Errorf("capability set: %v", err)
			}
			ok(t, change())
			if _, err := unix.Getxattr(path, name, nil); !errors.Is(err, unix.ENODATA) {
				t.Errorf("capability of a file that was %s: %v", how, err)
			}
			ok(t, os.Remove(path))
		}
	})
}
