package volume

import (
	"bytes"
	"context"
	"errors"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
)

// Rules of sizes, and of what a restart makes of the records of a file.

func (r *rig) create(name string) *Handle {
	r.t.Helper()
	_, h, err := r.Create(r.t.Context(), namespace.RootIno, name, 0o644, syscall.O_RDWR, Caller{})
	r.must(err)
	return h
}

func (r *rig) open(ino namespace.Ino) *Handle {
	r.t.Helper()
	h, err := r.Open(r.t.Context(), ino, syscall.O_RDWR)
	r.must(err)
	return h
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) write(h *Handle, p []byte, off int64) {
	r.t.Helper()
	_, err := h.Write(r.t.Context(), p, off)
	r.must(err)
}

func (r *rig) resize(ino namespace.Ino, size int64) {
	r.t.Helper()
	_, err := r.SetAttr(r.t.Context(), ino, SetAttr{Valid: SetSize, Size: size})
	r.must(err)
}

// expect fails the test unless the file holds want and nothing else.
func (r *rig) expect(ino namespace.Ino, want []byte) {
	r.t.Helper()
	h := r.open(ino)
	defer h.Release()
	got := make([]byte, len(want)+100)
	n, err := h.Read(r.t.Context(), got, 0)
	r.must(err)
	if !bytes.Equal(got[:n], want) {
		r.t.Fatalf("inode %d: %s", ino, difference(got[:n], want))
	}
	a, err := r.GetAttr(r.t.Context(), ino)
	r.must(err)
	if a.Size != int64(len(want)) {
		r.t.Fatalf("inode %d: stat says %d bytes, want %d", ino, a.Size, len(want))
	}
}

// powerLoss returns the rig on what was synced.
func (r *rig) powerLoss(fs *vfs.MemFS) (*rig, *vfs.MemFS) {
	r.t.Helper()
	clone := fs.CrashClone(vfs.CrashCloneCfg{})
	r.abandon()
	return openRig(r.t, clone, 0), clone
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7+i>>8) ^ seed
	}
	return p
}

// The records of a file that was cut to nothing and forgotten must not be
// replayed over what is written later.
func TestRecordsBeforeATruncateStayInThePast(t *testing.T) {
	fs := vfs.NewCrashableMem()
	r := openRig(t, fs, 0)
	h := r.create("file")
	r.write(h, pattern(20<<10, 1), 0)
	r.must(h.Fsync(t.Context(), false)) // by the journal
	r.resize(h.Ino(), 0)
	h.Release()
	r.resize(h.Ino(), 5000)
	r.expect(h.Ino(), make([]byte, 5000))
	h = r.open(h.Ino())
	r.write(h, pattern(9000, 2), 0)
	r.must(h.Flush(t.Context()))
	h.Release()
	r.must(r.Sync(t.Context()))
	r, _ = r.powerLoss(fs)
	r.expect(h.Ino(), pattern(9000, 2))
	r.close()
}

// A restart would not get past a record beyond the largest size.
func TestSizesBeyondTheLargestAreRefusedAndLeaveNoRecord(t *testing.T) {
	fs := vfs.NewCrashableMem()
	r := openRig(t, fs, 0)
	h := r.create("file")
	r.write(h, pattern(20<<10, 1), 0)
	r.must(h.Fsync(t.Context(), false))
	_, err := h.Write(t.Context(), []byte("x"), maxSize)
	_, copyErr := h.CopyRange(t.Context(), maxSize-5, h, 0, 6)
	for what, err := range map[string]error{
		"write": err, "zero": h.Zero(t.Context(), maxSize, 1, false), "allocate": h.Allocate(t.Context(), 1, maxSize, false), "copy": copyErr,
	} {
		if !errors.Is(err, ErrTooBig) {
			t.Errorf("%s beyond the largest size: %v", what, err)
		}
	}
	r.must(r.Sync(t.Context()))
	r, _ = r.powerLoss(fs)
	r.expect(h.Ino(), pattern(20<<10, 1))
	r.close()
}

// The size of a hole costs neither memory nor time.
func TestTheLargestSparseFileIsCheap(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	for _, start := range []string{"", "inline", string(pattern(20<<10, 3))} {
		h := r.create("file" + start[:min(len(start), 3)])
		if start != "" {
			r.write(h, []byte(start), 0)
		}
		r.must(h.Flush(t.Context()))
		r.resize(h.Ino(), maxSize)
		got, err := r.GetXattr(t.Context(), h.Ino(), CIDAttr)
		r.must(err)
		w := manifest.NewWriter(new(mem.Store), testFormat(t))
		r.must(w.Write(t.Context(), []byte(start)))
		r.must(w.WriteZeros(t.Context(), maxSize-int64(len(start))))
		want, err := w.Finish(t.Context())
		r.must(err)
		if string(got) != want.CID.String() {
			t.Errorf("CID is %s, want %v", got, want.CID)
		}
		r.write(h, []byte("end"), maxSize-3)
		r.must(h.Fsync(t.Context(), false))
		r.must(h.Flush(t.Context()))
		p := make([]byte, 10)
		if n, err := h.Read(t.Context(), p, maxSize-5); err != nil || string(p[:n]) != "\x00\x00end" {
			t.Errorf("the end is %q, %v", p[:n], err)
		}
		h.Release()
	}
	r.close()
}

// recordAlone appends a record as a process does that dies right after.
func (r *rig) recordAlone(rec rangeRecord, p []byte) {
	r.t.Helper()
	_, _, err := r.appendRange(&rec, p)
	r.must(err)
	r.must(r.journal.Sync(r.t.Context()))
}

// A group that was cut off is left out, also when records follow it.
func TestAGroupThatWasCutOffNeverComesBack(t *testing.T) {
	fs := vfs.NewCrashableMem()
	r := openRig(t, fs, 0)
	h := r.create("file")
	r.write(h, pattern(20<<10, 1), 0)
	r.must(h.Flush(t.Context()))
	r.recordAlone(rangeRecord{Ino: h.Ino(), Off: 100, First: true, More: true}, []byte("never acknowledged"))
	r, fs = r.powerLoss(fs)
	want := pattern(20<<10, 1)
	r.expect(h.Ino(), want)
	h = r.open(h.Ino())
	r.write(h, []byte("later"), 5000)
	r.must(h.Fsync(t.Context(), false))
	r, _ = r.powerLoss(fs)
	copy(want[5000:], "later")
	r.expect(h.Ino(), want)
	r.close()
}

// A truncate whose command was lost must not make a later fsync believe that
// what a stream holds has a name already.
func TestAfterATruncateWithoutItsCommandStreamsAreNamed(t *testing.T) {
	fs := vfs.NewCrashableMem()
	r := openRig(t, fs, 0)
	h := r.create("file")
	want := pattern(5<<20, 1)
	r.write(h, want, 0)
	r.must(h.Flush(t.Context()))
	r.recordAlone(rangeRecord{Ino: h.Ino(), Off: 1 << 20, Truncate: true, First: true}, nil)
	r, fs = r.powerLoss(fs)
	want = append(want[:1<<20:1<<20], pattern(2<<20, 2)...)
	h = r.open(h.Ino())
	r.write(h, want[1<<20:], 1<<20)
	r.must(h.Fsync(t.Context(), false))
	r, _ = r.powerLoss(fs)
	r.expect(h.Ino(), want)
	r.close()
}

// What a truncate cuts off reads as zeros when the file grows again, even when
// the command of the first was lost.
func TestATruncateWithoutItsCommandIsNotUndoneByTheNext(t *testing.T) {
	fs := vfs.NewCrashableMem()
	r := openRig(t, fs, 0)
	h := r.create("file")
	r.write(h, pattern(20<<10, 1), 0)
	r.must(h.Flush(t.Context()))
	r.recordAlone(rangeRecord{Ino: h.Ino(), Off: 10, Truncate: true, First: true}, nil)
	r, _ = r.powerLoss(fs)
	r.resize(h.Ino(), 15<<10)
	want := append(pattern(10, 1), make([]byte, 15<<10-10)...)
	r.expect(h.Ino(), want)
	r.expect(h.Ino(), want) // from a file that was read anew, if it was forgotten
	r.close()
}

func TestGroupsOfOneFileAreToldApart(t *testing.T) {
	rec := func(off int64, first, more bool) replayed {
		return replayed{rangeRecord: rangeRecord{Off: off, N: 1, First: first, More: more}, seq: journal.Seq(off)}
	}
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("file")
	h.Release()
	r.replayed = map[namespace.Ino][]replayed{h.Ino(): {
		rec(1, true, true), rec(2, false, false), // whole
		rec(3, true, true), rec(4, false, true), // cut off by
		rec(5, true, false),
		rec(6, true, true), // cut off by the end
	}}
	r.must(r.restore())
	var offs []int64
	f := r.files[h.Ino()]
	for _, e := range f.dirty.all() {
		offs = append(offs, e.off)
	}
	if len(offs) != 3 || offs[0] != 1 || offs[1] != 2 || offs[2] != 5 {
		t.Errorf("restored %v, want 1, 2 and 5", offs)
	}
	delete(r.files, h.Ino())
	r.close()
}

// refusing is a log that has no space while it is switched on.
type refusing struct {
	namespace.Log
	on bool
}

func (l *refusing) Propose(ctx context.Context, cmd *namespace.Command) (namespace.Result, error) {
	if l.on {
		return namespace.Result{}, cas.ErrNoSpace
	}
	return l.Log.Propose(ctx, cmd)
}

// Of a truncate that fails nothing is left in the journal, and one of which something is
// left does not fail: a restart must not cut off what was synced afterwards.
func TestAFileIsCutOnAFullDiskIfARestartWouldCutIt(t *testing.T) {
	for _, low := range []bool{true, false} {
		fs := vfs.NewCrashableMem()
		r := openRig(t, fs, 0)
		h := r.create("file")
		want := pattern(20<<10, 1)
		r.write(h, want, 0)
		r.must(h.Fsync(t.Context(), false)) // by the journal
		log := &refusing{Log: r.log}
		r.o.Log = log
		room := r.o.Usage
		if low {
			r.o.Usage = func() (Usage, error) { return Usage{Total: 1 << 30, Low: true}, nil }
			r.room.asked.Store(0)
		} else {
			log.on = true // after the journal took the record
			want = want[:10]
		}
		_, err := r.SetAttr(t.Context(), h.Ino(), SetAttr{Valid: SetSize, Size: 10})
		if low != errors.Is(err, cas.ErrNoSpace) || !low && err != nil {
			t.Errorf("low %v: %v", low, err)
		}
		log.on, r.o.Usage = false, room
		r.room.asked.Store(0)
		r.expect(h.Ino(), want)
		r.write(h, []byte("later"), 5)
		want = append(bytes.Clone(want[:5]), append([]byte("later"), want[10:]...)...)
		r.must(h.Fsync(t.Context(), false))
		r, fs = r.powerLoss(fs)
		r.expect(h.Ino(), want)
		r.close()
		r = openRig(t, fs, 0)
		r.expect(h.Ino(), want)
		r.close()
	}
}
