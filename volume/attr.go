package volume

import (
	"syscall"

	"github.com/cairnfs/cairn/namespace"
)

// Attr is what stat says of an inode: the namespace's record with what open
// files have not committed yet laid over it.
type Attr struct {
	Ino        namespace.Ino
	Generation uint64
	Mode       uint32 // permissions and type, as in stat(2)
	Nlink      uint32
	UID, GID   uint32
	Rdev       uint32
	Size       int64 // bytes
	Blocks     int64 // units of 512 bytes, without holes
	Atime      int64 // nanoseconds since 1970, as the others
	Mtime      int64
	Ctime      int64
	Version    uint64 // changes with the content
	HasXattrs  bool
	// Outdated is not 0 if the file is open and the kernel may have pages of content
	// that another node has replaced. They do not agree with the size: what the kernel
	// has behind the former end is zeros. Have it drop them before it is told the
	// attributes, and then call Dropped with Outdated.
	Outdated uint64
}

// Caller is who asks: the owner of what is created.
type Caller struct {
	UID, GID uint32
	PID      uint32
	Umask    uint32 // permission bits; does not count in a directory with a default access control list
}

// SetAttrMask says which fields of a SetAttr count.
type SetAttrMask uint32

// The fields of SetAttr.
const (
	SetMode SetAttrMask = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
)

// SetAttr is a change of attributes: chmod, chown, truncate and utimens in one,
// as FUSE sends them.
type SetAttr struct {
	Valid        SetAttrMask
	Mode         uint32 // permissions; the type cannot change
	UID, GID     uint32
	Size         int64
	Atime, Mtime int64 // nanoseconds since 1970
	KillPriv     bool  // clear setuid and setgid as chown and truncate by others do
}

func attrOf(n *namespace.Inode) Attr {
	return Attr{
		Ino: n.Ino, Generation: n.Generation, Mode: n.Mode, Nlink: n.Nlink,
		UID: n.UID, GID: n.GID, Rdev: n.Rdev,
		Size: sizeOf(n), Blocks: blocks(allocated(n), sizeOf(n)),
		Atime: n.Atime, Mtime: n.Mtime, Ctime: n.Ctime,
		Version: n.Version, HasXattrs: n.HasXattrs,
	}
}

func sizeOf(n *namespace.Inode) int64 {
	if n.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		return int64(len(n.Target))
	}
	return n.Size
}

// allocated returns how many bytes of n are not in holes.
func allocated(n *namespace.Inode) int64 {
	if n.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return sizeOf(n)
	}
	c := &n.Content
	return min(outsideHoles(c.Length, c.TreeSize, c.Holes)+int64(n.Patches.Cost), n.Size)
}

// outsideHoles returns how many of the first length bytes of a tree are in none of
// its holes, and rather too many: where the holes are is not known, so those of a
// tree that was cut lie behind the cut, as far as they fit there.
func outsideHoles(length, treeSize, holes int64) int64 {
	behind := max(treeSize-length, 0)
	return length - max(holes-behind, 0)
}

// blocks returns how many units of 512 bytes are taken by a file of the given size.
// Unless it is empty it is one at least: archivers take a file without blocks for
// one without data and do not look, and a mapping may hold some that only the
// kernel knows of.
func blocks(allocated, size int64) int64 {
	allocated = max(allocated, min(size, 1))
	return allocated/512 + min(allocated%512, 1)
}
