//go:build linux

package mount

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/volume"
)

// Operations on open files.

// Create makes and opens a regular file that the kernel believes not to exist.
// If it does, and the caller would take it as well, ESTALE makes the kernel look
// the name up again and then open it: the check of permissions belongs to the
// file there is.
func (fs *fileSystem) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	q := fs.asked(&in.InHeader, name)
	a, h, err := fs.vol.Create(context.Background(), namespace.Ino(in.NodeId), name, in.Mode, in.Flags, caller(&in.InHeader, in.Umask))
	if err != nil {
		if errors.Is(err, namespace.ErrExist) && in.Flags&syscall.O_EXCL == 0 {
			if fs.coherent.shared() {
				fs.coherent.toldToLook(in.Pid)
			}
			return fuse.Status(syscall.ESTALE)
		}
		return fs.fail("create", in.NodeId, name, err)
	}
	return fs.created(q, &a, h, in.Flags, out)
}

// Tmpfile is open(2) with O_TMPFILE: a file without a name, which the kernel lets
// be linked unless O_EXCL is set as well.
func (fs *fileSystem) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	q := fs.asked(&in.InHeader, "")
	a, h, err := fs.vol.Tmpfile(context.Background(), namespace.Ino(in.NodeId), in.Mode, in.Flags, caller(&in.InHeader, in.Umask))
	if err != nil {
		return fs.fail("tmpfile", in.NodeId, "", err)
	}
	return fs.created(q, &a, h, in.Flags, out)
}

// created answers q with a new file that is open.
func (fs *fileSystem) created(q asked, a *volume.Attr, h *volume.Handle, flags uint32, out *fuse.CreateOut) fuse.Status {
	if status := fs.opened(h, flags, &out.OpenOut); status != fuse.OK {
		fs.vol.Forget(a.Ino) // it may have no name, and the kernel does not know it
		return status
	}
	if flags&syscall.O_ACCMODE == syscall.O_WRONLY {
		// A file that is being written and cannot be read or mapped this
		// way: its bytes need not pass through the page cache, which is a
		// third of what FUSE costs a stream and splits odd-sized writes.
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	}
	fs.entry(q, a, &out.EntryOut)
	return fuse.OK
}

// Open opens a regular file, and truncates it if asked to.
func (fs *fileSystem) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	h, status := fs.open(in)
	if status != fuse.OK {
		return status
	}
	if in.Mode&fuse.OPEN_KILL_SUIDGID != 0 {
		if err := fs.vol.KillPriv(context.Background(), h.Ino()); err != nil {
			h.Release()
			return fs.fail("open", in.NodeId, "", err)
		}
	}
	return fs.opened(h, in.Flags, out)
}

// open opens a file. Of a shared volume, whether it is the one that the caller asked
// for is known only when it is open, and then it may be truncated.
func (fs *fileSystem) open(in *fuse.OpenIn) (*volume.Handle, fuse.Status) {
	ctx, ino, shared := context.Background(), namespace.Ino(in.NodeId), fs.coherent.shared()
	flags, arrived := in.Flags, time.Time{}
	if shared {
		flags, arrived = flags&^syscall.O_TRUNC, fs.now()
	}
	h, err := fs.vol.Open(ctx, ino, flags)
	if gone := errors.Is(err, namespace.ErrNotFound); shared && (err == nil || gone) &&
		fs.coherent.stale(in.Pid, in.NodeId, arrived, gone) {
		if h != nil {
			h.Release()
		}
		return nil, fuse.Status(syscall.ESTALE)
	}
	if err == nil && shared {
		fs.renewed(h)
	}
	if err == nil && flags != in.Flags {
		if _, err = fs.vol.SetAttr(ctx, ino, volume.SetAttr{Valid: volume.SetSize}); err != nil {
			h.Release()
		}
	}
	return h, fs.status("open", in.NodeId, "", err)
}

// opened gives h a number and tells the kernel how to treat the file.
func (fs *fileSystem) opened(h *volume.Handle, flags uint32, out *fuse.OpenOut) fuse.Status {
	fh := fs.handles.add(h)
	if fh == 0 {
		h.Release()
		return fuse.Status(syscall.ENFILE)
	}
	out.Fh = fh
	h.Answered()
	if flags&syscall.O_APPEND != 0 && fs.coherent.shared() {
		// Where the file ends is known here only.
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	}
	if h.KeepCache() {
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	}
	return fuse.OK
}

// renewed sees to it that the kernel does not go by a size that is no longer right, and
// has it drop pages that it was still to be told of. Without FOPEN_KEEP_CACHE it drops
// the pages by itself, but not the attributes. It is before a file is truncated: pages
// that a mapping has changed are written when they are dropped.
func (fs *fileSystem) renewed(h *volume.Handle) {
	ino := uint64(h.Ino())
	content, any := fs.coherent.settle(ino)
	switch {
	case content:
		fs.writeBack(ino, 0, 0)
	case any || !h.KeepCache():
		fs.forgetAttr(ino)
	}
}

// forgetAttr has the kernel drop the attributes of an inode. It waits for nothing.
func (fs *fileSystem) forgetAttr(ino uint64) {
	if fs.server != nil {
		fs.server.InodeNotify(ino, -1, 0)
	}
}

// Read fills buf from the file.
func (fs *fileSystem) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	n, err := h.Read(context.Background(), buf, int64(in.Offset))
	if err != nil {
		return nil, fs.fail("read", in.NodeId, "", err)
	}
	fs.accessed(in.NodeId)
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// Write stores data, which is valid during the call only.
func (fs *fileSystem) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	n, err := fs.write(h, in, data)
	if err != nil {
		return 0, fs.fail("write", in.NodeId, "", err)
	}
	return uint32(n), fuse.OK
}

func (fs *fileSystem) write(h *volume.Handle, in *fuse.WriteIn, data []byte) (int, error) {
	ctx := context.Background()
	write := func(ctx context.Context, p []byte, off int64) (int, error) { return h.WriteAs(ctx, p, off, in.Flags) }
	if in.WriteFlags&fuse.WRITE_CACHE != 0 {
		// Pages of a shared mapping. The kernel sends them through any handle,
		// maybe one that appends. It may send them when an open with O_TRUNC
		// has been carried out already, and drops them only when that returns.
		mapped, err := fs.vol.Open(ctx, h.Ino(), syscall.O_WRONLY)
		if err != nil {
			return 0, err
		}
		defer mapped.Release()
		h, write = mapped, mapped.WritePages
	}
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := fs.vol.KillPriv(ctx, h.Ino()); err != nil {
			return 0, err
		}
	}
	n, err := write(ctx, data, int64(in.Offset))
	if err == nil && in.Flags&syscall.O_DSYNC != 0 && !h.Syncs() {
		// Asked for by this write alone (pwritev2). O_SYNC is O_DSYNC and
		// one bit more.
		err = h.Fsync(ctx, in.Flags&syscall.O_SYNC != syscall.O_SYNC)
	}
	if err == nil && fs.coherent.shared() {
		fs.wrote(h, in, n)
	}
	return n, err
}

// wrote sees to it that the kernel has no page without the n bytes that were written. Of
// those that are written from pages, or past them, it sees to that itself.
func (fs *fileSystem) wrote(h *volume.Handle, in *fuse.WriteIn, n int) {
	if in.WriteFlags&(fuse.WRITE_CACHE|fuse.WRITE_LOCKOWNER) == 0 && h.Refilled(int64(in.Offset), int64(n)) {
		fs.unpage(in.NodeId, int64(in.Offset), int64(n), maxUnpageWritten)
	}
	if in.Flags&syscall.O_APPEND != 0 {
		fs.appended(in, n)
	}
}

// appended has the kernel drop what it holds of the end of a file if n bytes were
// not appended where it thinks. A direct write, which alone names its lock owner, holds
// no page. Others come by descriptors that are older than the cluster, or append only
// since fcntl(2) said so: the kernel may hold a page until it is answered, so it is told
// afterwards.
func (fs *fileSystem) appended(in *fuse.WriteIn, n int) {
	a, err := fs.vol.GetAttr(context.Background(), namespace.Ino(in.NodeId))
	switch {
	case err == nil && a.Size == int64(in.Offset)+int64(n):
	case in.WriteFlags&fuse.WRITE_LOCKOWNER != 0:
		fs.writeBack(in.NodeId, int64(in.Offset), 0)
	default:
		fs.coherent.outdated(in.NodeId)
	}
}

// Flush runs at each close(2) of a descriptor. Locks go last, so that who gets
// them next finds what was written.
func (fs *fileSystem) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	err := h.Flush(context.Background())
	h.DropLocks(in.LockOwner)
	return fs.status("flush", in.NodeId, "", err)
}

// Fsync is fsync(2) and fdatasync(2).
func (fs *fileSystem) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	dataOnly := in.FsyncFlags&fsyncDataOnly != 0
	return fs.status("fsync", in.NodeId, "", h.Fsync(context.Background(), dataOnly))
}

// fsyncDataOnly is FUSE_FSYNC_FDATASYNC of linux/fuse.h.
const fsyncDataOnly = 1

// Release ends an open file, and with it its locks; nobody waits for it.
func (fs *fileSystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if h := fs.handles.remove(in.Fh); h != nil {
		h.Release()
	}
}
