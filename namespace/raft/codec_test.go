package raft

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/cairnfs/cairn/namespace"
)

func TestCommandsOfAnEntryComeBackInOrder(t *testing.T) {
	want := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte("3"), 300)}
	var data []byte
	for _, c := range want {
		data = appendCommand(data, c)
	}
	var got [][]byte
	err := eachCommand(data, func(i uint32, c []byte) error {
		if int(i) != len(got) {
			t.Errorf("command %d has number %d", len(got), i)
		}
		got = append(got, c)
		return nil
	})
	if err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestUnknownFormatsAreRefused(t *testing.T) {
	var m raftpb.Message
	if err := decode([]byte{2}, &m); !errors.Is(err, namespace.ErrVersion) {
		t.Error(err)
	}
	if _, err := decodeMessages([]byte{2}); !errors.Is(err, namespace.ErrVersion) {
		t.Error(err)
	}
	if err := eachCommand([]byte{2}, nil); !errors.Is(err, namespace.ErrVersion) {
		t.Error(err)
	}
}

func TestMessagesShareRequestsUpToALimit(t *testing.T) {
	var ms []*raftpb.Message
	for i := range uint64(10) {
		ms = append(ms, &raftpb.Message{Type: raftpb.MsgApp.Enum(), Index: proto.Uint64(i), Entries: []*raftpb.Entry{{Data: make([]byte, 1000)}}})
	}
	var got []*raftpb.Message
	for rest := ms; len(rest) > 0; {
		body, n, err := encodeMessages(nil, rest, 2500)
		if err != nil || n < 1 || n > 3 {
			t.Fatal(n, err)
		}
		some, err := decodeMessages(body)
		if err != nil {
			t.Fatal(err)
		}
		got, rest = append(got, some...), rest[n:]
	}
	if !slices.EqualFunc(got, ms, func(a, b *raftpb.Message) bool { return proto.Equal(a, b) }) {
		t.Error("messages differ")
	}
}

func FuzzEachCommand(f *testing.F) {
	f.Add([]byte{})
	f.Add(appendCommand(appendCommand(nil, []byte("one")), []byte("two")))
	f.Add([]byte{formatVersion, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		var again []byte
		err := eachCommand(data, func(_ uint32, c []byte) error {
			again = appendCommand(again, c)
			return nil
		})
		if err != nil && !errors.Is(err, namespace.ErrVersion) && !errors.Is(err, namespace.ErrCorrupt) {
			t.Error(err)
		}
		if err == nil && len(again) > len(data) {
			t.Errorf("%x became %x", data, again)
		}
	})
}

func FuzzDecodeMessages(f *testing.F) {
	body, _, err := encodeMessages(nil, []*raftpb.Message{
		{Type: raftpb.MsgApp.Enum(), Entries: []*raftpb.Entry{{Data: []byte("x")}}}, {Type: raftpb.MsgHeartbeat.Enum()}}, maxSent)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte{formatVersion, 5})
	f.Fuzz(func(t *testing.T, b []byte) {
		ms, err := decodeMessages(b)
		if err != nil {
			if !errors.Is(err, namespace.ErrVersion) && !errors.Is(err, namespace.ErrCorrupt) {
				t.Error(err)
			}
			return
		}
		body, n, err := encodeMessages(nil, ms, 1<<30)
		if err != nil || n != len(ms) {
			t.Fatal(n, err)
		}
		again, err := decodeMessages(body)
		if err != nil || !slices.EqualFunc(ms, again, func(a, b *raftpb.Message) bool { return proto.Equal(a, b) }) {
			t.Errorf("%x: %v", b, err)
		}
	})
}

// What the journal or another member says is no reason to panic.
func FuzzDecode(f *testing.F) {
	base, _ := foundation(1)
	b, err := encode(base)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	record, err := encode(&raftpb.Message{Type: raftpb.MsgStorageAppend.Enum(), Entries: entriesOf(2, 2, 4, 3)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(record)
	f.Fuzz(func(t *testing.T, b []byte) {
		var m raftpb.Message
		if err := decode(b, &m); err != nil && !errors.Is(err, namespace.ErrVersion) && !errors.Is(err, namespace.ErrCorrupt) {
			t.Error(err)
		}
		s := newStore(nil)
		if err := s.take(b, 1); err == nil {
			_ = s.take(b, 1)
		}
	})
}
