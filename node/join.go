package node

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/chunker"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/host"
	"github.com/cairnfs/cairn/p2p/invite"
)

// Joining takes two questions to any member. The first asks for a nonce, the second
// proves that the joiner has what it was invited with, and says who it is. The
// member has that redeemed, in one command, and answers with what the joiner needs
// to be a member. Asked again by the same joiner the answer is the same.
const protocolJoin p2p.Protocol = "/cairn/join/1"

// joinRequest is a question, in JSON.
type joinRequest struct {
	Token [16]byte               `json:"token"`
	Nonce [invite.NonceSize]byte `json:"nonce"`
	// Of the second question:
	Proof    []byte   `json:"proof,omitempty"`
	Name     string   `json:"name,omitempty"`
	Addrs    []string `json:"addrs,omitempty"`
	Capacity uint64   `json:"capacity,omitempty"`
	Version  uint32   `json:"version,omitempty"` // that the program knows; 0 reads as 1
}

// joinAnswer is the answer to either.
type joinAnswer struct {
	Nonce [invite.NonceSize]byte `json:"nonce,omitzero"`
	// To the second question:
	Cluster string     `json:"cluster,omitempty"`
	Raft    uint64     `json:"raft,omitempty"`
	Role    string     `json:"role,omitempty"`
	Chunker cutting    `json:"chunker,omitzero"`
	Peers   []peerAddr `json:"peers,omitempty"`
	Storage int        `json:"storage,omitempty"` // members that store blocks, the joiner included
	Version uint32     `json:"version,omitempty"` // of the cluster; 0 reads as 1
}

// Errors of joining. Compare with errors.Is.
var (
	// ErrRefused says that a member has refused to let this node in, and why.
	ErrRefused = errors.New("refused by the cluster")
	// ErrUnreachable says that the member that gave the invitation does not
	// answer.
	ErrUnreachable = errors.New("the node that gave the invitation cannot be reached")
	// ErrHasStore says that a store cannot become that of another cluster.
	ErrHasStore = errors.New("joining takes an empty data directory, this one holds a store")
	// ErrJoined says that the store is a member already.
	ErrJoined = errors.New("this store is a member of a cluster already")
)

// Limits of joining.
const (
	maxJoins   = 64 // who ask at the same time
	nonceLives = time.Minute
	maxPeers   = 40 // told to a joiner; the names bring the others
)

// joins are the questions that wait for their second part.
type joins struct {
	mu     sync.Mutex
	nonces map[p2p.PeerID]joinNonce
}

type joinNonce struct {
	nonce [invite.NonceSize]byte
	until time.Time
}

func (j *joins) init() { j.nonces = make(map[p2p.PeerID]joinNonce) }

// give returns a nonce for a joiner.
func (j *joins) give(from p2p.PeerID, now time.Time, random io.Reader) (n joinNonce, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for id, n := range j.nonces {
		if now.After(n.until) {
			delete(j.nonces, id)
		}
	}
	if len(j.nonces) >= maxJoins {
		return n, errors.New("too many nodes are joining; try again in a minute")
	}
	n.until = now.Add(nonceLives)
	_, err = io.ReadFull(random, n.nonce[:])
	j.nonces[from] = n
	return n, err
}

// take returns the nonce that was given to a joiner, once.
func (j *joins) take(from p2p.PeerID, now time.Time) (n joinNonce, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	n, ok = j.nonces[from]
	delete(j.nonces, from)
	return n, ok && now.Before(n.until)
}

// handleJoin answers who wants to join.
func (c *cluster) handleJoin(ctx context.Context, from p2p.PeerID, req []byte) ([]byte, error) {
	answer, err := c.admit(ctx, from, req)
	if err != nil {
		c.log.Warn("a node was not let in", "peer", from, "reason", err)
		return nil, err
	}
	return json.Marshal(answer)
}

func (c *cluster) admit(ctx context.Context, from p2p.PeerID, req []byte) (*joinAnswer, error) {
	var r joinRequest
	if err := json.Unmarshal(req, &r); err != nil {
		return nil, errors.New("request to join cannot be read")
	}
	now := c.n.o.Now()
	if len(r.Proof) == 0 {
		nonce, err := c.joins.give(from, now, c.n.o.Random)
		return &joinAnswer{Nonce: nonce.nonce}, err
	}
	nonce, ok := c.joins.take(from, now)
	if !ok {
		return nil, errors.New("request to join is not the second one, or came too late")
	}
	// Another member may have given the invitation just now.
	if err := c.group.Barrier(ctx); err != nil {
		return nil, err
	}
	id := namespace.InviteID(r.Token)
	inv, err := c.n.state.Invite(id)
	if err != nil {
		return nil, err
	}
	view := c.n.state.View()
	proved := verify(inv, invite.Challenge{
		Cluster: view.Cluster, TokenID: r.Token, Issuer: c.self, Joiner: from, IssuerNonce: nonce.nonce, JoinerNonce: r.Nonce,
	}, r.Proof)
	if !proved {
		return nil, errors.New("the proof of the invitation is wrong")
	}
	version := c.n.state.Version()
	if max(r.Version, 1) < version {
		return nil, fmt.Errorf("the cluster is at version %d, and the cairn that asks knows version %d only: update it", version, max(r.Version, 1))
	}
	m := p2p.Member{ID: from, Name: r.Name, Addrs: r.Addrs, Capacity: r.Capacity}
	if version >= 2 {
		m.Version = r.Version
	}
	if _, err := c.n.propose(ctx, &namespace.Redeem{Invite: id, Member: m}); err != nil {
		return nil, err
	}
	c.attend()
	view = c.n.state.View()
	member := view.Member(from)
	if member == nil {
		return nil, errors.New("removed again")
	}
	c.log.Info("a node has joined", "peer", from, "name", r.Name, "role", member.Role)
	a := &joinAnswer{
		Cluster: view.Cluster, Raft: member.Raft, Role: member.Role.String(), Chunker: c.n.config.Chunker, Version: version,
	}
	for _, p := range view.Members {
		if p.Role == p2p.RoleStorage {
			a.Storage++
		}
		if p.ID != from && len(a.Peers) < maxPeers {
			a.Peers = append(a.Peers, peerAddr{p.ID, p.Addrs})
		}
	}
	return a, nil
}

// JoinOptions say how a node joins. Dir and Token are required.
type JoinOptions struct {
	Dir    string
	Token  string
	Listen string // default DefaultListen
	Name   string // default: that of the host
	// Rejoin has the store of a former member become that of a new one, which keeps
	// its blocks; its names, its key and its membership end.
	Rejoin bool

	FS     vfs.FS
	Now    func() time.Time
	Random io.Reader
	Logger *slog.Logger

	network func(host.Options) (network, error) // as in Options
}

// Joined is what a node has become.
type Joined struct {
	ID      p2p.PeerID
	Cluster string
	Role    string
	// Storage is how many members store blocks, this one included.
	Storage int
	// Former is the member that the node was before, if that is still registered.
	Former p2p.PeerID
}

// Join makes the empty data directory that of a member of the token's cluster.
// Nothing runs on return: Open does.
//
// Errors: those of invite.Parse; ErrHasStore, ErrJoined, ErrNotEmpty, with Rejoin
// ErrNotMember, ErrFounder; ErrUnreachable;
// ErrRefused with the reason. After any of them it can be called again.
func Join(ctx context.Context, o JoinOptions) (Joined, error) {
	no := Options{Dir: o.Dir, FS: o.FS, Now: o.Now, Random: o.Random, Logger: o.Logger, Command: "cairn join", network: o.network}
	no.setDefaults()
	if no.Random == nil {
		no.Random = rand.Reader
	}
	t, err := invite.Parse(o.Token)
	if err != nil {
		return Joined{}, err
	}
	n := &Node{o: no}
	check := n.checkJoin
	if o.Rejoin {
		check = n.checkRejoin
	}
	if err := check(); err != nil {
		return Joined{}, err
	}
	if err := makeDir(no.FS, no.Dir); err != nil {
		return Joined{}, err
	}
	if no.FS == vfs.Default {
		if n.lock, err = acquireLock(no.Dir, no.Command); err != nil {
			return Joined{}, err
		}
		defer n.lock.release()
	}
	if err := check(); err != nil {
		return Joined{}, err
	}
	return n.join(ctx, t, o)
}

// Identity returns the peer id that a node in the data directory has or, with Join,
// will have, so that an invitation can be bound to it. The directory is made, and a
// key in it, if need be. Errors are those of Join.
func Identity(dir string, logger *slog.Logger) (p2p.PeerID, error) {
	o := Options{Dir: dir, Logger: logger}
	o.setDefaults()
	n := &Node{o: o}
	if _, err := readConfig(o.FS, o.Dir); errors.Is(err, ErrNoStore) {
		if err := n.checkJoin(); err != nil {
			return "", err
		}
		if err := makeDir(o.FS, o.Dir); err != nil {
			return "", err
		}
	} else if err != nil {
		return "", err
	}
	_, id, err := makeKey(o.FS, o.Dir, o.Random)
	return id, err
}

// checkJoin fails if the data directory is not empty but for what an interrupted
// Join leaves.
func (n *Node) checkJoin() error {
	_, err := readConfig(n.o.FS, n.o.Dir)
	switch {
	case err == nil:
		if m, ok, err := readMember(n.o.FS, n.o.Dir); err == nil && ok && m.Raft != 0 {
			return fmt.Errorf("%w: %s", ErrJoined, m.Cluster)
		}
		return ErrHasStore
	case !errors.Is(err, ErrNoStore):
		return err
	}
	return checkEmpty(n.o.FS, n.o.Dir)
}

func (n *Node) join(ctx context.Context, t *invite.Token, o JoinOptions) (Joined, error) {
	// The key is kept before anybody knows it: asked again, the cluster must
	// find the same node.
	keyFile := keyName
	if o.Rejoin {
		keyFile = keyName + nextSuffix
	}
	seed, id, err := makeKeyAs(n.o.FS, n.o.Dir, keyFile, n.o.Random)
	if err != nil {
		return Joined{}, err
	}
	listen := o.Listen
	if listen == "" && o.Rejoin {
		listen = n.memberFile.Listen
	}
	if listen == "" {
		listen = DefaultListen
	}
	// It listens already, so that the addresses it tells are those it has.
	h, err := n.o.network(host.Options{Key: seed, Listen: listen, Logger: n.o.Logger})
	if err != nil {
		return Joined{}, fmt.Errorf("%w on %s: %w", ErrListen, listen, err)
	}
	defer h.Close()
	r := joinRequest{Token: t.ID, Name: o.Name, Addrs: h.Addrs(), Version: namespace.Version}
	if r.Name == "" {
		r.Name, _ = os.Hostname()
	}
	if len(r.Addrs) > namespace.MaxAddrs {
		r.Addrs = r.Addrs[:namespace.MaxAddrs]
	}
	if u, err := n.o.FS.GetDiskUsage(n.o.Dir); err == nil {
		r.Capacity = u.TotalBytes
	}
	if _, err := io.ReadFull(n.o.Random, r.Nonce[:]); err != nil {
		return Joined{}, err
	}
	first, err := ask(ctx, h, t, joinRequest{Token: r.Token, Nonce: r.Nonce})
	if err != nil {
		return Joined{}, err
	}
	r.Proof = invite.Sign(t.Seed, invite.Challenge{
		Cluster: t.Cluster, TokenID: t.ID, Issuer: t.Issuer, Joiner: id, IssuerNonce: first.Nonce, JoinerNonce: r.Nonce,
	})
	a, err := ask(ctx, h, t, r)
	if err != nil {
		return Joined{}, err
	}
	j := Joined{ID: id, Cluster: a.Cluster, Role: a.Role, Storage: a.Storage}
	if o.Rejoin {
		j.Former, err = n.becomeAgain(a, listen, o.Name)
		return j, err
	}
	return j, n.become(a, listen, o.Name)
}

// joinPatience is how long one question may take.
const joinPatience = 15 * time.Second

func ask(ctx context.Context, h network, t *invite.Token, r joinRequest) (*joinAnswer, error) {
	req, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinPatience)
	defer cancel()
	answer, err := h.CallStranger(ctx, t.Issuer, t.Addrs, protocolJoin, req)
	var remote *p2p.RemoteError
	switch {
	case errors.As(err, &remote):
		return nil, fmt.Errorf("%w: %s", ErrRefused, remote.Text)
	case err != nil:
		return nil, fmt.Errorf("%w at %v (does it run, is an invitation open, does no firewall stand between?): %w", ErrUnreachable, t.Addrs, err)
	}
	var a joinAnswer
	if err := json.Unmarshal(answer, &a); err != nil {
		return nil, fmt.Errorf("answer of the cluster cannot be read: %w", err)
	}
	return &a, nil
}

// become writes what makes the directory a member's store. Last comes the config,
// without which there is none.
func (n *Node) become(a *joinAnswer, listen, name string) error {
	if err := checkAnswer(a); err != nil {
		return err
	}
	c, err := newConfig(n.o.Random, n.o.Now(), chunker.Params(a.Chunker))
	if err != nil {
		return err
	}
	if _, err := c.format(); err != nil {
		return err
	}
	if err := writeMember(n.o.FS, n.o.Dir, memberOf(a, listen, name)); err != nil {
		return err
	}
	for _, dir := range []string{segmentsDir, journalDir} {
		if err := n.o.FS.MkdirAll(n.path(dir), 0o700); err != nil {
			return err
		}
	}
	return writeConfig(n.o.FS, n.o.Dir, c)
}

func memberOf(a *joinAnswer, listen, name string) memberFile {
	return memberFile{Format: memberFormat, Listen: listen, Name: name, Raft: a.Raft, Cluster: a.Cluster, Joined: true, Peers: a.Peers}
}

// checkAnswer fails if a member cannot be made of the answer.
func checkAnswer(a *joinAnswer) error {
	if a.Raft == 0 || len(a.Cluster) != 32 || len(a.Peers) == 0 {
		return errors.New("answer of the cluster is incomplete")
	}
	if a.Version > namespace.Version {
		return fmt.Errorf("%w: the cluster is at version %d, this program knows %d", ErrNewerFormat, a.Version, namespace.Version)
	}
	return nil
}
