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
