package volume

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/zeebo/blake3"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "replay this seed of the model test only")
	seedsFlag = flag.Uint64("seeds", 10/slowdown, "how many seeds the model test runs")
	stepsFlag = flag.Int("steps", 400, "operations for each seed of the model test")
)

// modelFile is what one file must hold, and what it held since it was last
// durable: after a power loss it may be any of those, with the mode that it had then
// or a later one.
type modelFile struct {
	ino      namespace.Ino
	h        *Handle
	content  []byte
	versions []modelVersion
	modes    []uint32 // permissions since it was last durable
}

type modelVersion struct {
	hash [32]byte
	mode int // which of modes the file had
}

func (m *modelFile) changed() {
	m.versions = append(m.versions, modelVersion{blake3.Sum256(m.content), len(m.modes) - 1})
}

func (m *modelFile) durable() {
	m.modes = m.modes[len(m.modes)-1:]
	m.versions = nil
	m.changed()
}

// was reports whether the file may have had the content and, then or later, the mode.
func (m *modelFile) was(content []byte, mode uint32) bool {
	hash := blake3.Sum256(content)
	return slices.ContainsFunc(m.versions, func(v modelVersion) bool {
		return v.hash == hash && slices.Contains(m.modes[v.mode:], mode)
	})
}

// resize cuts content or extends it with zeros.
func (m *modelFile) resize(n int64) {
	if n > int64(len(m.content)) {
		m.content = append(m.content, make([]byte, n-int64(len(m.content)))...)
	}
	m.content = m.content[:n]
}

func (m *modelFile) write(p []byte, off int64) {
	m.resize(max(int64(len(m.content)), off+int64(len(p))))
	copy(m.content[off:], p)
	m.changed()
}

type modelTest struct {
	t     *testing.T
	seed  uint64
	rnd   *rand.Rand
	fs    *vfs.MemFS
	r     *rig
	names *refusing // the log of r
	files []*modelFile
	keep  journal.Seq // where the journal was last trimmed
	step  int
	trace []string
}

func (m *modelTest) fatalf(format string, args ...any) {
	m.t.Helper()
	for _, line := range m.trace[max(0, len(m.trace)-40):] {
		m.t.Log(line)
	}
	m.t.Fatalf("step %d: %s\nreplay with: go test ./volume -run TestFilesAreWhatWasWritten -seed %d",
		m.step, fmt.Sprintf(format, args...), m.seed)
}

func (m *modelTest) must(err error) {
	m.t.Helper()
	if err != nil {
		m.fatalf("%v", err)
	}
}

// unlessFull fails the test unless err is nil or the disk is full, and reports
// whether it is nil.
func (m *modelTest) unlessFull(err error) bool {
	m.t.Helper()
	if err != nil && !(m.r.full.on.Load() && errors.Is(err, cas.ErrNoSpace)) {
		m.fatalf("%v", err)
	}
	return err == nil
}

// TestFilesAreWhatWasWritten performs random operations on a few files and on
// byte slices, and compares. Now and then there is no space for blocks for a
// while, or the volume is closed and opened, or the power fails and takes a random part of what was not synced: then each
// file must be what it was at some instant since its last sync.
func TestFilesAreWhatWasWritten(t *testing.T) {
	var seeds []uint64
	for s := range *seedsFlag {
		seeds = append(seeds, s+1)
	}
	if *seedFlag != 0 {
		seeds = []uint64{*seedFlag}
	}
	for _, seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			m := &modelTest{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 0)), fs: vfs.NewCrashableMem()}
			m.openRig()
			for range 3 {
				m.create()
			}
			m.must(m.r.Sync(t.Context()))
			for m.step = range *stepsFlag {
				m.do()
			}
			m.reopen()
			m.r.gc.marks = 300 // so few that parts are swept one after the other
			m.collectAll()
			m.compareAll()
			m.r.close()
		})
	}
}

func (m *modelTest) log(format string, args ...any) {
	m.trace = append(m.trace, fmt.Sprintf("%4d ", m.step)+fmt.Sprintf(format, args...))
}

func (m *modelTest) openRig() {
	m.r = openRig(m.t, m.fs, m.keep)
	m.names = &refusing{Log: m.r.log}
	m.r.o.Log = m.names
}

func (m *modelTest) create() {
	name := fmt.Sprint("file", len(m.files))
	a, h, err := m.r.Create(m.t.Context(), namespace.RootIno, name, 0o644, syscall.O_RDWR, Caller{})
	m.must(err)
	f := &modelFile{ino: a.Ino, h: h, modes: []uint32{a.Mode &^ syscall.S_IFMT}}
	f.durable()
	m.files = append(m.files, f)
}

// size draws a length, mostly small, now and then larger than what is streamed
// at once.
func (m *modelTest) size() int64 {
	switch m.rnd.IntN(12) {
	case 0:
		return streamMin + m.rnd.Int64N(streamMin)
	case 1, 2, 3:
		return m.rnd.Int64N(64 << 10)
	default:
		return m.rnd.Int64N(6000) + 1
	}
}

func (m *modelTest) bytes(n int64) []byte {
	p := make([]byte, n)
	if m.rnd.IntN(4) == 0 {
		return p // zeros
	}
	src := rand.NewChaCha8([32]byte{byte(m.step), byte(m.step >> 8), byte(m.seed)})
	_, _ = src.Read(p)
	return p
}

func (m *modelTest) do() {
	ctx := m.t.Context()
	f := m.files[m.rnd.IntN(len(m.files))]
	length := int64(len(f.content))
	switch m.rnd.IntN(36) {
	case 0, 1, 2, 3, 4, 5:
		off, p := m.rnd.Int64N(length+1+length/8), m.bytes(m.size())
		m.log("inode %d: write [%d,%d) of %d", f.ino, off, off+int64(len(p)), length)
		m.write(f, p, off)
	case 6, 7, 8, 9:
		p := m.bytes(m.size())
		m.log("inode %d: append %d to %d", f.ino, len(p), length)
		m.write(f, p, length)
	case 10:
		n := m.rnd.Int64N(length + 5000)
		m.log("inode %d: truncate %d to %d", f.ino, length, n)
		if _, err := m.r.SetAttr(ctx, f.ino, SetAttr{Valid: SetSize, Size: n}); m.unlessFull(err) {
			f.resize(n)
			f.changed()
		}
	case 11, 12:
		m.log("inode %d: fsync", f.ino)
		if m.unlessFull(f.h.Fsync(ctx, false)) {
			f.durable()
		}
	case 13:
		m.log("inode %d: flush", f.ino)
		m.unlessFull(f.h.Flush(ctx))
	case 14:
		m.log("sync")
		if m.unlessFull(m.r.Sync(ctx)) {
			for _, f := range m.files {
				f.durable()
			}
		}
	case 15:
		m.log("inode %d: commit", f.ino)
		f.h.f.move.Lock()
		err := f.h.f.commit(ctx)
		f.h.f.move.Unlock()
		m.unlessFull(err)
	case 16:
		m.log("inode %d: spill", f.ino)
		f.h.f.move.Lock()
		err := f.h.f.keep(ctx, true)
		f.h.f.move.Unlock()
		m.unlessFull(err)
	case 17:
		if !m.r.full.on.Load() {
			m.log("inode %d: CID", f.ino)
			m.compareCID(f)
		}
	case 18:
		if m.rnd.IntN(3) == 0 {
			m.log("close and open")
			m.reopen()
		}
	case 19:
		if m.rnd.IntN(3) == 0 {
			m.log("power loss")
			m.crash()
		}
	case 20:
		on := m.rnd.IntN(3) == 0
		m.names.on = on && m.rnd.IntN(3) == 0
		m.log("disk full: %v, for names as well: %v", on, m.names.on)
		m.r.full.on.Store(on)
	case 21:
		m.log("trim the journal")
		applied := m.r.journal.Last()
		m.must(m.r.db.Flush())
		m.must(m.r.TrimJournal(applied+1, func(keep journal.Seq) error {
			m.keep = keep
			return m.r.journal.Trim(keep)
		}))
	case 22:
		off, n, keepSize := m.rnd.Int64N(length+1), m.size(), m.rnd.IntN(2) == 0
		m.log("inode %d: zero [%d,%d) of %d, keep size %v", f.ino, off, off+n, length, keepSize)
		m.must(f.h.Zero(ctx, off, n, keepSize))
		end := off + n
		if keepSize {
			end = min(end, length)
		}
		f.resize(max(length, end))
		clear(f.content[off:end])
		f.changed()
	case 23:
		off, n, keepSize := m.rnd.Int64N(length+1), m.size(), m.rnd.IntN(2) == 0
		m.log("inode %d: allocate [%d,%d) of %d, keep size %v", f.ino, off, off+n, length, keepSize)
		m.must(f.h.Allocate(ctx, off, n, keepSize))
		if !keepSize {
			f.resize(max(length, off+n))
		}
		f.changed()
	case 24, 25:
		m.copyRange(f, m.files[m.rnd.IntN(len(m.files))])
	case 26:
		m.seek(f)
	case 27:
		if m.names.on {
			break
		}
		m.log("collect: %v", m.r.state.Collection().Phase())
		m.must(m.r.collectStep(ctx))
	case 28:
		if m.rnd.IntN(2) == 0 && !m.names.on {
			m.log("trim history")
			m.must(m.r.trimHistory(ctx))
		}
	case 29:
		off, p := m.rnd.Int64N(length+1), m.bytes(m.size())
		m.log("inode %d: write [%d,%d) of %d when memory is short", f.ino, off, off+int64(len(p)), length)
		m.r.mem.Add(memoryMax)
		_, err := f.h.Write(ctx, p, off)
		m.r.mem.Add(-memoryMax)
		if m.unlessFull(err) {
			f.write(p, off)
		}
	case 30:
		off, p := m.rnd.Int64N(length+1), m.bytes(m.size())
		m.log("inode %d: write pages [%d,%d) of %d", f.ino, off, off+int64(len(p)), length)
		_, err := f.h.WritePages(ctx, p, off)
		m.must(err)
		f.write(p[:min(int64(len(p)), length-off)], off)
	case 31, 32:
		m.chmod(f)
	default:
		m.compare(f)
	}
}

func (m *modelTest) chmod(f *modelFile) {
	mode := m.rnd.Uint32N(0o10000)
	m.log("inode %d: mode %#o", f.ino, mode)
	if _, err := m.r.SetAttr(m.t.Context(), f.ino, SetAttr{Valid: SetMode, Mode: mode}); m.unlessFull(err) {
		f.modes = append(f.modes, mode)
	}
}

// copyRange copies a part of one file, which may be the same, over another.
func (m *modelTest) copyRange(to, from *modelFile) {
	off, srcOff, n := m.rnd.Int64N(int64(len(to.content))+1), m.rnd.Int64N(int64(len(from.content))+1), m.size()*4
	if m.rnd.IntN(3) == 0 {
		off, srcOff, n = 0, 0, int64(len(from.content))
	}
	if to == from && off < srcOff+n && srcOff < off+n {
		return
	}
	m.log("inode %d: copy %d bytes at %d from inode %d at %d of %d", to.ino, n, off, from.ino, srcOff, len(from.content))
	got, err := to.h.CopyRange(m.t.Context(), off, from.h, srcOff, n)
	if !m.unlessFull(err) {
		return
	}
	n = min(n, int64(len(from.content))-srcOff)
	if got != n {
		m.fatalf("copied %d bytes, want %d", got, n)
	}
	if n > 0 {
		src := bytes.Clone(from.content[srcOff : srcOff+n])
		to.resize(max(int64(len(to.content)), off+n))
		copy(to.content[off:], src)
	}
	to.changed()
}

// seek goes through a file by its holes. What is in one must be zeros.
func (m *modelTest) seek(f *modelFile) {
	m.log("inode %d: seek", f.ino)
	at, size := int64(0), int64(len(f.content))
	for hole := true; at < size; hole = !hole {
		next, err := f.h.Seek(m.t.Context(), at, !hole)
		if errors.Is(err, ErrNoData) && hole {
			next, err = size, nil
		}
		m.must(err)
		// Zeros that were a hole are data once a worker has streamed them.
		if next < at || next > size || next == at && !hole {
			m.fatalf("inode %d: from %d of %d to %d (hole %v)", f.ino, at, size, next, hole)
		}
		if hole && len(bytes.Trim(f.content[at:next], "\x00")) > 0 {
			m.fatalf("inode %d: data in the hole [%d,%d)", f.ino, at, next)
		}
		at = next
	}
	if _, err := f.h.Seek(m.t.Context(), size, true); !errors.Is(err, ErrNoData) {
		m.fatalf("inode %d: a hole beyond the end: %v", f.ino, err)
	}
}

func (m *modelTest) write(f *modelFile, p []byte, off int64) {
	n, err := f.h.Write(m.t.Context(), p, off)
	m.must(err)
	if n != len(p) {
		m.fatalf("wrote %d of %d", n, len(p))
	}
	f.write(p, off)
}

// compare reads a random range and, now and then, the whole file.
func (m *modelTest) compare(f *modelFile) {
	from := m.rnd.Int64N(int64(len(f.content)) + 1)
	n := m.rnd.Int64N(int64(len(f.content)) - from + 100)
	if m.rnd.IntN(4) == 0 {
		from, n = 0, int64(len(f.content))+100
	}
	got := m.read(f, from, n)
	want := f.content[from:min(int64(len(f.content)), from+n)]
	if !bytes.Equal(got, want) {
		m.fatalf("inode %d: read [%d,%d) of %d: %s", f.ino, from, from+n, len(f.content), difference(got, want))
	}
	a, err := m.r.GetAttr(m.t.Context(), f.ino)
	m.must(err)
	if mode := f.modes[len(f.modes)-1]; a.Size != int64(len(f.content)) || a.Mode&^syscall.S_IFMT != mode {
		m.fatalf("inode %d: stat says %d bytes, mode %#o, want %d, %#o", f.ino, a.Size, a.Mode, len(f.content), mode)
	}
}

func (m *modelTest) read(f *modelFile, off, n int64) []byte {
	p := bytes.Repeat([]byte{0xee}, int(n))
	got, err := f.h.Read(m.t.Context(), p, off)
	m.must(err)
	return p[:got]
}

func (m *modelTest) compareAll() {
	for _, f := range m.files {
		if got := m.read(f, 0, int64(len(f.content))+1); !bytes.Equal(got, f.content) {
			m.fatalf("inode %d: %s", f.ino, difference(got, f.content))
		}
	}
}

// compareCID checks that the CID is that of the bytes, however they came to be.
func (m *modelTest) compareCID(f *modelFile) {
	got, err := m.r.GetXattr(m.t.Context(), f.ino, CIDAttr)
	m.must(err)
	w := manifest.NewWriter(new(mem.Store), testFormat(m.t))
	m.must(w.Write(m.t.Context(), f.content))
	want, err := w.Finish(m.t.Context())
	m.must(err)
	if string(got) != want.CID.String() {
		m.fatalf("inode %d: CID is %s, want %v", f.ino, got, want.CID)
	}
}

func (m *modelTest) open() {
	for _, f := range m.files {
		h, err := m.r.Open(m.t.Context(), f.ino, syscall.O_RDWR)
		m.must(err)
		f.h = h
	}
}

func (m *modelTest) reopen() {
	for _, f := range m.files {
		f.h.Release()
		f.durable()
	}
	m.r.full.on.Store(false)
	m.names.on = false
	m.r.close()
	m.openRig()
	m.open()
	m.compareAll()
}

func (m *modelTest) crash() {
	clone := m.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: m.rnd.IntN(101), RNG: m.rnd})
	if m.rnd.IntN(2) == 0 {
		clone = m.cutJournal()
	}
	m.r.abandon()
	m.fs = clone
	m.openRig()
	m.open()
	for _, f := range m.files {
		a, err := m.r.GetAttr(m.t.Context(), f.ino)
		m.must(err)
		got := m.read(f, 0, a.Size)
		mode := a.Mode &^ syscall.S_IFMT
		if !f.was(got, mode) {
			m.fatalf("inode %d: after power loss it is none of the %d versions since the last sync with a mode of then or later, but has mode %#o of %#o; against the newest: %s",
				f.ino, len(f.versions), mode, f.modes, difference(got, f.content))
		}
		f.content, f.modes = got, []uint32{mode}
		f.durable()
	}
}

// cutJournal returns a disk on which a random part of what was done since the last sync
// is left.
func (m *modelTest) cutJournal() *vfs.MemFS {
	before := len(journalFile(m.t, m.fs.CrashClone(vfs.CrashCloneCfg{}), nil))
	m.must(m.r.journal.Sync(m.t.Context()))
	disk := m.fs.CrashClone(vfs.CrashCloneCfg{})
	journalFile(m.t, disk, func(p []byte) []byte {
		if len(p) <= before { // another file
			return p
		}
		return p[:before+m.rnd.IntN(len(p)-before+1)]
	})
	return disk
}

func difference(got, want []byte) string {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Sprintf("%d bytes, want %d; byte %d is %#x, want %#x", len(got), len(want), i, got[i], want[i])
		}
	}
	return fmt.Sprintf("%d bytes, want %d; no byte differs", len(got), len(want))
}
