//go:build linux

package mount

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/namespace"
)

// Access control lists, each expectation checked on a mount and on the system's
// disk. Lists are written as setfacl takes them, in the order that the kernel
// wants: "u::rw-,u:20:rwx,g::r--,m::rwx,o::---".

const (
	aclAccess  = namespace.ACLAccess
	aclDefault = namespace.ACLDefault
)

// aclValue is the attribute's value for a list in text.
func aclValue(text string) []byte {
	const noID = 1<<32 - 1
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for entry := range strings.SplitSeq(text, ",") {
		var kind byte
		var perms string
		id := uint32(noID)
		if _, err := fmt.Sscanf(entry, "%c::%s", &kind, &perms); err != nil {
			if _, err := fmt.Sscanf(entry, "%c:%d:%s", &kind, &id, &perms); err != nil {
				panic(fmt.Sprintf("entry %q: %v", entry, err))
			}
		}
		tag := map[byte]uint16{'u': 1, 'g': 4, 'm': 16, 'o': 32}[kind]
		if id != noID {
			tag *= 2
		}
		perm := uint16(0)
		for i, c := range perms {
			if c != '-' {
				perm |= 4 >> i
			}
		}
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, perm)
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	return b
}

func setACL(t testing.TB, path, name, text string) {
	t.Helper()
	if err := unix.Setxattr(path, name, aclValue(text), 0); err != nil {
		t.Fatalf("set %s of %s to %s: %v", name, path, text, err)
	}
}

// wantACL fails the test unless getxattr returns that list, "" for none.
func wantACL(t testing.TB, path, name, text string) {
	t.Helper()
	got := make([]byte, 4096)
	n, err := unix.Getxattr(path, name, got)
	if text == "" {
		if !errors.Is(err, unix.ENODATA) {
			t.Errorf("%s of %s: %x, %v; want none", name, path, got[:max(n, 0)], err)
		}
		return
	}
	if err != nil {
		t.Errorf("%s of %s: %v, want %s", name, path, err, text)
	} else if want := aclValue(text); !slices.Equal(got[:n], want) {
		t.Errorf("%s of %s: %x, want %x for %s", name, path, got[:n], want, text)
	}
}

func wantMode(t testing.TB, path string, want uint32) {
	t.Helper()
	if got := stat(t, path).Mode & 0o7777; got != want {
		t.Errorf("%s has mode %o, want %o", path, got, want)
	}
}

func TestDefaultACLIsInheritedAndReplacesTheUmask(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	onMountAndDisk(t, func(t *testing.T, dir string) {
		const def = "u::rwx,u:20:rw-,g::r-x,g:30:r--,m::rwx,o::r-x"
		setACL(t, dir, aclDefault, def)
		wantACL(t, dir, aclDefault, def)
		wantACL(t, dir, aclAccess, "")
		path := func(name string) string { return filepath.Join(dir, name) }
		ok(t, unix.Close(open(t, path("file"), unix.O_CREAT|unix.O_RDWR, 0o666)))
		ok(t, unix.Mkdir(path("dir"), 0o777))
		ok(t, unix.Mkfifo(path("fifo"), 0o640))
		ok(t, unix.Symlink("x", path("link")))
		for name, c := range map[string]struct {
			mode            uint32
			access, inherit string
		}{
			"file": {0o664, "u::rw-,u:20:rw-,g::r-x,g:30:r--,m::rw-,o::r--", ""},
			"dir":  {0o775, "u::rwx,u:20:rw-,g::r-x,g:30:r--,m::rwx,o::r-x", def},
			"fifo": {0o640, "u::rw-,u:20:rw-,g::r-x,g:30:r--,m::r--,o::---", ""},
		} {
			wantMode(t, path(name), c.mode)
			wantACL(t, path(name), aclAccess, c.access)
			wantACL(t, path(name), aclDefault, c.inherit)
		}
		wantMode(t, path("link"), 0o777)
		ok(t, unix.Mkdir(path("dir/below"), 0o700))
		wantMode(t, path("dir/below"), 0o700)
		wantACL(t, path("dir/below"), aclDefault, def)

		ok(t, unix.Removexattr(dir, aclDefault))
		ok(t, unix.Close(open(t, path("later"), unix.O_CREAT|unix.O_RDWR, 0o666)))
		wantMode(t, path("later"), 0o600)
		wantACL(t, path("later"), aclAccess, "")
	})
}

func TestDefaultACLWithoutNamesIsAUmaskOfItsOwn(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	onMountAndDisk(t, func(t *testing.T, dir string) {
		setACL(t, dir, aclDefault, "u::rwx,g::r-x,o::--x")
		file, sub := filepath.Join(dir, "file"), filepath.Join(dir, "sub")
		ok(t, unix.Close(open(t, file, unix.O_CREAT|unix.O_RDWR, 0o666)))
		ok(t, unix.Mkdir(sub, 0o777))
		wantMode(t, file, 0o640)
		wantMode(t, sub, 0o751)
		wantACL(t, file, aclAccess, "")
		wantACL(t, sub, aclAccess, "")
		wantACL(t, sub, aclDefault, "u::rwx,g::r-x,o::--x")
	})
}

func TestModeAndAccessACLAreOne(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "file")
		write(t, path, "x")
		setACL(t, path, aclAccess, "u::rwx,u:20:r--,g::r-x,m::-w-,o::--x")
		wantMode(t, path, 0o721)
		ok(t, unix.Chmod(path, 0o654))
		wantMode(t, path, 0o654)
		wantACL(t, path, aclAccess, "u::rw-,u:20:r--,g::r-x,m::r-x,o::r--")
		fd := open(t, path, unix.O_RDWR, 0)
		ok(t, unix.Fchmod(fd, 0o600))
		ok(t, unix.Close(fd))
		wantACL(t, path, aclAccess, "u::rw-,u:20:r--,g::r-x,m::---,o::---")

		ok(t, unix.Removexattr(path, aclAccess))
		wantACL(t, path, aclAccess, "")
		wantMode(t, path, 0o600)
		ok(t, unix.Removexattr(path, aclAccess)) // there is always one to remove
		ok(t, unix.Removexattr(path, aclDefault))

		setACL(t, path, aclAccess, "u::rwx,u:20:r--,g::r-x,m::-w-,o::--x")
		setACL(t, path, aclAccess, "u::rw-,g::r--,o::---")
		wantACL(t, path, aclAccess, "")
		wantMode(t, path, 0o640)
		list := make([]byte, 4096)
		n, err := unix.Listxattr(path, list)
		ok(t, err)
		if strings.Contains(string(list[:n]), "posix_acl") {
			t.Errorf("attributes %q", list[:n])
		}
	})
}

func TestACLsSurviveRenameAndLinkAndAreListed(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		const access = "u::rwx,u:20:r--,g::r-x,m::r--,o::--x"
		a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
		write(t, a, "x")
		setACL(t, a, aclAccess, access)
		ok(t, os.Rename(a, b))
		ok(t, os.Link(b, c))
		wantACL(t, c, aclAccess, access)
		setACL(t, dir, aclDefault, access)
		for path, name := range map[string]string{c: aclAccess, dir: aclDefault} {
			list := make([]byte, 4096)
			n, err := unix.Listxattr(path, list)
			ok(t, err)
			if !slices.Contains(strings.Split(string(list[:n]), "\x00"), name) {
				t.Errorf("%s has attributes %q", path, list[:n])
			}
		}
	})
}

// Whatever list is set, a program reads back the bytes that it reads from the
// disk, and sees the same mode.
func TestACLsReadAsOnDisk(t *testing.T) {
	const seed = 1
	r := rand.New(rand.NewPCG(seed, 0))
	lists := []string{"u::rw-,u:20:r--,u:10:rwx,u:20:---,g::r--,m::rwx,o::---"}
	for range 40 {
		perm := func() string {
			p := []byte("rwx")
			for i := range p {
				if r.IntN(2) == 0 {
					p[i] = '-'
				}
			}
			return string(p)
		}
		text := "u::" + perm()
		users, groups := r.IntN(3), r.IntN(3)
		for range users {
			text += fmt.Sprintf(",u:%d:%s", r.IntN(1<<31), perm())
		}
		text += ",g::" + perm()
		for range groups {
			text += fmt.Sprintf(",g:%d:%s", r.IntN(1<<31), perm())
		}
		if users+groups > 0 || r.IntN(2) == 0 {
			text += ",m::" + perm()
		}
		lists = append(lists, text+",o::"+perm())
	}
	see := func(dir, name, text string) string {
		path := filepath.Join(dir, "inode")
		ok(t, unix.Mkdir(path, 0o700))
		defer os.RemoveAll(path)
		setACL(t, path, name, text)
		seen := ""
		ok(t, unix.Mkdir(filepath.Join(path, "sub"), 0o770))
		for _, p := range []string{path, filepath.Join(path, "sub")} {
			seen += fmt.Sprintf("%o", stat(t, p).Mode)
			for _, name := range []string{aclAccess, aclDefault} {
				value := make([]byte, 4096)
				n, err := unix.Getxattr(p, name, value)
				seen += fmt.Sprintf(" %s %v", hex.EncodeToString(value[:max(n, 0)]), err)
			}
		}
		return seen
	}
	mounted, disk := newMount(t), t.TempDir()
	for _, text := range lists {
		for _, name := range []string{aclAccess, aclDefault} {
			if got, want := see(mounted, name, text), see(disk, name, text); got != want {
				t.Errorf("%s %s:\n%s\n, on disk\n%s", name, text, got, want)
			}
		}
	}
}

func TestWhatIsNoACLIsRefused(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
		write(t, file, "x")
		ok(t, unix.Symlink("file", link))
		fine := aclValue("u::rw-,g::r--,m::rwx,o::---")
		for name, value := range map[string][]byte{
			"no mask":          aclValue("u::rw-,u:20:rwx,g::r--,o::---"),
			"no owner":         aclValue("g::r--,o::---"),
			"no others":        aclValue("u::rw-,g::r--"),
			"owner twice":      aclValue("u::rw-,u::rw-,g::r--,o::---"),
			"in another order": aclValue("g::r--,u::rw-,o::---"),
			"half an entry":    fine[:len(fine)-4],
			"less than a head": fine[:3],
		} {
			for _, attr := range []string{aclAccess, aclDefault} {
				if err := unix.Setxattr(dir, attr, value, 0); !errors.Is(err, unix.EINVAL) {
					t.Errorf("%s as %s: %v", name, attr, err)
				}
			}
		}
		wantErr(t, unix.Setxattr(file, aclDefault, fine, 0), unix.EACCES)
		wantErr(t, unix.Lsetxattr(link, aclAccess, fine, 0), unix.EOPNOTSUPP)
		wantErr(t, unix.Lsetxattr(link, aclDefault, fine, 0), unix.EOPNOTSUPP)
		wantErr(t, unix.Setxattr(file, aclAccess, append([]byte{3}, fine[1:]...), 0), unix.EOPNOTSUPP)
		wantACL(t, dir, aclDefault, "")
		ok(t, unix.Setxattr(dir, aclDefault, fine, 0))
		ok(t, unix.Setxattr(dir, aclDefault, fine[:4], 0)) // without entries it is removed
		wantACL(t, dir, aclDefault, "")
	})
}

// identity is who a process is, as far as files are concerned.
type identity struct {
	uid, gid int
	groups   []uint32
}

// as is asUser with supplementary groups.
func (who identity) as(t testing.TB, fn func()) {
	t.Helper()
	asUser(t, who.uid, who.gid, func() {
		// Of this thread alone, by the system call itself.
		groups := append(slices.Clone(who.groups), uint32(who.gid))
		_, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0)
		runtime.KeepAlive(groups)
		if errno != 0 {
			t.Errorf("setgroups: %v", errno)
			return
		}
		fn()
	})
}

func TestAccessFollowsTheACL(t *testing.T) {
	needRoot(t)
	someone := identity{uid: 1000, gid: 1000}
	named := identity{uid: 20, gid: 1000}
	inGroup := identity{uid: 1000, gid: 30}
	bySupplement := identity{uid: 1000, gid: 1000, groups: []uint32{7, 30}}
	owningGroup := identity{uid: 1000, gid: 5}
	inBoth := identity{uid: 1000, gid: 5, groups: []uint32{30}}
	onMountAndDisk(t, func(t *testing.T, dir string) {
		openWay(t, dir)
		ok(t, unix.Chmod(dir, 0o755))
		for _, c := range []struct {
			who  identity
			list string
			want string // of "rwx" what is granted
		}{
			{someone, "u::rwx,g::rwx,m::rwx,o::r--", "r"},
			{someone, "u::rwx,u:20:rwx,g::rwx,g:30:rwx,m::rwx,o::---", ""},
			{named, "u::---,u:20:rw-,g::---,m::rwx,o::---", "rw"},
			{named, "u::---,u:20:rwx,g::rwx,m::r-x,o::rwx", "rx"},         // the mask limits
			{named, "u::rwx,u:20:---,g::rwx,m::rwx,o::rwx", ""},           // a name counts, whatever others may
			{named, "u::rwx,u:20:r--,u:20:-wx,g::---,m::rwx,o::---", "r"}, // the first one counts
			{inGroup, "u::---,g::---,g:30:r-x,m::rwx,o::---", "rx"},
			{inGroup, "u::---,g::---,g:30:rwx,m::-w-,o::rwx", "w"},
			{inGroup, "u::---,g::---,g:30:---,m::rwx,o::rwx", ""},
			{bySupplement, "u::---,g::---,g:30:rw-,m::rwx,o::---", "rw"},
			{bySupplement, "u::---,g::---,g:30:rwx,m::r--,o::---", "r"},
			{bySupplement, "u::---,u:1000:--x,g::---,g:30:rwx,m::rwx,o::---", "x"}, // users go before groups
			{owningGroup, "u::---,g::rw-,m::r--,o::rwx", "r"},
			{inBoth, "u::---,g::r--,g:30:-w-,m::rwx,o::---", "rw"}, // any of the groups is enough, for each right
		} {
			path := filepath.Join(dir, "file")
			write(t, path, "x")
			ok(t, unix.Chown(path, 4000, 5))
			setACL(t, path, aclAccess, c.list)
			got := ""
			c.who.as(t, func() {
				for bit, right := range map[uint32]string{unix.R_OK: "r", unix.W_OK: "w", unix.X_OK: "x"} {
					if unix.Faccessat2(unix.AT_FDCWD, path, bit, unix.AT_EACCESS) == nil {
						got += right
					}
				}
				for flags, right := range map[int]string{unix.O_RDONLY: "r", unix.O_WRONLY: "w"} {
					fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
					if opened := err == nil; opened != strings.Contains(c.want, right) {
						t.Errorf("%+v opens %s for %s: %v", c.who, c.list, right, err)
					}
					if err == nil {
						ok(t, unix.Close(fd))
					}
				}
			})
			for _, right := range []string{"r", "w", "x"} {
				if strings.Contains(got, right) != strings.Contains(c.want, right) {
					t.Errorf("%+v has %q on %s, want %q", c.who, got, c.list, c.want)
				}
			}
			ok(t, os.Remove(path))
		}
	})
}

func TestOtherProcessesAreHeldToTheACL(t *testing.T) {
	needRoot(t)
	onMountAndDisk(t, func(t *testing.T, dir string) {
		openWay(t, dir)
		ok(t, unix.Chmod(dir, 0o755))
		path := filepath.Join(dir, "file")
		write(t, path, "x")
		setACL(t, path, aclAccess, "u::rw-,u:20:r--,g::---,g:30:r--,m::r--,o::---")
		for _, c := range []struct {
			who  identity
			want bool
		}{
			{identity{uid: 20, gid: 20}, true},
			{identity{uid: 1000, gid: 30}, true},
			{identity{uid: 1000, gid: 1000, groups: []uint32{30}}, true},
			{identity{uid: 1000, gid: 1000}, false},
		} {
			cat := exec.Command("cat", path)
			cat.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{
				Uid: uint32(c.who.uid), Gid: uint32(c.who.gid), Groups: c.who.groups,
			}}
			out, err := cat.CombinedOutput()
			if read := err == nil && string(out) == "x"; read != c.want {
				t.Errorf("%+v reads %q, %v", c.who, out, err)
			}
		}
	})
}

func TestAChangedACLCountsAtOnce(t *testing.T) {
	needRoot(t)
	who := identity{uid: 20, gid: 20}
	onMountAndDisk(t, func(t *testing.T, dir string) {
		openWay(t, dir)
		ok(t, unix.Chmod(dir, 0o755))
		sub, file := filepath.Join(dir, "sub"), filepath.Join(dir, "sub", "file")
		ok(t, unix.Mkdir(sub, 0o700))
		write(t, file, "x")
		may := func(want error) {
			t.Helper()
			who.as(t, func() {
				_, err := os.Stat(file)
				if !errors.Is(err, want) {
					t.Errorf("stat below the directory: %v, want %v", err, want)
				}
			})
		}
		may(unix.EACCES)
		setACL(t, sub, aclAccess, "u::rwx,u:20:--x,g::---,m::--x,o::---")
		may(nil)
		ok(t, unix.Chmod(sub, 0o700)) // the mask
		may(unix.EACCES)
		ok(t, unix.Chmod(sub, 0o710))
		may(nil)
		ok(t, unix.Removexattr(sub, aclAccess))
		may(unix.EACCES) // mode 0710, but not of the group
	})
}

func TestOnlyTheOwnerSetsACLs(t *testing.T) {
	needRoot(t)
	onMountAndDisk(t, func(t *testing.T, dir string) {
		openWay(t, dir)
		ok(t, unix.Chmod(dir, 0o755))
		path := filepath.Join(dir, "file")
		write(t, path, "x")
		ok(t, unix.Chmod(path, 0o666))
		list := aclValue("u::rw-,u:20:rwx,g::r--,m::rwx,o::---")
		asUser(t, 1000, 1000, func() {
			wantErr(t, unix.Setxattr(path, aclAccess, list, 0), unix.EPERM)
			wantErr(t, unix.Removexattr(path, aclAccess), unix.EPERM)
		})
		ok(t, unix.Chown(path, 1000, 1000))
		asUser(t, 1000, 1000, func() { ok(t, unix.Setxattr(path, aclAccess, list, 0)) })
	})
}

func TestACLTakesSetgidFromWhoIsNotOfTheGroup(t *testing.T) {
	needRoot(t)
	onMountAndDisk(t, func(t *testing.T, dir string) {
		openWay(t, dir)
		ok(t, unix.Chmod(dir, 0o755))
		path := filepath.Join(dir, "file")
		for name, c := range map[string]struct {
			gid  int
			list string
			want uint32
		}{
			"of the group":              {1000, "u::rwx,u:20:rwx,g::r-x,m::rwx,o::---", 0o2770},
			"not of the group":          {55, "u::rwx,u:20:rwx,g::r-x,m::rwx,o::---", 0o770},
			"not of the group, no mask": {55, "u::rwx,g::r-x,o::---", 0o750},
		} {
			write(t, path, "x")
			ok(t, unix.Chown(path, 1000, c.gid))
			ok(t, unix.Chmod(path, 0o2755))
			asUser(t, 1000, 1000, func() { setACL(t, path, aclAccess, c.list) })
			if got := stat(t, path).Mode & 0o7777; got != c.want {
				t.Errorf("%s: mode %o, want %o", name, got, c.want)
			}
			setACL(t, path, aclAccess, c.list)
			ok(t, os.Remove(path))
		}
	})
}
