package namespace

import (
	"testing"
)

func waits(s SessionID, id, owner uint64, wants LockedRange, has ...LockedRange) *AwaitLock {
	return &AwaitLock{Session: s, ID: id, Wait: &Wait{Owner: owner, Wants: wants, Has: has}}
}

func exclusive(ino Ino, at uint64) LockedRange {
	return LockedRange{Ino: ino, Start: at, End: at, Write: true}
}

func TestAWaitThatClosesACircleOfProgramsIsRefused(t *testing.T) {
	w := newWriters(t, 3)
	a, b, c := w.sessions[0], w.sessions[1], w.sessions[2]
	x, y, z := exclusive(5, 1), exclusive(6, 2), exclusive(5, 3)
	w.want(w.by(0, waits(a, 1, 7, y, x)), nil)
	w.want(w.by(1, waits(b, 1, 7, z, y)), nil)
	w.want(w.by(2, waits(c, 1, 7, x, z)), ErrDeadlock)
	w.want(w.by(2, waits(c, 1, 7, x)), nil) // it holds nothing
	w.want(w.by(2, waits(c, 2, 8, LockedRange{Ino: 5, Start: 0, End: 9}, z)), ErrDeadlock)
	// Another program of the same node has what is waited for: no circle of programs.
	w.want(w.by(2, waits(c, 3, 9, exclusive(7, 0), z)), nil)
	// Once the first waits no longer, or for something else, there is none.
	w.want(w.by(0, &AwaitLock{Session: a, ID: 1}), nil)
	w.want(w.by(2, waits(c, 1, 7, x, z)), nil)
	w.want(w.by(0, waits(a, 2, 7, y, x)), ErrDeadlock)
	w.want(w.by(0, waits(a, 2, 7, exclusive(6, 9), x)), nil)
	w.want(w.by(0, waits(a, 2, 7, exclusive(6, 9), x)), nil) // said again
	// The waits of a session end with it.
	w.do(&EndSession{Session: c})
	w.want(w.by(0, waits(a, 2, 7, y, x)), nil)
	w.want(w.by(0, waits(c, 1, 7, x)), ErrSession)
	w.do(&EndSession{Session: a}, &EndSession{Session: b})
	if n := len(dumpPrefix(t, w.db, tagWait)); n != 0 {
		t.Errorf("%d waits of ended sessions remain", n)
	}
}

func TestTwoWhoReadDoNotWaitForEachOther(t *testing.T) {
	w := newWriters(t, 2)
	a, b := w.sessions[0], w.sessions[1]
	shared := func(at uint64) LockedRange { return LockedRange{Ino: 5, Start: at, End: at + 5} }
	w.want(w.by(0, waits(a, 1, 1, shared(0), shared(10))), nil)
	w.want(w.by(1, waits(b, 1, 1, shared(12), shared(2))), nil)
	w.want(w.by(0, waits(a, 1, 1, exclusive(5, 2), shared(10))), nil)
	w.want(w.by(1, waits(b, 1, 1, exclusive(5, 15), shared(2))), ErrDeadlock)
}

// Who has got a lock from its own node and waits for other nodes is in the way of
// programs on its own node only.
func TestAProgramThatIsAheadOnItsNodeHindersThatNodeOnly(t *testing.T) {
	w := newWriters(t, 2)
	a, b := w.sessions[0], w.sessions[1]
	x, y := exclusive(5, 1), exclusive(5, 2)
	ahead := waits(a, 1, 1, x)
	ahead.Wait.Ahead = true
	w.want(w.by(0, ahead), nil)
	w.want(w.by(1, waits(b, 1, 1, y, x)), nil) // has what the first waits for
	w.want(w.by(0, waits(a, 2, 2, x, y)), ErrDeadlock)
	w.want(w.by(1, &AwaitLock{Session: b, ID: 1}), nil)
	w.want(w.by(0, waits(a, 2, 2, x, y)), nil)
	w.want(w.by(1, waits(b, 2, 2, x, exclusive(9, 9))), nil)
}

// All threads of a program wait for it.
func TestAProgramWaitsIfAnyOfItsThreadsDoes(t *testing.T) {
	w := newWriters(t, 2)
	a, b := w.sessions[0], w.sessions[1]
	x, y, z := exclusive(5, 1), exclusive(5, 2), exclusive(5, 3)
	w.want(w.by(0, waits(a, 1, 1, z, x)), nil)
	w.want(w.by(0, waits(a, 2, 1, y, x)), nil)
	w.want(w.by(1, waits(b, 1, 1, x, y)), ErrDeadlock)
}

func TestWaitsAreLimited(t *testing.T) {
	w := newWriters(t, 2)
	for i := range MaxWaits {
		w.want(w.by(0, waits(w.sessions[0], uint64(i), uint64(i), exclusive(5, 1))), nil)
	}
	w.want(w.by(1, waits(w.sessions[1], 1, 1, exclusive(5, 1))), ErrInvalid)
	w.want(w.by(0, waits(w.sessions[0], 0, 0, exclusive(5, 2))), nil) // in place of another
	w.want(w.by(0, waits(w.sessions[0], 0, 0, exclusive(5, 2), make([]LockedRange, MaxWaitRanges+1)...)), ErrInvalid)
	w.want(w.by(0, &AwaitLock{Session: w.sessions[0], ID: 5}), nil)
	w.want(w.by(1, waits(w.sessions[1], 1, 1, exclusive(5, 1))), nil)
}

// Random waits are compared with what follows from all pairs.
func TestCirclesAreThoseOfAllPairs(t *testing.T) {
	const nodes, programs, places = 3, 3, 8
	r := newRand(t)
	w := newWriters(t, nodes)
	type thread struct{ node, id int }
	waiting := map[thread]*AwaitLock{}
	refused, taken := 0, 0
	for range 2000 {
		at := thread{r.IntN(nodes), r.IntN(4)}
		if r.IntN(3) == 0 {
			w.want(w.by(at.node, &AwaitLock{Session: w.sessions[at.node], ID: uint64(at.id)}), nil)
			delete(waiting, at)
			continue
		}
		spot := func() LockedRange {
			from := r.Uint64N(places)
			return LockedRange{Ino: 5, Start: from, End: min(places, from+r.Uint64N(2)), Write: r.IntN(2) == 0}
		}
		op := waits(w.sessions[at.node], uint64(at.id), r.Uint64N(programs), spot())
		op.Wait.Ahead = r.IntN(4) == 0
		for range r.IntN(3) {
			op.Wait.Has = append(op.Wait.Has, spot())
		}
		was := waiting[at]
		waiting[at] = op
		// reaches[x][y]: x waits for y.
		reaches := map[program]map[program]bool{}
		of := func(op *AwaitLock) program { return program{op.Session, op.Wait.Owner} }
		for _, x := range waiting {
			if reaches[of(x)] == nil {
				reaches[of(x)] = map[program]bool{}
			}
			for _, y := range waiting {
				for _, h := range y.Wait.Has {
					if of(x) != of(y) && h.excludes(&x.Wait.Wants) {
						reaches[of(x)][of(y)] = true
					}
				}
				if of(x) != of(y) && x.Session == y.Session && y.Wait.Ahead && y.Wait.Wants.excludes(&x.Wait.Wants) {
					reaches[of(x)][of(y)] = true
				}
			}
		}
		// The op itself must be in the circle: its program waits by other threads, too.
		direct := map[program]bool{}
		for _, y := range waiting {
			for _, h := range y.Wait.Has {
				direct[of(y)] = direct[of(y)] || of(op) != of(y) && h.excludes(&op.Wait.Wants)
			}
			direct[of(y)] = direct[of(y)] || of(op) != of(y) && op.Session == y.Session && y.Wait.Ahead && y.Wait.Wants.excludes(&op.Wait.Wants)
		}
		for range nodes * programs {
			for _, x := range reaches {
				for y, yes := range x {
					for z, also := range reaches[y] {
						x[z] = x[z] || yes && also
					}
				}
			}
		}
		circle := false
		for y, yes := range direct {
			circle = circle || yes && reaches[y][of(op)]
		}
		if circle {
			w.want(w.by(at.node, op), ErrDeadlock)
			refused++
			if delete(waiting, at); was != nil {
				waiting[at] = was
			}
		} else {
			w.want(w.by(at.node, op), nil)
			taken++
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	w.check()
	if refused < 50 || taken < 50 {
		t.Errorf("%d waits were refused and %d not", refused, taken)
	}
}
