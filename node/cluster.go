package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas/cache"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/host"
	"github.com/cairnfs/cairn/p2p/membership"
	"github.com/cairnfs/cairn/p2p/replica"
)

// Errors of a node in a cluster. Compare with errors.Is.
var (
	// ErrOffline says that the store belongs to a member of a cluster and was
	// opened without taking part in it, so nothing can be changed.
	ErrOffline = errors.New("the store belongs to a member of a cluster that is not running")
	// ErrListen says that the node cannot listen where it is told to.
	ErrListen = errors.New("cannot listen")
	// ErrNoNames says that a node that has joined could not get the names.
	ErrNoNames = errors.New("no other member of the cluster answers, and this node has no copy of the names yet")
)

// Directories of a member, besides those of every store.
const (
	cacheDir   = "cache"
	recoverDir = "recovered"
)

// cluster is the part of a node that talks to others. Its parts are made in order,
// each on those before, and ended in reverse.
type cluster struct {
	n       *Node
	log     *slog.Logger
	member  memberFile
	self    p2p.PeerID
	host    network
	gossip  *membership.Membership
	cache   *cache.Cache
	replica *replica.Replica
	group   *raft.Log
	joins   joins
	known   acquaintances

	stop    context.CancelFunc
	tending sync.WaitGroup
	changed chan struct{} // the view may be another one

	lastOK map[p2p.PeerID]time.Time // of members that are away: since when; of tend
	folded time.Time                // when was last looked for patches that nobody folds; of tend
	reaped namespace.Ino            // inodes without a name up to it were looked at; of tend

	attending sync.Mutex
	belongs   bool // the registry has had this node; under attending

	epoch   uint64      // of the registry that was applied last; of registered
	doubted atomic.Bool // what is named may be on one node, and the file member does not say so yet
}

// clustered reports whether the store is that of a member.
func (n *Node) clustered() (bool, error) {
	if n.memberFile.Joined {
		return true, nil
	}
	group, err := n.state.Group()
	return group != nil, err
}

// newCluster opens what the node needs to talk to others, but for the log.
func (n *Node) newCluster() (*cluster, error) {
	c := &cluster{
		n: n, log: n.o.Logger, member: n.memberFile, changed: make(chan struct{}, 1),
		lastOK: make(map[p2p.PeerID]time.Time),
	}
	if v := n.state.View(); v != nil {
		c.epoch = v.Epoch
	}
	c.joins.init()
	seed, id, err := makeKey(n.o.FS, n.o.Dir, n.o.Random)
	if err != nil {
		return nil, err
	}
	c.self = id
	if c.host, err = n.o.network(host.Options{Key: seed, Listen: c.member.Listen, Logger: c.log, MDNS: true, Cluster: c.member.Cluster}); err != nil {
		return nil, fmt.Errorf("%w on %s: %w", ErrListen, c.member.Listen, err)
	}
	if err := c.open(); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *cluster) open() (err error) {
	c.host.SetMembers(c.members())
	c.gossip, err = membership.Open(membership.Options{
		Transport: c.host, Members: c.view, Logger: c.log,
		OnChange: func(p2p.PeerID, p2p.Health) { c.poke() },
	})
	if err != nil {
		return err
	}
	o := replica.Options{
		Transport: c.host, Local: c.n.blocks, Liveness: c.gossip, Proven: c.n.memberFile.Proven,
		RepairRate: c.n.o.RepairRate, Logger: c.log,
		Dead: c.n.collect.dead,
	}
	if c.n.o.BlockCache >= 0 && c.n.o.FS == vfs.Default {
		size := c.n.o.BlockCache
		if size == 0 {
			size = DefaultBlockCache
		}
		if c.cache, err = cache.Open(cache.Options{
			FS: c.n.o.FS, Dir: c.n.path(cacheDir), MaxBytes: size, Reserve: c.n.cacheReserve(), Logger: c.log,
		}); err != nil {
			return err
		}
		o.Cache = c.cache
	}
	c.replica = replica.New(o)
	return nil
}

// view returns the registry; before the names are here, whom the node knew when it
// joined.
func (c *cluster) view() p2p.View {
	if v := c.n.state.View(); v != nil {
		return *v
	}
	return p2p.View{Cluster: c.member.Cluster, Members: c.members()}
}

// members returns who may connect.
func (c *cluster) members() []p2p.Member {
	var ms []p2p.Member
	v := c.n.state.View()
	epoch := uint64(0)
	if v != nil {
		ms, epoch = slices.Clone(v.Members), v.Epoch
	}
	if told := c.known.newer(epoch); told != nil {
		return told
	}
	if v == nil || v.Member(c.self) == nil {
		for _, p := range c.member.Peers {
			if v == nil || v.Member(p.ID) == nil {
				ms = append(ms, p2p.Member{ID: p.ID, Addrs: p.Addrs, Role: p2p.RoleStorage, State: p2p.Active})
			}
		}
	}
	return ms
}

// newGroup returns the log of the group that the node is in.
func (c *cluster) newGroup() (*raft.Log, error) {
	return raft.Open(raft.Options{
		ID: c.member.Raft, State: c.n.state, DB: c.n.index.Pebble(), Journal: c.n.journal, Mark: c.n.blocks.Mark,
		Transport: c.host, Cluster: c.member.Cluster, Public: c.host.HandleAnyone, Knew: c.knew, FS: c.n.o.FS, Dir: c.n.o.Dir, Logger: c.log,
		Now: c.n.o.Now, Clock: c.n.o.clock, Failed: c.failed, SessionEnded: func() { c.n.volume.SessionEnded() },
	})
}

// start makes the node take part in the cluster: its commands and blocks go there
// from now on.
func (c *cluster) start(ctx context.Context) {
	ctx, c.stop = context.WithCancel(context.WithoutCancel(ctx))
	c.serve()
	c.attend()
	c.replica.Start(ctx)
	c.n.stores.use(c.replica)
	fetch := c.replica.Prefetch
	c.n.stores.fetch.Store(&fetch)
	c.tending.Go(func() { c.tend(ctx) })
}

// secure is ordering.secure.
func (c *cluster) secure(ctx context.Context, cmd *namespace.Command) error {
	roots := cmd.Roots()
	if _, unproven := c.replica.Unproven(); unproven {
		// What is patched is named with the patch.
		for _, op := range cmd.Ops {
			patch, ok := op.(*namespace.PatchContent)
			if !ok {
				continue
			}
			if n, err := c.n.state.Inode(patch.Ino); err == nil && n.Content.Root.Defined() {
				roots = append(roots, n.Content.Root)
			}
		}
	}
	if len(roots) == 0 {
		return nil
	}
	if v := c.n.state.View(); v != nil && len(v.Members) == 1 {
		return nil // the journal sees to it
	}
	if err := c.replica.Claim(ctx, roots...); err != nil {
		return err
	}
	return c.replica.Sync(ctx)
}

// close ends everything in reverse.
func (c *cluster) close() error {
	var errs []error
	if c.stop != nil {
		c.stop()
		c.tending.Wait()
	}
	if c.group != nil {
		errs = append(errs, c.group.Close())
	}
	if c.replica != nil {
		c.n.stores.use(c.n.blocks)
		errs = append(errs, c.replica.Close())
	}
	if c.cache != nil {
		errs = append(errs, c.cache.Close())
	}
	if c.gossip != nil {
		errs = append(errs, c.gossip.Close())
	}
	return errors.Join(append(errs, c.host.Close())...)
}

// poke has the registry looked at.
func (c *cluster) poke() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// attend follows the registry: who may connect, who owns what, and whether
// strangers are expected.
func (c *cluster) attend() {
	c.attending.Lock()
	defer c.attending.Unlock()
	c.host.SetMembers(c.members())
	c.host.OpenDoor(c.n.invites(c.n.o.Now()))
	v := c.n.state.View()
	if v == nil {
		return
	}
	switch here := v.Member(c.self) != nil; {
	case here:
		c.belongs = true
	case c.belongs:
		c.failed(&raft.Refusal{Kind: raft.Removed, Text: "cluster " + v.Cluster})
		return
	}
	if c.doubted.Swap(false) || v.Owners() < 2 {
		// What is named may be on one node.
		if err := c.setProven(false); err != nil {
			c.n.log.fail(err)
			return
		}
	}
	c.replica.SetView(*v)
}

// tendEvery is how often is looked whether something is to be done.
const tendEvery = 2 * time.Second

func (c *cluster) tend(ctx context.Context) {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.changed:
			c.attend()
		case <-tick.C:
			c.attend()
			c.acquaint(ctx)
			c.announce(ctx)
			c.prove(ctx)
			c.lead(ctx)
		}
	}
}

// announce registers what has changed about this node.
func (c *cluster) announce(ctx context.Context) {
	v := c.n.state.View()
	if v == nil {
		return
	}
	m := v.Member(c.self)
	if m == nil {
		return
	}
	now := c.describe()
	var mask namespace.MemberMask
	if !slices.Equal(m.Addrs, now.Addrs) {
		mask |= namespace.MemberAddrs
	}
	if m.Name != now.Name {
		mask |= namespace.MemberName
	}
	if differs(m.Capacity, now.Capacity) {
		mask |= namespace.MemberCapacity
	}
	if c.n.state.Version() >= 2 && m.Version != namespace.Version {
		mask |= namespace.MemberVersion
		now.Version = namespace.Version
	}
	now.State = m.State
	if m.State == p2p.Away {
		mask |= namespace.MemberState
		now.State = p2p.Active
	}
	if mask == 0 {
		return
	}
	if _, err := c.n.propose(ctx, &namespace.SetMember{Member: now, Mask: mask}); err != nil && ctx.Err() == nil {
		c.log.Debug("cannot register yet", "err", err)
	}
}

// differs reports whether a capacity is another one by more than a tenth.
func differs(a, b uint64) bool {
	return max(a, b)-min(a, b) > max(a, b)/10
}

// describe returns what is to be registered of this node.
func (c *cluster) describe() p2p.Member {
	m := p2p.Member{ID: c.self, Name: c.n.memberFile.Name, Addrs: c.host.Addrs()}
	if m.Name == "" {
		m.Name, _ = os.Hostname()
	}
	if len(m.Addrs) > namespace.MaxAddrs {
		m.Addrs = m.Addrs[:namespace.MaxAddrs]
	}
	if u, err := c.n.o.FS.GetDiskUsage(c.n.o.Dir); err == nil {
		m.Capacity = u.TotalBytes
	}
	return m
}

// takeOptions takes over what is to be kept of the options.
func (n *Node) takeOptions() {
	if n.o.Listen != "" {
		n.memberFile.Listen = n.o.Listen
	}
	if n.o.Name != "" {
		n.memberFile.Name = n.o.Name
	}
}

// openCluster is the step of open for a store that is a member's.
func (n *Node) openCluster(ctx context.Context) error {
	if r := n.refusal.Load(); r != nil {
		return r
	}
	was := n.memberFile
	n.takeOptions()
	if n.memberFile.Listen != was.Listen || n.memberFile.Name != was.Name {
		if err := writeMember(n.o.FS, n.o.Dir, n.memberFile); err != nil {
			return err
		}
	}
	c, err := n.newCluster()
	if err != nil {
		return err
	}
	n.cluster.Store(c)
	if c.group, err = c.newGroup(); err != nil {
		return err
	}
	n.log.secure = c.secure
	n.log.group = c.group
	return nil
}

// awaitNames waits until a node that has joined has a copy of the names.
func (n *Node) awaitNames(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, namesPatience, ErrNoNames)
	defer cancel()
	for n.state.View() == nil {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-n.failed:
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// awaitSession waits until the node has a session, without which files are neither
// written nor locked. Where no majority answers it is not waited for: what is here
// can be read. An error says that the node cannot take part at all.
func (c *cluster) awaitSession(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, sessionPatience)
	defer cancel()
	for c.group.Session() == 0 {
		select {
		case <-ctx.Done():
			c.log.Warn("no majority of the cluster's voters answers yet: files can be read, as they were when they were last seen here, and not be changed")
			return nil
		case err := <-c.n.failed:
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// sessionPatience is how long the start of a node waits for a session.
const sessionPatience = 5 * time.Second

// namesPatience is how long a node that has just joined waits for the names.
const namesPatience = 60 * time.Second

// recovery opens a file for what could not be stored under its name. It is durable when it
// is closed without an error: nothing else has these bytes.
func (n *Node) recovery(name string) (io.WriteCloser, error) {
	dir := n.path(recoverDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	stem := n.o.Now().UTC().Format("20060102T150405.000") + "-"
	for i := 1; ; i++ {
		f, err := os.OpenFile(filepath.Join(dir, stem+filepath.Base(name)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			return recovered{f}, nil
		}
		if !errors.Is(err, os.ErrExist) || i == maxRecovered {
			return nil, err
		}
		stem = fmt.Sprintf("%s%d-", stem[:len("20060102T150405.000-")], i+1)
	}
}

// maxRecovered is how many files of one name are saved in a millisecond.
const maxRecovered = 1000

// recovered is a file that is durable when it is closed.
type recovered struct{ *os.File }

func (f recovered) Close() error {
	err := errors.Join(f.Sync(), f.File.Close())
	dir, openErr := os.Open(filepath.Dir(f.Name()))
	if openErr != nil {
		return errors.Join(err, openErr)
	}
	return errors.Join(err, dir.Sync(), dir.Close())
}

// observe is told of every command that was applied.
func (n *Node) observe(ch *namespace.Change) {
	if v := n.volume; v != nil {
		v.Observe(ch)
	}
	if ch.Step {
		n.collect.observe()
	}
	c := n.cluster.Load()
	if c == nil {
		return
	}
	if c.group != nil {
		c.group.Observe(ch)
	}
	if ch.Members {
		c.registered(ch.All)
	}
}

// registered is told of each change of the registry, so that a time with one owner does
// not go unnoticed when others end it before this node looks (attend). After a snapshot,
// which all says, it is not known what came before.
func (c *cluster) registered(all bool) {
	if v := c.n.state.View(); v != nil {
		if v.Owners() < 2 || all && v.Epoch > c.epoch+1 {
			c.replica.Doubt(*v)
			c.doubted.Store(true)
		}
		c.epoch = v.Epoch
	}
	c.poke()
}
