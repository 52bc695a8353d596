//go:build linux

package mount

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/volume"
)

// What of operations on ranges the rules for any file system do not say.

func TestCopiesAreSharedAndHaveOneCID(t *testing.T) {
	dir := newMount(t)
	content := bytes.Repeat([]byte("0123456789abcdef"), 300_000)
	ok(t, os.WriteFile(filepath.Join(dir, "from"), content, 0o644))
	from, err := os.Open(filepath.Join(dir, "from"))
	ok(t, err)
	defer from.Close()
	to, err := os.Create(filepath.Join(dir, "to"))
	ok(t, err)
	n, err := unix.CopyFileRange(int(from.Fd()), nil, int(to.Fd()), nil, len(content)+5, 0)
	if err != nil || n != len(content) {
		t.Fatalf("copied %d bytes of %d, %v", n, len(content), err)
	}
	ok(t, to.Close())
	var cids [2]string
	for i, name := range []string{"from", "to"} {
		p := make([]byte, 100)
		n, err := unix.Getxattr(filepath.Join(dir, name), "user.cairn.cid", p)
		ok(t, err)
		cids[i] = string(p[:n])
	}
	if cids[0] != cids[1] {
		t.Errorf("CIDs %v", cids)
	}
	got, err := os.ReadFile(filepath.Join(dir, "to"))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("read %d bytes, %v", len(got), err)
	}
}

func TestHolesTakeNoSpace(t *testing.T) {
	dir := newMount(t)
	path := filepath.Join(dir, "file")
	f, err := os.Create(path)
	ok(t, err)
	ok(t, f.Truncate(1<<40))
	_, err = f.WriteAt(bytes.Repeat([]byte("x"), 1<<20), 1<<39)
	ok(t, err)
	ok(t, unix.Fallocate(int(f.Fd()), 0, 0, 1<<37))
	ok(t, f.Close())
	st := stat(t, path)
	if st.Size != 1<<40 || st.Blocks*512 < 1<<20 || st.Blocks*512 > 3<<20 {
		t.Errorf("size %d, %d blocks", st.Size, st.Blocks)
	}
	if err := unix.Fallocate(openFile(t, path), unix.FALLOC_FL_KEEP_SIZE, 0, 1<<39); err != unix.ENOSPC {
		t.Errorf("allocating more than is free: %v", err)
	}
}

func TestDataOfAMappingThatIsNotWrittenYetIsNoHole(t *testing.T) {
	path := filepath.Join(newMount(t), "file")
	write(t, path, "")
	ok(t, os.Truncate(path, 4*dirtyAt))
	fd := openFile(t, path)
	_, finish := startChild(t, "dirty", path)
	if off, err := unix.Seek(fd, 0, unix.SEEK_DATA); err != nil || off > dirtyAt || off < dirtyAt-1<<20 {
		t.Errorf("data at %d, %v; want %d", off, err, dirtyAt)
	}
	if off, err := unix.Seek(fd, 3*dirtyAt, unix.SEEK_DATA); err != unix.ENXIO {
		t.Errorf("behind it there is data at %d, %v", off, err)
	}
	ok(t, finish())
}

// dirtyAt is where the child changes a mapping.
const dirtyAt = 4 << 20

// holdDirty is that child.
func holdDirty(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := unix.Mmap(int(f.Fd()), 0, 2*dirtyAt, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	p[dirtyAt] = 'x'
	ready()
	untilParentIsDone()
	return unix.Munmap(p)
}

func openFile(t *testing.T, path string) int {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	ok(t, err)
	t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}

func TestReadsSetTimesOfAccessIfAskedTo(t *testing.T) {
	for _, relatime := range []bool{false, true} {
		vol, _ := openVolume(t, vfs.NewMem(), "node")
		dir := mountVolume(t, vol, Options{Relatime: relatime}).Mountpoint()
		path := filepath.Join(dir, "file")
		write(t, path, "content")
		ok(t, os.Chtimes(path, time.Unix(1000, 0), time.Unix(2000, 0)))
		wantContent(t, path, "content")
		if got := stat(t, path).Atim.Sec != 1000; got != relatime {
			t.Errorf("relatime %v: a read sets the time: %v", relatime, got)
		}
	}
}

func TestReadsOfAMountThatIsReadOnlySetNoTimes(t *testing.T) {
	vol, _ := openVolume(t, vfs.NewMem(), "node")
	_, h, err := vol.Create(t.Context(), namespace.RootIno, "file", 0o644, unix.O_RDWR, volume.Caller{})
	ok(t, err)
	_, err = h.Write(t.Context(), []byte("content"), 0)
	ok(t, err)
	h.Release()
	_, err = vol.SetAttr(t.Context(), h.Ino(), volume.SetAttr{Valid: volume.SetAtime, Atime: 1e9})
	ok(t, err)
	path := filepath.Join(mountVolume(t, vol, Options{Relatime: true, ReadOnly: true}).Mountpoint(), "file")
	wantContent(t, path, "content")
	if a, err := vol.GetAttr(t.Context(), h.Ino()); err != nil || a.Atime != 1e9 {
		t.Errorf("accessed at %d, %v", a.Atime, err)
	}
}

// A damaged block costs the reads of that range, each of which says what file it
// was.
func TestDamageIsToldWithThePathAndOthersGoOn(t *testing.T) {
	var log bytes.Buffer
	fs := newKernel(t).fileSystem
	fs.log = slog.New(slog.NewTextHandler(&log, nil))
	ctx, root := t.Context(), header(1)
	d, err := fs.vol.Mkdir(ctx, namespace.RootIno, "dir", 0o755, caller(&root, 0))
	ok(t, err)
	f, err := fs.vol.Mknod(ctx, d.Ino, "my file", 0o644, 0, caller(&root, 0))
	ok(t, err)
	fs.fail("read", uint64(f.Ino), "", os.ErrInvalid)
	if line := log.String(); !strings.Contains(line, `path="/dir/my file"`) {
		t.Errorf("logged %q", line)
	}
	log.Reset()
	fs.fail("read", uint64(f.Ino), "", os.ErrInvalid)
	if line := log.String(); !strings.Contains(line, "inode=") || strings.Contains(line, "path=") {
		t.Errorf("logged %q at once after the other", line)
	}
}
