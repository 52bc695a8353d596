package volume

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace"
)

// fullLog is a log whose journal finds no space.
type fullLog struct {
	namespace.Log
	err error
}

func (l fullLog) Propose(context.Context, *namespace.Command) (namespace.Result, error) {
	return namespace.Result{}, l.err
}

// TestAFullDiskStartsWithOrphans starts a volume where a file without a name cannot
// be removed for want of space, of the journal or by what must be left free (rule 17);
// it is removed when there is some.
func TestAFullDiskStartsWithOrphans(t *testing.T) {
	for _, why := range []error{syscall.ENOSPC, cas.ErrNoSpace} {
		t.Run(why.Error(), func(t *testing.T) { startsWithOrphans(t, why) })
	}
}

func startsWithOrphans(t *testing.T, why error) {
	ctx := t.Context()
	r := openRig(t, vfs.NewMem(), 0)
	defer r.abandon()
	_, _, err := r.Create(ctx, namespace.RootIno, "file", 0o644, syscall.O_RDWR, Caller{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Unlink(ctx, namespace.RootIno, "file"); err != nil {
		t.Fatal(err)
	}
	o := r.o
	o.Log, o.SyncInterval = fullLog{r.o.Log, why}, time.Hour
	next := New(o)
	if err := next.Start(ctx); err != nil {
		t.Fatalf("start on a full disk: %v", err)
	}
	defer func() {
		next.stop()
		next.done.Wait()
	}()
	for _, space := range []bool{false, true} {
		if space {
			next.o.Log = r.o.Log
		}
		if err := next.reapIdle(ctx); (err == nil) != space {
			t.Errorf("remove orphans, space %v: %v", space, err)
		}
		orphans, err := r.state.Orphans()
		if err != nil {
			t.Fatal(err)
		}
		if (len(orphans) == 0) != space {
			t.Errorf("orphans, space %v: %v", space, orphans)
		}
	}
}
