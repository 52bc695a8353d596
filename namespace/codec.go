package namespace

import (
	"fmt"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace/namespacepb"
	"google.golang.org/protobuf/proto"
)

// A command's bytes are one version byte and a protobuf message (see
// namespace.proto). Decoding refuses every field it does not know: a node that
// passed over a part of a command would no longer agree with the others.

// AppendBinary appends the command's bytes to b. The only error is ErrInvalid,
// for an op that is nil.
func (c *Command) AppendBinary(b []byte) ([]byte, error) {
	m := namespacepb.Command{
		Time: c.Time, Ops: make([]*namespacepb.Op, len(c.Ops)),
		Session: uint64(c.Session), Seq: c.Seq, Acked: c.Acked, Promised: c.Promised,
	}
	ops := make([]namespacepb.Op, len(c.Ops))
	for i, op := range c.Ops {
		if op == nil {
			return b, fmt.Errorf("%w: no op", ErrInvalid)
		}
		op.encode(&ops[i])
		m.Ops[i] = &ops[i]
	}
	return proto.MarshalOptions{}.MarshalAppend(append(b, formatVersion), &m)
}

// UnmarshalBinary reads what AppendBinary wrote; the command keeps no reference
// to data. Errors: ErrVersion, ErrCorrupt.
func (c *Command) UnmarshalBinary(data []byte) error {
	var m namespacepb.Command
	if err := unmarshal(data, &m); err != nil {
		return fmt.Errorf("command: %w", err)
	}
	*c = Command{
		Time: m.Time, Ops: make([]Op, len(m.Ops)),
		Session: SessionID(m.Session), Seq: m.Seq, Acked: m.Acked, Promised: m.Promised,
	}
	for i, p := range m.Ops {
		op, err := decodeOp(p)
		if err != nil {
			return fmt.Errorf("command, op %d: %w", i, err)
		}
		c.Ops[i] = op
	}
	return nil
}

// decodeOp turns a message into the op it stands for.
func decodeOp(p *namespacepb.Op) (Op, error) {
	var body proto.Message
	var op Op
	var err error
	switch k := p.Kind.(type) {
	case *namespacepb.Op_Create:
		body = k.Create
		op, err = decodeCreate(k.Create)
	case *namespacepb.Op_Link:
		body = k.Link
		op = &Link{Ino: Ino(k.Link.GetIno()), Parent: Ino(k.Link.GetParent()), Name: string(k.Link.GetName())}
	case *namespacepb.Op_Unlink:
		body = k.Unlink
		op = &Unlink{Parent: Ino(k.Unlink.GetParent()), Name: string(k.Unlink.GetName())}
	case *namespacepb.Op_Rmdir:
		body = k.Rmdir
		op = &Rmdir{Parent: Ino(k.Rmdir.GetParent()), Name: string(k.Rmdir.GetName())}
	case *namespacepb.Op_Rename:
		body = k.Rename
		op = decodeRename(k.Rename)
	case *namespacepb.Op_SetAttr:
		body = k.SetAttr
		op = decodeSetAttr(k.SetAttr)
	case *namespacepb.Op_Truncate:
		body = k.Truncate
		op = &Truncate{Ino: Ino(k.Truncate.GetIno()), Size: int64(k.Truncate.GetSize()), KillPriv: k.Truncate.GetKillPriv()}
	case *namespacepb.Op_SetContent:
		body = k.SetContent
		op, err = decodeSetContent(k.SetContent)
	case *namespacepb.Op_PatchContent:
		body = k.PatchContent
		op, err = decodePatchContent(k.PatchContent)
	case *namespacepb.Op_FoldContent:
		body = k.FoldContent
		op, err = decodeFoldContent(k.FoldContent)
	case *namespacepb.Op_SetXattr:
		body = k.SetXattr
		op = &SetXattr{Ino: Ino(k.SetXattr.GetIno()), Name: string(k.SetXattr.GetName()),
			Value: k.SetXattr.GetValue(), Flag: XattrFlag(k.SetXattr.GetFlag()), KillSetGID: k.SetXattr.GetKillSetgid()}
	case *namespacepb.Op_RemoveXattr:
		body = k.RemoveXattr
		op = &RemoveXattr{Ino: Ino(k.RemoveXattr.GetIno()), Name: string(k.RemoveXattr.GetName())}
	case *namespacepb.Op_Reap:
		body = k.Reap
		op = &Reap{Ino: Ino(k.Reap.GetIno())}
	case *namespacepb.Op_Pin:
		body = k.Pin
		var cid cas.CID
		cid, err = decodeCID(k.Pin.GetCid())
		op = &Pin{CID: cid, Name: string(k.Pin.GetName())}
	case *namespacepb.Op_Unpin:
		body = k.Unpin
		var cid cas.CID
		cid, err = decodeCID(k.Unpin.GetCid())
		op = &Unpin{CID: cid}
	case *namespacepb.Op_Snapshot:
		body = k.Snapshot
		op = &Snapshot{Name: string(k.Snapshot.GetName())}
	case *namespacepb.Op_DropSnapshot:
		body = k.DropSnapshot
		op = &DropSnapshot{Name: string(k.DropSnapshot.GetName())}
	case *namespacepb.Op_TrimHistory:
		body = k.TrimHistory
		op = &TrimHistory{Index: k.TrimHistory.GetIndex(), Time: k.TrimHistory.GetTime()}
	case *namespacepb.Op_NextStep:
		body = k.NextStep
		op = &NextStep{Step: k.NextStep.GetStep()}
	default:
		body, op, err = decodeClusterOp(p)
		if op == nil && err == nil {
			return nil, fmt.Errorf("%w: unknown op", ErrVersion)
		}
	}
	if err == nil && (hasUnknown(p) || hasUnknown(body)) {
		err = fmt.Errorf("%w: unknown field of %T", ErrVersion, op)
	}
	return op, err
}

func hasUnknown(m proto.Message) bool { return len(m.ProtoReflect().GetUnknown()) > 0 }

// decodeCID reads a CID, the zero CID from no bytes.
func decodeCID(b []byte) (cas.CID, error) {
	if len(b) == 0 {
		return cas.CID{}, nil
	}
	c, err := cas.CIDFromBytes(b)
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return c, err
}

func encodeContent(c *Content) *namespacepb.Content {
	m := &namespacepb.Content{Inline: c.Inline, TreeSize: uint64(c.TreeSize), Length: uint64(c.Length), Holes: uint64(c.Holes), Folded: c.Folded}
	if c.Root.Defined() {
		m.Root = c.Root.Bytes()
	}
	return m
}

func decodeContent(m *namespacepb.Content) (c Content, err error) {
	if hasUnknown(m) {
		return c, fmt.Errorf("%w: unknown field of content", ErrVersion)
	}
	c.Root, err = decodeCID(m.Root)
	c.Inline, c.TreeSize, c.Length, c.Folded = m.Inline, int64(m.TreeSize), int64(m.Length), m.Folded
	c.Holes = int64(m.Holes)
	return c, err
}

func (op *Create) encode(p *namespacepb.Op) {
	m := &namespacepb.Create{
		Parent: uint64(op.Parent), Name: []byte(op.Name),
		Mode: op.Mode, Umask: op.Umask, Uid: op.UID, Gid: op.GID, Rdev: op.Rdev,
		Target: []byte(op.Target), Size: uint64(op.Size), Unnamed: op.Unnamed,
	}
	if op.Content != nil {
		m.Content = encodeContent(op.Content)
	}
	p.Kind = &namespacepb.Op_Create{Create: m}
}

func decodeCreate(m *namespacepb.Create) (*Create, error) {
	op := &Create{
		Parent: Ino(m.Parent), Name: string(m.Name),
		Mode: m.Mode, Umask: m.Umask, UID: m.Uid, GID: m.Gid, Rdev: m.Rdev,
		Target: string(m.Target), Size: int64(m.Size), Unnamed: m.Unnamed,
	}
	if m.Content == nil {
		return op, nil
	}
	c, err := decodeContent(m.Content)
	op.Content = &c
	return op, err
}

func (op *Link) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_Link{Link: &namespacepb.Link{
		Ino: uint64(op.Ino), Parent: uint64(op.Parent), Name: []byte(op.Name)}}
}

func (op *Unlink) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_Unlink{Unlink: &namespacepb.Unlink{Parent: uint64(op.Parent), Name: []byte(op.Name)}}
}

func (op *Rmdir) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_Rmdir{Rmdir: &namespacepb.Unlink{Parent: uint64(op.Parent), Name: []byte(op.Name)}}
}

func (op *Rename) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_Rename{Rename: &namespacepb.Rename{
		Parent: uint64(op.Parent), Name: []byte(op.Name),
		NewParent: uint64(op.NewParent), NewName: []byte(op.NewName),
		NoReplace: op.NoReplace, Exchange: op.Exchange}}
}

func decodeRename(m *namespacepb.Rename) *Rename {
	return &Rename{
		Parent: Ino(m.Parent), Name: string(m.Name),
		NewParent: Ino(m.NewParent), NewName: string(m.NewName),
		NoReplace: m.NoReplace, Exchange: m.Exchange,
	}
}

func (op *SetAttr) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_SetAttr{SetAttr: &namespacepb.SetAttr{
		Ino: uint64(op.Ino), Mask: uint32(op.Mask), Mode: op.Mode, Uid: op.UID, Gid: op.GID,
		Atime: op.Atime, Mtime: op.Mtime, KillPriv: op.KillPriv}}
}

func decodeSetAttr(m *namespacepb.SetAttr) *SetAttr {
	return &SetAttr{
		Ino: Ino(m.Ino), Mask: AttrMask(m.Mask), Mode: m.Mode, UID: m.Uid, GID: m.Gid,
		Atime: m.Atime, Mtime: m.Mtime, KillPriv: m.KillPriv,
	}
}

func (op *Truncate) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_Truncate{Truncate: &namespacepb.Truncate{
		Ino: uint64(op.Ino), Size: uint64(op.Size), KillPriv: op.KillPriv}}
}

func (op *SetContent) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_SetContent{SetContent: &namespacepb.SetContent{
		Ino: uint64(op.Ino), Base: op.Base, Content: encodeContent(&op.Content),
		Size: uint64(op.Size), Mtime: op.Mtime, KillPriv: op.KillPriv}}
}

func decodeSetContent(m *namespacepb.SetContent) (*SetContent, error) {
	op := &SetContent{Ino: Ino(m.Ino), Base: m.Base, Size: int64(m.Size), Mtime: m.Mtime, KillPriv: m.KillPriv}
	var err error
	if m.Content != nil {
		op.Content, err = decodeContent(m.Content)
	}
	return op, err
}

func (op *SetXattr) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_SetXattr{SetXattr: &namespacepb.SetXattr{
		Ino: uint64(op.Ino), Name: []byte(op.Name), Value: op.Value, Flag: uint32(op.Flag), KillSetgid: op.KillSetGID}}
}

func (op *RemoveXattr) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_RemoveXattr{RemoveXattr: &namespacepb.RemoveXattr{Ino: uint64(op.Ino), Name: []byte(op.Name)}}
}

func (op *Reap) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_Reap{Reap: &namespacepb.Reap{Ino: uint64(op.Ino)}}
}

func (op *Pin) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_Pin{Pin: &namespacepb.SetPin{Cid: op.CID.Bytes(), Name: []byte(op.Name)}}
}

func (op *Unpin) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_Unpin{Unpin: &namespacepb.Unpin{Cid: op.CID.Bytes()}}
}

func (op *Snapshot) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_Snapshot{Snapshot: &namespacepb.TakeSnapshot{Name: []byte(op.Name)}}
}

func (op *DropSnapshot) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_DropSnapshot{DropSnapshot: &namespacepb.TakeSnapshot{Name: []byte(op.Name)}}
}

func (op *TrimHistory) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_TrimHistory{TrimHistory: &namespacepb.TrimHistory{Index: op.Index, Time: op.Time}}
}
