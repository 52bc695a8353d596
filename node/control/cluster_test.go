package control_test

import (
	"context"
	"reflect"
	"testing"
	"time"

	"github.com/cairnfs/cairn/node/control"
)

// fakeCluster notes what it was called with.
type fakeCluster struct{ calls []any }

func (f *fakeCluster) Invite(_ context.Context, o control.InviteOptions) (control.Invitation, error) {
	f.calls = append(f.calls, o)
	return control.Invitation{Token: "token", ID: "id", Addrs: []string{"addr"}, Expires: time.Unix(7, 0).UTC()}, nil
}

func (f *fakeCluster) RevokeInvite(_ context.Context, id string) error {
	f.calls = append(f.calls, "revoke "+id)
	return nil
}

func (f *fakeCluster) RemovePeer(_ context.Context, id string) error {
	f.calls = append(f.calls, "remove "+id)
	return nil
}

func (f *fakeCluster) DrainPeer(_ context.Context, id string, undo bool) error {
	f.calls = append(f.calls, "drain "+id, undo)
	return nil
}

func (f *fakeCluster) SetCopies(_ context.Context, copies int) error {
	f.calls = append(f.calls, copies)
	return nil
}

func TestCallsOfAClusterArriveAsTheyWereMade(t *testing.T) {
	node := newFake(t)
	c := dial(t, serve(t, node))
	ctx := t.Context()
	o := control.InviteOptions{TTL: time.Minute, Uses: 2, Role: "client", Peer: "peer", Listen: ":1"}
	i, err := c.Invite(ctx, o)
	if err != nil || i.Token != "token" || i.ID != "id" || len(i.Addrs) != 1 || !i.Expires.Equal(time.Unix(7, 0)) {
		t.Errorf("%+v %v", i, err)
	}
	for _, call := range []func() error{
		func() error { return c.RevokeInvite(ctx, "a") },
		func() error { return c.RemovePeer(ctx, "b") },
		func() error { return c.DrainPeer(ctx, "c", true) },
		func() error { return c.SetCopies(ctx, 4) },
	} {
		if err := call(); err != nil {
			t.Error(err)
		}
	}
	want := []any{o, "revoke a", "remove b", "drain c", true, 4}
	if !reflect.DeepEqual(node.calls, want) {
		t.Errorf("%v", node.calls)
	}
}
