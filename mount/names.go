//go:build linux

package mount

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/volume"
)

// Operations on names in directories. Modes arrive as the caller gave them, with
// his umask beside: it does not count in a directory with a default access
// control list.

func (fs *fileSystem) named(op string, q asked, a *volume.Attr, err error, out *fuse.EntryOut) fuse.Status {
	if err != nil {
		return fs.fail(op, q.parent, q.name, err)
	}
	fs.entry(q, a, out)
	return fuse.OK
}

// Mknod is mknod(2). The character device 0:0 is none: it stands for a name that
// overlayfs hides, and anybody may create it.
func (fs *fileSystem) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	kind := in.Mode & syscall.S_IFMT
	device := kind == syscall.S_IFBLK || kind == syscall.S_IFCHR && in.Rdev != 0
	if device && !fs.devices {
		return fuse.EPERM
	}
	q := fs.asked(&in.InHeader, name)
	a, err := fs.vol.Mknod(context.Background(), namespace.Ino(in.NodeId), name, in.Mode, in.Rdev, caller(&in.InHeader, in.Umask))
	return fs.named("mknod", q, &a, err, out)
}

// Mkdir is mkdir(2).
func (fs *fileSystem) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	q := fs.asked(&in.InHeader, name)
	a, err := fs.vol.Mkdir(context.Background(), namespace.Ino(in.NodeId), name, in.Mode, caller(&in.InHeader, in.Umask))
	return fs.named("mkdir", q, &a, err, out)
}

// Symlink is symlink(2).
func (fs *fileSystem) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	q := fs.asked(h, name)
	a, err := fs.vol.Symlink(context.Background(), namespace.Ino(h.NodeId), name, target, caller(h, 0))
	return fs.named("symlink", q, &a, err, out)
}

// Link is link(2). The kernel takes the answer even if it was answered or told something
// newer since: it goes back to a size, and has zeros behind that in its pages, whatever they
// had. So those of an open file are not relied upon until it has taken the answer, and then
// dropped.
func (fs *fileSystem) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	q := fs.asked(&in.InHeader, name)
	dir, ino := in.NodeId, in.Oldnodeid
	var sure func()
	if fs.coherent.shared() {
		sure = fs.vol.Unsure(namespace.Ino(ino))
	}
	a, err := fs.vol.Link(context.Background(), namespace.Ino(ino), namespace.Ino(dir), name)
	status := fs.named("link", q, &a, err, out)
	switch {
	case sure == nil:
	case status != fuse.OK:
		sure()
	default:
		fs.coherent.done.Go(func() { fs.linked(dir, name, ino, sure) })
	}
	return status
}

// linked has the kernel drop the pages of an inode once it has taken the answer to LINK:
// until then nothing else is done in the directory, and who drops a name waits.
func (fs *fileSystem) linked(parent uint64, name string, ino uint64, sure func()) {
	defer sure()
	if fs.server != nil {
		fs.server.EntryNotify(parent, name)
		fs.writeBack(ino, 0, 0)
	}
}

// Readlink is readlink(2).
func (fs *fileSystem) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	fs.accessed(h.NodeId)
	target, err := fs.vol.Readlink(context.Background(), namespace.Ino(h.NodeId))
	return []byte(target), fs.status("readlink", h.NodeId, "", err)
}

// Unlink is unlink(2).
func (fs *fileSystem) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	err := fs.vol.Unlink(context.Background(), namespace.Ino(h.NodeId), name)
	if err == nil && fs.coherent.shared() {
		fs.coherent.removed(h.NodeId, name)
	}
	return fs.status("unlink", h.NodeId, name, err)
}

// Rmdir is rmdir(2).
func (fs *fileSystem) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	err := fs.vol.Rmdir(context.Background(), namespace.Ino(h.NodeId), name)
	if err == nil && fs.coherent.shared() {
		fs.coherent.removed(h.NodeId, name)
	}
	return fs.status("rmdir", h.NodeId, name, err)
}

// Rename is renameat2(2). The volume knows which flags there are.
func (fs *fileSystem) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	err := fs.vol.Rename(context.Background(), namespace.Ino(in.NodeId), name, namespace.Ino(in.Newdir), newName, in.Flags)
	if err == nil && fs.coherent.shared() {
		fs.coherent.renamed(in.NodeId, name, in.Newdir, newName, in.Flags&volume.RenameExchange != 0)
	}
	return fs.status("rename", in.NodeId, name, err)
}

// OpenDir opens a directory. Reading one needs no handle, because its cookies
// stay valid for as long as the directory exists. ENOSYS tells the kernel so; it
// then opens directories without asking and keeps their entries cached.
func (fs *fileSystem) OpenDir(_ <-chan struct{}, _ *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if fs.keepsDirs {
		return fuse.ENOSYS
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_CACHE_DIR
	return fuse.OK
}

// ReleaseDir ends what OpenDir began.
func (fs *fileSystem) ReleaseDir(*fuse.ReleaseIn) {}

// FsyncDir is fsync(2) of a directory.
func (fs *fileSystem) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return fs.status("fsyncdir", in.NodeId, "", fs.vol.SyncDir(context.Background(), namespace.Ino(in.NodeId)))
}

// Offsets in a directory stream are where the stream goes on. The volume's own
// cookies are larger than these, which the volume leaves to us.
const (
	afterDot    = 1
	afterDotDot = 2
)

// ReadDir lists a directory from an offset on.
func (fs *fileSystem) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	err := fs.list(in, func(e fuse.DirEntry) bool { return out.AddDirEntry(e) })
	return fs.status("readdir", in.NodeId, "", err)
}

// ReadDirPlus lists a directory together with the attributes of what is in it,
// for a process that is about to ask for them one by one.
func (fs *fileSystem) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	// Attributes are filled in after the listing, not from within it.
	type answer struct {
		slot *fuse.EntryOut
		name string
		ino  uint64
	}
	var answers []answer
	q := fs.asked(&in.InHeader, "")
	err := fs.list(in, func(e fuse.DirEntry) bool {
		slot := out.AddDirLookupEntry(e)
		if slot == nil {
			return false
		}
		if e.Name != "." && e.Name != ".." { // the kernel takes no attributes of these
			answers = append(answers, answer{slot, e.Name, e.Ino})
		}
		return true
	})
	if err != nil {
		return fs.fail("readdir", in.NodeId, "", err)
	}
	for _, e := range answers {
		// An inode that is gone by now keeps an empty slot: a bare name.
		a, err := fs.vol.GetAttr(context.Background(), namespace.Ino(e.ino))
		if err == nil {
			q.name = e.name
			fs.entry(q, &a, e.slot)
		}
	}
	return fuse.OK
}

// list calls add for the entries from in.Offset on until add returns false.
func (fs *fileSystem) list(in *fuse.ReadIn, add func(fuse.DirEntry) bool) error {
	ctx, dir, off := context.Background(), namespace.Ino(in.NodeId), in.Offset
	if off < afterDot && !add(fuse.DirEntry{Name: ".", Ino: in.NodeId, Mode: syscall.S_IFDIR, Off: afterDot}) {
		return nil
	}
	if off < afterDotDot {
		parent, err := fs.vol.Lookup(ctx, dir, "..")
		if err != nil {
			return err
		}
		if !add(fuse.DirEntry{Name: "..", Ino: uint64(parent.Ino), Mode: syscall.S_IFDIR, Off: afterDotDot}) {
			return nil
		}
	}
	cookie := off
	if off <= afterDotDot {
		off, cookie = afterDotDot, 0
	}
	return fs.vol.ReadDir(ctx, dir, cookie, func(d namespace.Dentry) bool {
		// A page that ends among entries with one cookie is followed by
		// one that begins with the first of them: rather a name twice
		// than one not at all.
		next := off
		if d.More == 0 {
			next, off = d.Cookie, d.Cookie
		}
		return add(fuse.DirEntry{Name: d.Name, Ino: uint64(d.Ino), Mode: d.Type, Off: next})
	})
}
