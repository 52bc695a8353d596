package namespace

import (
	"context"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace/namespacepb"
)

// Command is what the log orders: ops that happen together or not at all, the
// later ones seeing what the earlier ones did.
type Command struct {
	// Time is the proposer's clock, in nanoseconds since 1970. Inode times
	// take it as it is. History goes by log time, which is the latest Time
	// seen so far and so never moves backwards.
	Time int64
	Ops  []Op // at most MaxOps

	// Session is who proposes, 0 in a group of one. The command is refused with
	// ErrSession once that session has ended. Seq numbers the commands of a
	// session: of two with the same number the second changes nothing and has
	// the result of the first. The proposer knows the results of all commands
	// below Acked, which are forgotten.
	Session SessionID
	Seq     uint64
	Acked   uint64

	// Promised is the step of the collection, as State.Collection says it, at
	// which the proposer began to rely on stores to keep the blocks that the
	// command refers to. If they may have been collected since, it is refused
	// with ErrPromise. It counts for commands only that refer to blocks.
	Promised uint64
}

// RefersToBlocks reports whether blocks must be stored for the command to count:
// data first, then name.
func (c *Command) RefersToBlocks() bool { return len(c.Roots()) > 0 }

// Roots returns the trees of blocks that the command names.
func (c *Command) Roots() (roots []cas.CID) {
	for _, op := range c.Ops {
		switch op := op.(type) {
		case *Create:
			if op.Content != nil && op.Content.Root.Defined() {
				roots = append(roots, op.Content.Root)
			}
		case *SetContent:
			if op.Content.Root.Defined() {
				roots = append(roots, op.Content.Root)
			}
		case *FoldContent:
			if op.Content.Root.Defined() {
				roots = append(roots, op.Content.Root)
			}
		case *Pin:
			roots = append(roots, op.CID)
		}
	}
	return roots
}

// Op is one change: a pointer to one of the types below.
type Op interface {
	// encode makes p the message that stands for the op.
	encode(p *namespacepb.Op)
}

// Create makes an inode and its first name. Its times are the command's Time.
// In a directory with the setgid bit it takes the directory's group, and a
// directory the bit as well. In one with a default access control list, that
// limits the mode and becomes the inode's own (a symbolic link has none); in any
// other, Umask limits it.
//
// Unnamed makes a regular file without a name, an orphan until it is linked, as if
// it were created in the directory and its name removed at once; the directory
// does not change.
type Create struct {
	Parent   Ino
	Name     string
	Unnamed  bool   // then Name is empty
	Mode     uint32 // with the type; a symbolic link's permissions are 0777 always
	Umask    uint32 // permission bits that the creator withholds by habit
	UID, GID uint32
	Rdev     uint32   // of devices, else ignored
	Target   string   // of a symbolic link, else empty
	Content  *Content // of a regular file, may be nil
	Size     int64    // of a regular file
}

// Link gives the inode, which must not be a directory, another name. An orphan is
// one no longer: whether it may be given a name is not for the namespace to know.
type Link struct {
	Ino    Ino
	Parent Ino
	Name   string
}

// Unlink removes a name that is not a directory's. Without its last name the
// inode is an orphan, readable and writable by number until Reap.
type Unlink struct {
	Parent Ino
	Name   string
}

// Rmdir removes an empty directory, which is an orphan until Reap.
type Rmdir struct {
	Parent Ino
	Name   string
}

// Rename moves a name, replacing what the new name refers to if the kinds
// agree: a file by a file, an empty directory by a directory. If both names
// refer to the same inode nothing happens. Exchange swaps the two; it excludes
// NoReplace.
type Rename struct {
	Parent    Ino
	Name      string
	NewParent Ino
	NewName   string
	NoReplace bool // fail with ErrExist if the new name exists
	Exchange  bool
}

// AttrMask says which fields of a SetAttr count.
type AttrMask uint32

// The bits of an AttrMask.
const (
	AttrMode AttrMask = 1 << iota
	AttrUID
	AttrGID
	AttrAtime
	AttrMtime
	// AttrAccessed makes Atime the atime if it is later, as reading does. That
	// is no change that shows in ctime.
	AttrAccessed
	attrAll = AttrMode | AttrUID | AttrGID | AttrAtime | AttrMtime | AttrAccessed
)

// SetAttr changes attributes. An empty mask changes nothing, not even ctime. A
// mode that is set changes the access control list as well.
type SetAttr struct {
	Ino          Ino
	Mask         AttrMask
	Mode         uint32 // permission bits; type bits must be absent or right
	UID, GID     uint32
	Atime, Mtime int64
	KillPriv     bool // see SetContent; wins over Mode
}

// Truncate sets the size of a regular file. Bytes beyond it are gone, bytes
// gained are zeros. It sets mtime to the command's Time.
type Truncate struct {
	Ino      Ino
	Size     int64
	KillPriv bool // see SetContent
}

// SetContent replaces the content of a regular file.
type SetContent struct {
	Ino     Ino
	Base    uint64 // the Version that Content builds on, else ErrConflict; not looked at for Created
	Content Content
	Size    int64
	// Mtime is the time of the last write that Content contains, 0 if the
	// bytes are unchanged and so are the times. It becomes the mtime unless
	// that was set, by SetAttr or Truncate, at a later time; ctime becomes
	// at least Mtime. The command's own Time does not count, because content
	// may be committed long after the write.
	Mtime int64
	// KillPriv takes away what a write or chown by the unprivileged takes
	// away: setuid, setgid if the group may execute, and the attribute
	// security.capability. It is nothing to directories.
	KillPriv bool
}

// XattrFlag is a set of conditions of SetXattr, with the values of setxattr(2).
type XattrFlag uint32

// The conditions of SetXattr.
const (
	XattrCreate  XattrFlag = 1 // ErrExist if there is such an attribute
	XattrReplace XattrFlag = 2 // ErrNoAttr if there is none
)

// SetXattr sets an extended attribute. ACLAccess sets the permission bits of the
// mode as well, and is not stored if they say it all. An access control list
// without entries is removed.
type SetXattr struct {
	Ino   Ino
	Name  string
	Value []byte
	Flag  XattrFlag
	// KillSetGID takes the setgid bit away with setting ACLAccess, as chmod
	// does if the caller is not of the inode's group. It is nothing to other
	// attributes.
	KillSetGID bool
}

// RemoveXattr removes an extended attribute. Access control lists that are not
// there are no failure: without one, the mode says what it would.
type RemoveXattr struct {
	Ino  Ino
	Name string
}

// Reap removes an orphan for good.
type Reap struct{ Ino Ino }

// Pin keeps the tree under a CID from being collected. Pinning again changes
// the name.
type Pin struct {
	CID  cas.CID
	Name string
}

// Unpin removes a pin.
type Unpin struct{ CID cas.CID }

// Snapshot keeps the instant after this command readable, whatever is trimmed.
type Snapshot struct{ Name string }

// DropSnapshot forgets a snapshot; what only it kept goes with later trims.
type DropSnapshot struct{ Name string }

// TrimHistory removes values that were overwritten before an instant, which is
// the later of Index and the last command known to be not after Time. It
// removes at most MaxTrim values; Result.More says that there are more.
type TrimHistory struct {
	Index uint64
	Time  int64
}

// MaxTrim bounds the values that one TrimHistory looks at.
const MaxTrim = 1000

// Result is what a command did.
type Result struct {
	Index uint64 // the command's place in the log
	// Err is nil, or why nothing was done: one of the errors of this
	// package. FailedOp is then the place of the op that was refused.
	Err      error
	FailedOp int
	// Inodes holds, for each op, the inode it made, changed or (Reap)
	// removed, as it was after the op; of Rename the inode moved. For ops
	// without one it is zero.
	Inodes []Inode
	// Orphan is the inode that lost its last name, 0 if none did; of
	// several, the last (Orphans lists all).
	Orphan Ino
	// Replaced is the inode that Rename took the new name from, or swapped
	// with, 0 if none.
	Replaced Ino
	More     bool // TrimHistory left some over
}

// Log orders commands and applies them to a State.
type Log interface {
	// Propose puts cmd in the log and returns its result after it has been
	// applied here. An error says that the outcome is unknown or that the
	// log has failed; the command's own failure is in Result.Err.
	Propose(ctx context.Context, cmd *Command) (Result, error)
	// Sync returns when all that was proposed before survives a power loss.
	Sync(ctx context.Context) error
}
