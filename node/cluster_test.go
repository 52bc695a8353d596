package node

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/node/control"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/host"
	"github.com/cairnfs/cairn/p2p/invite"
	"github.com/cairnfs/cairn/volume"
)

const loopback = "127.0.0.1:0"

// member opens a store in dir that takes part in its cluster, on the loopback.
func openMember(t testing.TB, o Options) *Node {
	t.Helper()
	o.Create, o.Listen, o.Reserve = true, loopback, -1
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	n, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if n.lock != nil || o.FS != nil {
			n.close(t)
		}
	})
	return n
}

// close closes the node once.
func (n *Node) close(t testing.TB) {
	t.Helper()
	if n.index == nil {
		return
	}
	if err := n.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	n.index = nil
}

// joined makes dir that of a member of a's cluster and runs it.
func joined(t testing.TB, a *Node, dir string) *Node {
	t.Helper()
	inv, err := a.Invite(t.Context(), control.InviteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Join(t.Context(), JoinOptions{Dir: dir, Token: inv.Token, Listen: loopback, Name: filepath.Base(dir)}); err != nil {
		t.Fatal(err)
	}
	return openMember(t, Options{Dir: dir})
}

// write writes a file through a volume and closes it.
func write(t testing.TB, v *volume.Volume, name string, data []byte) {
	t.Helper()
	_, h, err := v.Create(t.Context(), namespace.RootIno, name, 0o644, syscall.O_WRONLY, volume.Caller{})
	if err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
	if _, err := h.Write(t.Context(), data, 0); err != nil {
		t.Fatal(err)
	}
	if err := h.Flush(t.Context()); err != nil {
		t.Fatalf("close %s: %v", name, err)
	}
	h.Release()
}

// read reads a whole file through a volume.
func read(t testing.TB, v *volume.Volume, name string) []byte {
	t.Helper()
	a, err := v.Lookup(t.Context(), namespace.RootIno, name)
	if err != nil {
		t.Fatalf("lookup %s: %v", name, err)
	}
	h, err := v.Open(t.Context(), a.Ino, syscall.O_RDONLY)
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	defer h.Release()
	p := make([]byte, a.Size+1<<20)
	n, err := h.Read(t.Context(), p, 0)
	if err != nil {
		t.Fatalf("read %s: %v", name, err)
	}
	return p[:n]
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func TestAStoreBecomesACluster(t *testing.T) {
	dir := t.TempDir()
	a := openMember(t, Options{Dir: filepath.Join(dir, "a"), Name: "a"})
	before := castest.Bytes(1, 300<<10)
	write(t, a.Volume(), "before", before)
	// A file that is being written while the cluster is founded stays what it is.
	_, open, err := a.Volume().Create(t.Context(), namespace.RootIno, "open", 0o644, syscall.O_RDWR, volume.Caller{})
	if err != nil {
		t.Fatal(err)
	}
	half := castest.Bytes(2, 3<<20)
	if _, err := open.Write(t.Context(), half, 0); err != nil {
		t.Fatal(err)
	}
	b := joined(t, a, filepath.Join(dir, "b"))
	if _, err := open.Write(t.Context(), half, int64(len(half))); err != nil {
		t.Fatal(err)
	}
	if err := open.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	open.Release()
	if got := read(t, b.Volume(), "before"); string(got) != string(before) {
		t.Errorf("%d bytes of what was there before", len(got))
	}
	if got := read(t, b.Volume(), "open"); string(got) != string(half)+string(half) {
		t.Errorf("%d bytes of what was open", len(got))
	}
	write(t, b.Volume(), "from b", before[:100])
	if got := read(t, a.Volume(), "from b"); string(got) != string(before[:100]) {
		t.Errorf("%q", got)
	}
	s, err := a.Status(t.Context())
	if err != nil || s.Cluster == nil || len(s.Peers) != 1 || s.Peers[0].Name != "b" || s.Node.Name != "a" || s.Raft.Leader == "" {
		t.Errorf("%+v %v", s, err)
	}

	// Both stop and come back; with two, neither can change anything alone.
	b.close(t)
	a.close(t)
	looked, err := Open(t.Context(), Options{Dir: filepath.Join(dir, "a"), Offline: true})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := looked.Status(t.Context()); err != nil || s.Cluster == nil || s.Node != nil || s.Namespace.Files != 3 {
		t.Errorf("offline: %+v %v", s, err)
	}
	if err := looked.SetCopies(t.Context(), 1); !errors.Is(err, ErrOffline) {
		t.Errorf("a change offline: %v", err)
	}
	looked.close(t)
	a = openMember(t, Options{Dir: filepath.Join(dir, "a")})
	b = openMember(t, Options{Dir: filepath.Join(dir, "b")})
	write(t, b.Volume(), "again", before)
	if got := read(t, a.Volume(), "again"); string(got) != string(before) {
		t.Errorf("%d bytes after a restart", len(got))
	}
	if s, err := b.Status(t.Context()); err != nil || s.Node.Name != "b" {
		t.Errorf("the name is forgotten: %+v %v", s.Node, err)
	}
}

// Rule 20.
func TestAMemberThatIsRemovedStops(t *testing.T) {
	dir := t.TempDir()
	a := openMember(t, Options{Dir: filepath.Join(dir, "a")})
	b := joined(t, a, filepath.Join(dir, "b"))
	c := joined(t, a, filepath.Join(dir, "c"))
	eventually(t, "three vote", func() bool { return len(a.cluster.Load().group.Status().Voters) == 3 })
	id := c.cluster.Load().self
	if err := a.RemovePeer(t.Context(), string(id)[len(id)-8:]); err != nil {
		t.Fatal(err)
	}
	if a.cluster.Load().host.(*host.Host).Connected(id) {
		t.Error("the connection is still there")
	}
	eventually(t, "two vote", func() bool { return len(a.cluster.Load().group.Status().Voters) == 2 })
	write(t, b.Volume(), "goes on", nil)
	if err := a.RemovePeer(t.Context(), string(a.cluster.Load().self)); err == nil {
		t.Error("a node removed itself")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := c.cluster.Load().host.Call(ctx, a.cluster.Load().self, protocolInfo); err == nil {
		t.Error("who was removed is still answered")
	}
	refused(t, c, raft.Removed)
	c.abandon()
}

// Rule 1, and that no names are lost on the way from one log to the other: whenever
// the power fails, the store opens with all that was synced, and can found.
func TestFoundingSurvivesAPowerLoss(t *testing.T) {
	seed := mrand.Uint64()
	t.Logf("seed %d", seed)
	r := mrand.New(mrand.NewPCG(seed, 0))
	disk := vfs.NewCrashableMem()
	o := Options{Dir: "store", FS: disk, Create: true, Listen: loopback, Reserve: -1, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	a := openMember(t, o)
	write(t, a.Volume(), "before", []byte("x"))
	if err := a.Volume().Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	var clones []*vfs.MemFS
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for len(clones) < 200 {
			clones = append(clones, disk.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.IntN(101), RNG: r}))
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(r.IntN(3)) * time.Millisecond):
			}
		}
	}()
	if _, err := a.Invite(t.Context(), control.InviteOptions{}); err != nil {
		t.Fatal(err)
	}
	write(t, a.Volume(), "after", []byte("y"))
	if err := a.Volume().Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(stop)
	<-done
	clones = append(clones, disk.CrashClone(vfs.CrashCloneCfg{}))
	a.close(t)
	last := len(clones) - 1
	step := max(1, len(clones)/6)
	for n, clone := range clones {
		if n%step != 0 && n != last {
			continue
		}
		o.FS = clone
		b, err := Open(t.Context(), o)
		if err != nil {
			t.Fatalf("clone %d of %d: %v", n, last, err)
		}
		if got := read(t, b.Volume(), "before"); string(got) != "x" {
			t.Errorf("clone %d: %q", n, got)
		}
		if n == last {
			if got := read(t, b.Volume(), "after"); string(got) != "y" {
				t.Errorf("after the power loss: %q", got)
			}
		}
		if _, err := b.Invite(t.Context(), control.InviteOptions{}); err != nil {
			t.Errorf("clone %d: %v", n, err)
		}
		write(t, b.Volume(), "new", []byte("z"))
		b.close(t)
	}
}

// asker is a node that wants to join and does not do it right.
type asker struct {
	t     *testing.T
	host  *host.Host
	token *invite.Token
}

func newAsker(t *testing.T, a *Node) *asker {
	inv, err := a.Invite(t.Context(), control.InviteOptions{Uses: 5})
	if err != nil {
		t.Fatal(err)
	}
	token, err := invite.Parse(inv.Token)
	if err != nil {
		t.Fatal(err)
	}
	seed := make([]byte, 32)
	_, _ = rand.Read(seed)
	h, err := host.Open(host.Options{Key: seed})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return &asker{t, h, token}
}

func (q *asker) ask(r joinRequest) (*joinAnswer, error) {
	return ask(q.t.Context(), q.host, q.token, r)
}

// Rule 21: the joiner signs cluster, token, both peers and both nonces.
func TestWhoCannotProveTheInvitationIsNotLetIn(t *testing.T) {
	a := openMember(t, Options{Dir: t.TempDir()})
	q := newAsker(t, a)
	r := joinRequest{Token: q.token.ID, Name: "evil", Version: namespace.Version}
	_, _ = rand.Read(r.Nonce[:])
	first, err := q.ask(r)
	if err != nil {
		t.Fatal(err)
	}
	ch := invite.Challenge{Cluster: q.token.Cluster, TokenID: q.token.ID, Issuer: q.token.Issuer, Joiner: q.host.Self(), IssuerNonce: first.Nonce, JoinerNonce: r.Nonce}
	wrong := r
	wrong.Proof = invite.Sign([32]byte{1}, ch)
	if _, err := q.ask(wrong); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "proof") {
		t.Errorf("signed with another key: %v", err)
	}
	right := r
	right.Proof = invite.Sign(q.token.Seed, ch)
	if _, err := q.ask(right); !errors.Is(err, ErrRefused) {
		t.Errorf("the nonce counts twice: %v", err)
	}
	if _, err := q.host.CallStranger(t.Context(), q.token.Issuer, q.token.Addrs, protocolJoin, []byte("garbage")); err == nil {
		t.Error("garbage is answered")
	}
	for _, p := range []p2p.Protocol{protocolInfo, protocolHolds, "/cairn/raft/1", "/cairn/raft/2", "/cairn/blocks/1", "/cairn/snapshot/1"} {
		if _, err := q.host.CallStranger(t.Context(), q.token.Issuer, q.token.Addrs, p, nil); err == nil {
			t.Errorf("a stranger reaches %s", p)
		}
	}
	if v := a.state.View(); len(v.Members) != 1 {
		t.Errorf("%+v", v.Members)
	}
	// Done right it works, also again.
	for range 2 {
		first, err = q.ask(joinRequest{Token: r.Token, Nonce: r.Nonce})
		if err != nil {
			t.Fatal(err)
		}
		ch.IssuerNonce = first.Nonce
		right.Proof = invite.Sign(q.token.Seed, ch)
		if answer, err := q.ask(right); err != nil || answer.Raft != 2 {
			t.Errorf("%+v %v", answer, err)
		}
	}
}

// Rule 5: a program that does not know the cluster's version does not join it.
func TestAnOlderProgramDoesNotJoin(t *testing.T) {
	a := openMember(t, Options{Dir: t.TempDir()})
	q := newAsker(t, a)
	r := joinRequest{Token: q.token.ID}
	first, err := q.ask(r)
	if err != nil {
		t.Fatal(err)
	}
	r.Proof = invite.Sign(q.token.Seed, invite.Challenge{
		Cluster: q.token.Cluster, TokenID: q.token.ID, Issuer: q.token.Issuer, Joiner: q.host.Self(), IssuerNonce: first.Nonce, JoinerNonce: r.Nonce,
	})
	if _, err := q.ask(r); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "knows version 1 only: update it") {
		t.Errorf("a program that does not say which version it knows: %v", err)
	}
	if v := a.state.View(); len(v.Members) != 1 {
		t.Errorf("%+v", v.Members)
	}
}

func TestATokenOfAnotherClusterIsRefused(t *testing.T) {
	a, b := openMember(t, Options{Dir: t.TempDir()}), openMember(t, Options{Dir: t.TempDir()})
	inv, err := a.Invite(t.Context(), control.InviteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Invite(t.Context(), control.InviteOptions{}); err != nil {
		t.Fatal(err)
	}
	token, err := invite.Parse(inv.Token)
	if err != nil {
		t.Fatal(err)
	}
	token.Issuer, token.Addrs = b.cluster.Load().self, b.cluster.Load().host.Addrs()
	_, err = Join(t.Context(), JoinOptions{Dir: filepath.Join(t.TempDir(), "c"), Token: token.String(), Listen: loopback})
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("%v", err)
	}
}

func TestAnInterruptedJoinIsTakenUpAgain(t *testing.T) {
	a := openMember(t, Options{Dir: t.TempDir()})
	inv, err := a.Invite(t.Context(), control.InviteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "b")
	o := JoinOptions{Dir: dir, Token: inv.Token, Listen: loopback}
	first, err := Join(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	// As if the process had ended before the last file was written.
	if err := os.Remove(filepath.Join(dir, configName)); err != nil {
		t.Fatal(err)
	}
	again, err := Join(t.Context(), o)
	if err != nil || again.ID != first.ID {
		t.Fatalf("%+v %v", again, err)
	}
	if _, err := Join(t.Context(), o); !errors.Is(err, ErrJoined) {
		t.Errorf("%v", err)
	}
	b := openMember(t, Options{Dir: dir})
	write(t, b.Volume(), "b", nil)
}

func TestAKeyThatOthersMayReadIsNotUsed(t *testing.T) {
	dir := t.TempDir()
	a := openMember(t, Options{Dir: dir})
	if _, err := a.Invite(t.Context(), control.InviteOptions{}); err != nil {
		t.Fatal(err)
	}
	a.close(t)
	for _, name := range []string{keyName, memberName, configName} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, keyName), 0o640); err != nil {
		t.Fatal(err)
	}
	if n, err := Open(t.Context(), Options{Dir: dir}); !errors.Is(err, ErrKeyMode) {
		t.Errorf("%v %v", n, err)
	}
}

// Rule 15: nobody is away when many seem to be.
func TestOnlyAMinorityIsTakenForAway(t *testing.T) {
	view := func(states string) *p2p.View {
		v := &p2p.View{}
		for i, s := range states {
			m := p2p.Member{ID: p2p.PeerID(fmt.Sprint(i)), Role: p2p.RoleStorage, State: p2p.Active}
			switch s {
			case 'w':
				m.State = p2p.Away
			case 'c':
				m.Role = p2p.RoleClient
			}
			v.Members = append(v.Members, m)
		}
		return v
	}
	for _, c := range []struct {
		states, silent, away string
	}{
		{"aaa", "", ""},
		{"aaa", "1", "1"},
		{"aaa", "12", ""}, // more than half: it is the network
		{"aa", "1", "1"},  // with two, the other one may be gone
		{"aaaa", "12", "12"},
		{"aaaaa", "123", ""},
		{"aaaw", "1", "1"}, // two of four are left
		{"aaww", "1", ""},
		{"aac", "2", ""}, // clients own nothing
		{"aaa", "0", ""}, // never itself
	} {
		got := planAway(view(c.states), "0", func(id p2p.PeerID) bool { return strings.Contains(c.silent, string(id)) })
		var text string
		for _, id := range got {
			text += string(id)
		}
		if text != c.away {
			t.Errorf("%s, silent %q: away %q, want %q", c.states, c.silent, text, c.away)
		}
	}
}

// Files without a name are removed when no node has them open any more (rule 10).
func TestAFileWithoutANameLivesWhileAnyNodeHasItOpen(t *testing.T) {
	dir := t.TempDir()
	a := openMember(t, Options{Dir: filepath.Join(dir, "a")})
	b := joined(t, a, filepath.Join(dir, "b"))
	write(t, a.Volume(), "file", []byte("content"))
	attr, err := b.Volume().Lookup(t.Context(), namespace.RootIno, "file")
	if err != nil {
		t.Fatal(err)
	}
	h, err := b.Volume().Open(t.Context(), attr.Ino, syscall.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Volume().Unlink(t.Context(), namespace.RootIno, "file"); err != nil {
		t.Fatal(err)
	}
	// The leader asks every two seconds: let it, twice.
	asked := a.state.Applied()
	write(t, a.Volume(), "marker", nil)
	time.Sleep(2*tendEvery + time.Second)
	p := make([]byte, 10)
	if n, err := h.Read(t.Context(), p, 0); err != nil || string(p[:n]) != "content" {
		t.Errorf("%q %v (asked after %d)", p[:n], err, asked)
	}
	h.Release()
	b.Volume().Forget(attr.Ino)
	eventually(t, "the file is removed", func() bool {
		all, err := a.state.Orphans()
		return err == nil && !slices.Contains(all, attr.Ino)
	})
}

func FuzzAdmit(f *testing.F) {
	seed, err := json.Marshal(joinRequest{Proof: []byte{1}, Name: "n", Addrs: []string{"a"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte("{}"))
	a := openMember(f, Options{Dir: f.TempDir()})
	if _, err := a.Invite(f.Context(), control.InviteOptions{}); err != nil {
		f.Fatal(err)
	}
	c := a.cluster.Load()
	f.Fuzz(func(t *testing.T, req []byte) {
		answer, err := c.admit(t.Context(), "peer", req)
		if err == nil && answer.Raft != 0 {
			t.Errorf("let in by %q", req)
		}
	})
}

func FuzzHolds(f *testing.F) {
	f.Add(appendHolds(nil, 7, []namespace.Ino{1, 2}))
	f.Fuzz(func(t *testing.T, req []byte) {
		index, inos, err := parseHolds(req)
		if err != nil {
			return
		}
		if again := appendHolds(nil, index, inos); string(again) != string(req) || len(inos) > reapBatch {
			t.Errorf("%x became %x", req, again)
		}
	})
}

// What was named while there was to be one copy may be on one node, also for a member that
// was not there at that time, and finds two owners again.
func TestAMemberThatWasAwayWhileThereWasOneOwnerProvesAnew(t *testing.T) {
	dir := t.TempDir()
	a := openMember(t, Options{Dir: filepath.Join(dir, "a"), Name: "a"})
	if _, err := a.Invite(t.Context(), control.InviteOptions{Listen: loopback}); err != nil {
		t.Fatal(err)
	}
	b := joined(t, a, filepath.Join(dir, "b"))
	c := joined(t, a, filepath.Join(dir, "c"))
	proven := func(n *Node) func() bool {
		return func() bool {
			l := n.cluster.Load()
			l.attending.Lock()
			defer l.attending.Unlock()
			return n.memberFile.Proven
		}
	}
	for _, n := range []*Node{a, b, c} {
		eventually(t, "all is on two nodes", proven(n))
	}
	c.close(t)
	for _, copies := range []int{1, 3} {
		if err := a.SetCopies(t.Context(), copies); err != nil {
			t.Fatal(err)
		}
	}
	again := a.state.View().Epoch
	c = openMember(t, Options{Dir: filepath.Join(dir, "c")})
	eventually(t, "the node knows the members", func() bool { return c.cluster.Load().replica.Status().Epoch >= again })
	if since, _ := c.cluster.Load().replica.Unproven(); since < again {
		t.Errorf("what was found in epoch %d counts, and there was one owner until %d", since, again)
	}
	eventually(t, "all is on two nodes again", proven(c))
}

// Who is told that blocks are stored does not put them. When they are pinned they are
// durable on two nodes all the same, though none of those that had them had synced them.
func TestWhatWasFoundWhenItWasAddedIsDurableOnTwoNodes(t *testing.T) {
	a := openMember(t, Options{Dir: t.TempDir(), Name: "a"})
	inv, err := a.Invite(t.Context(), control.InviteOptions{Listen: loopback})
	if err != nil {
		t.Fatal(err)
	}
	disk := vfs.NewCrashableMem()
	if _, err := Join(t.Context(), JoinOptions{Dir: "b", FS: disk, Token: inv.Token, Listen: loopback, Name: "b"}); err != nil {
		t.Fatal(err)
	}
	b := openMember(t, Options{Dir: "b", FS: disk})
	eventually(t, "all is on two nodes", func() bool {
		_, open := a.cluster.Load().replica.Unproven()
		return a.state.View().Owners() == 2 && !open
	})
	found, pinned := castest.Block(t, 1, 50_000), castest.Block(t, 2, 50_000)
	u, err := a.Upload(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	left := func(c cas.Block) { // by an upload that did not end
		for _, n := range []*Node{a, b} {
			if err := n.blocks.Put(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
	}
	pin := func(c cas.Block) {
		if err := u.Pin(t.Context(), control.Pin{CID: c.CID()}); err != nil {
			t.Fatal(err)
		}
		if !survives(t, disk.CrashClone(vfs.CrashCloneCfg{}), "b", c.CID()) {
			t.Errorf("after a power loss of the other node %v is lost there", c.CID())
		}
	}
	left(pinned)
	pin(pinned)
	left(found)
	if has, err := u.Renew(t.Context(), found.CID()); err != nil || !has[0] {
		t.Fatalf("is it stored: %v, %v", has, err)
	}
	pin(found)
}

// survives says whether the segments of a node have a block.
func survives(t testing.TB, disk vfs.FS, dir string, c cas.CID) bool {
	t.Helper()
	ix, err := index.Open(index.Options{FS: disk, Dir: "anew"})
	if err != nil {
		t.Fatal(err)
	}
	defer ix.Close()
	blocks, err := segment.Open(segment.Options{FS: disk, Dir: filepath.Join(dir, segmentsDir), Index: ix, Reserve: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer blocks.Close()
	has, err := blocks.Has(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return has[0]
}
