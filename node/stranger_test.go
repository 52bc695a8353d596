package node

import (
	"context"
	"encoding/json"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/node/control"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/host"
)

// Rule 4: that a node's store was restored from a copy is for members to say, also as
// long as the node has no registry of its own yet.
func TestANodeWithoutNamesBelievesNoStranger(t *testing.T) {
	dir := t.TempDir()
	a := openMember(t, Options{Dir: filepath.Join(dir, "a")})
	inv, err := a.Invite(t.Context(), control.InviteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	bDir := filepath.Join(dir, "b")
	joined, err := Join(t.Context(), JoinOptions{Dir: bDir, Token: inv.Token, Listen: loopback, Name: "b"})
	if err != nil {
		t.Fatal(err)
	}
	q := newAsker(t, a)
	a.close(t) // so that b gets no names

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	addrs := make(chan []string, 1)
	opened := make(chan error, 1)
	go func() {
		n, err := Open(ctx, Options{Dir: bDir, Listen: loopback, network: func(o host.Options) (network, error) {
			h, err := openHost(o)
			if err == nil {
				addrs <- h.Addrs()
			}
			return h, err
		}})
		if err == nil {
			n.abandon()
		}
		opened <- err
	}()
	lie, err := json.Marshal(map[string]any{
		"cluster": joined.Cluster, "raft": 1, "starts": 1, "marks": []uint64{1}, "version": 1,
		"you": map[string]any{"starts": 99, "mark": 1, "term": 99, "acked": 99, "sure": 99},
	})
	if err != nil {
		t.Fatal(err)
	}
	at := <-addrs
	eventually(t, "the stranger is answered", func() bool {
		_, err := q.host.CallStranger(t.Context(), joined.ID, at, "/cairn/hello/1", lie)
		return !errors.Is(err, p2p.ErrNotServed) && !errors.Is(err, p2p.ErrUnreachable)
	})
	select {
	case err = <-opened:
	case <-time.After(100 * time.Millisecond):
		cancel()
		err = <-opened
	}
	var refused *raft.Refusal
	if err == nil || errors.As(err, &refused) {
		t.Errorf("it waits for the names and ends with %v", err)
	}
	if m, _, err := readMember(a.o.FS, bDir); err != nil || m.Refused != nil {
		t.Errorf("it has noted %v, %v", m.Refused, err)
	}
}
