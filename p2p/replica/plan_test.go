package replica

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/exchange"
)

// planCID names the n-th block of a test.
func planCID(n int) cas.CID {
	return cas.NewCID(cas.Raw, [cas.HashSize]byte{byte(n >> 8), byte(n), 1})
}

// known returns a page of one block, as "me" sees it. What is known of its owners is
// written in order of placement, as in "a+ me b- c?": a has it, b lacks it, and c did
// not answer.
func known(s string) page {
	p := page{self: "me", blocks: []held{{cid: planCID(1)}}}
	b := &p.blocks[0]
	for _, w := range strings.Fields(s) {
		at := ownerCopy{cid: b.cid, owner: p2p.PeerID(strings.TrimRight(w, "+-?")), state: unknown}
		switch {
		case w[len(w)-1] == '+' || at.owner == p.self:
			at.state = there
		case w[len(w)-1] == '-':
			at.state = lacking
		}
		b.copies = append(b.copies, at)
	}
	return p
}

// names returns the nodes that are to be asked or sent something.
func names(of map[p2p.PeerID][]*ownerCopy) string {
	var all []string
	for id, copies := range of {
		for range copies {
			all = append(all, string(id))
		}
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func TestTheOtherOwnersAreAsked(t *testing.T) {
	for owners, want := range map[string]string{
		"":        "",
		"me":      "",
		"a me b":  "a b",
		"a? b? c": "a b c",
	} {
		if got := names(known(owners).elsewhere()); got != want {
			t.Errorf("of a block with the owners %q %q are asked, want %q", owners, got, want)
		}
	}
}

func TestOfThoseWhoHoldABlockTheFirstOwnerSendsIt(t *testing.T) {
	for _, r := range []struct{ rule, known, sent string }{
		{"the first owner fills the others", "me a- b-", "a b"},
		{"an owner does not send what one before it has", "a+ me b-", ""},
		{"but what one before it lacks", "a- me b-", "a b"},
		{"or may lack", "a? me b-", "b"},
		{"whoever comes later has no say", "me a+ b-", "b"},
		{"who owns nothing does not send what an owner has", "a- b+", ""},
		{"but what no owner has", "a- b-", "a b"},
		{"nor is known to have", "a- b?", "a"},
		{"who did not answer is not sent anything", "me a? b?", ""},
		{"who has it is not sent it", "me a+ b+", ""},
	} {
		if got := names(known(r.known).sends()); got != r.sent {
			t.Errorf("%s: of %q, it is sent to %q, want %q", r.rule, r.known, got, r.sent)
		}
	}
}

// clusterOf returns the cluster of a storage node "me", an owner or not, and others.
func clusterOf(state p2p.MemberState, copies int, others ...p2p.PeerID) *cluster {
	v := p2p.View{Epoch: 7, Copies: copies, Members: []p2p.Member{{ID: "me", Role: p2p.RoleStorage, State: state}}}
	for _, id := range others {
		v.Members = append(v.Members, p2p.Member{ID: id, Role: p2p.RoleStorage, State: p2p.Active})
	}
	return newCluster("me", v)
}

func TestABlockIsBehindThinOrSpare(t *testing.T) {
	active, draining := clusterOf(p2p.Active, 2, "a", "b"), clusterOf(p2p.Draining, 2, "a", "b")
	single := clusterOf(p2p.Active, 1, "a", "b")
	for _, r := range []struct {
		rule  string
		c     *cluster
		known string
		want  string
	}{
		{"where it belongs", active, "me a+", ""},
		{"where it belongs, and here", active, "a+ b+", "spare"},
		{"an owner lacks it", active, "a+ b-", "behind"},
		{"an owner that does not answer counts as lacking it", active, "a+ b?", "behind"},
		{"nobody else is known to have it", active, "me b?", "behind thin"},
		{"nobody else has it, and this node is no owner of it", active, "a- b?", "behind thin"},
		{"one copy is enough, and it is here", single, "me", ""},
		{"one copy is enough, and it is to be elsewhere", single, "a-", "behind"},
		{"one copy is enough, and is elsewhere, too", single, "a+", "spare"},
		{"to be emptied: this copy is one of two until then", draining, "a+ b-", "behind"},
		{"to be emptied, and nobody has it", draining, "a- b-", "behind thin"},
		{"to be emptied, and all have it", draining, "a+ b+", "spare"},
		{"to be emptied, and nobody is to have it", draining, "", "behind thin"},
	} {
		tally := newTally(r.c)
		drop := tally.count(known(r.known))
		var got []string
		for name, n := range map[string]int64{"behind": tally.behind, "spare": tally.spare, "thin": tally.thin} {
			if n > 0 {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if strings.Join(got, " ") != r.want || int64(len(drop.blocks)) != tally.spare {
			t.Errorf("%s: %q is %q, want %q; %d to be dropped", r.rule, r.known, got, r.want, len(drop.blocks))
		}
	}
}

func TestOnlyAMemberWithALastingPartInPlacementDrops(t *testing.T) {
	for state, drops := range map[p2p.MemberState]bool{p2p.Active: true, p2p.Draining: true, p2p.Away: false, p2p.Leaving: false} {
		tally := newTally(clusterOf(state, 2, "a", "b"))
		drop := tally.count(known("a+ b+"))
		if (len(drop.blocks) == 1) != drops || tally.droppable() != 1 || (tally.due() == later) != drops {
			t.Errorf("%v: %d blocks are to be dropped, another pass is due: %v", state, len(drop.blocks), tally.due())
		}
	}
}

// Rule 15: nothing is dropped before every current owner has proved that it has it.
func TestABlockIsDroppedWhenEveryOwnerHasProvedIt(t *testing.T) {
	right, wrong, none := exchange.Proof{1}, exchange.Proof{2}, exchange.Proof{}
	for _, r := range []struct {
		rule           string
		proofs         []exchange.Proof
		claimed, liars bool
	}{
		{"all have", []exchange.Proof{right, right, right}, true, false},
		{"the last has not", []exchange.Proof{right, right, none}, false, true},
		{"the first has not", []exchange.Proof{none, right, right}, false, true},
		{"one has other bytes", []exchange.Proof{right, wrong, right}, true, true},
		{"it has no owner", nil, false, false},
	} {
		b := held{cid: planCID(1)}
		for i, p := range r.proofs {
			b.copies = append(b.copies, ownerCopy{cid: b.cid, owner: p2p.PeerID(fmt.Sprint(i)), state: there, proof: p})
		}
		if _, lies := b.liar(right); b.claimed() != r.claimed || lies != r.liars {
			t.Errorf("%s: all claim to have it: %v, one lies: %v", r.rule, b.claimed(), lies)
		}
	}
}

func TestWhatAPassProves(t *testing.T) {
	met := func(ids ...p2p.PeerID) func(*tally) {
		return func(t *tally) {
			for _, id := range ids {
				t.met(id, 1)
			}
		}
	}
	heard := func(id p2p.PeerID, boot uint64) func(*tally) { return func(t *tally) { t.heard(id, boot) } }
	count := func(s string) func(*tally) { return func(t *tally) { t.count(known(s)) } }
	two, one := clusterOf(p2p.Active, 2, "a", "b"), clusterOf(p2p.Active, 1, "a", "b")
	for _, r := range []struct {
		rule           string
		c              *cluster
		steps          []func(*tally)
		clean, secured bool
		due            due
	}{
		{"all is where it belongs", two,
			[]func(*tally){met("a", "b"), heard("a", 1), count("me a+"), heard("a", 1)}, true, true, asUsual},
		{"nothing is here", two, nil, true, true, asUsual},
		{"nothing is to be on two nodes", one, []func(*tally){count("me")}, true, false, asUsual},
		{"an owner of a block that is on two nodes lacks it", two,
			[]func(*tally){met("a", "b"), heard("a", 1), count("a+ b-")}, false, true, soon},
		{"a block is on this node alone", two,
			[]func(*tally){met("a", "b"), heard("a", 1), count("me a-")}, false, false, soon},
		{"a peer that was started again in between proves nothing", two,
			[]func(*tally){met("a", "b"), heard("a", 1), count("me a+"), heard("a", 2)}, false, false, soon},
		{"nor does one that was since it was met", two,
			[]func(*tally){met("a", "b"), heard("a", 2), count("me a+")}, false, false, soon},
		{"nor does one that may know other members", two,
			[]func(*tally){met("b"), heard("a", 1), count("me a+"), heard("a", 1)}, false, false, later},
		{"of whom nothing was heard need not be met", two,
			[]func(*tally){met("a"), heard("a", 1), count("me a+"), heard("a", 1)}, true, true, asUsual},
		{"there is something left to drop", two,
			[]func(*tally){met("a", "b"), heard("a", 1), heard("b", 1), count("a+ b+")}, true, true, later},
		{"nothing is left to drop", two,
			[]func(*tally){met("a", "b"), heard("a", 1), heard("b", 1), count("a+ b+"), func(t *tally) { t.dropped++ }}, true, true, asUsual},
	} {
		tally := newTally(r.c)
		for _, step := range r.steps {
			step(&tally)
		}
		if tally.clean() != r.clean || tally.secured() != r.secured || tally.due() != r.due {
			t.Errorf("%s: clean %v, secured %v, due %v", r.rule, tally.clean(), tally.secured(), tally.due())
		}
	}
}

func TestAPassThatLeftSomethingUndoneIsFollowedByAnotherSooner(t *testing.T) {
	const every = 10 * time.Minute
	retry := repairRetry
	for i, s := range []struct {
		due  due
		want time.Duration
	}{
		{soon, 2 * time.Second}, {soon, 4 * time.Second}, {soon, 8 * time.Second}, {soon, 16 * time.Second},
		{soon, 30 * time.Second}, {soon, 30 * time.Second},
		{asUsual, every},
		{later, 2 * time.Second}, {later, 4 * time.Second}, {later, 8 * time.Second}, {later, 16 * time.Second},
		{later, 32 * time.Second}, {later, 64 * time.Second}, {later, 128 * time.Second}, {later, 256 * time.Second},
		{later, 512 * time.Second}, {later, every}, {later, every},
		{soon, 30 * time.Second},
		{asUsual, every}, {soon, 2 * time.Second},
	} {
		var wait time.Duration
		if wait, retry = s.due.wait(retry, every); wait != s.want {
			t.Errorf("pass %d is followed by another after %v, want %v", i, wait, s.want)
		}
	}
}

func TestAPageHasTheOwnersThatPlacementSays(t *testing.T) {
	c := clusterOf(p2p.Active, 2, "a", "b", "c")
	var cids []cas.CID
	for n := range 100 {
		cids = append(cids, planCID(n))
	}
	mine := 0
	for i, b := range newPage(c, cids).blocks {
		hash := cids[i].Hash()
		var owners []p2p.PeerID
		for _, at := range b.copies {
			owners = append(owners, at.owner)
			if (at.state == there) != (at.owner == "me") || at.cid != cids[i] {
				t.Errorf("%+v", at)
			}
		}
		if !slices.Equal(owners, c.table.Owners(&hash, nil)) {
			t.Errorf("block %d has the owners %v", i, owners)
		}
		if slices.Contains(owners, "me") {
			mine++
		}
	}
	if mine == 0 || mine == len(cids) {
		t.Errorf("%d of %d blocks are owned here", mine, len(cids))
	}
}
