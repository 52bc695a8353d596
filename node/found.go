package node

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/node/control"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/invite"
)

// The first invitation founds the cluster: the node gets a key, listens, and its
// names become those of a group, of which it is the only member so far. Files that
// are open stay open.

// found makes the node the first member of a new cluster.
func (n *Node) found(ctx context.Context) (err error) {
	var id [16]byte
	if _, err := io.ReadFull(n.o.Random, id[:]); err != nil {
		return err
	}
	n.memberFile.Raft, n.memberFile.Cluster = 1, hex.EncodeToString(id[:])
	if v := n.state.View(); v != nil { // an attempt before has come that far
		n.memberFile.Cluster = v.Cluster
	}
	n.takeOptions()
	c, err := n.newCluster()
	if err != nil {
		return err
	}
	if err := writeMember(n.o.FS, n.o.Dir, n.memberFile); err != nil {
		return errors.Join(err, c.close())
	}
	first := c.describe()
	first.Role, first.State = p2p.RoleStorage, p2p.Active
	if err := n.begin(ctx, c, first); err != nil {
		return errors.Join(err, c.close())
	}
	c.start(ctx)
	if err := c.awaitSession(ctx); err != nil {
		n.log.fail(err) // those who wait for it are to know it as well
		return err
	}
	n.volume.Share(c.group)
	c.announce(ctx) // an attempt before may have registered other addresses
	return nil
}

// begin hands the order of commands over from one log to the other. What was
// proposed before is durable in the index when the first command of the group is
// written, so that no replay needs both.
func (n *Node) begin(ctx context.Context, c *cluster, first p2p.Member) error {
	n.log.mu.Lock()
	defer n.log.mu.Unlock()
	found := &namespace.Command{Time: n.o.Now().UnixNano(), Ops: []namespace.Op{&namespace.FoundCluster{ID: n.memberFile.Cluster, First: first}}}
	if n.state.View() == nil {
		res, err := n.log.solo.Propose(ctx, found)
		if err == nil {
			err = res.Err
		}
		if err != nil {
			return err
		}
	}
	if err := n.log.solo.Sync(ctx); err != nil {
		return err
	}
	if err := raft.Found(n.state, n.index.Pebble(), 1); err != nil {
		return err
	}
	if err := n.index.Flush(); err != nil {
		return err
	}
	group, err := c.newGroup()
	if err != nil {
		return err
	}
	c.group = group
	n.cluster.Store(c)
	n.log.secure = c.secure
	if err := group.Start(); err != nil {
		return err
	}
	n.log.group = group
	return nil
}

// Limits of an invitation.
const (
	defaultTTL = time.Hour
	maxTTL     = 30 * 24 * time.Hour
)

// Invite returns a token that lets others join, and founds the cluster if there is
// none.
func (n *Node) Invite(ctx context.Context, o control.InviteOptions) (control.Invitation, error) {
	if o.TTL == 0 {
		o.TTL = defaultTTL
	}
	if o.Uses == 0 {
		o.Uses = 1
	}
	if o.Role == "" {
		o.Role = p2p.RoleStorage.String()
	}
	role, err := p2p.ParseRole(o.Role)
	if err != nil {
		return control.Invitation{}, err
	}
	if o.TTL < 0 || o.TTL > maxTTL {
		return control.Invitation{}, fmt.Errorf("an invitation lasts at most %v", maxTTL)
	}
	if err := n.ensureCluster(ctx, o.Listen); err != nil {
		return control.Invitation{}, err
	}
	c := n.cluster.Load()
	t := invite.Token{
		Version: invite.Version, Cluster: n.state.View().Cluster, Issuer: c.self, Addrs: c.host.Addrs(), Role: role,
	}
	if len(t.Addrs) > invite.MaxAddrs {
		t.Addrs = t.Addrs[:invite.MaxAddrs]
	}
	if _, err := io.ReadFull(n.o.Random, t.ID[:]); err != nil {
		return control.Invitation{}, err
	}
	if _, err := io.ReadFull(n.o.Random, t.Seed[:]); err != nil {
		return control.Invitation{}, err
	}
	expires := n.o.Now().Add(o.TTL)
	op := &namespace.AddInvite{ID: t.ID, Expires: expires.UnixNano(), Uses: o.Uses, Role: role, Peer: p2p.PeerID(o.Peer)}
	copy(op.Key[:], t.PublicKey())
	if _, err := n.propose(ctx, op); err != nil {
		return control.Invitation{}, err
	}
	c.attend()
	return control.Invitation{Token: t.String(), ID: hex.EncodeToString(t.ID[:]), Addrs: t.Addrs, Expires: expires}, nil
}

// ensureCluster founds the cluster if there is none.
func (n *Node) ensureCluster(ctx context.Context, listen string) error {
	n.founding.Lock()
	defer n.founding.Unlock()
	if n.cluster.Load() != nil {
		return nil
	}
	if is, err := n.clustered(); err != nil {
		return err
	} else if is {
		return ErrOffline
	}
	if listen != "" {
		n.o.Listen = listen
	}
	return n.found(ctx)
}

// RevokeInvite makes an invitation, named by its id or its token, worthless.
func (n *Node) RevokeInvite(ctx context.Context, text string) error {
	var id namespace.InviteID
	if t, err := invite.Parse(text); err == nil {
		id = t.ID
	} else if b, err := hex.DecodeString(text); err == nil && len(b) == len(id) {
		copy(id[:], b)
	} else {
		return namespace.ErrNoInvite
	}
	_, err := n.propose(ctx, &namespace.DropInvite{ID: id})
	return err
}

// doorGrace is how long after an invitation has expired those who come with it are
// still told why they are not let in.
const doorGrace = 10 * time.Minute

// invites reports whether anybody is expected who has been invited, also by what
// has been used, revoked or expired meanwhile.
func (n *Node) invites(now time.Time) bool {
	all, err := n.state.Invites()
	if err != nil {
		return false
	}
	for _, i := range all {
		if i.Expires > now.Add(-doorGrace).UnixNano() {
			return true
		}
	}
	return false
}

// verify reports whether a proof is that of the invitation's holder.
func verify(i namespace.Invite, ch invite.Challenge, proof []byte) bool {
	return invite.Verify(ed25519.PublicKey(i.Key[:]), ch, proof)
}
