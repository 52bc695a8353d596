package journal

import (
	"errors"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// fullFS has no space to set aside while full is set.
type fullFS struct {
	vfs.FS
	full atomic.Bool
}

func (fs *fullFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(name, c, opts...)
	return fullFile{f, fs}, err
}

type fullFile struct {
	vfs.File
	fs *fullFS
}

func (f fullFile) Preallocate(offset, length int64) error {
	if f.fs.full.Load() {
		return syscall.ENOSPC
	}
	return f.File.Preallocate(offset, length)
}

// TestWhatIsAcceptedHasItsPlaceOnTheDisk fills the disk while records are only in
// memory: those that were accepted are written all the same, others are refused.
func TestWhatIsAcceptedHasItsPlaceOnTheDisk(t *testing.T) {
	fs := &fullFS{FS: vfs.NewMem()}
	o := Options{FS: fs, Dir: "journal", FileSize: minRoom, FlushAfter: -1}
	open := func() (*Journal, int) {
		t.Helper()
		j, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		if err := j.Replay(0, 0, func(Record) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
		return j, n
	}
	j, _ := open()
	fs.full.Store(true)
	payload := make([]byte, 10_000)
	accepted := 0
	for {
		if _, _, err := j.Append(KindCommand, 0, payload); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			break
		}
		accepted++
	}
	if size := accepted * (headerSize + len(payload)); size > minRoom || size < minRoom-2*len(payload) {
		t.Errorf("%d bytes were accepted into %d", size, minRoom)
	}
	if err := j.Close(); err != nil {
		t.Errorf("close on a full disk: %v", err)
	}

	// A full disk does not keep the journal from being read.
	j, n := open()
	if n != accepted {
		t.Errorf("%d records of %d are there", n, accepted)
	}
	if _, _, err := j.Append(KindCommand, 0, payload); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("append to a full disk: %v", err)
	}
	fs.full.Store(false)
	if _, _, err := j.Append(KindCommand, 0, payload); err != nil {
		t.Errorf("append when there is space again: %v", err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if j, n = open(); n != accepted+1 {
		t.Errorf("%d records of %d are there in the end", n, accepted+1)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}

// smallFS is a disk with so many bytes available, of which each file takes what is
// set aside for it.
type smallFS struct {
	vfs.FS
	avail atomic.Int64
}

func (fs *smallFS) GetDiskUsage(string) (vfs.DiskUsage, error) {
	return vfs.DiskUsage{AvailBytes: uint64(fs.avail.Load())}, nil
}

func (fs *smallFS) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := fs.FS.OpenReadWrite(name, c, opts...)
	return smallFile{f, fs}, err
}

type smallFile struct {
	vfs.File
	fs *smallFS
}

func (f smallFile) Preallocate(_, length int64) error {
	f.fs.avail.Add(-length)
	return nil
}

// TestSpareIsLeftToOthers appends until the disk counts as full: then there still
// is what the index may need, and when others make room the journal goes on.
func TestSpareIsLeftToOthers(t *testing.T) {
	const spare = 3 * minRoom / 2
	fs := &smallFS{FS: vfs.NewMem()}
	fs.avail.Store(10 * minRoom)
	j, err := Open(Options{FS: fs, Dir: "journal", FileSize: 4 * minRoom, Spare: spare, FlushAfter: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := j.Replay(0, 0, func(Record) error { return nil }); err != nil {
		t.Fatal(err)
	}
	payload := make([]byte, 100_000)
	fill := func() (n int64) {
		t.Helper()
		for ; ; n += int64(len(payload)) {
			if _, _, err := j.Append(KindCommand, 0, payload); errors.Is(err, syscall.ENOSPC) {
				return n
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := fill(); n < 7*minRoom {
		t.Errorf("only %d bytes were accepted", n)
	}
	if left := fs.avail.Load(); left < spare {
		t.Errorf("%d bytes are left, not %d", left, int64(spare))
	}
	fs.avail.Add(2 * minRoom)
	if n := fill(); n < minRoom/2 {
		t.Errorf("with %d bytes more only %d were accepted", 2*minRoom, n)
	}
	if left := fs.avail.Load(); left < spare {
		t.Errorf("%d bytes are left in the end, not %d", left, int64(spare))
	}
}
