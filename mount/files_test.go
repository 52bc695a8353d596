//go:build linux

package mount

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What programs expect of files, each expectation checked on a mount and on the
// system's disk.

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

func TestSharedMappingIsWritten(t *testing.T) {
	path := filepath.Join(newMount(t), "file")
	write(t, path, strings.Repeat("a", 8192))
	_, finish := startChild(t, "map", path)
	want := strings.Repeat("a", 4094) + "MAPPED" + strings.Repeat("a", 4092)
	wantContent(t, path, want)
	ok(t, finish())
	wantContent(t, path, want)
}

// TestSignalsInterruptNothing sends signals to a thread while it works on files,
// with pauses in which it gets to work at all. The handler is the Go runtime's,
// which ignores them; any other handler would do.
func TestSignalsInterruptNothing(t *testing.T) {
	onMountAndDisk(t, func(t *testing.T, dir string) {
		thread := make(chan int)
		var done atomic.Bool
		finished := make(chan error)
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			thread <- unix.Gettid()
			finished <- workOnFiles(dir, 100)
			done.Store(true)
		}()
		tid := <-thread
		var storm sync.WaitGroup
		storm.Go(func() {
			for !done.Load() {
				unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
				time.Sleep(10 * time.Microsecond)
			}
		})
		err := <-finished
		storm.Wait()
		ok(t, err)
	})
}

// workOnFiles makes system calls that no layer repeats if they are interrupted.
// Reads are direct: those of the page cache never are.
func workOnFiles(dir string, rounds int) error {
	const size = 64 << 12 // enough to be stored as blocks
	p, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(p)
	for i := range p {
		p[i] = byte(i * i >> 10)
	}
	for i := range rounds {
		path := filepath.Join(dir, fmt.Sprint("file-", i))
		fd, err := unix.Open(path, unix.O_CREAT|unix.O_RDWR|unix.O_DIRECT, 0o644)
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		var st unix.Stat_t
		var failed error
		for _, step := range []struct {
			name string
			call func() error
		}{
			{"write", func() error { _, err := unix.Pwrite(fd, p, 0); return err }},
			{"fsync", func() error { return unix.Fsync(fd) }},
			{"read", func() error { _, err := unix.Pread(fd, p, 0); return err }},
			{"truncate", func() error { return unix.Ftruncate(fd, 10) }},
			{"stat", func() error { return unix.Fstat(fd, &st) }},
			{"setxattr", func() error { return unix.Fsetxattr(fd, "user.x", p[:10], 0) }},
			{"close", func() error { return unix.Close(fd) }},
			{"rename", func() error { return unix.Rename(path, path+"2") }},
			{"unlink", func() error { return unix.Unlink(path + "2") }},
		} {
			if err := step.call(); err != nil {
				failed = errors.Join(failed, fmt.Errorf("%s: %w", step.name, err))
			}
		}
		if failed != nil {
			return failed
		}
	}
	return nil
}
