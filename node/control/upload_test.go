package control_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/node/control"
)

// fakeUpload is an upload to a fakeNode.
type fakeUpload struct {
	*fakeNode
	renewed atomic.Int64
	closed  chan struct{}
}

func (u *fakeUpload) Renew(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	u.renewed.Add(int64(len(cids)))
	return u.Has(ctx, cids...)
}

func (u *fakeUpload) Close() error {
	close(u.closed)
	return nil
}

// Upload returns the node itself.
func (n *fakeNode) Upload(context.Context) (control.Upload, error) {
	u := &fakeUpload{fakeNode: n, closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.uploads = append(n.uploads, u)
	return u, nil
}

func (n *fakeNode) Collect(_ context.Context, o control.CollectOptions) (control.Collected, error) {
	if !o.Trim {
		return control.Collected{}, errors.New("only with trim")
	}
	return control.Collected{Blocks: int64(o.Keep / time.Second), Absent: map[string]string{"b": "asleep"}}, nil
}

func (n *fakeNode) upload(i int) *fakeUpload {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.uploads[i]
}

func TestWhatAClientPutsIsKeptUntilItIsGone(t *testing.T) {
	n := newFake(t)
	c := dial(t, serve(t, n))
	block := castest.Block(t, 1, 1000)
	for range 2 {
		if err := c.Put(t.Context(), block); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Pin(t.Context(), control.Pin{CID: block.CID(), Name: "a"}); err != nil {
		t.Fatal(err)
	}
	other, err := c.Upload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if has, err := other.Renew(t.Context(), block.CID()); err != nil || !has[0] {
		t.Fatalf("block that was put: %v, %v", has, err)
	}
	// One upload for the client itself, in which the block was asked for before it
	// was sent, both times, and one more.
	if len(n.uploads) != 2 || n.upload(0).renewed.Load() != 2 || n.puts != 1000 {
		t.Fatalf("%d uploads, %d blocks asked for, %d bytes put", len(n.uploads), n.upload(0).renewed.Load(), n.puts)
	}
	for i, end := range []func() error{c.Close, other.Close} {
		select {
		case <-n.upload(i).closed:
			t.Fatal("the upload ended before the client did")
		default:
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-n.upload(i).closed:
		case <-time.After(10 * time.Second):
			t.Fatal("the client is gone, its upload is not")
		}
	}
	if err := other.Put(t.Context(), castest.Block(t, 2, 10)); !errors.Is(err, control.ErrProtocol) {
		t.Fatalf("put after the end of the upload: %v", err)
	}
}

func TestCollectingIsAskedOfTheNode(t *testing.T) {
	c := dial(t, serve(t, newFake(t)))
	all, err := c.Collect(t.Context(), control.CollectOptions{Trim: true, Keep: 3 * time.Second})
	if err != nil || all.Blocks != 3 || all.Absent["b"] != "asleep" {
		t.Fatalf("%+v, %v", all, err)
	}
	if _, err := c.Collect(t.Context(), control.CollectOptions{}); err == nil {
		t.Fatal("an error of the node is lost")
	}
}
