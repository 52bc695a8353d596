package namespace

import (
	"fmt"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace/namespacepb"
	"google.golang.org/protobuf/proto"
)

// formatVersion precedes every stored record and every command.
const formatVersion = 1

// attrs is all of an inode that has a fixed size. It holds no pointers, so that
// a cache of hundreds of thousands costs the garbage collector nothing.
type attrs struct {
	ino                         Ino
	generation                  uint64
	mode, nlink, uid, gid, rdev uint32
	size                        int64
	atime, mtime, ctime, btime  int64
	parent                      Ino
	version                     uint64
	began                       uint64
	beganTime                   int64 // log time of began
	mtimeAt                     int64 // when mtime was last set other than by a write; 0: at mtime
	xattrNames, xattrValues     uint32
	root                        cas.CID
	treeSize, contentLen, holes int64
	folded                      uint64
	patches                     Patches
}

// tail is the rest of an inode, which few have. Both are immutable.
type tail struct {
	inline []byte
	target string
}

// record is an inode as it is stored.
type record struct {
	attrs
	tail
}

func (a *attrs) typ() uint32 { return a.mode & TypeMask }
func (a *attrs) isDir() bool { return a.mode&TypeMask == TypeDir }

// maxCounted is how much of a file's size the counters see, at most: some sparse
// files of the largest size would overflow them.
const maxCounted = 1 << 50

// counts is what one inode contributes to the counters.
func (a *attrs) counts() Stats {
	switch {
	case a.nlink == 0 || a.ino == RootIno:
		return Stats{}
	case a.isDir():
		return Stats{Dirs: 1}
	case a.typ() == TypeRegular:
		return Stats{Files: 1, LogicalBytes: min(a.size, maxCounted)}
	default:
		return Stats{Files: 1}
	}
}

func (s *Stats) add(n Stats, factor int64) {
	s.Files += factor * n.Files
	s.Dirs += factor * n.Dirs
	s.LogicalBytes += factor * n.LogicalBytes
}

// inode returns the exported form.
func (a *attrs) inode(t tail) Inode {
	return Inode{
		Ino: a.ino, Generation: a.generation,
		Mode: a.mode, Nlink: a.nlink, UID: a.uid, GID: a.gid, Rdev: a.rdev,
		Size: a.size, Atime: a.atime, Mtime: a.mtime, Ctime: a.ctime, Btime: a.btime,
		Parent: a.parent, Target: t.target,
		Content:  Content{Inline: t.inline, Root: a.root, TreeSize: a.treeSize, Length: a.contentLen, Holes: a.holes, Folded: a.folded},
		Patches:  a.patches,
		MtimeSet: a.mtimeAt, HasXattrs: a.xattrNames > 0,
		Version: a.version, Began: a.began,
	}
}

// setContent takes over a checked content. The inline bytes are copied: the
// cache keeps them long after the command is gone.
func (r *record) setContent(c *Content) {
	r.inline = append([]byte(nil), c.Inline...)
	r.root, r.treeSize, r.contentLen, r.holes, r.folded = c.Root, c.TreeSize, c.Length, c.Holes, c.Folded
}

// dentry is the value of a directory entry.
type dentry struct {
	ino   Ino
	began uint64
	typ   uint32
}

// meta is what every command rewrites.
type meta struct {
	applied     uint64
	nextIno     Ino
	logTime     int64
	indexedTime int64
	stats       Stats
	trimmed     uint64
	swept       uint64
	position    Position
	timeClaim   SessionID
	timeClaimed int64
	patches     uint64 // cost of all patches
}

// encoder turns records into bytes without allocating: it keeps one message of
// each kind and one buffer. What it returns is valid until the next call.
type encoder struct {
	inode   namespacepb.Inode
	content namespacepb.Content
	patches namespacepb.Patches
	dentry  namespacepb.Dentry
	xattr   namespacepb.Xattr
	meta    namespacepb.Meta
	root    [cas.CIDSize]byte
	buf     []byte
}

func (e *encoder) marshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{}.MarshalAppend(append(e.buf[:0], formatVersion), m)
	if err != nil {
		// Only a string that is not UTF-8 or a missing required field
		// can fail, and the messages have neither.
		panic("namespace: own record does not marshal: " + err.Error())
	}
	e.buf = b
	return b
}

func (e *encoder) encodeInode(r *record) []byte {
	m := &e.inode
	m.Generation, m.Mode, m.Nlink, m.Uid, m.Gid, m.Rdev = r.generation, r.mode, r.nlink, r.uid, r.gid, r.rdev
	m.Size, m.Atime, m.Mtime, m.Ctime, m.Btime = uint64(r.size), r.atime, r.mtime, r.ctime, r.btime
	m.Parent, m.Version, m.Began, m.BeganTime = uint64(r.parent), r.version, r.began, r.beganTime
	m.MtimeAt, m.XattrNames, m.XattrValues = r.mtimeAt, r.xattrNames, r.xattrValues
	m.Target, m.Content, m.Patches = nil, nil, r.patches.encode(&e.patches)
	if r.target != "" {
		m.Target = []byte(r.target)
	}
	if r.contentLen != 0 || r.treeSize != 0 || r.holes != 0 || r.folded > 0 || r.root.Defined() {
		c := &e.content
		c.Inline, c.TreeSize, c.Length, c.Folded = r.inline, uint64(r.treeSize), uint64(r.contentLen), r.folded
		c.Holes = uint64(r.holes)
		c.Root = r.root.Append(e.root[:0])
		m.Content = c
	}
	return e.marshal(m)
}

func (e *encoder) encodeDentry(d dentry) []byte {
	e.dentry.Ino, e.dentry.Type, e.dentry.Began = uint64(d.ino), d.typ, d.began
	return e.marshal(&e.dentry)
}

func (e *encoder) encodeXattr(value []byte, began uint64) []byte {
	e.xattr.Value, e.xattr.Began = value, began
	return e.marshal(&e.xattr)
}

func (e *encoder) encodeMeta(m *meta) []byte {
	p := &e.meta
	p.Applied, p.NextIno, p.LogTime, p.IndexedTime = m.applied, uint64(m.nextIno), m.logTime, m.indexedTime
	p.Trimmed, p.Swept = m.trimmed, m.swept
	p.Entry, p.EntryCommands, p.EntryTerm = m.position.Entry, m.position.Commands, m.position.Term
	p.TimeClaim, p.TimeClaimed, p.Patches = uint64(m.timeClaim), m.timeClaimed, m.patches
	p.Files, p.Dirs, p.LogicalBytes = uint64(m.stats.Files), uint64(m.stats.Dirs), uint64(m.stats.LogicalBytes)
	return e.marshal(p)
}

// unmarshal reads a record or command of the known version into m. A field that
// this program does not know is as bad as a version that it does not know: to
// pass over it would be to guess.
func unmarshal(b []byte, m proto.Message) error {
	if len(b) == 0 {
		return fmt.Errorf("%w: no version byte", ErrCorrupt)
	}
	if b[0] != formatVersion {
		return fmt.Errorf("%w: %d", ErrVersion, b[0])
	}
	if err := proto.Unmarshal(b[1:], m); err != nil {
		return fmt.Errorf("%w: %v", ErrCorrupt, err)
	}
	if hasUnknown(m) {
		return fmt.Errorf("%w: unknown field", ErrVersion)
	}
	return nil
}

func decodeInode(ino Ino, b []byte) (record, error) {
	var m namespacepb.Inode
	if err := unmarshal(b, &m); err != nil {
		return record{}, fmt.Errorf("inode %d: %w", ino, err)
	}
	r := record{attrs: attrs{
		ino: ino, generation: m.Generation,
		mode: m.Mode, nlink: m.Nlink, uid: m.Uid, gid: m.Gid, rdev: m.Rdev,
		size: int64(m.Size), atime: m.Atime, mtime: m.Mtime, ctime: m.Ctime, btime: m.Btime,
		parent: Ino(m.Parent), version: m.Version, began: m.Began, beganTime: m.BeganTime,
		mtimeAt: m.MtimeAt, xattrNames: m.XattrNames, xattrValues: m.XattrValues,
	}}
	var err error
	if r.patches, err = decodePatches(m.Patches); err != nil {
		return record{}, fmt.Errorf("inode %d: %w", ino, err)
	}
	r.target = string(m.Target)
	if m.Content != nil {
		c, err := decodeContent(m.Content)
		if err != nil {
			return record{}, fmt.Errorf("inode %d: %w", ino, err)
		}
		r.inline = c.Inline
		r.root, r.treeSize, r.contentLen, r.holes, r.folded = c.Root, c.TreeSize, c.Length, c.Holes, c.Folded
	}
	return r, nil
}

func decodeDentry(b []byte) (dentry, error) {
	var m namespacepb.Dentry
	if err := unmarshal(b, &m); err != nil {
		return dentry{}, fmt.Errorf("directory entry: %w", err)
	}
	return dentry{ino: Ino(m.Ino), began: m.Began, typ: m.Type}, nil
}

func decodeXattr(b []byte) (value []byte, began uint64, err error) {
	var m namespacepb.Xattr
	if err := unmarshal(b, &m); err != nil {
		return nil, 0, fmt.Errorf("extended attribute: %w", err)
	}
	return m.Value, m.Began, nil
}

func decodeMeta(b []byte) (meta, error) {
	var m namespacepb.Meta
	if err := unmarshal(b, &m); err != nil {
		return meta{}, fmt.Errorf("counters: %w", err)
	}
	return meta{
		applied: m.Applied, nextIno: Ino(m.NextIno), logTime: m.LogTime, indexedTime: m.IndexedTime,
		trimmed: m.Trimmed, swept: m.Swept, timeClaim: SessionID(m.TimeClaim), timeClaimed: m.TimeClaimed, patches: m.Patches,
		position: Position{Entry: m.Entry, Commands: m.EntryCommands, Term: m.EntryTerm},
		stats:    Stats{Files: int64(m.Files), Dirs: int64(m.Dirs), LogicalBytes: int64(m.LogicalBytes)},
	}, nil
}

// marshalRecord is for the records that are too rare for the encoder.
func marshalRecord(m proto.Message) []byte {
	var e encoder
	return e.marshal(m)
}
