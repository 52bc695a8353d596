//go:build linux

package mount

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Tests that play the kernel: they call the methods that go-fuse calls, without
// a mount, and so can ask what no system call would.

type kernel struct {
	t testing.TB
	*fileSystem
}

func newKernel(t testing.TB) kernel {
	t.Helper()
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	o := Options{Now: func() time.Time { return time.Unix(1_700_000_000, 42) }}
	o.setDefaults()
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	return kernel{t, newFileSystem(vol, o)}
}

func header(node uint64) fuse.InHeader {
	return fuse.InHeader{NodeId: node, Caller: fuse.Caller{Owner: fuse.Owner{Uid: 1000, Gid: 1000}, Pid: 1}}
}

func (k kernel) want(status, want fuse.Status) {
	k.t.Helper()
	if status != want {
		k.t.Fatalf("status %v, want %v", status, want)
	}
}

// create makes a file in the root directory and returns its node and handle.
func (k kernel) create(name string, mode uint32) (node, fh uint64) {
	k.t.Helper()
	var out fuse.CreateOut
	in := fuse.CreateIn{InHeader: header(1), Flags: syscall.O_RDWR | syscall.O_CREAT, Mode: syscall.S_IFREG | mode}
	k.want(k.Create(nil, &in, name, &out), fuse.OK)
	return out.NodeId, out.Fh
}

func (k kernel) attr(node uint64) fuse.Attr {
	k.t.Helper()
	var out fuse.AttrOut
	k.want(k.GetAttr(nil, &fuse.GetAttrIn{InHeader: header(node)}, &out), fuse.OK)
	return out.Attr
}

func TestRootIsNodeOne(t *testing.T) {
	k := newKernel(t)
	if a := k.attr(1); a.Mode&syscall.S_IFMT != syscall.S_IFDIR || a.Ino != 1 {
		t.Fatalf("root: %+v", a)
	}
}

func TestNodeIDIsTheInodeAndGenerationPersists(t *testing.T) {
	k := newKernel(t)
	node, _ := k.create("file", 0o644)
	var out, dot, up fuse.EntryOut
	h := header(1)
	k.want(k.Lookup(nil, &h, "file", &out), fuse.OK)
	if out.NodeId != node || out.Ino != node || out.Generation == 0 {
		t.Fatalf("lookup: %+v", out)
	}
	h = header(node)
	k.want(k.Lookup(nil, &h, ".", &dot), fuse.OK)
	if dot.NodeId != node || dot.Generation != out.Generation {
		t.Fatalf("lookup of .: %+v", dot)
	}
	h = header(1)
	k.want(k.Lookup(nil, &h, "..", &up), fuse.OK)
	if up.NodeId != 1 {
		t.Fatalf("lookup of ..: %+v", up)
	}
}

func TestAbsentNamesAreAnswersThatLast(t *testing.T) {
	k := newKernel(t)
	var out fuse.EntryOut
	h := header(1)
	k.want(k.Lookup(nil, &h, "none", &out), fuse.OK)
	if out.NodeId != 0 || out.EntryTimeout() < time.Minute {
		t.Fatalf("lookup: %+v", out)
	}
	k.want(k.Lookup(nil, &h, strings.Repeat("n", 256), &out), fuse.Status(syscall.ENAMETOOLONG))
}

func TestCallerOwnsWhatHeCreates(t *testing.T) {
	k := newKernel(t)
	in := fuse.MkdirIn{InHeader: header(1), Mode: 0o777, Umask: 0o022} // the kernel leaves the umask to us
	var out fuse.EntryOut
	k.want(k.Mkdir(nil, &in, "dir", &out), fuse.OK)
	if out.Mode != syscall.S_IFDIR|0o755 || out.Uid != 1000 || out.Gid != 1000 {
		t.Fatalf("mkdir: %+v", out)
	}
	node, _ := k.create("file", 0o666)
	if a := k.attr(node); a.Mode != syscall.S_IFREG|0o666 || a.Uid != 1000 {
		t.Fatalf("create: %+v", a)
	}
}

func TestCreateOfWhatExistsSendsTheKernelToLookAgain(t *testing.T) {
	k := newKernel(t)
	k.create("file", 0o600)
	var out fuse.CreateOut
	in := fuse.CreateIn{InHeader: header(1), Flags: syscall.O_RDWR | syscall.O_CREAT, Mode: syscall.S_IFREG | 0o644}
	k.want(k.Create(nil, &in, "file", &out), fuse.Status(syscall.ESTALE))
	in.Flags |= syscall.O_EXCL
	k.want(k.Create(nil, &in, "file", &out), fuse.Status(syscall.EEXIST))
}

func TestUnknownHandlesAreRefused(t *testing.T) {
	k := newKernel(t)
	node, fh := k.create("file", 0o644)
	k.Release(nil, &fuse.ReleaseIn{InHeader: header(node), Fh: fh})
	k.Release(nil, &fuse.ReleaseIn{InHeader: header(node), Fh: fh})
	_, status := k.Read(nil, &fuse.ReadIn{InHeader: header(node), Fh: fh}, make([]byte, 10))
	k.want(status, fuse.EBADF)
	_, status = k.Write(nil, &fuse.WriteIn{InHeader: header(node), Fh: fh}, make([]byte, 10))
	k.want(status, fuse.EBADF)
	k.want(k.Flush(nil, &fuse.FlushIn{InHeader: header(node), Fh: fh}), fuse.EBADF)
	k.want(k.Fsync(nil, &fuse.FsyncIn{InHeader: header(node), Fh: 1 << 40}), fuse.EBADF)
}

// Also closing a file that was only read ends locks.
func TestEveryCloseIsHeardOf(t *testing.T) {
	k := newKernel(t)
	node, _ := k.create("file", 0o644)
	for _, flags := range []uint32{syscall.O_RDONLY, syscall.O_WRONLY, syscall.O_RDWR} {
		var out fuse.OpenOut
		k.want(k.Open(nil, &fuse.OpenIn{InHeader: header(node), Flags: flags}, &out), fuse.OK)
		if out.OpenFlags != fuse.FOPEN_KEEP_CACHE {
			t.Errorf("open with flags %d answers %#x", flags, out.OpenFlags)
		}
	}
}

func TestWrittenBufferIsNotKept(t *testing.T) {
	k := newKernel(t)
	node, fh := k.create("file", 0o644)
	buf := []byte("right")
	_, status := k.Write(nil, &fuse.WriteIn{InHeader: header(node), Fh: fh}, buf)
	k.want(status, fuse.OK)
	copy(buf, "wrong")
	value := []byte("right")
	in := fuse.SetXAttrIn{InHeader: header(node)}
	k.want(k.SetXAttr(nil, &in, "user.x", value), fuse.OK)
	copy(value, "wrong")

	res, status := k.Read(nil, &fuse.ReadIn{InHeader: header(node), Fh: fh}, make([]byte, 100))
	k.want(status, fuse.OK)
	if got, _ := res.Bytes(nil); string(got) != "right" {
		t.Errorf("read %q", got)
	}
	h, dest := header(node), make([]byte, 5)
	_, status = k.GetXAttr(nil, &h, "user.x", dest)
	k.want(status, fuse.OK)
	if string(dest) != "right" {
		t.Errorf("attribute is %q", dest)
	}
}

func TestPagesOfAMappingGoWhereTheyBelong(t *testing.T) {
	k := newKernel(t)
	node, fh := k.create("file", 0o644)
	_, status := k.Write(nil, &fuse.WriteIn{InHeader: header(node), Fh: fh}, []byte("0123456789"))
	k.want(status, fuse.OK)
	var open fuse.OpenOut
	k.want(k.Open(nil, &fuse.OpenIn{InHeader: header(node), Flags: syscall.O_RDWR | syscall.O_APPEND}, &open), fuse.OK)
	write := fuse.WriteIn{InHeader: header(node), Fh: open.Fh, Offset: 2, WriteFlags: fuse.WRITE_CACHE}
	_, status = k.Write(nil, &write, []byte("ab"))
	k.want(status, fuse.OK)
	write = fuse.WriteIn{InHeader: header(node), Fh: open.Fh, Offset: 2, Flags: syscall.O_RDWR | syscall.O_APPEND}
	_, status = k.Write(nil, &write, []byte("end"))
	k.want(status, fuse.OK)
	res, status := k.Read(nil, &fuse.ReadIn{InHeader: header(node), Fh: fh}, make([]byte, 100))
	k.want(status, fuse.OK)
	if got, _ := res.Bytes(nil); string(got) != "01ab456789end" {
		t.Errorf("file holds %q", got)
	}
}

// The kernel may write pages of a mapping back while a truncation is carried out
// (open(2) with O_TRUNC), which it learns of only from the reply.
func TestPagesOfAMappingDoNotMakeAFileLonger(t *testing.T) {
	k := newKernel(t)
	node, fh := k.create("file", 0o644)
	_, status := k.Write(nil, &fuse.WriteIn{InHeader: header(node), Fh: fh}, []byte("0123456789"))
	k.want(status, fuse.OK)
	for _, size := range []uint64{6, 2, 0} {
		in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: header(node), Valid: fuse.FATTR_SIZE, Size: size}}
		k.want(k.SetAttr(nil, &in, new(fuse.AttrOut)), fuse.OK)
		pages := fuse.WriteIn{InHeader: header(node), Fh: fh, Offset: 4, WriteFlags: fuse.WRITE_CACHE}
		n, status := k.Write(nil, &pages, []byte("abcdef"))
		k.want(status, fuse.OK)
		if n != 6 { // else the kernel reports an error to the next fsync
			t.Errorf("%d bytes are accepted", n)
		}
		res, status := k.Read(nil, &fuse.ReadIn{InHeader: header(node), Fh: fh}, make([]byte, 100))
		k.want(status, fuse.OK)
		if got, _ := res.Bytes(nil); string(got) != "0123ab"[:size] {
			t.Errorf("of a file of %d bytes, %q is left", size, got)
		}
	}
}

func TestAttributeSizeIsProbedFirst(t *testing.T) {
	k := newKernel(t)
	node, _ := k.create("file", 0o644)
	h := header(node)
	in := fuse.SetXAttrIn{InHeader: h}
	k.want(k.SetXAttr(nil, &in, "user.a", []byte("12345")), fuse.OK)
	k.want(k.SetXAttr(nil, &in, "user.empty", nil), fuse.OK)
	in.Flags = 1 // XATTR_CREATE
	k.want(k.SetXAttr(nil, &in, "user.a", nil), fuse.Status(syscall.EEXIST))
	in.Flags = 2 // XATTR_REPLACE
	k.want(k.SetXAttr(nil, &in, "user.none", nil), fuse.ENODATA)

	type probe func(dest []byte) (uint32, fuse.Status)
	get := func(name string) probe {
		return func(dest []byte) (uint32, fuse.Status) { return k.GetXAttr(nil, &h, name, dest) }
	}
	list := func(dest []byte) (uint32, fuse.Status) { return k.ListXAttr(nil, &h, dest) }
	names := "user.a\x00user.empty\x00"
	for what, c := range map[string]struct {
		probe probe
		want  string
	}{"value": {get("user.a"), "12345"}, "empty value": {get("user.empty"), ""}, "names": {list, names}} {
		size, status := c.probe(nil)
		if status != fuse.OK || int(size) != len(c.want) {
			t.Errorf("%s: size %d, %v", what, size, status)
		}
		for _, room := range []int{len(c.want), len(c.want) + 100} {
			dest := make([]byte, room)
			size, status := c.probe(dest)
			if status != fuse.OK || string(dest[:size]) != c.want {
				t.Errorf("%s: %q, %v", what, dest[:size], status)
			}
		}
		if len(c.want) > 1 {
			if _, status := c.probe(make([]byte, len(c.want)-1)); status != fuse.ERANGE {
				t.Errorf("%s: too small a buffer is %v", what, status)
			}
		}
	}
	_, status := k.GetXAttr(nil, &h, "user.none", nil)
	k.want(status, fuse.ENODATA)
	k.want(k.RemoveXAttr(nil, &h, "user.a"), fuse.OK)
	k.want(k.RemoveXAttr(nil, &h, "user.a"), fuse.ENODATA)
}

func TestAttributesThatNobodyObeysAreRefusedNotIgnored(t *testing.T) {
	k := newKernel(t)
	node, _ := k.create("file", 0o644)
	h := header(node)
	in := fuse.SetXAttrIn{InHeader: h}
	for name, want := range map[string]fuse.Status{
		"system.nfs4_acl": fuse.ENOTSUP, "other.name": fuse.ENOTSUP, "user.": fuse.EINVAL,
	} {
		k.want(k.SetXAttr(nil, &in, name, []byte("x")), want)
		_, status := k.GetXAttr(nil, &h, name, nil)
		k.want(status, want)
		k.want(k.RemoveXAttr(nil, &h, name), want)
	}
	k.want(k.SetXAttr(nil, &in, "system.posix_acl_access", []byte("x")), fuse.EINVAL)
	k.want(k.SetXAttr(nil, &in, "user.cairn.cid", []byte("x")), fuse.EPERM)
	k.want(k.RemoveXAttr(nil, &h, "user.cairn.cid"), fuse.EPERM)
}

// page is what one READDIR of size bytes from offset on answers.
func (k kernel) page(plus bool, offset uint64, size int) []fuse.DirEntry {
	k.t.Helper()
	in := fuse.ReadIn{InHeader: header(1), Offset: offset, Size: uint32(size)}
	out := fuse.NewDirEntryList(make([]byte, size), offset)
	var entries []fuse.DirEntry
	var err error
	if plus {
		k.want(k.ReadDirPlus(nil, &in, out), fuse.OK)
		entries, _, err = fuse.ParseDirLookupEntries(out.Bytes())
	} else {
		k.want(k.ReadDir(nil, &in, out), fuse.OK)
		entries, err = fuse.ParseDirEntries(out.Bytes())
	}
	ok(k.t, err)
	return entries
}

func TestDirectoryIsReadFromAnyOffset(t *testing.T) {
	k := newKernel(t)
	const n = 100
	for i := range n {
		k.create(fmt.Sprintf("file-%d", i), 0o644)
	}
	for _, plus := range []bool{false, true} {
		var all []fuse.DirEntry
		for {
			offset := uint64(0)
			if len(all) > 0 {
				offset = all[len(all)-1].Off
			}
			page := k.page(plus, offset, 600)
			if len(page) == 0 {
				break
			}
			all = append(all, page...)
		}
		if len(all) != n+2 || all[0].Name != "." || all[1].Name != ".." || all[0].Off != 1 || all[1].Off != 2 {
			t.Fatalf("listed %d entries: %v …", len(all), all[:2])
		}
		for i := 0; i+1 < len(all); i++ {
			page := k.page(plus, all[i].Off, 600)
			if len(page) == 0 || page[0].Name != all[i+1].Name {
				t.Fatalf("after %q comes %v, want %q", all[i].Name, page, all[i+1].Name)
			}
		}
	}
}

func TestReadDirPlusCountsAsLookup(t *testing.T) {
	k := newKernel(t)
	node, _ := k.create("file", 0o644)
	k.Forget(node, 1)
	in := fuse.ReadIn{InHeader: header(1)}
	out := fuse.NewDirEntryList(make([]byte, 4096), 0)
	k.want(k.ReadDirPlus(nil, &in, out), fuse.OK)
	_, attrs, err := fuse.ParseDirLookupEntries(out.Bytes())
	ok(t, err)
	if len(attrs) != 3 || attrs[2].NodeId != node || attrs[2].Mode != syscall.S_IFREG|0o644 || attrs[2].AttrTimeout() == 0 {
		t.Fatalf("attributes: %+v", attrs)
	}
	if attrs[0].NodeId != 0 || attrs[1].NodeId != 0 {
		t.Fatal(". and .. count as lookups, which the kernel never takes back")
	}
	if !k.known.forget(node, 1) {
		t.Fatal("the listing did not count exactly once")
	}
}

func TestAttributeChangesAreTranslated(t *testing.T) {
	k := newKernel(t)
	node, fh := k.create("file", 0o6770)
	set := func(in fuse.SetAttrIn) fuse.Attr {
		t.Helper()
		in.InHeader = header(node)
		var out fuse.AttrOut
		k.want(k.SetAttr(nil, &in, &out), fuse.OK)
		if out.Attr != k.attr(node) {
			t.Fatal("the answer differs from the attributes")
		}
		return out.Attr
	}
	in := func(valid uint32) (in fuse.SetAttrIn) {
		in.Valid = valid
		in.Mode = syscall.S_IFREG | 0o6711
		in.Uid, in.Gid = 7, 8
		in.Size = 1234
		in.Fh = fh
		in.Atime, in.Atimensec, in.Mtime, in.Mtimensec = 100, 1, 200, 2
		return in
	}
	if a := set(in(fuse.FATTR_SIZE | fuse.FATTR_FH)); a.Size != 1234 || a.Mode != syscall.S_IFREG|0o6770 {
		t.Fatalf("truncated by root: %+v", a)
	}
	closed := in(fuse.FATTR_SIZE | fuse.FATTR_FH) // through which nobody may change anything
	closed.InHeader, closed.Fh = header(node), fh+1
	k.want(k.SetAttr(nil, &closed, new(fuse.AttrOut)), fuse.EBADF)
	if a := set(in(fuse.FATTR_ATIME)); a.Atime != 100 || a.Atimensec != 1 || a.Mtime == 200 {
		t.Fatalf("atime: %+v", a)
	}
	if a := set(in(fuse.FATTR_MTIME)); a.Mtime != 200 || a.Mtimensec != 2 {
		t.Fatalf("mtime: %+v", a)
	}
	if a := set(in(fuse.FATTR_MTIME | fuse.FATTR_MTIME_NOW)); a.Mtime != 1_700_000_000 || a.Mtimensec != 42 || a.Atime != 100 {
		t.Fatalf("mtime now: %+v", a)
	}
	if a := set(in(fuse.FATTR_SIZE | fuse.FATTR_KILL_SUIDGID)); a.Mode != syscall.S_IFREG|0o770 {
		t.Fatalf("truncated by another: mode %o", a.Mode)
	}
	if a := set(in(fuse.FATTR_MODE)); a.Mode != syscall.S_IFREG|0o6711 {
		t.Fatalf("chmod: mode %o", a.Mode)
	}
	if a := set(in(fuse.FATTR_UID)); a.Uid != 7 || a.Gid != 1000 || a.Mode != syscall.S_IFREG|0o711 {
		t.Fatalf("chown: %+v", a)
	}
	set(in(fuse.FATTR_MODE))
	write := fuse.WriteIn{InHeader: header(node), Fh: fh}
	_, status := k.Write(nil, &write, []byte("x"))
	k.want(status, fuse.OK)
	if a := k.attr(node); a.Mode != syscall.S_IFREG|0o6711 {
		t.Fatalf("written by root: mode %o", a.Mode)
	}
	write.WriteFlags = fuse.WRITE_KILL_SUIDGID
	_, status = k.Write(nil, &write, []byte("x"))
	k.want(status, fuse.OK)
	if a := k.attr(node); a.Mode != syscall.S_IFREG|0o711 {
		t.Fatalf("written by another: mode %o", a.Mode)
	}
	set(in(fuse.FATTR_MODE))
	open := fuse.OpenIn{InHeader: header(node), Flags: syscall.O_RDWR | syscall.O_TRUNC, Mode: fuse.OPEN_KILL_SUIDGID}
	var opened fuse.OpenOut
	k.want(k.Open(nil, &open, &opened), fuse.OK)
	if a := k.attr(node); a.Mode != syscall.S_IFREG|0o711 || a.Size != 0 {
		t.Fatalf("truncated by opening: %+v", a)
	}
}

func TestCutConnectionGivesEverythingBack(t *testing.T) {
	k := newKernel(t)
	_, fh := k.create("file", 0o644)
	k.OnUnmount()
	if k.handles.get(fh) != nil {
		t.Error("the file is still open")
	}
	k.known.drain(func(ino uint64) { t.Errorf("inode %d is still known", ino) })
}

func TestPanicIsLoggedWithItsStack(t *testing.T) {
	var log bytes.Buffer
	fs := &fileSystem{log: slog.New(slog.NewTextHandler(&log, nil))}
	func() {
		defer func() {
			if got := fs.panicked(recover()); got != fuse.EIO {
				t.Errorf("status %v", got)
			}
		}()
		fs.GetAttr(nil, nil, nil)
	}()
	if !strings.Contains(log.String(), "nil pointer") || !strings.Contains(log.String(), "filesystem.go") {
		t.Errorf("logged: %s", log.String())
	}
}
