package namespace

import "testing"

// renameTree makes
//
//	/file  /other  /hard (= file)  /empty/  /full/inside  /a/b/c/
type renameTree struct {
	*fixture
	file, other, empty, full, inside, a, b, c Ino
}

func newRenameTree(t *testing.T) *renameTree {
	f := &renameTree{fixture: newFixture(t, Options{})}
	f.file = f.fixture.file(RootIno, "file")
	f.other = f.fixture.file(RootIno, "other")
	f.do(&Link{Ino: f.file, Parent: RootIno, Name: "hard"})
	f.empty = f.dir(RootIno, "empty")
	f.full = f.dir(RootIno, "full")
	f.inside = f.fixture.file(f.full, "inside")
	f.a = f.dir(RootIno, "a")
	f.b = f.dir(f.a, "b")
	f.c = f.dir(f.b, "c")
	return f
}

func TestRenameRefuses(t *testing.T) {
	f := newRenameTree(t)
	move := func(p Ino, n string, np Ino, nn string) *Rename {
		return &Rename{Parent: p, Name: n, NewParent: np, NewName: nn}
	}
	with := func(op *Rename, noReplace, exchange bool) *Rename {
		op.NoReplace, op.Exchange = noReplace, exchange
		return op
	}
	for _, c := range []struct {
		name string
		op   *Rename
		want error
	}{
		{"a name that is not there", move(1, "none", 1, "x"), ErrNotFound},
		{"to exchange with a name that is not there", with(move(1, "file", 1, "none"), false, true), ErrNotFound},
		{"to replace what must not be", with(move(1, "file", 1, "other"), true, false), ErrExist},
		{"even the same inode", with(move(1, "file", 1, "hard"), true, false), ErrExist},
		{"contradicting flags", with(move(1, "file", 1, "x"), true, true), ErrInvalid},
		{"a file over a directory", move(1, "file", 1, "empty"), ErrIsDir},
		{"a directory over a file", move(1, "empty", 1, "file"), ErrNotDir},
		{"a directory over one that is not empty", move(1, "empty", 1, "full"), ErrNotEmpty},
		{"a directory over one above it", move(f.a, "b", 1, "a"), ErrNotEmpty},
		{"a directory below itself", move(1, "a", f.a, "x"), ErrLoop},
		{"a directory deep below itself", move(1, "a", f.c, "x"), ErrLoop},
		{"a directory over one deep below itself", move(1, "a", f.b, "c"), ErrLoop},
		{"to exchange a directory with one below it", with(move(1, "a", f.b, "c"), false, true), ErrLoop},
		{"to exchange a directory with one above it", with(move(f.b, "c", 1, "a"), false, true), ErrLoop},
		{"to exchange a file with a directory above it", with(move(f.full, "inside", 1, "full"), false, true), ErrLoop},
	} {
		t.Run(c.name, func(t *testing.T) { f.refuse(c.want, c.op) })
	}
	f.check()
}

func TestRenameToTheSameInodeDoesNothing(t *testing.T) {
	f := newRenameTree(t)
	before := f.inode(f.file)
	for _, op := range []*Rename{
		{Parent: 1, Name: "file", NewParent: 1, NewName: "hard"},
		{Parent: 1, Name: "file", NewParent: 1, NewName: "file"},
		{Parent: 1, Name: "file", NewParent: 1, NewName: "hard", Exchange: true},
		{Parent: 1, Name: "empty", NewParent: 1, NewName: "empty"},
	} {
		r := f.do(op)
		if r.Orphan != 0 || r.Replaced != 0 {
			t.Errorf("%+v: %+v", op, r)
		}
	}
	if n := f.inode(f.file); !sameInode(n, before) || f.lookup(1, "file") != f.file || f.lookup(1, "hard") != f.file {
		t.Errorf("inode went from %+v to %+v", before, n)
	}
}

func TestRenameMovesANameWithinAndBetweenDirectories(t *testing.T) {
	f := newRenameTree(t)
	n := f.do(&Rename{Parent: 1, Name: "file", NewParent: 1, NewName: "new"}).Inodes[0]
	if n.Ino != f.file || n.Ctime != f.now || n.Nlink != 2 || f.lookup(1, "file") != 0 || f.lookup(1, "new") != f.file {
		t.Errorf("renamed %+v", n)
	}
	root := f.inode(RootIno)
	f.do(&Rename{Parent: 1, Name: "new", NewParent: f.c, NewName: "deep"})
	if now := f.inode(RootIno); now.Size != root.Size-1 || now.Mtime != f.now || f.inode(f.c).Size != 1 || f.inode(f.c).Mtime != f.now {
		t.Errorf("directories after a move: %+v, %+v", now, f.inode(f.c))
	}
	// A directory takes its parent's link along.
	f.do(&Rename{Parent: f.a, Name: "b", NewParent: f.empty, NewName: "b2"})
	if f.inode(f.a).Nlink != 2 || f.inode(f.empty).Nlink != 3 || f.inode(f.b).Parent != f.empty {
		t.Errorf("after a directory moved: %+v, %+v, %+v", f.inode(f.a), f.inode(f.empty), f.inode(f.b))
	}
	f.check()
}

func TestRenameReplaces(t *testing.T) {
	f := newRenameTree(t)
	r := f.do(&Rename{Parent: 1, Name: "other", NewParent: f.full, NewName: "inside"})
	if r.Orphan != f.inside || r.Replaced != f.inside || r.Inodes[0].Ino != f.other {
		t.Errorf("file over file: %+v", r)
	}
	r = f.do(&Rename{Parent: f.full, Name: "inside", NewParent: 1, NewName: "hard"})
	if r.Orphan != 0 || r.Replaced != f.file || f.inode(f.file).Nlink != 1 {
		t.Errorf("file over one of two names: %+v", r)
	}
	root := f.inode(RootIno).Nlink
	r = f.do(&Rename{Parent: f.b, Name: "c", NewParent: 1, NewName: "empty"})
	if r.Orphan != f.empty || r.Replaced != f.empty || f.inode(f.b).Nlink != 2 || f.inode(RootIno).Nlink != root || f.inode(f.c).Parent != RootIno {
		t.Errorf("directory over directory: %+v", r)
	}
	f.check()
}

func TestRenameExchanges(t *testing.T) {
	f := newRenameTree(t)
	r := f.do(&Rename{Parent: 1, Name: "file", NewParent: 1, NewName: "empty", Exchange: true})
	if r.Replaced != f.empty || r.Orphan != 0 || f.lookup(1, "file") != f.empty || f.lookup(1, "empty") != f.file {
		t.Errorf("file and directory in one directory: %+v", r)
	}
	if f.inode(f.file).Ctime != f.now || f.inode(f.empty).Ctime != f.now {
		t.Error("exchange leaves ctime alone")
	}
	root, full := f.inode(RootIno), f.inode(f.full)
	f.do(&Rename{Parent: 1, Name: "a", NewParent: f.full, NewName: "inside", Exchange: true})
	if f.inode(RootIno).Nlink != root.Nlink-1 || f.inode(f.full).Nlink != full.Nlink+1 || f.inode(f.a).Parent != f.full ||
		f.inode(f.full).Size != full.Size || f.inode(RootIno).Size != root.Size {
		t.Errorf("directory and file across: %+v, %+v", f.inode(RootIno), f.inode(f.full))
	}
	f.do(&Rename{Parent: f.full, Name: "inside", NewParent: 1, NewName: "file", Exchange: true})
	if f.inode(f.a).Parent != RootIno || f.inode(f.empty).Parent != f.full {
		t.Errorf("two directories across: %+v, %+v", f.inode(f.a), f.inode(f.empty))
	}
	// Neither is above the other, though one is above the other's parent.
	f.do(&Rename{Parent: f.b, Name: "c", NewParent: 1, NewName: "hard", Exchange: true})
	f.check()
}

func TestRenameUnderCreatedDirectoriesOfTheSameCommand(t *testing.T) {
	f := newRenameTree(t)
	f.do(
		&Create{Parent: f.c, Name: "d", Mode: TypeDir},
		&Rename{Parent: 1, Name: "full", NewParent: Created, NewName: "moved"},
	)
	f.refuse(ErrLoop,
		&Create{Parent: f.full, Name: "e", Mode: TypeDir},
		&Rename{Parent: 1, Name: "a", NewParent: Created, NewName: "x"},
	)
	f.check()
}
