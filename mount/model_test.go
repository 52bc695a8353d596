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
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// A mount and a directory of the system's disk are given the same random system
// calls and must answer the same: bytes, names, counts and errors. What the
// kernel caches of a mount takes part, and now and then the mount ends and
// begins anew, or the whole node does.
//
// The calls are in the files model_*_test.go.

var (
	seedFlag  = flag.Uint64("seed", 0, "replay this seed of the random tests only")
	seedsFlag = flag.Uint64("seeds", 4, "how many seeds the random tests run")
	stepsFlag = flag.Int("steps", 800/slowdown, "system calls for each seed of the random test of calls")
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
			w := newTwins(t, seed)
			store := vfs.NewMem()
			vol, closeVolume := openVolume(t, store, "node")
			server := mountVolume(t, vol, Options{Mountpoint: w.trees[0], Dev: true})
			w.anew = func() {
				ok(t, server.Unmount())
				if w.rnd.IntN(2) == 0 {
					closeVolume()
					vol, closeVolume = openVolume(t, store, "node")
				}
				server = mountVolume(t, vol, Options{Mountpoint: w.trees[0], Dev: true})
			}
			w.run()
		})
	}
}

// TestRandomCallsOnTwoDirectories tests the test: two directories of one file
// system do not differ.
func TestRandomCallsOnTwoDirectories(t *testing.T) {
	for _, seed := range seeds() {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { newTwins(t, seed).run() })
	}
}

// TestRandomCallsFindAnyDifference tests the test as well: after a while, one of
// the trees is changed behind its back.
func TestRandomCallsFindAnyDifference(t *testing.T) {
	for name, change := range map[string]func(path string) error{
		"content": func(path string) error { return os.WriteFile(path, []byte("other"), 0) },
		"mode":    func(path string) error { return os.Chmod(path, 0o421) },
		"size":    func(path string) error { return os.Truncate(path, 5<<20) },
		"name":    func(path string) error { return os.Rename(path, path+"x") },
		"link":    func(path string) error { return os.Link(path, path+"x") },
		"xattr":   func(path string) error { return unix.Setxattr(path, "user.a", make([]byte, 101), 0) },
		"times":   func(path string) error { return os.Chtimes(path, time.Time{}, time.Now()) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newTwins(t, 1)
			found := make(chan string, 1)
			w.fail = func(message string) {
				found <- message
				panic(message)
			}
			w.anew = func() {
				path := filepath.Join(w.trees[0], "m", "file01")
				if _, err := os.Lstat(path); err == nil {
					ok(t, change(path))
				}
			}
			func() {
				defer func() { _ = recover() }()
				w.run()
			}()
			select {
			case message := <-found:
				if !strings.Contains(message, "-seed 1") {
					t.Error(message)
				}
			default:
				t.Error("the trees differ, which was not found")
			}
		})
	}
}

// twins is the state of the test: two trees, the first on the mount, and files
// and directories open in both.
type twins struct {
	t     *testing.T
	seed  uint64
	step  int
	rnd   *rand.Rand
	trees [2]string
	anew  func() // unmounts and mounts the first tree; files are closed
	fail  func(message string)
	user  int // on whose behalf calls are made
	files [][2]int
	dirs  []*openDir
	times [2]map[string]times // after the last call
	log   []string            // the last calls
}

func newTwins(t *testing.T, seed uint64) *twins {
	w := &twins{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 0)), anew: func() {}}
	w.fail = func(message string) { t.Fatal(message) }
	for i := range w.trees {
		w.trees[i] = t.TempDir()
		ok(t, os.Chmod(filepath.Dir(w.trees[i]), 0o755)) // for other users
	}
	return w
}

// fileCount is how many files the large directory m has, besides those that
// the calls create.
const fileCount = 40

func (w *twins) run() {
	w.same("begin", func(root string, _ int) string {
		ok(w.t, os.Chmod(root, 0o777))
		ok(w.t, os.Mkdir(filepath.Join(root, "m"), 0o755))
		for i := range fileCount {
			write(w.t, filepath.Join(root, "m", fmt.Sprintf("file%02d", i)), "content")
		}
		return ""
	})
	defer w.closeAll()
	sum := 0
	for _, c := range calls {
		sum += c.weight
	}
	for w.step = range *stepsFlag {
		n := w.rnd.IntN(sum)
		for _, c := range calls {
			if n -= c.weight; n < 0 {
				w.user = 0
				if os.Geteuid() == 0 && w.rnd.IntN(3) == 0 {
					w.user = 1000 + w.rnd.IntN(2)
				}
				c.do(w)
				break
			}
		}
	}
	w.remount()
	w.compareTrees()
}

// calls are the calls, and how often each is made.
var calls = []struct {
	name   string
	weight int
	do     func(*twins)
}{
	{"open", 20, (*twins).openFile},
	{"open temporary", 2, (*twins).openTemporary},
	{"close", 5, (*twins).closeFile},
	{"write", 12, (*twins).writeFile},
	{"read", 8, (*twins).readFile},
	{"ftruncate", 4, (*twins).truncateFile},
	{"fsync", 3, (*twins).syncFile},
	{"drop pages", 3, (*twins).dropPages},
	{"fstat", 4, (*twins).statFile},
	{"fallocate", 4, (*twins).allocate},
	{"copy_file_range", 4, (*twins).copyFile},
	{"lseek", 3, (*twins).seekFile},
	{"lock", 6, (*twins).lockFile},
	{"link open file", 2, (*twins).linkFile},

	{"mkdir", 8, (*twins).makeDirectory},
	{"mknod", 2, (*twins).makeNode},
	{"symlink", 2, (*twins).makeSymlink},
	{"link", 3, (*twins).makeLink},
	{"unlink", 7, (*twins).unlink},
	{"rmdir", 3, (*twins).removeDirectory},
	{"rename", 7, (*twins).rename},

	{"chmod", 4, (*twins).changeMode},
	{"chown", 3, (*twins).changeOwner},
	{"truncate", 2, (*twins).truncatePath},
	{"utimens", 2, (*twins).setTimes},
	{"setxattr", 3, (*twins).setXattr},
	{"removexattr", 2, (*twins).removeXattr},
	{"access", 2, (*twins).access},
	{"stat", 2, (*twins).statPath},

	{"open directory", 3, (*twins).openDirectory},
	{"close directory", 1, (*twins).closeDirectory},
	{"list", 3, (*twins).listDirectory},
	{"read directory on", 8, (*twins).readOn},
	{"seekdir", 2, (*twins).seekDirectory},
	{"make in open directory", 2, (*twins).makeInDirectory},

	{"remount", 1, (*twins).remount},
	{"compare", 5, (*twins).compareTrees},
}

// same makes a call in both trees and compares the answers, and the times that
// it changed. which is the tree's number.
func (w *twins) same(what string, call func(root string, which int) string) {
	w.t.Helper()
	if len(w.log) == 40 {
		w.log = w.log[1:]
	}
	if w.user != 0 {
		what = fmt.Sprintf("user %d: %s", w.user, what)
	}
	w.log = append(w.log, fmt.Sprintf("%d: %s", w.step, what))
	rested := w.rnd.IntN(32) == 0 || what == "remount"
	if rested {
		time.Sleep(tick)
	}
	var answers [2]string
	both := func() {
		for i, root := range w.trees {
			answers[i] = call(root, i)
		}
	}
	if w.user != 0 {
		asUser(w.t, w.user, w.user, both)
	} else {
		both()
	}
	if answers[0] != answers[1] {
		w.differ(answers[0], answers[1])
	}
	w.compareTimes(rested)
}

func (w *twins) differ(mount, disk string) {
	w.t.Helper()
	w.fail(fmt.Sprintf("%s\nmount: %.3000s\ndisk:  %.3000s\nreplay with: go test ./mount -run %s -seed %d -steps %d",
		strings.Join(w.log, "\n"), mount, disk, strings.Split(w.t.Name(), "/")[0], w.seed, *stepsFlag))
}

// paths are those that calls are about, besides some of the large directory.
var paths = strings.Fields("a b c d e f d/a d/b d/c d/e d/e/a d/e/b d/e/d d/e/d/a f/a f/b f/d f/d/a f/d/b e/a e/d m/a m/d m/d/a m/file01")

// path draws a path. It may lead anywhere in the tree, or nowhere.
func (w *twins) path() string { return w.draw(paths) }

// pathFor draws a path for a new directory, or for something else that is new:
// mostly one of d, e, f for directories, so that there are some, and the other
// names for others.
func (w *twins) pathFor(dir bool) string {
	if w.rnd.IntN(8) == 0 {
		return w.path()
	}
	return w.draw(slices.DeleteFunc(slices.Clone(paths), func(path string) bool {
		return strings.Contains("def", filepath.Base(path)) != dir
	}))
}

func (w *twins) draw(paths []string) string {
	path := paths[w.rnd.IntN(len(paths))]
	if w.rnd.IntN(20) == 0 {
		path = fmt.Sprintf("m/file%02d", w.rnd.IntN(fileCount))
	}
	w.touched(filepath.Base(path))
	if w.rnd.IntN(30) == 0 {
		path += []string{"/", "/.", "/.."}[w.rnd.IntN(3)]
	}
	return path
}

// join is filepath.Join for paths whose end matters.
func join(root, path string) string { return root + "/" + path }

// size returns small numbers most of the time.
func (w *twins) size() int { return w.rnd.IntN(1 << w.rnd.IntN(20)) }

func (w *twins) compareTrees() {
	w.user = 0
	w.same("compare all", func(root string, _ int) string { return everything(root) })
}

// everything describes a tree, but for what file systems do their own way: the
// sizes of directories and inode numbers. Times are compared where they were set.
func everything(root string) string {
	var b strings.Builder
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		fmt.Fprintf(&b, "%s ", path[len(root):])
		return describeFile(&b, path)
	})
	return fmt.Sprint(err, "\n", b.String())
}

// describeFile writes a line about the file at path.
func describeFile(b *strings.Builder, path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	b.WriteString(attributes(&st))
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		p, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, " content %x", crc32.ChecksumIEEE(p))
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, " target %s", target)
	}
	for _, name := range xattrNames {
		p := make([]byte, 200)
		if n, err := unix.Lgetxattr(path, name, p); err == nil {
			fmt.Fprintf(b, " %s=%d", name, n)
		}
	}
	b.WriteString("\n")
	return nil
}

// attributes describes what is the same on all file systems.
func attributes(st *unix.Stat_t) string {
	s := fmt.Sprintf("mode %o links %d owner %d:%d", st.Mode, st.Nlink, st.Uid, st.Gid)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		s += fmt.Sprint(" size ", st.Size)
	}
	if st.Mtim.Sec < setTimesBelow {
		s += fmt.Sprint(" mtime ", st.Mtim)
	}
	return s
}

// remount closes all files and mounts the volume anew.
func (w *twins) remount() {
	w.user = 0
	w.closeAll()
	w.same("remount", func(_ string, which int) string {
		if which == 0 {
			w.anew()
		}
		return ""
	})
}

func (w *twins) closeAll() {
	for _, fd := range w.files {
		unix.Close(fd[0])
		unix.Close(fd[1])
	}
	for _, d := range w.dirs {
		unix.Close(d.fds[0])
		unix.Close(d.fds[1])
	}
	w.files, w.dirs = nil, nil
}
