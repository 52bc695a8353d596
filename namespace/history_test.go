package namespace

import (
	"errors"
	"fmt"
	"testing"
)

func (f *fixture) at(index uint64, ino Ino) Inode {
	f.t.Helper()
	n, err := f.s.At(index).Inode(ino)
	if err != nil {
		f.t.Fatalf("inode %d as of %d: %v", ino, index, err)
	}
	return n
}

func TestAnInodeLeavesAtMostOneVersionAMinute(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	first := f.index
	for uid := uint32(1); uid <= 150; uid++ {
		f.do(&SetAttr{Ino: ino, Mask: AttrUID, UID: uid}) // one a second
	}
	// Versions began at 0 s, 60 s and 120 s, and carry their last value.
	for _, c := range []struct {
		after uint64
		uid   uint32
	}{{0, 59}, {59, 59}, {60, 119}, {119, 119}, {120, 150}, {150, 150}} {
		n := f.at(first+c.after, ino)
		if n.UID != c.uid || n.Began != first+c.after/60*60 {
			t.Errorf("%d s later: %+v, want uid %d", c.after, n, c.uid)
		}
	}
	f.check()
}

// Rule 9: a value is visible from the index at which it began to that at which it ended.
func TestASnapshotPinsEveryVersionItShows(t *testing.T) {
	f := newFixture(t, Options{})
	ino := f.file(RootIno, "file")
	f.do(&SetXattr{Ino: ino, Name: "user.a", Value: []byte("old")})
	f.do(&SetAttr{Ino: ino, Mask: AttrUID, UID: 1}, &Snapshot{Name: "s"})
	snapshot := f.index
	f.do(&SetAttr{Ino: ino, Mask: AttrUID, UID: 2})
	changed := f.index
	f.do(&SetAttr{Ino: ino, Mask: AttrUID, UID: 3})
	f.do(&RemoveXattr{Ino: ino, Name: "user.a"})
	f.do(&Unlink{Parent: RootIno, Name: "file"})
	f.do(&Reap{Ino: ino})
	f.now += 3600 * second
	f.do(&TrimHistory{Index: f.index})
	f.check()
	for _, index := range []uint64{snapshot - 1, changed, f.index - 2} {
		if _, err := f.s.At(index).Inode(ino); !errors.Is(err, ErrTrimmed) {
			t.Errorf("as of %d, after the trim: %v", index, err)
		}
	}
	v := f.s.At(snapshot)
	if n, err := v.Lookup(RootIno, "file"); err != nil || n.UID != 1 || n.Nlink != 1 {
		t.Errorf("in the snapshot: %+v, %v", n, err)
	}
	if a, err := v.Xattr(ino, "user.a"); err != nil || string(a) != "old" {
		t.Errorf("attribute in the snapshot: %q, %v", a, err)
	}
	f.do(&DropSnapshot{Name: "s"})
	if _, err := v.Inode(ino); !errors.Is(err, ErrTrimmed) {
		t.Errorf("after the snapshot was dropped: %v", err)
	}
	f.check()
	f.do(&TrimHistory{Index: f.index})
	f.check()
	if n := f.count(tagHistory, tagEnded, tagKept, tagDropped); n != 0 {
		t.Errorf("%d keys of history left", n)
	}
}

// count returns how many keys have one of the tags.
func (f *fixture) count(tags ...byte) (n int) {
	f.t.Helper()
	for key := range dump(f.t, f.db) {
		for _, tag := range tags {
			if key[1] == tag {
				n++
			}
		}
	}
	return n
}

func TestDroppingOneOfTwoSnapshotsLeavesTheOther(t *testing.T) {
	for _, drop := range []string{"a", "b"} {
		f := newFixture(t, Options{})
		ino := f.file(RootIno, "file")
		f.do(&Snapshot{Name: "a"})
		a := f.index
		f.file(RootIno, "between")
		f.do(&Snapshot{Name: "b"})
		b := f.index
		f.do(&SetAttr{Ino: ino, Mask: AttrUID, UID: 9}, &Unlink{Parent: RootIno, Name: "between"})
		f.do(&TrimHistory{Index: f.index})
		f.do(&TrimHistory{Index: f.index})
		f.do(&DropSnapshot{Name: drop})
		f.do(&TrimHistory{Index: f.index})
		f.check()
		left, want := b, ErrNotFound
		if drop == "b" {
			left = a
		} else {
			want = nil
		}
		if n := f.at(left, ino); n.UID != 0 {
			t.Errorf("%s dropped: %+v", drop, n)
		}
		if _, err := f.s.At(left).Lookup(RootIno, "between"); err != want {
			t.Errorf("%s dropped: a file created between the two: %v, want %v", drop, err, want)
		}
	}
}

func TestSnapshotsHaveNames(t *testing.T) {
	f := newFixture(t, Options{})
	f.do(&Snapshot{Name: "s"}, &Snapshot{Name: "same instant"})
	f.refuse(ErrExist, &Snapshot{Name: "s"})
	f.refuse(ErrInvalid, &Snapshot{})
	f.refuse(ErrNameTooLong, &Snapshot{Name: string(make([]byte, MaxLabel+1))})
	f.refuse(ErrNotFound, &DropSnapshot{Name: "none"})
	f.do(&DropSnapshot{Name: "s"})
	if _, err := f.s.At(1).Inode(RootIno); err != nil {
		t.Errorf("one of two snapshots of an instant dropped: %v", err)
	}
	f.reopen(Options{})
	f.check()
	var got []SnapshotInfo
	if err := f.s.Snapshots(func(i SnapshotInfo) bool { got = append(got, i); return true }); err != nil || len(got) != 1 ||
		got[0] != (SnapshotInfo{Name: "same instant", Index: 1, Time: 1001 * second}) {
		t.Errorf("snapshots %+v, %v", got, err)
	}
	ops := make([]Op, 0, MaxOps)
	for i := 1; i < MaxSnapshots; i++ {
		if ops = append(ops, &Snapshot{Name: fmt.Sprint(i)}); len(ops) == MaxOps || i == MaxSnapshots-1 {
			f.do(ops...)
			ops = ops[:0]
		}
	}
	f.refuse(ErrInvalid, &Snapshot{Name: "one too many"})
}

func TestTrimmingIsBounded(t *testing.T) {
	f := newFixture(t, Options{})
	const files = 2*MaxTrim + MaxTrim/2
	for i := range files / 50 {
		ops := make([]Op, 0, 100)
		for j := range 50 {
			name := fmt.Sprintf("%d-%d", i, j)
			ops = append(ops, &Create{Parent: RootIno, Name: name, Mode: TypeFIFO})
		}
		f.do(ops...)
	}
	for i := range files / 50 {
		ops := make([]Op, 0, 100)
		for j := range 50 {
			ops = append(ops, &Unlink{Parent: RootIno, Name: fmt.Sprintf("%d-%d", i, j)})
		}
		f.do(ops...)
	}
	f.do(&Snapshot{Name: "s"})
	index := f.index
	for _, more := range []bool{true, true, false, false} {
		before := f.count(tagHistory)
		r := f.do(&TrimHistory{Index: index})
		if removed := before - f.count(tagHistory); removed > MaxTrim || r.More != more {
			t.Errorf("removed %d values, more: %t, want %t", removed, r.More, more)
		}
		f.check()
	}
	if n := f.count(tagHistory); n > 3 {
		t.Errorf("%d values left", n)
	}
	f.refuse(ErrInvalid, &TrimHistory{}, &TrimHistory{})
}

func TestTrimmingNeverReachesTheCommandItself(t *testing.T) {
	f := newFixture(t, Options{})
	f.file(RootIno, "file")
	f.do(&TrimHistory{Index: 1 << 60}, &Unlink{Parent: RootIno, Name: "file"})
	if n, err := f.s.At(f.index-1).Lookup(RootIno, "file"); err != nil || n.Ino == 0 {
		t.Errorf("before the command: %v", err)
	}
	f.do(&TrimHistory{Time: 1 << 62})
	f.check()
}

func TestTimesLeadToCommandsWithinAMinute(t *testing.T) {
	f := newFixture(t, Options{})
	start := f.now
	if got, err := f.s.IndexAt(start); err != nil || got != 0 {
		t.Errorf("before the first command: %d, %v", got, err)
	}
	times := make(map[uint64]int64)
	for range 200 {
		f.now += 6 * second
		f.do(&SetAttr{Ino: RootIno})
		times[f.index] = f.now
	}
	for at := start; at < f.now+100*second; at += 11 * second {
		index, err := f.s.IndexAt(at)
		if err != nil {
			t.Fatal(err)
		}
		if times[index] > at || index > 0 && index < f.index && at-times[index] >= 2*timeStep && at < f.now {
			t.Errorf("time %d leads to command %d at %d", at, index, times[index])
		}
	}
	// A clock that went back does not lead anywhere else.
	last, _ := f.s.IndexAt(f.now)
	f.now -= 500 * second
	f.do(&SetAttr{Ino: RootIno, Mask: AttrUID, UID: 4})
	if n := f.inode(RootIno); n.Ctime != f.now {
		t.Errorf("an inode's times are those of the command: %+v", n)
	}
	if got, _ := f.s.IndexAt(f.now + 499*second); got != last {
		t.Errorf("time leads to %d after the clock went back, %d before", got, last)
	}
	limit := start + 600*second
	f.do(&TrimHistory{Time: limit})
	trimmed, _ := f.s.IndexAt(limit)
	if _, err := f.s.At(trimmed).Inode(RootIno); err != nil {
		t.Errorf("as of the time trimmed to: %v", err)
	}
	if _, err := f.s.At(trimmed - 1).Inode(RootIno); !errors.Is(err, ErrTrimmed) {
		t.Errorf("as of the command before: %v", err)
	}
	if n := f.count(tagTime); n > 16 {
		t.Errorf("%d entries of the time index left", n)
	}
	f.check()
}

func TestTheFutureCannotBeRead(t *testing.T) {
	f := newFixture(t, Options{})
	f.file(RootIno, "file")
	if _, err := f.s.At(f.index + 1).Inode(RootIno); !errors.Is(err, ErrInvalid) {
		t.Errorf("as of the next command: %v", err)
	}
	if _, err := f.s.At(0).Inode(RootIno); err != nil {
		t.Errorf("as of the beginning: %v", err)
	}
}

func TestPins(t *testing.T) {
	f := newFixture(t, Options{})
	a, b := tree(1).Root, tree(2).Root
	f.do(&Pin{CID: a, Name: "a"}, &Pin{CID: b})
	f.do(&Pin{CID: a, Name: "again"})
	at := f.now
	f.do(&Unpin{CID: b})
	f.refuse(ErrNotFound, &Unpin{CID: b})
	f.refuse(ErrInvalid, &Pin{})
	f.refuse(ErrNameTooLong, &Pin{CID: a, Name: string(make([]byte, MaxLabel+1))})
	f.reopen(Options{})
	var got []PinInfo
	if err := f.s.Pins(func(p PinInfo) bool { got = append(got, p); return true }); err != nil || len(got) != 1 || got[0] != (PinInfo{a, "again", at}) {
		t.Errorf("pins %+v, %v", got, err)
	}
	f.check()
}
