package namespace

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

// wantACL fails the test unless the inode stores that list, nil for none.
func (f *fixture) wantACL(ino Ino, name string, want acl) {
	f.t.Helper()
	value, err := f.s.Xattr(ino, name)
	if want == nil {
		if !errors.Is(err, ErrNoAttr) {
			f.t.Errorf("inode %d has %s %x, %v; want none", ino, name, value, err)
		}
		return
	}
	got, derr := decodeACL(value)
	if err != nil || derr != nil || !reflect.DeepEqual(got, want) {
		f.t.Errorf("inode %d has %s %+v, %v, %v; want %+v", ino, name, got, err, derr, want)
	}
}

func (f *fixture) wantMode(ino Ino, want uint32) {
	f.t.Helper()
	if got := f.inode(ino).Mode &^ TypeMask; got != want {
		f.t.Errorf("inode %d has mode %#o, want %#o", ino, got, want)
	}
}

func (f *fixture) setACL(ino Ino, name string, entries ...aclEntry) Inode {
	f.t.Helper()
	return f.do(&SetXattr{Ino: ino, Name: name, Value: list(entries...).encode()}).Inodes[0]
}

func TestUmaskLimitsTheModeWithoutADefaultACL(t *testing.T) {
	f := newFixture(t, Options{})
	for name, c := range map[string]struct{ mode, want uint32 }{
		"file": {TypeRegular | 0o4666, 0o4640}, "dir": {TypeDir | 0o1777, 0o1750},
		"fifo": {TypeFIFO | 0o666, 0o640}, "link": {TypeSymlink, 0o777},
	} {
		op := &Create{Parent: RootIno, Name: name, Mode: c.mode, Umask: 0o027}
		if c.mode == TypeSymlink {
			op.Target = "x"
		}
		f.wantMode(f.do(op).Inodes[0].Ino, c.want)
	}
	f.refuse(ErrInvalid, &Create{Parent: RootIno, Name: "x", Mode: TypeRegular, Umask: 0o1000})
	f.check()
}

func TestDefaultACLIsInherited(t *testing.T) {
	f := newFixture(t, Options{})
	parent := f.dir(RootIno, "parent")
	def := list(owner(7), user(20, 6), owningGroup(5), group(30, 4), mask(7), other(5))
	if n := f.setACL(parent, ACLDefault, def...); n.Mode != TypeDir|0o755 || n.Ctime != f.now {
		t.Errorf("directory with a default list: %+v", n)
	}
	f.wantACL(parent, ACLAccess, nil)
	access := func(o, m, x uint16) acl {
		return list(owner(o), user(20, 6), owningGroup(5), group(30, 4), mask(m), other(x))
	}
	for name, c := range map[string]struct {
		mode, want uint32
		access     acl
	}{
		"file":      {TypeRegular | 0o4666, 0o4664, access(6, 6, 4)}, // umask does not count
		"private":   {TypeRegular | 0o600, 0o600, access(6, 0, 0)},
		"sock":      {TypeSocket | 0o777, 0o775, access(7, 7, 5)},
		"directory": {TypeDir | 0o1777, 0o1775, access(7, 7, 5)},
	} {
		n := f.do(&Create{Parent: parent, Name: name, Mode: c.mode, Umask: 0o077}).Inodes[0]
		f.wantMode(n.Ino, c.want)
		f.wantACL(n.Ino, ACLAccess, c.access)
		if n.IsDir() {
			f.wantACL(n.Ino, ACLDefault, def)
			below := f.do(&Create{Parent: n.Ino, Name: "below", Mode: TypeRegular | 0o666, Umask: 0o777}).Inodes[0]
			f.wantMode(below.Ino, 0o664)
		} else {
			f.wantACL(n.Ino, ACLDefault, nil)
		}
	}
	link := f.create(parent, "link", TypeSymlink)
	f.wantMode(link, 0o777)
	f.wantACL(link, ACLAccess, nil)
	f.check()
	f.reopen(Options{})
	f.wantMode(f.do(&Create{Parent: parent, Name: "later", Mode: TypeRegular | 0o666, Umask: 0o777}).Inodes[0].Ino, 0o664)
	f.check()
}

func TestDefaultACLWithoutAMaskBecomesAModeOnly(t *testing.T) {
	f := newFixture(t, Options{})
	parent := f.dir(RootIno, "parent")
	def := list(owner(7), owningGroup(5), other(1))
	f.setACL(parent, ACLDefault, def...)
	file := f.do(&Create{Parent: parent, Name: "file", Mode: TypeRegular | 0o666, Umask: 0o077}).Inodes[0].Ino
	dir := f.do(&Create{Parent: parent, Name: "dir", Mode: TypeDir | 0o777, Umask: 0o077}).Inodes[0].Ino
	f.wantMode(file, 0o640)
	f.wantMode(dir, 0o751)
	for _, ino := range []Ino{file, dir} {
		f.wantACL(ino, ACLAccess, nil)
	}
	f.wantACL(dir, ACLDefault, def)
	f.wantACL(file, ACLDefault, nil)
	f.check()
}

func TestDefaultACLHoldsWithinACommand(t *testing.T) {
	f := newFixture(t, Options{})
	r := f.do(
		&Create{Parent: RootIno, Name: "dir", Mode: TypeDir | 0o777},
		&SetXattr{Ino: Created, Name: ACLDefault, Value: list(owner(6), owningGroup(2), mask(3), other(0)).encode()},
		&Create{Parent: Created, Name: "file", Mode: TypeRegular | 0o777, Umask: 0o777},
		&SetAttr{Ino: Created, Mask: AttrMode, Mode: 0o755},
	)
	f.wantACL(r.Inodes[2].Ino, ACLAccess, list(owner(7), owningGroup(2), mask(5), other(5)))
	f.check()
}

func TestAccessACLChangesTheMode(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.create(RootIno, "file", TypeRegular|0o6644)
	entries := list(owner(7), user(1, 6), owningGroup(4), mask(5), other(0))
	n := f.setACL(ino, ACLAccess, entries...)
	if n.Mode != TypeRegular|0o6750 || n.Ctime != f.now || n.Mtime == f.now {
		t.Errorf("inode with a list: %+v", n)
	}
	f.wantACL(ino, ACLAccess, entries)
	if names, _ := f.s.Xattrs(ino); !slices.Equal(names, []string{ACLAccess}) {
		t.Errorf("attributes %q", names)
	}
	f.check()
	f.do(&RemoveXattr{Ino: ino, Name: ACLAccess})
	f.wantACL(ino, ACLAccess, nil)
	f.wantMode(ino, 0o6750) // as it was seen
	f.check()
}

func TestAccessACLThatTheModeSaysIsNotStored(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	f.setACL(ino, ACLAccess, owner(7), user(1, 6), owningGroup(4), mask(5), other(0))
	f.setACL(ino, ACLAccess, owner(6), owningGroup(4), other(1))
	f.wantACL(ino, ACLAccess, nil)
	f.wantMode(ino, 0o641)
	f.do(&SetXattr{Ino: ino, Name: ACLAccess, Value: list(owner(4), owningGroup(0), other(0)).encode(), Flag: XattrCreate})
	f.wantMode(ino, 0o400)
	f.check()
}

func TestChmodChangesTheMaskOfAnACL(t *testing.T) {
	f := newFixture(t, Options{})
	for _, mode := range []uint32{TypeRegular | 0o644, TypeDir | 0o755} {
		ino := f.create(RootIno, "inode", mode)
		f.setACL(ino, ACLAccess, owner(7), user(1, 6), owningGroup(4), mask(5), other(0))
		f.do(&SetAttr{Ino: ino, Mask: AttrMode, Mode: 0o4631})
		f.wantACL(ino, ACLAccess, list(owner(6), user(1, 6), owningGroup(4), mask(3), other(1)))
		f.wantMode(ino, 0o4631)
		f.do(&SetAttr{Ino: ino, Mask: AttrUID, UID: 7})
		f.wantMode(ino, 0o4631)
		f.check()
		before := f.inode(ino).Ctime
		f.do(&SetAttr{Ino: ino, Mask: AttrMode, Mode: 0o0631})
		if f.inode(ino).Ctime == before {
			t.Error("chmod that leaves the list as it is does not show")
		}
		f.do(&Rename{Parent: RootIno, Name: "inode", NewParent: RootIno, NewName: "old"})
		if mode&TypeMask == TypeRegular {
			f.do(&Unlink{Parent: RootIno, Name: "old"})
		} else {
			f.do(&Rmdir{Parent: RootIno, Name: "old"})
		}
		f.do(&Reap{Ino: ino})
		f.check()
	}
	for key := range dump(t, f.db) {
		if key[1] == tagXattr {
			t.Fatalf("attribute %q of a reaped inode is left", key)
		}
	}
}

func TestSetgidIsLostWithAnACLIfAskedTo(t *testing.T) {
	f := newFixture(t, Options{})
	entries := list(owner(6), owningGroup(4), mask(7), other(0))
	for _, c := range []struct {
		name  string
		value []byte
		want  uint32
	}{
		{ACLAccess, entries.encode(), 0o670},
		{ACLAccess, list(owner(6), owningGroup(4), other(0)).encode(), 0o640},
		{ACLAccess, nil, 0o2755}, // removal
		{ACLDefault, entries.encode(), 0o2755},
		{"user.a", []byte("x"), 0o2755},
	} {
		ino := f.create(RootIno, "dir", TypeDir|0o2755)
		f.do(&SetXattr{Ino: ino, Name: c.name, Value: c.value, KillSetGID: true})
		f.wantMode(ino, c.want)
		f.check()
		f.do(&Rmdir{Parent: RootIno, Name: "dir"})
	}
}

func TestACLsThatCannotBe(t *testing.T) {
	f := newFixture(t, Options{})
	file, dir, link := f.file(RootIno, "file"), f.dir(RootIno, "dir"), f.create(RootIno, "link", TypeSymlink)
	fine := list(owner(6), owningGroup(4), mask(7), other(0)).encode()
	for _, c := range []struct {
		ino   Ino
		name  string
		value []byte
		flag  XattrFlag
		want  error
	}{
		{file, ACLAccess, fine[:len(fine)-1], 0, ErrInvalid},
		{file, ACLAccess, list(owner(6)).encode(), 0, ErrInvalid},
		{dir, ACLDefault, list(owner(6)).encode(), 0, ErrInvalid},
		{file, ACLAccess, bytes.Repeat(fine, maxACL/len(fine)+1), 0, ErrAttrTooLarge},
		{file, ACLDefault, fine, 0, ErrAccess},
		{link, ACLAccess, fine, 0, ErrNotSupported},
		{link, ACLDefault, fine, 0, ErrNotSupported},
		{link, ACLAccess, nil, 0, ErrNotSupported},
		{file, ACLAccess, fine, XattrReplace, ErrNoAttr},
		{999, ACLAccess, fine, 0, ErrNotFound},
	} {
		f.refuse(c.want, &SetXattr{Ino: c.ino, Name: c.name, Value: c.value, Flag: c.flag})
	}
	f.check()
}

func TestThereIsAlwaysAnACLToRemove(t *testing.T) {
	f := newFixture(t, Options{})
	file, dir := f.file(RootIno, "file"), f.dir(RootIno, "dir")
	before := f.inode(file)
	f.do(
		&RemoveXattr{Ino: file, Name: ACLAccess}, &RemoveXattr{Ino: file, Name: ACLDefault},
		&SetXattr{Ino: file, Name: ACLAccess}, &SetXattr{Ino: file, Name: ACLDefault, Value: list().encode()},
	)
	if n := f.inode(file); !sameInode(n, before) {
		t.Errorf("removing nothing made %+v of %+v", n, before)
	}
	f.setACL(dir, ACLDefault, owner(6), owningGroup(4), other(0))
	f.do(&SetXattr{Ino: dir, Name: ACLDefault, Value: list().encode()})
	f.wantACL(dir, ACLDefault, nil)
	f.setACL(dir, ACLDefault, owner(6), owningGroup(4), other(0))
	f.do(&RemoveXattr{Ino: dir, Name: ACLDefault})
	f.wantACL(dir, ACLDefault, nil)
	f.check()
}

func TestHistoryShowsACLs(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	first := list(owner(6), user(1, 6), owningGroup(4), mask(6), other(0))
	f.setACL(ino, ACLAccess, first...)
	f.do(&Snapshot{Name: "s"})
	at := f.index
	f.do(&SetAttr{Ino: ino, Mask: AttrMode, Mode: 0o600})
	view := f.s.At(at)
	n, err := view.Inode(ino)
	if err != nil || n.Mode&modePerms != 0o660 {
		t.Errorf("inode as of the snapshot: %+v, %v", n, err)
	}
	if value, err := view.Xattr(ino, ACLAccess); err != nil || !bytes.Equal(value, first.encode()) {
		t.Errorf("list as of the snapshot: %x, %v", value, err)
	}
	f.check()
}

func TestCheckFindsACLsThatDisagreeWithTheMode(t *testing.T) {
	fine := list(owner(6), user(1, 6), owningGroup(4), mask(6), other(0))
	for name, c := range map[string]struct {
		mode  uint32
		name  string
		value []byte
	}{
		"another mode":           {TypeRegular | 0o640, ACLAccess, fine.encode()},
		"the mode says it":       {TypeRegular | 0o640, ACLAccess, list(owner(6), owningGroup(4), other(0)).encode()},
		"no list":                {TypeRegular | 0o660, ACLAccess, []byte("x")},
		"no entries":             {TypeRegular | 0o660, ACLAccess, list().encode()},
		"default list of a file": {TypeRegular | 0o660, ACLDefault, fine.encode()},
		"of a symbolic link":     {TypeSymlink | 0o777, ACLAccess, fine.encode()},
	} {
		f := newFixture(t, Options{})
		ino := f.create(RootIno, "inode", c.mode)
		same := "user." + c.name[len("user."):] // of the same length
		f.do(&SetXattr{Ino: ino, Name: same, Value: c.value})
		value, _, err := get(f.db, xattrKey(nil, ino, same))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.db.Delete(xattrKey(nil, ino, same), pebble.NoSync), f.db.Set(xattrKey(nil, ino, c.name), value, pebble.NoSync)); err != nil {
			t.Fatal(err)
		}
		problems := 0
		if err := f.s.Check(context.Background(), func(p Problem) {
			if p.Ino == ino {
				problems++
			}
		}); err != nil || problems != 1 {
			t.Errorf("%s: %d problems, %v", name, problems, err)
		}
	}
}

// A directory without attributes says so in its inode, and that is all that
// create looks at.
func TestCreateReadsNoListWhereThereCanBeNone(t *testing.T) {
	f := newFixture(t, Options{})
	dir := f.dir(RootIno, "dir")
	f.do(&Create{Parent: dir, Name: "file", Mode: TypeRegular | 0o644, Umask: 0o022})
	if n := len(f.s.txn.values.all); n != 0 {
		t.Errorf("creating a file loads %d values", n)
	}
	f.setACL(dir, ACLDefault, owner(7), owningGroup(5), other(0))
	f.do(&Create{Parent: dir, Name: "more", Mode: TypeRegular | 0o644, Umask: 0o022})
	if n := len(f.s.txn.values.all); n != 1 {
		t.Errorf("creating a file in a directory with a default list loads %d values, want 1", n)
	}
}
