package volume

import (
	"errors"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace"
)

// On a disk that is full up to what is kept nothing new is taken, and what makes
// space goes on.
func TestAFullDiskTakesWhatMakesSpace(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	var full, low atomic.Bool
	r.o.Usage = func() (Usage, error) {
		if full.Load() {
			return Usage{Total: 1 << 30, Free: 1 << 28, Low: low.Load()}, nil
		}
		return Usage{Total: 1 << 30, Free: 1 << 29, Avail: 1 << 28}, nil
	}
	now := time.Now()
	r.o.Now = func() time.Time { now = now.Add(time.Second); return now }
	h := r.create("file")
	r.write(h, []byte("some bytes"), 0)
	r.create("other").Release()
	ctx := t.Context()

	full.Store(true)
	_, writeErr := h.Write(ctx, []byte("x"), 0)
	_, _, createErr := r.Create(ctx, namespace.RootIno, "new", 0o644, syscall.O_RDWR, Caller{})
	_, _, tmpErr := r.Tmpfile(ctx, namespace.RootIno, 0o644, syscall.O_RDWR, Caller{})
	_, mkdirErr := r.Mkdir(ctx, namespace.RootIno, "dir", 0o755, Caller{})
	_, linkErr := r.Link(ctx, h.Ino(), namespace.RootIno, "link")
	_, copyErr := h.CopyRange(ctx, 100, h, 0, 5)
	for what, err := range map[string]error{
		"write": writeErr, "create": createErr, "tmpfile": tmpErr, "mkdir": mkdirErr, "link": linkErr, "copy": copyErr,
		"xattr":    r.SetXattr(ctx, h.Ino(), "user.a", []byte("b"), 0, false),
		"allocate": h.Allocate(ctx, 1<<20, 1, false),
	} {
		if !errors.Is(err, cas.ErrNoSpace) {
			t.Errorf("%s on a full disk: %v", what, err)
		}
	}
	r.must(h.Fsync(ctx, false))
	r.must(h.Flush(ctx))
	r.expect(h.Ino(), []byte("some bytes"))
	r.resize(h.Ino(), 4)
	_, err := r.SetAttr(ctx, h.Ino(), SetAttr{Valid: SetMode, Mode: 0o600})
	r.must(err)
	r.must(r.Rename(ctx, namespace.RootIno, "file", namespace.RootIno, "renamed", 0))
	r.must(r.Unlink(ctx, namespace.RootIno, "renamed"))

	low.Store(true)
	r.must(r.Sync(ctx))
	if err := r.Unlink(ctx, namespace.RootIno, "other"); !errors.Is(err, cas.ErrNoSpace) {
		t.Errorf("a delete when hardly any space is left: %v", err)
	}

	low.Store(false)
	r.must(r.Unlink(ctx, namespace.RootIno, "other"))
	full.Store(false)
	r.create("again").Release()
	h.Release()
	r.close()
}

// What was accepted survives a close on a disk on which nothing can be named.
func TestACloseOnAFullDiskLosesNothingThatWasWritten(t *testing.T) {
	fs := vfs.NewCrashableMem()
	r := openRig(t, fs, 0)
	h := r.create("file")
	r.must(r.Sync(t.Context()))
	r.write(h, []byte("accepted"), 0)
	r.o.Usage = func() (Usage, error) { return Usage{Total: 1 << 30, Low: true}, nil }
	r.room.asked.Store(0)
	ino := h.Ino()
	h.Release()
	r = r.closeFull(fs)
	r.expect(ino, []byte("accepted"))
	r.close()
}

// closeFull closes the rig on a disk that is full, and returns it opened again.
func (r *rig) closeFull(fs vfs.FS) *rig {
	r.t.Helper()
	if err := r.Volume.Close(r.t.Context()); !errors.Is(err, cas.ErrNoSpace) {
		r.t.Errorf("close: %v", err)
	}
	for _, stop := range []func() error{r.journal.Close, r.blocks.Close, r.db.Close} {
		r.must(stop())
	}
	return openRig(r.t, fs, 0)
}
