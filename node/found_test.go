package node

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/cairnfs/cairn/chunker"
	"github.com/cairnfs/cairn/node/control"
)

// patience is a context that ends when it has been asked so often whether it has.
type patience struct {
	context.Context
	left atomic.Int32
}

func (p *patience) Err() error {
	if p.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// A command that is given up while it founds a cluster may be given again. Whatever
// became of the first try, what the node keeps, what it tells others and what its names
// say is of one cluster, and where it listens now.
func TestFoundingThatWasGivenUpIsDoneAgain(t *testing.T) {
	for left := int32(0); ; left++ {
		a := openMember(t, Options{Dir: "a", FS: vfs.NewMem()})
		given := &patience{Context: t.Context()}
		given.left.Store(left)
		_, givenUp := a.Invite(given, control.InviteOptions{})
		if givenUp != nil && !errors.Is(givenUp, context.Canceled) {
			t.Fatal(givenUp)
		}
		if _, err := a.Invite(t.Context(), control.InviteOptions{}); err != nil {
			t.Fatal(err)
		}
		c, v := a.cluster.Load(), a.state.View()
		m, _, err := readMember(a.o.FS, a.o.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if m.Cluster != v.Cluster || c.member.Cluster != v.Cluster {
			t.Errorf("given up after %d: of cluster %s, kept %s, told %s", left, v.Cluster, m.Cluster, c.member.Cluster)
		}
		if got, want := v.Member(c.self).Addrs, c.host.Addrs(); !slices.Equal(got, want) {
			t.Errorf("given up after %d: registered at %v, listens at %v", left, got, want)
		}
		a.close(t)
		if givenUp == nil {
			return
		}
	}
}

// Whoever waits for the node's failure learns of it, also when a founding met it first.
func TestAFailureThatAFoundingMeetsIsTheNodes(t *testing.T) {
	a := openMember(t, Options{Dir: "a", FS: vfs.NewMem()})
	broken := errors.New("broken")
	a.failed <- broken
	if _, err := a.Invite(t.Context(), control.InviteOptions{}); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	select {
	case err := <-a.Failed():
		if !errors.Is(err, broken) {
			t.Error(err)
		}
	default:
		t.Error("the node goes on")
	}
}

// A store is made a member's with the cluster's chunk sizes, or not at all.
func TestAJoinThatWasInterruptedIsNotTakenForAStore(t *testing.T) {
	dir := t.TempDir()
	params := chunker.Params{Algorithm: chunker.DefaultParams().Algorithm, Min: 4 << 10, Avg: 16 << 10, Max: 64 << 10}
	a := openMember(t, Options{Dir: filepath.Join(dir, "a"), Chunker: params})
	inv, err := a.Invite(t.Context(), control.InviteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	interrupted, failing := errors.New("interrupted"), true
	o := JoinOptions{Dir: filepath.Join(dir, "b"), Token: inv.Token, Listen: loopback, Logger: a.o.Logger}
	o.FS = errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if failing && strings.HasPrefix(filepath.Base(op.Path), configName) && op.Kind == errorfs.OpCreate {
			return interrupted
		}
		return nil
	}))
	if _, err := Join(t.Context(), o); !errors.Is(err, interrupted) {
		t.Fatal(err)
	}
	failing = false
	b, err := Open(t.Context(), Options{Dir: o.Dir, FS: o.FS, Create: true, Listen: loopback, Reserve: -1, Logger: a.o.Logger})
	if err == nil {
		if got := chunker.Params(b.config.Chunker); got != params {
			t.Errorf("a member cuts files as %+v, the cluster as %+v", got, params)
		}
		b.close(t)
		return
	}
	if !errors.Is(err, ErrNotEmpty) {
		t.Errorf("opened before it has joined: %v", err)
	}
	if _, err := Join(t.Context(), o); err != nil {
		t.Fatalf("join again: %v", err)
	}
	if b = openMember(t, Options{Dir: o.Dir, FS: o.FS}); chunker.Params(b.config.Chunker) != params {
		t.Errorf("cuts files as %+v", b.config.Chunker)
	}
}
