package volume

import (
	"bytes"
	"errors"
	"testing"

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
