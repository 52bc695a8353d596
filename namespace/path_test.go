package namespace

import "testing"

func TestPathsAreFoundFromWhatIsCached(t *testing.T) {
	f := newFixture(t, Options{})
	a := f.dir(RootIno, "a")
	b := f.dir(a, "b")
	file := f.file(b, "file")
	gone := f.file(b, "gone")
	f.do(&Unlink{Parent: b, Name: "gone"})
	for ino, want := range map[Ino]string{RootIno: "/", a: "/a", b: "/a/b", file: "/a/b/file", gone: "", 999: ""} {
		if got, ok := f.s.Path(ino); got != want || ok != (want != "") {
			t.Errorf("inode %d is %q, %v, want %q", ino, got, ok, want)
		}
	}
	f.do(&Rename{Parent: a, Name: "b", NewParent: RootIno, NewName: "c"})
	if got, _ := f.s.Path(file); got != "/c/file" {
		t.Errorf("after a rename it is %q", got)
	}
	small := newFixture(t, Options{CacheDentries: 1})
	first := small.file(RootIno, "first")
	small.file(RootIno, "second")
	if got, ok := small.s.Path(first); ok {
		t.Errorf("what is not cached is %q", got)
	}
}
