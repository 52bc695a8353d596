package bench

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The node ids of a null file system. Created files have those above.
const (
	nullRoot = fuse.FUSE_ROOT_ID
	nullData = nullRoot + 1
)

// nullFS answers as fast as a FUSE server can: it keeps nothing but the size of
// one file. Whatever is written is forgotten, whatever is read is zeros, and any
// other file that is created exists for the kernel only. What a real file system
// on the same library takes longer for is its own work.
type nullFS struct {
	fuse.RawFileSystem // answers ENOSYS, after which the kernel stops asking
	created            atomic.Uint64
	size               atomic.Uint64 // of the file nullName
	zeros              [pieceSize]byte
	owner              fuse.Owner
}

func newNullFS() *nullFS {
	return &nullFS{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		owner:         fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())},
	}
}

// mountNull mounts a null file system on dir, which it creates.
func mountNull(dir string) (unmount func() error, err error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	return serveNull(dir, newNullFS())
}

// serveNull mounts fs on dir with the options of package mount.
func serveNull(dir string, fs fuse.RawFileSystem) (unmount func() error, err error) {
	root := os.Geteuid() == 0
	srv, err := fuse.NewServer(fs, dir, &fuse.MountOptions{
		FsName: "null", Name: "cairn-bench",
		Options:                  []string{"default_permissions"},
		DirectMountStrict:        root,
		MaxWrite:                 pieceSize,
		MaxReadAhead:             pieceSize,
		MaxBackground:            64,
		DisableSplice:            true,
		ExplicitDataCacheControl: true,
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_READDIRPLUS_AUTO |
			fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_HANDLE_KILLPRIV_V2,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
	})
	if err != nil {
		return nil, fmt.Errorf("mount a null file system: %w", err)
	}
	go srv.Serve()
	if err := srv.WaitMount(); err != nil {
		return nil, fmt.Errorf("mount a null file system: %w", err)
	}
	raiseReadAhead(dir)
	return srv.Unmount, nil
}

// raiseReadAhead does what package mount does for its mounts, if it may.
func raiseReadAhead(dir string) {
	var st unix.Stat_t
	if unix.Stat(dir, &st) == nil {
		dev := uint64(st.Dev)
		name := fmt.Sprintf("/sys/class/bdi/%d:%d/read_ahead_kb", unix.Major(dev), unix.Minor(dev))
		_ = os.WriteFile(name, []byte("1024"), 0)
	}
}

const nullTimeout = time.Hour // of names and attributes in the kernel

func (fs *nullFS) attr(node uint64, out *fuse.Attr) {
	*out = fuse.Attr{Ino: node, Mode: syscall.S_IFREG | 0o644, Nlink: 1, Owner: fs.owner}
	switch node {
	case nullRoot:
		out.Mode = syscall.S_IFDIR | 0o755
	case nullData:
		out.Size = fs.size.Load()
	}
}

func (fs *nullFS) entry(node uint64, out *fuse.EntryOut) {
	out.NodeId, out.Generation = node, 1
	out.SetEntryTimeout(nullTimeout)
	out.SetAttrTimeout(nullTimeout)
	fs.attr(node, &out.Attr)
}

func (fs *nullFS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if in.NodeId != nullRoot || name != nullName {
		return fuse.ENOENT
	}
	fs.entry(nullData, out)
	return fuse.OK
}

func (fs *nullFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	out.SetTimeout(nullTimeout)
	fs.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (fs *nullFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if size, ok := in.GetSize(); ok && in.NodeId == nullData {
		fs.size.Store(size)
	}
	out.SetTimeout(nullTimeout)
	fs.attr(in.NodeId, &out.Attr)
	return fuse.OK
}

func (fs *nullFS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	node := uint64(nullData)
	if name != nullName {
		node += fs.created.Add(1)
	}
	fs.entry(node, &out.EntryOut)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (fs *nullFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	if in.NodeId == nullData && in.Flags&syscall.O_TRUNC != 0 {
		fs.size.Store(0)
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (fs *nullFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	if in.NodeId == nullData {
		for end := in.Offset + uint64(len(data)); ; {
			if old := fs.size.Load(); end <= old || fs.size.CompareAndSwap(old, end) {
				break
			}
		}
	}
	return uint32(len(data)), fuse.OK
}

func (fs *nullFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	size := fs.size.Load()
	if in.NodeId != nullData || in.Offset >= size {
		return fuse.ReadResultData(nil), fuse.OK
	}
	n := min(uint64(len(buf)), uint64(len(fs.zeros)), size-in.Offset)
	return fuse.ReadResultData(fs.zeros[:n]), fuse.OK
}

// Flush and Fsync are answered, as a file system that keeps what it is given
// would: after ENOSYS the kernel would not ask again.

func (fs *nullFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (fs *nullFS) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }
