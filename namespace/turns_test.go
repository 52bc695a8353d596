package namespace

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cairnfs/cairn/p2p"
)

// writers is a fixture with nodes that have sessions, and a file.
type writers struct {
	*fixture
	peers    []p2p.PeerID
	sessions []SessionID
	seqs     []uint64
	ino      Ino
}

func newWriters(t testing.TB, n int) *writers {
	w := &writers{fixture: newCluster(t), peers: []p2p.PeerID{"a"}}
	w.do(&AddInvite{ID: InviteID{9}, Expires: w.now + 1000*second, Uses: n, Role: p2p.RoleStorage})
	for i := range n - 1 {
		w.peers = append(w.peers, p2p.PeerID(fmt.Sprint("node", i)))
		w.do(&Redeem{Invite: InviteID{9}, Member: storageMember(w.peers[i+1])})
	}
	for _, p := range w.peers {
		w.sessions, w.seqs = append(w.sessions, w.open(p)), append(w.seqs, 0)
	}
	w.ino = w.file(RootIno, "shared")
	return w
}

// by applies ops as the command of a node.
func (w *writers) by(node int, ops ...Op) error {
	w.t.Helper()
	w.seqs[node]++
	return w.as(w.sessions[node], w.seqs[node], w.seqs[node], ops...).Err
}

func (w *writers) enter(node int) Op { return &TakeTurn{Session: w.sessions[node], Ino: w.ino} }

func (w *writers) set(base uint64) Op {
	return &SetContent{Ino: w.ino, Base: base, Content: inline(fmt.Sprint(base)), Size: int64(len(fmt.Sprint(base)))}
}

func (w *writers) version() uint64 { return w.inode(w.ino).Version }

func (w *writers) want(err, want error) {
	w.t.Helper()
	if !errors.Is(err, want) || want == nil && err != nil {
		w.t.Errorf("%v, want %v", err, want)
	}
}

// Rule 8: a queued, exclusive, per-inode write lease.
func TestWhoQueuesForContentIsServedInOrder(t *testing.T) {
	w := newWriters(t, 4)
	base := w.version()
	w.want(w.by(1, w.enter(1)), nil)
	w.want(w.by(2, w.enter(2)), nil)
	w.want(w.by(1, w.enter(1)), nil) // keeps its place
	w.want(w.by(0, w.set(base)), ErrTurn)
	w.want(w.by(2, w.set(base)), ErrTurn)
	w.want(w.by(0, &Truncate{Ino: w.ino, Size: 7}), ErrTurn)
	w.want(w.by(0, &SetAttr{Ino: w.ino, Mask: AttrMode, Mode: 0o600}), nil) // no content
	if w.version() != base {
		t.Fatal("the content on which the first builds has changed")
	}
	w.want(w.by(1, w.set(base-1)), ErrConflict) // an own mistake costs no turn
	w.want(w.by(1, w.set(base)), nil)
	w.want(w.by(1, w.set(w.version())), ErrTurn)
	w.want(w.by(2, &Truncate{Ino: w.ino, Size: 3}), nil)
	w.want(w.by(3, w.set(w.version())), nil) // nobody queues any more

	// A session that ends leaves, and so does one that is put out.
	for _, i := range []int{0, 1, 2} {
		w.want(w.by(i, w.enter(i)), nil)
	}
	w.do(&EndSession{Session: w.sessions[0]})
	queue := must(w.s.Turns(w.ino))
	if len(queue) != 2 || queue[0].Session != w.sessions[1] || queue[1].Session != w.sessions[2] || queue[0].Ticket >= queue[1].Ticket {
		t.Fatalf("%+v", queue)
	}
	w.want(w.by(2, &TakeTurn{Session: w.sessions[1], Ino: w.ino, Leave: queue[0].Ticket + 1}), nil) // of another time
	w.want(w.by(2, w.set(w.version())), ErrTurn)
	w.want(w.by(2, &TakeTurn{Session: w.sessions[1], Ino: w.ino, Leave: queue[0].Ticket}), nil)
	w.want(w.by(1, w.set(w.version())), ErrTurn)
	w.want(w.by(2, w.set(w.version())), nil)

	w.want(w.by(1, &TakeTurn{Session: w.sessions[0], Ino: w.ino}), ErrSession)
	w.want(w.by(1, &TakeTurn{Session: w.sessions[1], Ino: 999}), ErrNotFound)
	w.want(w.by(1, &Create{Parent: RootIno, Name: "new", Mode: TypeRegular}, &TakeTurn{Session: w.sessions[2], Ino: Created}), nil)
	w.want(w.by(1, &Truncate{Ino: w.lookup(RootIno, "new"), Size: 1}), ErrTurn)
	w.want(w.by(2, &Truncate{Ino: w.lookup(RootIno, "new"), Size: 1}), nil)
	w.want(w.by(1, &TakeTurn{Session: w.sessions[1], Ino: RootIno}), ErrIsDir)
	if n := len(dumpPrefix(t, w.db, tagLocks)); n != 0 {
		t.Errorf("%d queues remain", n)
	}
}

func TestWaitersAreToldWhenTheQueueMovesOn(t *testing.T) {
	w := newWriters(t, 3)
	told := 0
	w.s.Observe(func(c *Change) {
		if slices.Contains(c.Unlocked, w.ino) {
			told++
		}
	})
	expect := func(what string, want int) {
		t.Helper()
		if told != want {
			t.Errorf("%s: told %d times, want %d", what, told, want)
		}
		told = 0
	}
	w.want(w.by(0, w.enter(0), w.set(w.version())), nil) // in one command
	expect("who is first at once", 1)
	w.want(w.by(0, w.enter(0)), nil)
	w.want(w.by(1, w.enter(1)), nil)
	w.want(w.by(2, w.enter(2)), nil)
	expect("who enters", 0)
	w.want(w.by(0, w.set(w.version())), nil)
	expect("who has named content", 1)
	w.do(&EndSession{Session: w.sessions[1]})
	expect("whose session ends", 1)
	ticket := must(w.s.Turns(w.ino))[0].Ticket
	w.want(w.by(0, &TakeTurn{Session: w.sessions[2], Ino: w.ino, Leave: ticket}), nil)
	expect("who is put out", 1)
}

// Rule 8. Random commands are compared with a queue that is a list.
func TestTheQueueForContentIsAsAList(t *testing.T) {
	const nodes = 4
	r := newRand(t)
	w := newWriters(t, nodes)
	var queue []Turn
	leave := func(s SessionID, ticket uint64) {
		queue = slices.DeleteFunc(queue, func(q Turn) bool { return q.Session == s && (ticket == 0 || q.Ticket == ticket) })
	}
	for step := range 3000 {
		i := r.IntN(nodes)
		s := w.sessions[i]
		mine := len(queue) == 0 || queue[0].Session == s
		var want error
		switch r.IntN(6) {
		case 0, 1:
			w.want(w.by(i, w.enter(i)), nil)
			if !slices.ContainsFunc(queue, func(q Turn) bool { return q.Session == s }) {
				queue = append(queue, Turn{s, w.index})
			}
		case 2:
			of, ticket := w.sessions[r.IntN(nodes)], 1+r.Uint64N(w.index)
			if len(queue) > 0 && r.IntN(2) == 0 {
				q := queue[r.IntN(len(queue))]
				of, ticket = q.Session, q.Ticket
			}
			w.want(w.by(i, &TakeTurn{Session: of, Ino: w.ino, Leave: ticket}), nil)
			leave(of, ticket)
		case 3:
			base := w.version() - r.Uint64N(3)/2
			switch {
			case !mine:
				want = ErrTurn
			case base != w.version():
				want = ErrConflict
			default:
				leave(s, 0)
			}
			w.want(w.by(i, w.set(base)), want)
		case 4:
			if !mine {
				want = ErrTurn
			} else {
				leave(s, 0)
			}
			w.want(w.by(i, &Truncate{Ino: w.ino, Size: r.Int64N(9)}), want)
		case 5:
			if r.IntN(4) == 0 {
				w.sessions[i], w.seqs[i] = w.open(w.peers[i]), 0
				leave(s, 0)
			}
		}
		s2 := w.s
		if r.IntN(20) == 0 { // as stored
			s2 = must(Open(w.db, Options{}))
		}
		if step%50 == 0 {
			w.check()
		}
		if got := must(s2.Turns(w.ino)); !slices.Equal(got, queue) {
			t.Fatalf("step %d: the queue is %v, want %v", step, got, queue)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
}
