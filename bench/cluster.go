package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/cairnfs/cairn/node/control"
)

// With Options.Cluster nodes are measured that are processes of this program, on this
// machine, and talk to each other over its loopback interface. There are so many
// that keep blocks, each block on two of them, and one that keeps none, for reading.
// What one node does alone is measured in the same way before.
//
//	limit.tls-stream           bytes through a stream of libp2p, by TCP and TLS
//	floor.read-remote          by a client: read a file of a mount that answers with what
//	                           comes through such a stream, and does nothing else
//	one.write                  by a client: write and fsync a file of the mount of one node
//	one.read-cold              by a client: read it when the kernel has not cached it
//	one.create-1               by a client: create and close empty files
//	one.create-64              the same 64 at a time, in as many directories
//	one.sync-4k                write 4 KiB, in ever other places of a file of one node, each with fsync
//	cluster.write-replicated   write and fsync a file, by the leader's mount
//	cluster.create-1           create and close empty files, by the leader's mount
//	cluster.create-1-follower  the same by the mount of another node
//	cluster.create-64          64 at a time
//	cluster.create-64-follower the same by the mount of another node
//	cluster.visible            from the return of close until another mount shows what was written
//	cluster.delta              change 1 % of a file, in pieces of up to 1 MiB, and fsync it
//	cluster.sync-4k            write 4 KiB, in ever other places of a file, each with fsync
//	cluster.read-cold          read a file whose blocks are all on other nodes
//	cluster.failover           from the kill of the leader to an acknowledged fsync, with three nodes or more
//
// cpuSeconds is of all nodes and the client, peakRSS of the node that has most.
// wireBytes is what all nodes have sent one another, other than encryption and TCP
// add, storedBytes what all have stored, until every copy was made. Of delta, bytes are
// those of the whole file. Of sync-4k what was written last is not folded yet.
// Nobody has cached the blocks that are read, but the kernel the files of the nodes
// that have them.

// MaxCluster is the largest Options.Cluster.
const MaxCluster = 16

// DefaultClusterSize is Options.Size when a cluster is measured, in bytes.
const DefaultClusterSize = 128 << 20

const (
	limitTLSStream  = "limit.tls-stream"
	floorReadRemote = "floor.read-remote"
)

// ways is how many files are created at a time where it is many.
const ways = 64

// copies is on how many nodes each block is.
const copies = 2

// clusterPaths are the measurements of a cluster of so many nodes.
func clusterPaths(nodes int) []measurement {
	stream := []string{limitTLSStream}
	ms := []measurement{
		{name: limitTLSStream, repeats: 3, run: tlsStream},
		{name: floorReadRemote, limits: stream, repeats: 3, run: remoteRead},
		{name: "one.write", repeats: 2, run: oneWrite},
		{name: "one.read-cold", repeats: 2, run: oneRead},
		{name: "one.create-1", repeats: 2, run: oneCreate(1)},
		{name: "one.create-64", repeats: 2, run: oneCreate(ways)},
		{name: "one.sync-4k", repeats: 1, run: oneSync},
		{name: "cluster.write-replicated", limits: stream, peers: []string{"one.write"}, repeats: 2, run: clusterWrite},
		{name: "cluster.create-1", peers: []string{"one.create-1"}, repeats: 2, run: clusterCreate(1, true)},
		{name: "cluster.create-1-follower", peers: []string{"one.create-1"}, repeats: 2, run: clusterCreate(1, false)},
		{name: "cluster.create-64", peers: []string{"one.create-64"}, repeats: 2, run: clusterCreate(ways, true)},
		{name: "cluster.create-64-follower", peers: []string{"one.create-64"}, repeats: 2, run: clusterCreate(ways, false)},
		{name: "cluster.visible", repeats: 1, run: clusterVisible},
		{name: "cluster.delta", repeats: 1, run: clusterDelta},
		{name: "cluster.sync-4k", peers: []string{"one.sync-4k"}, repeats: 1, run: clusterSync},
		{name: "cluster.read-cold", limits: stream, peers: []string{floorReadRemote, "one.read-cold"}, repeats: 2, run: clusterRead},
	}
	if nodes >= 3 {
		ms = append(ms, measurement{name: "cluster.failover", repeats: 1, run: clusterFailover})
	}
	return ms
}

// ClusterNames returns the names of the measurements of a cluster.
func ClusterNames() []string { return namesOf(clusterPaths(MaxCluster)) }

// cluster is the nodes that are measured.
type cluster struct {
	one     *member   // belongs to no cluster; nil if there is none
	members []*member // those that keep blocks
	reader  *member   // one that keeps none; nil until it is needed
}

// running are the nodes that run.
func (c *cluster) running() []*member {
	var ms []*member
	for _, m := range append([]*member{c.one, c.reader}, c.members...) {
		if m != nil && !m.ended {
			ms = append(ms, m)
		}
	}
	return ms
}

// oneNode returns the node that is alone.
func (r *rig) oneNode(ctx context.Context) (_ *member, err error) {
	if r.nodes.one == nil {
		r.nodes.one, err = r.startMember(ctx, "one", "")
	}
	return r.nodes.one, err
}

// clustered returns the nodes of the cluster. That which is alone is ended, since it
// would only be in the way.
func (r *rig) clustered(ctx context.Context) (*cluster, error) {
	c := &r.nodes
	if len(c.members) > 0 {
		return c, nil
	}
	if c.one != nil {
		if err := c.one.end(); err != nil {
			return nil, err
		}
	}
	for i := range r.o.Cluster {
		token := ""
		if i > 0 {
			var err error
			if token, err = c.invite(ctx, "storage"); err != nil {
				return nil, err
			}
		}
		m, err := r.startMember(ctx, fmt.Sprintf("node-%d", i+1), token)
		if err != nil {
			return nil, err
		}
		c.members = append(c.members, m)
	}
	if err := c.members[0].ctl.SetCopies(ctx, copies); err != nil {
		return nil, err
	}
	return c, poll(ctx, groupTime, "the nodes to become voters", c.complete)
}

func (c *cluster) invite(ctx context.Context, role string) (string, error) {
	i, err := c.members[0].ctl.Invite(ctx, control.InviteOptions{TTL: time.Hour, Uses: 1, Role: role, Listen: anyPort})
	return i.Token, err
}

// complete reports whether as many nodes vote as ever will.
func (c *cluster) complete(ctx context.Context) (bool, error) {
	want := min(len(c.members), 5)
	if want == 4 {
		want = 3
	}
	voters := 1
	s, err := c.members[0].ctl.Status(ctx)
	for _, p := range s.Peers {
		if p.Voter {
			voters++
		}
	}
	return voters >= want, err
}

// settled reports whether every copy was made.
func (c *cluster) settled(ctx context.Context) (bool, error) {
	for _, m := range c.running() {
		s, err := m.ctl.Status(ctx)
		if err != nil {
			return false, err
		}
		if s.Blocks != nil && s.Blocks.PendingReplication > 0 {
			return false, nil
		}
	}
	return true, nil
}

func (c *cluster) settle(ctx context.Context) error {
	return poll(ctx, settleTime, "copies to be made", c.settled)
}

// leader returns the node that orders changes and another one.
func (c *cluster) leader(ctx context.Context) (leader, other *member, err error) {
	err = poll(ctx, groupTime, "a leader", func(ctx context.Context) (bool, error) {
		leader, other = nil, nil
		for _, m := range c.members {
			s, err := m.ctl.Status(ctx)
			switch {
			case err != nil:
				return false, err
			case s.Raft != nil && s.Raft.Role == "leader" && s.Raft.Session != 0 && leader == nil:
				leader = m
			case s.Raft != nil && s.Raft.Session != 0:
				other = m
			}
		}
		return leader != nil && other != nil, nil
	})
	return leader, other, err
}

// measureMembers has the client do what req says, and measures it with all nodes
// that run. The bytes on the wire are those until after has returned, if it is not nil.
func (r *rig) measureMembers(ctx context.Context, req request, after func(context.Context) error) (sample, error) {
	c, err := r.client(ctx)
	if err != nil {
		return sample{}, err
	}
	ms := r.nodes.running()
	for _, m := range ms {
		if err := resetPeakRSSOf(m.cmd.Process.Pid); err != nil {
			return sample{}, err
		}
	}
	sent, stored, err := movedBy(ctx, ms)
	if err != nil {
		return sample{}, err
	}
	cpu, err := cpuOf(ms)
	if err != nil {
		return sample{}, err
	}
	resp, err := c.do(req)
	if err != nil {
		return sample{}, err
	}
	s := sample{bytes: resp.Bytes, ops: resp.Ops, seconds: resp.Seconds, p50: resp.P50, p99: resp.P99, note: resp.Note}
	now, err := cpuOf(ms)
	if err != nil {
		return sample{}, err
	}
	s.cpu = now - cpu + resp.CPU
	for _, m := range ms {
		rss, err := peakRSSOf(m.cmd.Process.Pid)
		if err != nil {
			return sample{}, err
		}
		s.rss = max(s.rss, rss)
	}
	if after == nil {
		return s, nil
	}
	if err := after(ctx); err != nil {
		return sample{}, err
	}
	sentNow, storedNow, err := movedBy(ctx, ms)
	s.wire, s.stored = sentNow-sent, storedNow-stored
	return s, err
}

// newFile has the client write a file in the mount of m, durably, and copied.
func (r *rig) newFile(ctx context.Context, m *member) (request, error) {
	seed := r.newSeed()
	req := request{Op: opWrite, Path: filepath.Join(m.dir, fmt.Sprint("data-", seed)), Size: r.o.Size, Seed: seed}
	c, err := r.client(ctx)
	if err != nil {
		return req, err
	}
	if _, err := c.do(req); err != nil {
		return req, err
	}
	return req, r.nodes.settle(ctx)
}

func oneWrite(ctx context.Context, r *rig) (sample, error) {
	m, err := r.oneNode(ctx)
	if err != nil {
		return sample{}, err
	}
	return r.measureMembers(ctx, request{Op: opWrite, Path: filepath.Join(m.dir, dataName), Size: r.o.Size, Seed: r.newSeed()}, nil)
}

func oneRead(ctx context.Context, r *rig) (sample, error) {
	m, err := r.oneNode(ctx)
	if err != nil {
		return sample{}, err
	}
	req, err := r.newFile(ctx, m)
	if err != nil {
		return sample{}, err
	}
	if _, err := r.child.do(request{Op: opDrop, Path: req.Path}); err != nil {
		return sample{}, err
	}
	return r.measureMembers(ctx, request{Op: opRead, Path: req.Path, Size: req.Size}, nil)
}

func oneCreate(n int64) func(context.Context, *rig) (sample, error) {
	return func(ctx context.Context, r *rig) (sample, error) {
		m, err := r.oneNode(ctx)
		if err != nil {
			return sample{}, err
		}
		return r.createIn(ctx, m, n)
	}
}

// createIn creates files in the mount of m, n at a time.
func (r *rig) createIn(ctx context.Context, m *member, n int64) (sample, error) {
	req := request{Op: opCreateWays, Path: m.dir, Files: n, Count: max(r.count()/8, n), Seed: r.newSeed()}
	if n > 1 {
		req.Count = max(2*r.count(), n)
	}
	c, err := r.client(ctx)
	if err != nil {
		return sample{}, err
	}
	prepare := req
	prepare.Op = opMakeWays
	if _, err := c.do(prepare); err != nil {
		return sample{}, err
	}
	s, err := r.measureMembers(ctx, req, nil)
	s.note = fmt.Sprintf("%.0f/s", float64(s.ops)/s.seconds)
	return s, err
}

func clusterWrite(ctx context.Context, r *rig) (sample, error) {
	c, err := r.clustered(ctx)
	if err != nil {
		return sample{}, err
	}
	leader, _, err := c.leader(ctx)
	if err != nil {
		return sample{}, err
	}
	return r.measureMembers(ctx, request{Op: opWrite, Path: filepath.Join(leader.dir, dataName), Size: r.o.Size, Seed: r.newSeed()}, c.settle)
}

func clusterCreate(n int64, onLeader bool) func(context.Context, *rig) (sample, error) {
	return func(ctx context.Context, r *rig) (sample, error) {
		c, err := r.clustered(ctx)
		if err != nil {
			return sample{}, err
		}
		leader, other, err := c.leader(ctx)
		if err != nil {
			return sample{}, err
		}
		if !onLeader {
			leader = other
		}
		return r.createIn(ctx, leader, n)
	}
}

// leading returns the cluster, its leader and another member.
func (r *rig) leading(ctx context.Context) (c *cluster, leader, other *member, err error) {
	if c, err = r.clustered(ctx); err != nil {
		return nil, nil, nil, err
	}
	leader, other, err = c.leader(ctx)
	return c, leader, other, err
}

func clusterVisible(ctx context.Context, r *rig) (sample, error) {
	_, leader, other, err := r.leading(ctx)
	if err != nil {
		return sample{}, err
	}
	count := min(max(r.count()/8, 16), 200)
	return r.measureMembers(ctx, request{Op: opVisible, Path: leader.dir, From: other.dir, Count: count, Seed: r.newSeed()}, nil)
}

func clusterDelta(ctx context.Context, r *rig) (sample, error) {
	c, leader, _, err := r.leading(ctx)
	if err != nil {
		return sample{}, err
	}
	req, err := r.newFile(ctx, leader)
	if err != nil {
		return sample{}, err
	}
	req.Op, req.Count, req.Seed = opChangeParts, max(req.Size/100, page), r.newSeed()
	return r.measureMembers(ctx, req, c.settle)
}

func oneSync(ctx context.Context, r *rig) (sample, error) {
	m, err := r.oneNode(ctx)
	if err != nil {
		return sample{}, err
	}
	return r.syncIn(ctx, m)
}

func clusterSync(ctx context.Context, r *rig) (sample, error) {
	_, leader, _, err := r.leading(ctx)
	if err != nil {
		return sample{}, err
	}
	return r.syncIn(ctx, leader)
}

// syncIn changes a file in the mount of m a little, many times.
func (r *rig) syncIn(ctx context.Context, m *member) (sample, error) {
	req, err := r.newFile(ctx, m)
	if err != nil {
		return sample{}, err
	}
	req.Op, req.Count, req.Seed = opSyncRandom, r.count(), r.newSeed()
	s, err := r.measureMembers(ctx, req, r.nodes.settle)
	s.note = fmt.Sprintf("%.0f/s", float64(s.ops)/s.seconds)
	return s, err
}

func clusterRead(ctx context.Context, r *rig) (sample, error) {
	c, err := r.clustered(ctx)
	if err != nil {
		return sample{}, err
	}
	if c.reader == nil {
		token, err := c.invite(ctx, "client")
		if err != nil {
			return sample{}, err
		}
		if c.reader, err = r.startMember(ctx, "reader", token); err != nil {
			return sample{}, err
		}
	}
	leader, _, err := c.leader(ctx)
	if err != nil {
		return sample{}, err
	}
	req, err := r.newFile(ctx, leader)
	if err != nil {
		return sample{}, err
	}
	path := filepath.Join(c.reader.dir, filepath.Base(req.Path))
	return r.measureMembers(ctx, request{Op: opRead, Path: path, Size: req.Size}, func(context.Context) error { return nil })
}

// clusterFailover kills the leader, so it comes last.
func clusterFailover(ctx context.Context, r *rig) (sample, error) {
	_, leader, other, err := r.leading(ctx)
	if err != nil {
		return sample{}, err
	}
	client, err := r.client(ctx)
	if err != nil {
		return sample{}, err
	}
	ready := request{Op: opWriteSync, Path: other.dir, Seed: r.newSeed()}
	if _, err := client.do(ready); err != nil {
		return sample{}, err
	}
	start := time.Now()
	if err := leader.kill(); err != nil {
		return sample{}, err
	}
	s, err := r.measureMembers(ctx, request{Op: opWriteSync, Path: other.dir, Seed: r.newSeed()}, nil)
	s.seconds = time.Since(start).Seconds()
	return s, err
}
