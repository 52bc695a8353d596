//go:build linux

package posix

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// check is what a rule works with: a test, a directory of its own, and the
// traits of the file system it is in.
type check struct {
	testing.TB
	dir    string
	traits Traits
	fds    map[int]bool // to be closed at the end
}

// ok ends the rule if err is not nil.
func (c *check) ok(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

// want fails the rule unless err is the errno want.
func (c *check) want(want syscall.Errno, err error) {
	c.Helper()
	var got syscall.Errno
	if err == nil {
		c.Errorf("succeeded, want %s", unix.ErrnoName(want))
	} else if !errors.As(err, &got) || got != want {
		c.Errorf("error is %s (%v), want %s", unix.ErrnoName(got), err, unix.ErrnoName(want))
	}
}

// equal fails the rule unless got is want.
func equal[T comparable](c *check, what string, got, want T) {
	c.Helper()
	if got != want {
		c.Errorf("%s is %v, want %v", what, got, want)
	}
}

// path is a path in the directory of the rule.
func (c *check) path(names ...string) string {
	return filepath.Join(append([]string{c.dir}, names...)...)
}

// file makes a file and returns its path.
func (c *check) file(name, content string) string {
	c.Helper()
	path := c.path(name)
	c.ok(os.WriteFile(path, []byte(content), 0o644))
	return path
}

// directory makes a directory and returns its path.
func (c *check) directory(names ...string) string {
	c.Helper()
	path := c.path(names...)
	c.ok(unix.Mkdir(path, 0o755))
	return path
}

// symlink makes a symbolic link and returns its path.
func (c *check) symlink(target, name string) string {
	c.Helper()
	path := c.path(name)
	c.ok(unix.Symlink(target, path))
	return path
}

// fifo makes a named pipe and returns its path.
func (c *check) fifo(name string) string {
	c.Helper()
	path := c.path(name)
	c.ok(unix.Mkfifo(path, 0o644))
	return path
}

// open opens a path until the end of the rule. Files it creates have mode 0644.
func (c *check) open(path string, flags int) int {
	c.Helper()
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	if err != nil {
		c.Fatalf("open %s: %v", path, err)
	}
	c.closes(fd)
	return fd
}

// closes has fd closed at the end of the rule, unless close has closed it.
func (c *check) closes(fd int) {
	if c.fds == nil {
		c.fds = make(map[int]bool)
		c.Cleanup(func() {
			for fd := range c.fds {
				unix.Close(fd)
			}
		})
	}
	c.fds[fd] = true
}

// close closes what open has opened.
func (c *check) close(fd int) {
	c.Helper()
	delete(c.fds, fd)
	c.ok(unix.Close(fd))
}

// openErr is the error of open(2).
func openErr(path string, flags int) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0o644)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// stat is lstat(2).
func (c *check) stat(path string) unix.Stat_t {
	c.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		c.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

// fstat is fstat(2).
func (c *check) fstat(fd int) unix.Stat_t {
	c.Helper()
	var st unix.Stat_t
	c.ok(unix.Fstat(fd, &st))
	return st
}

// mode is the permission bits of a path.
func (c *check) mode(path string) uint32 {
	c.Helper()
	return c.stat(path).Mode & 0o7777
}

// statErr is the error of lstat(2).
func statErr(path string) error {
	var st unix.Stat_t
	return unix.Lstat(path, &st)
}

// holds fails the rule unless the file at path has that content.
func (c *check) holds(path, want string) {
	c.Helper()
	got, err := os.ReadFile(path)
	c.ok(err)
	c.same(path, string(got), want)
}

// same fails the rule unless two contents are the same.
func (c *check) same(what, got, want string) {
	c.Helper()
	switch {
	case got == want:
	case len(got)+len(want) < 200:
		c.Errorf("%s holds %q, want %q", what, got, want)
	default:
		at := 0
		for at < len(got) && at < len(want) && got[at] == want[at] {
			at++
		}
		c.Errorf("%s holds %d bytes, want %d, and they differ at %d", what, len(got), len(want), at)
	}
}

// write is pwrite(2) of all of content.
func (c *check) write(fd int, content string, at int64) {
	c.Helper()
	n, err := unix.Pwrite(fd, []byte(content), at)
	c.ok(err)
	equal(c, "bytes written", n, len(content))
}

// read is pread(2) of at most n bytes.
func (c *check) read(fd int, n int, at int64) string {
	c.Helper()
	p := make([]byte, n)
	n, err := unix.Pread(fd, p, at)
	c.ok(err)
	return string(p[:n])
}

// zeros is n zero bytes.
func zeros(n int) string { return strings.Repeat("\x00", n) }

// user is a user who has no rights but those that files give him.
type user struct {
	uid, gid int
	groups   []int
}

// Users of the rules. Their numbers need no names.
func alice() user { return user{uid: 54001, gid: 54001} }
func bob() user   { return user{uid: 54002, gid: 54002} }

// as runs fn with the rights of u in c's directory: fn uses relative paths, since
// u need not have the right to search what is above.
func (c *check) as(u user, fn func()) {
	c.Helper()
	c.apart(0, func() {
		groups := []uint32{0: uint32(u.gid)}
		for _, g := range u.groups {
			groups = append(groups, uint32(g))
		}
		// These are of the thread alone, unlike the functions of the library.
		if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); errno != 0 {
			c.Fatal(errno)
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(u.gid), uintptr(u.gid), uintptr(u.gid)); errno != 0 {
			c.Fatal(errno)
		}
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(u.uid), uintptr(u.uid), uintptr(u.uid)); errno != 0 {
			c.Fatal(errno)
		}
		fn()
	})
}

// apart runs fn in c's directory on a thread whose working directory and umask,
// which is 0, are its own, and whatever else the CLONE_ flags of unshare(2) say.
func (c *check) apart(flags int, fn func()) {
	c.Helper()
	onThread(func() {
		c.ok(unix.Unshare(unix.CLONE_FS | flags))
		c.ok(unix.Chdir(c.dir))
		defer unix.Chdir("/")
		unix.Umask(0)
		fn()
	})
	if c.Failed() {
		c.FailNow()
	}
}

// onThread runs fn on a thread that ends with it.
func onThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread of a process ends with the process only.
			onThread(fn)
			runtime.UnlockOSThread()
			return
		}
		fn()
	}()
	<-done
}

// later returns when the clock of the file system is past t.
func (c *check) later(t unix.Timespec) {
	c.Helper()
	clock := c.dir + ".clock"
	c.ok(os.WriteFile(clock, nil, 0o644))
	defer os.Remove(clock)
	for deadline := time.Now().Add(10 * time.Second); ; {
		c.ok(unix.UtimesNanoAt(unix.AT_FDCWD, clock, nil, 0))
		if st := c.stat(clock); st.Ctim.Nano() > t.Nano() {
			return
		}
		if time.Now().After(deadline) {
			c.Fatal("the clock of the file system stands still")
		}
	}
}

// change is what an operation does to the times of a path: of the letters a, m
// and c those whose times become later. A time of m and c that it does not name
// stays as it is.
type change struct{ path, times string }

// changes runs op and checks that it changes times as it should.
func (c *check) changes(op func(), want ...change) {
	c.Helper()
	before := make([]unix.Stat_t, len(want))
	last := unix.Timespec{} // of the times that are not set far ahead
	for i, w := range want {
		before[i] = c.stat(w.path)
		for _, t := range []unix.Timespec{before[i].Atim, before[i].Mtim, before[i].Ctim} {
			if t.Nano() > last.Nano() && t.Sec < time.Now().Unix()+10 {
				last = t
			}
		}
	}
	c.later(last)
	op()
	for i, w := range want {
		after := c.stat(w.path)
		for _, t := range []struct {
			name          string
			before, after unix.Timespec
		}{
			{"atime", before[i].Atim, after.Atim}, {"mtime", before[i].Mtim, after.Mtim}, {"ctime", before[i].Ctim, after.Ctim},
		} {
			named := strings.Contains(w.times, t.name[:1])
			switch {
			case named && t.after.Nano() <= t.before.Nano():
				c.Errorf("%s of %s was %v and is %v, want it later", t.name, filepath.Base(w.path), t.before, t.after)
			case !named && t.name != "atime" && t.after != t.before:
				c.Errorf("%s of %s was %v and is %v, want it unchanged", t.name, filepath.Base(w.path), t.before, t.after)
			}
		}
	}
}
