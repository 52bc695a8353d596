//go:build linux

package mount

import (
	"bytes"
	"fmt"
	"os"
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
	all.Go(func() { // somebody looks at the file's attributes, by its name
		for {
			select {
			case <-stop:
				return
			default:
				var st unix.Stat_t
				if err := unix.Stat(b.path("log"), &st); err != nil {
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
