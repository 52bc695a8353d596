package namespace

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/p2p"
)

const testCluster = "00112233445566778899aabbccddeeff"

func storageMember(id p2p.PeerID) p2p.Member {
	return p2p.Member{ID: id, Name: "host-" + string(id), Addrs: []string{"/ip4/127.0.0.1/tcp/1"}, Role: p2p.RoleStorage, State: p2p.Active, Capacity: 1 << 40}
}

// newCluster is a fixture with a cluster of node "a" and an invitation for anyone.
func newCluster(t testing.TB) *fixture {
	f := newFixture(t, Options{})
	f.do(&FoundCluster{ID: testCluster, First: storageMember("a")})
	f.do(&AddInvite{ID: InviteID{1}, Key: [32]byte{1}, Expires: f.now + 100*second, Uses: 2, Role: p2p.RoleStorage})
	return f
}

func (f *fixture) refused(want error, op Op) {
	f.t.Helper()
	if r := f.try(op); !errors.Is(r.Err, want) {
		f.t.Errorf("%T: %v, want %v", op, r.Err, want)
	}
}

func TestAMemberIsAdmittedOnceByAnInvitation(t *testing.T) {
	f := newCluster(t)
	if v := f.s.View(); v.Cluster != testCluster || v.Epoch != 1 || len(v.Members) != 1 || v.Members[0].Raft != 1 {
		t.Fatalf("%+v", v)
	}
	join := &Redeem{Invite: InviteID{1}, Member: storageMember("b")}
	f.do(join)
	f.do(join) // rule 21: idempotent
	v := f.s.View()
	b := v.Member("b")
	if b == nil || b.Raft != 2 || b.Role != p2p.RoleStorage || b.State != p2p.Active || v.Epoch != 2 {
		t.Fatalf("%+v", v)
	}
	if i, err := f.s.Invite(InviteID{1}); err != nil || i.Uses != 1 {
		t.Errorf("%+v %v", i, err)
	}
	f.refused(ErrNoInvite, &Redeem{Invite: InviteID{9}, Member: storageMember("c")})
	f.do(&Redeem{Invite: InviteID{1}, Member: storageMember("c")})
	f.refused(ErrInviteUsed, &Redeem{Invite: InviteID{1}, Member: storageMember("d")})

	f.do(&AddInvite{ID: InviteID{2}, Expires: f.now + 10*second, Uses: 9, Role: p2p.RoleClient, Peer: "d"})
	f.refused(ErrMember, &Redeem{Invite: InviteID{2}, Member: storageMember("c")})
	f.refused(ErrInviteBound, &Redeem{Invite: InviteID{2}, Member: storageMember("e")})
	f.do(&Redeem{Invite: InviteID{2}, Member: storageMember("d")})
	if d := f.s.View().Member("d"); d.Role != p2p.RoleClient || d.Raft != 4 {
		t.Errorf("%+v", d)
	}
	// Who was removed is not let in again by what it was invited with.
	f.do(&RemoveMember{ID: "d"})
	f.refused(ErrInviteUsed, &Redeem{Invite: InviteID{2}, Member: storageMember("d")})
	f.refused(ErrNoMember, &RemoveMember{ID: "d"})
	f.do(&DropInvite{ID: InviteID{2}})
	f.refused(ErrNoInvite, &DropInvite{ID: InviteID{2}})
	f.do(&AddInvite{ID: InviteID{3}, Expires: f.now, Uses: 1, Role: p2p.RoleClient})
	f.refused(ErrInviteExpired, &Redeem{Invite: InviteID{3}, Member: storageMember("f")})
	f.refused(ErrCluster, &FoundCluster{ID: testCluster, First: storageMember("a")})
	f.do(&SetCopies{Copies: 2})
	f.refused(ErrInvalid, &SetCopies{Copies: 17})
	m := storageMember("b")
	m.State, m.Name = p2p.Draining, "not set"
	f.do(&SetMember{Member: m, Mask: MemberState})
	v = f.s.View()
	if b := v.Member("b"); b.State != p2p.Draining || b.Name != "host-b" || v.Copies != 2 || v.Owners() != 2 {
		t.Errorf("%+v", v)
	}
	// A number of the log's group is never given twice (rule 4).
	f.do(&AddInvite{ID: InviteID{4}, Expires: f.now + second*100, Uses: 1, Role: p2p.RoleStorage})
	f.do(&RemoveMember{ID: "c"}, &Redeem{Invite: InviteID{4}, Member: storageMember("c2")})
	if c := f.s.View().Member("c2"); c.Raft != 5 {
		t.Errorf("%+v", c)
	}
	reopened, err := Open(f.db, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(reopened.View(), f.s.View()) {
		t.Errorf("reopened: %+v", reopened.View())
	}
}

// member proposes commands under sessions.
func (f *fixture) as(session SessionID, seq, acked uint64, ops ...Op) Result {
	f.t.Helper()
	f.now += second
	r, err := f.s.ApplyAt(Position{Entry: f.s.Applied() + 1, Term: 1, Commands: 1}, &Command{Time: f.now, Ops: ops, Session: session, Seq: seq, Acked: acked})
	if err != nil {
		f.t.Fatal(err)
	}
	f.index = r.Index
	return r
}

func (f *fixture) open(peer p2p.PeerID) SessionID {
	f.t.Helper()
	return SessionID(f.do(&OpenSession{Peer: peer}).Index)
}

// Rule 6: a retry never applies twice, and has the result of the first.
func TestACommandThatIsProposedAgainChangesNothing(t *testing.T) {
	f := newCluster(t)
	a := f.open("a")
	create := &Create{Parent: RootIno, Name: "n", Mode: TypeRegular | 0o644}
	first := f.as(a, 1, 0, create)
	again := f.as(a, 1, 0, create)
	if first.Err != nil || again.Err != nil || first.Inodes[0].Ino != again.Inodes[0].Ino || first.Index != again.Index && again.Index == 0 {
		t.Errorf("%+v\n%+v", first, again)
	}
	refused := f.as(a, 2, 1, create)
	if !errors.Is(refused.Err, ErrExist) {
		t.Errorf("%+v", refused)
	}
	f.do(&Unlink{Parent: RootIno, Name: "n"})
	if r := f.as(a, 2, 1, create); !errors.Is(r.Err, ErrExist) {
		t.Errorf("a refusal is repeated: %+v", r)
	}
	reopened, err := Open(f.db, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := reopened.Outcome(a, 2); err != nil || !errors.Is(r.Err, ErrExist) {
		t.Errorf("%+v %v", r, err)
	}
	f.as(a, 3, 3, create)
	if _, err := f.s.Outcome(a, 2); !errors.Is(err, ErrNotFound) {
		t.Errorf("an answered outcome is kept: %v", err)
	}
	if r := f.as(a, 2, 3, create); r.Err == nil {
		t.Errorf("answered long ago: %+v", r)
	}
	if n := len(dumpPrefix(t, f.db, tagOutcome)); n != 1 {
		t.Errorf("%d outcomes are stored", n)
	}
	b := f.open("a") // the session of before has ended
	if r := f.as(a, 4, 3, create); !errors.Is(r.Err, ErrSession) {
		t.Errorf("%+v", r)
	}
	if n := len(dumpPrefix(t, f.db, tagOutcome)); n != 0 {
		t.Errorf("%d outcomes of an ended session are stored", n)
	}
	if f.s.SessionOf("a") != b || f.s.MemberOf(b) != "a" || len(f.s.Sessions()) != 1 {
		t.Errorf("%v", f.s.Sessions())
	}
	f.do(&RemoveMember{ID: "a"})
	if len(f.s.Sessions()) != 0 {
		t.Errorf("%v", f.s.Sessions())
	}
}

func dumpPrefix(t testing.TB, db *pebble.DB, tag byte) map[string]string {
	t.Helper()
	m := make(map[string]string)
	err := scan(db, tagKey(nil, tag), func(k, v []byte) (bool, error) {
		m[string(k)] = string(v)
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestRangesOfTwoNodesNeverConflict(t *testing.T) {
	f := newCluster(t)
	f.do(&Redeem{Invite: InviteID{1}, Member: storageMember("b")})
	a, b := f.open("a"), f.open("b")
	ino := f.do(&Create{Parent: RootIno, Name: "n", Mode: TypeRegular}).Inodes[0].Ino
	lock := func(s SessionID, kind LockKind, start, end uint64, mode LockMode) Op {
		return &LockRange{Session: s, Ino: ino, Kind: kind, Start: start, End: end, Mode: mode}
	}
	f.do(lock(a, LockRecord, 0, 99, Exclusive))
	f.refused(ErrLocked, lock(b, LockRecord, 99, 200, Shared))
	f.do(lock(b, LockRecord, 100, 200, Exclusive))
	f.do(lock(b, LockFile, 0, 1<<64-1, Exclusive)) // the other kind
	f.do(lock(a, LockRecord, 10, 19, Shared))
	f.do(lock(b, LockRecord, 10, 19, Shared))
	f.refused(ErrLocked, lock(a, LockRecord, 10, 19, Exclusive))
	f.do(lock(a, LockRecord, 0, 1<<64-1, Unlocked))
	f.do(lock(b, LockRecord, 0, 1<<63, Exclusive))
	f.refused(ErrLocked, lock(a, LockRecord, 1<<63, 1<<64-1, Shared))
	f.refused(ErrNotFound, &LockRange{Session: a, Ino: 999, Kind: LockRecord, Mode: Shared})
	f.refused(ErrSession, lock(999, LockRecord, 0, 0, Shared))
	f.refused(ErrInvalid, lock(a, 4, 0, 0, Shared))
	f.do(&EndSession{Session: b}) // fencing
	f.do(lock(a, LockRecord, 0, 1<<64-1, Exclusive), lock(a, LockFile, 0, 1<<64-1, Exclusive))
	f.do(&EndSession{Session: a}, &EndSession{Session: a})
	if n := len(dumpPrefix(t, f.db, tagLocks)); n != 0 {
		t.Errorf("locks of ended sessions remain: %d", n)
	}
}

// What place makes of ranges agrees with a table of bytes.
func TestLocksAreAsATableOfBytes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const size = 20
	var held []Lock
	var table [3][size]LockMode // by session
	for step := range 5000 {
		start := r.Uint64N(size)
		l := Lock{Session: SessionID(r.IntN(3)), Kind: LockRecord, Start: start, End: start + r.Uint64N(size-start), Mode: LockMode(r.IntN(3))}
		held = place(held, l)
		for i := l.Start; i <= l.End; i++ {
			table[l.Session][i] = l.Mode
		}
		var got [3][size]LockMode
		for i, h := range held {
			if i > 0 && held[i-1].Session == h.Session && held[i-1].End+1 == h.Start && held[i-1].Mode == h.Mode {
				t.Fatalf("step %d: %+v is not one range", step, held)
			}
			for j := h.Start; j <= h.End; j++ {
				got[h.Session][j] = h.Mode
			}
		}
		if got != table {
			t.Fatalf("step %d, %+v:\n%v\n%v", step, l, got, table)
		}
	}
}

// Rule 5: log time advances by elapsed time, and a jump needs confirmation.
func TestOneWrongClockDoesNotMoveLogTime(t *testing.T) {
	f := newCluster(t)
	f.do(&Redeem{Invite: InviteID{1}, Member: storageMember("b")})
	a, b := f.open("a"), f.open("b")
	seq := uint64(0)
	at := func(s SessionID, now int64) int64 {
		seq++
		f.now = now - second
		f.as(s, seq, 0, &SetAttr{Ino: RootIno})
		return f.s.meta.logTime
	}
	start := f.now
	if got := at(a, start+second); got != start+second {
		t.Errorf("%d", got-start)
	}
	year := 365 * 24 * 3600 * second
	for range 5 {
		if got := at(a, start+year); got != start+second {
			t.Fatalf("one session alone moved log time by %d s", (got-start)/second)
		}
	}
	if got := at(b, start+2*second); got != start+2*second {
		t.Errorf("%d", got-start)
	}
	at(a, start+year)
	if got := at(b, start+year+second); got != start+year+second {
		t.Errorf("two sessions agree, log time moved by %d s", (got-start)/second)
	}
	year += 100 * second
	at(a, start+year+2*3600*second)
	if got := at(b, start+30*year); got != start+year+2*3600*second {
		t.Errorf("one session says two hours and another years, log time moved by %d s", (got-start-year)/second)
	}
	if got := at(a, start+year+3*3600*second); got != start+year+3*3600*second {
		t.Errorf("an hour later, log time moved by %d s", (got-start-year)/second)
	}
	f.do(&EndSession{Session: b})
	if got := at(a, start+3*year); got != start+3*year {
		t.Errorf("the only session, log time moved by %d s", (got-start)/second)
	}
}

// Rule 5: a node with a wrong clock that opens another session does not agree with
// itself.
func TestTheClaimOfASessionThatEndedIsForgotten(t *testing.T) {
	f := newCluster(t)
	f.do(&Redeem{Invite: InviteID{1}, Member: storageMember("b")})
	a := f.open("a")
	f.open("b")
	start, later := f.now, f.now+365*24*3600*second
	f.now = later
	f.as(a, 1, 0, &SetAttr{Ino: RootIno})
	f.now = 0 // opening a session does not move log time
	a = f.open("a")
	if f.s.Confirms(a, later) {
		t.Error("a node is to confirm what it said itself")
	}
	f.now = later
	f.as(a, 1, 0, &SetAttr{Ino: RootIno})
	if got := f.s.meta.logTime; got != start {
		t.Errorf("one node alone moved log time by %d s", (got-start)/second)
	}
	f.check()
}

// A clock that was not believed may be when its command is repeated, but that changes
// nothing.
func TestARepeatedCommandDoesNotMoveTheTimeIndex(t *testing.T) {
	f := newCluster(t)
	f.do(&Redeem{Invite: InviteID{1}, Member: storageMember("b")})
	a, b := f.open("a"), f.open("b")
	start, year := f.now, 365*24*3600*second
	f.now = start + year
	f.as(a, 1, 0, &SetAttr{Ino: RootIno})
	f.now = start
	f.do(&EndSession{Session: b})
	f.now = start + year
	f.as(a, 1, 0, &SetAttr{Ino: RootIno})
	f.now = start + 120*second
	f.as(a, 2, 0, &SetAttr{Ino: RootIno})
	f.check()
}

func TestObserversAreToldWhatChanged(t *testing.T) {
	f := newCluster(t)
	f.do(&Redeem{Invite: InviteID{1}, Member: storageMember("b")})
	var got []*Change
	f.s.Observe(func(c *Change) { got = append(got, c) })
	last := func() Change {
		t.Helper()
		if len(got) == 0 {
			t.Fatal("nothing observed")
		}
		c := *got[len(got)-1]
		got = nil
		return c
	}
	a := f.open("a")
	f.as(a, 1, 0, &Create{Parent: RootIno, Name: "n", Mode: TypeRegular})
	c := last()
	if c.Session != a || len(c.Entries) != 1 || c.Entries[0].Name != "n" || c.Entries[0].Was != 0 || c.Entries[0].Is == 0 || len(c.Inodes) != 2 {
		t.Errorf("%+v", c)
	}
	ino := c.Entries[0].Is
	f.as(a, 2, 0, &Rename{Parent: RootIno, Name: "n", NewParent: RootIno, NewName: "m"})
	if c = last(); len(c.Entries) != 2 {
		t.Errorf("%+v", c)
	}
	f.as(a, 3, 0, &SetContent{Ino: ino, Base: f.inode(ino).Version, Content: Content{Inline: []byte("x"), Length: 1}, Size: 1})
	if c = last(); len(c.Inodes) != 1 || !c.Inodes[0].Content || c.Inodes[0].New {
		t.Errorf("%+v", c)
	}
	f.as(a, 4, 0, &SetAttr{Ino: ino, Mask: AttrMode, Mode: 0o600})
	if c = last(); len(c.Inodes) != 1 || c.Inodes[0].Content {
		t.Errorf("%+v", c)
	}
	f.as(a, 5, 0, &LockRange{Session: a, Ino: ino, Kind: LockFile, End: 1<<64 - 1, Mode: Exclusive})
	f.do(&RemoveMember{ID: "a"})
	if c = last(); !c.Members || !slices.Equal(c.Ended, []SessionID{a}) || !slices.Equal(c.Unlocked, []Ino{ino}) {
		t.Errorf("%+v", c)
	}
	f.try(&Unlink{Parent: RootIno, Name: "missing"})
	if len(got) > 0 {
		t.Errorf("told of a refused command: %+v", got[0])
	}
}

// Rule 3: a snapshot is the namespace span, sessions and outcomes included, and
// leaves the rest of the database alone.
func TestAnExportedNamespaceIsTheSameElsewhere(t *testing.T) {
	f := newCluster(t)
	a := f.open("a")
	for i := range 3000 {
		f.as(a, uint64(i+1), uint64(max(0, i-5)), &Create{Parent: RootIno, Name: fmt.Sprint(i), Mode: TypeRegular, Size: 3000,
			Content: &Content{Inline: bytes.Repeat([]byte{byte(i)}, 3000), Length: 3000}})
		if i%7 == 0 {
			f.do(&Unlink{Parent: RootIno, Name: fmt.Sprint(i)})
		}
	}
	if err := f.s.ApplyGroup(Position{Entry: 9000, Term: 7, Commands: 1}, []byte("group")); err != nil {
		t.Fatal(err)
	}
	disk := vfs.NewCrashableMem()
	other, err := pebble.Open("db", &pebble.Options{FS: disk, DisableWAL: true, Logger: quiet{}, FormatMajorVersion: pebble.FormatNewest})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(other, Options{HashKey: [16]byte{9}})
	if err != nil {
		t.Fatal(err)
	}
	own := []byte{space - 1, 'x'}
	if err := other.Set(own, []byte("own"), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Apply(1, &Command{Time: 1, Ops: []Op{&Create{Parent: RootIno, Name: "gone", Mode: TypeDir}}}); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	all := false
	s.Observe(func(c *Change) { all = all || c.All })

	e, err := f.s.Export()
	if err != nil {
		t.Fatal(err)
	}
	at, group := e.Position(), must(e.Group())
	f.do(&Unlink{Parent: RootIno, Name: "1"}) // not part of it
	in, err := s.Import(disk, "received")
	if err != nil {
		t.Fatal(err)
	}
	for chunks := 0; ; chunks++ {
		chunk := must(e.Next(nil))
		if len(chunk) == 0 {
			if chunks < 3 {
				t.Errorf("%d chunks", chunks)
			}
			break
		}
		if err := in.Add(chunk); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Install(in); err != nil {
		t.Fatal(err)
	}
	check := func(s *State, db *pebble.DB) {
		t.Helper()
		if s.Position() != at || at.Entry != 9000 || string(group) != "group" || string(must(s.Group())) != "group" {
			t.Errorf("at %+v, exported at %+v with %q", s.Position(), at, group)
		}
		if _, err := s.Lookup(RootIno, "gone"); !errors.Is(err, ErrNotFound) {
			t.Errorf("what was there is there: %v", err)
		}
		if _, err := s.Lookup(RootIno, "1"); err != nil {
			t.Error(err)
		}
		if r, err := s.Outcome(a, 3000); err != nil || r.Err != nil {
			t.Errorf("%+v %v", r, err)
		}
		if v, _, err := get(db, own); err != nil || string(v) != "own" {
			t.Errorf("the node's own records: %q %v", v, err)
		}
	}
	check(s, other)
	if !all {
		t.Error("observers were not told")
	}
	// It is durable, though nothing else is.
	crashed := disk.CrashClone(vfs.CrashCloneCfg{})
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := pebble.Open("db", &pebble.Options{FS: crashed, DisableWAL: true, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if s, err = Open(db, Options{}); err != nil {
		t.Fatal(err)
	}
	check(s, db)
	// The two go on in step.
	f.do(&Link{Ino: f.lookup(RootIno, "2"), Parent: RootIno, Name: "again"})
	for _, op := range []Op{&Unlink{Parent: RootIno, Name: "1"}, &Link{Ino: f.lookup(RootIno, "2"), Parent: RootIno, Name: "again"}} {
		f.now += 0
		if _, err := s.Apply(s.Applied()+1, &Command{Time: f.now, Ops: []Op{op}}); err != nil {
			t.Fatal(err)
		}
	}
	if !maps.Equal(dumpPrefix(t, f.db, tagOutcome), dumpPrefix(t, db, tagOutcome)) {
		t.Error("outcomes differ")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func FuzzImport(f *testing.F) {
	f.Add([]byte{1, 'm', 1, 1})
	f.Add([]byte("\x02aa\x01b\x02ab\x00"))
	f.Fuzz(func(t *testing.T, chunk []byte) {
		db := openPebble(t, vfs.NewMem())
		defer db.Close()
		s := must(Open(db, Options{}))
		in := must(s.Import(vfs.NewMem(), "in"))
		if err := in.Add(chunk); err != nil && !errors.Is(err, ErrCorrupt) && !strings.Contains(err.Error(), "pebble") {
			t.Fatal(err)
		}
		if err := in.Abort(); err != nil {
			t.Fatal(err)
		}
	})
}
