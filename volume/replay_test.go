package volume

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/manifest"
)

func TestRangeRecordsRoundTrip(t *testing.T) {
	for _, want := range []rangeRecord{
		{},
		{Ino: 1 << 63, Off: maxSize, Mtime: -5},
		{Ino: 7, Off: 4096, Mtime: 1 << 60, Truncate: true},
		{Ino: 7, Off: 1, More: true},
		{Ino: 7, Off: 1, N: maxSize - 1, Kind: zeros},
		{Ino: 7, Off: 1, N: 50, Kind: shared, First: true, TreeOff: 3, Tree: manifest.Root{CID: cas.Sum(cas.DagPB, nil), Size: 60, Holes: 20}},
	} {
		got, err := decodeRange(want.encode())
		if err != nil || got != want {
			t.Errorf("%+v came back as %+v, %v", want, got, err)
		}
	}
	// The format is on disks: it must not change under version 1.
	head := (&rangeRecord{Ino: 0x0102, Off: 0x0304, Mtime: 0x0506, More: true}).encode()
	golden := []byte{1, 2, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 4, 0, 0, 0, 0, 0, 0, 5, 6}
	if !bytes.Equal(head, golden) {
		t.Errorf("record is %v, want %v", head, golden)
	}
	hole := (&rangeRecord{Ino: 1, Off: 2, N: 3, Kind: zeros}).encode()
	golden = []byte{1, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3}
	if !bytes.Equal(hole, golden) {
		t.Errorf("record is %v, want %v", hole, golden)
	}
}

func TestRecordsThatContradictThemselvesAreRefused(t *testing.T) {
	tree := manifest.Root{CID: cas.Sum(cas.Raw, nil), Size: 60}
	for what, r := range map[string]rangeRecord{
		"offset below 0":            {Off: -1},
		"zeros beyond the end":      {Off: 1, N: maxSize, Kind: zeros},
		"fewer than no zeros":       {N: -1, Kind: zeros},
		"more than the tree has":    {N: 50, Kind: shared, TreeOff: 11, Tree: tree},
		"before the tree":           {N: 5, Kind: shared, TreeOff: -1, Tree: tree},
		"a tree without a CID":      {N: 5, Kind: shared, Tree: manifest.Root{Size: 60}},
		"both zeros and a truncate": {N: 5, Kind: zeros, Truncate: true},
	} {
		if got, err := decodeRange(r.encode()); !errors.Is(err, ErrRecord) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
}

// FuzzRange decodes arbitrary bytes as a range record. What is accepted lies
// within a file and is written back as it was.
func FuzzRange(f *testing.F) {
	for _, r := range []rangeRecord{
		{Ino: 1, Off: 5}, {Ino: 2, Truncate: true}, {Ino: 3, Off: maxSize - 1, More: true}, {Ino: 4, N: 9, Kind: zeros},
		{Ino: 5, N: 3, Kind: shared, TreeOff: 2, Tree: manifest.Root{CID: cas.Sum(cas.Raw, nil), Size: 5, Holes: 1}},
	} {
		f.Add(r.encode())
		f.Add(append(r.encode(), "bytes"...))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		r, err := decodeRange(p)
		if err != nil {
			return
		}
		if r.Off < 0 || r.N < 0 || r.Off > maxSize-r.N {
			t.Errorf("%+v out of %d bytes", r, len(p))
		}
		if r.Kind == written {
			p = p[:rangeHeaderSize]
		}
		if again := r.encode(); !bytes.Equal(again, p) {
			t.Errorf("%v is written back as %v", p, again)
		}
	})
}

// A power loss may cut the journal off anywhere after what was synced. What a file's
// stream holds has no name for a while: nothing that was written later may be found
// without it.
func TestAPowerLossNeverTakesTheMiddle(t *testing.T) {
	const streamed, gap = 3 << 20, 2 << 20
	end := append(make([]byte, gap), "the end"...)
	all := append(pattern(streamed, 1), end...)
	over := bytes.Clone(all)
	copy(over[1<<20:], "written over")
	filled := bytes.Clone(all)
	fill := filled[streamed:][:gap]
	copy(fill, pattern(gap, 2))
	const most = gap * 5 / 8 // so that the rest is too little for a stream
	drain := func(h *Handle) error {
		h.f.move.Lock()
		defer h.f.move.Unlock()
		return h.f.drainTail(t.Context())
	}
	for name, c := range map[string]struct {
		then    func(*rig, *Handle)
		content [][]byte // what may be found besides nothing, the last if nothing is cut off
	}{
		"memory is short": {func(r *rig, h *Handle) {
			r.write(h, []byte("written over"), 1<<20)
			r.mem.Add(memoryMax)
			defer r.mem.Add(-memoryMax)
			r.write(h, []byte("and over"), 2<<20) // in memory; what came before goes to the journal
		}, [][]byte{over}},
		"synced": {func(r *rig, h *Handle) { r.must(h.f.secure(t.Context())) }, [][]byte{all}},
		"the gap is filled from the start": {func(r *rig, h *Handle) {
			r.write(h, fill[:most], streamed)
			r.must(drain(h)) // what is later in the file was written earlier
			r.write(h, fill[most:], streamed+most)
			r.must(h.f.secure(t.Context()))
		}, [][]byte{filled}},
		"the gap is filled from the end, on a full disk": {func(r *rig, h *Handle) {
			r.full.on.Store(true)
			h.f.move.Lock() // no worker comes first
			r.write(h, fill[most:], streamed+most)
			r.write(h, fill[:most], streamed)
			err := h.f.drainTail(t.Context())
			h.f.move.Unlock()
			if !errors.Is(err, cas.ErrNoSpace) {
				t.Errorf("stored on a full disk: %v", err)
			}
			r.full.on.Store(false)
			r.must(h.f.secure(t.Context()))
		}, [][]byte{filled}},
		"cut to nothing": {func(r *rig, h *Handle) { r.resize(h.Ino(), 0) }, [][]byte{{}}},
		"cut off":        {func(r *rig, h *Handle) { r.resize(h.Ino(), streamed) }, [][]byte{all, all[:streamed]}},
	} {
		t.Run(name, func(t *testing.T) {
			fs := vfs.NewCrashableMem()
			r := openRig(t, fs, 0)
			h := r.create("file")
			r.must(r.Sync(t.Context()))
			synced := len(journalFile(t, fs, nil))
			h.f.move.Lock() // no worker comes first
			r.write(h, all[:streamed], 0)
			h.f.move.Unlock()
			r.must(drain(h))
			r.write(h, []byte("the end"), streamed+gap)
			c.then(r, h)
			r.must(r.journal.Sync(t.Context()))
			written := len(journalFile(t, fs, nil))
			for left := synced; ; left = min(left+13+(left-synced)/8, written) {
				cut := func(p []byte) []byte { return p[:left] }
				disk := fs.CrashClone(vfs.CrashCloneCfg{})
				journalFile(t, disk, cut)
				after := openRig(t, disk, 0)
				a, err := after.GetAttr(t.Context(), h.Ino())
				after.must(err)
				got := make([]byte, a.Size)
				if a.Size > 0 {
					o := after.open(h.Ino())
					_, err = o.Read(t.Context(), got, 0)
					after.must(err)
					o.Release()
				}
				found := slices.IndexFunc(c.content, func(want []byte) bool { return bytes.Equal(got, want) })
				if found < 0 && a.Size > 0 || left == written && found != len(c.content)-1 {
					t.Errorf("after %d of %d bytes of the journal: %s", left-synced, written-synced, difference(got, c.content[len(c.content)-1]))
				}
				after.abandon()
				if left == written {
					break
				}
			}
			h.Release()
			r.close()
		})
	}
}

// journalFile returns the bytes of the newest file of the journal, and leaves what
// change makes of them in their place.
func journalFile(t *testing.T, fs vfs.FS, change func([]byte) []byte) []byte {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	names, err := fs.List("journal")
	must(err)
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasSuffix(name, ".journal") })
	path := fs.PathJoin("journal", slices.Max(names))
	f, err := fs.Open(path)
	must(err)
	p, err := io.ReadAll(f)
	must(errors.Join(err, f.Close()))
	if change != nil {
		f, err = fs.Create(path, vfs.WriteCategoryUnspecified)
		must(err)
		_, err = f.Write(change(p))
		must(errors.Join(err, f.Sync(), f.Close()))
		dir, err := fs.OpenDir("journal")
		must(err)
		must(errors.Join(dir.Sync(), dir.Close()))
	}
	return p
}
