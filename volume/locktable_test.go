package volume

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairnfs/cairn/namespace"
)

// lockScript is a lockTable and what was asked of it. Owners are letters, files
// numbers.
type lockScript struct {
	*lockTable
	t     *testing.T
	paths map[string]*lockPath
}

func newLockScript(t *testing.T) *lockScript {
	return &lockScript{newLockTable(), t, make(map[string]*lockPath)}
}

func (s *lockScript) path(name string) *lockPath {
	if s.paths[name] == nil {
		s.paths[name] = new(lockPath)
	}
	return s.paths[name]
}

// request asks for bytes from start to end of file 1 for an owner, through the
// path that has his name.
func (s *lockScript) request(owner byte, write bool, start, end uint64) *lockRequest {
	return &lockRequest{
		Lock:  Lock{Start: start, End: end, Write: write, Owner: uint64(owner), PID: uint32(owner)},
		space: lockSpace{ino: 1}, via: s.path(string(owner)), graph: true, done: make(chan error, 1),
	}
}

func (s *lockScript) flock(owner byte, write bool) *lockRequest {
	r := s.request(owner, write, 0, MaxLockEnd)
	r.Flock, r.space.flock, r.graph = true, true, false
	return r
}

func (r *lockRequest) in(ino namespace.Ino) *lockRequest {
	r.space.ino = ino
	return r
}

func (s *lockScript) want(r *lockRequest, want error) {
	s.t.Helper()
	if err := s.try(r); err != want {
		s.t.Fatalf("try %+v: %v, want %v", r.Lock, err, want)
	}
}

// waits has r wait and returns when it does, with what it will come to.
func (s *lockScript) waits(r *lockRequest, cancel <-chan struct{}) <-chan error {
	s.t.Helper()
	outcome := make(chan error, 1)
	before := s.waiters()
	go func() { outcome <- s.wait(cancel, r) }()
	for s.waiters() == before {
		select {
		case err := <-outcome:
			s.t.Fatalf("%+v did not wait: %v", r.Lock, err)
		default:
			runtime.Gosched()
		}
	}
	return outcome
}

func (s *lockScript) waiters() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queued
}

func (s *lockScript) still(outcome <-chan error) {
	s.t.Helper()
	select {
	case err := <-outcome:
		s.t.Fatalf("did not wait on: %v", err)
	default:
	}
}

// locks writes down the locks of fcntl(2) on file 1: "a:r0-9,w10-19 b:…".
func (s *lockScript) locks() string {
	f := s.files[lockSpace{ino: 1}]
	if f == nil {
		return ""
	}
	var all []string
	for owner, locks := range f.owners {
		var own []string
		for _, h := range locks {
			kind := "r"
			if h.write {
				kind = "w"
			}
			own = append(own, fmt.Sprint(kind, h.start, "-", h.end))
		}
		all = append(all, string(rune(owner))+":"+strings.Join(own, ","))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// empty fails the test if anything is left in the table.
func (s *lockScript) empty() {
	s.t.Helper()
	if len(s.files) != 0 || len(s.waiting) != 0 || s.held != 0 || s.queued != 0 {
		s.t.Fatalf("left behind: %d files, %d owners that wait, %d locks, %d waits", len(s.files), len(s.waiting), s.held, s.queued)
	}
}

func TestLocksOfOneOwnerSplitAndMerge(t *testing.T) {
	type step struct {
		kind       byte // r, w or u
		start, end uint64
		want       string
	}
	for name, steps := range map[string][]step{
		"apart":              {{'r', 0, 3, "r0-3"}, {'r', 5, 9, "r0-3,r5-9"}},
		"neighbours merge":   {{'r', 0, 3, "r0-3"}, {'r', 6, 9, "r0-3,r6-9"}, {'r', 4, 5, "r0-9"}},
		"overlaps merge":     {{'w', 0, 5, "w0-5"}, {'w', 3, 9, "w0-9"}, {'w', 2, 4, "w0-9"}},
		"kinds do not merge": {{'r', 0, 3, "r0-3"}, {'w', 4, 9, "r0-3,w4-9"}},
		"upgrade within":     {{'r', 0, 9, "r0-9"}, {'w', 3, 5, "r0-2,w3-5,r6-9"}, {'r', 3, 5, "r0-9"}},
		"upgrade across":     {{'r', 0, 3, "r0-3"}, {'r', 6, 9, "r0-3,r6-9"}, {'w', 2, 7, "r0-1,w2-7,r8-9"}},
		"swallow":            {{'r', 2, 3, "r2-3"}, {'w', 5, 6, "r2-3,w5-6"}, {'w', 1, 8, "w1-8"}},
		"unlock within":      {{'w', 0, 9, "w0-9"}, {'u', 4, 5, "w0-3,w6-9"}, {'u', 0, 0, "w1-3,w6-9"}, {'u', 3, 6, "w1-2,w7-9"}},
		"unlock nothing":     {{'u', 0, 9, ""}, {'r', 5, 6, "r5-6"}, {'u', 0, 4, "r5-6"}, {'u', 7, 9, "r5-6"}},
		"unlock all":         {{'r', 2, 3, "r2-3"}, {'w', 5, 6, "r2-3,w5-6"}, {'u', 0, MaxLockEnd, ""}},
		"to the end":         {{'w', 7, MaxLockEnd, "w7-9223372036854775807"}, {'w', 0, 6, "w0-9223372036854775807"}, {'u', 1, MaxLockEnd, "w0-0"}},
		"the last byte":      {{'w', MaxLockEnd, MaxLockEnd, "w9223372036854775807-9223372036854775807"}, {'u', 0, MaxLockEnd - 1, "w9223372036854775807-9223372036854775807"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newLockScript(t)
			for i, step := range steps {
				r := s.request('a', step.kind == 'w', step.start, step.end)
				var err error
				if step.kind == 'u' {
					err = s.unlock(r)
				} else {
					err = s.try(r)
				}
				if err != nil {
					t.Fatal(err)
				}
				want := step.want
				if want != "" {
					want = "a:" + want
				}
				if got := s.locks(); got != want {
					t.Fatalf("after step %d: %q, want %q", i+1, got, want)
				}
			}
			s.flushed(1, 'a', s.path("a"))
			s.empty()
		})
	}
}

func TestReadersShareAndWritersExclude(t *testing.T) {
	s := newLockScript(t)
	s.want(s.request('a', false, 0, 9), nil)
	s.want(s.request('b', false, 5, 14), nil)
	s.want(s.request('a', true, 0, 4), nil)
	s.want(s.request('a', true, 0, 5), ErrWouldBlock)
	s.want(s.request('c', false, 4, 4), ErrWouldBlock)
	s.want(s.request('c', false, 5, 99), nil)
	s.want(s.request('c', true, 14, 14), ErrWouldBlock)
	s.want(s.request('c', true, 15, 99), nil)
	s.want(s.request('b', true, 0, 9).in(2), nil)
	s.want(s.flock('b', true), nil)
}

func TestTheFirstBlockerIsFound(t *testing.T) {
	s := newLockScript(t)
	if b, found := s.find(s.request('c', true, 0, MaxLockEnd)); found {
		t.Fatalf("found %+v", b)
	}
	s.want(s.request('b', true, 20, 29), nil)
	s.want(s.request('a', false, 10, 15), nil)
	s.want(s.request('b', true, 0, 4), nil)
	for _, c := range []struct {
		owner      byte
		write      bool
		start, end uint64
		want       Lock
	}{
		{'c', true, 0, MaxLockEnd, Lock{Start: 0, End: 4, Write: true, Owner: 'b', PID: 'b'}},
		{'c', true, 5, MaxLockEnd, Lock{Start: 10, End: 15, Owner: 'a', PID: 'a'}},
		{'c', false, 5, MaxLockEnd, Lock{Start: 20, End: 29, Write: true, Owner: 'b', PID: 'b'}},
		{'b', true, 0, 20, Lock{Start: 10, End: 15, Owner: 'a', PID: 'a'}},
		{'c', true, 16, 19, Lock{}},
		{'b', true, 20, 29, Lock{}},
	} {
		got, found := s.find(s.request(c.owner, c.write, c.start, c.end))
		if got != c.want || found != (c.want != Lock{}) {
			t.Errorf("%+v: found %+v %v", c, got, found)
		}
	}
	if b, found := s.find(s.flock('c', true)); found {
		t.Errorf("flock: found %+v", b)
	}
}

func TestWaiterGetsItsLockWhenWhatBlocksItGoes(t *testing.T) {
	for how, free := range map[string]func(*lockScript){
		"unlocked":  func(s *lockScript) { _ = s.unlock(s.request('a', false, 3, 3)) },
		"weakened":  func(s *lockScript) { s.want(s.request('a', false, 0, 9), nil) },
		"closed":    func(s *lockScript) { s.flushed(1, 'a', s.path("a")) },
		"released":  func(s *lockScript) { s.released(1, s.path("a")) },
		"moved off": func(s *lockScript) { _ = s.unlock(s.request('a', false, 0, 9)) },
	} {
		t.Run(how, func(t *testing.T) {
			s := newLockScript(t)
			s.want(s.request('a', true, 0, 9), nil)
			w := s.waits(s.request('b', false, 3, 3), nil)
			_ = s.unlock(s.request('a', false, 4, 9))
			s.still(w)
			free(s)
			if err := <-w; err != nil {
				t.Fatal(err)
			}
			s.want(s.request('c', true, 3, 3), ErrWouldBlock)
		})
	}
}

func TestWaitingWriterGetsInWhenReadersHaveGone(t *testing.T) {
	s := newLockScript(t)
	s.want(s.request('a', false, 0, 9), nil)
	s.want(s.request('b', false, 0, 9), nil)
	w := s.waits(s.request('w', true, 0, 9), nil)
	s.want(s.request('c', false, 0, 9), nil) // overtakes, as on Linux
	late := s.waits(s.request('l', true, 5, 5), nil)
	for _, reader := range []byte("abc") {
		s.still(w)
		s.flushed(1, uint64(reader), s.path(string(reader)))
	}
	if err := <-w; err != nil {
		t.Fatal(err)
	}
	s.still(late) // it came later
	s.want(s.request('d', false, 0, 9), ErrWouldBlock)
	s.flushed(1, 'w', s.path("w"))
	if err := <-late; err != nil {
		t.Fatal(err)
	}
}

func TestCirclesOfWaitsAreDeadlocks(t *testing.T) {
	for _, n := range []int{2, 3, 7} {
		for _, files := range []int{1, 2, 3} {
			t.Run(fmt.Sprintf("%d owners, %d files", n, files), func(t *testing.T) {
				s := newLockScript(t)
				owner := func(i int) byte { return byte('a' + i%n) }
				lock := func(i, of int) *lockRequest {
					of %= n
					return s.request(owner(i), true, uint64(of), uint64(of)).in(namespace.Ino(of%files + 1))
				}
				var waits []<-chan error
				for i := range n {
					s.want(lock(i, i), nil)
				}
				for i := range n - 1 {
					waits = append(waits, s.waits(lock(i, i+1), nil))
				}
				if err := s.wait(nil, lock(n-1, n)); err != ErrDeadlock {
					t.Fatalf("closing the circle: %v", err)
				}
				for i := n - 1; i > 0; i-- { // whoever was refused gives up what he has
					for f := range files {
						s.flushed(namespace.Ino(f+1), uint64(owner(i)), s.path(string(owner(i))))
					}
					if err := <-waits[i-1]; err != nil {
						t.Fatal(err)
					}
				}
				for f := range files {
					s.flushed(namespace.Ino(f+1), 'a', s.path("a"))
				}
				s.empty()
			})
		}
	}
}

func TestTwoReadersThatBothWantToWriteAreADeadlock(t *testing.T) {
	s := newLockScript(t)
	s.want(s.request('a', false, 0, 9), nil)
	s.want(s.request('b', false, 0, 9), nil)
	w := s.waits(s.request('a', true, 0, 9), nil)
	if err := s.wait(nil, s.request('b', true, 0, 9)); err != ErrDeadlock {
		t.Fatal(err)
	}
	if got := s.locks(); got != "a:r0-9 b:r0-9" {
		t.Fatalf("locks are %q", got)
	}
	s.flushed(1, 'b', s.path("b"))
	if err := <-w; err != nil {
		t.Fatal(err)
	}
}

func TestTwoSharersThatBothWantAllTakeTurns(t *testing.T) {
	s := newLockScript(t)
	s.want(s.flock('a', false), nil)
	s.want(s.flock('b', false), nil)
	w := s.waits(s.flock('a', true), nil) // gives up what it has
	if err := s.wait(nil, s.flock('b', true)); err != nil {
		t.Fatal(err)
	}
	s.still(w)
	s.released(1, s.path("b"))
	if err := <-w; err != nil {
		t.Fatal(err)
	}
	s.want(s.flock('b', false), ErrWouldBlock)
	s.want(s.flock('a', false), nil)
	s.want(s.flock('b', false), nil)
	s.want(s.flock('a', true), ErrWouldBlock) // lost
	s.want(s.flock('b', true), nil)
}

func TestInterruptedWaitLeavesNothing(t *testing.T) {
	for _, graph := range []bool{false, true} {
		s := newLockScript(t)
		s.want(s.request('a', true, 0, 9), nil)
		s.want(s.request('b', true, 20, 29), nil)
		cancel := make(chan struct{})
		r := s.request('b', true, 0, 9)
		r.graph = graph
		w := s.waits(r, cancel)
		close(cancel)
		if err := <-w; err != ErrInterrupted {
			t.Fatal(err)
		}
		if got := s.locks(); got != "a:w0-9 b:w20-29" {
			t.Fatalf("locks are %q", got)
		}
		// a may wait for b now, who does not wait any more.
		w = s.waits(s.request('a', true, 20, 29), nil)
		s.flushed(1, 'b', s.path("b"))
		if err := <-w; err != nil {
			t.Fatal(err)
		}
		s.flushed(1, 'a', s.path("a"))
		s.empty()
	}
}

func TestClosedTableEndsWaitsAndGrantsNothing(t *testing.T) {
	s := newLockScript(t)
	s.want(s.request('a', true, 0, 9), nil)
	s.want(s.flock('a', true), nil)
	one, two := s.waits(s.request('b', false, 0, 9), nil), s.waits(s.flock('b', false), nil)
	s.close()
	for _, w := range []<-chan error{one, two} {
		if err := <-w; err != ErrClosed {
			t.Fatal(err)
		}
	}
	s.want(s.request('b', true, 100, 100), ErrClosed)
	if err := s.wait(nil, s.request('b', true, 0, 9)); err != ErrClosed {
		t.Fatal(err)
	}
	s.released(1, s.path("a"))
	s.empty()
}

// The kernel gives numbers of owners out again before it says that the open file
// which had the number is closed.
func TestReleaseEndsTheLocksOfItsOwnHandleOnly(t *testing.T) {
	s := newLockScript(t)
	old, now := s.flock('a', true), s.flock('a', true)
	now.via = s.path("new")
	s.want(old, nil)
	s.want(now, nil)
	oldRange, newRange := s.request('a', true, 0, 9), s.request('a', true, 5, 14)
	newRange.via = now.via
	s.want(oldRange, nil)
	s.want(newRange, nil)
	s.released(1, old.via)
	s.want(s.flock('b', false), ErrWouldBlock)
	if got := s.locks(); got != "a:w5-14" {
		t.Fatalf("locks are %q", got)
	}
	s.released(1, now.via)
	s.empty()
}

// A request may come before the news that the last descriptor is closed.
func TestLockThatIsAboutToGoIsWaitedFor(t *testing.T) {
	for _, goes := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			s := newLockScript(t)
			s.want(s.flock('a', true), nil)
			s.want(s.flock('b', true), ErrWouldBlock)
			s.flushed(1, 'x', s.path("a")) // some process closed a descriptor of a
			outcome, began := make(chan error, 1), time.Now()
			go func() { outcome <- s.try(s.flock('b', true)) }()
			synctest.Wait()
			s.still(outcome)
			want := ErrWouldBlock
			if goes {
				want = nil
				s.released(1, s.path("a"))
			}
			if err := <-outcome; err != want {
				t.Fatalf("%v, want %v", err, want)
			}
			if took := time.Since(began); !goes && took != closingTime { // of a clock that only sleeping moves
				t.Fatalf("took %v", took)
			}
			s.released(1, s.path("a"))
			s.released(1, s.path("b"))
			s.empty()
		})
	}
}

func TestNumbersOfLocksAndWaitsAreBounded(t *testing.T) {
	s := newLockScript(t)
	for i := range uint64(maxFileLocks) {
		s.want(s.request('a', true, 2*i, 2*i), nil)
	}
	s.want(s.request('a', true, 1<<20, 1<<20), ErrTooManyLocks)
	s.want(s.request('b', true, 1<<20, 1<<20), ErrTooManyLocks)
	s.want(s.request('b', true, 1<<20, 1<<20).in(2), nil)
	s.want(s.request('a', true, 1, 1), nil) // makes one of three
	s.want(s.request('a', true, 0, 100), nil)
	s.want(s.request('a', true, 1<<20, 2<<20), nil)
	for i := range uint64(49) { // one of the 51 that became one has come anew, one less is 49
		s.want(s.request('a', true, 3<<20+2*i, 3<<20+2*i), nil)
	}
	s.want(s.request('a', true, 4<<20, 4<<20), ErrTooManyLocks)
	if err := s.unlock(s.request('a', false, 50, 50)); err != ErrTooManyLocks {
		t.Fatalf("cutting one in two: %v", err)
	}
	if err := s.unlock(s.request('a', false, 100, 100)); err != nil {
		t.Fatalf("cutting one short: %v", err)
	}

	s.held += maxLocks - s.held // as if other files had the rest
	s.want(s.request('b', true, 0, 0).in(3), ErrTooManyLocks)
	s.queued = maxLockWaits
	if err := s.wait(nil, s.request('b', true, 0, 0)); err != ErrTooManyLocks {
		t.Fatalf("one wait too many: %v", err)
	}
}
