//go:build simulation

package node

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/cockroachdb/pebble/v2"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/node/control"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/placement"
)

// positionKey is the key of the namespace that every command rewrites: counters, and
// the position in the log.
var positionKey = string([]byte{index.SpaceNamespace, 'm'})

// compare checks that nodes which have applied the same have the same names.
func (w *world) compare() {
	for _, m := range w.up() {
		n := m.node()
		if n == nil || n.cluster.Load() == nil {
			continue
		}
		at, sum, err := dumpOf(n)
		if m.node() != n {
			continue // it may have been closed meanwhile
		}
		if err != nil {
			w.failf("names of %s: %v", m.name, err)
			return
		}
		if known, is := w.dumps[at]; is && known != sum {
			w.failf("the names of %s at %x are not those that another node had", m.name, at)
		}
		w.dumps[at] = sum
	}
}

// dumpOf returns a hash of the names that a node has, and as of when they are.
func dumpOf(n *Node) (at string, sum uint64, err error) {
	// Whoever closes the node closes its index.
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%v", cause)
		}
	}()
	s := n.index.Pebble().NewSnapshot()
	defer s.Close()
	it, err := s.NewIter(&pebble.IterOptions{LowerBound: []byte{index.SpaceNamespace}, UpperBound: []byte{index.SpaceNamespace + 1}})
	if err != nil {
		return "", 0, err
	}
	defer it.Close()
	h := fnv.New64a()
	for it.First(); it.Valid(); it.Next() {
		value := it.Value()
		fmt.Fprintf(h, "%d %s %d ", len(it.Key()), it.Key(), len(value))
		h.Write(value)
		if string(it.Key()) == positionKey {
			at = string(value)
		}
	}
	return at, h.Sum64(), it.Error()
}

// steady says why the loss of one more disk might take something that is acknowledged,
// or "" if it must not: three or more nodes that store blocks are all up, a majority
// votes without any one of them, and all content lies on two of them.
func (w *world) steady() string {
	w.admin.Lock()
	leaving := w.leaving
	w.admin.Unlock()
	if leaving != nil && !leaving.isStale() {
		return leaving.name + " is leaving"
	}
	if why := w.together(); why != "" {
		return why
	}
	up := w.up()
	if len(up) < 3 {
		return fmt.Sprint("there are ", len(up))
	}
	for _, m := range up {
		if joint, err := m.inJointChange(); joint || err != nil {
			return fmt.Sprintf("%s is between two sets of voters (%v)", m.name, err)
		}
	}
	return w.copied(func(holders, owners int, owned bool) bool { return holders >= 2 })
}

// inJointChange reports whether the group, as this node knows it, needs majorities of
// two sets of voters: the earlier one may be two nodes, of which none must be lost.
func (m *machine) inJointChange() (bool, error) {
	n := m.node()
	if n == nil {
		return true, nil
	}
	group, err := n.state.Group()
	if err != nil || len(group) == 0 {
		return true, err
	}
	var conf raftpb.ConfState
	if err := proto.Unmarshal(group[1:], &conf); err != nil { // behind its version
		return true, err
	}
	return len(conf.GetVotersOutgoing())+len(conf.GetLearnersNext()) > 0, nil
}

func (m *machine) isStale() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stale && m.end == nil
}

// together says why the nodes are not all one group, with nobody else in it.
func (w *world) together() string {
	on := w.on()
	for _, m := range on {
		n := m.node()
		switch {
		case n == nil:
			return m.name + " is not up"
		case n.cluster.Load() == nil:
			if len(on) > 1 {
				return m.name + " is alone"
			}
			return ""
		case n.cluster.Load().group.Session() == 0:
			return m.name + " has no session"
		}
	}
	view := on[0].node().state.View()
	storage := 0
	for i := range view.Members {
		p := &view.Members[i]
		if p.State == p2p.Leaving || p.State == p2p.Away {
			return fmt.Sprintf("%s is %v", p.Name, p.State)
		}
		if p.Role == p2p.RoleStorage {
			storage++
		}
		if !slices.ContainsFunc(on, func(m *machine) bool { return m.peer() == p.ID }) {
			return p.Name + " is still a member"
		}
	}
	if len(view.Members) != len(on) {
		return fmt.Sprintf("%d members of %d", len(view.Members), len(on))
	}
	for _, m := range on {
		n := m.node()
		if n == nil {
			return m.name + " is down"
		}
		s := n.cluster.Load().group.Status()
		want := storage
		if want > 2 {
			want = 3 + (min(storage, 5)-3)/2*2
		}
		if len(s.Voters) != want || len(s.Learners) != len(view.Members)-want {
			return fmt.Sprintf("%s knows %d voters of %d, %d of %d members", m.name, len(s.Voters), want, len(s.Voters)+len(s.Learners), len(view.Members))
		}
	}
	return ""
}

// copied says which content does not lie where enough says, or "". enough is told how
// many nodes have a block, how many own it, and whether all owners have it.
func (w *world) copied(enough func(holders, owners int, owned bool) bool) string {
	ctx := context.Background()
	nodes := make(map[p2p.PeerID]*Node)
	for _, m := range w.up() {
		n := m.node()
		if n == nil {
			return m.name + " is down"
		}
		nodes[m.peer()] = n
	}
	var any *Node
	for _, n := range nodes {
		if any == nil || n.state.Applied() > any.state.Applied() {
			any = n
		}
		if err := n.blocks.Sync(ctx); err != nil {
			return err.Error()
		}
	}
	view := any.state.View()
	if view == nil {
		return ""
	}
	table := placement.New(*view)
	blocks, err := any.referenced(ctx)
	if err != nil {
		return err.Error()
	}
	holders := make([]int, len(blocks))
	owned := make([]int, len(blocks))
	for id, n := range nodes {
		has, err := n.blocks.Has(ctx, blocks...)
		if err != nil {
			return err.Error()
		}
		for i := range blocks {
			if hash := blocks[i].Hash(); has[i] {
				holders[i]++
				if table.Owns(&hash, id) {
					owned[i]++
				}
			}
		}
	}
	for i := range blocks {
		if !enough(holders[i], table.Copies(), owned[i] == table.Copies()) {
			return fmt.Sprintf("%v is on %d nodes, %d of them of its %d owners", blocks[i], holders[i], owned[i], table.Copies())
		}
	}
	return ""
}

// referenced returns the blocks that files and pins refer to.
func (n *Node) referenced(ctx context.Context) (all []cas.CID, err error) {
	seen := make(map[cas.CID]bool)
	var todo []cas.CID
	err = n.state.ReadDir(namespace.RootIno, 0, func(d namespace.Dentry) bool {
		inode, err := n.state.Inode(d.Ino)
		if err == nil && inode.Content.Root.Defined() {
			todo = append(todo, inode.Content.Root)
		}
		return true
	})
	if err == nil {
		err = n.Pins(ctx, func(p control.Pin) error { todo = append(todo, p.CID); return nil })
	}
	for len(todo) > 0 && err == nil {
		c := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[c] {
			continue
		}
		seen[c] = true
		all = append(all, c)
		if c.Codec() == cas.Raw {
			continue
		}
		links, linksErr := manifest.Links(ctx, &n.stores, c)
		todo, err = append(todo, links...), linksErr
	}
	return all, err
}

// unrest says why the cluster has not come to rest: everybody is there and has applied
// the same, and every block is on its owners.
func (w *world) unrest() string {
	w.admin.Lock()
	leaving := w.leaving
	w.admin.Unlock()
	if leaving != nil {
		return leaving.name + " is leaving"
	}
	if why := w.together(); why != "" {
		return why
	}
	var at namespace.Position
	for i, m := range w.up() {
		n := m.node()
		if n == nil {
			return m.name + " is down"
		}
		if p := n.state.Position(); i > 0 && p != at {
			return fmt.Sprintf("%s is at %v, another at %v", m.name, p, at)
		} else {
			at = p
		}
	}
	return w.copied(func(_, _ int, owned bool) bool { return owned })
}

// final checks what every node has when the cluster is at rest.
func (w *world) final() {
	w.note("rest")
	w.compare()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	for _, m := range w.up() {
		n := m.node()
		err := n.Check(ctx, func(c cas.CID, err error) error {
			// A bad copy of what this node does not own, or nothing refers to,
			// stays what it is: all that matters is elsewhere, as copied has seen.
			if !m.rotten || !errors.Is(err, cas.ErrCorrupt) {
				w.failf("check of %s: %v: %v", m.name, c, err)
			}
			return nil
		})
		if err != nil {
			w.failf("check of %s: %v", m.name, err)
		}
		g := newProgram(m.process(), n, 9)
		for _, file := range []string{appended, locked} {
			g.findsAll(ctx, file)
		}
		for i := range registers {
			if err := g.read(i); err != nil {
				w.failf("%s cannot read %s: %v", m.name, register(i), err)
			}
		}
		found := make(map[cas.CID]bool)
		_ = n.Pins(ctx, func(p control.Pin) error { found[p.CID] = true; return nil })
		for c, name := range w.pins {
			if !found[c] {
				w.failf("%s does not have %s of %v, which was acknowledged", m.name, name, c)
			}
		}
	}
}

// findsAll checks a file of tokens.
func (g *program) findsAll(ctx context.Context, file string) {
	must := g.w.acknowledged(file)
	h, err := g.open(ctx, file, syscall.O_RDONLY)
	if errors.Is(err, namespace.ErrNotFound) && len(must) == 0 {
		return
	}
	if err != nil {
		g.w.failf("%s cannot open %s: %v", g.p.m.name, file, err)
		return
	}
	defer h.Release()
	content, err := readAll(ctx, h)
	if err != nil {
		g.w.failf("%s cannot read %s: %v", g.p.m.name, file, err)
		return
	}
	g.finds(file, content, must)
}

// registerModel is a name that stands for a version of a file.
var registerModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := make([][]porcupine.Operation, registers)
		for _, o := range history {
			i := o.Input.(operation).register
			parts[i] = append(parts[i], o)
		}
		return parts
	},
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		if op := input.(operation); op.write {
			return true, op.version
		}
		return output.(uint64) == state.(uint64), state
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v: %v", input, output) },
}

// explain looks for one order of all operations of registers.
func (w *world) explain(t *testing.T) {
	t.Logf("%v, %d machines at most", w.counts, w.limit)
	switch result, info := porcupine.CheckOperationsVerbose(registerModel, w.ops, 10*time.Second); result {
	case porcupine.Illegal:
		for i, parts := range info.PartialLinearizationsOperations() {
			longest := 0
			for _, p := range parts {
				longest = max(longest, len(p))
			}
			t.Logf("%s: at most %d operations explained", register(i), longest)
		}
		t.Errorf("seed %d: no order explains what programs saw of files that were renamed", w.seed)
	case porcupine.Unknown:
		t.Log("too many outcomes are unknown to look for an order within the time")
	}
}
