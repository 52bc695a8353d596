//go:build linux

package mount

import (
	"context"
	"errors"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/volume"
)

// Operations on ranges of open files. The kernel has written back and dropped the
// pages concerned, and refused the modes of fallocate that it does not pass on.

// Fallocate is fallocate(2).
func (fs *fileSystem) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	ctx, off, n := context.Background(), int64(in.Offset), int64(in.Length)
	keepSize := in.Mode&unix.FALLOC_FL_KEEP_SIZE != 0
	var err error
	switch in.Mode &^ unix.FALLOC_FL_KEEP_SIZE {
	case 0:
		err = h.Allocate(ctx, off, n, keepSize)
	case unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE:
		err = h.Zero(ctx, off, n, keepSize)
	default:
		return fuse.ENOTSUP
	}
	return fs.status("fallocate", in.NodeId, "", err)
}

// Lseek is lseek(2) with SEEK_DATA or SEEK_HOLE. Before data is said to begin further
// on, the kernel is made to write what mappings have changed there: it does not by
// itself, and who copies a file would leave that out.
func (fs *fileSystem) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := fs.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	ctx, from := context.Background(), int64(in.Offset)
	off, err := h.Seek(ctx, from, in.Whence == unix.SEEK_HOLE)
	if in.Whence == unix.SEEK_DATA && (errors.Is(err, volume.ErrNoData) || err == nil && off > from) {
		fs.writeBack(in.NodeId, from, max(off-from, 0))
		off, err = h.Seek(ctx, from, false)
	}
	if err != nil {
		return fs.fail("lseek", in.NodeId, "", err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// writeBack has the kernel write the pages of [off, off+n) that mappings have
// changed, or all from off on if n is 0, and forget them. It returns when they are
// written.
func (fs *fileSystem) writeBack(ino uint64, off, n int64) {
	if fs.server != nil {
		fs.server.InodeNotify(ino, off, n) // fails if the kernel has nothing of the inode
	}
}

// How long a request waits at most for pages to be dropped that it may itself hold in the
// kernel until it is answered. Then they are dropped after.
const (
	// What is waited for is that whoever reads these pages is answered. A page that the
	// write itself has locked was not read before, unless the kernel has dropped it since
	// for want of memory.
	maxUnpageWritten = 250 * time.Millisecond
	// A truncation keeps pages that a mapping has changed from being written.
	maxUnpageCut = 10 * time.Millisecond
)

// unpage is writeBack for a request that must not wait for it longer.
func (fs *fileSystem) unpage(ino uint64, off, n int64, longest time.Duration) (dropped bool) {
	done := make(chan struct{})
	fs.coherent.done.Go(func() {
		defer close(done)
		fs.writeBack(ino, off, n)
	})
	late := time.NewTimer(longest)
	defer late.Stop()
	select {
	case <-done:
		return true
	case <-late.C:
		return false
	}
}

// maxCopy is how many bytes one COPY_FILE_RANGE may answer for.
const maxCopy = 1 << 31

// CopyFileRange is copy_file_range(2) within the mount.
func (fs *fileSystem) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from, to := fs.handles.get(in.FhIn), fs.handles.get(in.FhOut)
	if from == nil || to == nil {
		return 0, fuse.EBADF
	}
	n, err := to.CopyRange(context.Background(), int64(in.OffOut), from, int64(in.OffIn), int64(min(in.Len, maxCopy)))
	if err != nil {
		return 0, fs.fail("copy_file_range", in.NodeId, "", err)
	}
	return uint32(n), fuse.OK
}
