package volume

import (
	"bytes"
	"testing"
)

func TestRangeRecordsRoundTrip(t *testing.T) {
	for _, want := range []rangeRecord{
		{},
		{Ino: 1 << 63, Off: maxSize, Mtime: -5},
		{Ino: 7, Off: 4096, Mtime: 1 << 60, Truncate: true},
		{Ino: 7, Off: 1, More: true},
	} {
		head := want.encode()
		got, n, err := decodeRange(head[:])
		if err != nil || got != want || n != 0 {
			t.Errorf("%+v came back as %+v with %d bytes, %v", want, got, n, err)
		}
	}
	// The format is on disks: it must not change under version 1.
	head := (&rangeRecord{Ino: 0x0102, Off: 0x0304, Mtime: 0x0506, More: true}).encode()
	golden := []byte{1, 2, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 3, 4, 0, 0, 0, 0, 0, 0, 5, 6}
	if !bytes.Equal(head[:], golden) {
		t.Errorf("record is %v, want %v", head, golden)
	}
}

// FuzzRange decodes arbitrary bytes as a range record. What is accepted lies
// within a file and is written back as it was.
func FuzzRange(f *testing.F) {
	for _, r := range []rangeRecord{{Ino: 1, Off: 5}, {Ino: 2, Truncate: true}, {Ino: 3, Off: maxSize - 1, More: true}} {
		head := r.encode()
		f.Add(append(head[:], "bytes"...))
		f.Add(head[:])
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		r, n, err := decodeRange(p)
		if err != nil {
			return
		}
		if r.Off < 0 || n < 0 || r.Off+n > maxSize || int64(len(p)) != rangeHeaderSize+n {
			t.Errorf("%+v with %d bytes out of %d", r, n, len(p))
		}
		if head := r.encode(); !bytes.Equal(head[:], p[:rangeHeaderSize]) {
			t.Errorf("%v is written back as %v", p[:rangeHeaderSize], head)
		}
	})
}
