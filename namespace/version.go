package namespace

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/cairnfs/cairn/namespace/namespacepb"
)

// What a command means, and what is stored, is the same on all replicas only if all
// of them run programs that know it. So the namespace has a version, which all
// replicas agree on because a command raises it, and what came with a version is
// legal from then on (rule 5):
//
//   - a command that takes a later version is refused on every replica alike;
//   - the version is raised when every member's program knows a later one. Each
//     says so when it is heard of and, from version 2 on, in its registration;
//   - a program that does not know the namespace's version does not open it, and
//     stops where the log raises it.
//
// A namespace begins at the version that its program knows. That of a node on its own
// is raised when it is opened: there is nobody to agree with.
//
// The version is the first byte of the format record, so that a program from before
// there were versions, which takes it for the version of the record, refuses too.

// Version is the version that this program knows. What each is:
//
//	1  names, members, sessions, locks
//	2  SetVersion, and versions in registrations; TakeTurn, AwaitLock; patches of content;
//	   collection of blocks; claims of a much later log time end with their session and count
//	   no further than they go
const Version = 2

// SetVersion raises the namespace's version. One that is reached already is no
// failure. Epoch is that of the View on whose members the proposer has looked, 0
// without a cluster: if it is another by now, ErrMembers.
type SetVersion struct {
	Version uint32
	Epoch   uint64
}

// since returns the version that an op came with. Everything that is newer than
// version 1 is gated here.
func since(op Op) uint32 {
	switch op := op.(type) {
	case *SetVersion:
		return op.Version
	case *NextStep:
		return 2 // and with it what Command.Promised says, which is 0 before the first
	case *TakeTurn, *AwaitLock, *PatchContent, *FoldContent:
		return 2
	case *FoundCluster:
		if op.First.Version != 0 {
			return 2
		}
	case *Redeem:
		if op.Member.Version != 0 {
			return 2
		}
	case *SetMember:
		if op.Mask&MemberVersion != 0 || op.Member.Version != 0 {
			return 2
		}
	}
	return 1
}

// Version returns the namespace's version.
func (s *State) Version() uint32 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.version
}

// Supports returns nil if the command is legal at the namespace's version, else
// ErrNotYet. A log asks before it orders a command: programs that do not know it
// would have to stop when they find it in theirs.
func (s *State) Supports(cmd *Command) error {
	version := s.Version()
	for _, op := range cmd.Ops {
		if err := notYet(op, version); err != nil {
			return err
		}
	}
	return nil
}

func notYet(op Op, version uint32) error {
	if _, raises := op.(*SetVersion); raises || since(op) <= version {
		return nil
	}
	return fmt.Errorf("%w: %T takes version %d, the namespace is at %d", ErrNotYet, op, since(op), version)
}

// gate refuses an op of a later version than the namespace's, and ends the State at
// one that this program does not know: what it means cannot be guessed.
func (t *txn) gate(op Op) error {
	if n := since(op); n > t.s.knows {
		return t.fail(fmt.Errorf("%w: the log has a command of version %d, this program knows %d: update cairn on this node", ErrVersion, n, t.s.knows))
	}
	return notYet(op, t.s.version)
}

func (t *txn) setVersion(op *SetVersion) error {
	if op.Version <= t.s.version {
		return nil
	}
	if v := t.s.View(); v != nil && v.Epoch != op.Epoch {
		return ErrMembers
	}
	format, err := t.value(tagKey(nil, tagFormat))
	if err != nil {
		return err
	}
	format.value = append([]byte{byte(op.Version)}, format.old[1:]...)
	t.cluster.version, t.cluster.changed = op.Version, true
	return nil
}

// encodeFormat returns the format record.
func encodeFormat(version uint32, f *namespacepb.Format) []byte {
	b := marshalRecord(f)
	b[0] = byte(version)
	return b
}

// decodeFormat reads the format record, of a namespace whose version is at most
// knows.
func decodeFormat(b []byte, knows uint32) (f *namespacepb.Format, version uint32, err error) {
	if len(b) == 0 {
		return nil, 0, fmt.Errorf("%w: no version byte", ErrCorrupt)
	}
	if version = uint32(b[0]); version == 0 || version > knows {
		return nil, 0, fmt.Errorf("%w: the namespace is at version %d, this program knows %d: update cairn on this node", ErrVersion, version, knows)
	}
	f = &namespacepb.Format{}
	if err := proto.Unmarshal(b[1:], f); err != nil {
		return nil, 0, fmt.Errorf("format: %w: %v", ErrCorrupt, err)
	}
	if hasUnknown(f) {
		return nil, 0, fmt.Errorf("format: %w: unknown field", ErrVersion)
	}
	return f, version, nil
}

func (op *SetVersion) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_SetVersion{SetVersion: &namespacepb.SetVersion{Version: op.Version, Epoch: op.Epoch}}
}
