package namespace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

const second = int64(1e9)

// quiet drops what Pebble logs.
type quiet struct{}

func (quiet) Infof(string, ...any)           {}
func (quiet) Errorf(string, ...any)          {}
func (quiet) Fatalf(format string, a ...any) { panic(fmt.Sprintf(format, a...)) }

func openPebble(t testing.TB, fs vfs.FS) *pebble.DB {
	t.Helper()
	db, err := pebble.Open("db", &pebble.Options{FS: fs, DisableWAL: true, Logger: quiet{}})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

// fixture is a State in memory with a clock and a log position.
type fixture struct {
	t     testing.TB
	db    *pebble.DB
	s     *State
	index uint64
	now   int64
}

func newFixture(t testing.TB, o Options) *fixture {
	t.Helper()
	db := openPebble(t, vfs.NewMem())
	t.Cleanup(func() { db.Close() })
	s, err := Open(db, o)
	if err != nil {
		t.Fatal(err)
	}
	return &fixture{t: t, db: db, s: s, now: 1000 * second}
}

// try applies a command a second after the last one.
func (f *fixture) try(ops ...Op) Result {
	f.t.Helper()
	f.index++
	f.now += second
	r, err := f.s.Apply(f.index, &Command{Time: f.now, Ops: ops})
	if err != nil {
		f.t.Fatalf("command %d: %v", f.index, err)
	}
	return r
}

// do is try for a command that must succeed.
func (f *fixture) do(ops ...Op) Result {
	f.t.Helper()
	r := f.try(ops...)
	if r.Err != nil {
		f.t.Fatalf("command %d, op %d: %v", f.index, r.FailedOp, r.Err)
	}
	return r
}

// refuse is try for a command that must fail and change nothing but Applied.
func (f *fixture) refuse(want error, ops ...Op) {
	f.t.Helper()
	before := dump(f.t, f.db)
	r := f.try(ops...)
	if !errors.Is(r.Err, want) {
		f.t.Fatalf("%T: error %v, want %v", ops[len(ops)-1], r.Err, want)
	}
	if r.Inodes != nil || r.Orphan != 0 || r.Replaced != 0 {
		f.t.Fatalf("refused command has a result: %+v", r)
	}
	after := dump(f.t, f.db)
	meta := string(tagKey(nil, tagMeta))
	delete(before, meta)
	delete(after, meta)
	if d := diff(before, after); d != "" {
		f.t.Fatalf("refused %T changed the database: %s", ops[len(ops)-1], d)
	}
	if got := f.s.Applied(); got != f.index {
		f.t.Fatalf("applied %d after refused command %d", got, f.index)
	}
}

// create makes an inode and returns its number.
func (f *fixture) create(parent Ino, name string, mode uint32) Ino {
	f.t.Helper()
	op := &Create{Parent: parent, Name: name, Mode: mode}
	if mode&TypeMask == TypeSymlink {
		op.Target = "target"
	}
	return f.do(op).Inodes[0].Ino
}

func (f *fixture) dir(parent Ino, name string) Ino {
	f.t.Helper()
	return f.create(parent, name, TypeDir|0o755)
}
func (f *fixture) file(parent Ino, name string) Ino {
	f.t.Helper()
	return f.create(parent, name, TypeRegular|0o644)
}

func (f *fixture) inode(ino Ino) Inode {
	f.t.Helper()
	n, err := f.s.Inode(ino)
	if err != nil {
		f.t.Fatalf("inode %d: %v", ino, err)
	}
	return n
}

// lookup returns the number a name leads to, 0 if to none.
func (f *fixture) lookup(parent Ino, name string) Ino {
	f.t.Helper()
	n, err := f.s.Lookup(parent, name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		f.t.Fatalf("lookup %q in %d: %v", name, parent, err)
	}
	return n.Ino
}

// check fails the test for each problem in the namespace.
func (f *fixture) check() {
	f.t.Helper()
	checkState(f.t, f.s)
}

func checkState(t testing.TB, s *State) {
	t.Helper()
	if err := s.Check(context.Background(), func(p Problem) { t.Errorf("check: %v", p) }); err != nil {
		t.Fatal(err)
	}
}

// dump returns all keys and values.
func dump(t testing.TB, db *pebble.DB) map[string]string {
	t.Helper()
	m := make(map[string]string)
	if err := scan(db, []byte{space}, func(key, value []byte) (bool, error) {
		m[string(key)] = string(value)
		return true, nil
	}); err != nil {
		t.Fatal(err)
	}
	return m
}

// diff describes the first difference between two dumps, "" if there is none.
func diff(a, b map[string]string) string {
	keys := make([]string, 0, len(a)+len(b))
	for k := range a {
		keys = append(keys, k)
	}
	for k := range b {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		av, aok := a[k]
		bv, bok := b[k]
		if aok != bok || av != bv {
			return fmt.Sprintf("key %q: %q (%t) and %q (%t)", k, av, aok, bv, bok)
		}
	}
	return ""
}

// newRand returns a random source whose seed is logged; CAIRN_SEED replays one.
func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("CAIRN_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CAIRN_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// tree is a content of n bytes with an invented root.
func tree(n int64) Content {
	return Content{Root: cas.Sum(cas.DagPB, fmt.Append(nil, n)), TreeSize: n, Length: n}
}

func inline(s string) Content { return Content{Inline: []byte(s), Length: int64(len(s))} }

func sameInode(a, b Inode) bool {
	same := bytes.Equal(a.Content.Inline, b.Content.Inline)
	a.Content.Inline, b.Content.Inline = nil, nil
	return same && reflect.DeepEqual(a, b)
}

func sameContent(a, b Content) bool { return sameInode(Inode{Content: a}, Inode{Content: b}) }
