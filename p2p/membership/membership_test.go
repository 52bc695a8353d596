package membership

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnfs/cairn/p2p"
)

const (
	// fast is the probe interval of most tests.
	fast = 50 * time.Millisecond
	// patience is how long a test waits for what must happen.
	patience = 60 * time.Second
)

// eventually waits until ok holds.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// cluster is some nodes with one registry.
type cluster struct {
	t     *testing.T
	net   *fakeNet
	probe time.Duration

	mu    sync.Mutex
	view  p2p.View
	nodes map[p2p.PeerID]*Membership
}

// newCluster returns a cluster of n registered members, n0 and so on, none started.
func newCluster(t *testing.T, n int) *cluster {
	c := &cluster{t: t, net: newFakeNet(), probe: fast, nodes: make(map[p2p.PeerID]*Membership)}
	var ids []p2p.PeerID
	for i := range n {
		ids = append(ids, name(i))
	}
	c.register(ids...)
	t.Cleanup(func() {
		c.net.Heal()
		for _, m := range c.running() {
			c.kill(m.self)
		}
	})
	return c
}

func name(i int) p2p.PeerID { return p2p.PeerID(fmt.Sprintf("n%d", i)) }

// register makes ids the members.
func (c *cluster) register(ids ...p2p.PeerID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.view = viewOf(c.view.Epoch+1, ids...)
}

func viewOf(epoch uint64, ids ...p2p.PeerID) p2p.View {
	v := p2p.View{Cluster: "test", Epoch: epoch}
	for _, id := range ids {
		v.Members = append(v.Members, p2p.Member{ID: id, Role: p2p.RoleStorage, State: p2p.Active})
	}
	return v
}

func (c *cluster) members() p2p.View {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.view
}

// start starts a node.
func (c *cluster) start(id p2p.PeerID, options ...func(*Options)) *Membership {
	c.t.Helper()
	o := Options{Transport: c.net.Join(id), Members: c.members, Probe: c.probe}
	for _, f := range options {
		f(&o)
	}
	m, err := Open(o)
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[id] = m
	return m
}

// startAll starts all members and waits until they see each other.
func (c *cluster) startAll() {
	c.t.Helper()
	for _, m := range c.members().Members {
		c.start(m.ID)
	}
	c.allAlive()
}

// kill stops a node without a word to the others.
func (c *cluster) kill(id p2p.PeerID) {
	c.t.Helper()
	c.net.Leave(id)
	c.mu.Lock()
	m := c.nodes[id]
	delete(c.nodes, id)
	c.mu.Unlock()
	if err := m.Close(); err != nil {
		c.t.Error(err)
	}
}

func (c *cluster) running() []*Membership {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*Membership
	for _, m := range c.nodes {
		out = append(out, m)
	}
	return out
}

func (c *cluster) allAlive() {
	c.t.Helper()
	for _, m := range c.running() {
		for _, o := range c.running() {
			c.sees(m, o.self, p2p.Alive)
		}
	}
}

// sees waits until m sees id in the given health.
func (c *cluster) sees(m *Membership, id p2p.PeerID, want p2p.Health) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%s sees %s %s", m.self, id, want), func() bool {
		h, _ := m.Health(id)
		return h == want
	})
}

// othersSee waits until all running nodes but id see it in the given health.
func (c *cluster) othersSee(id p2p.PeerID, want p2p.Health) {
	c.t.Helper()
	for _, m := range c.running() {
		if m.self != id {
			c.sees(m, id, want)
		}
	}
}

// split parts the nodes in side from all others.
func (c *cluster) split(side ...p2p.PeerID) {
	for _, a := range c.members().Members {
		for _, b := range side {
			if !slices.Contains(side, a.ID) {
				c.net.Cut(a.ID, b)
			}
		}
	}
}

func TestMembersSeeEachOtherAlive(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 5)
	c.startAll()
	m := c.nodes["n0"]
	for _, id := range []p2p.PeerID{"n0", "n1"} {
		before := time.Now()
		if h, at := m.Health(id); h == p2p.Alive && at.Before(before) {
			t.Errorf("%s is alive, but was so last at %v, before %v", id, at, before)
		}
	}
}

func TestAMemberThatWasNeverSeenIsDeadSinceEver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	m := c.start("n0")
	if h, at := m.Health("n1"); h != p2p.Dead || !at.IsZero() {
		t.Errorf("n1 is %v, last alive at %v", h, at)
	}
}

func TestAKilledMemberIsDeadAndAliveAgainWhenItReturns(t *testing.T) {
	t.Parallel()
	for _, n := range []int{2, 3, 5} {
		t.Run(fmt.Sprint(n, " members"), func(t *testing.T) {
			t.Parallel()
			c := newCluster(t, n)
			c.startAll()
			before := time.Now()
			c.kill("n1")
			c.othersSee("n1", p2p.Dead)
			for _, m := range c.running() {
				if _, at := m.Health("n1"); at.Before(before) || at.After(time.Now()) {
					t.Errorf("%s: n1 was alive last at %v, killed after %v", m.self, at, before)
				}
			}
			c.start("n1")
			c.allAlive()
		})
	}
}

// Nobody would notice by probing for at least 4 intervals, which are 16 s here.
func TestWhoLeavesPolitelyIsDeadAtOnce(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.probe = 4 * time.Second
	c.startAll()
	start := time.Now()
	m := c.nodes["n2"]
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	c.othersSee("n2", p2p.Dead)
	if d := time.Since(start); d >= 4*c.probe {
		t.Errorf("seen dead after %v", d)
	}
	if h, _ := m.Health("n0"); h != p2p.Dead {
		t.Errorf("after Close n0 is %v", h)
	}
	if err := m.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestAMemberThatOnlyOthersReachIsSuspect(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.startAll()
	c.net.Cut("n0", "n1")
	c.sees(c.nodes["n0"], "n1", p2p.Suspect)
	c.sees(c.nodes["n1"], "n0", p2p.Suspect)
	c.sees(c.nodes["n2"], "n0", p2p.Alive)
	c.net.Heal()
	c.allAlive()
}

func TestAMemberThatStallsDiesAndComesBack(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.startAll()
	c.net.Stall("n3")
	c.othersSee("n3", p2p.Dead)
	for i := range 3 {
		c.othersSee(name(i), p2p.Alive)
	}
	c.net.Heal()
	c.allAlive()
}

// What a node knows of the dead shows in the state that it sends to whom it joins.
func TestAPartitionHealsAfterTheDeadAreForgotten(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	var known sync.Map // from id: the state it sent last
	c.net.Watch(func(from, to p2p.PeerID, req []byte) {
		if len(req) > 64 && req[0] == kindExchange {
			known.Store(from, bytes.Clone(req))
		}
	})
	c.startAll()
	c.split("n0", "n1")
	for _, pair := range [][2]p2p.PeerID{{"n0", "n2"}, {"n1", "n3"}, {"n2", "n0"}, {"n3", "n1"}} {
		c.sees(c.nodes[pair[0]], pair[1], p2p.Dead)
	}
	for _, m := range c.running() {
		other := []byte("n2")
		if m.self == "n2" || m.self == "n3" {
			other = []byte("n0")
		}
		eventually(t, fmt.Sprintf("%s has forgotten %s", m.self, other), func() bool {
			state, ok := known.Load(m.self)
			return ok && bytes.Contains(state.([]byte), []byte(m.self)) && !bytes.Contains(state.([]byte), other)
		})
	}
	c.net.Heal()
	c.allAlive()
}

func TestAPartitionHealsBeforeTheDeadAreForgotten(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	c.split("n0")
	c.sees(c.nodes["n0"], "n1", p2p.Dead)
	c.sees(c.nodes["n0"], "n2", p2p.Dead)
	c.othersSee("n0", p2p.Dead)
	c.net.Heal()
	c.allAlive()
}

func TestRestartOfAllAtOnceHealsWithoutASeed(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 4)
	c.startAll()
	for i := range 4 {
		c.net.Leave(name(i))
	}
	for i := range 4 {
		c.kill(name(i))
	}
	c.startAll()
}

func TestStrangersAreIgnored(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.register("n0", "n1")
	everybody := viewOf(1, "n0", "n1", "n2")
	c.start("n0")
	// n1 takes the stranger in, and gossips about it.
	c.start("n1", func(o *Options) { o.Members = func() p2p.View { return everybody } })
	c.start("n2", func(o *Options) { o.Members = func() p2p.View { return everybody } })
	c.sees(c.nodes["n0"], "n1", p2p.Alive)
	c.sees(c.nodes["n1"], "n0", p2p.Alive)
	c.sees(c.nodes["n1"], "n2", p2p.Alive)
	// n1 exchanges its state with n0 again and again once they have been apart.
	c.net.Cut("n0", "n1")
	c.sees(c.nodes["n0"], "n1", p2p.Suspect)
	c.net.Heal()
	c.sees(c.nodes["n0"], "n1", p2p.Alive)

	if h, at := c.nodes["n0"].Health("n2"); h != p2p.Dead || !at.IsZero() {
		t.Errorf("stranger is %v, last alive at %v", h, at)
	}
	for _, n := range c.nodes["n0"].list.Members() {
		if n.Name == "n2" {
			t.Error("stranger got into the gossip")
		}
	}
	// As soon as it is a member, it is none.
	c.register("n0", "n1", "n2")
	c.allAlive()
}

func TestWhoIsTakenOutOfTheRegistryDisappears(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	c.startAll()
	m := c.nodes["n0"]
	c.register("n0", "n1")
	if h, at := m.Health("n2"); h != p2p.Dead || !at.IsZero() {
		t.Errorf("removed member is %v, last alive at %v", h, at)
	}
	eventually(t, "memberlist and the table drop it", func() bool {
		m.table.mu.Lock()
		defer m.table.mu.Unlock()
		return m.table.peers["n2"] == nil && m.list.NumMembers() == 2
	})
	c.sees(m, "n1", p2p.Alive)
	c.register("n0", "n1", "n2")
	c.allAlive()
}

func TestChangesAreToldOneAfterTheOther(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 3)
	var (
		self    atomic.Pointer[Membership]
		running atomic.Int32
		mu      sync.Mutex
		told    = make(map[p2p.PeerID][]p2p.Health)
	)
	self.Store(c.start("n0", func(o *Options) {
		o.OnChange = func(id p2p.PeerID, h p2p.Health) {
			if running.Add(1) != 1 {
				t.Error("two calls at once")
			}
			defer running.Add(-1)
			if m := self.Load(); m != nil {
				m.Health(id) // no lock is held that this would need
			}
			mu.Lock()
			defer mu.Unlock()
			told[id] = append(told[id], h)
		}
	}))
	last := func(id p2p.PeerID, want p2p.Health) {
		t.Helper()
		eventually(t, fmt.Sprintf("%s is told to be %v", id, want), func() bool {
			mu.Lock()
			defer mu.Unlock()
			s := told[id]
			return len(s) > 0 && s[len(s)-1] == want
		})
	}
	c.start("n1")
	c.start("n2")
	last("n1", p2p.Alive)
	last("n2", p2p.Alive)
	c.kill("n1")
	last("n1", p2p.Dead)
	c.register("n0", "n1")
	last("n2", p2p.Dead)
	c.start("n1")
	last("n1", p2p.Alive)

	if err := self.Load().Close(); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if told["n0"] != nil {
		t.Error("a node was told of itself")
	}
	for id, s := range told {
		if s[0] == p2p.Dead || len(slices.Compact(slices.Clone(s))) != len(s) {
			t.Errorf("%s: told of what was no change: %v", id, s)
		}
	}
}

func TestOpenRefusesWhatItCannotWorkWith(t *testing.T) {
	t.Parallel()
	net := newFakeNet()
	view := func() p2p.View { return p2p.View{} }
	for name, o := range map[string]Options{
		"no transport": {Members: view},
		"no registry":  {Transport: net.Join("n0")},
		"no time":      {Transport: net.Join("n0"), Members: view, Probe: time.Nanosecond},
		"less":         {Transport: net.Join("n0"), Members: view, Probe: -time.Second},
	} {
		if m, err := Open(o); err == nil {
			t.Errorf("%s: opened", name)
			_ = m.Close()
		}
	}
}

// A node is started before its own registration has reached it.
func TestANodeThatIsNotRegisteredYetWaits(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	c.register("n0")
	c.start("n0")
	m := c.start("n1")
	if h, _ := m.Health("n1"); h != p2p.Dead {
		t.Errorf("it holds itself %v", h)
	}
	c.register("n0", "n1")
	c.allAlive()
}

func TestTheStateOfAThousandMembersFitsInAnExchange(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 0)
	const n = 8
	var ids []p2p.PeerID
	for i := range n {
		ids = append(ids, p2p.PeerID(fmt.Sprintf("12D3KooW%044d", i))) // as long as real ones
	}
	c.register(ids...)
	c.startAll()
	var size atomic.Int64
	c.net.Watch(func(_, _ p2p.PeerID, req []byte) {
		if req[0] == kindExchange && bytes.Contains(req, []byte(ids[0])) && bytes.Contains(req, []byte(ids[n-1])) {
			size.Store(int64(len(req)))
		}
	})
	c.kill(ids[1]) // the others try to join it from then on
	eventually(t, "a state of all is sent", func() bool { return size.Load() > 0 })
	if got := size.Load() / n * 1000; got > maxExchange {
		t.Errorf("%d bytes for 1,000 members, the limit is %d", got, maxExchange)
	} else {
		t.Logf("%d bytes for 1,000 members", got)
	}
}
