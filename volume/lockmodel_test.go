package volume

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// lockModel says the same as a lockTable of one file, byte by byte.
type lockModel [modelBytes]map[uint64]bool // owner to whether he writes

const (
	modelBytes  = 24
	modelOwners = 4
)

func (m *lockModel) blocked(r *lockRequest) bool {
	for _, b := range m[r.Start : r.End+1] {
		for owner, write := range b {
			if owner != r.Owner && (write || r.Write) {
				return true
			}
		}
	}
	return false
}

func (m *lockModel) set(r *lockRequest, lock bool) {
	for _, b := range m[r.Start : r.End+1] {
		if lock {
			b[r.Owner] = r.Write
		} else {
			delete(b, r.Owner)
		}
	}
}

// ranges returns how many ranges the model has, an owner's neighbouring bytes
// being one if they are alike.
func (m *lockModel) ranges() (n int) {
	for owner := range uint64(modelOwners) {
		for i, b := range m {
			write, has := b[owner]
			if !has {
				continue
			}
			if i > 0 {
				if before, had := m[i-1][owner]; had && before == write {
					continue
				}
			}
			n++
		}
	}
	return n
}

// TestLockTableAgreesWithItsModel makes random requests of a table and of a
// model. Requests that wait are granted in order, so the model grants them in
// order as well.
func TestLockTableAgreesWithItsModel(t *testing.T) {
	var seeds []uint64
	for s := range *seedsFlag * 10 {
		seeds = append(seeds, s+1)
	}
	if *seedFlag != 0 {
		seeds = []uint64{*seedFlag}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			m := lockModelTest{s: newLockScript(t), rnd: rand.New(rand.NewPCG(seed, 0))}
			for i := range m.model {
				m.model[i] = make(map[uint64]bool)
			}
			for step := range *stepsFlag {
				what, err := m.do()
				if err == nil {
					err = m.compare()
				}
				if err != nil {
					t.Fatalf("step %d, %s: %v\nreplay with: go test ./volume -run TestLockTableAgreesWithItsModel -seed %d", step, what, err, seed)
				}
			}
			for owner := range uint64(modelOwners) {
				m.s.flushed(1, owner, m.s.path(fmt.Sprint(owner)))
			}
			for _, r := range m.queue {
				m.s.flushed(1, r.Owner, r.via)
			}
			m.s.close()
			m.s.empty()
		})
	}
}

type lockModelTest struct {
	s     *lockScript
	rnd   *rand.Rand
	model lockModel
	queue []*lockRequest // that wait
}

// do makes a random request and says which.
func (m *lockModelTest) do() (string, error) {
	owner := m.rnd.Uint64N(modelOwners)
	start := m.rnd.Uint64N(modelBytes)
	end := start + m.rnd.Uint64N(modelBytes-start)
	r := &lockRequest{
		Lock:  Lock{Start: start, End: end, Write: m.rnd.IntN(2) == 0, Owner: owner},
		space: lockSpace{ino: 1}, via: m.s.path(fmt.Sprint(owner)), graph: true, done: make(chan error, 1),
	}
	what := fmt.Sprintf("%+v", r.Lock)
	switch m.rnd.IntN(10) {
	case 0, 1, 2, 3:
		return "try " + what, m.granted(r, m.s.try(r), m.model.blocked(r))
	case 4:
		err := m.s.enqueue(r)
		blocked := m.model.blocked(r)
		if dead := blocked && m.deadlock(r); dead != errors.Is(err, ErrDeadlock) {
			return "wait " + what, fmt.Errorf("%v, want deadlock %v", err, dead)
		} else if dead {
			return "wait " + what, nil
		}
		if blocked {
			m.queue = append(m.queue, r)
		}
		return "wait " + what, m.granted(r, err, blocked)
	case 5, 6, 7:
		err := m.s.unlock(r)
		m.model.set(r, false)
		m.wake()
		return "unlock " + what, err
	case 8:
		m.s.flushed(1, owner, r.via)
		m.model.set(&lockRequest{Lock: Lock{Start: 0, End: modelBytes - 1, Owner: owner}}, false)
		m.wake()
		return "close " + what, nil
	default:
		if len(m.queue) == 0 {
			return "nothing", nil
		}
		i := m.rnd.IntN(len(m.queue))
		r := m.queue[i]
		m.queue = slices.Delete(m.queue, i, i+1)
		if err := m.s.giveUp(r, ErrInterrupted); err != ErrInterrupted {
			return "interrupt", err
		}
		return fmt.Sprintf("interrupt %+v", r.Lock), nil
	}
}

// granted compares the answer to a request with whether the model blocks it, and
// has the model follow.
func (m *lockModelTest) granted(r *lockRequest, err error, blocked bool) error {
	if blocked != errors.Is(err, ErrWouldBlock) || err != nil && !blocked {
		return fmt.Errorf("answer is %v, want blocked %v", err, blocked)
	}
	if !blocked {
		m.model.set(r, true)
		m.wake()
	}
	return nil
}

// wake grants in the model what is granted in the table when locks go.
func (m *lockModelTest) wake() {
	for again := true; again; {
		again = false
		m.queue = slices.DeleteFunc(m.queue, func(r *lockRequest) bool {
			if m.model.blocked(r) {
				return false
			}
			m.model.set(r, true)
			again = true
			return true
		})
	}
}

// deadlock reports whether r's owner can be reached from r over waits, by
// reaching further until nothing is new.
func (m *lockModelTest) deadlock(r *lockRequest) bool {
	reached := make(map[uint64]bool)
	reach := func(r *lockRequest) (more bool) {
		for _, b := range m.model[r.Start : r.End+1] {
			for owner, write := range b {
				if owner != r.Owner && (write || r.Write) && !reached[owner] {
					reached[owner], more = true, true
				}
			}
		}
		return more
	}
	for more := reach(r); more; {
		more = false
		for _, w := range m.queue {
			more = reached[w.Owner] && reach(w) || more
		}
	}
	return reached[r.Owner]
}

func (m *lockModelTest) compare() error {
	f := m.s.file(lockSpace{ino: 1})
	defer m.s.tidy(f)
	n := 0
	var got lockModel
	for i := range got {
		got[i] = make(map[uint64]bool)
	}
	for owner, locks := range f.owners {
		n += len(locks)
		for _, h := range locks {
			got.set(&lockRequest{Lock: Lock{Start: h.start, End: h.end, Write: h.write, Owner: owner}}, true)
		}
	}
	for i := range got {
		if fmt.Sprint(got[i]) != fmt.Sprint(m.model[i]) {
			return fmt.Errorf("byte %d is locked by %v, want %v", i, got[i], m.model[i])
		}
	}
	if want := m.model.ranges(); n != want || f.held != want || m.s.held != want {
		return fmt.Errorf("%d locks, counted %d and %d, want %d", n, f.held, m.s.held, want)
	}
	if !slices.Equal(f.queue, m.queue) || m.s.queued != len(m.queue) {
		return fmt.Errorf("%d requests wait, counted %d, want %d", len(f.queue), m.s.queued, len(m.queue))
	}
	return nil
}
