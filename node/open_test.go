package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/chunker"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/node/control"
	"github.com/cairnfs/cairn/volume"
)

func options(dir string) Options {
	return Options{Dir: dir, Create: true, Reserve: -1, Command: "test", Logger: slog.New(slog.DiscardHandler)}
}

// open opens a store; the caller closes it.
func open(t testing.TB, o Options) *Node {
	t.Helper()
	n, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func closeNode(t testing.TB, n *Node) {
	t.Helper()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

// describe returns name, mode, time and content of everything in dir.
func describe(t testing.TB, dir string) string { return describeBy(t, dir, true) }

func describeBy(t testing.TB, dir string, times bool) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v %d", path, info.Mode(), info.Size())
		if times {
			fmt.Fprintf(&b, " %v", info.ModTime().UnixNano())
		}
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %v", cas.Sum(cas.Raw, data))
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return b.String()
}

// writeFile writes a file of the volume and fsyncs it.
func writeFile(t testing.TB, n *Node, name string, data []byte) {
	t.Helper()
	ctx := t.Context()
	_, h, err := n.Volume().Create(ctx, 1, name, syscall.S_IFREG|0o644, syscall.O_RDWR, volume.Caller{})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	if _, err := h.Write(ctx, data, 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Flush(ctx), h.Fsync(ctx, false)); err != nil {
		t.Fatal(err)
	}
}

func readFile(t testing.TB, n *Node, name string) string {
	t.Helper()
	ctx := t.Context()
	attr, err := n.Volume().Lookup(ctx, 1, name)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	h, err := n.Volume().Open(ctx, attr.Ino, syscall.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Release()
	p := make([]byte, attr.Size)
	if k, err := h.Read(ctx, p, 0); err != nil || int64(k) != attr.Size {
		t.Fatalf("%s: read %d of %d, %v", name, k, attr.Size, err)
	}
	return string(p)
}

// fill stores a pinned block, a small and a large file.
func fill(t testing.TB, n *Node) (check func(*Node)) {
	t.Helper()
	block := castest.Block(t, 1, 50_000)
	large := string(castest.Bytes(2, 1<<20))
	if err := n.Put(t.Context(), block); err != nil {
		t.Fatal(err)
	}
	if err := n.Pin(t.Context(), control.Pin{CID: block.CID(), Name: "block"}); err != nil {
		t.Fatal(err)
	}
	writeFile(t, n, "small", []byte("little"))
	writeFile(t, n, "large", []byte(large))
	return func(n *Node) {
		t.Helper()
		if b, err := n.Get(t.Context(), block.CID(), nil); err != nil || b.CID() != block.CID() {
			t.Errorf("block: %v", err)
		}
		var pins []control.Pin
		err := n.Pins(t.Context(), func(p control.Pin) error { pins = append(pins, p); return nil })
		if err != nil || len(pins) != 1 || pins[0] != (control.Pin{CID: block.CID(), Name: "block"}) {
			t.Errorf("pins: %v, %v", pins, err)
		}
		if got := readFile(t, n, "small"); got != "little" {
			t.Errorf("small file: %q", got)
		}
		if readFile(t, n, "large") != large {
			t.Error("large file differs")
		}
		if err := n.Check(t.Context(), func(c cas.CID, err error) error { return fmt.Errorf("%v: %w", c, err) }); err != nil {
			t.Errorf("check: %v", err)
		}
	}
}

func TestWhatWasStoredIsThereAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "above", "store")
	n := open(t, options(dir))
	check := fill(t, n)
	check(n)
	for range 3 {
		closeNode(t, n)
		n = open(t, options(dir))
		check(n)
	}
	closeNode(t, n)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data directory: %v, %v, want mode 0700", info.Mode(), err)
	}
}

func TestTheRootBelongsToWhoeverMadeTheStore(t *testing.T) {
	o := options(filepath.Join(t.TempDir(), "store"))
	made := time.Now()
	o.Now = func() time.Time { return made }
	n := open(t, o)
	defer closeNode(t, n)
	root, err := n.Volume().GetAttr(t.Context(), namespace.RootIno)
	if err != nil {
		t.Fatal(err)
	}
	if root.UID != uint32(os.Geteuid()) || root.GID != uint32(os.Getegid()) || root.Mode&0o7777 != 0o755 {
		t.Errorf("root belongs to %d:%d with mode %o", root.UID, root.GID, root.Mode)
	}
	if root.Mtime != made.UnixNano() || root.Atime != made.UnixNano() {
		t.Errorf("root has times %d and %d, want %d", root.Atime, root.Mtime, made.UnixNano())
	}
}

func TestNoStoreIsMadeUnlessAskedFor(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	o := options(dir)
	o.Create = false
	if _, err := Open(t.Context(), o); !errors.Is(err, ErrNoStore) {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("directory: %v", err)
	}
}

func TestNoStoreIsMadeAmongOtherFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "letter"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	before := describe(t, dir)
	if _, err := Open(t.Context(), options(dir)); !errors.Is(err, ErrNotEmpty) || !strings.Contains(err.Error(), "letter") {
		t.Error(err)
	}
	if after := describe(t, dir); after != before {
		t.Errorf("after\n%s\nbefore\n%s", after, before)
	}
}

func TestASecondOpenerLearnsWhoIsFirst(t *testing.T) {
	dir := t.TempDir()
	first := open(t, options(dir))
	_, err := Open(t.Context(), options(dir))
	var inUse *InUseError
	if !errors.As(err, &inUse) || *inUse != (InUseError{Dir: dir, PID: os.Getpid(), Command: "test"}) {
		t.Errorf("second open: %v", err)
	}
	if holder := Holder(dir); holder.PID != os.Getpid() {
		t.Errorf("holder %+v", holder)
	}
	closeNode(t, first)
	if holder := Holder(dir); holder.PID != 0 {
		t.Errorf("holder after close %+v", holder)
	}
	closeNode(t, open(t, options(dir)))
}

// editConfig changes the config of the store in dir and, unless sum is empty,
// gives it the right checksum.
func editConfig(t *testing.T, dir string, edit func(*config)) {
	t.Helper()
	path := filepath.Join(dir, configName)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := parseConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	o := options(dir)
	o.setDefaults()
	edit(&c)
	if err := writeConfig(o.FS, dir, c); err != nil {
		t.Fatal(err)
	}
}

func TestStoresThatMustNotBeTouchedAreNot(t *testing.T) {
	resum := func(c *config) { c.Sum, _ = c.sum() }
	for _, c := range []struct {
		what string
		edit func(*config)
		want error
	}{
		{"newer format", func(c *config) { c.Format++ }, ErrNewerFormat},
		{"newer format, right sum", func(c *config) { c.Format++; resum(c) }, ErrNewerFormat},
		{"unknown chunker", func(c *config) { c.Chunker.Algorithm = "gear99-v9"; resum(c) }, ErrUnknownChunker},
		{"impossible sizes", func(c *config) { c.Chunker.Min = c.Chunker.Max; resum(c) }, ErrUnknownChunker},
		{"other sizes", func(c *config) { c.Chunker.Max /= 2 }, ErrDamaged},
		{"another id", func(c *config) { c.ID = strings.Repeat("0", 32) }, ErrDamaged},
	} {
		dir := t.TempDir()
		n := open(t, options(dir))
		fill(t, n)
		closeNode(t, n)
		editConfig(t, dir, c.edit)
		before := describe(t, dir)
		if _, err := Open(t.Context(), options(dir)); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
		if after := describe(t, dir); after != before {
			t.Errorf("%s: after\n%s\nbefore\n%s", c.what, after, before)
		}
	}
}

func TestAStoreThatLostAPartSaysSo(t *testing.T) {
	for _, part := range []string{configName, segmentsDir, journalDir} {
		dir := t.TempDir()
		n := open(t, options(dir))
		fill(t, n)
		closeNode(t, n)
		if err := os.RemoveAll(filepath.Join(dir, part)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(t.Context(), options(dir)); !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotEmpty) {
			t.Errorf("without %s: %v", part, err)
		}
	}
}

func TestAStoreThatLostItsNamesIsNotTakenForANewOne(t *testing.T) {
	dir := t.TempDir()
	n := open(t, options(dir))
	fill(t, n)
	closeNode(t, n)
	if err := os.RemoveAll(filepath.Join(dir, indexDir)); err != nil {
		t.Fatal(err)
	}
	records, err := filepath.Glob(filepath.Join(dir, journalDir, "*.journal"))
	if err != nil || len(records) == 0 {
		t.Fatal(records, err)
	}
	for _, name := range records {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(t.Context(), options(dir)); !errors.Is(err, ErrDamaged) {
		t.Errorf("without index and journal: %v", err)
	}
}

// damageIndex overwrites the ends of the index's files: what Pebble reads first.
func damageIndex(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, indexDir, "*"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for i := range data {
			data[i] ^= 0x5a
		}
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func removeIndex(t *testing.T, dir string) {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(dir, indexDir)); err != nil {
		t.Fatal(err)
	}
}

func TestALostIndexIsMadeAnew(t *testing.T) {
	for what, lose := range map[string]func(*testing.T, string){"removed": removeIndex, "damaged": damageIndex} {
		dir := t.TempDir()
		n := open(t, options(dir))
		check := fill(t, n)
		closeNode(t, n)
		lose(t, dir)
		n, err := Open(t.Context(), options(dir))
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		check(n)
		closeNode(t, n)
		aside, err := filepath.Glob(filepath.Join(dir, indexDir+".damaged-*"))
		if err != nil || (len(aside) == 1) != (what == "damaged") {
			t.Errorf("%s: moved aside %q, %v", what, aside, err)
		}
		n = open(t, options(dir))
		check(n)
		closeNode(t, n)
	}
}

func TestAnIndexThatCannotBeMadeAnewIsNotReplacedByAnEmptyOne(t *testing.T) {
	for what, lose := range map[string]func(*testing.T, string){"removed": removeIndex, "damaged": damageIndex} {
		dir := t.TempDir()
		o := options(dir)
		o.journalFile = 4 << 10
		n := open(t, o)
		fill(t, n)
		for i := range 40 {
			name := strings.Repeat("n", control.MaxPinName)
			if err := n.Pin(t.Context(), control.Pin{CID: cas.Sum(cas.Raw, fmt.Append(nil, i)), Name: name}); err != nil {
				t.Fatal(err)
			}
		}
		if err := n.checkpoint(); err != nil {
			t.Fatal(err)
		}
		if n.journal.First() <= 1 {
			t.Fatal("the journal was not trimmed")
		}
		closeNode(t, n)
		lose(t, dir)
		before := describeBy(t, filepath.Join(dir, segmentsDir), false)
		for range 2 {
			if _, err := Open(t.Context(), o); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if aside, _ := filepath.Glob(filepath.Join(dir, indexDir+".damaged-*")); len(aside) > 0 {
			t.Errorf("%s: moved aside %q", what, aside)
		}
		if after := describeBy(t, filepath.Join(dir, segmentsDir), false); after != before {
			t.Errorf("%s: segments after\n%s\nbefore\n%s", what, after, before)
		}
	}
}

func TestAfterACheckpointTheRestIsReplayed(t *testing.T) {
	dir := t.TempDir()
	o := options(dir)
	o.journalFile = 4 << 10
	n := open(t, o)
	check := fill(t, n)
	for i := range 50 {
		if err := n.checkpoint(); err != nil {
			t.Fatal(err)
		}
		writeFile(t, n, fmt.Sprint(i), []byte(fmt.Sprint(i)))
	}
	if size := n.journal.Size(); size > 20<<10 {
		t.Errorf("journal has %d bytes", size)
	}
	closeNode(t, n)
	n = open(t, o)
	defer closeNode(t, n)
	check(n)
	for i := range 50 {
		if got := readFile(t, n, fmt.Sprint(i)); got != fmt.Sprint(i) {
			t.Errorf("file %d: %q", i, got)
		}
	}
}

func TestHistoryIsTrimmedAfterItsTime(t *testing.T) {
	began := time.Now()
	var later atomic.Int64
	pass := func(d time.Duration) { later.Add(int64(d)) }
	o := options(t.TempDir())
	o.Now = func() time.Time { return began.Add(time.Duration(later.Load())) }
	o.History = time.Hour
	n := open(t, o)
	defer closeNode(t, n)
	writeFile(t, n, "f", []byte("x"))
	if err := n.Volume().Unlink(t.Context(), 1, "f"); err != nil {
		t.Fatal(err)
	}
	then := n.state.Applied() - 1
	pass(30 * time.Minute)
	if err := n.trimHistory(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := n.state.At(then).Lookup(1, "f"); err != nil {
		t.Errorf("after half an hour: %v", err)
	}
	pass(2 * time.Hour)
	writeFile(t, n, "g", []byte("x")) // log time goes by commands
	pass(2 * time.Hour)
	if err := n.trimHistory(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := n.state.At(then).Lookup(1, "f"); err == nil {
		t.Error("after four hours it is still there")
	}
}

func TestOpenEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := filepath.Join(t.TempDir(), "store")
	if _, err := Open(ctx, options(dir)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	closeNode(t, open(t, options(dir)))
}

func TestConfigKeepsTheChunkSizesItWasMadeWith(t *testing.T) {
	dir := t.TempDir()
	o := options(dir)
	o.Chunker = chunker.DefaultParams()
	o.Chunker.Max *= 2
	closeNode(t, open(t, o))
	n := open(t, options(dir))
	defer closeNode(t, n)
	if got := n.Format().Chunker.Params(); got != o.Chunker {
		t.Errorf("chunker %v, want %v", got, o.Chunker)
	}
}

func FuzzConfig(f *testing.F) {
	c, err := newConfig(strings.NewReader(strings.Repeat("x", 16)), time.Unix(1e9, 0), chunker.DefaultParams())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(fmt.Appendf(nil, `{"format":1,"id":%q,"created":"2001-09-09T01:46:40Z","chunker":{"algorithm":"x","min":1,"avg":2,"max":3},"sum":%q}`, c.ID, c.Sum))
	f.Add([]byte(`{"format":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfig(data)
		if err != nil {
			return
		}
		if sum, err := c.sum(); err != nil || sum != c.Sum {
			t.Fatal("accepted with a wrong sum")
		}
	})
}

// failingSync is a file system whose files cannot be synced while on is set.
type failingSync struct {
	vfs.FS
	on *atomic.Bool
}

func (f failingSync) OpenReadWrite(name string, c vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.OpenReadWrite(name, c, opts...)
	return &failingFile{file, f.on}, err
}

type failingFile struct {
	vfs.File
	on *atomic.Bool
}

func (f *failingFile) SyncData() error {
	if f.on.Load() {
		return syscall.EIO
	}
	return f.File.SyncData()
}

func TestADiskThatRefusesToSyncEndsTheNode(t *testing.T) {
	var on atomic.Bool
	o := options("/store")
	o.FS = failingSync{vfs.NewMem(), &on}
	n := open(t, o)
	fill(t, n)
	on.Store(true)
	if err := n.Pin(t.Context(), control.Pin{CID: cas.Sum(cas.Raw, nil)}); !errors.Is(err, syscall.EIO) {
		t.Errorf("pin: %v", err)
	}
	if err := <-n.Failed(); !errors.Is(err, syscall.EIO) {
		t.Errorf("failed with %v", err)
	}
	if err := n.Close(); !errors.Is(err, syscall.EIO) {
		t.Errorf("close: %v", err)
	}
	on.Store(false)
	n = open(t, o)
	defer closeNode(t, n)
	if got := readFile(t, n, "small"); got != "little" {
		t.Errorf("what was synced before: %q", got)
	}
}

// TestADamagedIndexIsDamageWhereverItShows flips one byte of one file of the index
// at a time, in a store whose journal no longer has all names. Either nobody
// notices yet, or it is damage; it is never another error, nor another content.
func TestADamagedIndexIsDamageWhereverItShows(t *testing.T) {
	whole := t.TempDir()
	o := options(whole)
	o.journalFile = 4 << 10
	n := open(t, o)
	fill(t, n)
	for i := range 200 { // more than a file of the journal holds
		writeFile(t, n, fmt.Sprint("file", i), []byte("content"))
	}
	closeNode(t, n)
	names, err := filepath.Glob(filepath.Join(whole, indexDir, "*"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	noticed := 0
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range []int64{0, info.Size() / 3, info.Size() / 2, info.Size() - 1} {
			if at < 0 || at >= info.Size() {
				continue
			}
			dir := filepath.Join(t.TempDir(), "store")
			if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			damaged := filepath.Join(dir, indexDir, filepath.Base(name))
			data, err := os.ReadFile(damaged)
			if err != nil {
				t.Fatal(err)
			}
			data[at] ^= 0x10
			if err := os.WriteFile(damaged, data, 0o600); err != nil {
				t.Fatal(err)
			}
			n, err := Open(t.Context(), options(dir))
			if err != nil {
				noticed++
				if !errors.Is(err, ErrDamaged) {
					t.Errorf("%s, byte %d: %v", filepath.Base(name), at, err)
				}
				continue
			}
			if a, err := n.Volume().Lookup(t.Context(), namespace.RootIno, "large"); err == nil && a.Size != 1<<20 {
				t.Errorf("%s, byte %d: the file has %d bytes", filepath.Base(name), at, a.Size)
			}
			_ = n.Close() // may meet the damage
		}
	}
	if noticed == 0 {
		t.Error("no damage was noticed at all")
	}
}
