package node

import (
	"errors"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/node/control"
)

// A block store whose disk has refused to sync takes no block until it is opened
// again. Other nodes may be all who notice, so the node ends by itself.
func TestAMemberWhoseBlocksCannotBeSyncedFails(t *testing.T) {
	var failing atomic.Bool
	dir := t.TempDir()
	o := Options{Dir: filepath.Join(dir, "store")}
	o.FS = errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if failing.Load() && op.Kind == errorfs.OpFileSyncData && strings.Contains(op.Path, segmentsDir) {
			return syscall.EIO
		}
		return nil
	}))
	o.Create, o.Listen, o.Reserve, o.Logger = true, loopback, -1, options("").Logger
	n, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close() // which cannot succeed
	if _, err := n.Invite(t.Context(), control.InviteOptions{}); err != nil {
		t.Fatal(err)
	}
	failing.Store(true)
	if err := n.Put(t.Context(), castest.Block(t, 1, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := n.blocks.Sync(t.Context()); !errors.Is(err, syscall.EIO) {
		t.Fatalf("sync: %v", err)
	}
	select {
	case err := <-n.Failed():
		if !errors.Is(err, syscall.EIO) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the node goes on")
	}
}
