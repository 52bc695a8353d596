package namespace

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

var badNames = map[string]error{
	"":                       ErrInvalid,
	".":                      ErrInvalid,
	"..":                     ErrInvalid,
	"a/b":                    ErrInvalid,
	"/":                      ErrInvalid,
	"a\x00":                  ErrInvalid,
	strings.Repeat("n", 256): ErrNameTooLong,
}

func TestEveryOpRefusesBadNames(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	for name, want := range badNames {
		f.refuse(want, &Create{Parent: RootIno, Name: name, Mode: TypeRegular})
		f.refuse(want, &Link{Ino: ino, Parent: RootIno, Name: name})
		f.refuse(want, &Unlink{Parent: RootIno, Name: name})
		f.refuse(want, &Rmdir{Parent: RootIno, Name: name})
		f.refuse(want, &Rename{Parent: RootIno, Name: name, NewParent: RootIno, NewName: "x"})
		f.refuse(want, &Rename{Parent: RootIno, Name: "file", NewParent: RootIno, NewName: name})
	}
	f.check()
}

func TestNamesMayBeAnyOtherBytes(t *testing.T) {
	f := newFixture(t, Options{})
	for _, name := range []string{"a", " ", "...", "\xff\xfe", "\n", "ä", "-rf", strings.Repeat("n", 255)} {
		if ino := f.file(RootIno, name); f.lookup(RootIno, name) != ino {
			t.Errorf("name %q is not found", name)
		}
	}
	f.check()
}

func TestEveryOpRefusesParentsThatAreNoDirectories(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	gone := f.dir(RootIno, "gone")
	f.do(&Rmdir{Parent: RootIno, Name: "gone"})
	for parent, want := range map[Ino]error{ino: ErrNotDir, 999: ErrNotFound, gone: ErrNotFound, Created: ErrInvalid} {
		f.refuse(want, &Create{Parent: parent, Name: "x", Mode: TypeRegular})
		f.refuse(want, &Link{Ino: ino, Parent: parent, Name: "x"})
		f.refuse(want, &Unlink{Parent: parent, Name: "x"})
		f.refuse(want, &Rmdir{Parent: parent, Name: "x"})
		f.refuse(want, &Rename{Parent: parent, Name: "x", NewParent: RootIno, NewName: "y"})
		f.refuse(want, &Rename{Parent: RootIno, Name: "file", NewParent: parent, NewName: "y"})
	}
}

func TestCreateSetsAttributesAndTouchesTheParent(t *testing.T) {
	f := newFixture(t, Options{})
	before := f.inode(RootIno)
	for _, c := range []struct {
		op                  Create
		nlink, mode, rdev   uint32
		size                int64
		rootNlink           uint32
		addsDirs, addsFiles int64
	}{
		{op: Create{Mode: TypeRegular | 0o640}, nlink: 1, mode: TypeRegular | 0o640, addsFiles: 1},
		{op: Create{Mode: TypeDir | 0o1777}, nlink: 2, mode: TypeDir | 0o1777, addsDirs: 1},
		{op: Create{Mode: TypeSymlink, Target: "a/b"}, nlink: 1, mode: TypeSymlink | 0o777, size: 3, addsFiles: 1},
		{op: Create{Mode: TypeFIFO | 0o600, Rdev: 7}, nlink: 1, mode: TypeFIFO | 0o600, addsFiles: 1},
		{op: Create{Mode: TypeSocket | 0o600}, nlink: 1, mode: TypeSocket | 0o600, addsFiles: 1},
		{op: Create{Mode: TypeChar | 0o600, Rdev: 0x103}, nlink: 1, mode: TypeChar | 0o600, rdev: 0x103, addsFiles: 1},
		{op: Create{Mode: TypeBlock | 0o600, Rdev: 8}, nlink: 1, mode: TypeBlock | 0o600, rdev: 8, addsFiles: 1},
	} {
		stats := f.s.Stats()
		op := c.op
		op.Parent, op.Name, op.UID, op.GID = RootIno, strings.Repeat("f", int(op.Mode>>12)), 5, 6
		n := f.do(&op).Inodes[0]
		want := Inode{
			Ino: n.Ino, Generation: f.index, Mode: c.mode, Nlink: c.nlink, UID: 5, GID: 6, Rdev: c.rdev,
			Size: c.size, Atime: f.now, Mtime: f.now, Ctime: f.now, Btime: f.now,
			Target: op.Target, Version: f.index, Began: f.index,
		}
		if n.IsDir() {
			want.Parent = RootIno
		}
		if !sameInode(n, want) {
			t.Errorf("created %+v, want %+v", n, want)
		}
		if got := f.inode(n.Ino); !sameInode(got, n) {
			t.Errorf("reads as %+v, was created as %+v", got, n)
		}
		if got := f.lookup(RootIno, op.Name); got != n.Ino {
			t.Errorf("name leads to %d, created %d", got, n.Ino)
		}
		got := f.s.Stats()
		if got.Files-stats.Files != c.addsFiles || got.Dirs-stats.Dirs != c.addsDirs {
			t.Errorf("mode %#o: counters went from %+v to %+v", op.Mode, stats, got)
		}
	}
	root := f.inode(RootIno)
	if root.Nlink != before.Nlink+1 || root.Size != 7 || root.Mtime != f.now || root.Ctime != f.now || root.Atime != before.Atime || root.Version != f.index {
		t.Errorf("parent went from %+v to %+v", before, root)
	}
	f.check()
}

func TestCreateRefusesWhatDoesNotFitTheType(t *testing.T) {
	f := newFixture(t, Options{})
	f.file(RootIno, "there")
	long := strings.Repeat("t", 4096)
	some := inline("x")
	for _, c := range []struct {
		op   Create
		want error
	}{
		{Create{Name: "there", Mode: TypeRegular}, ErrExist},
		{Create{Name: "there", Mode: TypeDir}, ErrExist},
		{Create{Mode: 0o644}, ErrInvalid},
		{Create{Mode: 0o010000 | TypeRegular}, ErrInvalid},
		{Create{Mode: TypeRegular | 1<<20}, ErrInvalid},
		{Create{Mode: TypeSymlink}, ErrInvalid},
		{Create{Mode: TypeSymlink, Target: "a\x00b"}, ErrInvalid},
		{Create{Mode: TypeSymlink, Target: long}, ErrNameTooLong},
		{Create{Mode: TypeRegular, Target: "t"}, ErrInvalid},
		{Create{Mode: TypeDir, Size: 1}, ErrInvalid},
		{Create{Mode: TypeFIFO, Content: &some, Size: 1}, ErrInvalid},
		{Create{Mode: TypeSymlink, Target: "t", Size: 1}, ErrInvalid},
		{Create{Mode: TypeRegular, Size: -1}, ErrInvalid},
		{Create{Mode: TypeRegular, Content: &some, Size: 0}, ErrInvalid},
	} {
		op := c.op
		op.Parent = RootIno
		if op.Name == "" {
			op.Name = "new"
		}
		f.refuse(c.want, &op)
	}
	op := &Create{Parent: RootIno, Name: "longest", Mode: TypeSymlink, Target: long[:MaxTarget]}
	if n := f.do(op).Inodes[0]; n.Size != MaxTarget {
		t.Errorf("size %d of the longest target", n.Size)
	}
	f.check()
}

func TestSetgidDirectoriesPassOnTheirGroup(t *testing.T) {
	f := newFixture(t, Options{})
	dir := f.do(&Create{Parent: RootIno, Name: "dir", Mode: TypeDir | 0o2775, GID: 100}).Inodes[0]
	file := f.do(&Create{Parent: dir.Ino, Name: "f", Mode: TypeRegular | 0o644, UID: 1, GID: 1}).Inodes[0]
	if file.GID != 100 || file.UID != 1 || file.Mode != TypeRegular|0o644 {
		t.Errorf("file in a setgid directory: %+v", file)
	}
	sub := f.do(&Create{Parent: dir.Ino, Name: "d", Mode: TypeDir | 0o755, GID: 1}).Inodes[0]
	if sub.GID != 100 || sub.Mode != TypeDir|0o2755 {
		t.Errorf("directory in a setgid directory: %+v", sub)
	}
}

func TestLaterOpsOfACommandSeeEarlierOnes(t *testing.T) {
	f := newFixture(t, Options{})
	r := f.do(
		&Create{Parent: RootIno, Name: "dir", Mode: TypeDir | 0o755},
		&Create{Parent: Created, Name: "file", Mode: TypeRegular | 0o644},
		&SetContent{Ino: Created, Content: inline("abc"), Size: 3, Mtime: 42},
		&SetXattr{Ino: Created, Name: "user.a", Value: []byte("v")},
		&Link{Ino: Created, Parent: RootIno, Name: "second"},
		&Unlink{Parent: RootIno, Name: "second"},
		&SetAttr{Ino: Created, Mask: AttrUID, UID: 9},
	)
	dir, file := r.Inodes[0].Ino, r.Inodes[1].Ino
	n := f.inode(file)
	if f.lookup(dir, "file") != file || n.Size != 3 || n.Mtime != 42 || n.UID != 9 || n.Nlink != 1 {
		t.Errorf("file after the command: %+v", n)
	}
	if len(r.Inodes) != 7 || r.Inodes[4].Nlink != 2 || r.Inodes[5].Nlink != 1 || !sameInode(r.Inodes[6], n) {
		t.Errorf("results do not show the steps: %+v", r.Inodes)
	}
	f.do(
		&Create{Parent: RootIno, Name: "brief", Mode: TypeRegular},
		&SetXattr{Ino: Created, Name: "user.a", Value: []byte("v")},
		&Unlink{Parent: RootIno, Name: "brief"},
		&Reap{Ino: Created},
	)
	f.check()
}

func TestACommandHappensWhollyOrNotAtAll(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	next := f.create(RootIno, "probe", TypeFIFO) + 1
	f.refuse(ErrExist,
		&Create{Parent: RootIno, Name: "new", Mode: TypeDir},
		&SetXattr{Ino: ino, Name: "user.a", Value: []byte("v")},
		&Snapshot{Name: "s"},
		&Unlink{Parent: RootIno, Name: "probe"},
		&Create{Parent: RootIno, Name: "file", Mode: TypeRegular},
	)
	if r := f.try(&Unlink{Parent: RootIno, Name: "none"}); r.FailedOp != 0 || r.Index != f.index {
		t.Errorf("result %+v", r)
	}
	if r := f.try(&SetAttr{Ino: ino}, &Unlink{Parent: RootIno, Name: "none"}); r.FailedOp != 1 {
		t.Errorf("op %d failed, want 1", r.FailedOp)
	}
	if got := f.file(RootIno, "new"); got != next {
		t.Errorf("inode %d, want %d: a refused command used up a number", got, next)
	}
	f.do(&Snapshot{Name: "s"})
	f.check()
}

func TestCommandsWithTooManyOpsAreRefused(t *testing.T) {
	f := newFixture(t, Options{})
	ops := make([]Op, MaxOps+1)
	for i := range ops {
		ops[i] = &SetAttr{Ino: RootIno}
	}
	f.refuse(ErrInvalid, ops...)
	f.do(ops[:MaxOps]...)
	f.refuse(ErrInvalid, nil)
}

func TestLinkAddsANameToWhatIsNoDirectory(t *testing.T) {
	f := newFixture(t, Options{})
	ino, dir := f.file(RootIno, "file"), f.dir(RootIno, "dir")
	n := f.do(&Link{Ino: ino, Parent: dir, Name: "second"}).Inodes[0]
	if n.Nlink != 2 || n.Ctime != f.now || n.Mtime == f.now || f.lookup(dir, "second") != ino {
		t.Errorf("linked inode %+v", n)
	}
	if f.s.Stats().Files != 1 {
		t.Errorf("counters %+v", f.s.Stats())
	}
	link := f.create(RootIno, "symlink", TypeSymlink)
	f.do(&Link{Ino: link, Parent: RootIno, Name: "symlink2"})
	f.refuse(ErrPerm, &Link{Ino: dir, Parent: RootIno, Name: "x"})
	f.refuse(ErrExist, &Link{Ino: ino, Parent: RootIno, Name: "file"})
	f.refuse(ErrNotFound, &Link{Ino: 999, Parent: RootIno, Name: "x"})
	orphan := f.file(RootIno, "orphan")
	f.do(&Unlink{Parent: RootIno, Name: "orphan"})
	if n := f.do(&Link{Ino: orphan, Parent: RootIno, Name: "back"}).Inodes[0]; n.Nlink != 1 {
		t.Errorf("orphan with a name again %+v", n)
	}
	f.refuse(ErrInvalid, &Reap{Ino: orphan})
	f.check()
}

func TestUnnamedFilesAreOrphansUntilTheyAreLinked(t *testing.T) {
	f := newFixture(t, Options{})
	dir := f.dir(RootIno, "dir")
	f.do(&SetAttr{Ino: dir, Mask: AttrMode | AttrGID, Mode: 0o2755, GID: 7})
	before := f.inode(dir)
	r := f.do(&Create{Parent: dir, Unnamed: true, Mode: TypeRegular | 0o640, UID: 5, GID: 6})
	n := r.Inodes[0]
	if n.Nlink != 0 || n.UID != 5 || n.GID != 7 || r.Orphan != n.Ino {
		t.Errorf("created %+v, orphan %d", n, r.Orphan)
	}
	if after := f.inode(dir); !reflect.DeepEqual(before, after) {
		t.Errorf("the directory became %+v", after)
	}
	if orphans, err := f.s.Orphans(); err != nil || !slices.Equal(orphans, []Ino{n.Ino}) {
		t.Errorf("orphans %v, %v", orphans, err)
	}
	f.do(&Link{Ino: n.Ino, Parent: dir, Name: "named"})
	if orphans, err := f.s.Orphans(); err != nil || len(orphans) > 0 || f.lookup(dir, "named") != n.Ino {
		t.Errorf("orphans %v, %v", orphans, err)
	}
	f.refuse(ErrInvalid, &Create{Parent: dir, Unnamed: true, Name: "x", Mode: TypeRegular})
	f.refuse(ErrInvalid, &Create{Parent: dir, Unnamed: true, Mode: TypeDir})
	f.refuse(ErrNotDir, &Create{Parent: n.Ino, Unnamed: true, Mode: TypeRegular})
	f.refuse(ErrInvalid, &Create{Parent: dir, Mode: TypeRegular})
	f.do(&Create{Parent: dir, Unnamed: true, Mode: TypeRegular}, &Link{Ino: Created, Parent: dir, Name: "at once"})
	f.check()
}

// setLinks gives an inode a number of links that tests could not reach otherwise.
func (f *fixture) setLinks(ino Ino, n uint32) {
	f.t.Helper()
	r, _, err := loadInode(f.db, ino)
	if err != nil {
		f.t.Fatal(err)
	}
	r.nlink = n
	var enc encoder
	if err := f.db.Set(inodeKey(nil, ino), enc.encodeInode(&r), pebble.NoSync); err != nil {
		f.t.Fatal(err)
	}
	f.reopen(Options{})
}

// reopen makes a new State, with empty caches, over the same database.
func (f *fixture) reopen(o Options) {
	f.t.Helper()
	s, err := Open(f.db, o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.s = s
}

func TestLinksDoNotOverflow(t *testing.T) {
	f := newFixture(t, Options{})
	ino, full, a, b := f.file(RootIno, "file"), f.dir(RootIno, "full"), f.dir(RootIno, "a"), f.dir(RootIno, "b")
	sub := f.dir(a, "sub")
	f.dir(full, "fullsub")
	f.file(full, "x")
	f.setLinks(ino, MaxLinks)
	f.setLinks(full, MaxLinks)
	f.refuse(ErrTooManyLinks, &Link{Ino: ino, Parent: RootIno, Name: "x"})
	f.refuse(ErrTooManyLinks, &Create{Parent: full, Name: "d", Mode: TypeDir})
	f.refuse(ErrTooManyLinks, &Rename{Parent: a, Name: "sub", NewParent: full, NewName: "d"})
	f.refuse(ErrTooManyLinks, &Rename{Parent: a, Name: "sub", NewParent: full, NewName: "x", Exchange: true})
	f.do(&Create{Parent: full, Name: "f", Mode: TypeRegular})
	f.do(&Rename{Parent: a, Name: "sub", NewParent: full, NewName: "fullsub", Exchange: true})
	if n := f.inode(full); n.Nlink != MaxLinks || f.inode(sub).Parent != full {
		t.Errorf("exchanged in a full directory: %+v", n)
	}
	f.do(&Rename{Parent: a, Name: "sub", NewParent: b, NewName: "x"})
}

func TestUnlinkRemovesANameAndWithTheLastMakesAnOrphan(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.do(&Create{Parent: RootIno, Name: "file", Mode: TypeRegular, Content: ptr(inline("abc")), Size: 3}).Inodes[0].Ino
	f.do(&Link{Ino: ino, Parent: RootIno, Name: "second"})
	r := f.do(&Unlink{Parent: RootIno, Name: "file"})
	if n := r.Inodes[0]; r.Orphan != 0 || n.Nlink != 1 || n.Ctime != f.now || n.Ino != ino {
		t.Errorf("first unlink: %+v", r)
	}
	if root := f.inode(RootIno); root.Mtime != f.now || root.Size != 1 {
		t.Errorf("parent %+v", root)
	}
	if f.s.Stats() != (Stats{Files: 1, LogicalBytes: 3}) {
		t.Errorf("counters %+v", f.s.Stats())
	}
	r = f.do(&Unlink{Parent: RootIno, Name: "second"})
	if r.Orphan != ino || r.Inodes[0].Nlink != 0 {
		t.Errorf("last unlink: %+v", r)
	}
	if f.s.Stats() != (Stats{}) {
		t.Errorf("counters %+v count an orphan", f.s.Stats())
	}
	f.check()
	// An orphan is a file in all other respects.
	n := f.do(&SetContent{Ino: ino, Base: f.inode(ino).Version, Content: inline("abcdef"), Size: 6}).Inodes[0]
	f.do(&SetAttr{Ino: ino, Mask: AttrMode, Mode: 0o600}, &Truncate{Ino: ino, Size: 4}, &SetXattr{Ino: ino, Name: "user.a"})
	if n.Size != 6 || string(f.inode(ino).Content.Inline) != "abcd" || f.s.Stats() != (Stats{}) {
		t.Errorf("orphan %+v, counters %+v", f.inode(ino), f.s.Stats())
	}
	if got, err := f.s.Orphans(); err != nil || len(got) != 1 || got[0] != ino {
		t.Errorf("orphans %v, %v", got, err)
	}
	f.check()
	if r := f.do(&Reap{Ino: ino}); r.Inodes[0].Ino != ino {
		t.Errorf("reap: %+v", r)
	}
	if _, err := f.s.Inode(ino); err != ErrNotFound {
		t.Errorf("inode after reap: %v", err)
	}
	if got, _ := f.s.Orphans(); len(got) != 0 {
		t.Errorf("orphans %v after reap", got)
	}
	f.refuse(ErrNotFound, &Reap{Ino: ino})
	f.refuse(ErrInvalid, &Reap{Ino: f.file(RootIno, "named")})
	f.refuse(ErrInvalid, &Reap{Ino: RootIno})
	f.check()
}

func ptr[T any](v T) *T { return &v }

func TestUnlinkAndRmdirRefuse(t *testing.T) {
	f := newFixture(t, Options{})
	f.file(RootIno, "file")
	dir := f.dir(RootIno, "dir")
	f.refuse(ErrNotFound, &Unlink{Parent: RootIno, Name: "none"})
	f.refuse(ErrIsDir, &Unlink{Parent: RootIno, Name: "dir"})
	f.refuse(ErrNotFound, &Rmdir{Parent: RootIno, Name: "none"})
	f.refuse(ErrNotDir, &Rmdir{Parent: RootIno, Name: "file"})
	f.file(dir, "inside")
	f.refuse(ErrNotEmpty, &Rmdir{Parent: RootIno, Name: "dir"})
	f.do(&Unlink{Parent: dir, Name: "inside"})
	r := f.do(&Rmdir{Parent: RootIno, Name: "dir"})
	if n := r.Inodes[0]; r.Orphan != dir || n.Nlink != 0 || n.Ctime != f.now {
		t.Errorf("rmdir: %+v", r)
	}
	if root := f.inode(RootIno); root.Nlink != 2 || root.Size != 1 || root.Mtime != f.now {
		t.Errorf("parent %+v", root)
	}
	// Who has it open sees an empty directory.
	if err := f.s.ReadDir(dir, 0, func(Dentry) bool { t.Error("entry in a removed directory"); return true }); err != nil {
		t.Error(err)
	}
	f.check()
	f.do(&Reap{Ino: dir})
	f.check()
}
