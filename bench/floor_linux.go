package bench

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// floorFS answers as fast as a FUSE server can that a program can work in: it
// keeps names, attributes and sizes in memory. What is written is dropped, and
// reads give zeros, or what answerWith says. Nothing can be removed or renamed. What a real file system
// on the same library and with the same options takes longer for is its own
// work.
type floorFS struct {
	fuse.RawFileSystem // answers ENOSYS, after which the kernel stops asking
	zeros              [pieceSize]byte

	mu    sync.Mutex
	nodes []*floorNode // by node id; 0 is none

	reading sync.Mutex
	from    io.Reader // nil: zeros
}

type floorNode struct {
	attr    fuse.Attr
	names   map[string]*floorNode // of a directory
	entries []fuse.DirEntry       // the same in the order of creation
}

// newFloor returns an empty file system.
func newFloor() *floorFS {
	fs := &floorFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), nodes: []*floorNode{nil}}
	fs.node(syscall.S_IFDIR|0o755, fuse.Owner{Uid: uint32(os.Geteuid()), Gid: uint32(os.Getegid())})
	return fs
}

// node makes a node; the first is the root.
func (fs *floorFS) node(mode uint32, owner fuse.Owner) *floorNode {
	n := &floorNode{attr: fuse.Attr{Ino: uint64(len(fs.nodes)), Mode: mode, Nlink: 1, Owner: owner}}
	now := time.Now()
	n.attr.SetTimes(&now, &now, &now)
	if n.attr.IsDir() {
		n.attr.Nlink = 2
		n.names = make(map[string]*floorNode)
	}
	fs.nodes = append(fs.nodes, n)
	return n
}

// mount mounts fs on dir.
func (fs *floorFS) mount(dir string) (unmount func() error, err error) {
	return serveFloor(dir, fs)
}

// serveFloor mounts fs on dir with the options of package mount.
func serveFloor(dir string, fs fuse.RawFileSystem) (unmount func() error, err error) {
	root := os.Geteuid() == 0
	srv, err := fuse.NewServer(fs, dir, &fuse.MountOptions{
		FsName: "floor", Name: "cairn-bench",
		AllowOther:               root,
		Options:                  []string{"default_permissions"},
		DirectMountStrict:        root,
		MaxWrite:                 pieceSize,
		MaxReadAhead:             pieceSize,
		MaxBackground:            64,
		MaxInflightRequestBytes:  256 << 20,
		DisableSplice:            true,
		EnableSymlinkCaching:     true,
		ExplicitDataCacheControl: true,
		ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_READDIRPLUS_AUTO | fuse.CAP_NO_OPENDIR_SUPPORT |
			fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_EXPORT_SUPPORT,
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
	})
	if err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, err)
	}
	go srv.Serve()
	if err := srv.WaitMount(); err != nil {
		return nil, fmt.Errorf("mount on %s: %w", dir, errors.Join(err, srv.Unmount()))
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

const floorTimeout = time.Hour // of names and attributes in the kernel

func (n *floorNode) entry(out *fuse.EntryOut) {
	out.NodeId, out.Generation = n.attr.Ino, 1
	out.SetEntryTimeout(floorTimeout)
	out.SetAttrTimeout(floorTimeout)
	out.Attr = n.attr
}

func (fs *floorFS) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if n := fs.nodes[in.NodeId].names[name]; n != nil {
		n.entry(out)
	} else {
		out.SetEntryTimeout(floorTimeout)
	}
	return fuse.OK
}

func (fs *floorFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	out.SetTimeout(floorTimeout)
	out.Attr = fs.nodes[in.NodeId].attr
	return fuse.OK
}

func (fs *floorFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	a := &fs.nodes[in.NodeId].attr
	if mode, ok := in.GetMode(); ok {
		a.Mode = a.Mode&syscall.S_IFMT | mode&0o7777
	}
	if uid, ok := in.GetUID(); ok {
		a.Uid = uid
	}
	if gid, ok := in.GetGID(); ok {
		a.Gid = gid
	}
	if size, ok := in.GetSize(); ok {
		a.Size = size
	}
	if t, ok := in.GetATime(); ok {
		a.SetTimes(&t, nil, nil)
	}
	if t, ok := in.GetMTime(); ok {
		a.SetTimes(nil, &t, nil)
	}
	out.SetTimeout(floorTimeout)
	out.Attr = *a
	return fuse.OK
}

// add makes a node under a name.
func (fs *floorFS) add(parent *fuse.InHeader, name string, mode uint32, out *fuse.EntryOut) fuse.Status {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	dir := fs.nodes[parent.NodeId]
	if dir.names[name] != nil {
		return fuse.Status(syscall.EEXIST)
	}
	n := fs.node(mode, parent.Owner)
	dir.names[name] = n
	dir.entries = append(dir.entries, fuse.DirEntry{
		Name: name, Ino: n.attr.Ino, Mode: mode, Off: uint64(len(dir.entries) + 1),
	})
	if n.attr.IsDir() {
		dir.attr.Nlink++
	}
	n.entry(out)
	return fuse.OK
}

func (fs *floorFS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return fs.add(&in.InHeader, name, syscall.S_IFDIR|in.Mode, out)
}

func (fs *floorFS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	if in.Flags&syscall.O_ACCMODE == syscall.O_WRONLY {
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
	}
	return fs.add(&in.InHeader, name, syscall.S_IFREG|in.Mode, &out.EntryOut)
}

func (fs *floorFS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	if in.Flags&syscall.O_ACCMODE == syscall.O_RDONLY {
		out.OpenFlags |= fuse.FOPEN_NOFLUSH
	}
	if in.Flags&syscall.O_TRUNC != 0 {
		fs.mu.Lock()
		fs.nodes[in.NodeId].attr.Size = 0
		fs.mu.Unlock()
	}
	return fuse.OK
}

func (fs *floorFS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	a := &fs.nodes[in.NodeId].attr
	a.Size = max(a.Size, in.Offset+uint64(len(data)))
	return uint32(len(data)), fuse.OK
}

func (fs *floorFS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	fs.mu.Lock()
	size := fs.nodes[in.NodeId].attr.Size
	fs.mu.Unlock()
	n := min(uint64(len(buf)), uint64(len(fs.zeros)), size-min(size, in.Offset))
	fs.reading.Lock()
	defer fs.reading.Unlock()
	if fs.from == nil {
		return fuse.ReadResultData(fs.zeros[:n]), fuse.OK
	}
	if _, err := io.ReadFull(fs.from, buf[:n]); err != nil {
		return nil, fuse.EIO
	}
	return fuse.ReadResultData(buf[:n]), fuse.OK
}

// answerWith has reads give what comes from a reader, in whatever order they come.
func (fs *floorFS) answerWith(from io.Reader) {
	fs.reading.Lock()
	defer fs.reading.Unlock()
	fs.from = from
}

func (fs *floorFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	dir := fs.nodes[in.NodeId]
	for _, e := range dir.entries[min(in.Offset, uint64(len(dir.entries))):] {
		if !out.AddDirEntry(e) {
			break
		}
	}
	return fuse.OK
}

func (fs *floorFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	dir := fs.nodes[in.NodeId]
	for _, e := range dir.entries[min(in.Offset, uint64(len(dir.entries))):] {
		slot := out.AddDirLookupEntry(e)
		if slot == nil {
			break
		}
		fs.nodes[e.Ino].entry(slot)
	}
	return fuse.OK
}

// Flush and Fsync are answered, as a file system that keeps what it is given
// would: after ENOSYS the kernel would not ask again.

func (fs *floorFS) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

func (fs *floorFS) Fsync(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }
