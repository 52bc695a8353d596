//go:build linux

package mount

import (
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/volume"
)

// A mount and a directory of the system's disk are given the same random system
// calls and must answer the same: bytes, names, counts and errors. What the
// kernel caches of a mount takes part, and now and then the mount ends and
// begins anew.

var (
	seedFlag  = flag.Uint64("seed", 0, "replay this seed of the random tests only")
	seedsFlag = flag.Uint64("seeds", 4, "how many seeds the random tests run")
	stepsFlag = flag.Int("steps", 800/slowdown, "system calls for each seed of the random test")
)

// seeds returns the seeds to run.
func seeds() []uint64 {
	if *seedFlag != 0 {
		return []uint64{*seedFlag}
	}
	var list []uint64
	for s := range *seedsFlag {
		list = append(list, s+1)
	}
	return list
}

func TestRandomCallsAnswerAsOnDisk(t *testing.T) {
	for _, seed := range seeds() {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			w := &twins{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 0)), trees: [2]string{t.TempDir(), t.TempDir()}}
			w.vol, _ = openVolume(t, vfs.NewMem(), "node")
			w.server = mountVolume(t, w.vol, Options{Mountpoint: w.trees[0]})
			defer w.closeAll()
			for w.step = range *stepsFlag {
				w.call()
			}
			w.remount()
			w.same("everything", func(root string, _ int) string { return w.everything(root) })
		})
	}
}

// twins is the state of the test: two trees, the first on the mount, and files
// open in both.
type twins struct {
	t      *testing.T
	seed   uint64
	step   int
	rnd    *rand.Rand
	vol    *volume.Volume
	server *Server
	trees  [2]string
	open   [][2]int
	log    []string // the last calls
}

// same makes a call in both trees and compares the answers. which is the tree's
// number.
func (w *twins) same(what string, call func(root string, which int) string) {
	w.t.Helper()
	if len(w.log) == 40 {
		w.log = w.log[1:]
	}
	w.log = append(w.log, fmt.Sprintf("%d: %s", w.step, what))
	mount, disk := call(w.trees[0], 0), call(w.trees[1], 1)
	if mount != disk {
		w.t.Fatalf("%s\nmount: %.2000s\ndisk:  %.2000s\nreplay with: go test ./mount -run TestRandomCallsAnswerAsOnDisk -seed %d -steps %d",
			strings.Join(w.log, "\n"), mount, disk, w.seed, *stepsFlag)
	}
}

func (w *twins) path() string {
	parts := []string{"a", "b", "c", "d", "d/a", "d/b", "d/e", "d/e/a", "f", "f/a", "f/d", "f/d/a"}
	return parts[w.rnd.IntN(len(parts))]
}

// size returns small numbers most of the time.
func (w *twins) size() int { return w.rnd.IntN(1 << w.rnd.IntN(20)) }

func (w *twins) call() {
	switch n := w.rnd.IntN(100); {
	case n < 20:
		w.openFile()
	case n < 60 && len(w.open) > 0:
		w.useFile(w.open[w.rnd.IntN(len(w.open))])
	case n < 65 && len(w.open) > 0:
		i := w.rnd.IntN(len(w.open))
		fd := w.open[i]
		w.open = slices.Delete(w.open, i, i+1)
		w.same("close", func(_ string, which int) string { return fmt.Sprint(unix.Close(fd[which])) })
	case n < 85:
		w.changeNames()
	case n < 95:
		w.changeAttributes()
	case n < 96:
		w.remount()
	default:
		w.same("everything", func(root string, _ int) string { return w.everything(root) })
	}
}

func (w *twins) openFile() {
	if len(w.open) == 8 {
		return
	}
	flags := []int{unix.O_RDWR, unix.O_RDWR | unix.O_APPEND, unix.O_RDWR | unix.O_DSYNC}[w.rnd.IntN(3)]
	flags |= []int{0, unix.O_CREAT, unix.O_CREAT, unix.O_CREAT | unix.O_EXCL, unix.O_TRUNC, unix.O_CREAT | unix.O_TRUNC}[w.rnd.IntN(6)]
	path, fds := w.path(), [2]int{-1, -1}
	w.same(fmt.Sprintf("open %s flags %#x", path, flags), func(root string, which int) string {
		fd, err := unix.Open(filepath.Join(root, path), flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o644)
		fds[which] = fd
		return fmt.Sprint(err)
	})
	if fds[0] >= 0 {
		w.open = append(w.open, fds)
	}
}

func (w *twins) useFile(fd [2]int) {
	off, n := int64(w.size()), w.size()
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(w.step + i>>4)
	}
	switch w.rnd.IntN(9) {
	case 0, 1, 2:
		w.same(fmt.Sprintf("pwrite %d at %d", n, off), func(_ string, which int) string {
			n, err := unix.Pwrite(fd[which], p, off)
			return fmt.Sprint(n, err)
		})
	case 3, 4:
		w.same(fmt.Sprintf("pread %d at %d", n, off), func(_ string, which int) string {
			p := make([]byte, n)
			n, err := unix.Pread(fd[which], p, off)
			return fmt.Sprint(n, err, crc32.ChecksumIEEE(p[:max(n, 0)]))
		})
	case 5:
		w.same(fmt.Sprintf("ftruncate %d", off), func(_ string, which int) string {
			return fmt.Sprint(unix.Ftruncate(fd[which], off))
		})
	case 6:
		w.same("fsync", func(_ string, which int) string { return fmt.Sprint(unix.Fsync(fd[which])) })
	case 7:
		w.same("drop pages", func(_ string, which int) string {
			return fmt.Sprint(unix.Fadvise(fd[which], 0, 0, unix.FADV_DONTNEED))
		})
	case 8:
		w.same("fstat", func(_ string, which int) string {
			var st unix.Stat_t
			err := unix.Fstat(fd[which], &st)
			return fmt.Sprint(err, st.Mode, st.Size, st.Nlink)
		})
	}
}

func (w *twins) changeNames() {
	a, b := w.path(), w.path()
	both := func(name string, call func(a, b string) error) {
		w.same(fmt.Sprintf("%s %s %s", name, a, b), func(root string, _ int) string {
			return fmt.Sprint(call(filepath.Join(root, a), filepath.Join(root, b)))
		})
	}
	rename := func(flags uint) func(a, b string) error {
		return func(a, b string) error { return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, flags) }
	}
	switch w.rnd.IntN(10) {
	case 0, 1, 2:
		both("mkdir", func(a, _ string) error { return unix.Mkdir(a, 0o755) })
	case 3:
		both("rmdir", func(a, _ string) error { return unix.Rmdir(a) })
	case 4:
		both("unlink", func(a, _ string) error { return unix.Unlink(a) })
	case 5:
		both("rename", rename(0))
	case 6:
		both("rename noreplace", rename(unix.RENAME_NOREPLACE))
	case 7:
		both("exchange", rename(unix.RENAME_EXCHANGE))
	case 8:
		both("link", func(a, b string) error { return unix.Link(a, b) })
	case 9:
		both("symlink", func(a, _ string) error { return unix.Symlink("target of "+b, a) })
	}
}

func (w *twins) changeAttributes() {
	path, value := w.path(), make([]byte, w.rnd.IntN(100))
	name := "user." + string(rune('a'+w.rnd.IntN(3)))
	both := func(what string, call func(path string) error) {
		w.same(what+" "+path, func(root string, _ int) string { return fmt.Sprint(call(filepath.Join(root, path))) })
	}
	switch w.rnd.IntN(5) {
	case 0:
		mode := w.rnd.Uint32N(0o1000) | 0o700
		both(fmt.Sprintf("chmod %o", mode), func(path string) error { return unix.Chmod(path, mode) })
	case 1:
		size := int64(w.size())
		both(fmt.Sprintf("truncate %d", size), func(path string) error { return unix.Truncate(path, size) })
	case 2:
		ts := []unix.Timespec{{Sec: int64(w.step), Nsec: 1}, {Sec: int64(w.step), Nsec: 2}}
		both("utimens", func(path string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW)
		})
	case 3:
		flags := w.rnd.IntN(3)
		both(fmt.Sprintf("setxattr %s flags %d", name, flags), func(path string) error {
			return unix.Lsetxattr(path, name, value, flags)
		})
	case 4:
		both("removexattr "+name, func(path string) error { return unix.Lremovexattr(path, name) })
	}
}

// everything describes a tree, but for what file systems do their own way: the
// sizes of directories and inode numbers. Times are compared where they were set.
func (w *twins) everything(root string) string {
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s mode %o", path[len(root):], st.Mode)
		if st.Mtim.Sec < 1e6 {
			fmt.Fprintf(&b, " mtime %v", st.Mtim)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			fmt.Fprintf(&b, " size %d links %d", st.Size, st.Nlink)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			p, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " content %x", crc32.ChecksumIEEE(p))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " target %s", target)
		}
		for _, name := range []string{"user.a", "user.b", "user.c"} {
			p := make([]byte, 200)
			if n, err := unix.Lgetxattr(path, name, p); err == nil {
				fmt.Fprintf(&b, " %s=%d", name, n)
			}
		}
		b.WriteString("\n")
		return nil
	})
	return fmt.Sprint(err, "\n", b.String())
}

// remount closes all files and mounts the volume anew.
func (w *twins) remount() {
	w.closeAll()
	ok(w.t, w.server.Unmount())
	w.server = mountVolume(w.t, w.vol, Options{Mountpoint: w.trees[0]})
}

func (w *twins) closeAll() {
	for _, fd := range w.open {
		unix.Close(fd[0])
		unix.Close(fd[1])
	}
	w.open = nil
}
