package raft

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// What programs on several nodes see of a live group, while links are cut and nodes
// lose their power, must be explained by one order of all operations, in which each
// lies between its call and its return. One without an answer may have taken effect
// at any time after its call.

type opKind int

const (
	opCreate opKind = iota
	opUnlink
	opRename
	opLookup
	opLock
	opUnlock
	opEnd // of a session, at any time after it was used first
)

// operation is the input of one.
type operation struct {
	kind     opKind
	part     int // directory, or -1 - file to be locked
	name, to int
	tag      uint32 // of the file created
	session  namespace.SessionID
}

// answer is the output of one.
type answer struct {
	unknown bool
	err     error // nil or one of namespace's
	tag     uint32
}

const linearNames = 3

// dirState has the tags of the files of a directory, and lockState who holds a lock
// and which sessions have ended.
type dirState [linearNames]uint32

type lockState struct {
	holder namespace.SessionID
	ended  string
}

func (s lockState) over(id namespace.SessionID) bool {
	for _, r := range s.ended {
		if namespace.SessionID(r) == id {
			return true
		}
	}
	return false
}

var linearModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) (parts [][]porcupine.Operation) {
		by := make(map[int]int)
		for _, o := range history {
			part := o.Input.(operation).part
			i, ok := by[part]
			if !ok {
				i = len(parts)
				by[part] = i
				parts = append(parts, nil)
			}
			parts[i] = append(parts[i], o)
		}
		return parts
	},
	Init: func() any { return nil },
	Step: func(state, input, output any) (bool, any) {
		in, out := input.(operation), output.(answer)
		if in.part < 0 {
			s, _ := state.(lockState)
			return s.step(in, out)
		}
		s, _ := state.(dirState)
		return s.step(in, out)
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%+v: %+v", input, output)
	},
}

func (s dirState) step(in operation, out answer) (bool, any) {
	var err error
	next := s
	switch in.kind {
	case opCreate:
		if next[in.name] = in.tag; s[in.name] != 0 {
			err = namespace.ErrExist
		}
	case opUnlink:
		if next[in.name] = 0; s[in.name] == 0 {
			err = namespace.ErrNotFound
		}
	case opRename:
		next[in.name] = 0
		if next[in.to] = s[in.name]; s[in.name] == 0 {
			err = namespace.ErrNotFound
		}
	case opLookup:
		return out.tag == s[in.name], s
	}
	if err != nil {
		next = s
	}
	return out.unknown || errors.Is(out.err, err) || out.err == err, next
}

func (s lockState) step(in operation, out answer) (bool, any) {
	if in.kind == opEnd {
		if s.holder == in.session {
			s.holder = 0
		}
		s.ended += string(rune(in.session))
		return true, s
	}
	if s.over(in.session) {
		return out.unknown || errors.Is(out.err, namespace.ErrSession), s
	}
	switch {
	case in.kind == opUnlock:
		if s.holder == in.session {
			s.holder = 0
		}
	case s.holder != 0 && s.holder != in.session:
		return out.unknown || errors.Is(out.err, namespace.ErrLocked), s
	default:
		s.holder = in.session
	}
	return out.unknown || out.err == nil, s
}

// recorder has the history of a run.
type recorder struct {
	g     *group
	begin time.Time
	dirs  []namespace.Ino
	lock  namespace.Ino

	mu       sync.Mutex
	tag      uint32
	history  []porcupine.Operation
	sessions map[namespace.SessionID]bool
}

func (r *recorder) now() int64 { return time.Since(r.begin).Nanoseconds() }

func (r *recorder) nextTag() uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tag++
	return r.tag
}

func (r *recorder) add(client int, in operation, out answer, call int64) {
	end := r.now()
	if out.unknown {
		end = math.MaxInt64
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history = append(r.history, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
	if in.part < 0 && !r.sessions[in.session] {
		r.sessions[in.session] = true
		r.history = append(r.history, porcupine.Operation{ClientId: client, Input: operation{kind: opEnd, part: in.part, session: in.session},
			Call: call, Output: answer{}, Return: math.MaxInt64})
	}
}

// program does operations on a node, whatever happens to the node.
func (r *recorder) program(client int, node uint64, rng *rand.Rand, done <-chan struct{}) {
	for range 1000 {
		select { // slowly, so that the trouble has time, and the history an end
		case <-done:
			return
		case <-time.After(time.Duration(1+rng.IntN(20)) * time.Millisecond):
		}
		m := r.g.node(node)
		if m == nil || m.log.Session() == 0 {
			continue
		}
		part := rng.IntN(len(r.dirs))
		in := operation{kind: opKind(rng.IntN(6)), part: part, name: rng.IntN(linearNames), to: rng.IntN(linearNames)}
		if in.kind >= opLock {
			in.part, in.name, in.to, in.session = -1, 0, 0, m.log.Session()
		}
		if in.kind == opCreate {
			in.tag = r.nextTag()
		}
		call := r.now()
		if out, ok := r.do(m, in); ok {
			r.add(client, in, out, call)
		}
	}
}

// do reports false for what had no effect and saw nothing.
func (r *recorder) do(m *member, in operation) (answer, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 400*time.Millisecond)
	defer cancel()
	var op namespace.Op
	name := func(i int) string { return fmt.Sprint("n", i) }
	switch in.kind {
	case opCreate:
		op = &namespace.Create{Parent: r.dirs[in.part], Name: name(in.name), Mode: namespace.TypeRegular | 0o644, UID: in.tag}
	case opUnlink:
		op = &namespace.Unlink{Parent: r.dirs[in.part], Name: name(in.name)}
	case opRename:
		op = &namespace.Rename{Parent: r.dirs[in.part], Name: name(in.name), NewParent: r.dirs[in.part], NewName: name(in.to)}
	case opLock:
		op = &namespace.LockRange{Session: in.session, Ino: r.lock, Kind: namespace.LockFile, End: 1, Mode: namespace.Exclusive}
	case opUnlock:
		op = &namespace.LockRange{Session: in.session, Ino: r.lock, Kind: namespace.LockFile, End: 1}
	case opLookup:
		if err := m.log.Barrier(ctx); err != nil {
			return answer{}, false
		}
		n, err := m.state.Lookup(r.dirs[in.part], name(in.name))
		if errors.Is(err, namespace.ErrNotFound) {
			return answer{}, true
		} else if err != nil {
			return answer{}, false // the node ends
		}
		return answer{tag: n.UID}, true
	}
	res, err := m.log.Propose(ctx, &namespace.Command{Time: time.Now().UnixNano(), Ops: []namespace.Op{op}})
	if err != nil {
		return answer{unknown: true}, true
	}
	if in.part >= 0 && errors.Is(res.Err, namespace.ErrSession) {
		return answer{}, false
	}
	return answer{err: res.Err}, true
}

// disturb makes trouble.
func (r *recorder) disturb(rng *rand.Rand) {
	pause := func(least int) { time.Sleep(time.Duration(least+rng.IntN(200)) * liveTick / 10) }
	for i := range 8 {
		pause(50)
		id := uint64(1 + rng.IntN(3))
		switch i % 4 {
		case 0:
			r.g.net.Isolate(peerName(id))
		case 1:
			r.g.net.Isolate(peerName(r.g.leader().id))
			pause(800) // longer than its session lasts
		case 2:
			r.g.net.Cut(peerName(id), peerName(id%3+1))
		case 3:
			id = r.g.leader().id
			fs := r.g.node(id).crash()
			pause(100)
			r.g.start(id, fs)
		}
		pause(50)
		r.g.net.HealAll()
		r.g.leader()
	}
}

func TestWhatProgramsSeeIsLinearizable(t *testing.T) {
	t.Parallel()
	g := newGroup(t)
	g.ttl = 60 * liveTick
	a := g.found()
	a.join(p2p.RoleStorage)
	a.join(p2p.RoleStorage)
	g.voters(3)
	r := &recorder{g: g, begin: time.Now(), sessions: make(map[namespace.SessionID]bool)}
	for i := range 3 {
		r.dirs = append(r.dirs, a.must(mkdir(fmt.Sprint("dir", i))).Inodes[0].Ino)
	}
	r.lock = a.must(mkdir("lock")).Inodes[0].Ino
	var programs sync.WaitGroup
	done := make(chan struct{})
	for i := range 6 {
		programs.Go(func() { r.program(i, uint64(i%3+1), rand.New(rand.NewPCG(1, uint64(i))), done) })
	}
	r.disturb(rand.New(rand.NewPCG(2, 2)))
	close(done)
	programs.Wait()
	unknown := 0
	for _, o := range r.history {
		if o.Output.(answer).unknown {
			unknown++
		}
	}
	t.Logf("%d operations, %d of them with unknown outcome, in %d sessions, took %v", len(r.history), unknown, len(r.sessions), time.Since(r.begin).Round(time.Millisecond))
	result, info := porcupine.CheckOperationsVerbose(linearModel, r.history, 20*time.Second)
	switch result {
	case porcupine.Illegal:
		for _, p := range info.PartialLinearizationsOperations() {
			if len(p) > 0 {
				t.Logf("longest explanation: %d operations, the last %+v", len(p[0]), p[0][len(p[0])-1])
			}
		}
		t.Error("no order explains what the programs saw")
	case porcupine.Unknown:
		t.Log("too many unknown outcomes to decide within the time")
	}
	g.agree()
}

// The model must be able to find fault.
func TestTheModelRefusesWhatCannotBe(t *testing.T) {
	op := func(in operation, out answer, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: in, Output: out, Call: call, Return: end}
	}
	create := func(tag uint32, out answer, call, end int64) porcupine.Operation {
		return op(operation{kind: opCreate, tag: tag}, out, call, end)
	}
	lock := func(s namespace.SessionID, out answer, call, end int64) porcupine.Operation {
		return op(operation{kind: opLock, part: -1, session: s}, out, call, end)
	}
	end := func(s namespace.SessionID) porcupine.Operation {
		return op(operation{kind: opEnd, part: -1, session: s}, answer{}, 0, math.MaxInt64)
	}
	unknown := answer{unknown: true}
	for name, c := range map[string]struct {
		history []porcupine.Operation
		legal   bool
	}{
		"two who make one name":             {[]porcupine.Operation{create(1, answer{}, 0, 9), create(2, answer{}, 0, 9)}, false},
		"one of two":                        {[]porcupine.Operation{create(1, answer{}, 0, 9), create(2, answer{err: namespace.ErrExist}, 0, 9)}, true},
		"a stale read":                      {[]porcupine.Operation{create(1, answer{}, 0, 1), op(operation{kind: opLookup}, answer{}, 2, 3)}, false},
		"an unknown that is seen":           {[]porcupine.Operation{create(1, unknown, 0, math.MaxInt64), op(operation{kind: opLookup}, answer{tag: 1}, 2, 3)}, true},
		"an unknown that is not":            {[]porcupine.Operation{create(1, unknown, 0, math.MaxInt64), op(operation{kind: opLookup}, answer{}, 2, 3)}, true},
		"a lock of two":                     {[]porcupine.Operation{lock(5, answer{}, 0, 1), lock(6, answer{}, 2, 3)}, false},
		"a lock of who came after":          {[]porcupine.Operation{lock(5, answer{}, 0, 1), end(5), lock(6, answer{}, 2, 3)}, true},
		"a lock taken after one was lost":   {[]porcupine.Operation{lock(5, answer{}, 0, 1), end(5), lock(6, answer{}, 2, 3), lock(5, answer{}, 4, 5)}, false},
		"a lock of a session that is over":  {[]porcupine.Operation{end(5), lock(5, answer{err: namespace.ErrSession}, 4, 5)}, true},
		"a session that is over but is not": {[]porcupine.Operation{lock(5, answer{err: namespace.ErrSession}, 4, 5)}, false},
	} {
		if got := porcupine.CheckOperations(linearModel, c.history); got != c.legal {
			t.Errorf("%s: %v", name, got)
		}
	}
}
