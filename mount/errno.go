//go:build linux

package mount

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/volume"
)

// errnos says what a calling process is told for each error of the layers
// below; the first match counts, the common ones stand first. An error that is
// not here is EIO: also that the node's session has ended, and what the volume should
// have dealt with, that content has changed meanwhile or a command came twice.
//
// Of system call errors that come up from below only those are passed on that
// mean the same to the caller as to the node. ENOENT, say, would claim that the
// caller's file does not exist when it is one of the node's own that is gone.
var errnos = [...]struct {
	err   error
	errno syscall.Errno
}{
	{namespace.ErrNotFound, syscall.ENOENT},
	{namespace.ErrNoAttr, syscall.ENODATA},
	{namespace.ErrExist, syscall.EEXIST},
	{namespace.ErrNotEmpty, syscall.ENOTEMPTY},
	{namespace.ErrNotDir, syscall.ENOTDIR},
	{namespace.ErrIsDir, syscall.EISDIR},
	{namespace.ErrNameTooLong, syscall.ENAMETOOLONG},
	{namespace.ErrInvalid, syscall.EINVAL},
	{namespace.ErrPerm, syscall.EPERM},
	{namespace.ErrTooManyLinks, syscall.EMLINK},
	{namespace.ErrAttrTooLarge, syscall.E2BIG},
	{namespace.ErrAttrSpace, syscall.ENOSPC},
	{namespace.ErrNotSupported, syscall.EOPNOTSUPP},
	{namespace.ErrAccess, syscall.EACCES},
	{namespace.ErrTrimmed, syscall.ESTALE},
	{namespace.ErrLocked, syscall.EAGAIN},
	{volume.ErrTooBig, syscall.EFBIG},
	{volume.ErrNoData, syscall.ENXIO},
	{volume.ErrNotRegular, syscall.EINVAL},
	{volume.ErrReserved, syscall.EPERM},
	{volume.ErrWouldBlock, syscall.EAGAIN},
	{volume.ErrInterrupted, syscall.EINTR},
	{volume.ErrDeadlock, syscall.EDEADLK},
	{volume.ErrTooManyLocks, syscall.ENOLCK},
	{cas.ErrNoSpace, syscall.ENOSPC},
	{context.DeadlineExceeded, syscall.ETIMEDOUT},
	{syscall.ENOSPC, syscall.ENOSPC},
	{syscall.EDQUOT, syscall.EDQUOT},
	{syscall.EFBIG, syscall.EFBIG},
	{syscall.EROFS, syscall.EROFS},
	{syscall.ENOMEM, syscall.ENOMEM},
}

func errnoOf(err error) syscall.Errno {
	for i := range errnos {
		if errors.Is(err, errnos[i].err) {
			return errnos[i].errno
		}
	}
	return syscall.EIO
}

// fail turns err into a status. The caller of an operation that fails with EIO
// learns nothing more, so the rest goes to the log; name may be empty.
func (fs *fileSystem) fail(op string, ino uint64, name string, err error) fuse.Status {
	errno := errnoOf(err)
	if errno == syscall.EIO {
		attrs := []any{"op", op, "inode", ino, "err", err}
		if name != "" {
			attrs = append(attrs, "name", name)
		}
		if fs.searches.allow(fs.now()) {
			if path, ok := fs.vol.Path(namespace.Ino(ino)); ok {
				attrs = append(attrs, "path", path)
			}
		}
		var block *cas.BlockError
		if errors.As(err, &block) {
			attrs = append(attrs, slog.String("cid", block.CID.String()))
		}
		fs.log.Error("input/output error", attrs...)
	}
	return fuse.Status(errno)
}

// status is fail, or OK if err is nil.
func (fs *fileSystem) status(op string, ino uint64, name string, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	return fs.fail(op, ino, name, err)
}

// searches lets a path be searched for now and then: a damaged disk may give
// thousands of errors, and a search looks through all that is cached.
type searches struct{ last atomic.Int64 }

const searchEvery = 100 * time.Millisecond

func (s *searches) allow(now time.Time) bool {
	last, t := s.last.Load(), now.UnixNano()
	return (t < last || t-last >= int64(searchEvery)) && s.last.CompareAndSwap(last, t)
}
