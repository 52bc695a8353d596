// Package membership tells which members of the cluster answer.
//
// It runs memberlist (SWIM with the Lifeguard extensions) over a p2p.Transport, so
// that gossip has no port and no identity of its own: a node's name is its peer id,
// and whoever speaks has proved it. What travels is described in carrier.go.
//
// The registry (p2p.View) alone says who belongs to the cluster. Requests of others
// are refused, names that are not in it are ignored, and a member that is taken out
// of it is dead here from that moment on.
//
// Health combines two observations. The group's: memberlist holds a member up until
// nobody reached it for some seconds. And this node's own: a member that did not
// answer the latest request is suspect here, even while others still reach it.
//
// No seed is needed, ever. While a registered member is not up, this node keeps
// trying to join it, so a group that was split, forgotten or restarted as a whole
// comes together again within a few seconds of being able to (see rejoin.go).
package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/cairnfs/cairn/p2p"
)

// DefaultProbe is how often this node probes a member, unless configured.
const DefaultProbe = 800 * time.Millisecond

// minProbe is the least that leaves time for an answer.
const minProbe = 10 * time.Millisecond

// How the other times follow from Options.Probe, with what they are by default.
// A member that dies is found by the first to probe it (within about a probe, more
// in larger groups), suspected when that has failed (one more), and dead suspectFor
// after another confirms it: some 4 to 6 s in all.
const (
	suspectFor  = 3  // probes from suspicion to death in a group of up to ten: 2.4 s
	suspectMax  = 2  // times suspectFor, if nobody else confirms it: 4.8 s
	slowestMax  = 3  // times the probe interval, by a node that doubts itself: 2.4 s
	rejoinEvery = 2  // probes between attempts to join who is not up: 1.6 s, jittered
	forgetAfter = 30 // probes until memberlist forgets the dead: 24 s
	syncEvery   = 30 // probes between exchanges of the whole state: 24 s
	exchangeFor = 6  // probes until an exchange is given up: 4.8 s
	leaveFor    = 2  // probes for which Close waits until others know: 1.6 s
)

// Options say what a Membership works with.
type Options struct {
	// Transport carries the gossip. Required. It must outlive the Membership.
	Transport p2p.Transport
	// Members returns the registry as it is now. Required. It is called often,
	// from many goroutines and while locks of memberlist are held: it must return
	// at once and not call the Membership.
	Members func() p2p.View
	// OnChange is told of every other member whose health has changed since the
	// last call for it; at first all are dead. It is called from one goroutine
	// and with no lock held; what changes while it runs is told afterwards, and
	// only as it then is. It must not call Close. Optional.
	OnChange func(id p2p.PeerID, h p2p.Health)
	// Logger gets what memberlist says, at level debug. Optional.
	Logger *slog.Logger
	// Probe is how often a member is probed; all other times follow from it.
	// It must be the same on all nodes. 0 is DefaultProbe; tests use less.
	Probe time.Duration
}

// Membership is this node's part in the gossip. It is a p2p.Liveness. Its methods
// may be called from any goroutine.
type Membership struct {
	self     p2p.PeerID
	net      p2p.Transport
	registry *registry
	table    *table
	carrier  *carrier
	list     *memberlist.Memberlist
	probe    time.Duration
	onChange func(p2p.PeerID, p2p.Health)

	stop func()         // ends the goroutines below
	work sync.WaitGroup // tell, rejoin and its attempts

	attempts attempts

	closing  sync.Once
	closeErr error
}

var _ p2p.Liveness = (*Membership)(nil)

// Open starts to take part, and returns without waiting for others.
func Open(o Options) (*Membership, error) {
	if o.Transport == nil || o.Members == nil {
		return nil, errors.New("membership needs a transport and the registry")
	}
	if o.Probe == 0 {
		o.Probe = DefaultProbe
	}
	if o.Probe < minProbe {
		return nil, fmt.Errorf("membership cannot probe every %v: the least is %v", o.Probe, minProbe)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.OnChange == nil {
		o.OnChange = func(p2p.PeerID, p2p.Health) {}
	}

	m := &Membership{
		self:     o.Transport.Self(),
		net:      o.Transport,
		registry: &registry{self: o.Transport.Self(), now: o.Members},
		table:    newTable(),
		probe:    o.Probe,
		onChange: o.OnChange,
		attempts: attempts{running: make(map[p2p.PeerID]struct{})},
	}
	m.carrier = newCarrier(o.Transport, m.registry, m.table.outcome, o.Probe, exchangeFor*o.Probe)
	list, err := memberlist.Create(m.config(o.Logger))
	if err != nil {
		return nil, fmt.Errorf("start gossip: %w", errors.Join(err, m.carrier.Shutdown()))
	}
	m.list = list

	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	m.work.Go(func() { m.tell(ctx) })
	m.work.Go(func() { m.rejoin(ctx) })
	o.Transport.Handle(Protocol, m.carrier.serve)
	return m, nil
}

// config is memberlist's configuration.
func (m *Membership) config(l *slog.Logger) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = string(m.self)
	c.Transport = m.carrier
	c.RequireNodeNames = true // the carrier goes by names alone
	c.Logger = slog.NewLogLogger(l.Handler(), slog.LevelDebug)
	c.Alive = m
	c.Events = m

	c.ProbeInterval = m.probe
	// A third, so that the answers of those who are asked to probe in our stead,
	// which wait as long again, arrive within the interval.
	c.ProbeTimeout = m.probe * 3 / 10
	c.SuspicionMult = suspectFor
	c.SuspicionMaxTimeoutMult = suspectMax
	c.AwarenessMaxMultiplier = slowestMax
	c.GossipInterval = m.probe / 5
	c.GossipToTheDeadTime = forgetAfter * m.probe
	c.PushPullInterval = syncEvery * m.probe
	c.TCPTimeout = exchangeFor * m.probe
	c.UDPBufferSize = packetSize
	c.EnableCompression = false // all of it is small
	return c
}

// Health returns a member's health as seen from here, and when it was last held
// alive: now if it still is, the zero time if it never was since Open. Who is not
// in the registry is dead, and never was alive. This node itself is alive.
func (m *Membership) Health(id p2p.PeerID) (p2p.Health, time.Time) {
	if !m.registry.has(id) {
		return p2p.Dead, time.Time{}
	}
	if id == m.self {
		return p2p.Alive, time.Now()
	}
	return m.table.health(id)
}

// Close tells the others that this node leaves, for at most a few probes, and stops.
// From then on all others are dead. The transport stays open.
func (m *Membership) Close() error {
	m.closing.Do(func() {
		m.stop()
		// Nobody may be there to hear it: then they find out by probing.
		_ = m.list.Leave(leaveFor * m.probe)
		m.closeErr = m.list.Shutdown()
		m.net.Handle(Protocol, nil)
		m.work.Wait()
		m.table.close()
	})
	return m.closeErr
}

// tell tells of changes, until ctx ends.
func (m *Membership) tell(ctx context.Context) {
	// A change of the registry is not announced: look for it now and then.
	tick := time.NewTicker(m.probe)
	defer tick.Stop()
	for {
		for _, c := range m.table.changes(m.registry.has) {
			if ctx.Err() != nil {
				return
			}
			m.onChange(c.id, c.health)
		}
		select {
		case <-ctx.Done():
			return
		case <-m.table.changed:
		case <-tick.C:
		}
	}
}

// NotifyAlive lets memberlist take notice of members only. Part of
// memberlist.AliveDelegate; called with memberlist's lock held.
func (m *Membership) NotifyAlive(n *memberlist.Node) error {
	id := p2p.PeerID(n.Name)
	if id == m.self {
		return nil // memberlist needs itself, registered or not
	}
	if !m.registry.has(id) {
		return errNotMember
	}
	if ip, port := addressOf(id); !ip.Equal(n.Addr) || port != int(n.Port) {
		return fmt.Errorf("address of %s is not the one that follows from its id", id.Short())
	}
	return nil
}

// NotifyJoin is part of memberlist.EventDelegate; called with memberlist's lock held.
func (m *Membership) NotifyJoin(n *memberlist.Node) {
	if id := p2p.PeerID(n.Name); id != m.self {
		m.table.joined(id)
	}
}

// NotifyLeave is part of memberlist.EventDelegate; called with memberlist's lock held.
func (m *Membership) NotifyLeave(n *memberlist.Node) { m.table.left(p2p.PeerID(n.Name)) }

// NotifyUpdate is part of memberlist.EventDelegate. Nodes carry no data.
func (m *Membership) NotifyUpdate(*memberlist.Node) {}
