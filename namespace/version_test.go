package namespace

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/namespace/namespacepb"
)

// older is a cluster of one member that a program of version 1 founded.
func older(t *testing.T, db *pebble.DB) {
	t.Helper()
	s, err := Open(db, Options{Knows: 1})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := s.Apply(1, &Command{Time: 1, Ops: []Op{&FoundCluster{ID: testCluster, First: storageMember("a")}}}); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
}

// Rule 5: what came with a version is refused before it, on every replica alike.
func TestWhatCameWithAVersionIsRefusedBeforeIt(t *testing.T) {
	db := openPebble(t, vfs.NewMem())
	defer db.Close()
	older(t, db)
	s, err := Open(db, Options{})
	if err != nil {
		t.Fatal(err)
	}
	member := storageMember("a")
	member.Version = 2
	late := &Command{Time: 2, Ops: []Op{&SetMember{Member: member, Mask: MemberVersion}}}
	before := dump(t, db)
	for index := uint64(2); index < 4; index++ {
		if err := s.Supports(late); !errors.Is(err, ErrNotYet) {
			t.Errorf("a command of version 2 is supported at 1: %v", err)
		}
		if r, err := s.Apply(index, late); err != nil || !errors.Is(r.Err, ErrNotYet) {
			t.Errorf("%v, %v", r.Err, err)
		}
	}
	after := dump(t, db)
	delete(before, string(tagKey(nil, tagMeta)))
	delete(after, string(tagKey(nil, tagMeta)))
	if !maps.Equal(before, after) {
		t.Error("a refused command has changed something")
	}
	raise := &SetVersion{Version: 2, Epoch: s.View().Epoch + 1}
	if r, err := s.Apply(4, &Command{Time: 3, Ops: []Op{raise}}); err != nil || !errors.Is(r.Err, ErrMembers) || s.Version() != 1 {
		t.Errorf("raised although the members have changed: %v, %v, version %d", r.Err, err, s.Version())
	}
	raise.Epoch--
	if r, err := s.Apply(5, &Command{Time: 4, Ops: []Op{raise}}); err != nil || r.Err != nil || s.Version() != 2 {
		t.Fatalf("not raised: %v, %v, version %d", r.Err, err, s.Version())
	}
	if err := s.Supports(late); err != nil {
		t.Error(err)
	}
	if r, err := s.Apply(6, late); err != nil || r.Err != nil || s.View().Member("a").Version != 2 {
		t.Errorf("%v, %v: %+v", r.Err, err, s.View())
	}
	if r, err := s.Apply(7, &Command{Time: 5, Ops: []Op{&SetVersion{Version: 1}}}); err != nil || r.Err != nil || s.Version() != 2 {
		t.Errorf("a version that is reached: %v, %v, version %d", r.Err, err, s.Version())
	}
}

// Rule 5: a program that does not know what the log says stops there, and one that
// does not know the version of a namespace does not open it.
func TestAnOlderProgramDoesNotGuess(t *testing.T) {
	db := openPebble(t, vfs.NewMem())
	defer db.Close()
	older(t, db)
	s, err := Open(db, Options{Knows: 1})
	if err != nil {
		t.Fatal(err)
	}
	raise := &Command{Time: 2, Ops: []Op{&SetVersion{Version: 2, Epoch: 1}}}
	if _, err := s.Apply(2, raise); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "update cairn") {
		t.Fatalf("an older program went on: %v", err)
	}
	if _, err := s.Apply(3, &Command{Time: 3}); !errors.Is(err, ErrFailed) {
		t.Errorf("and did not stop: %v", err)
	}
	if s, err = Open(db, Options{}); err != nil || s.Applied() != 1 {
		t.Fatalf("updated, it does not go on where the other stopped: %v", err)
	}
	if r, err := s.Apply(2, raise); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	if _, err := Open(db, Options{Knows: 1}); !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "update cairn") {
		t.Errorf("an older program opens it: %v", err)
	}
	// One from before there were versions takes the byte for that of the record.
	format, _, err := get(db, tagKey(nil, tagFormat))
	if err != nil {
		t.Fatal(err)
	}
	if err := unmarshal(format, &namespacepb.Format{}); !errors.Is(err, ErrVersion) {
		t.Errorf("the first program opens it: %v", err)
	}
	// A snapshot brings the version of those who sent it.
	disk := vfs.NewMem()
	behind, err := pebble.Open("db", &pebble.Options{FS: disk, DisableWAL: true, Logger: quiet{}, FormatMajorVersion: pebble.FormatNewest})
	if err != nil {
		t.Fatal(err)
	}
	defer behind.Close()
	if s, err = Open(db, Options{}); err != nil {
		t.Fatal(err)
	}
	other, err := Open(behind, Options{Knows: 1})
	if err != nil {
		t.Fatal(err)
	}
	e, err := s.Export()
	if err != nil {
		t.Fatal(err)
	}
	in, err := other.Import(disk, "names")
	if err != nil {
		t.Fatal(err)
	}
	chunk, err := e.Next(nil)
	if err == nil {
		err = errors.Join(in.Add(chunk), e.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Install(in); !errors.Is(err, ErrVersion) {
		t.Errorf("an older program takes a later namespace: %v", err)
	}
}
