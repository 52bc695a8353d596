package namespace

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/cairnfs/cairn/cas"
)

// step takes the collection to the next step.
func (f *fixture) step() Collection {
	f.t.Helper()
	f.do(&NextStep{Step: f.s.Collection().Step + 1})
	return f.s.Collection()
}

// to takes the collection to the next step of the given phase.
func (f *fixture) to(p Phase) Collection {
	f.t.Helper()
	for {
		if c := f.step(); c.Phase() == p {
			return c
		}
	}
}

// tryPromised is try of a command with a promise of the given step.
func (f *fixture) tryPromised(promised uint64, ops ...Op) error {
	f.t.Helper()
	f.index++
	f.now += second
	r, err := f.s.Apply(f.index, &Command{Time: f.now, Promised: promised, Ops: ops})
	if err != nil {
		f.t.Fatal(err)
	}
	return r.Err
}

// roots returns all content that is referred to.
func (f *fixture) roots(before int64) (cids []cas.CID) {
	f.t.Helper()
	r, err := f.s.Roots()
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Close()
	if r.Collection != f.s.Collection() || r.Applied != f.s.Applied() {
		f.t.Errorf("roots as of %+v, %d; the state is at %+v, %d", r.Collection, r.Applied, f.s.Collection(), f.s.Applied())
	}
	if err := r.Each(f.t.Context(), before, func(r Root) error { cids = append(cids, r.CID); return nil }); err != nil {
		f.t.Fatal(err)
	}
	return cids
}

func (f *fixture) refersTo(c Content) bool { return slices.Contains(f.roots(0), c.Root) }

func TestStepsOfACollectionFollowEachOther(t *testing.T) {
	f := newFixture(t, Options{})
	if c := f.s.Collection(); c != (Collection{}) || c.Phase() != Idle || c.Round() != 0 {
		t.Fatalf("at first: %+v", c)
	}
	f.refuse(ErrStep, &NextStep{Step: 2})
	for i, want := range []Phase{Recording, Renewing, Sweeping, Idle, Recording} {
		c := f.step()
		if c.Phase() != want || c.Step != uint64(i+1) || c.Began != f.index || c.Round() != uint64(i+1)/4 {
			t.Errorf("step %d: %+v, %v", i+1, c, c.Phase())
		}
		if want == Idle && c.Time != f.now || want < Idle && c.Time != 0 {
			t.Errorf("%v: the last round ended at %d, now is %d", want, c.Time, f.now)
		}
		f.refuse(ErrStep, &NextStep{Step: c.Step})
		f.refuse(ErrStep, &NextStep{Step: c.Step + 2})
	}
	again, err := Open(f.db, Options{})
	if err != nil || again.Collection() != f.s.Collection() {
		t.Errorf("opened again: %+v, %v", again.Collection(), err)
	}
	f.check()
}

// Rule 16: a commit is refused if it relies on promises of before the renewal that came
// before the last sweep. Those of its outcome that are of that renewal, or later, hold.
func TestACommitIsRefusedWhenItsPromisesMayBeForgotten(t *testing.T) {
	f := newFixture(t, Options{})
	ino, small := f.file(RootIno, "file"), tree(10)
	for round := range uint64(3) {
		for phase := range uint64(4) {
			at := 4*round + phase
			oldest := uint64(0) // that is honoured
			switch {
			case phase == uint64(Sweeping):
				oldest = at - 1
			case round > 0:
				oldest = 4*(round-1) + uint64(Renewing)
			}
			for promised := range at + 1 {
				want := promised >= oldest
				for name, op := range map[string]Op{
					"content": &SetContent{Ino: ino, Base: f.inode(ino).Version, Content: tree(1000), Size: 1000},
					"pin":     &Pin{CID: tree(7).Root, Name: "p"},
					"create":  &Create{Parent: RootIno, Name: fmt.Sprint(at, promised), Mode: TypeRegular, Content: &small, Size: 10},
				} {
					err := f.tryPromised(promised, op)
					if want && err != nil || !want && !errors.Is(err, ErrPromise) {
						t.Errorf("%s at step %d with a promise of step %d: %v", name, at, promised, err)
					}
				}
				if err := f.tryPromised(promised, &SetContent{Ino: ino, Base: f.inode(ino).Version, Content: Content{Inline: []byte("x"), Length: 1}, Size: 1}); err != nil {
					t.Errorf("content without blocks: %v", err)
				}
			}
			f.step()
		}
	}
}

// Rule 16: what had a name at any time from the beginning of renew to the end of the
// round is among the roots of a mark, though it was overwritten, within the minute that
// else has one version, and though history is trimmed.
func TestWhatHadANameInTheRoundIsARoot(t *testing.T) {
	f := newFixture(t, Options{})
	set := func(ino Ino, c Content) {
		t.Helper()
		err := f.tryPromised(f.s.Collection().Step, &SetContent{Ino: ino, Base: f.inode(ino).Version, Content: c, Size: c.Length})
		if err != nil {
			t.Fatal(err)
		}
	}
	ino, gone := f.file(RootIno, "file"), f.file(RootIno, "gone")
	set(ino, tree(1))
	set(gone, tree(2))
	f.to(Recording)
	set(ino, tree(3)) // in place of 1
	f.do(&TrimHistory{Index: f.index})
	if f.refersTo(tree(1)) || !f.refersTo(tree(2)) || !f.refersTo(tree(3)) {
		t.Error("before the step of renewing what is overwritten at once is forgotten, and only that")
	}
	f.to(Renewing)
	set(ino, tree(4))
	set(ino, tree(5))
	f.to(Sweeping)
	set(ino, tree(6))
	f.do(&Unlink{Parent: RootIno, Name: "gone"})
	f.do(&Reap{Ino: gone})
	f.do(&TrimHistory{Index: f.index})
	for _, n := range []int64{2, 3, 4, 5, 6} {
		if !f.refersTo(tree(n)) {
			t.Errorf("content %d had a name in the round and is no root", n)
		}
	}
	set(ino, tree(7)) // in place of 6, both of which began while blocks are swept
	if f.refersTo(tree(6)) {
		t.Error("every version is kept while blocks are swept")
	}
	f.step()
	f.do(&TrimHistory{Index: f.index})
	if got := f.roots(0); !slices.Equal(got, []cas.CID{tree(7).Root}) {
		t.Errorf("after the round history is forgotten: %d roots", len(got))
	}
	f.check()
}

func TestRootsAreFilesHistoryAndPins(t *testing.T) {
	f := newFixture(t, Options{})
	orphan := f.file(RootIno, "orphan")
	f.do(&SetContent{Ino: orphan, Base: f.inode(orphan).Version, Content: tree(1), Size: 1})
	f.do(&Unlink{Parent: RootIno, Name: "orphan"})
	f.do(&Pin{CID: tree(2).Root, Name: "pinned"})
	ino := f.file(RootIno, "file")
	f.do(&SetContent{Ino: ino, Base: f.inode(ino).Version, Content: tree(3), Size: 3})
	f.now += 3600 * second
	f.do(&SetContent{Ino: ino, Base: f.inode(ino).Version, Content: tree(4), Size: 4})
	f.do(&Snapshot{Name: "s"})
	f.now += 3600 * second
	f.do(&SetContent{Ino: ino, Base: f.inode(ino).Version, Content: tree(5), Size: 5})
	f.now += 3600 * second
	f.file(RootIno, "later")
	has := func(before int64, want ...int64) {
		t.Helper()
		got := f.roots(before)
		if len(got) != len(want) {
			t.Errorf("%d roots, want %d", len(got), len(want))
		}
		for _, n := range want {
			if !slices.Contains(got, tree(n).Root) {
				t.Errorf("content %d is no root", n)
			}
		}
	}
	has(0, 1, 2, 3, 4, 5)
	has(f.now, 1, 2, 4, 5) // as if history were trimmed: the snapshot shows 4
	f.do(&TrimHistory{Index: f.index})
	has(0, 1, 2, 4, 5)
	f.do(&DropSnapshot{Name: "s"}, &Unpin{CID: tree(2).Root}, &Reap{Ino: orphan})
	has(0, 1, 4, 5) // history, until it is trimmed
	f.do(&TrimHistory{Index: f.index})
	has(0, 5)
}

// Rule 16: a fold takes a name from the content below without leaving it to history, so
// there is none while names must not be forgotten.
func TestPatchesAreNotFoldedWhileNamesAreRemembered(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	f.do(&SetContent{Ino: ino, Base: f.inode(ino).Version, Content: tree(10_000), Size: 10_000})
	f.do(&PatchContent{Ino: ino, Base: f.inode(ino).Version, Ranges: []Range{{Off: 1, Data: []byte("x")}}, Size: 10_000})
	fold := func() error {
		n := f.inode(ino)
		c := tree(10_000)
		c.Root = tree(5).Root
		return f.tryPromised(f.s.Collection().Step, &FoldContent{Ino: ino, Below: n.Patches.Below, UpTo: n.Version, Content: c})
	}
	f.to(Renewing)
	for _, p := range []Phase{Renewing, Sweeping} {
		if err := fold(); !errors.Is(err, ErrConflict) || !f.refersTo(tree(10_000)) {
			t.Errorf("fold at %v: %v", p, err)
		}
		f.step()
	}
	if err := fold(); err != nil || f.refersTo(tree(10_000)) || !f.refersTo(tree(5)) {
		t.Errorf("fold after the round: %v", err)
	}
	f.check()
}
