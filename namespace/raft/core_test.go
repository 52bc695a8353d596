package raft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// coreOn makes a core on a store.
func (u *unit) core() *core {
	u.t.Helper()
	c, err := newCore(1, u.store, u.state, testLogger(u.t, "1"))
	if err != nil {
		u.t.Fatal(err)
	}
	c.read = func([]byte, uint64) {}
	return c
}

// advance has the core do what there is to do.
func (u *unit) advance(c *core) []*raftpb.Message {
	u.t.Helper()
	out, err := c.advance()
	if err != nil {
		u.t.Fatal(err)
	}
	return out
}

// entryOf returns an entry of commands, each of which makes one of the names.
func entryOf(t *testing.T, term, index uint64, names ...string) *raftpb.Entry {
	var data []byte
	for i, name := range names {
		cmd := &namespace.Command{Time: int64(i), Ops: []namespace.Op{mkdir(name)}}
		encoded, err := cmd.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		data = appendCommand(data, encoded)
	}
	return &raftpb.Entry{Term: proto.Uint64(term), Index: proto.Uint64(index), Data: data}
}

func fromLeader(kind raftpb.MessageType, term, commit uint64) *raftpb.Message {
	return &raftpb.Message{Type: kind.Enum(), From: proto.Uint64(2), To: proto.Uint64(1), Term: &term, Commit: &commit}
}

// Rule 4.
func TestANodeThatLacksWhatItAcknowledgedIsRefused(t *testing.T) {
	u := follower(t)
	c := u.core()
	if err := c.step(fromLeader(raftpb.MsgHeartbeat, 2, 1)); err != nil {
		t.Fatal(err)
	}
	var refusal *Refusal
	if err := c.step(fromLeader(raftpb.MsgHeartbeat, 2, 5)); !errors.As(err, &refusal) || refusal.Kind != Restored {
		t.Errorf("entry 5 is acknowledged, and the log ends at 1: %v", err)
	}
}

func TestNothingIsSentBeforeItIsDurable(t *testing.T) {
	u := follower(t)
	c := u.core()
	m := fromLeader(raftpb.MsgApp, 2, 1)
	m.Index, m.LogTerm = proto.Uint64(1), proto.Uint64(1)
	m.Entries = []*raftpb.Entry{entryOf(t, 2, 2, "a")}
	if err := c.step(m); err != nil {
		t.Fatal(err)
	}
	out := u.advance(c)
	if len(out) != 1 || out[0].GetType() != raftpb.MsgAppResp || out[0].GetIndex() != 2 {
		t.Fatalf("%v", out)
	}
	u.again().want("acknowledged, and after a power loss", "1: 2")
}

// Rule 3: each command writes its place, so the rest of an entry is carried out once.
func TestAnEntryAppliedInPartIsCarriedOutOnce(t *testing.T) {
	for done := range 4 {
		u := follower(t)
		u.save(hardState(2, 2, 1), entryOf(t, 2, 2, "a", "b", "c"), entryOf(t, 2, 3, "d"))
		for i, name := range []string{"a", "b", "c"}[:done] {
			cmd := &namespace.Command{Time: int64(i), Ops: []namespace.Op{mkdir(name)}}
			if _, err := u.state.ApplyAt(namespace.Position{Entry: 2, Term: 2, Commands: uint32(i + 1)}, cmd); err != nil {
				t.Fatal(err)
			}
		}
		if err := u.index.Flush(); err != nil {
			t.Fatal(err)
		}
		u = u.again()
		c := u.core()
		var results []error
		c.applied = func(_ *namespace.Command, _ []byte, res namespace.Result) { results = append(results, res.Err) }
		u.advance(c)
		if done > 0 && u.state.Position() != (namespace.Position{Entry: 2, Term: 2, Commands: 3}) {
			t.Errorf("what was applied in part is committed, but the namespace is at %+v", u.state.Position())
		}
		if err := c.step(fromLeader(raftpb.MsgHeartbeat, 2, 3)); err != nil {
			t.Fatal(err)
		}
		u.advance(c)
		if len(results) != 4-done || errors.Join(results...) != nil {
			t.Errorf("after %d of 4: %v", done, results)
		}
		if at := u.state.Position(); at != (namespace.Position{Entry: 3, Term: 2, Commands: 1}) || u.state.Applied() != 4 {
			t.Errorf("after %d of 4, the namespace is at %+v, command %d", done, at, u.state.Applied())
		}
	}
}

func TestNoNamespaceIsSentInTheMiddleOfAnEntry(t *testing.T) {
	u := follower(t)
	u.save(hardState(2, 2, 1), entryOf(t, 2, 2, "a", "b"))
	l := &Log{store: u.store}
	l.o.State = u.state
	for i := range uint32(3) {
		if i > 0 {
			if _, err := u.state.ApplyAt(namespace.Position{Entry: 2, Term: 2, Commands: i}, &namespace.Command{Ops: []namespace.Op{mkdir(fmt.Sprint(i))}}); err != nil {
				t.Fatal(err)
			}
		}
		e, _, err := l.export()
		if (err == nil) != (i != 1) {
			t.Errorf("after %d of 2 commands: %v", i, err)
		}
		if err == nil {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// A change of the group needs no vote of those who are gone when it is restarted.
func TestAChangeOfTheGroupIsDurablyCommitted(t *testing.T) {
	u := follower(t)
	c := u.core()
	m := fromLeader(raftpb.MsgApp, 2, 2)
	m.Index, m.LogTerm = proto.Uint64(1), proto.Uint64(1)
	change, err := proto.Marshal(&raftpb.ConfChangeV2{Changes: []*raftpb.ConfChangeSingle{
		{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: proto.Uint64(3)}}})
	if err != nil {
		t.Fatal(err)
	}
	m.Entries = []*raftpb.Entry{{Type: raftpb.EntryConfChangeV2.Enum(), Term: proto.Uint64(2), Index: proto.Uint64(2), Data: change}}
	if err := c.step(m); err != nil {
		t.Fatal(err)
	}
	u.advance(c)
	u = u.again()
	if commit := u.store.hard.GetCommit(); commit != 2 {
		t.Errorf("after a power loss, entries up to %d are committed", commit)
	}
	u.advance(u.core())
	if v := u.store.conf.GetVoters(); len(v) != 2 {
		t.Errorf("after a power loss, %v vote", v)
	}
}

// lonely returns proposals and the namespace of a cluster with one member.
func lonely(t *testing.T) (*unit, *proposals) {
	u := newUnit(t, vfs.NewCrashableMem())
	u.do(&namespace.Command{Ops: []namespace.Op{&namespace.FoundCluster{ID: clusterID, First: storageMember(peerName(1))}}})
	p := &proposals{}
	p.init()
	return u, p
}

func (u *unit) do(cmd *namespace.Command) namespace.Result {
	u.t.Helper()
	res, err := u.state.Apply(u.state.Applied()+1, cmd)
	if err != nil {
		u.t.Fatal(err)
	}
	return res
}

func (u *unit) session() namespace.SessionID {
	u.t.Helper()
	res := u.do(&namespace.Command{Time: int64(u.state.Applied()), Ops: []namespace.Op{&namespace.OpenSession{Peer: peerName(1)}}})
	return namespace.SessionID(res.Index)
}

// added adds a command that must not be refused.
func added(t *testing.T, p *proposals, session namespace.SessionID, name string) (*proposal, *namespace.Command) {
	t.Helper()
	cmd := &namespace.Command{Time: 1, Session: session, Ops: []namespace.Op{mkdir(name)}}
	e, full, refusal, err := p.add(cmd)
	if full != nil || refusal != nil || err != nil {
		t.Fatal(full, refusal, err)
	}
	return e, cmd
}

func TestALongLifeOfOneSessionDoesNotSpoilTheNext(t *testing.T) {
	u, p := lonely(t)
	p.next, p.acked = 3<<20, 3<<20 // as many were proposed before
	for round := range 3 {
		session := u.session()
		for i := range 3 {
			e, cmd := added(t, p, session, fmt.Sprintf("%d-%d", round, i))
			res := u.do(cmd)
			if res.Err != nil {
				t.Fatalf("session %d, command %d: %v", round, i, res.Err)
			}
			p.applied(cmd, e.encoded, res)
			if o := <-e.done; o.res.Index != res.Index {
				t.Fatalf("session %d, command %d: %+v", round, i, o)
			}
			if i != 1 {
				p.remove(e) // one that nobody waits for any more keeps its number
			}
		}
	}
}

// Rule 6: the window of results.
func TestCommandsBehindALateOneWaitInsteadOfBeingRefused(t *testing.T) {
	u, p := lonely(t)
	session := u.session()
	late, lateCmd := added(t, p, session, "late")
	n := 1
	for ; ; n++ {
		cmd := &namespace.Command{Time: 1, Session: session, Ops: []namespace.Op{&namespace.SetAttr{Ino: namespace.RootIno}}}
		e, full, refusal, err := p.add(cmd)
		if full != nil {
			p.remove(late)
			select {
			case <-full:
			default:
				t.Error("nobody is told that there is room")
			}
			break
		}
		if refusal != nil || err != nil {
			t.Fatal(refusal, err)
		}
		if res := u.do(cmd); res.Err != nil {
			t.Fatalf("command %d behind a late one: %v", n, res.Err)
		}
		p.remove(e)
	}
	if n < 4096 {
		t.Errorf("%d commands fill the window", n)
	}
	if res := u.do(lateCmd); res.Err != nil {
		t.Errorf("the late one: %v", res.Err)
	}
}

func TestWhatNobodyKnowsIsNotSaidToBeRefused(t *testing.T) {
	for name, c := range map[string]struct {
		end, seen bool
		refused   bool
	}{
		"the end of the session was seen":  {true, true, true},
		"a snapshot says that it is over":  {true, false, false},
		"only this node gave up on itself": {false, false, false},
	} {
		u, p := lonely(t)
		session := u.session()
		e, _ := added(t, p, session, "a")
		if c.end {
			u.do(&namespace.Command{Ops: []namespace.Op{&namespace.EndSession{Session: session}}})
		}
		p.settle(u.state, 0, c.seen)
		o := <-e.done
		if refused := o.err == nil && errors.Is(o.res.Err, namespace.ErrSession); refused != c.refused {
			t.Errorf("%s: %+v", name, o)
		}
		if !c.refused && !(errors.Is(o.err, namespace.ErrSession) && errors.Is(o.err, ErrTimeout)) {
			t.Errorf("%s: %v", name, o.err)
		}
	}
}

func TestLaterCommandsOfAnEarlierSessionAreRefused(t *testing.T) {
	u, p := lonely(t)
	first := u.session()
	second := u.session()
	added(t, p, second, "a")
	if _, _, refusal, err := p.add(&namespace.Command{Session: first, Ops: []namespace.Op{mkdir("b")}}); err != nil || !errors.Is(refusal, namespace.ErrSession) {
		t.Error(refusal, err)
	}
}

func TestWhatIsProposedAgainKeepsItsOrder(t *testing.T) {
	u, p := lonely(t)
	session := u.session()
	for i := range 50 {
		added(t, p, session, fmt.Sprint(i))
	}
	drop := func([]byte) bool { return false }
	p.send(drop, 1)
	seen := 0
	p.send(func(data []byte) bool {
		return eachCommand(data, func(_ uint32, b []byte) error {
			var cmd namespace.Command
			if err := cmd.UnmarshalBinary(b); err != nil {
				return err
			}
			if seen++; cmd.Seq != uint64(seen) {
				t.Errorf("command %d comes as number %d", cmd.Seq, seen)
			}
			return nil
		}) == nil
	}, 3)
	if seen != 50 {
		t.Errorf("%d commands are proposed again", seen)
	}
}

func TestOnlyAnswersToTheQuestionCount(t *testing.T) {
	r := &reads{token: 1000}
	token := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	ask := func([]byte) {}
	first, err := r.join()
	if err != nil {
		t.Fatal(err)
	}
	r.send(ask, 1)
	for _, old := range []uint64{7, 1000, 1002, 1 << 62} { // of before, or of another process
		r.answered(token(old), 0)
	}
	r.reached(9)
	r.send(ask, 1+againTicks)
	r.answered(token(1001), 10)
	r.reached(9)
	select {
	case <-first.done:
		t.Fatal("the read is answered before it is applied, or by another's answer")
	default:
	}
	second, err := r.join()
	if err != nil || second == first {
		t.Fatal("who asks later shares the earlier answer", err)
	}
	r.send(ask, 9)
	r.answered(token(1002), 0) // the first question, asked again
	r.reached(10)
	select {
	case <-second.done:
		t.Fatal("the second question has the answer of the first")
	default:
	}
	<-first.done
	r.answered(token(1003), 10)
	r.reached(10)
	<-second.done
}

// The second copy ends the session that the first has opened.
func TestOfASessionOpenedTwiceTheLaterIsUsed(t *testing.T) {
	for copies := 1; copies <= 3; copies++ {
		for lost := range copies {
			u, p := lonely(t)
			cmd := &namespace.Command{Time: 5, Ops: []namespace.Op{&namespace.OpenSession{Peer: peerName(1)}}}
			e, _, _, err := p.add(cmd)
			if err != nil {
				t.Fatal(err)
			}
			tick := 0
			sent := func([]byte) bool { return true }
			for range copies {
				p.send(sent, tick)
				tick += resendTicks
			}
			for range copies - lost {
				p.applied(cmd, e.encoded, u.do(cmd))
			}
			if lost > 0 {
				p.send(sent, tick)
			}
			select {
			case o := <-e.done:
				if u.state.MemberOf(namespace.SessionID(o.res.Index)) == "" {
					t.Errorf("%d copies, %d of them lost: the session has ended already", copies, lost)
				}
			default:
				t.Errorf("%d copies, %d of them lost: no answer", copies, lost)
			}
		}
	}
}

func TestWhoHasJoinedAgainIsHeardByWhoWasAway(t *testing.T) {
	u := newUnit(t, vfs.NewCrashableMem())
	u.do(&namespace.Command{Ops: []namespace.Op{&namespace.FoundCluster{ID: clusterID, First: storageMember(peerName(1))}}})
	l := &Log{}
	l.o.ID, l.o.State, l.o.Transport = 7, u.state, simTransport{self: peerName(7)}
	l.peers.init(l)
	for _, c := range []struct {
		id   uint64
		from p2p.PeerID
		may  bool
	}{
		{1, peerName(1), true}, {1, peerName(2), false},
		{2, peerName(2), true},  // a member this node does not know yet
		{8, peerName(1), true},  // who has joined again
		{0, peerName(1), false}, // and under its earlier number
	} {
		if may := l.peers.learn(c.id, c.from); may != c.may {
			t.Errorf("number %d of %s: %v", c.id, c.from, may)
		}
	}
	if l.peers.peer(8) != peerName(1) || l.peers.peer(1) != peerName(1) {
		t.Error("who spoke is not reached")
	}
}

func TestWhatIsGivenUpIsNotDoneLater(t *testing.T) {
	l := &Log{calls: make(chan func(), 1)}
	l.stopped, l.stop = context.WithCancel(context.Background())
	defer l.stop()
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	ran := false
	if l.do(ctx, func() { ran = true }) {
		t.Error("it says that it was done")
	}
	(<-l.calls)()
	if ran {
		t.Error("it was done after it was given up")
	}
}
