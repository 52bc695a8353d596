//go:build linux

package mount

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/volume"
)

func TestErrorsBecomeErrnos(t *testing.T) {
	fs := newKernel(t).fileSystem
	corrupt := &cas.BlockError{Op: "get", CID: cas.Sum(cas.Raw, []byte("x")), Err: cas.ErrCorrupt}
	for _, c := range []struct {
		err    error
		want   syscall.Errno
		logged string // what the log must hold; empty: no record
	}{
		{namespace.ErrNotFound, syscall.ENOENT, ""},
		{namespace.ErrExist, syscall.EEXIST, ""},
		{namespace.ErrNotDir, syscall.ENOTDIR, ""},
		{namespace.ErrIsDir, syscall.EISDIR, ""},
		{namespace.ErrNotEmpty, syscall.ENOTEMPTY, ""},
		{namespace.ErrNameTooLong, syscall.ENAMETOOLONG, ""},
		{namespace.ErrInvalid, syscall.EINVAL, ""},
		{namespace.ErrLoop, syscall.EINVAL, ""},
		{namespace.ErrPerm, syscall.EPERM, ""},
		{namespace.ErrTooManyLinks, syscall.EMLINK, ""},
		{namespace.ErrNoAttr, syscall.ENODATA, ""},
		{namespace.ErrAttrTooLarge, syscall.E2BIG, ""},
		{namespace.ErrAttrSpace, syscall.ENOSPC, ""},
		{namespace.ErrNotSupported, syscall.EOPNOTSUPP, ""},
		{namespace.ErrAccess, syscall.EACCES, ""},
		{namespace.ErrTrimmed, syscall.ESTALE, ""},
		{namespace.ErrLocked, syscall.EAGAIN, ""},
		{volume.ErrTooBig, syscall.EFBIG, ""},
		{volume.ErrNoData, syscall.ENXIO, ""},
		{volume.ErrNotRegular, syscall.EINVAL, ""},
		{volume.ErrReserved, syscall.EPERM, ""},
		{volume.ErrWouldBlock, syscall.EAGAIN, ""},
		{volume.ErrInterrupted, syscall.EINTR, ""},
		{volume.ErrDeadlock, syscall.EDEADLK, ""},
		{volume.ErrTooManyLocks, syscall.ENOLCK, ""},
		{cas.ErrNoSpace, syscall.ENOSPC, ""},
		{fmt.Errorf("store a block: %w", &cas.BlockError{Op: "put", Err: cas.ErrNoSpace}), syscall.ENOSPC, ""},
		{context.DeadlineExceeded, syscall.ETIMEDOUT, ""},
		{fmt.Errorf("append: %w", syscall.ENOSPC), syscall.ENOSPC, ""},
		{syscall.EDQUOT, syscall.EDQUOT, ""},

		{fmt.Errorf("read: %w", corrupt), syscall.EIO, corrupt.CID.String()},
		{cas.ErrNotFound, syscall.EIO, "inode=77"},
		{namespace.ErrConflict, syscall.EIO, "name=file"},
		{fmt.Errorf("propose: %w", namespace.ErrSession), syscall.EIO, "session has ended"},
		{namespace.ErrStale, syscall.EIO, "proposed and answered before"},
		{fmt.Errorf("no majority: %w", context.DeadlineExceeded), syscall.ETIMEDOUT, ""},
		{namespace.ErrFailed, syscall.EIO, "op=lookup"},
		{volume.ErrClosed, syscall.EIO, "closed"},
		{context.Canceled, syscall.EIO, "canceled"}, // not by the caller
		// What the node's own files suffer is not what the caller did.
		{fmt.Errorf("open segment: %w", syscall.ENOENT), syscall.EIO, "open segment"},
		{syscall.EACCES, syscall.EIO, "permission denied"},
		{errors.New("something new"), syscall.EIO, "something new"},
	} {
		var log bytes.Buffer
		fs.log = slog.New(slog.NewTextHandler(&log, nil))
		if got := fs.fail("lookup", 77, "file", c.err); got != fuse.Status(c.want) {
			t.Errorf("%v is %v, want %v", c.err, got, c.want)
		}
		if logged := log.String(); (logged != "") != (c.logged != "") || !strings.Contains(logged, c.logged) {
			t.Errorf("%v is logged as %q, want %q in it", c.err, logged, c.logged)
		}
	}
	if got := fs.status("lookup", 77, "file", nil); got != fuse.OK {
		t.Errorf("no error is %v", got)
	}
}

func TestHandleNumbersAreUsedAgain(t *testing.T) {
	var table handles
	if table.get(0) != nil || table.get(1) != nil || table.get(math.MaxUint64) != nil || table.remove(5) != nil {
		t.Fatal("an empty table has files")
	}
	const n = 3*handleChunk + 5
	files := make([]volume.Handle, n)
	numbers := map[uint64]*volume.Handle{}
	for i := range files {
		fh := table.add(&files[i])
		if fh == 0 || numbers[fh] != nil {
			t.Fatalf("number %d given twice or not at all", fh)
		}
		numbers[fh] = &files[i]
	}
	removed := 0
	for fh, h := range numbers {
		if table.get(fh) != h {
			t.Fatalf("number %d stands for another file", fh)
		}
		if fh%3 == 0 {
			if table.remove(fh) != h || table.get(fh) != nil || table.remove(fh) != nil {
				t.Fatalf("number %d is not removed once", fh)
			}
			removed++
		}
	}
	for range removed {
		if fh := table.add(&files[0]); fh > n {
			t.Fatalf("number %d is new although others are free", fh)
		}
	}
	left := 0
	table.drain(func(*volume.Handle) { left++ })
	if left != n {
		t.Fatalf("drained %d files, want %d", left, n)
	}
	table.drain(func(*volume.Handle) { t.Error("drained twice") })
}

func TestTooManyHandlesAreRefused(t *testing.T) {
	var table handles
	h := new(volume.Handle)
	for range maxHandles {
		if table.add(h) == 0 {
			t.Fatal("refused too early")
		}
	}
	if fh := table.add(h); fh != 0 {
		t.Fatalf("number %d is beyond the limit", fh)
	}
	table.remove(1234)
	if fh := table.add(h); fh != 1234 {
		t.Fatalf("number %d, want the one that is free", fh)
	}
}

func TestHandleTableIsSafeForConcurrentUse(t *testing.T) {
	var table handles
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			h := new(volume.Handle)
			for range 2000 {
				fh := table.add(h)
				if table.get(fh) != h || table.remove(fh) != h {
					t.Error("a number stands for another's file")
					return
				}
			}
		})
	}
	workers.Wait()
	if table.used > 8 {
		t.Errorf("%d numbers for 8 files", table.used)
	}
}

func TestInodeIsForgottenWithTheLastLookup(t *testing.T) {
	var l lookups
	for range 3 {
		l.add(5)
	}
	l.add(5 + lookupShards)
	for _, c := range []struct {
		ino, n uint64
		gone   bool
	}{{5, 1, false}, {5, 2, true}, {5 + lookupShards, 7, true}, {99, 1, true}} {
		if got := l.forget(c.ino, c.n); got != c.gone {
			t.Errorf("forget %d of inode %d: gone is %v", c.n, c.ino, got)
		}
	}
	l.add(6)
	l.add(7)
	l.add(7)
	sum := uint64(0)
	l.drain(func(ino uint64) { sum += ino })
	if sum != 13 {
		t.Errorf("drained inodes add up to %d", sum)
	}
}

func TestTimesSurviveTheWire(t *testing.T) {
	for _, c := range []struct {
		ns   int64
		sec  uint64
		nsec uint32
	}{
		{0, 0, 0},
		{1_500_000_000_123_456_789, 1_500_000_000, 123_456_789},
		{-1, math.MaxUint64, 999_999_999},
		{-2_000_000_000, math.MaxUint64 - 1, 0},
	} {
		sec, nsec := splitTime(c.ns)
		if sec != c.sec || nsec != c.nsec {
			t.Errorf("%d ns is %d s and %d ns", c.ns, int64(sec), nsec)
		}
		if got := joinTime(sec, nsec); got != c.ns {
			t.Errorf("%d ns came back as %d", c.ns, got)
		}
	}
	far := time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC).Unix()
	if got := joinTime(uint64(far), 5); got != math.MaxInt64 {
		t.Errorf("the year 3000 is %d ns", got)
	}
	if got := joinTime(uint64(-far), 5); got != math.MinInt64 {
		t.Errorf("3000 years back is %d ns", got)
	}
}

const mountinfo = `22 1 0:21 / /proc rw,relatime shared:5 - proc proc rw
29 1 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
40 29 0:50 / /mnt/a rw,nosuid,nodev - fuse.cairn cairn rw,user_id=0
41 29 0:51 / /mnt/with\040blank\134 rw master:1 propagate_from:2 - fuse.sshfs x rw
42 40 0:52 / /mnt/a rw - tmpfs none rw
`

func TestTopmostMountIsFound(t *testing.T) {
	for _, c := range []struct {
		path string
		want mountInfo
		ok   bool
	}{
		{"/mnt/a", mountInfo{"0:52", "/mnt/a", "tmpfs"}, true},
		{`/mnt/with blank\`, mountInfo{"0:51", `/mnt/with blank\`, "fuse.sshfs"}, true},
		{"/mnt", mountInfo{}, false},
		{"/", mountInfo{"8:1", "/", "ext4"}, true},
	} {
		got, ok := findMount([]byte(mountinfo), c.path)
		if got != c.want || ok != c.ok {
			t.Errorf("%s: %+v, %v", c.path, got, ok)
		}
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add([]byte(mountinfo), "/mnt/a")
	f.Add([]byte("1 2 3 4 \\04 6 - \n - - -\\"), "\\04")
	f.Fuzz(func(t *testing.T, list []byte, path string) {
		if m, ok := findMount(list, path); ok && m.path != path {
			t.Errorf("found %q, asked for %q", m.path, path)
		}
	})
}

func TestFuseConf(t *testing.T) {
	for conf, want := range map[string]bool{
		"": false, "#user_allow_other\n": false, "mount_max = 10\n  user_allow_other \n": true, "user_allow_other": true,
	} {
		if got := allowsOther([]byte(conf)); got != want {
			t.Errorf("%q: %v", conf, got)
		}
	}
}
