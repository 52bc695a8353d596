package namespace

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// patched is a file of 1000 bytes and what is laid over it.
type patched struct {
	*fixture
	ino Ino
}

func newPatched(t *testing.T) *patched {
	f := newFixture(t, Options{})
	c := tree(1000)
	n := f.do(&Create{Parent: RootIno, Name: "f", Mode: TypeRegular | 0o644, Content: &c, Size: 1000})
	return &patched{f, n.Inodes[0].Ino}
}

func (p *patched) inode() Inode {
	p.t.Helper()
	n, err := p.s.Inode(p.ino)
	if err != nil {
		p.t.Fatal(err)
	}
	return n
}

// patch lays n bytes of the given value over the file at off.
func (p *patched) patch(off int64, n int, value byte) Inode {
	p.t.Helper()
	was := p.inode()
	size := max(was.Size, off+int64(n))
	return p.do(&PatchContent{
		Ino: p.ino, Base: was.Version, Size: size, Mtime: p.now,
		Ranges: []Range{{off, bytes.Repeat([]byte{value}, n)}},
	}).Inodes[0]
}

// fold is the command that puts a tree in place of n and its patches.
func fold(n Inode) *FoldContent {
	c := tree(n.Size)
	c.Length = n.Size
	return &FoldContent{Ino: n.Ino, Below: n.Patches.Below, UpTo: n.Version, Content: c}
}

func (p *patched) shows(what string, read func(Ino) (Inode, []Range, error), want map[int64]byte) {
	p.t.Helper()
	_, ranges, err := read(p.ino)
	if got := layers(ranges); err != nil || got != describeLayers(want) {
		p.t.Errorf("%s: patches are %s, %v; want %s", what, got, err, describeLayers(want))
	}
}

// Rule 18: a small write that was synced is in the log and needs no block; folding it
// changes neither what is read nor the version, so it disturbs nobody who writes.
func TestAPatchIsThereUntilItIsFolded(t *testing.T) {
	p := newPatched(t)
	p.patch(10, 2, 1)
	before := p.patch(11, 2, 2)
	p.shows("both patches", p.s.Patches, map[int64]byte{10: 1, 11: 2, 12: 2})
	p.patch(1000, 1, 3) // comes while the others are folded
	n := p.do(fold(before)).Inodes[0]
	if n.Version == before.Version || n.Version != p.inode().Version || n.Size != 1001 || n.Patches.Count != 1 || n.Content.Length != 1000 {
		t.Errorf("after folding two of three patches: %+v", n)
	}
	p.shows("what came meanwhile", p.s.Patches, map[int64]byte{1000: 3})
	if res := p.try(&PatchContent{Ino: p.ino, Base: n.Version, Size: 1001, Ranges: []Range{{0, []byte{4}}}}); res.Err != nil {
		t.Errorf("a writer that knew nothing of the fold: %v", res.Err)
	}
	p.do(fold(p.inode()))
	p.shows("all folded", p.s.Patches, nil)
	if got := p.inode().Patches; got != (Patches{}) {
		t.Errorf("all folded: %+v", got)
	}
	checkState(t, p.s)
}

func TestAFoldOfContentThatIsAnotherByNowIsRefused(t *testing.T) {
	for name, change := range map[string]func(p *patched){
		"content set": func(p *patched) {
			p.do(&SetContent{Ino: p.ino, Base: p.inode().Version, Content: tree(7), Size: 7})
			p.patch(3, 1, 9)
		},
		"cut":           func(p *patched) { p.do(&Truncate{Ino: p.ino, Size: 5}); p.patch(900, 1, 9) },
		"cut to 0":      func(p *patched) { p.do(&Truncate{Ino: p.ino, Size: 0}); p.patch(900, 1, 9) },
		"folded before": func(p *patched) { p.do(fold(p.inode())); p.patch(900, 1, 9) },
		"partly folded": func(p *patched) { was := p.inode(); p.patch(900, 1, 9); p.do(fold(was)) },
		"cut only":      func(p *patched) { p.do(&Truncate{Ino: p.ino, Size: 5}) },
		"all folded":    func(p *patched) { p.do(fold(p.inode())) },
	} {
		p := newPatched(t)
		op := fold(p.patch(10, 2, 1))
		change(p)
		was := p.inode()
		p.refuse(ErrConflict, op)
		if !sameInode(was, p.inode()) {
			t.Errorf("%s: inode %+v", name, p.inode())
		}
	}
}

// Rule 8: patches carry the base version.
func TestAPatchOfAnotherVersionIsRefused(t *testing.T) {
	p := newPatched(t)
	was := p.inode()
	p.patch(10, 2, 1)
	p.refuse(ErrConflict, &PatchContent{Ino: p.ino, Base: was.Version, Size: 1000, Ranges: []Range{{0, []byte{4}}}})
}

func TestPatchesAreCutWithTheFile(t *testing.T) {
	p := newPatched(t)
	p.patch(10, 100, 1)
	p.do(&Truncate{Ino: p.ino, Size: 12})
	p.shows("cut", p.s.Patches, map[int64]byte{10: 1, 11: 1})
	p.do(&Truncate{Ino: p.ino, Size: 500})
	p.shows("longer again", p.s.Patches, map[int64]byte{10: 1, 11: 1})
	p.patch(13, 1, 2)
	p.shows("patched again", p.s.Patches, map[int64]byte{10: 1, 11: 1, 13: 2})
	p.do(&Truncate{Ino: p.ino, Size: 0})
	p.shows("empty", p.s.Patches, nil)
	checkState(t, p.s)
}

// Rule 9 and rule 18: history has the bytes of its time, of patches that were folded
// long ago as well, and of a file that is written all the time no more than one
// version a minute, snapshots apart.
func TestHistoryHasThePatchesOfItsTime(t *testing.T) {
	p := newPatched(t)
	p.now += 2 * int64(coalesce)
	first := p.patch(10, 1, 1).Version
	p.do(&Snapshot{Name: "s"})
	pinned := p.s.Applied()
	p.patch(10, 1, 2)
	for i := range 100 { // as many seconds
		p.patch(20, 1, byte(i))
		if i%30 == 7 {
			p.do(fold(p.inode()))
		}
	}
	last := p.s.Applied()
	p.now += 2 * int64(coalesce)
	p.do(fold(p.patch(10, 1, 9)))
	p.do(&Truncate{Ino: p.ino, Size: 0})

	p.shows("as of the snapshot", p.s.At(pinned).Patches, map[int64]byte{10: 1})
	if n, _, err := p.s.At(last).Patches(p.ino); err != nil || n.Version > last+1 {
		t.Errorf("as of the end of the hundred seconds: %+v, %v", n, err)
	}
	if n, _, err := p.s.At(first - 1).Patches(p.ino); err != nil || n.Patches.Count != 0 {
		t.Errorf("as of before the first patch: %+v, %v", n, err)
	}
	versions, patches := p.history()
	if versions > 6 || patches > 80 {
		t.Errorf("%d versions and %d patches of 102 are kept of 100 seconds with a snapshot", versions, patches)
	}
	checkState(t, p.s)
	p.do(&DropSnapshot{Name: "s"})
	for more := true; more; {
		more = p.do(&TrimHistory{Index: p.s.Applied()}).More
	}
	if versions, patches := p.history(); versions+patches != 0 {
		t.Errorf("%d versions and %d patches are left of trimmed history", versions, patches)
	}
	checkState(t, p.s)
}

// history counts the values of history that are inodes and patches.
func (p *patched) history() (inodes, patches int) {
	p.t.Helper()
	err := scan(p.s.db, tagKey(nil, tagHistory), func(key, _ []byte) (bool, error) {
		switch key[2] {
		case tagInode:
			inodes++
		case tagPatch:
			patches++
		}
		return true, nil
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return inodes, patches
}

// Rule 18: history of a database that syncs all the time is little, and nearly all
// of it is blocks.
func TestHistoryOfWhatIsPatchedAllTheTimeIsSmall(t *testing.T) {
	p := newPatched(t)
	begin, made := p.now, 0
	for i := range 3600 {
		made++
		p.patch(0, 4096, byte(i))
		if i%29 == 0 {
			n := p.inode()
			p.patch(0, 4096, byte(i)) // while the others are folded
			made++
			p.do(fold(n))
		}
	}
	versions, patches := p.history()
	minutes := int((p.now - begin) / int64(time.Minute))
	if versions > minutes+1 || versions < minutes/10 || patches > made/30 {
		t.Errorf("%d versions and %d patches of %d are kept of %d minutes", versions, patches, made, minutes)
	}
	checkState(t, p.s)
}

func TestPatchesAreLimited(t *testing.T) {
	p := newPatched(t)
	full := func(ino Ino, data []byte) error {
		n, err := p.s.Inode(ino)
		if err != nil {
			t.Fatal(err)
		}
		return p.try(&PatchContent{Ino: ino, Base: n.Version, Size: n.Size, Ranges: []Range{{0, data}}}).Err
	}
	for range MaxPatches {
		if err := full(p.ino, []byte{1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := full(p.ino, []byte{1}); !errors.Is(err, ErrPatches) {
		t.Errorf("more than %d patches: %v", MaxPatches, err)
	}
	if err := full(p.ino, make([]byte, MaxPatch)); !errors.Is(err, ErrInvalid) {
		t.Errorf("a patch beyond the end: %v", err)
	}
	c, files, cost := tree(MaxPatch), 0, 0
	for {
		ino := p.do(&Create{Parent: RootIno, Name: fmt.Sprint(files), Mode: TypeRegular, Content: &c, Size: MaxPatch}).Inodes[0].Ino
		n := 0
		for ; full(ino, make([]byte, MaxPatch)) == nil; n++ {
		}
		cost += n * MaxPatch
		if n*MaxPatch > MaxPatchCost {
			t.Fatalf("%d patches of %d bytes are taken", n, MaxPatch)
		}
		if files++; n == 0 {
			break
		}
	}
	if cost > MaxAllPatches || cost < MaxAllPatches*9/10 {
		t.Errorf("%d bytes of patches are taken of all files, of %d", cost, MaxAllPatches)
	}
	if err := full(p.ino, []byte{1}); !errors.Is(err, ErrPatches) {
		t.Errorf("a patch when there is no room: %v", err)
	}
	p.do(fold(p.inode()))
	if err := full(p.ino, []byte{1}); err != nil {
		t.Errorf("after a fold: %v", err)
	}
	checkState(t, p.s)
}

// Rule 5: patches came with version 2.
func TestPatchesAreRefusedBeforeTheirVersion(t *testing.T) {
	db := openPebble(t, vfs.NewMem())
	defer db.Close()
	older(t, db)
	s, err := Open(db, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, op := range []Op{&PatchContent{Ino: 2}, &FoldContent{Ino: 2}} {
		if err := s.Supports(&Command{Ops: []Op{op}}); !errors.Is(err, ErrNotYet) {
			t.Errorf("%T at version 1: %v", op, err)
		}
	}
	if s.MayPatch() {
		t.Error("patches may be proposed at version 1")
	}
	raise := &SetVersion{Version: 2, Epoch: s.View().Epoch}
	if r, err := s.Apply(4, &Command{Time: 3, Ops: []Op{raise}}); err != nil || r.Err != nil || !s.MayPatch() {
		t.Errorf("at version 2: %v, %v, patches %t", r.Err, err, s.MayPatch())
	}
}

// A file with many patches is forgotten in several commands, and the patches go first.
func TestCheckUnderstandsHistoryThatIsTrimmedInPart(t *testing.T) {
	p := newPatched(t)
	for range MaxTrim {
		p.patch(0, 1, 1)
	}
	p.do(&Unlink{Parent: RootIno, Name: "f"}, &Reap{Ino: p.ino})
	for more := true; more; {
		more = p.do(&TrimHistory{Index: p.s.Applied()}).More
		checkState(t, p.s)
	}
	if versions, patches := p.history(); versions+patches != 0 {
		t.Errorf("%d versions and %d patches are left of trimmed history", versions, patches)
	}
}
