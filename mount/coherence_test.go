//go:build linux

package mount

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/namespace"
)

// Two mounts of a shared volume. What a cached stat or listing shows may lag, and is
// waited for; what an open finds may not, and is asked for once.

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestNamesThatAnotherNodeChangesAreSeen(t *testing.T) {
	_, a, b := newSharedCluster(t)
	ok(t, os.Mkdir(a.path("d"), 0o755))
	write(t, a.path("d", "one"), "1")
	wantContent(t, b.path("d", "one"), "1")
	if exists(b.path("d", "two")) {
		t.Fatal("two exists")
	}

	ok(t, os.Rename(a.path("d", "one"), a.path("d", "two")))
	eventually(t, "renamed", func() bool { return exists(b.path("d", "two")) && !exists(b.path("d", "one")) })
	ok(t, os.Link(a.path("d", "two"), a.path("three")))
	eventually(t, "linked", func() bool { return exists(b.path("three")) && stat(t, b.path("d", "two")).Nlink == 2 })
	ok(t, os.Remove(a.path("d", "two")))
	eventually(t, "removed", func() bool { return !exists(b.path("d", "two")) && stat(t, b.path("three")).Nlink == 1 })
	ok(t, os.Remove(a.path("d")))
	eventually(t, "directory removed", func() bool { return !exists(b.path("d")) })
	ok(t, os.Symlink("three", a.path("d")))
	eventually(t, "directory replaced by a link", func() bool {
		target, err := os.Readlink(b.path("d"))
		return err == nil && target == "three"
	})
	ok(t, os.Remove(b.path("d"))) // and the other way round
	eventually(t, "link removed", func() bool { return !exists(a.path("d")) })
}

func TestAttributesThatAnotherNodeChangesAreSeen(t *testing.T) {
	_, a, b := newSharedCluster(t)
	write(t, a.path("f"), "12345")
	if st := stat(t, b.path("f")); st.Mode&0o777 != 0o644 || st.Size != 5 {
		t.Fatalf("mode %o size %d", st.Mode, st.Size)
	}
	ok(t, os.Chmod(a.path("f"), 0o600))
	eventually(t, "chmod", func() bool { return stat(t, b.path("f")).Mode&0o777 == 0o600 })
	ok(t, os.Truncate(a.path("f"), 2))
	eventually(t, "truncate", func() bool { return stat(t, b.path("f")).Size == 2 })
	wantContent(t, b.path("f"), "12")
	when := time.Unix(1_600_000_000, 5)
	ok(t, os.Chtimes(a.path("f"), when, when))
	eventually(t, "utimens", func() bool { return stat(t, b.path("f")).Mtim.Sec == when.Unix() })
}

func TestCachedListingsFollowOtherNodes(t *testing.T) {
	_, a, b := newSharedCluster(t)
	ok(t, os.Mkdir(a.path("d"), 0o755))
	want := ""
	for i := range 50 {
		if got := names(t, b.path("d")); got != want { // and the kernel keeps that
			eventually(t, "listing has "+want, func() bool { return names(t, b.path("d")) == want })
		}
		name := fmt.Sprintf("%03d", i)
		write(t, a.path("d", name), "")
		want = strings.TrimSpace(want + " " + name)
	}
	ok(t, os.RemoveAll(a.path("d", "007")))
	want = strings.Replace(want, "007 ", "", 1)
	eventually(t, "listing without 007", func() bool { return names(t, b.path("d")) == want })
}

// Rule 11: absent names are not cached.
func TestANameThatWasMissingIsFoundAtOnce(t *testing.T) {
	_, a, b := newSharedCluster(t)
	for i := range 100 {
		name := fmt.Sprint("new", i)
		if _, err := os.ReadFile(b.path(name)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		write(t, a.path(name), name)
		wantContent(t, b.path(name), name)
	}
}

func TestAnOpenFindsTheFileThatReplacedAnother(t *testing.T) {
	_, a, b := newSharedCluster(t)
	for i := range 200 {
		want := fmt.Sprint("version ", i)
		replace(t, a.path("f"), want)
		wantContent(t, b.path("f"), want)
	}
}

func TestANameThatIsReplacedAllTheTimeCanBeOpened(t *testing.T) {
	_, a, b := newSharedCluster(t)
	replace(t, a.path("f"), "000000")
	stop := make(chan struct{})
	var replacing sync.WaitGroup
	replacing.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			err := errors.Join(os.WriteFile(a.path("tmp"), fmt.Appendf(nil, "%06d", i), 0o644), os.Rename(a.path("tmp"), a.path("f")))
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer replacing.Wait()
	defer close(stop)
	last := ""
	for range 1000 {
		got, err := os.ReadFile(b.path("f"))
		ok(t, err)
		if len(got) != 6 || string(got) < last {
			t.Fatalf("%q after %q", got, last)
		}
		last = string(got)
	}
}

func TestADirectoryOnTheWayThatWasReplaced(t *testing.T) {
	_, a, b := newSharedCluster(t)
	for i := range 50 {
		if i > 0 {
			ok(t, os.Rename(a.path("x", "y"), a.path("x", fmt.Sprint("y", i))))
		}
		ok(t, os.MkdirAll(a.path("x", "y", "z"), 0o755))
		want := fmt.Sprint("in ", i)
		write(t, a.path("x", "y", "z", "f"), want)
		wantContent(t, b.path("x", "y", "z", "f"), want)
	}
}

func TestADirectoryThatMovesIsStillOnesOwn(t *testing.T) {
	_, a, b := newSharedCluster(t)
	ok(t, os.MkdirAll(a.path("x", "y"), 0o755))
	write(t, a.path("x", "y", "f"), "text")
	wantContent(t, b.path("x", "y", "f"), "text")
	dir := open(t, b.path("x", "y"), unix.O_DIRECTORY, 0)
	defer unix.Close(dir)
	for i := range 20 {
		ok(t, os.Rename(a.path("x"), a.path(fmt.Sprint("x", i))))
		fd, err := unix.Openat(dir, "f", unix.O_RDONLY, 0)
		ok(t, err)
		unix.Close(fd)
		ok(t, os.Rename(a.path(fmt.Sprint("x", i)), a.path("x")))
		wantContent(t, b.path("x", "y", "f"), "text")
	}
}

func TestAnOpenWaitsUntilTheKernelKnows(t *testing.T) {
	_, a, b := newSharedCluster(t)
	replace(t, a.path("f"), "old")
	b.idle(t)
	wantContent(t, b.path("f"), "old") // the kernel keeps the name

	// While something goes on in a directory, the kernel takes no notice of what
	// has changed there.
	b.gate.Lock()
	goOn := sync.OnceFunc(b.gate.Unlock)
	defer goOn() // nothing may be under way when the mount ends
	asked := b.asked.Load()
	var busy sync.WaitGroup
	busy.Go(func() { os.Mkdir(b.path("slow"), 0o755) })
	eventually(t, "mkdir under way", func() bool { return b.asked.Load() > asked })
	replace(t, a.path("f"), "new content")
	var got []byte
	var err error
	var opening sync.WaitGroup
	opening.Go(func() { got, err = os.ReadFile(b.path("f")) })
	eventually(t, "an open was told to look again", func() bool {
		c := b.mount.fs.coherent
		c.mu.Lock()
		defer c.mu.Unlock()
		return len(c.callers) > 0
	})
	goOn()
	opening.Wait()
	busy.Wait()
	ok(t, err)
	if string(got) != "new content" {
		t.Errorf("read %q", got)
	}
}

func TestPagesOfAFileThatAnotherNodeRewroteAreReadAgain(t *testing.T) {
	_, a, b := newSharedCluster(t)
	mapped := func() byte {
		f, err := os.Open(b.path("f"))
		ok(t, err)
		defer f.Close()
		p, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
		ok(t, err)
		defer unix.Munmap(p)
		return p[100]
	}
	for i := range 26 {
		want := strings.Repeat(string(rune('a'+i)), 8192+i)
		write(t, a.path("f"), want)
		if got := mapped(); got != want[0] {
			t.Fatalf("mapped %q, want %q", got, want[0])
		}
		wantContent(t, b.path("f"), want)
	}
}

func TestAFileThatIsOpenShowsWhatAnotherNodeCut(t *testing.T) {
	_, a, b := newSharedCluster(t)
	write(t, a.path("f"), "0123456789")
	fd := open(t, b.path("f"), unix.O_RDONLY, 0)
	defer unix.Close(fd)
	ok(t, os.Chmod(a.path("f"), 0o600))
	eventually(t, "fstat shows the mode", func() bool {
		var st unix.Stat_t
		ok(t, unix.Fstat(fd, &st))
		return st.Mode&0o777 == 0o600
	})
}

func TestAppendsOfTwoNodesAllSurvive(t *testing.T) {
	_, a, b := newSharedCluster(t)
	write(t, a.path("log"), "")
	const each = 50
	var appending sync.WaitGroup
	for i, n := range []*node{a, b} {
		appending.Go(func() {
			for j := range each {
				fd, err := unix.Open(n.path("log"), unix.O_RDWR|unix.O_APPEND|unix.O_CLOEXEC, 0)
				if err == nil {
					_, err = unix.Write(fd, fmt.Appendf(nil, "%d/%02d\n", i, j))
					err = errors.Join(err, unix.Close(fd))
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	appending.Wait()
	for _, n := range []*node{a, b} {
		got, err := os.ReadFile(n.path("log"))
		ok(t, err)
		lines := strings.SplitAfter(string(got), "\n")
		slices.Sort(lines)
		if lines = slices.Compact(lines[1:]); len(lines) != 2*each || len(got) != 5*2*each {
			t.Errorf("%d lines, %d bytes: %q", len(lines), len(got), got)
		}
	}
}

func TestUnderALockEveryNodeReadsWhatWasWrittenUnderItBefore(t *testing.T) {
	_, a, b := newSharedCluster(t)
	write(t, a.path("counter"), "0")
	const each = 40
	var counting sync.WaitGroup
	for _, n := range []*node{a, b} {
		fd := open(t, n.path("counter"), unix.O_RDWR, 0) // once, so that no open renews it
		defer unix.Close(fd)
		counting.Go(func() {
			for range each {
				if err := countUnderLock(fd); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	counting.Wait()
	wantContent(t, a.path("counter"), fmt.Sprint(2*each))
	wantContent(t, b.path("counter"), fmt.Sprint(2*each))
}

func countUnderLock(fd int) error {
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLKW, &lock); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	buf := make([]byte, 20)
	n, err := unix.Pread(fd, buf, 0)
	if err == nil {
		n, err = strconv.Atoi(string(buf[:n]))
	}
	if err == nil {
		_, err = unix.Pwrite(fd, fmt.Append(nil, n+1), 0)
	}
	lock.Type = unix.F_UNLCK
	return errors.Join(err, unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lock))
}

// Rule 12: an overflow tells of everything.
func TestMoreChangesThanAreKeptAreSeen(t *testing.T) {
	_, a, b := newSharedCluster(t)
	ok(t, os.MkdirAll(a.path("d", "below"), 0o755))
	for _, name := range []string{"gone", "moved", "replaced", "stays"} {
		write(t, a.path("d", name), "old "+name)
		wantContent(t, b.path("d", name), "old "+name)
	}
	names(t, b.path("d"))
	if exists(b.path("d", "new")) || exists(b.path("absent")) {
		t.Fatal("exists")
	}
	dir := open(t, b.path("d", "below"), unix.O_DIRECTORY, 0)
	defer unix.Close(dir)

	release := b.withhold()
	ok(t, os.Remove(a.path("d", "gone")))
	ok(t, os.Rename(a.path("d", "moved"), a.path("new")))
	replace(t, a.path("d", "replaced"), "new replaced")
	ok(t, os.Chmod(a.path("d", "stays"), 0o600))
	write(t, a.path("d", "new"), "new")
	more := make([]namespace.EntryChange, maxPending+1)
	for i := range more {
		more[i] = namespace.EntryChange{Parent: namespace.RootIno, Name: fmt.Sprint("n", i), Is: 1 << 40}
	}
	release(namespace.Change{Entries: more})

	wantContent(t, b.path("d", "replaced"), "new replaced")
	eventually(t, "everything is seen", func() bool {
		return names(t, b.path("d")) == "below new replaced stays" && !exists(b.path("d", "gone")) &&
			!exists(b.path("d", "moved")) && exists(b.path("new")) && stat(t, b.path("d", "stays")).Mode&0o777 == 0o600
	})
	wantContent(t, b.path("d", "new"), "new")
	// What is as it was is left alone: who works there still knows where he is.
	if target, err := os.Readlink(fmt.Sprint("/proc/self/fd/", dir)); err != nil || target != b.path("d", "below") {
		t.Errorf("a directory is at %q, %v", target, err)
	}
}

// Rule 12: an installed snapshot invalidates everything.
func TestEverythingMayHaveChanged(t *testing.T) {
	_, a, b := newSharedCluster(t)
	write(t, a.path("f"), "old")
	wantContent(t, b.path("f"), "old")
	release := b.withhold()
	ok(t, os.Chmod(a.path("f"), 0o600))
	replace(t, a.path("f"), "new")
	release(namespace.Change{All: true, Members: true}) // as after a snapshot
	wantContent(t, b.path("f"), "new")
	eventually(t, "mode", func() bool { return stat(t, b.path("f")).Mode&0o777 == 0o644 })
	eventually(t, "listing", func() bool { return names(t, b.path()) == "f" })
}

func TestAVolumeIsSharedWhileItIsMounted(t *testing.T) {
	c, a, b := newCluster(t)
	ok(t, os.MkdirAll(a.path("d", "e"), 0o755))
	write(t, a.path("d", "e", "f"), "old")
	write(t, a.path("d", "g"), "old")
	// All this is kept for an hour.
	wantContent(t, b.path("d", "e", "f"), "old")
	wantContent(t, b.path("d", "g"), "old")
	names(t, b.path("d"))
	if exists(b.path("d", "h")) {
		t.Fatal("exists")
	}
	c.share()
	exists(b.path()) // a request may come first, or an event
	replace(t, a.path("d", "g"), "new")
	wantContent(t, b.path("d", "g"), "new")
	write(t, a.path("d", "h"), "new")
	eventually(t, "a name that was missing", func() bool { return exists(b.path("d", "h")) })
	eventually(t, "listing", func() bool { return names(t, b.path("d")) == "e g h" })
	ok(t, os.Rename(a.path("d", "e"), a.path("d", "e2")))
	ok(t, os.Mkdir(a.path("d", "e"), 0o755))
	write(t, a.path("d", "e", "f"), "new")
	wantContent(t, b.path("d", "e", "f"), "new")
	ok(t, os.Chmod(a.path("d"), 0o700))
	eventually(t, "mode", func() bool { return stat(t, b.path("d")).Mode&0o777 == 0o700 })
}

// Rule 12: no notification waits for a page that the request which sends it holds. A
// descriptor that is older than the cluster, or appends only since fcntl(2) said so,
// writes through the page cache, and the kernel keeps a page that it has written in part
// until it is answered.
func TestAnAppendThroughThePageCacheIsAnswered(t *testing.T) {
	for name, flags := range map[string]int{"opened before the cluster": unix.O_APPEND, "appends later": 0} {
		t.Run(name, func(t *testing.T) {
			c, a, b := newCluster(t)
			write(t, a.path("log"), "one\n")
			fd, err := unix.Open(a.path("log"), unix.O_RDWR|unix.O_CLOEXEC|flags, 0)
			ok(t, err)
			c.share()
			if flags == 0 {
				ok(t, unix.Close(fd))
				fd, err = unix.Open(a.path("log"), unix.O_RDWR|unix.O_CLOEXEC, 0)
				ok(t, err)
				_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, unix.O_APPEND)
				ok(t, err)
			}
			other, err := os.OpenFile(b.path("log"), os.O_WRONLY|os.O_APPEND, 0)
			ok(t, err)
			_, err = other.WriteString("another node's\n")
			ok(t, errors.Join(err, other.Close()))
			wrote := make(chan error, 1)
			go func() {
				_, err := unix.Write(fd, []byte("two\n"))
				wrote <- errors.Join(err, unix.Close(fd))
			}()
			select {
			case err := <-wrote:
				ok(t, err)
			case <-time.After(20 * time.Second):
				m, _ := mountAt(a.mount.Mountpoint())
				ok(t, (&connection{device: m.device, path: m.path}).abort())
				t.Fatal("no answer")
			}
			want := "one\nanother node's\ntwo\n"
			wantContent(t, b.path("log"), want)
			eventually(t, "what was written", func() bool {
				got, err := os.ReadFile(a.path("log"))
				return err == nil && string(got) == want
			})
		})
	}
}

// What stat says of an open file is what the kernel goes by from then on: where the pages
// of a mapping end, and where pwritev2 with RWF_APPEND writes, which the node does not see.
func TestTheKernelTakesTheSizeThatItTells(t *testing.T) {
	_, a, b := newSharedCluster(t)
	write(t, a.path("f"), "12345")
	f, err := os.OpenFile(a.path("f"), os.O_RDWR, 0)
	ok(t, err)
	defer f.Close()
	other, err := os.OpenFile(b.path("f"), os.O_WRONLY|os.O_APPEND, 0)
	ok(t, err)
	_, err = other.WriteString(" of b")
	ok(t, err)
	ok(t, other.Close())
	a.idle(t)
	if size := stat(t, a.path("f")).Size; size != 10 {
		t.Fatalf("size %d", size)
	}
	_, err = unix.Pwritev2(int(f.Fd()), [][]byte{[]byte(" of a")}, 0, unix.RWF_APPEND)
	ok(t, err)
	ok(t, f.Close())
	wantContent(t, b.path("f"), "12345 of b of a")
}
