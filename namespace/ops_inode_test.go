package namespace

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cairnfs/cairn/cas"
)

func TestSetAttrSetsWhatTheMaskSays(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	before := f.inode(ino)
	op := SetAttr{Ino: ino, Mode: 0o4711, UID: 1, GID: 2, Atime: 3, Mtime: 4}
	if n := f.do(&op).Inodes[0]; !sameInode(n, before) {
		t.Errorf("an empty mask made %+v of %+v", n, before)
	}
	want := before
	for _, c := range []struct {
		mask AttrMask
		set  func()
	}{
		{AttrMode, func() { want.Mode = TypeRegular | 0o4711 }},
		{AttrUID, func() { want.UID = 1 }},
		{AttrGID, func() { want.GID = 2 }},
		{AttrAtime, func() { want.Atime = 3 }},
		{AttrMtime, func() { want.Mtime, want.MtimeSet = 4, f.now }},
	} {
		op.Mask = c.mask
		n := f.do(&op).Inodes[0]
		c.set()
		want.Ctime = f.now
		if !sameInode(n, want) {
			t.Errorf("mask %#x: %+v, want %+v", c.mask, n, want)
		}
	}
	for _, atime := range []int64{2, 9} { // the earlier one is no news
		want.Atime = max(want.Atime, atime)
		if n := f.do(&SetAttr{Ino: ino, Mask: AttrAccessed, Atime: atime}).Inodes[0]; !sameInode(n, want) {
			t.Errorf("accessed at %d: %+v, want %+v", atime, n, want)
		}
	}
	f.do(&SetAttr{Ino: ino, Mask: AttrMode, Mode: TypeRegular | 0o600})
	f.refuse(ErrInvalid, &SetAttr{Ino: ino, Mask: AttrMode, Mode: TypeDir | 0o600})
	f.refuse(ErrInvalid, &SetAttr{Ino: ino, Mask: AttrMode, Mode: 1 << 20})
	f.refuse(ErrInvalid, &SetAttr{Ino: ino, Mask: attrAll + 1})
	f.refuse(ErrNotFound, &SetAttr{Ino: 999, Mask: AttrUID})
	f.do(&SetAttr{Ino: RootIno, Mask: AttrMode, Mode: 0o1777})
	f.check()
}

func TestKillPrivTakesAwayPrivilegesOfFiles(t *testing.T) {
	for _, c := range []struct{ before, after uint32 }{
		{0o6777, 0o0777},
		{0o2767, 0o2767}, // setgid without group execute is no privilege
		{0o4755, 0o0755},
		{0o1644, 0o1644},
	} {
		f := newFixture(t, Options{})
		ops := map[string]func(Ino) Op{
			"chown":    func(i Ino) Op { return &SetAttr{Ino: i, Mask: AttrUID, UID: 1, KillPriv: true} },
			"nothing":  func(i Ino) Op { return &SetAttr{Ino: i, KillPriv: true} },
			"truncate": func(i Ino) Op { return &Truncate{Ino: i, Size: 0, KillPriv: true} },
			"write": func(i Ino) Op {
				return &SetContent{Ino: i, Base: f.inode(i).Version, Content: inline("a"), Size: 1, KillPriv: true}
			},
		}
		for name, op := range ops {
			ino := f.create(RootIno, name, TypeRegular|c.before)
			f.do(&SetXattr{Ino: ino, Name: "security.capability", Value: []byte("caps")}, &SetXattr{Ino: ino, Name: "user.a"})
			n := f.do(op(ino)).Inodes[0]
			if n.Mode != TypeRegular|c.after || n.Ctime != f.now {
				t.Errorf("%s: mode %#o became %#o, want %#o", name, c.before, n.Mode, c.after)
			}
			if names, _ := f.s.Xattrs(ino); !slices.Equal(names, []string{"user.a"}) {
				t.Errorf("%s: attributes %q", name, names)
			}
		}
		dir := f.create(RootIno, "dir", TypeDir|c.before)
		if n := f.do(&SetAttr{Ino: dir, Mask: AttrGID, GID: 1, KillPriv: true}).Inodes[0]; n.Mode != TypeDir|c.before {
			t.Errorf("directory of mode %#o became %#o", c.before, n.Mode)
		}
		f.check()
	}
}

func TestTruncateCutsAndExtends(t *testing.T) {
	f := newFixture(t, Options{})
	content := tree(100)
	content.Folded = 9
	ino := f.do(&Create{Parent: RootIno, Name: "tree", Mode: TypeRegular, Content: &content, Size: 120}).Inodes[0].Ino
	small := f.do(&Create{Parent: RootIno, Name: "inline", Mode: TypeRegular, Content: ptr(inline("abcdef")), Size: 6}).Inodes[0].Ino
	cut := content
	for _, c := range []struct {
		size, length int64
		inline       string
	}{{110, 100, "abcdef"}, {50, 50, "abcdef"}, {70, 50, "abcdef"}, {4, 4, "abcd"}, {8, 4, "abcd"}} {
		n := f.do(&Truncate{Ino: ino, Size: c.size}).Inodes[0]
		cut.Length = c.length
		if n.Size != c.size || !sameContent(n.Content, cut) || n.Version != f.index || n.Mtime != f.now || n.Ctime != f.now {
			t.Errorf("tree cut to %d: %+v", c.size, n)
		}
		n = f.do(&Truncate{Ino: small, Size: c.size}).Inodes[0]
		if n.Size != c.size || !sameContent(n.Content, inline(c.inline)) || n.Version != f.index {
			t.Errorf("inline cut to %d: %+v", c.size, n)
		}
	}
	if f.s.Stats().LogicalBytes != 16 {
		t.Errorf("counters %+v", f.s.Stats())
	}
	version := f.inode(ino).Version
	if n := f.do(&Truncate{Ino: ino, Size: 8}).Inodes[0]; n.Version != version || n.Mtime != f.now {
		t.Errorf("cut to the same size: %+v", n)
	}
	if n := f.do(&Truncate{Ino: ino}).Inodes[0]; !sameContent(n.Content, Content{Folded: 9}) {
		t.Errorf("cut to nothing: %+v", n)
	}
	f.check()
	f.refuse(ErrInvalid, &Truncate{Ino: ino, Size: -1})
	f.refuse(ErrNotFound, &Truncate{Ino: 999})
	f.refuse(ErrIsDir, &Truncate{Ino: RootIno})
	f.refuse(ErrInvalid, &Truncate{Ino: f.create(RootIno, "fifo", TypeFIFO)})
	f.do(&Truncate{Ino: ino, Size: MaxFileSize})
	f.check()
}

func TestSetContentReplacesContentIfTheBaseIsCurrent(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	created := f.inode(ino)
	n := f.do(&SetContent{Ino: ino, Base: created.Version, Content: tree(10), Size: 12, Mtime: f.now + 5}).Inodes[0]
	if n.Size != 12 || !sameContent(n.Content, tree(10)) || n.Version != f.index || n.Mtime != f.now-second+5 || n.Ctime != n.Mtime {
		t.Errorf("content set: %+v", n)
	}
	f.refuse(ErrConflict, &SetContent{Ino: ino, Base: created.Version, Content: tree(10), Size: 10})
	f.do(&Truncate{Ino: ino, Size: 5})
	f.refuse(ErrConflict, &SetContent{Ino: ino, Base: n.Version, Content: tree(10), Size: 10})
	f.do(&SetAttr{Ino: ino, Mask: AttrUID, UID: 3})
	f.do(&SetContent{Ino: ino, Base: f.inode(ino).Version, Content: inline("abc"), Size: 3})
	if n := f.inode(ino); n.Content.Root.Defined() || string(n.Content.Inline) != "abc" || f.s.Stats().LogicalBytes != 3 {
		t.Errorf("inline content set: %+v", n)
	}
	f.refuse(ErrIsDir, &SetContent{Ino: RootIno})
	f.refuse(ErrInvalid, &SetContent{Ino: f.create(RootIno, "link", TypeSymlink), Base: 99})
	f.refuse(ErrNotFound, &SetContent{Ino: 999})
	f.refuse(ErrInvalid, &SetContent{Ino: Created})
	f.check()
}

func TestSetContentRefusesContentThatCannotBe(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	root := cas.Sum(cas.DagPB, nil)
	for _, c := range []struct {
		name    string
		content Content
		size    int64
		want    error
	}{
		{"negative size", Content{}, -1, ErrInvalid},
		{"negative length", Content{Root: root, TreeSize: 5, Length: -1}, 5, ErrInvalid},
		{"length beyond the size", Content{Root: root, TreeSize: 5, Length: 5}, 4, ErrInvalid},
		{"length beyond the tree", Content{Root: root, TreeSize: 4, Length: 5}, 5, ErrInvalid},
		{"inline content and tree", Content{Root: root, TreeSize: 4, Length: 1, Inline: []byte("a")}, 5, ErrInvalid},
		{"length of nothing", Content{Length: 1}, 5, ErrInvalid},
		{"tree size without tree", Content{TreeSize: 1}, 5, ErrInvalid},
		{"length that is not the inline content's", Content{Inline: []byte("ab"), Length: 1}, 5, ErrInvalid},
		{"too much inline content", inline(strings.Repeat("a", MaxInline+1)), MaxInline + 1, ErrInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			f.refuse(c.want, &SetContent{Ino: ino, Base: f.inode(ino).Version, Content: c.content, Size: c.size})
		})
	}
	f.do(&SetContent{Ino: ino, Base: f.inode(ino).Version, Content: inline(strings.Repeat("a", MaxInline)), Size: MaxInline})
	f.do(&SetContent{Ino: ino, Base: f.inode(ino).Version, Content: Content{Root: root}, Size: 7})
	f.check()
}

func TestInlineContentIsCopied(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	c := inline("abc")
	f.do(&SetContent{Ino: ino, Base: f.inode(ino).Version, Content: c, Size: 3})
	c.Inline[0] = 'x'
	if got := f.inode(ino).Content.Inline; string(got) != "abc" {
		t.Errorf("content changed with the caller's buffer to %q", got)
	}
}

// Rule 13: a commit carries the time of the last write and loses to a later
// utimens.
func TestContentCommitsLoseToALaterUtimens(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	commit := func(mtime int64) Inode {
		t.Helper()
		return f.do(&SetContent{Ino: ino, Base: f.inode(ino).Version, Content: inline("a"), Size: 1, Mtime: mtime}).Inodes[0]
	}
	wrote := f.now + second/2
	f.do(&SetAttr{Ino: ino, Mask: AttrMtime, Mtime: 7})
	set := f.now
	if n := commit(wrote); n.Mtime != 7 || n.Ctime != set {
		t.Errorf("write before utimens, committed after: %+v", n)
	}
	if n := commit(0); n.Mtime != 7 || n.Ctime != set {
		t.Errorf("commit without a write: %+v", n)
	}
	if n := commit(set + 1); n.Mtime != set+1 || n.Ctime != set+1 {
		t.Errorf("write after utimens: %+v", n)
	}
	future := f.now + 1000*second
	f.do(&SetAttr{Ino: ino, Mask: AttrMtime, Mtime: future})
	if n := commit(f.now + 1); n.Mtime != f.now-second+1 {
		t.Errorf("write after a utimens into the future: %+v", n)
	}
	f.do(&SetAttr{Ino: ino, Mask: AttrMtime, Mtime: 6})
	f.do(&Truncate{Ino: ino, Size: 9})
	cut := f.now
	if n := commit(cut - 1); n.Mtime != cut {
		t.Errorf("write before truncate, committed after: %+v", n)
	}
	f.reopen(Options{})
	f.do(&SetAttr{Ino: ino, Mask: AttrMtime, Mtime: 8})
	f.reopen(Options{})
	if n := commit(f.now - 1); n.Mtime != 8 {
		t.Errorf("utimens was forgotten with the cache: %+v", n)
	}
}

func TestXattrs(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	value := func(name, want string) {
		t.Helper()
		if got, err := f.s.Xattr(ino, name); err != nil || string(got) != want {
			t.Errorf("attribute %q is %q, %v; want %q", name, got, err, want)
		}
	}
	if _, err := f.s.Xattr(ino, "user.a"); err != ErrNoAttr {
		t.Errorf("attribute of an inode without: %v", err)
	}
	n := f.do(&SetXattr{Ino: ino, Name: "user.b", Value: []byte("1"), Flag: XattrCreate}).Inodes[0]
	if n.Ctime != f.now || n.Mtime == f.now {
		t.Errorf("times after setting an attribute: %+v", n)
	}
	f.do(&SetXattr{Ino: ino, Name: "user.a"})
	f.do(&SetXattr{Ino: ino, Name: "user.b", Value: []byte("22"), Flag: XattrReplace})
	value("user.a", "")
	value("user.b", "22")
	if names, err := f.s.Xattrs(ino); err != nil || !slices.Equal(names, []string{"user.a", "user.b"}) {
		t.Errorf("names %q, %v", names, err)
	}
	if _, err := f.s.Xattr(ino, "user"); err != ErrNoAttr {
		t.Errorf("attribute that is not there: %v", err)
	}
	if _, err := f.s.Xattr(999, "user.a"); err != ErrNotFound {
		t.Errorf("attribute of no inode: %v", err)
	}
	if _, err := f.s.Xattrs(999); err != ErrNotFound {
		t.Errorf("attributes of no inode: %v", err)
	}
	f.refuse(ErrExist, &SetXattr{Ino: ino, Name: "user.a", Flag: XattrCreate})
	f.refuse(ErrNoAttr, &SetXattr{Ino: ino, Name: "user.c", Flag: XattrReplace})
	f.refuse(ErrNoAttr, &SetXattr{Ino: ino, Name: "user.c", Flag: XattrCreate | XattrReplace})
	f.refuse(ErrExist, &SetXattr{Ino: ino, Name: "user.a", Flag: XattrCreate | XattrReplace})
	f.refuse(ErrInvalid, &SetXattr{Ino: ino, Name: "user.c", Flag: 4})
	f.refuse(ErrInvalid, &SetXattr{Ino: ino, Name: ""})
	f.refuse(ErrInvalid, &SetXattr{Ino: ino, Name: "a\x00"})
	f.refuse(ErrNameTooLong, &SetXattr{Ino: ino, Name: strings.Repeat("n", 256)})
	f.refuse(ErrAttrTooLarge, &SetXattr{Ino: ino, Name: "user.c", Value: make([]byte, MaxXattr+1)})
	f.refuse(ErrNotFound, &SetXattr{Ino: 999, Name: "user.a"})
	f.refuse(ErrNoAttr, &RemoveXattr{Ino: ino, Name: "user.c"})
	f.refuse(ErrInvalid, &RemoveXattr{Ino: ino, Name: ""})
	f.refuse(ErrNotFound, &RemoveXattr{Ino: 999, Name: "user.a"})
	f.check()
	f.do(&RemoveXattr{Ino: ino, Name: "user.a"}, &SetXattr{Ino: ino, Name: "user.a", Value: []byte("again"), Flag: XattrCreate})
	value("user.a", "again")
	f.do(&RemoveXattr{Ino: ino, Name: "user.a"})
	f.do(&RemoveXattr{Ino: ino, Name: "user.b"})
	if names, err := f.s.Xattrs(ino); err != nil || len(names) != 0 {
		t.Errorf("names %q, %v after all were removed", names, err)
	}
	f.check()
}

func TestXattrsOfAnInodeAreLimited(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	for i := range MaxXattrBytes/MaxXattr - 1 {
		f.do(&SetXattr{Ino: ino, Name: fmt.Sprintf("user.%02d", i), Value: bytes.Repeat([]byte("v"), MaxXattr)})
	}
	f.refuse(ErrAttrSpace, &SetXattr{Ino: ino, Name: "user.big", Value: make([]byte, MaxXattr)})
	f.do(&SetXattr{Ino: ino, Name: "user.00", Value: bytes.Repeat([]byte("w"), MaxXattr)})

	many := f.file(RootIno, "many")
	for i := range MaxXattrList / 256 {
		f.do(&SetXattr{Ino: many, Name: fmt.Sprintf("%0255d", i)})
	}
	f.refuse(ErrAttrSpace, &SetXattr{Ino: many, Name: "a"})
	f.do(&RemoveXattr{Ino: many, Name: fmt.Sprintf("%0255d", 0)})
	f.do(&SetXattr{Ino: many, Name: "a"})
	f.check()
	f.do(&Unlink{Parent: RootIno, Name: "many"}, &Unlink{Parent: RootIno, Name: "file"})
	f.do(&Reap{Ino: many}, &SetXattr{Ino: ino, Name: "user.00", Value: []byte("x")}, &Reap{Ino: ino})
	f.check()
	for key := range dump(t, f.db) {
		if key[1] == tagXattr {
			t.Fatalf("attribute %q of a reaped inode is left", key)
		}
	}
}
