//go:build linux

package mount

import (
	"context"
	"log/slog"
	"math"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/volume"
)

const (
	// cacheFor is how long the kernel may use names, absent names and
	// attributes without asking again. It changes its copies itself as it
	// changes the volume, so this bounds nothing but the harm of a mistake.
	// Of a shared volume see coherence.
	cacheFor = time.Hour
	// ioSize is what stat says is a good size for reads and writes, in
	// bytes; stdio makes its buffers of that size. A request costs the
	// processor as much as 20 KiB of copying.
	ioSize = 128 << 10
	// maxName is the longest name, in bytes, that can exist.
	maxName = namespace.MaxName
)

// fileSystem answers the kernel's requests: the methods of fuse.RawFileSystem.
// The requests that it does not answer come from the embedded default as
// ENOSYS, on which the kernel never asks again and does without: it checks ACCESS
// itself.
//
// Requests are not given up when the kernel says that the process which waits
// got a signal (the cancel channels, unused but by SetLkw). It says so for any
// signal: a timer, the exit of a child, in Go programs the scheduler's own. No
// program expects EINTR from files on disk, a write that was given up halfway
// could not answer truthfully, and nothing that is waited for here is further
// away than the disk. So requests run to their end, as on any local file system.
// Waiting for a lock is the exception, there as well.
type fileSystem struct {
	fuse.RawFileSystem

	vol      *volume.Volume
	server   notifier // the *fuse.Server, from Init on: see dropper
	now      func() time.Time
	log      *slog.Logger
	handles  handles
	known    lookups
	coherent *coherence
	searches searches
	uid, gid *uint32 // of every file, if set
	devices  bool    // may be created
	relatime bool    // reads are times of access

	// keepsDirs says that the kernel needs no handles of directories.
	keepsDirs bool
	// saysKillSetGID says that requests to set an attribute have flags.
	saysKillSetGID bool
}

func newFileSystem(vol *volume.Volume, o Options) *fileSystem {
	fs := &fileSystem{
		RawFileSystem: fuse.NewDefaultRawFileSystem(), vol: vol, now: o.Now, log: o.Logger,
		uid: o.UID, gid: o.GID, devices: o.Dev, relatime: o.Relatime && !o.ReadOnly,
	}
	fs.coherent = newCoherence(vol, &fs.known, o.Now)
	return fs
}

// String is the name of the file system in go-fuse's messages.
func (fs *fileSystem) String() string { return fsName }

// Init runs when the kernel has said what it can do, before the first request.
func (fs *fileSystem) Init(s *fuse.Server) {
	fs.server = dropper{s, fs.vol}
	able := s.KernelSettings().Flags64()
	fs.keepsDirs = able&fuse.CAP_NO_OPENDIR_SUPPORT != 0
	fs.saysKillSetGID = able&fuse.CAP_SETXATTR_EXT != 0
	fs.coherent.start(fs.server)
}

// OnUnmount runs after the last request. What the kernel did not give back by
// then, because the connection was cut, is given back here.
func (fs *fileSystem) OnUnmount() {
	fs.coherent.end()
	fs.handles.drain((*volume.Handle).Release)
	fs.known.drain(func(ino uint64) { fs.vol.Forget(namespace.Ino(ino)) })
}

// panicked makes a panic in a request an error of that request.
func (fs *fileSystem) panicked(cause any) fuse.Status {
	fs.log.Error("panic in a request", "panic", cause, "stack", string(debug.Stack()))
	return fuse.EIO
}

// caller says who asks; whatever he creates is his.
func caller(h *fuse.InHeader, umask uint32) volume.Caller {
	return volume.Caller{UID: h.Uid, GID: h.Gid, PID: h.Pid, Umask: umask & 0o777}
}

// asked is a question that is answered with an inode: who asks, for which name in
// which directory, which is empty if it is not for a name, and which was the last
// event (see coherence) before the volume was asked.
type asked struct {
	caller uint32
	parent uint64
	name   string
	since  uint64
}

func (fs *fileSystem) asked(h *fuse.InHeader, name string) asked {
	return asked{h.Pid, h.NodeId, name, fs.coherent.seq.Load()}
}

// entry answers q with an inode. From here on the kernel knows the inode, until
// Forget.
func (fs *fileSystem) entry(q asked, a *volume.Attr, out *fuse.EntryOut) {
	fs.agree(a)
	out.NodeId = uint64(a.Ino)
	out.Generation = a.Generation
	fs.fillAttr(a, &out.Attr)
	fs.known.add(uint64(a.Ino))
	entry, attr := cacheFor, cacheFor
	if fs.coherent.shared() {
		entry, attr = fs.coherent.handedOut(q.caller, q.since, q.parent, q.name, uint64(a.Ino))
	}
	out.SetEntryTimeout(entry)
	out.SetAttrTimeout(attr)
}

func (fs *fileSystem) fillAttr(a *volume.Attr, out *fuse.Attr) {
	out.Ino = uint64(a.Ino)
	out.Size = uint64(a.Size)
	out.Blocks = uint64(a.Blocks)
	out.Atime, out.Atimensec = splitTime(a.Atime)
	out.Mtime, out.Mtimensec = splitTime(a.Mtime)
	out.Ctime, out.Ctimensec = splitTime(a.Ctime)
	out.Mode = a.Mode
	out.Nlink = a.Nlink
	out.Uid, out.Gid = a.UID, a.GID
	if fs.uid != nil {
		out.Uid = *fs.uid
	}
	if fs.gid != nil {
		out.Gid = *fs.gid
	}
	out.Rdev = a.Rdev
	out.Blksize = ioSize
}

// splitTime turns nanoseconds since 1970 into seconds, which the kernel reads
// as a signed number, and nanoseconds, which are not negative.
func splitTime(ns int64) (uint64, uint32) {
	const second = int64(time.Second)
	sec, rest := ns/second, ns%second
	if rest < 0 {
		sec, rest = sec-1, rest+second
	}
	return uint64(sec), uint32(rest)
}

// joinTime is the inverse of splitTime. Times that nanoseconds in 64 bits cannot
// express, before 1678 or after 2262, become the nearest that they can.
func joinTime(sec uint64, nsec uint32) int64 {
	const second = int64(time.Second)
	s := int64(sec)
	switch {
	case s >= math.MaxInt64/second:
		return math.MaxInt64
	case s <= math.MinInt64/second:
		return math.MinInt64
	}
	return s*second + int64(nsec)
}

// Lookup finds a name in a directory. That a name does not exist is an answer
// like any other, which the kernel keeps unless other nodes may create it.
func (fs *fileSystem) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if len(name) > maxName {
		return fuse.Status(syscall.ENAMETOOLONG)
	}
	q := fs.asked(h, name)
	a, err := fs.vol.Lookup(context.Background(), namespace.Ino(h.NodeId), name)
	if err != nil {
		if errnoOf(err) == syscall.ENOENT && !fs.coherent.shared() {
			out.SetEntryTimeout(cacheFor)
			return fuse.OK
		}
		return fs.fail("lookup", h.NodeId, name, err)
	}
	if name == "." || name == ".." { // of a file handle: nothing was found by a name
		q.name = ""
	}
	fs.entry(q, &a, out)
	return fuse.OK
}

// Forget takes back what Lookup and others answered.
func (fs *fileSystem) Forget(ino, n uint64) {
	if fs.known.forget(ino, n) {
		fs.vol.Forget(namespace.Ino(ino))
		fs.coherent.forget(ino)
	}
}

// accessed notes that ino is being read. What the kernel reads from its own cache
// it does not tell.
func (fs *fileSystem) accessed(ino uint64) {
	if fs.relatime {
		fs.vol.Accessed(namespace.Ino(ino))
	}
}

// GetAttr is stat(2).
func (fs *fileSystem) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	a, err := fs.vol.GetAttr(context.Background(), namespace.Ino(in.NodeId))
	fs.agree(&a)
	return fs.attr("getattr", in.NodeId, &a, err, out)
}

func (fs *fileSystem) attr(op string, ino uint64, a *volume.Attr, err error, out *fuse.AttrOut) fuse.Status {
	if err != nil {
		return fs.fail(op, ino, "", err)
	}
	if out.SetTimeout(cacheFor); fs.coherent.shared() {
		out.SetTimeout(sharedFor)
	}
	fs.fillAttr(a, &out.Attr)
	return fuse.OK
}

// agree has the kernel drop the pages of an open file that do not agree with the
// attributes which it is about to be told: with a size that is new to it, it would read
// zeros where another node has written. Of a SETATTR that sets the size it is not to be
// called: the kernel writes no page until that is answered.
func (fs *fileSystem) agree(a *volume.Attr) {
	if a.Outdated != 0 {
		fs.dropPages(a.Ino, a.Outdated)
	}
}

// dropPages has the kernel drop the pages of an inode that are older than a version.
func (fs *fileSystem) dropPages(ino namespace.Ino, version uint64) {
	fs.writeBack(uint64(ino), 0, 0)
	fs.vol.Dropped(ino, version)
}

// SetAttr is chmod, chown, truncate and utimens. The kernel takes the answer even if it was
// told since that another node has changed the inode, so while there are others it is to
// ask again.
func (fs *fileSystem) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	set := func(ctx context.Context, s volume.SetAttr) (volume.Attr, error) {
		return fs.vol.SetAttr(ctx, namespace.Ino(in.NodeId), s)
	}
	if in.Valid&fuse.FATTR_FH != 0 { // ftruncate(2)
		h := fs.handles.get(in.Fh)
		if h == nil {
			return fuse.EBADF
		}
		set = h.SetAttr
	}
	a, err := set(context.Background(), fs.change(in))
	if in.Valid&fuse.FATTR_SIZE == 0 {
		fs.agree(&a)
	} else if a.Outdated != 0 && fs.unpage(in.NodeId, 0, 0, maxUnpageCut) {
		// By itself the kernel drops nothing if the file has the size that it knew, and
		// what others had appended would be there again when it grows.
		fs.vol.Dropped(a.Ino, a.Outdated)
	}
	status := fs.attr("setattr", in.NodeId, &a, err, out)
	if fs.coherent.shared() {
		out.SetTimeout(0)
	}
	return status
}

// change translates what a SETATTR asks for. Changing the owner takes the
// setuid and setgid bits away whoever does it; the kernel says when truncating
// does, and leaves both to us (CAP_HANDLE_KILLPRIV_V2).
func (fs *fileSystem) change(in *fuse.SetAttrIn) volume.SetAttr {
	var s volume.SetAttr
	for _, m := range [...]struct {
		from uint32
		to   volume.SetAttrMask
	}{
		{fuse.FATTR_MODE, volume.SetMode}, {fuse.FATTR_UID, volume.SetUID}, {fuse.FATTR_GID, volume.SetGID},
		{fuse.FATTR_SIZE, volume.SetSize}, {fuse.FATTR_ATIME, volume.SetAtime}, {fuse.FATTR_MTIME, volume.SetMtime},
	} {
		if in.Valid&m.from != 0 {
			s.Valid |= m.to
		}
	}
	s.Mode = in.Mode & 0o7777
	s.UID, s.GID = in.Uid, in.Gid
	s.Size = int64(min(in.Size, math.MaxInt64))
	s.Atime = joinTime(in.Atime, in.Atimensec)
	s.Mtime = joinTime(in.Mtime, in.Mtimensec)
	if in.Valid&(fuse.FATTR_ATIME_NOW|fuse.FATTR_MTIME_NOW) != 0 {
		// The kernel has filled in its own idea of now, which is up to a
		// tick old: older, maybe, than the time of a write before.
		now := fs.now().UnixNano()
		if in.Valid&fuse.FATTR_ATIME_NOW != 0 {
			s.Atime = now
		}
		if in.Valid&fuse.FATTR_MTIME_NOW != 0 {
			s.Mtime = now
		}
	}
	// A chown that keeps user and group names no attribute, and does all else.
	s.KillPriv = in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID|fuse.FATTR_KILL_SUIDGID) != 0 || in.Valid == 0
	return s
}

// StatFs is statfs(2).
func (fs *fileSystem) StatFs(_ <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	st, err := fs.vol.StatFS(context.Background())
	if err != nil {
		return fs.fail("statfs", h.NodeId, "", err)
	}
	*out = fuse.StatfsOut{
		Blocks: st.Blocks, Bfree: st.Free, Bavail: st.Avail,
		Files: st.Files, Ffree: st.FreeFiles,
		Bsize: st.BlockSize, Frsize: st.BlockSize, NameLen: maxName,
	}
	return fuse.OK
}
