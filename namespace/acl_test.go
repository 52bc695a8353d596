package namespace

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"reflect"
	"testing"
)

// list makes an ACL without a check.
func list(entries ...aclEntry) acl { return entries }

func owner(perm uint16) aclEntry        { return aclEntry{aclOwner, perm, aclNoID} }
func user(id uint32, p uint16) aclEntry { return aclEntry{aclUser, p, id} }
func owningGroup(perm uint16) aclEntry  { return aclEntry{aclOwningGroup, perm, aclNoID} }
func group(id uint32, p uint16) aclEntry {
	return aclEntry{aclGroup, p, id}
}
func mask(perm uint16) aclEntry  { return aclEntry{aclMask, perm, aclNoID} }
func other(perm uint16) aclEntry { return aclEntry{aclOther, perm, aclNoID} }

func TestACLFormatIsThatOfLinux(t *testing.T) {
	// As getfattr prints it of ext4, for u::rw- u:20:rwx g::r-- g:30:r-x m::rwx o::r--.
	const stored = "02000000" + "01000600ffffffff" + "0200070014000000" + "04000400ffffffff" +
		"080005001e000000" + "10000700ffffffff" + "20000400ffffffff"
	want := list(owner(6), user(20, 7), owningGroup(4), group(30, 5), mask(7), other(4))
	b, err := hex.DecodeString(stored)
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeACL(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("decoded %+v, %v; want %+v", got, err, want)
	}
	if got := hex.EncodeToString(want.encode()); got != stored {
		t.Fatalf("encoded %s, want %s", got, stored)
	}
	for i := range len(b) {
		_, err := decodeACL(b[:i])
		if empty := i == 0 || i == aclHeaderSize; empty != (err == nil) || !empty && !errors.Is(err, ErrInvalid) {
			t.Errorf("the first %d bytes: %v", i, err)
		}
	}
	b[0]++
	if _, err := decodeACL(b); !errors.Is(err, ErrNotSupported) {
		t.Errorf("another version: %v", err)
	}
}

func TestIDsOfEntriesThatNameNobodyDoNotCount(t *testing.T) {
	got, err := decodeACL(list(aclEntry{aclOwner, 6, 5}, aclEntry{aclOwningGroup, 4, 0}, aclEntry{aclOther, 0, 7}).encode())
	if want := list(owner(6), owningGroup(4), other(0)); err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("decoded %+v, %v; want %+v", got, err, want)
	}
}

func TestWhatIsAnACL(t *testing.T) {
	for name, c := range map[string]struct {
		acl
		valid bool
	}{
		"the three of a mode":         {list(owner(7), owningGroup(5), other(0)), true},
		"with a mask":                 {list(owner(7), owningGroup(5), mask(1), other(0)), true},
		"users and groups and a mask": {list(owner(7), user(1, 6), user(2, 0), owningGroup(5), group(1, 1), mask(1), other(0)), true},
		"root by name":                {list(owner(7), user(0, 6), owningGroup(5), mask(1), other(0)), true},
		"a user twice":                {list(owner(7), user(1, 6), user(1, 0), owningGroup(5), mask(1), other(0)), true},
		"users in any order":          {list(owner(7), user(2, 6), user(1, 0), owningGroup(5), mask(1), other(0)), true},

		"no owner":                   {list(owningGroup(5), other(0)), false},
		"no group":                   {list(owner(5), other(0)), false},
		"no others":                  {list(owner(5), owningGroup(0)), false},
		"owner twice":                {list(owner(7), owner(7), owningGroup(5), other(0)), false},
		"group twice":                {list(owner(7), owningGroup(5), owningGroup(5), other(0)), false},
		"mask twice":                 {list(owner(7), owningGroup(5), mask(1), mask(1), other(0)), false},
		"others twice":               {list(owner(7), owningGroup(5), other(0), other(0)), false},
		"a user without a mask":      {list(owner(7), user(1, 6), owningGroup(5), other(0)), false},
		"a group without a mask":     {list(owner(7), owningGroup(5), group(1, 6), other(0)), false},
		"group before owner":         {list(owningGroup(5), owner(7), other(0)), false},
		"user after the group":       {list(owner(7), owningGroup(5), user(1, 6), mask(1), other(0)), false},
		"named group before the own": {list(owner(7), group(1, 6), owningGroup(5), mask(1), other(0)), false},
		"mask after others":          {list(owner(7), owningGroup(5), other(0), mask(1)), false},
		"more than rwx":              {list(owner(8), owningGroup(5), other(0)), false},
		"a user without an id":       {list(owner(7), user(aclNoID, 6), owningGroup(5), mask(1), other(0)), false},
		"a group without an id":      {list(owner(7), owningGroup(5), group(aclNoID, 6), mask(1), other(0)), false},
		"no tag":                     {list(aclEntry{}, owner(7), owningGroup(5), other(0)), false},
		"unknown tag":                {list(owner(7), owningGroup(5), other(0), aclEntry{aclEnd, 1, aclNoID}), false},
		"two tags in one":            {list(owner(7), aclEntry{aclUser | aclOwningGroup, 1, 1}, owningGroup(5), mask(7), other(0)), false},
	} {
		got, err := decodeACL(c.encode())
		if c.valid && (err != nil || !reflect.DeepEqual(got, c.acl)) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if !c.valid && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want %v", name, err, ErrInvalid)
		}
	}
}

func TestACLFitsIntoAPage(t *testing.T) {
	long := list(owner(7))
	for i := range uint32(507) {
		long = append(long, user(i, 4))
	}
	end := list(owningGroup(0), mask(7), other(0))
	if _, err := decodeACL(append(long, end...).encode()); err != nil {
		t.Errorf("%d entries: %v", len(long)+3, err)
	}
	long = append(long, user(999, 4))
	if _, err := decodeACL(append(long, end...).encode()); !errors.Is(err, ErrAttrTooLarge) {
		t.Errorf("%d entries: %v, want %v", len(long)+3, err, ErrAttrTooLarge)
	}
}

func TestModeShowsOwnerMaskAndOthers(t *testing.T) {
	for _, c := range []struct {
		acl
		want  uint32
		exact bool
	}{
		{list(owner(6), owningGroup(4), other(0)), 0o640, true},
		{list(owner(6), owningGroup(7), mask(1), other(2)), 0o612, false},
		{list(owner(0), user(1, 7), owningGroup(0), mask(7), other(0)), 0o070, false},
	} {
		if perms, exact := c.perms(); perms != c.want || exact != c.exact {
			t.Errorf("%+v: %#o, %t", c.acl, perms, exact)
		}
	}
}

func randomACL(r *rand.Rand) acl {
	perm := func() uint16 { return uint16(r.UintN(8)) }
	a := list(owner(perm()))
	users, groups := r.IntN(3), r.IntN(3)
	for range users {
		a = append(a, user(r.Uint32N(5), perm()))
	}
	a = append(a, owningGroup(perm()))
	for range groups {
		a = append(a, group(r.Uint32N(5), perm()))
	}
	if users+groups > 0 || r.IntN(2) == 0 {
		a = append(a, mask(perm()))
	}
	return append(a, other(perm()))
}

func TestChmodOfAnACLChangesWhatTheModeShowsAndNothingElse(t *testing.T) {
	r := newRand(t)
	for range 1000 {
		a := randomACL(r)
		perms := r.Uint32N(0o1000)
		was, exact := a.perms()
		want := bytes.Clone(a.encode())
		a.setPerms(perms)
		if got, e := a.perms(); got != perms || e != exact {
			t.Fatalf("chmod %#o made %+v", perms, a)
		}
		a.setPerms(was)
		if !bytes.Equal(a.encode(), want) {
			t.Fatalf("chmod %#o and back made %+v", perms, a)
		}
	}
}

// FuzzACL feeds arbitrary bytes: what is taken for a list is encoded as it was,
// but for ids that do not count, and has a mode.
func FuzzACL(f *testing.F) {
	f.Add([]byte{})
	f.Add(list().encode())
	f.Add(list(owner(6), owningGroup(4), other(0)).encode())
	f.Add(list(owner(6), user(1, 2), user(1, 3), owningGroup(4), group(7, 1), mask(5), other(0)).encode())
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := decodeACL(data)
		if err != nil || a == nil {
			return
		}
		again, err := decodeACL(a.encode())
		if err != nil || !reflect.DeepEqual(again, a) || len(a.encode()) != len(data) {
			t.Fatalf("%+v became %+v, %v", a, again, err)
		}
		perms, exact := a.perms()
		if perms > 0o777 || exact != (len(a) == 3) {
			t.Fatalf("%+v has permissions %#o, exact: %t", a, perms, exact)
		}
	})
}
