package membership

import (
	"context"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/cairnfs/cairn/p2p"
)

// How many attempts start in a round, and how many may run. A few suffice: one
// join brings everything that the other side knows, and whoever was away tries
// members at random on its own.
const (
	attemptsPerRound = 8
	maxAttempts      = 16
)

// attempts are the requests that rejoin has started.
type attempts struct {
	mu      sync.Mutex
	running map[p2p.PeerID]struct{} // at most maxAttempts
}

// begin reports whether an attempt to reach id may start; end must follow then.
func (a *attempts) begin(id p2p.PeerID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.running[id]; ok || len(a.running) >= maxAttempts {
		return false
	}
	a.running[id] = struct{}{}
	return true
}

func (a *attempts) end(id p2p.PeerID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.running, id)
}

// rejoin keeps trying to reach the members that are not alive, until ctx ends:
// those that are dead it joins, those that are suspect it asks whether they answer
// again, since memberlist may not come to probe them for long in a large group.
// Attempts run on their own, so that one that hangs holds up nothing.
func (m *Membership) rejoin(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		others, started := m.registry.others(), 0
		for _, i := range rand.Perm(len(others)) {
			id := others[i]
			h, _ := m.table.health(id)
			if h == p2p.Alive || !m.attempts.begin(id) {
				continue
			}
			m.work.Go(func() {
				defer m.attempts.end(id)
				if h == p2p.Suspect {
					m.carrier.knock(id)
				} else {
					m.join(id)
				}
			})
			if started++; started == attemptsPerRound {
				break
			}
		}
		every := rejoinEvery * m.probe
		timer.Reset(every/2 + rand.N(every))
	}
}

// join exchanges the whole state with a member. If one side holds the other dead,
// the first exchange only tells the accused, who raises his incarnation; a second
// makes it known. If it fails, another round comes.
func (m *Membership) join(id p2p.PeerID) {
	for range 2 {
		ip, port := addressOf(id)
		name := string(id) + "/" + net.JoinHostPort(ip.String(), strconv.Itoa(port))
		if _, err := m.list.Join([]string{name}); err != nil {
			return
		}
		if h, _ := m.table.health(id); h != p2p.Dead {
			return
		}
	}
}
