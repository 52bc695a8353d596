//go:build linux

package mount

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cairnfs/cairn/volume"
)

// Advisory locks. The kernel keeps none itself (EnableLocks), it asks for each.
// What ends locks comes as other requests:
//
//   - Closing a descriptor takes the locks of fcntl(2) on the file from the
//     process that closes it. That is FLUSH, of any handle of the file, also of
//     one that can only read, so none is opened with FOPEN_NOFLUSH.
//   - Closing the last descriptor of an open file ends its locks of flock(2)
//     and F_OFD_SETLK. That is RELEASE. Of the latter the kernel says nothing
//     there, so all locks go that were taken through the handle.
//   - A process that ends, however it does, closes its descriptors. If it waits
//     for a lock, INTERRUPT comes first.

// GetLk is F_GETLK and F_OFD_GETLK: it answers with a lock that is in the way, or
// if it is asked for F_UNLCK, with one of the asker's own. The
// process that it names is one more thing in which a lock of F_OFD_SETLK looks
// like any other of fcntl(2); of a local file the kernel names none.
func (fs *fileSystem) GetLk(_ <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	find := h.FindLock
	if in.Lk.Typ == syscall.F_UNLCK {
		find = h.FindOwnLock
	}
	blocker, found, err := find(lockOf(in))
	if err != nil {
		return fs.fail("getlk", in.NodeId, "", err)
	}
	out.Lk = fuse.FileLock{Typ: syscall.F_UNLCK}
	if found {
		out.Lk = fuse.FileLock{Start: blocker.Start, End: blocker.End, Typ: syscall.F_RDLCK, Pid: blocker.PID}
		if blocker.Write {
			out.Lk.Typ = syscall.F_WRLCK
		}
	}
	return fuse.OK
}

// SetLk takes a lock or fails at once, or gives one up.
func (fs *fileSystem) SetLk(_ <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return fs.setLock(in, (*volume.Handle).TryLock)
}

// SetLkw takes a lock and waits for it, or gives one up. While it waits nothing
// else does: each request has a goroutine of its own. A signal ends the wait, and
// the end of the connection does.
func (fs *fileSystem) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return fs.setLock(in, func(h *volume.Handle, l volume.Lock) error { return h.WaitLock(cancel, l) })
}

func (fs *fileSystem) setLock(in *fuse.LkIn, lock func(*volume.Handle, volume.Lock) error) fuse.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	switch in.Lk.Typ {
	case syscall.F_UNLCK:
		lock = (*volume.Handle).Unlock
	case syscall.F_RDLCK, syscall.F_WRLCK:
	default:
		return fuse.EINVAL
	}
	err := lock(h, lockOf(in))
	if err == nil && in.Lk.Typ != syscall.F_UNLCK && fs.coherent.shared() {
		fs.renew(h)
	}
	return fs.status("setlk", in.NodeId, "", err)
}

// renew has the kernel drop what it holds of a file if who held a lock before has
// written to it on another node.
func (fs *fileSystem) renew(h *volume.Handle) {
	content, _ := fs.coherent.settle(uint64(h.Ino()))
	version, stale := h.Stale()
	switch {
	case stale:
		fs.dropPages(h.Ino(), version)
	case content:
		fs.writeBack(uint64(h.Ino()), 0, 0)
	default:
		fs.forgetAttr(uint64(h.Ino()))
	}
}

func lockOf(in *fuse.LkIn) volume.Lock {
	return volume.Lock{
		Start: in.Lk.Start, End: in.Lk.End, Write: in.Lk.Typ == syscall.F_WRLCK,
		Flock: in.LkFlags&fuse.LK_FLOCK != 0, Owner: in.Owner, PID: in.Lk.Pid,
	}
}
