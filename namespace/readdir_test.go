package namespace

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

// fill creates n files in a directory and returns their names.
func (f *fixture) fill(dir Ino, n int) map[string]Ino {
	f.t.Helper()
	names := make(map[string]Ino)
	for i := range n {
		name := fmt.Sprintf("name-%d", i)
		names[name] = f.file(dir, name)
	}
	return names
}

type readDir func(parent Ino, after uint64, fn func(Dentry) bool) error

// readPages lists a directory as a kernel does: in pages of so many entries,
// each going on from the last cookie of the one before. It begins a page anew
// when a group of equal cookies would not fit in its rest.
func readPages(t *testing.T, read readDir, dir Ino, page int, between func()) []Dentry {
	t.Helper()
	var all []Dentry
	after := uint64(0)
	for {
		n := 0
		last := uint64(0)
		if err := read(dir, after, func(d Dentry) bool {
			if d.Cookie <= after || d.Cookie < last || d.Cookie == last && d.More >= all[len(all)-1].More {
				t.Fatalf("entry %+v after cookie %#x, which comes after %#x", d, last, after)
			}
			if n > 0 && d.Cookie != last && n+1+d.More > page {
				return false
			}
			last = d.Cookie
			n++
			all = append(all, d)
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return all
		}
		if all[len(all)-1].More > 0 {
			t.Fatalf("page ends within a group: %+v", all[len(all)-1])
		}
		after = last
		if between != nil {
			between()
		}
	}
}

func TestReadDirDeliversEveryEntryOnceWhateverThePages(t *testing.T) {
	for _, mask := range []uint64{0, 31, 3} { // all apart, some together, all together
		for _, cache := range []int{4, 1000} {
			for _, page := range []int{1, 2, 7, 1000} {
				f := newFixture(t, Options{hashMask: mask, CacheDentries: cache})
				dir := f.dir(RootIno, "dir")
				f.dir(RootIno, "next")
				names := f.fill(dir, 40)
				for _, read := range []readDir{f.s.ReadDir, f.s.At(f.index).ReadDir} {
					got := make(map[string]Ino)
					for _, d := range readPages(t, read, dir, page, nil) {
						if _, twice := got[d.Name]; twice {
							t.Fatalf("mask %d, page %d: %q twice", mask, page, d.Name)
						}
						if d.Type != TypeRegular {
							t.Errorf("%+v", d)
						}
						got[d.Name] = d.Ino
					}
					if !maps.Equal(got, names) {
						t.Fatalf("mask %d, page %d: listed %v, want %v", mask, page, got, names)
					}
				}
				f.check()
			}
		}
	}
}

func TestCookiesStayRightWhileEntriesComeAndGo(t *testing.T) {
	for _, mask := range []uint64{0, 15} {
		f := newFixture(t, Options{hashMask: mask})
		dir := f.dir(RootIno, "dir")
		names := f.fill(dir, 60)
		staying := slices.Sorted(maps.Keys(names))[20:]
		round := 0
		listed := make(map[string]int)
		for _, d := range readPages(t, f.s.ReadDir, dir, 5, func() {
			if round < 20 {
				f.do(&Unlink{Parent: dir, Name: slices.Sorted(maps.Keys(names))[round]})
			}
			f.file(dir, fmt.Sprintf("new-%d", round))
			if round == 3 {
				f.reopen(Options{hashMask: mask})
			}
			round++
		}) {
			listed[d.Name]++
		}
		for _, name := range staying {
			if listed[name] != 1 {
				t.Errorf("mask %d: %q was listed %d times", mask, name, listed[name])
			}
		}
	}
}

func TestReadDirRefusesWhatIsNoDirectory(t *testing.T) {
	f := newFixture(t, Options{})
	file := f.file(RootIno, "file")
	for ino, want := range map[Ino]error{file: ErrNotDir, 999: ErrNotFound} {
		for _, read := range []readDir{f.s.ReadDir, f.s.At(f.index).ReadDir} {
			if err := read(ino, 0, nil); err != want {
				t.Errorf("inode %d: %v, want %v", ino, err, want)
			}
		}
		if _, err := f.s.Lookup(ino, "x"); err != want {
			t.Errorf("lookup in inode %d: %v, want %v", ino, err, want)
		}
	}
	for name, want := range badNames {
		if _, err := f.s.Lookup(RootIno, name); err == nil || (want == ErrNameTooLong) != (err == want) {
			t.Errorf("lookup of %q: %v, want %v", name, err, want)
		}
	}
	for _, after := range []uint64{maxCookie, 1 << 63, 1<<64 - 1} {
		if err := f.s.ReadDir(RootIno, after, func(Dentry) bool { t.Error("entry after the end"); return true }); err != nil {
			t.Error(err)
		}
	}
}

// cacheMisses counts the reads of the database that a function causes.
func (f *fixture) cacheMisses(fn func()) int64 {
	reads := func() int64 {
		m := f.db.Metrics()
		return m.BlockCache.Hits + m.BlockCache.Misses
	}
	before := reads()
	fn()
	return reads() - before
}

// The cache is there so that a directory being worked in costs no reads.
func TestWorkInAKnownDirectoryReadsNothing(t *testing.T) {
	f := newFixture(t, Options{})
	dir := f.dir(RootIno, "dir")
	f.fill(dir, 100)
	if err := f.db.Flush(); err != nil {
		t.Fatal(err)
	}
	work := func(dir Ino, prefix string) func() {
		return func() {
			ino := f.file(dir, prefix+"new")
			f.do(&SetContent{Ino: ino, Base: f.inode(ino).Version, Content: inline("abc"), Size: 3})
			f.do(&Rename{Parent: dir, Name: prefix + "new", NewParent: dir, NewName: prefix + "renamed"})
			f.do(&SetAttr{Ino: dir, Mask: AttrMode, Mode: 0o700})
			if f.lookup(dir, prefix+"nothing") != 0 || f.lookup(dir, prefix+"renamed") != ino {
				t.Error("lookup is wrong")
			}
			if _, err := f.s.Xattr(ino, "security.capability"); err != ErrNoAttr {
				t.Error(err)
			}
		}
	}
	if n := f.cacheMisses(work(RootIno, "a")); n != 0 {
		t.Errorf("%d reads in the root of a new namespace", n)
	}
	if n := f.cacheMisses(work(dir, "a")); n != 0 {
		t.Errorf("%d reads in a new directory", n)
	}
	f.reopen(Options{})
	if n := f.cacheMisses(func() { f.lookup(dir, "nothing") }); n == 0 {
		t.Error("no reads with an empty cache: the test cannot see them")
	}
	readPages(t, f.s.ReadDir, dir, 7, nil)
	if n := f.cacheMisses(work(dir, "b")); n != 0 {
		t.Errorf("%d reads in a directory that was listed", n)
	}
}

func TestAPartialListingHidesNothing(t *testing.T) {
	for _, mask := range []uint64{0, 31} {
		f := newFixture(t, Options{hashMask: mask})
		names := f.fill(RootIno, 40)
		for n := range 40 {
			f.reopen(Options{hashMask: mask})
			if err := f.s.ReadDir(RootIno, 0, func(Dentry) bool { n--; return n >= 0 }); err != nil {
				t.Fatal(err)
			}
			checkCache(t, f.s)
			for name, ino := range names {
				if f.lookup(RootIno, name) != ino {
					t.Fatalf("%q is not found", name)
				}
			}
		}
	}
}
