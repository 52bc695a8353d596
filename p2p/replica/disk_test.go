package replica

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/cache"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/p2p"
)

// TestAClusterOfStoresOnDiskKeepsTheContract has the real stores below, in real time.
func TestAClusterOfStoresOnDiskKeepsTheContract(t *testing.T) {
	castest.Run(t, func(t testing.TB) cas.Store {
		net := &network{ports: make(map[p2p.PeerID]*port)}
		view := p2p.View{Epoch: 1}
		var nodes []*Replica
		for i := range 3 {
			id := p2p.PeerID(fmt.Sprintf("12D3KooWdisk%d", i))
			p := &port{net: net, id: id, ops: make(map[byte]int)}
			net.ports[id] = p
			view.Members = append(view.Members, p2p.Member{ID: id, Role: p2p.RoleStorage, State: p2p.Active})
			nodes = append(nodes, onDisk(t, p))
		}
		for _, r := range nodes {
			r.SetView(view)
		}
		return nodes[0]
	})
}

func onDisk(t testing.TB, p *port) *Replica {
	t.Helper()
	fs := vfs.NewMem()
	ix, err := index.Open(index.Options{FS: fs, Dir: "index", Logger: quiet(), CacheBytes: 1 << 20, MemTableBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := segment.Open(segment.Options{FS: fs, Dir: "blocks", Index: ix, Reserve: -1, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	kept, err := cache.Open(cache.Options{FS: fs, Dir: "cache", MaxBytes: 16 << 20, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	r := New(Options{Transport: p, Local: blocks, Cache: kept, Liveness: p, Logger: quiet()})
	r.Start(context.Background())
	t.Cleanup(func() {
		if err := errors.Join(r.Close(), kept.Close(), blocks.Close(), ix.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}
