//go:build linux

package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Files that are open on two nodes. What one reads through a descriptor that it has
// had open may lag behind what the other writes, but is never anything that was not
// written.

// Who follows a file that grows elsewhere reads what was appended, not the zeros that
// the kernel had for it behind the former end.
func TestWhoFollowsAFileThatGrowsElsewhereReadsNoZeros(t *testing.T) {
	names := 0
	for name, tell := range map[string]func(path string) error{
		"somebody looks at its attributes": func(path string) error {
			var st unix.Stat_t
			return unix.Stat(path, &st)
		},
		"somebody sets its times": func(path string) error {
			now := time.Now()
			return os.Chtimes(path, now, now)
		},
		"somebody gives it more names": func(path string) error {
			names++
			return os.Link(path, fmt.Sprint(path, names))
		},
	} {
		t.Run(name, func(t *testing.T) { testWhoFollows(t, tell) })
	}
}

// testWhoFollows has a file followed of which something tells the kernel the size.
func testWhoFollows(t *testing.T, tell func(path string) error) {
	_, a, b := newSharedCluster(t)
	write(t, a.path("log"), "start\n")
	const records = 2000
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		defer close(stop)
		f, err := os.OpenFile(a.path("log"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		for i := range records {
			if _, err := fmt.Fprintf(f, "record %d\n", i); err != nil {
				t.Error(err)
				return
			}
			if err := f.Sync(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := tell(b.path("log")); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	fd := open(t, b.path("log"), unix.O_RDONLY, 0)
	defer unix.Close(fd)
	var got []byte
	last := fmt.Appendf(nil, "record %d\n", records-1)
	buf := make([]byte, 64<<10)
	for start := time.Now(); !bytes.HasSuffix(got, last) && time.Since(start) < time.Minute; {
		n, err := unix.Pread(fd, buf, int64(len(got)))
		ok(t, err)
		if at := bytes.IndexByte(buf[:n], 0); at >= 0 {
			t.Errorf("a zero is read at %d", len(got)+at)
			break
		}
		got = append(got, buf[:n]...)
	}
	all.Wait()
	want := []byte("start\n")
	for i := range records {
		want = fmt.Appendf(want, "record %d\n", i)
	}
	if !t.Failed() && !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, want %d", len(got), len(want))
	}
}

// The kernel sends the bytes that were written, not the pages that it has of them, so
// what another node wrote into the same page since is not undone.
func TestTwoNodesThatWriteIntoOnePageKeepEachOthersBytes(t *testing.T) {
	c, a, b := newSharedCluster(t)
	const size, records = 3 * 4096, 300
	write(t, a.path("f"), string(make([]byte, size)))
	want := make([][]byte, len(c.nodes))
	var all sync.WaitGroup
	for i, n := range c.nodes {
		want[i] = make([]byte, size)
		all.Go(func() {
			f, err := os.OpenFile(n.path("f"), os.O_RDWR, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			got := make([]byte, size)
			for r := range records {
				// Every second byte triple is a node's own.
				at := (r*37%(size/6))*6 + i*3
				p := []byte{byte(i + 1), byte(r), byte(r >> 8)}
				copy(want[i][at:], p)
				_, err := f.WriteAt(p, int64(at))
				if err == nil && r%3 == 0 {
					err = f.Sync()
				}
				if err == nil {
					_, err = f.ReadAt(got, 0) // and the kernel has the pages
				}
				if err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(got[at:at+3], p) {
					t.Errorf("node %d reads %v at %d, where it wrote %v", i, got[at:at+3], at, p)
					return
				}
			}
		})
	}
	all.Wait()
	both := make([]byte, size)
	for i := range both {
		both[i] = want[i/3%2][i]
	}
	for _, n := range []*node{a, b} {
		wantContent(t, n.path("f"), string(both))
	}
}

// Who has written something reads it, whatever others read and write at the same time.
func TestANodeReadsWhatItHasWrittenWhileAnotherNodeWrites(t *testing.T) {
	_, a, b := newSharedCluster(t)
	write(t, a.path("f"), string(make([]byte, 4096)))
	const records = 5000
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		defer close(stop)
		f, err := os.OpenFile(b.path("f"), os.O_RDWR, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		for i := range records {
			_, err := f.WriteAt([]byte{byte(i)}, 4000)
			if err == nil {
				err = f.Sync()
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	f, err := os.OpenFile(a.path("f"), os.O_RDWR, 0)
	ok(t, err)
	defer f.Close()
	var other sync.WaitGroup
	other.Go(func() { // has pages read that were dropped
		p := make([]byte, 100)
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := f.ReadAt(p, 1000); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	got := make([]byte, 8)
	for i, going := 0, true; going; i++ {
		want := fmt.Appendf(nil, "%08d", i)
		_, err := f.WriteAt(want, 0)
		ok(t, err)
		_, err = f.ReadAt(got, 0)
		ok(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("read %s, wrote %s", got, want)
			break
		}
		select {
		case <-stop:
			going = false
		default:
		}
	}
	all.Wait()
	other.Wait()
}

// What another node has appended and this one has cut off does not come back with what is
// written behind it, also if the kernel did not know that the file had become longer.
func TestWhatWasCutOffDoesNotComeBack(t *testing.T) {
	_, a, b := newSharedCluster(t)
	write(t, a.path("f"), strings.Repeat("x", 100))
	f, err := os.OpenFile(b.path("f"), os.O_RDWR, 0)
	ok(t, err)
	defer f.Close()
	first := make([]byte, 10)
	_, err = f.ReadAt(first, 0)
	ok(t, err)
	other, err := os.OpenFile(a.path("f"), os.O_WRONLY|os.O_APPEND, 0)
	ok(t, err)
	_, err = other.WriteString(strings.Repeat("y", 100))
	ok(t, errors.Join(err, other.Close()))
	b.idle(t)
	_, err = f.ReadAt(first, 0) // the kernel has all of the page by that
	ok(t, err)
	ok(t, f.Truncate(100))
	_, err = f.WriteAt([]byte("z"), 150)
	ok(t, err)
	want := strings.Repeat("x", 100) + string(make([]byte, 50)) + "z"
	got := make([]byte, len(want))
	_, err = f.ReadAt(got, 0)
	ok(t, err)
	if string(got) != want {
		t.Errorf("read %q", got[90:])
	}
	ok(t, f.Close())
	wantContent(t, a.path("f"), want)
	wantContent(t, b.path("f"), want)
}
