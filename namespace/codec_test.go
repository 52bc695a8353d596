package namespace

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace/namespacepb"
	"github.com/cairnfs/cairn/p2p"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// everyOp has one op of each kind with every field set.
func everyOp() []Op {
	content := Content{Inline: []byte{0, 255}, Root: cas.Sum(cas.DagPB, nil), TreeSize: 1, Length: -2, Holes: 3, Folded: 1<<64 - 1}
	const name = "\xff\x00/"
	member := p2p.Member{ID: name, Raft: 1, Name: name, Addrs: []string{name, "b"}, Role: 2, State: 3, Capacity: 1<<64 - 1, Version: 9}
	return []Op{
		&Create{Parent: 1, Name: name, Unnamed: true, Mode: 2, Umask: 9, UID: 3, GID: 4, Rdev: 5, Target: name, Content: &content, Size: -6},
		&Link{Ino: 1<<64 - 1, Parent: 2, Name: name},
		&Unlink{Parent: 1, Name: name},
		&Rmdir{Parent: 1, Name: name},
		&Rename{Parent: 1, Name: name, NewParent: 2, NewName: name, NoReplace: true, Exchange: true},
		&SetAttr{Ino: 1, Mask: 1<<32 - 1, Mode: 2, UID: 3, GID: 4, Atime: -5, Mtime: 6, KillPriv: true},
		&Truncate{Ino: 1, Size: -1, KillPriv: true},
		&SetContent{Ino: 1, Base: 2, Content: content, Size: -1, Mtime: -3, KillPriv: true},
		&PatchContent{Ino: 1, Base: 2, Ranges: []Range{{Off: -1, Data: []byte(name)}, {Off: 4, Data: []byte{0}}}, Size: -3, Mtime: -4},
		&FoldContent{Ino: 1, Below: 2, UpTo: 1<<64 - 1, Content: content},
		&SetXattr{Ino: 1, Name: name, Value: []byte(name), Flag: 7, KillSetGID: true},
		&RemoveXattr{Ino: 1, Name: name},
		&Reap{Ino: 1},
		&Pin{CID: content.Root, Name: name},
		&Unpin{CID: content.Root},
		&Snapshot{Name: name},
		&DropSnapshot{Name: name},
		&TrimHistory{Index: 1, Time: -2},
		&FoundCluster{ID: "id", First: member},
		&AddInvite{ID: InviteID{1}, Key: [32]byte{2}, Expires: -3, Uses: 4, Role: p2p.RoleClient, Peer: name},
		&DropInvite{ID: InviteID{1}},
		&Redeem{Invite: InviteID{1}, Member: member},
		&SetMember{Member: member, Mask: 1<<32 - 1},
		&RemoveMember{ID: name, Raft: 5},
		&ForceCluster{Self: name},
		&SetCopies{Copies: 3},
		&OpenSession{Peer: name},
		&EndSession{Session: 1<<64 - 1},
		&SetVersion{Version: 7, Epoch: 8},
		&NextStep{Step: 9},
		&LockRange{Session: 1, Ino: 2, Kind: 255, Start: 3, End: 1<<64 - 1, Mode: 4},
		&TakeTurn{Session: 1, Ino: 2, Leave: 1<<64 - 1},
		&AwaitLock{Session: 1, ID: 2, Wait: &Wait{Owner: 1<<64 - 1, Wants: LockedRange{Ino: 3, Start: 4, End: 5, Write: true}, Has: []LockedRange{{Ino: 6, Start: 7, End: 8}, {Write: true}}, Ahead: true}},
	}
}

func TestCommandsSurviveEncoding(t *testing.T) {
	ops := everyOp()
	if kinds := (&namespacepb.Op{}).ProtoReflect().Descriptor().Fields().Len(); kinds != len(ops) {
		t.Fatalf("%d kinds of ops, tested %d", kinds, len(ops))
	}
	for _, op := range ops {
		v := reflect.ValueOf(op).Elem()
		for i := range v.NumField() {
			if v.Field(i).IsZero() {
				t.Errorf("%T.%s is not tested", op, v.Type().Field(i).Name)
			}
		}
		ops = append(ops, reflect.New(v.Type()).Interface().(Op)) // all fields zero
	}
	for _, cmd := range []Command{{Time: -1, Ops: ops}, {Time: 1, Ops: []Op{}}, {Ops: []Op{}, Session: 1, Seq: 2, Acked: 1<<64 - 1, Promised: 3}} {
		data, err := cmd.AppendBinary([]byte("kept"))
		if err != nil {
			t.Fatal(err)
		}
		var got Command
		if err := got.UnmarshalBinary(data[4:]); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, cmd) {
			t.Errorf("got  %+v\nwant %+v", got, cmd)
		}
	}
	if _, err := (&Command{Ops: []Op{nil}}).AppendBinary(nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("command with no op: %v", err)
	}
}

func TestUnknownFormatsAreRefused(t *testing.T) {
	field := func(b []byte, number protowire.Number) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, number, protowire.VarintType), 1)
	}
	op := func(p *namespacepb.Op) []byte {
		b, err := proto.Marshal(&namespacepb.Command{Ops: []*namespacepb.Op{p}})
		if err != nil {
			t.Fatal(err)
		}
		return append([]byte{formatVersion}, b...)
	}
	unknown := func(m proto.Message) { m.ProtoReflect().SetUnknown(field(nil, 99)) }
	content := &namespacepb.Content{}
	unknown(content)
	link := &namespacepb.Link{}
	unknown(link)
	held := &namespacepb.LockedRange{}
	unknown(held)
	span := &namespacepb.Range{}
	unknown(span)
	kind := &namespacepb.Op{Kind: &namespacepb.Op_Reap{Reap: &namespacepb.Reap{}}}
	unknown(kind)
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"nothing":              {nil, ErrCorrupt},
		"version":              {[]byte{formatVersion + 1}, ErrVersion},
		"garbage":              {[]byte{formatVersion, 0xff}, ErrCorrupt},
		"field of a command":   {field([]byte{formatVersion}, 99), ErrVersion},
		"kind of op":           {op(&namespacepb.Op{}), ErrVersion},
		"field beside an op":   {op(kind), ErrVersion},
		"field of an op":       {op(&namespacepb.Op{Kind: &namespacepb.Op_Link{Link: link}}), ErrVersion},
		"field of a content":   {op(&namespacepb.Op{Kind: &namespacepb.Op_SetContent{SetContent: &namespacepb.SetContent{Content: content}}}), ErrVersion},
		"field of a content'":  {op(&namespacepb.Op{Kind: &namespacepb.Op_Create{Create: &namespacepb.Create{Content: content}}}), ErrVersion},
		"field of a wait":      {op(&namespacepb.Op{Kind: &namespacepb.Op_AwaitLock{AwaitLock: &namespacepb.AwaitLock{Wait: &namespacepb.Wait{Has: []*namespacepb.LockedRange{held}}}}}), ErrVersion},
		"CID":                  {op(&namespacepb.Op{Kind: &namespacepb.Op_Unpin{Unpin: &namespacepb.Unpin{Cid: []byte{1}}}}), ErrCorrupt},
		"field of a range":     {op(&namespacepb.Op{Kind: &namespacepb.Op_PatchContent{PatchContent: &namespacepb.PatchContent{Ranges: []*namespacepb.Range{span}}}}), ErrVersion},
		"field of a content\"": {op(&namespacepb.Op{Kind: &namespacepb.Op_FoldContent{FoldContent: &namespacepb.FoldContent{Content: content}}}), ErrVersion},
	} {
		if err := new(Command).UnmarshalBinary(c.data); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// FuzzCommand feeds arbitrary bytes: what does not decode is refused, what does
// is encoded again as it was, applied, and leaves the namespace in order.
func FuzzCommand(f *testing.F) {
	for _, op := range everyOp() {
		data, err := (&Command{Time: 5, Ops: []Op{op}}).AppendBinary(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	sensible, err := (&Command{Time: 9e18, Ops: []Op{
		&Create{Parent: 1, Name: "a", Mode: TypeDir | 0o2755},
		&Create{Parent: 0, Name: "f", Mode: TypeRegular, Content: ptr(inline("x")), Size: 1},
		&Rename{Parent: 1, Name: "d", NewParent: 2, NewName: "d"},
		&Unlink{Parent: 1, Name: "f"}, &Reap{Ino: 3}, &TrimHistory{Index: 1 << 63, Time: 1 << 62},
	}}).AppendBinary(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(sensible)
	f.Fuzz(func(t *testing.T, data []byte) {
		var cmd, again Command
		if err := cmd.UnmarshalBinary(data); err != nil {
			return
		}
		encoded, err := cmd.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.UnmarshalBinary(encoded); err != nil || !reflect.DeepEqual(cmd, again) {
			t.Fatalf("%+v became %+v, %v", cmd, again, err)
		}
		x := newFixture(t, Options{CacheInodes: 2, CacheDentries: 2, hashMask: 3})
		x.dir(RootIno, "d")
		x.file(RootIno, "f")
		x.do(&SetXattr{Ino: 3, Name: "user.a"}, &Snapshot{Name: "s"}, &Pin{CID: tree(1).Root})
		before := dump(t, x.db)
		for i := range 2 {
			x.index++
			r, err := x.s.Apply(x.index, &cmd)
			if errors.Is(err, ErrVersion) && slices.ContainsFunc(cmd.Ops, func(op Op) bool { return since(op) > Version }) {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if r.Err != nil && i == 0 {
				after := dump(t, x.db)
				meta := string(tagKey(nil, tagMeta))
				before[meta] = after[meta]
				if d := diff(before, after); d != "" {
					t.Fatalf("refused with %v, but: %s", r.Err, d)
				}
			}
		}
		if err := x.s.Check(context.Background(), func(p Problem) { t.Errorf("after %+v: %v", cmd, p) }); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzRecords feeds arbitrary bytes to the decoders of stored records.
func FuzzRecords(f *testing.F) {
	var e encoder
	r := record{attrs: attrs{ino: 1, mode: TypeRegular, size: 3, contentLen: 3, mtimeAt: 4}, tail: tail{inline: []byte("abc")}}
	f.Add(append([]byte(nil), e.encodeInode(&r)...))
	patched := record{attrs: attrs{ino: 1, mode: TypeRegular, size: 3, version: 9, patches: Patches{First: 8, Count: 2, Cost: 300, Cut: 2, Below: 7}}}
	f.Add(append([]byte(nil), e.encodeInode(&patched)...))
	f.Add(marshalRecord(&namespacepb.Patch{Cut: 3, Ranges: encodeRanges([]Range{{5, []byte("p")}}), Time: 6}))
	f.Add(append([]byte(nil), e.encodeDentry(dentry{1, 2, 3})...))
	f.Add(append([]byte(nil), e.encodeXattr([]byte("v"), 2)...))
	f.Add(append([]byte(nil), e.encodeMeta(&meta{applied: 1, nextIno: 2})...))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := decodeInode(7, data); err == nil {
			if again, err := decodeInode(7, e.encodeInode(&r)); err != nil || again.attrs != r.attrs || again.target != r.target {
				t.Errorf("%+v became %+v, %v", r, again, err)
			}
		}
		if d, err := decodeDentry(data); err == nil {
			if again, err := decodeDentry(e.encodeDentry(d)); err != nil || again != d {
				t.Errorf("%+v became %+v, %v", d, again, err)
			}
		}
		if m, err := decodeMeta(data); err == nil {
			if again, err := decodeMeta(e.encodeMeta(&m)); err != nil || again != m {
				t.Errorf("%+v became %+v, %v", m, again, err)
			}
		}
		if value, began, err := decodeXattr(data); err == nil {
			if again, b, err := decodeXattr(e.encodeXattr(value, began)); err != nil || string(again) != string(value) || b != began {
				t.Errorf("%q became %q, %v", value, again, err)
			}
		}
		if m, ranges, err := decodePatch(data); err == nil {
			again := marshalRecord(&namespacepb.Patch{Cut: m.Cut, Ranges: encodeRanges(ranges), Time: m.Time})
			if _, same, err := decodePatch(again); err != nil || !reflect.DeepEqual(same, ranges) {
				t.Errorf("%+v became %+v, %v", ranges, same, err)
			}
		}
		for _, split := range []func([]byte){
			func(b []byte) { splitHistoryKey(b) }, func(b []byte) { splitNumberKey(b) }, func(b []byte) { splitKeptKey(b) },
			func(b []byte) { splitDentryTail(b) }, func(b []byte) { splitXattrTail(b) }, func(b []byte) { splitPatchTail(b) }, func(b []byte) { decodeIndex(b) },
		} {
			split(data)
		}
	})
}

// Bytes that an earlier version of the program has put into logs mean what they
// meant: fields that came later are absent, and absent fields change nothing.
func TestEarlierCommandsMeanTheSame(t *testing.T) {
	for _, c := range []struct {
		hex  string
		want Op
	}{
		{"01090500000000000000120f0a0d080112016618b6830220032804", &Create{Parent: 1, Name: "f", Mode: TypeRegular | 0o666, UID: 3, GID: 4}},
		{"01090500000000000000121a920217080210031a060804120261622006290700000000000000", &PatchContent{Ino: 2, Base: 3, Ranges: []Range{{4, []byte("ab")}}, Size: 6, Mtime: 7}},
		{"0109050000000000000012119a020e08021003180422060a0261622002", &FoldContent{Ino: 2, Below: 3, UpTo: 4, Content: Content{Inline: []byte("ab"), Length: 2}}},
		{"0109050000000000000012114a0f08021206757365722e611a01762001", &SetXattr{Ino: 2, Name: "user.a", Value: []byte("v"), Flag: XattrCreate}},
	} {
		data, err := hex.DecodeString(c.hex)
		if err != nil {
			t.Fatal(err)
		}
		var got Command
		want := Command{Time: 5, Ops: []Op{c.want}}
		if err := got.UnmarshalBinary(data); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("decoded %+v, %v; want %+v", got, err, want)
		}
		if again, err := want.AppendBinary(nil); err != nil || !bytes.Equal(again, data) {
			t.Errorf("encoded %x, %v; want %s", again, err, c.hex)
		}
	}
}

// Records that are stored stay readable.
func TestStoredPatchesMeanTheSame(t *testing.T) {
	var e encoder
	r := record{attrs: attrs{ino: 7, mode: TypeRegular, size: 3, version: 9, patches: Patches{First: 8, Count: 2, Cost: 300, Cut: 2, Below: 7}}}
	inode := "011080800238037809aa010b0808100218ac0220022807"
	if got := hex.EncodeToString(e.encodeInode(&r)); got != inode {
		t.Errorf("inode %s, want %s", got, inode)
	}
	data, err := hex.DecodeString(inode)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := decodeInode(7, data); err != nil || got.attrs != r.attrs {
		t.Errorf("inode %+v, %v", got.attrs, err)
	}
	patch := "01080312050805120170190600000000000000"
	if data, err = hex.DecodeString(patch); err != nil {
		t.Fatal(err)
	}
	m, ranges, err := decodePatch(data)
	if err != nil || m.Cut != 3 || m.Time != 6 || !reflect.DeepEqual(ranges, []Range{{5, []byte("p")}}) {
		t.Errorf("patch %+v, %+v, %v", m, ranges, err)
	}
}
