//go:build linux

package mount

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What programs expect of a file system, each expectation checked on a mount and
// on the system's disk.

func TestWrittenBytesAreRead(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "file")
		write(t, path, "hello")
		wantContent(t, path, "hello")
		write(t, path, "bye") // O_TRUNC
		wantContent(t, path, "bye")
		if st := stat(t, path); st.Size != 3 || st.Nlink != 1 || st.Mode != unix.S_IFREG|0o644 || st.Blocks == 0 {
			t.Fatalf("stat: %+v", st)
		}
	})
}

func TestOpenExclusiveCreatesOnlyOnce(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "file")
		flags := unix.O_CREAT | unix.O_EXCL | unix.O_RDWR
		ok(t, unix.Close(open(t, path, flags, 0o600)))
		_, err := unix.Open(path, flags, 0o600)
		wantErr(t, err, unix.EEXIST)
		_, err = unix.Open(filepath.Join(dir, "none"), unix.O_RDWR, 0)
		wantErr(t, err, unix.ENOENT)
	})
}

func TestAppendGoesToTheEnd(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "log")
		a := open(t, path, unix.O_CREAT|unix.O_WRONLY|unix.O_APPEND, 0o644)
		defer unix.Close(a)
		b := open(t, path, unix.O_WRONLY|unix.O_APPEND, 0)
		defer unix.Close(b)
		var want strings.Builder
		for i := range 50 {
			line := fmt.Sprintf("line %d\n", i)
			want.WriteString(line)
			_, err := unix.Write([]int{a, b}[i%2], []byte(line))
			ok(t, err)
		}
		wantContent(t, path, want.String())
	})
}

func TestTruncatedAndRegrownFileReadsZeros(t *testing.T) {
	for _, size := range []int64{100, 5000, 3 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			onMountAndDisk(t, func(t *testing.T, dir string) {
				path := filepath.Join(dir, "file")
				content := bytes.Repeat([]byte("x"), int(size))
				ok(t, os.WriteFile(path, content, 0o644))
				ok(t, os.Truncate(path, size/2))
				wantContent(t, path, string(content[:size/2]))
				ok(t, os.Truncate(path, size))
				want := slices.Concat(content[:size/2], make([]byte, size-size/2))
				wantContent(t, path, string(want))

				f, err := os.OpenFile(path, os.O_RDWR, 0)
				ok(t, err)
				defer f.Close()
				_, err = f.WriteAt([]byte("tail"), size+10)
				ok(t, err)
				ok(t, f.Truncate(size+12))
				ok(t, f.Truncate(size+20))
				want = slices.Concat(want, make([]byte, 10), []byte("ta"), make([]byte, 8))
				wantContent(t, path, string(want))
				ok(t, f.Truncate(0))
				wantContent(t, path, "")
			})
		})
	}
}

func TestHolesReadZeros(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "sparse")
		f, err := os.Create(path)
		ok(t, err)
		defer f.Close()
		const far = 5<<30 + 7
		for _, off := range []int64{far, 1 << 20, 3} {
			_, err := f.WriteAt([]byte("here"), off)
			ok(t, err)
		}
		if st := stat(t, path); st.Size != far+4 {
			t.Fatalf("size %d, want %d", st.Size, int64(far+4))
		}
		for _, c := range []struct {
			off  int64
			want string
		}{{0, "\x00\x00\x00here\x00"}, {1<<20 - 2, "\x00\x00here\x00\x00"}, {3 << 30, "\x00\x00\x00\x00"}, {far - 2, "\x00\x00here"}} {
			p := make([]byte, len(c.want))
			_, err := f.ReadAt(p, c.off)
			ok(t, err)
			if string(p) != c.want {
				t.Errorf("at %d: %q, want %q", c.off, p, c.want)
			}
		}
		_, err = f.ReadAt(make([]byte, 1), far+4)
		wantErr(t, err, io.EOF)
	})
}

func TestHandlesSeeEachOthersWrites(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "file")
		a := open(t, path, unix.O_CREAT|unix.O_RDWR, 0o644)
		defer unix.Close(a)
		b := open(t, path, unix.O_RDWR, 0)
		defer unix.Close(b)
		p := make([]byte, 16)
		for i := range 20 {
			from, to := a, b
			if i%2 == 1 {
				from, to = b, a
			}
			text := fmt.Sprintf("write number %3d", i)
			_, err := unix.Pwrite(from, []byte(text), int64(i*5000))
			ok(t, err)
			_, err = unix.Pread(to, p, int64(i*5000))
			ok(t, err)
			if string(p) != text {
				t.Fatalf("read %q, want %q", p, text)
			}
		}
		ok(t, unix.Ftruncate(a, 3))
		var st unix.Stat_t
		ok(t, unix.Fstat(b, &st))
		if st.Size != 3 {
			t.Fatalf("the other handle has size %d, want 3", st.Size)
		}
	})
}

func TestUnlinkedFileLivesWhileOpen(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "file")
		write(t, path, "before")
		fd := open(t, path, unix.O_RDWR, 0)
		ok(t, unix.Unlink(path))
		_, err := os.Lstat(path)
		wantErr(t, err, os.ErrNotExist)
		if got := names(t, dir); got != "" {
			t.Fatalf("directory holds %q", got)
		}
		_, err = unix.Pwrite(fd, []byte("after!"), 6)
		ok(t, err)
		p := make([]byte, 20)
		n, err := unix.Pread(fd, p, 0)
		ok(t, err)
		if string(p[:n]) != "beforeafter!" {
			t.Fatalf("read %q", p[:n])
		}
		ok(t, unix.Fsync(fd))
		ok(t, unix.Ftruncate(fd, 2))
		ok(t, unix.Fchmod(fd, 0o600))
		var st unix.Stat_t
		ok(t, unix.Fstat(fd, &st))
		if st.Nlink != 0 || st.Size != 2 || st.Mode&0o777 != 0o600 {
			t.Fatalf("stat: %+v", st)
		}
		write(t, path, "new")
		wantContent(t, path, "new")
		ok(t, unix.Close(fd))
		wantContent(t, path, "new")
	})
}

func TestRenameReplacesWhatIsThere(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		a, b, sub := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "sub")
		write(t, a, "of a")
		write(t, b, "of b")
		was := stat(t, a)
		ok(t, os.Rename(a, b))
		wantContent(t, b, "of a")
		if stat(t, b).Ino != was.Ino {
			t.Fatal("rename changed the inode")
		}
		wantErr(t, unix.Rename(a, b), unix.ENOENT)

		ok(t, os.Mkdir(sub, 0o755))
		ok(t, os.Rename(b, filepath.Join(sub, "b")))
		wantErr(t, unix.Rename(filepath.Join(sub, "b"), sub), unix.ENOTEMPTY)
		wantErr(t, unix.Rename(sub, filepath.Join(sub, "b")), unix.EINVAL)
		wantErr(t, unix.Rename(sub, filepath.Join(sub, "below")), unix.EINVAL)

		other := filepath.Join(dir, "other")
		ok(t, os.MkdirAll(other, 0o755))
		wantErr(t, unix.Rename(other, sub), unix.ENOTEMPTY)
		ok(t, unix.Rename(sub, other)) // an empty directory is replaced
		if got := names(t, dir); got != "other" {
			t.Fatalf("directory holds %q", got)
		}
		wantContent(t, filepath.Join(other, "b"), "of a")
	})
}

func TestRenameFlags(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		a, b, d := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "d")
		write(t, a, "of a")
		write(t, b, "of b")
		ok(t, os.Mkdir(d, 0o755))
		write(t, filepath.Join(d, "in"), "below d")
		rename := func(from, to string, flags uint) error {
			return unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags)
		}
		wantErr(t, rename(a, b, unix.RENAME_NOREPLACE), unix.EEXIST)
		ok(t, rename(a, b, unix.RENAME_EXCHANGE))
		wantContent(t, a, "of b")
		wantContent(t, b, "of a")
		ok(t, rename(a, d, unix.RENAME_EXCHANGE))
		wantContent(t, d, "of b")
		wantContent(t, filepath.Join(a, "in"), "below d")
		wantErr(t, rename(a, filepath.Join(dir, "none"), unix.RENAME_EXCHANGE), unix.ENOENT)
		ok(t, rename(b, filepath.Join(dir, "c"), unix.RENAME_NOREPLACE))
		if got := names(t, dir); got != "a c d" {
			t.Fatalf("directory holds %q", got)
		}
	})
}

func TestLinksShareAnInode(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		write(t, a, "one")
		ok(t, os.Link(a, b))
		if sa, sb := stat(t, a), stat(t, b); sa.Ino != sb.Ino || sa.Nlink != 2 || sb.Nlink != 2 {
			t.Fatalf("stat: %+v and %+v", sa, sb)
		}
		write(t, b, "two")
		wantContent(t, a, "two")
		ok(t, os.Remove(a))
		if st := stat(t, b); st.Nlink != 1 {
			t.Fatalf("%d links, want 1", st.Nlink)
		}
		wantContent(t, b, "two")
		wantErr(t, os.Link(b, b), unix.EEXIST)
		ok(t, os.Mkdir(filepath.Join(dir, "d"), 0o755))
		wantErr(t, os.Link(filepath.Join(dir, "d"), filepath.Join(dir, "e")), unix.EPERM)
	})
}

func TestSymlinks(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "link")
		write(t, filepath.Join(dir, "file"), "behind the link")
		ok(t, os.Symlink("file", path))
		target, err := os.Readlink(path)
		ok(t, err)
		if st := stat(t, path); target != "file" || st.Mode != unix.S_IFLNK|0o777 || st.Size != 4 {
			t.Fatalf("link to %q: %+v", target, st)
		}
		wantContent(t, path, "behind the link")
		long := strings.Repeat("x/", 2000)
		ok(t, os.Symlink(long, filepath.Join(dir, "long")))
		target, err = os.Readlink(filepath.Join(dir, "long"))
		ok(t, err)
		if target != long {
			t.Fatalf("long target came back as %d bytes", len(target))
		}
	})
}

func TestDirectoriesCountTheirSubdirectories(t *testing.T) {
	dir := newMount(t) // not all file systems on disk count
	d := filepath.Join(dir, "d")
	ok(t, os.Mkdir(d, 0o755))
	for i := range 3 {
		ok(t, os.Mkdir(filepath.Join(d, fmt.Sprint(i)), 0o755))
	}
	if st := stat(t, d); st.Nlink != 5 {
		t.Fatalf("%d links, want 5", st.Nlink)
	}
	ok(t, os.Rename(filepath.Join(d, "0"), filepath.Join(dir, "0")))
	ok(t, os.Remove(filepath.Join(d, "1")))
	if st := stat(t, d); st.Nlink != 3 {
		t.Fatalf("%d links, want 3", st.Nlink)
	}
}

func TestRmdirWantsAnEmptyDirectory(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		d := filepath.Join(dir, "d")
		ok(t, unix.Mkdir(d, 0o755))
		wantErr(t, unix.Mkdir(d, 0o755), unix.EEXIST)
		write(t, filepath.Join(d, "f"), "")
		wantErr(t, unix.Rmdir(d), unix.ENOTEMPTY)
		wantErr(t, unix.Unlink(d), unix.EISDIR)
		wantErr(t, unix.Rmdir(filepath.Join(d, "f")), unix.ENOTDIR)
		ok(t, unix.Unlink(filepath.Join(d, "f")))
		fd := open(t, d, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		defer unix.Close(fd)
		ok(t, unix.Rmdir(d))
		var st unix.Stat_t
		ok(t, unix.Fstat(fd, &st))
		if st.Nlink != 0 {
			t.Fatalf("removed directory has %d links", st.Nlink)
		}
		_, err := unix.Openat(fd, "f", unix.O_CREAT|unix.O_RDWR, 0o644)
		wantErr(t, err, unix.ENOENT)
	})
}

func TestDotAndDotDotAreListedFirst(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		ok(t, os.MkdirAll(filepath.Join(dir, "d", "sub"), 0o755))
		d := filepath.Join(dir, "d")
		got := map[string]uint64{}
		for _, e := range list(t, d, 4096) {
			got[e.name] = e.ino
		}
		want := map[string]uint64{".": stat(t, d).Ino, "..": stat(t, dir).Ino, "sub": stat(t, filepath.Join(d, "sub")).Ino}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("listed %v, want %v", got, want)
		}
	})
}

func TestLargeDirectoryIsListedWhole(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		const n = 10_000 / slowdown
		for i := range n {
			ok(t, unix.Mknod(filepath.Join(dir, fmt.Sprintf("file-%05d", i)), unix.S_IFREG|0o644, 0))
		}
		for _, pass := range []string{"first", "second"} { // the second from the kernel's cache
			seen := map[string]int{}
			for _, e := range list(t, dir, 32<<10) {
				seen[e.name]++
			}
			if len(seen) != n+2 {
				t.Fatalf("%s listing has %d names, want %d", pass, len(seen), n+2)
			}
			for name, times := range seen {
				if times != 1 {
					t.Fatalf("%s listing has %s %d times", pass, name, times)
				}
			}
		}
		// Every other file goes while the directory is being read, some of
		// them read already, some not.
		fd := open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		defer unix.Close(fd)
		seen := map[string]int{}
		next := 0
		for round := 0; ; round++ {
			page := readPage(t, fd, 4096)
			if len(page) == 0 {
				break
			}
			for _, e := range page {
				seen[e.name]++
			}
			for range 100 {
				if i := next * 7919 % n; next < n && i%2 == 0 {
					ok(t, unix.Unlink(filepath.Join(dir, fmt.Sprintf("file-%05d", i))))
				}
				next++
			}
		}
		for i := 1; i < n; i += 2 {
			if name := fmt.Sprintf("file-%05d", i); seen[name] != 1 {
				t.Fatalf("%s, which was there all the time, was listed %d times", name, seen[name])
			}
		}
		for name, times := range seen {
			if times > 1 {
				t.Fatalf("%s was listed %d times", name, times)
			}
		}
	})
}

func TestListingIsNewAfterRewind(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		write(t, filepath.Join(dir, "a"), "")
		fd := open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		defer unix.Close(fd)
		for _, add := range []string{"b", "c", "d"} {
			for len(readPage(t, fd, 4096)) > 0 {
			}
			write(t, filepath.Join(dir, add), "")
			_, err := unix.Seek(fd, 0, io.SeekStart)
			ok(t, err)
			found := false
			for _, e := range readPage(t, fd, 4096) {
				found = found || e.name == add
			}
			if !found {
				t.Fatalf("%s is missing", add)
			}
			_, err = unix.Seek(fd, 0, io.SeekStart)
			ok(t, err)
		}
	})
}

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

func TestSyncedAndSyncWritesSucceed(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		path := filepath.Join(dir, "file")
		for _, flags := range []int{0, unix.O_SYNC, unix.O_DSYNC, unix.O_DIRECT | unix.O_DSYNC} {
			fd := open(t, path, unix.O_CREAT|unix.O_RDWR|flags, 0o644)
			p, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			ok(t, err)
			copy(p, fmt.Sprint(flags))
			_, err = unix.Pwrite(fd, p, 0)
			ok(t, err)
			ok(t, unix.Fsync(fd))
			ok(t, unix.Fdatasync(fd))
			ok(t, unix.Close(fd))
			wantContent(t, path, string(p))
			ok(t, unix.Munmap(p))
		}
		fd := open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		defer unix.Close(fd)
		ok(t, unix.Fsync(fd))
	})
}

func TestBigFileIsCopiedRight(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		const size = 64 << 20 / slowdown
		content := make([]byte, size)
		random := rand.NewChaCha8([32]byte{1})
		random.Read(content)
		a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
		ok(t, os.WriteFile(a, content, 0o644))
		from, err := os.Open(a)
		ok(t, err)
		defer from.Close()
		to, err := os.Create(b)
		ok(t, err)
		n, err := io.Copy(to, from) // copy_file_range(2) if it can
		ok(t, err)
		ok(t, to.Close())
		if n != size {
			t.Fatalf("copied %d bytes", n)
		}
		wantContent(t, b, string(content))
		// The same again without the kernel's pages.
		f, err := os.OpenFile(b, os.O_RDONLY|unix.O_DIRECT, 0)
		ok(t, err)
		defer f.Close()
		p, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		ok(t, err)
		defer unix.Munmap(p)
		_, err = io.ReadFull(f, p)
		ok(t, err)
		if !bytes.Equal(p, content) {
			t.Fatal("direct read differs")
		}
	})
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
	onMountAndDisk(t, func(t *testing.T, dir string) {
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
	})
}

func TestNamesAreBytes(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		for _, name := range []string{"latin-1 \xe4", "\xff\xfe", "new\nline", "ü", ".hidden", "…", strings.Repeat("n", 255)} {
			path := filepath.Join(dir, name)
			write(t, path, name)
			wantContent(t, path, name)
			if got := names(t, dir); got != name {
				t.Fatalf("listed %q, want %q", got, name)
			}
			ok(t, os.Rename(path, path[:len(path)-1]))
			ok(t, os.Remove(path[:len(path)-1]))
		}
		_, err := os.Lstat(filepath.Join(dir, strings.Repeat("n", 256)))
		wantErr(t, err, unix.ENAMETOOLONG)
		wantErr(t, unix.Mkdir(filepath.Join(dir, strings.Repeat("n", 256)), 0o755), unix.ENAMETOOLONG)
		ok(t, unix.Symlink("latin-1 \xe4", filepath.Join(dir, "link")))
		target, err := os.Readlink(filepath.Join(dir, "link"))
		ok(t, err)
		if target != "latin-1 \xe4" {
			t.Fatalf("target %q", target)
		}
	})
}

func TestConcurrentChangesInOneDirectory(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		var workers sync.WaitGroup
		for w := range 8 {
			workers.Go(func() {
				random := rand.New(rand.NewPCG(1, uint64(w)))
				for i := range 60 {
					name := filepath.Join(dir, fmt.Sprintf("%d-%d", w, i))
					content := bytes.Repeat([]byte{byte(w)}, random.IntN(20_000))
					err := os.WriteFile(name, content, 0o644)
					if err == nil {
						err = os.Rename(name, name+"-moved")
					}
					if err == nil {
						var got []byte
						if got, err = os.ReadFile(name + "-moved"); err == nil && !bytes.Equal(got, content) {
							err = fmt.Errorf("%s differs", name)
						}
					}
					if err == nil && i%2 == 0 {
						err = os.Remove(name + "-moved")
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		workers.Wait()
		if got := len(strings.Fields(names(t, dir))); got != 8*30 {
			t.Fatalf("%d files are left, want %d", got, 8*30)
		}
	})
}

// entry is one name of a raw directory listing.
type entry struct {
	name string
	ino  uint64
}

// readPage is one getdents64(2).
func readPage(t testing.TB, fd, size int) []entry {
	t.Helper()
	p := make([]byte, size)
	n, err := unix.Getdents(fd, p)
	ok(t, err)
	var page []entry
	for p = p[:n]; len(p) > 0; {
		// struct linux_dirent64: ino, offset, length of the record, type, name, NUL
		ino := binary.NativeEndian.Uint64(p)
		length := int(p[16]) | int(p[17])<<8
		name, _, _ := bytes.Cut(p[19:length], []byte{0})
		page = append(page, entry{string(name), ino})
		p = p[length:]
	}
	return page
}

// list reads a directory by pages of the given size.
func list(t testing.TB, dir string, size int) []entry {
	t.Helper()
	fd := open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	defer unix.Close(fd)
	var all []entry
	for {
		page := readPage(t, fd, size)
		if len(page) == 0 {
			return all
		}
		all = append(all, page...)
	}
}
