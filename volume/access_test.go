package volume

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/namespace"
)

func TestReadsAreKnownOnceUntilTheFileChanges(t *testing.T) {
	fs := vfs.NewCrashableMem()
	r := openRig(t, fs, 0)
	now := time.Now().UnixNano()
	r.Volume.now = func() int64 { now++; return now }
	h := r.create("file")
	r.write(h, []byte("content"), 0)
	r.must(h.Flush(t.Context()))
	atime := func() int64 {
		t.Helper()
		a, err := r.GetAttr(t.Context(), h.Ino())
		r.must(err)
		return a.Atime
	}
	before, err := r.GetAttr(t.Context(), h.Ino())
	r.must(err)
	r.Accessed(h.Ino())
	first := atime()
	if first <= before.Atime || first <= before.Mtime {
		t.Errorf("atime %d after a read, was %d", first, before.Atime)
	}
	r.Accessed(h.Ino())
	if atime() != first {
		t.Error("a second read counts")
	}
	r.must(r.nameAccesses(t.Context()))
	after, err := r.GetAttr(t.Context(), h.Ino())
	r.must(err)
	if after.Atime != first || after.Ctime != before.Ctime {
		t.Errorf("named as %+v, was %+v", after, before)
	}
	r.write(h, []byte("changed"), 0)
	r.must(h.Flush(t.Context()))
	r.Accessed(h.Ino())
	second := atime()
	if second <= first {
		t.Error("the read after a write does not count")
	}
	now += int64(accessEvery) + 1
	r.Accessed(h.Ino())
	if atime() <= second {
		t.Error("the read after a day does not count")
	}
	_, err = r.SetAttr(t.Context(), h.Ino(), SetAttr{Valid: SetAtime, Atime: 5})
	r.must(err)
	if atime() != 5 {
		t.Errorf("atime %d was set to 5", atime())
	}
	r.close()
}

func TestATimeOfAccessThatIsSetIsNotOvertakenByAnEarlierRead(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	var inos []namespace.Ino
	for i := range 500 {
		h := r.create(fmt.Sprint(i))
		h.Release()
		r.Accessed(h.Ino())
		inos = append(inos, h.Ino())
	}
	named := make(chan error)
	go func() { named <- r.nameAccesses(context.Background()) }()
	for _, ino := range inos {
		_, err := r.SetAttr(t.Context(), ino, SetAttr{Valid: SetAtime, Atime: 1})
		r.must(err)
	}
	r.must(<-named)
	for _, ino := range inos {
		if a, err := r.GetAttr(t.Context(), ino); err != nil || a.Atime != 1 {
			t.Fatalf("inode %d was accessed at %d, %v", ino, a.Atime, err)
		}
	}
	r.close()
}
