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
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// What programs expect of directories and names, each expectation checked on a
// mount and on the system's disk.

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
