package node

import (
	"context"
	"encoding/json"
	"slices"
	"sync"

	"github.com/cairnfs/cairn/p2p"
)

// A node that was away lets in whom its own registry has, and who has joined since it
// does not know. If one of those leads now, nobody else tells the node anything: it
// would stay as it is until another leads. So while it has no session, it asks the
// members that it knows who the members are, and lets those in.

// protocolMembers asks a member for the registry that it knows; the answer is JSON.
const protocolMembers p2p.Protocol = "/cairn/members/1"

// registry is the answer: who the members are as of an epoch.
type registry struct {
	Epoch uint64     `json:"epoch"`
	Peers []peerAddr `json:"peers"`
}

// acquaintances are members as others have told of them.
type acquaintances struct {
	mu   sync.Mutex
	told registry
}

// newer returns what is told of a later epoch than the given one, nil if nothing is.
func (a *acquaintances) newer(epoch uint64) []p2p.Member {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.told.Epoch <= epoch {
		return nil
	}
	ms := make([]p2p.Member, len(a.told.Peers))
	for i, p := range a.told.Peers {
		ms[i] = p2p.Member{ID: p.ID, Addrs: p.Addrs, Role: p2p.RoleStorage, State: p2p.Active}
	}
	return ms
}

// take keeps the answer of a member, if it is the latest.
func (a *acquaintances) take(answer []byte) error {
	var r registry
	if err := json.Unmarshal(answer, &r); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Epoch > a.told.Epoch {
		a.told = r
	}
	return nil
}

// knew reports whether a peer was known for a member before the names were here.
func (c *cluster) knew(peer p2p.PeerID) bool {
	return slices.ContainsFunc(c.members(), func(m p2p.Member) bool { return m.ID == peer })
}

func (c *cluster) handleMembers(context.Context, p2p.PeerID, []byte) ([]byte, error) {
	var r registry
	if v := c.n.state.View(); v != nil {
		r.Epoch = v.Epoch
		for i := range v.Members {
			r.Peers = append(r.Peers, peerAddr{v.Members[i].ID, v.Members[i].Addrs})
		}
	}
	return json.Marshal(r)
}

// acquaint asks all members that are known, unless the node has a session.
func (c *cluster) acquaint(ctx context.Context) {
	if c.group.Session() != 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	var asked sync.WaitGroup
	for _, m := range c.members() {
		if m.ID == c.self {
			continue
		}
		asked.Go(func() {
			answer, err := c.host.Call(ctx, m.ID, protocolMembers)
			if err == nil {
				err = c.known.take(answer)
			}
			if err != nil && ctx.Err() == nil {
				c.log.Debug("a member does not say who the others are", "peer", m.ID, "err", err)
			}
		})
	}
	asked.Wait()
	c.attend()
}
