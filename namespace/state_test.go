package namespace

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

func TestANewNamespaceIsAnEmptyRoot(t *testing.T) {
	f := newFixture(t, Options{})
	want := Inode{Ino: RootIno, Mode: TypeDir | 0o755, Nlink: 2, Parent: RootIno}
	if n := f.inode(RootIno); !sameInode(n, want) || f.s.Applied() != 0 || f.s.Stats() != (Stats{}) {
		t.Errorf("root %+v, applied %d, %+v", n, f.s.Applied(), f.s.Stats())
	}
	f.check()
}

func TestTheHashKeyIsThatOfTheCreation(t *testing.T) {
	f := newFixture(t, Options{HashKey: [16]byte{1}})
	f.fill(RootIno, 20)
	f.reopen(Options{HashKey: [16]byte{2}})
	f.check()
	other := newFixture(t, Options{HashKey: [16]byte{2}})
	a, _ := f.s.hashName("name")
	if b, _ := other.s.hashName("name"); a == b {
		t.Error("two keys give one hash")
	}
}

func TestIndexesAreAppliedOnceAndInOrder(t *testing.T) {
	f := newFixture(t, Options{})
	create := func(name string) *Command {
		return &Command{Time: 5, Ops: []Op{&Create{Parent: RootIno, Name: name, Mode: TypeFIFO}}}
	}
	if r, err := f.s.Apply(7, create("a")); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	before := dump(t, f.db)
	for _, index := range []uint64{0, 6, 7} {
		if _, err := f.s.Apply(index, create("b")); !errors.Is(err, ErrApplied) {
			t.Errorf("index %d: %v", index, err)
		}
	}
	if d := diff(before, dump(t, f.db)); d != "" {
		t.Error(d)
	}
	f.reopen(Options{})
	if f.s.Applied() != 7 {
		t.Errorf("applied %d after reopening", f.s.Applied())
	}
	if r, err := f.s.Apply(100, create("b")); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	f.check()
}

func TestAnAbortedCommandNeverWas(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	before := dump(t, f.db)
	cmd := &Command{Time: f.now + 1, Ops: []Op{
		&Create{Parent: RootIno, Name: "new", Mode: TypeRegular}, &SetAttr{Ino: ino, Mask: AttrUID, UID: 7}, &Snapshot{Name: "s"},
	}}
	p, err := f.s.Prepare(f.index+1, cmd)
	if err != nil || p.Result().Err != nil || p.Result().Inodes[1].UID != 7 {
		t.Fatal(err, p.Result())
	}
	if n := f.inode(ino); n.UID != 0 || f.lookup(RootIno, "new") != 0 {
		t.Error("a prepared command can be seen")
	}
	p.Abort()
	if d := diff(before, dump(t, f.db)); d != "" || f.s.Applied() != f.index {
		t.Error(d, f.s.Applied())
	}
	checkCache(t, f.s)
	p, err = f.s.Prepare(f.index+1, cmd)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(); err != nil || f.lookup(RootIno, "new") == 0 || f.s.Applied() != f.index+1 {
		t.Error(err, "the command is not there after all")
	}
	f.check()
}

func TestDamagedDatabasesAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		key, value string
		want       error
	}{
		"version of the format":   {"f", "\xff", ErrVersion},
		"format":                  {"f", "\x01\xff", ErrCorrupt},
		"hash key":                {"f", "\x01", ErrCorrupt},
		"version of the counters": {"m", "\x02", ErrVersion},
		"counters":                {"m", "\x01\xff", ErrCorrupt},
		"snapshot":                {"sname", "\x01\xff", ErrCorrupt},
	} {
		f := newFixture(t, Options{})
		if err := f.db.Set(append([]byte{space}, c.key...), []byte(c.value), pebble.NoSync); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(f.db, Options{}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	f := newFixture(t, Options{})
	if err := f.db.Delete(tagKey(nil, tagMeta), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(f.db, Options{}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("no counters: %v", err)
	}
}

// Rule 5: a local failure stops the node, it never becomes a result.
func TestAFailingDiskEndsTheState(t *testing.T) {
	var failing atomic.Bool
	injector := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if failing.Load() && op.Kind == errorfs.OpFileReadAt {
			return errorfs.ErrInjected
		}
		return nil
	})
	mem := vfs.NewMem()
	db, err := pebble.Open("db", &pebble.Options{FS: errorfs.Wrap(mem, injector), DisableWAL: true, Logger: quiet{}, CacheSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(db, Options{CacheInodes: 1, CacheDentries: 1})
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, db: db, s: s}
	for i := range 200 {
		f.dir(RootIno, fmt.Sprint(i))
	}
	if err := db.Flush(); err != nil {
		t.Fatal(err)
	}
	failing.Store(true)
	if _, err := s.Inode(100); !errors.Is(err, errorfs.ErrInjected) {
		t.Errorf("read: %v", err)
	}
	failing.Store(false)
	if _, err := s.Inode(100); err != nil {
		t.Errorf("a failed read ended the state: %v", err)
	}
	failing.Store(true)
	f.index++
	cmd := &Command{Time: 1, Ops: []Op{&Create{Parent: 50, Name: "x", Mode: TypeFIFO}}}
	r, err := s.Apply(f.index, cmd)
	if !errors.Is(err, ErrFailed) || !errors.Is(err, errorfs.ErrInjected) || r.Err != nil {
		t.Errorf("apply: %+v, %v", r, err)
	}
	failing.Store(false)
	for what, call := range map[string]func() error{
		"Apply":   func() error { _, err := s.Apply(f.index, cmd); return err },
		"Prepare": func() error { _, err := s.Prepare(f.index, cmd); return err },
		"Inode":   func() error { _, err := s.Inode(RootIno); return err },
		"Lookup":  func() error { _, err := s.Lookup(RootIno, "1"); return err },
		"ReadDir": func() error { return s.ReadDir(RootIno, 0, nil) },
		"Xattr":   func() error { _, err := s.Xattr(RootIno, "a"); return err },
		"Orphans": func() error { _, err := s.Orphans(); return err },
		"View":    func() error { _, err := s.At(1).Inode(RootIno); return err },
		"IndexAt": func() error { _, err := s.IndexAt(1); return err },
		"Check":   func() error { return s.Check(t.Context(), nil) },
	} {
		if err := call(); !errors.Is(err, ErrFailed) {
			t.Errorf("%s after the failure: %v", what, err)
		}
	}
	f.reopen(Options{})
	if r, err := f.s.Apply(f.index, cmd); err != nil || r.Err != nil {
		t.Errorf("after reopening: %v, %v", r.Err, err)
	}
	f.check()
	if err := db.Close(); err != nil {
		t.Error(err)
	}
}

// A command is seen wholly or not at all, by reads of every kind and whatever is
// cached.
func TestReadersSeeWholeCommands(t *testing.T) {
	for _, o := range []Options{{}, {CacheInodes: 2, CacheDentries: 2}, {CacheDentries: 1}, {CacheDentries: 3}} {
		f := newFixture(t, o)
		a, b := f.dir(RootIno, "a"), f.dir(RootIno, "b")
		ino := f.file(a, "file")
		f.do(&SetXattr{Ino: ino, Name: "user.n", Value: []byte("0")})
		f.file(RootIno, "other 0")
		var stop atomic.Bool
		var readers sync.WaitGroup
		defer readers.Wait()
		defer stop.Store(true)
		for range 3 {
			readers.Go(func() {
				for !stop.Load() {
					checkWholeCommands(t, f.s, a, b, ino)
				}
			})
		}
		for i := range 250 {
			from, to := a, b
			if i%2 == 1 {
				from, to = b, a
			}
			// The file moves, and says by its owner where it is.
			f.do(
				&Rename{Parent: from, Name: "file", NewParent: to, NewName: "file"},
				&SetAttr{Ino: ino, Mask: AttrUID, UID: uint32(to)},
				&SetAttr{Ino: from, Mask: AttrUID, UID: 0},
				&SetAttr{Ino: to, Mask: AttrUID, UID: 1},
				&Create{Parent: from, Name: fmt.Sprint("x", i), Mode: TypeFIFO},
				&Unlink{Parent: from, Name: fmt.Sprint("x", i)},
				// and pushes the rest out of a small cache
				&Rename{Parent: RootIno, Name: fmt.Sprint("other ", i), NewParent: RootIno, NewName: fmt.Sprint("other ", i+1)},
			)
		}
		stop.Store(true)
		readers.Wait()
		checkCache(t, f.s)
		f.check()
	}
}

func checkWholeCommands(t *testing.T, s *State, a, b, ino Ino) {
	for _, dir := range []Ino{a, b} {
		n, err := s.Lookup(dir, "file")
		if err == nil && (n.Ino != ino || n.UID != uint32(dir) && n.UID != 0) || err != nil && !errors.Is(err, ErrNotFound) {
			t.Errorf("lookup in %d: %+v, %v", dir, n, err)
		}
		entries := 0
		if err := s.ReadDir(dir, 0, func(d Dentry) bool {
			if strings.HasPrefix(d.Name, "x") {
				t.Errorf("half a command: %+v", d)
			}
			entries++
			return true
		}); err != nil {
			t.Error(err)
		}
		if n, err := s.Inode(dir); err != nil || n.Size > 1 || n.Size != int64(n.UID) && n.UID != 0 {
			t.Errorf("directory %+v, %v", n, err)
		}
	}
	v := s.At(s.Applied())
	inA, errA := v.Lookup(a, "file")
	_, errB := v.Lookup(b, "file")
	if (errA == nil) == (errB == nil) {
		t.Errorf("as of %d the file is in both or none: %+v, %v, %v", v.index, inA, errA, errB)
	}
	if _, err := s.Xattr(ino, "user.n"); err != nil {
		t.Error(err)
	}
}
