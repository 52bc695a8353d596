package volume

import (
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/namespace"
)

// Of two calls at once, the one whose command came first may go on last.
func TestAFileLinkedWhileItIsUnlinkedKeepsItsContent(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("a")
	r.write(h, []byte("content"), 0)
	unlinked, err := r.propose(t.Context(), &namespace.Unlink{Parent: namespace.RootIno, Name: "a"})
	r.must(err)
	_, err = r.Link(t.Context(), h.Ino(), namespace.RootIno, "b")
	r.must(err)
	r.orphaned(unlinked, nil)
	h.Release()
	r.Forget(h.Ino())
	r.must(r.reapIdle(t.Context()))
	r.expect(h.Ino(), []byte("content"))
	r.close()
	r.expectNothingHeld()
}

func TestAFileUnlinkedWhileItIsLinkedIsReaped(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	_, h, err := r.Tmpfile(t.Context(), namespace.RootIno, 0o644, syscall.O_RDWR, Caller{})
	r.must(err)
	_, err = r.propose(t.Context(), &namespace.Link{Ino: h.Ino(), Parent: namespace.RootIno, Name: "b"})
	r.must(err)
	r.must(r.Unlink(t.Context(), namespace.RootIno, "b"))
	r.adopted(h.Ino())
	h.Release()
	r.Forget(h.Ino())
	r.must(r.reapIdle(t.Context()))
	if _, err := r.GetAttr(t.Context(), h.Ino()); err == nil {
		t.Error("the file is still there")
	}
	r.close()
}
