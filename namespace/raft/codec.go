package raft

import (
	"encoding/binary"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/cairnfs/cairn/namespace"
)

// Everything stored or sent begins with a byte that is its version.
const formatVersion = 1

// Limits of an entry of the log.
const (
	maxEntry    = 1 << 20 // bytes, unless a single command is larger
	maxCommands = 1024    // of an entry
	// MaxCommand is the largest encoded command, in bytes: an entry with it must
	// fit a record of the journal.
	MaxCommand = 3 << 20
)

// appendCommand appends an encoded command to the data of an entry.
func appendCommand(data, command []byte) []byte {
	if len(data) == 0 {
		data = append(data, formatVersion)
	}
	return append(binary.AppendUvarint(data, uint64(len(command))), command...)
}

// eachCommand calls fn with the encoded commands of an entry.
func eachCommand(data []byte, fn func(i uint32, command []byte) error) error {
	if len(data) == 0 {
		return nil // of a new leader
	}
	if data[0] != formatVersion {
		return fmt.Errorf("entry: %w: %d", namespace.ErrVersion, data[0])
	}
	data = data[1:]
	for i := uint32(0); len(data) > 0; i++ {
		n, used := binary.Uvarint(data)
		if used <= 0 || n > uint64(len(data)-used) {
			return fmt.Errorf("entry: %w", namespace.ErrCorrupt)
		}
		if err := fn(i, data[used:used+int(n)]); err != nil {
			return err
		}
		data = data[used+int(n):]
	}
	return nil
}

// encode returns the bytes of a message or of a record of the journal.
func encode(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{}.MarshalAppend([]byte{formatVersion}, m)
}

func decode(b []byte, m proto.Message) error {
	if len(b) == 0 || b[0] != formatVersion {
		return fmt.Errorf("log: %w", namespace.ErrVersion)
	}
	if err := proto.Unmarshal(b[1:], m); err != nil {
		return fmt.Errorf("log: %w: %v", namespace.ErrCorrupt, err)
	}
	return nil
}

// encodeMessages appends messages for one peer, each with its length, until there
// are none left or the bytes exceed max. It returns how many it took.
func encodeMessages(b []byte, ms []*raftpb.Message, max int) ([]byte, int, error) {
	b = append(b, formatVersion)
	for i, m := range ms {
		if i > 0 && len(b) >= max {
			return b, i, nil
		}
		b = binary.AppendUvarint(b, uint64(proto.Size(m)))
		var err error
		if b, err = (proto.MarshalOptions{}).MarshalAppend(b, m); err != nil {
			return b, i, err
		}
	}
	return b, len(ms), nil
}

// decodeMessages reads what encodeMessages wrote.
func decodeMessages(b []byte) ([]*raftpb.Message, error) {
	if len(b) == 0 || b[0] != formatVersion {
		return nil, fmt.Errorf("messages: %w", namespace.ErrVersion)
	}
	var ms []*raftpb.Message
	for b = b[1:]; len(b) > 0; {
		n, used := binary.Uvarint(b)
		if used <= 0 || n > uint64(len(b)-used) {
			return nil, fmt.Errorf("messages: %w", namespace.ErrCorrupt)
		}
		m := &raftpb.Message{}
		if err := proto.Unmarshal(b[used:used+int(n)], m); err != nil {
			return nil, fmt.Errorf("messages: %w: %v", namespace.ErrCorrupt, err)
		}
		ms = append(ms, m)
		b = b[used+int(n):]
	}
	return ms, nil
}
