//go:build linux

package cluster

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestThreeMachinesShareOneDirectory goes through what one machine does and another
// sees, on one cluster: the rules do not disturb each other.
func TestThreeMachinesShareOneDirectory(t *testing.T) {
	needsNet(t)
	r := newCluster(t, 3)
	for _, rule := range []struct {
		name string
		test func(*testing.T, *rig)
	}{
		{"a tree made on one is the same on all", treeIsTheSame},
		{"what was closed on one is read by an open that starts later on another", closeToOpen},
		{"a name made or removed on one is so for an open that starts later on another", namesAreStrict},
		{"of all that create one file exclusively one does", exclusiveCreation},
		{"of all that rename one file one does", renameRace},
		{"of all that make one directory one does", mkdirRace},
		{"records that all append to one file are whole and none is lost", appends},
		{"a number counted up under a lock on all has no count missing", counters},
		{"a lock held on one cannot be had on another until it is dropped", lockExcludes},
		{"of two processes that wait for each other's locks one is told so", deadlock},
		{"a file that another removes stays readable where it is open", removedButOpen},
		{"writes to different ranges of one file all survive", ranges},
		{"content added on one is got on another by its CID", addAndGet},
		{"pins are the same on all", pins},
	} {
		t.Run(rule.name, func(t *testing.T) {
			sub := *r
			sub.t = t
			sub.nodes = nil
			for _, n := range r.nodes {
				m := *n
				m.t = t
				m.r = &sub
				sub.nodes = append(sub.nodes, &m)
			}
			rule.test(t, &sub)
		})
	}
}

// describe lists everything below dir, with what must be the same on all nodes.
func describe(dir string) (string, error) {
	var lines []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("stat %s: %w", path, err)
		}
		line := fmt.Sprintf("%q mode %o owner %d:%d links %d mtime %d.%09d inode %d", rel, st.Mode, st.Uid, st.Gid, st.Nlink, st.Mtim.Sec, st.Mtim.Nsec, st.Ino)
		switch d.Type() {
		case 0:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" size %d content %x", st.Size, sum(data))
		case fs.ModeSymlink:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " to " + strconv.Quote(to)
		}
		list := make([]byte, 4096)
		n, err := unix.Llistxattr(path, list)
		if err != nil {
			return fmt.Errorf("listxattr %s: %w", path, err)
		}
		names := strings.Split(strings.Trim(string(list[:n]), "\x00"), "\x00")
		sort.Strings(names)
		for _, name := range names {
			if !strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "user.cairn.") {
				continue
			}
			value := make([]byte, 1000)
			n, err := unix.Lgetxattr(path, name, value)
			if err != nil {
				return fmt.Errorf("getxattr %s %s: %w", path, name, err)
			}
			line += fmt.Sprintf(" %s=%q", name, value[:n])
		}
		lines = append(lines, line)
		return nil
	})
	return strings.Join(lines, "\n"), err
}

// sum is a checksum for comparing.
func sum(data []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, b := range data {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return h
}

// agree waits until a tree is the same on all nodes and returns how it is.
func agree(t testing.TB, dir string, nodes ...*node) (want string) {
	t.Helper()
	took := eventually(t, settleTime, dir+" is the same everywhere", func() (err error) {
		if want, err = describe(nodes[0].path(dir)); err != nil {
			return err
		}
		for _, n := range nodes[1:] {
			got, err := describe(n.path(dir))
			if err != nil {
				return err
			}
			if got != want {
				return fmt.Errorf("on %s and %s:\n%s", nodes[0].name, n.name, firstDifference(want, got))
			}
		}
		return nil
	})
	t.Logf("%s is the same everywhere after %v", dir, took)
	return want
}

func firstDifference(a, b string) string {
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range min(len(as), len(bs)) {
		if as[i] != bs[i] {
			return as[i] + "\n" + bs[i]
		}
	}
	return fmt.Sprintf("%d and %d entries", len(as), len(bs))
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// parallel does something on all nodes at the same time.
func parallel(t testing.TB, nodes []*node, do func(i int, n *node) error) []error {
	t.Helper()
	errs := make([]error, len(nodes))
	var all sync.WaitGroup
	start := make(chan struct{})
	for i, n := range nodes {
		all.Go(func() {
			<-start
			errs[i] = do(i, n)
		})
	}
	close(start)
	_, _ = bounded(t, "what is done on all nodes", func() error { all.Wait(); return nil })
	return errs
}

func treeIsTheSame(t *testing.T, r *rig) {
	a, b, c := r.nodes[0], r.nodes[1], r.nodes[2]
	ok(t, os.MkdirAll(a.path("tree", "sub", "deep"), 0o750))
	for i, size := range []int{0, 1, 4096, 5000, 100_000, 3 << 20} {
		ok(t, os.WriteFile(a.path("tree", fmt.Sprint("f", i)), random(uint64(i), size), 0o640))
	}
	ok(t, os.Symlink("sub/../f1", b.path("tree", "link")))
	ok(t, os.Symlink("/nowhere", c.path("tree", "dangling")))
	ok(t, unix.Setxattr(b.path("tree", "f1"), "user.note", []byte("a value"), 0))
	ok(t, os.Link(b.path("tree", "f2"), b.path("tree", "sub", "hard")))
	ok(t, os.Chmod(c.path("tree", "f3"), 0o4751))
	ok(t, os.Chown(c.path("tree", "f4"), 1234, 2345))
	ok(t, os.Chtimes(a.path("tree", "f5"), time.Time{}, time.Unix(1_000_000_000, 123_456_789)))
	if got := agree(t, "tree", r.nodes...); strings.Count(got, "\n") != 11 || !strings.Contains(got, `user.note="a value"`) {
		t.Errorf("not what was made:\n%s", got)
	}
	ok(t, os.Rename(b.path("tree", "f5"), b.path("tree", "sub", "deep", "moved")))
	ok(t, os.Rename(c.path("tree", "sub"), c.path("tree", "away")))
	ok(t, os.Remove(a.path("tree", "f0")))
	ok(t, os.Remove(c.path("tree", "link")))
	ok(t, os.Truncate(b.path("tree", "f4"), 7))
	ok(t, unix.Removexattr(a.path("tree", "f1"), "user.note"))
	if got := agree(t, "tree", r.nodes...); strings.Count(got, "\n") != 9 || !strings.Contains(got, `"away/deep/moved"`) || strings.Contains(got, "user.note") {
		t.Errorf("not what it was changed to:\n%s", got)
	}
	ok(t, os.RemoveAll(c.path("tree")))
	eventually(t, settleTime, "the tree is gone", func() error {
		for _, n := range r.nodes {
			if _, err := os.Lstat(n.path("tree")); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("on %s: %v", n.name, err)
			}
		}
		return nil
	})
}

func closeToOpen(t *testing.T, r *rig) {
	slowest := time.Duration(0)
	for i := range 60 {
		a, b := r.nodes[i%3], r.nodes[(i+1+i/3%2)%3]
		name := fmt.Sprint("close-to-open-", i%4) // some are made, most are written again
		want := random(uint64(i), []int{1, 300, 6000, 200_000}[i/4%4])
		ok(t, os.WriteFile(a.path(name), want, 0o644))
		start := time.Now()
		if err := holds(b.path(name), want); err != nil {
			t.Errorf("round %d, written on %s, read on %s: %v", i, a.name, b.name, err)
		}
		slowest = max(slowest, since(start))
	}
	t.Logf("the slowest read took %v", slowest)
}

func namesAreStrict(t *testing.T, r *rig) {
	for i := range 20 {
		a, b := r.nodes[i%3], r.nodes[(i+1)%3]
		one, two := fmt.Sprint("name-", i), fmt.Sprint("name-", i, "-later")
		if _, err := os.Open(b.path(one)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d: before it is made: %v", i, err)
		}
		ok(t, os.WriteFile(a.path(one), []byte("one"), 0o644))
		if err := holds(b.path(one), []byte("one")); err != nil {
			t.Errorf("%d: made: %v", i, err)
		}
		ok(t, os.Rename(a.path(one), a.path(two)))
		if err := holds(b.path(two), []byte("one")); err != nil {
			t.Errorf("%d: by its new name: %v", i, err)
		}
		if f, err := os.Open(b.path(one)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d: by its old name: %v, %v", i, f, err)
		}
		ok(t, os.Remove(a.path(two)))
		if f, err := os.Open(b.path(two)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%d: removed: %v, %v", i, f, err)
		}
	}
}

// oneWinner fails unless exactly one of the errors is nil and the others are as
// they should be.
func oneWinner(t testing.TB, what string, errs []error, loser error) {
	t.Helper()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if !errors.Is(err, loser) {
			t.Errorf("%s: %v, should be %v", what, err, loser)
		}
	}
	if won != 1 {
		t.Errorf("%s: %d have won: %v", what, won, errs)
	}
}

func exclusiveCreation(t *testing.T, r *rig) {
	for i := range 20 {
		name := fmt.Sprint("exclusive-", i)
		errs := parallel(t, r.nodes, func(_ int, n *node) error {
			f, err := os.OpenFile(n.path(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		})
		oneWinner(t, name, errs, fs.ErrExist)
	}
}

func renameRace(t *testing.T, r *rig) {
	for i := range 20 {
		from := fmt.Sprint("rename-", i)
		ok(t, os.WriteFile(r.nodes[i%3].path(from), []byte(from), 0o644))
		errs := parallel(t, r.nodes, func(_ int, n *node) error {
			return os.Rename(n.path(from), n.path(from+"-by-"+n.name))
		})
		oneWinner(t, from, errs, fs.ErrNotExist)
		found := 0
		for _, n := range r.nodes {
			if err := holds(r.nodes[0].path(from+"-by-"+n.name), []byte(from)); err == nil {
				found++
			} else if !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		}
		if found != 1 {
			t.Errorf("%s: now has %d names", from, found)
		}
	}
}

func mkdirRace(t *testing.T, r *rig) {
	for i := range 10 {
		name := fmt.Sprint("mkdir-", i)
		errs := parallel(t, r.nodes, func(_ int, n *node) error { return os.Mkdir(n.path(name), 0o755) })
		oneWinner(t, name, errs, fs.ErrExist)
	}
}

func appends(t *testing.T, r *rig) {
	const each = 60
	ok(t, os.WriteFile(r.nodes[0].path("log"), nil, 0o644))
	record := func(n *node, i int) string {
		return fmt.Sprintf("%s %04d %s\n", n.name, i, strings.Repeat("x", 10+i*7%200))
	}
	errs := parallel(t, r.nodes, func(_ int, n *node) error {
		f, err := os.OpenFile(n.path("log"), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		for i := range each {
			if _, err := f.WriteString(record(n, i)); err != nil {
				return errors.Join(err, f.Close())
			}
		}
		return f.Close()
	})
	ok(t, errors.Join(errs...))
	for _, reader := range r.nodes {
		data, err := os.ReadFile(reader.path("log"))
		ok(t, err)
		next := map[string]int{}
		lines := bufio.NewScanner(bytes.NewReader(data))
		for lines.Scan() {
			name, _, _ := strings.Cut(lines.Text(), " ")
			i := slices.IndexFunc(r.nodes, func(n *node) bool { return n.name == name })
			if i < 0 || lines.Text()+"\n" != record(r.nodes[i], next[name]) {
				t.Fatalf("read on %s: %q is no record, or not number %d", reader.name, lines.Text(), next[name])
			}
			next[name]++
		}
		for _, n := range r.nodes {
			if next[n.name] != each {
				t.Errorf("read on %s: %d records of %s, should be %d", reader.name, next[n.name], n.name, each)
			}
		}
	}
}

func counters(t *testing.T, r *rig) {
	const each, processes = 15, 2
	for _, kind := range []string{"flock", "fcntl", "ofd"} {
		name := "counter-" + kind
		ok(t, os.WriteFile(r.nodes[0].path(name), []byte("       0\n"), 0o644))
		start := time.Now()
		var waits []func() error
		for _, n := range r.nodes {
			for range processes {
				waits = append(waits, startChild(t, "count", n.path(name), kind, strconv.Itoa(each)))
			}
		}
		for _, wait := range waits {
			if _, err := bounded(t, "counting with "+kind, wait); err != nil {
				t.Error(err)
			}
		}
		want := fmt.Sprintf("%8d\n", each*processes*len(r.nodes))
		for _, n := range r.nodes {
			if err := holds(n.path(name), []byte(want)); err != nil {
				got, _ := os.ReadFile(n.path(name))
				t.Errorf("%s, read on %s: %q, want %q", kind, n.name, got, want)
			}
		}
		t.Logf("%s: %d times in %v", kind, each*processes*len(r.nodes), since(start))
	}
}

func lockExcludes(t *testing.T, r *rig) {
	a, b := r.nodes[0], r.nodes[1]
	ok(t, os.WriteFile(a.path("locked"), []byte("x"), 0o644))
	on := func(n *node) *os.File {
		f, err := os.OpenFile(n.path("locked"), os.O_RDWR, 0)
		ok(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	fa, fb := on(a), on(b)
	ok(t, unix.Flock(int(fa.Fd()), unix.LOCK_EX))
	if err := unix.Flock(int(fb.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("flock that another node holds: %v", err)
	}
	if err := unix.Flock(int(fb.Fd()), unix.LOCK_SH|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("shared flock that another node holds: %v", err)
	}
	// A range: what does not overlap can be had.
	ok(t, unix.FcntlFlock(fa.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 0, Len: 10}))
	if err := unix.FcntlFlock(fb.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Start: 9, Len: 1}); err != unix.EAGAIN {
		t.Errorf("range that another node holds: %v", err)
	}
	ok(t, unix.FcntlFlock(fb.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 1}))

	got := make(chan error, 1)
	go func() { got <- lock(fb, "flock", unix.F_WRLCK) }()
	select {
	case err := <-got:
		t.Errorf("a lock that another holds was given: %v", err)
	case <-time.After(pause):
	}
	_, err := fa.WriteAt([]byte("y"), 0)
	ok(t, err)
	start := time.Now()
	ok(t, unix.Flock(int(fa.Fd()), unix.LOCK_UN))
	_, err = bounded(t, "waiting for a lock", func() error { return <-got })
	ok(t, err)
	t.Logf("a lock was passed on in %v", since(start))
	buf := make([]byte, 1)
	if _, err := fb.ReadAt(buf, 0); err != nil || buf[0] != 'y' {
		t.Errorf("with the lock the file holds %q, %v", buf, err)
	}
}

// A process that is told of a deadlock ends, which frees what it has for the other.
func deadlock(t *testing.T, r *rig) {
	a, b := r.nodes[0], r.nodes[1]
	ok(t, os.WriteFile(a.path("crossed"), nil, 0o644))
	one, two := startChild(t, "cross", a.path("crossed"), "1", "2"), startChild(t, "cross", b.path("crossed"), "2", "1")
	told := 0
	for _, wait := range []func() error{one, two} {
		_, err := bounded(t, "a process that waits for a lock", wait)
		switch {
		case err == nil:
		case strings.Contains(err.Error(), unix.EDEADLK.Error()):
			told++
			t.Log(err)
		default:
			t.Error(err)
		}
	}
	if told != 1 {
		t.Errorf("%d of two processes are told of a deadlock", told)
	}
}

func removedButOpen(t *testing.T, r *rig) {
	a, b := r.nodes[1], r.nodes[2]
	want := random(7, 3<<20)
	ok(t, os.WriteFile(a.path("removed"), want, 0o644))
	f, err := os.Open(b.path("removed"))
	ok(t, err)
	defer f.Close()
	ok(t, os.Remove(a.path("removed")))
	eventually(t, settleTime, "the name is gone", func() error {
		if _, err := os.Lstat(b.path("removed")); err == nil {
			return errors.New("still there")
		}
		return nil
	})
	// The leader removes files without a name every few seconds. It must have
	// asked by the time that it has removed another one.
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("a removed file that is open: %v", err)
		}
		ok(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
		time.Sleep(pause)
	}
}

func ranges(t *testing.T, r *rig) {
	const each = 100_000
	ok(t, os.WriteFile(r.nodes[0].path("ranges"), make([]byte, 3*each), 0o644))
	errs := parallel(t, r.nodes, func(i int, n *node) error {
		f, err := os.OpenFile(n.path("ranges"), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(random(uint64(i), each), int64(i*each))
		return errors.Join(err, f.Close())
	})
	ok(t, errors.Join(errs...))
	want := slices.Concat(random(0, each), random(1, each), random(2, each))
	for _, n := range r.nodes {
		if err := holds(n.path("ranges"), want); err != nil {
			t.Error(err)
		}
	}
}

func addAndGet(t *testing.T, r *rig) {
	src := filepath.Join(t.TempDir(), "src")
	want := random(99, 5<<20)
	ok(t, os.WriteFile(src, want, 0o644))
	for i, n := range r.nodes {
		cid := n.must("add", "-q", src)
		out := filepath.Join(t.TempDir(), "out")
		other := r.nodes[(i+1)%3]
		other.must("get", cid, "-o", out)
		if err := holds(out, want); err != nil {
			t.Errorf("added on %s, got on %s: %v", n.name, other.name, err)
		}
	}
}

func pins(t *testing.T, r *rig) {
	src := filepath.Join(t.TempDir(), "pinned")
	ok(t, os.WriteFile(src, random(98, 50_000), 0o644))
	cid := r.nodes[1].must("add", "-q", src)
	eventually(t, settleTime, "the pin is there", func() error {
		for _, n := range r.nodes {
			if out := n.must("pin", "ls"); !strings.Contains(out, cid) {
				return fmt.Errorf("on %s: %s", n.name, out)
			}
		}
		return nil
	})
	r.nodes[2].must("pin", "rm", cid)
	eventually(t, settleTime, "the pin is gone", func() error {
		for _, n := range r.nodes {
			if out := n.must("pin", "ls"); strings.Contains(out, cid) {
				return fmt.Errorf("on %s: %s", n.name, out)
			}
		}
		return nil
	})
}
