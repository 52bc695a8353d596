package node

import (
	"errors"
	"io"
	"io/fs"
	"log/slog"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/node/control"
)

// Rule 20: who was a member joins again with its blocks, and only what it lacks is sent.
func TestAFormerMemberRejoinsWithItsBlocks(t *testing.T) {
	dir := t.TempDir()
	a := openMember(t, Options{Dir: filepath.Join(dir, "a")})
	b := joined(t, a, filepath.Join(dir, "b"))
	c := joined(t, a, filepath.Join(dir, "c"))
	eventually(t, "three vote", func() bool { return len(a.cluster.Load().group.Status().Voters) == 3 })
	data := make([]byte, 8<<20)
	rng := mrand.New(mrand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	write(t, a.Volume(), "large", data)
	want := a.blocks.Stats().Blocks
	eventually(t, "c has its copy", func() bool { return c.blocks.Stats().Blocks >= want })
	former := c.cluster.Load().self
	if err := a.RemovePeer(t.Context(), string(former)); err != nil {
		t.Fatal(err)
	}
	refused(t, c, raft.Removed)
	c.abandon()
	write(t, b.Volume(), "meanwhile", []byte("meanwhile"))

	quiet := slog.New(slog.NewTextHandler(io.Discard, nil))
	inv, err := a.Invite(t.Context(), control.InviteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	o := JoinOptions{Dir: filepath.Join(dir, "c"), Token: inv.Token, Listen: loopback, Logger: quiet}
	if _, err := Join(t.Context(), o); !errors.Is(err, ErrJoined) {
		t.Errorf("without saying so: %v", err)
	}
	o.Rejoin = true
	// Whenever it is interrupted, it goes on.
	for n := int32(1); ; n++ {
		var left atomic.Int32
		left.Store(n)
		o.FS = errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
			switch op.Kind {
			case errorfs.OpRename, errorfs.OpRemoveAll, errorfs.OpMkdirAll:
				if left.Add(-1) <= 0 {
					return errorfs.ErrInjected
				}
			}
			return nil
		}))
		j, err := Join(t.Context(), o)
		if err == nil {
			if j.ID == former || j.Former != "" {
				t.Errorf("%+v", j)
			}
			break
		}
		if errors.Is(err, ErrJoined) {
			break // it was admitted, what is left is done when it is opened
		}
		if n > 20 {
			t.Fatal(err)
		}
	}
	for _, name := range []string{keyName, keyName + nextSuffix} { // another file system gives no modes
		if err := os.Chmod(filepath.Join(dir, "c", name), 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	c = openMember(t, Options{Dir: filepath.Join(dir, "c")})
	if got := read(t, c.Volume(), "meanwhile"); string(got) != "meanwhile" {
		t.Errorf("%q", got)
	}
	if got := read(t, c.Volume(), "large"); string(got) != string(data) {
		t.Error("the file is another")
	}
	eventually(t, "it votes again", func() bool { return len(a.cluster.Load().group.Status().Voters) == 3 })
	eventually(t, "nothing lacks a copy", func() bool {
		r := a.cluster.Load().replica.Status()
		return r.PassDone && r.UnderReplicated == 0 && r.Pending == 0
	})
	if _, received := c.cluster.Load().host.Traffic(); received > int64(len(data))/4 {
		t.Errorf("%d bytes were sent to it, which has all %d", received, len(data))
	}
	if got := c.blocks.Stats().Blocks; got < want {
		t.Errorf("%d blocks, it had %d", got, want)
	}
}

func TestOnlyAFormerMemberRejoins(t *testing.T) {
	dir := t.TempDir()
	a := openMember(t, Options{Dir: filepath.Join(dir, "a")})
	inv, err := a.Invite(t.Context(), control.InviteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	alone := openMember(t, Options{Dir: filepath.Join(dir, "alone")})
	write(t, alone.Volume(), "mine", []byte("mine"))
	alone.close(t)
	founder := openMember(t, Options{Dir: filepath.Join(dir, "founder")})
	write(t, founder.Volume(), "mine", []byte("mine"))
	if _, err := founder.Invite(t.Context(), control.InviteOptions{}); err != nil {
		t.Fatal(err)
	}
	founder.close(t) // nobody has come, so nobody else has its names
	for name, want := range map[string]error{"alone": ErrNotMember, "nothing": ErrNotMember, "founder": ErrFounder} {
		o := JoinOptions{Dir: filepath.Join(dir, name), Token: inv.Token, Listen: loopback, Rejoin: true}
		if _, err := Join(t.Context(), o); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"alone", "founder"} {
		n := openMember(t, Options{Dir: filepath.Join(dir, name)})
		if got := read(t, n.Volume(), "mine"); string(got) != "mine" {
			t.Errorf("%s: %q", name, got)
		}
	}
}
