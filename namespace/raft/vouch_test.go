package raft

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/cairnfs/cairn/namespace"
)

func startsOf(marks ...uint64) *starts { // the latest last
	s := &starts{}
	for _, m := range marks {
		s.add(m)
	}
	return s
}

// Rule 4: a store that does not descend from the start that is known is another copy.
func TestAStoreIsTheOneThatWasMetOrItsDescendant(t *testing.T) {
	m := &memory{}
	m.meet(startsOf(10, 20, 30))
	for _, c := range []struct {
		name string
		is   *starts
		ok   bool
	}{
		{"the same start", startsOf(10, 20, 30), true},
		{"started once more", startsOf(10, 20, 30, 40), true},
		{"started often since", startsOf(10, 20, 30, 40, 50, 60), true},
		{"a copy from before the last start", startsOf(10, 20), false},
		{"that copy, started", startsOf(10, 20, 31), false},
		{"that copy, started often", startsOf(10, 20, 31, 41, 51, 61), false},
		{"a store that was never started", startsOf(), false},
	} {
		if r := m.descent(c.is); (r == nil) != c.ok || r != nil && r.Kind != Restored {
			t.Errorf("%s: %v", c.name, r)
		}
	}
	if r := (&memory{}).descent(startsOf(1)); r != nil {
		t.Errorf("a store of which nothing is known: %v", r)
	}
	often := startsOf(10, 20, 30)
	for i := range uint64(2 * maxMarks) {
		often.add(100 + i)
		if m.descent(often) != nil || len(often.marks) > maxMarks {
			t.Fatalf("after %d starts: %v, %d marks", often.count, m.descent(often), len(often.marks))
		}
	}
}

// Rule 4: a log that lacks what was acknowledged is an older copy; one that lacks what
// was not is not.
func TestALogHasWhatItAcknowledged(t *testing.T) {
	m := &memory{}
	m.note(3, 8, 5)  // acknowledged to the leader of term 3, of which 5 were agreed upon
	m.note(4, 6, 5)  // the leader of term 4 has other entries behind 5
	m.note(4, 7, 99) // and 7 of its own are agreed upon
	m.note(3, 50, 50)
	if want := (memory{Term: 4, Acked: 7, Sure: 7}); *m != want {
		t.Fatalf("%+v, want %+v", *m, want)
	}
	for _, c := range []struct {
		is extent
		ok bool
	}{
		{extent{Term: 4, Last: 7}, true},
		{extent{Term: 4, Last: 6}, false},
		{extent{Term: 3, Last: 9}, false},
		{extent{Term: 5, Last: 7}, true},
		{extent{Term: 5, Last: 6}, false},
		{extent{Term: 9, Last: 99}, true},
	} {
		if r := m.reach(c.is); (r == nil) != c.ok {
			t.Errorf("%+v: %v", c.is, r)
		}
	}
	// What was acknowledged in a term and never agreed upon may be lost to a later one.
	m = &memory{}
	m.note(3, 8, 5)
	if r := m.reach(extent{Term: 4, Last: 5}); r != nil {
		t.Error(r)
	}
}

func TestWhatIsKnownOfStartsSurvivesEncoding(t *testing.T) {
	v := vouch{own: *startsOf(1, 1<<64-1, 3)}
	*v.of(7) = memory{Starts: 1, Mark: 2, Term: 3, Acked: 4, Sure: 1<<64 - 1}
	*v.of(1 << 60) = memory{}
	got, err := decodeVouch(v.encode())
	if err != nil || !reflect.DeepEqual(got, v) {
		t.Errorf("%+v became %+v, %v", v, got, err)
	}
	for name, c := range map[string]struct {
		b    []byte
		want error
	}{
		"nothing":          {nil, namespace.ErrVersion},
		"a later version":  {[]byte{formatVersion + 1}, namespace.ErrVersion},
		"cut off":          {v.encode()[:20], namespace.ErrCorrupt},
		"starts, no marks": {[]byte{formatVersion, 1, 0}, namespace.ErrCorrupt},
	} {
		if _, err := decodeVouch(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestWhatIsReadLaterForgetsNothing(t *testing.T) {
	v := vouch{own: *startsOf(1, 2, 3)}
	*v.of(1) = memory{Starts: 5, Mark: 50, Term: 7, Acked: 70, Sure: 60}
	*v.of(2) = memory{Starts: 1, Mark: 10, Term: 1, Acked: 1, Sure: 1}
	older := vouch{own: *startsOf(1, 2)}
	*older.of(1) = memory{Starts: 4, Mark: 40, Term: 6, Acked: 90, Sure: 50}
	*older.of(3) = memory{Starts: 1, Mark: 11, Term: 1, Acked: 1, Sure: 1}
	v.add(&older)
	if v.own.count != 3 || *v.of(1) != (memory{Starts: 5, Mark: 50, Term: 7, Acked: 70, Sure: 60}) || v.of(2).Mark != 10 || v.of(3).Mark != 11 {
		t.Errorf("%+v, %+v", v.own, *v.of(1))
	}
	newer := vouch{own: *startsOf(1, 2, 3, 4)}
	*newer.of(1) = memory{Starts: 6, Mark: 60, Term: 8, Acked: 10, Sure: 61}
	v.add(&newer)
	if v.own.mark() != 4 || *v.of(1) != (memory{Starts: 6, Mark: 60, Term: 8, Acked: 10, Sure: 61}) {
		t.Errorf("%+v, %+v", v.own, *v.of(1))
	}
}

func FuzzVouch(f *testing.F) {
	v := vouch{own: *startsOf(1, 2)}
	*v.of(7) = memory{Starts: 1, Mark: 2, Term: 3, Acked: 4, Sure: 5}
	f.Add(v.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := decodeVouch(b)
		if err != nil {
			return
		}
		again, err := decodeVouch(v.encode())
		if err != nil || fmt.Sprint(again.own, len(again.others)) != fmt.Sprint(v.own, len(v.others)) {
			t.Fatalf("%+v, %v", again, err)
		}
	})
}
