// Package namespace is Cairn's names: inodes, directory entries, extended
// attributes, pins and their history, kept as one deterministic state machine.
//
// A State changes only by Apply, which takes commands in the order of a log. It
// reads no clock, no random number and nothing but its own records, so every
// node that applies the same log holds the same keys and values, byte for byte.
// A command is a list of ops that happen together or not at all. What the
// caller did wrong (a name that exists, a directory that is not empty) is part
// of the result, identical everywhere; a failing disk is not a result but an
// error that ends the State.
//
// Permissions are not checked here: the kernel does that (default_permissions)
// on the attributes that the State serves. All else that POSIX says of links,
// times, directories and renames is decided here, because only the order of the
// log can decide it.
//
// Overwritten values move to a history, so that every instant within the
// retention, and every snapshot, can still be read (see At).
package namespace

import "github.com/cairnfs/cairn/cas"

// Ino numbers an inode. Numbers are never used twice.
type Ino uint64

const (
	// RootIno is the root directory. It exists from the start and stays.
	RootIno Ino = 1
	// Created stands, in any Ino field of an op, for the inode made by the
	// nearest Create before it in the same command.
	Created Ino = 0
)

// Types of inodes, the upper bits of Inode.Mode, with the values of Linux.
const (
	TypeMask    uint32 = 0o170000
	TypeFIFO    uint32 = 0o010000
	TypeChar    uint32 = 0o020000
	TypeDir     uint32 = 0o040000
	TypeBlock   uint32 = 0o060000
	TypeRegular uint32 = 0o100000
	TypeSymlink uint32 = 0o120000
	TypeSocket  uint32 = 0o140000
)

// Bits of Inode.Mode below the type.
const (
	modeSetUID    uint32 = 0o4000
	modeSetGID    uint32 = 0o2000
	modeGroupExec uint32 = 0o0010
	modePerms     uint32 = 0o0777
	modeBits      uint32 = 0o7777
)

// Limits. A command that exceeds one fails with the error named here.
const (
	MaxName       = 255       // bytes of a name in a directory or of an attribute; ErrNameTooLong
	MaxTarget     = 4095      // bytes of a symbolic link's target; ErrNameTooLong
	MaxInline     = 4 << 10   // bytes of content kept in the inode; ErrInvalid
	MaxFileSize   = 1<<63 - 1 // bytes
	MaxXattr      = 64 << 10  // bytes of one attribute's value; ErrAttrTooLarge
	MaxXattrList  = 64 << 10  // bytes of all attribute names of an inode, each with a final NUL; ErrAttrSpace
	MaxXattrBytes = 1 << 20   // bytes of all attribute names and values of an inode; ErrAttrSpace
	MaxLinks      = 1<<31 - 1 // names of a file, or subdirectories of a directory plus two; ErrTooManyLinks
	MaxOps        = 256       // ops in a command; ErrInvalid
	MaxLabel      = 255       // bytes of the name of a pin or a snapshot; ErrNameTooLong
	MaxSnapshots  = 4096      // ErrInvalid
)

// Inode is a file, directory, symbolic link or special file, as of one instant.
// Its slices are shared and must not be changed.
type Inode struct {
	Ino        Ino
	Generation uint64 // index of the command that created it
	Mode       uint32 // type and permission bits, as st_mode
	Nlink      uint32 // names; of a directory 2 + subdirectories; 0 = orphan
	UID, GID   uint32
	Rdev       uint32 // of TypeChar and TypeBlock
	Size       int64  // bytes of a regular file or of a link's target; entries of a directory
	// Times, in nanoseconds since 1970.
	Atime, Mtime, Ctime, Btime int64
	MtimeSet                   int64  // when Mtime was last set to anything but the time of a write; 0: at Mtime
	Parent                     Ino    // of a directory; the root's is itself
	Target                     string // of a symbolic link
	Content                    Content
	Patches                    Patches // that lie above Content
	HasXattrs                  bool
	Version                    uint64 // index of the command that last changed content or size, of a directory the entries
	Began                      uint64 // index from which these values are visible in history
}

// Type returns the type bits of the mode.
func (n *Inode) Type() uint32 { return n.Mode & TypeMask }

// IsDir reports whether n is a directory.
func (n *Inode) IsDir() bool { return n.Mode&TypeMask == TypeDir }

// Content says where a regular file's bytes are: [0, Length) come from Inline
// or, if that is empty, from the tree Root; [Length, Inode.Size) are zeros. The
// zero Content is that of a file of zeros.
type Content struct {
	Inline   []byte  // at most MaxInline bytes; Length is its length
	Root     cas.CID // the zero CID if Inline is used or Length is 0
	TreeSize int64   // size of the whole tree Root in bytes
	Length   int64   // how much of the tree counts, at most TreeSize
	Holes    int64   // bytes of the tree that are holes, as in manifest.Root
	Folded   uint64  // journal sequence up to which dirty ranges are contained
}

// Dentry is an entry of a directory.
type Dentry struct {
	Name string
	Ino  Ino
	Type uint32 // as in Inode.Mode, without permission bits
	// Cookie is where a later ReadDir goes on: strictly after all entries
	// with this cookie. It depends on the name only, is above 2 and at most
	// 1<<63-1.
	Cookie uint64
	// More counts the entries with the same cookie that still follow. A page
	// must not end at an entry with More > 0, else the next one would miss
	// them. Names collide so rarely that nobody will ever see it outside a
	// test.
	More int
}

// Stats counts what the namespace holds, orphans left out.
type Stats struct {
	Files        int64 // inodes that are not directories, each once
	Dirs         int64 // directories without the root
	LogicalBytes int64 // sum of the sizes of regular files, of larger ones maxCounted
}
