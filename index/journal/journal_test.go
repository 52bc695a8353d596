package journal

import (
	"bytes"
	"context"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestSanity(t *testing.T) {
	fs := vfs.NewMem()
	j, err := Open(Options{FS: fs, Dir: "j", FileSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Replay(0, 0, func(Record) error { t.Fatal("record"); return nil }); err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		seq, at, err := j.Append(KindRange, 0, bytes.Repeat([]byte{byte(i)}, i), []byte("x"))
		if err != nil || seq != Seq(i+1) {
			t.Fatal(seq, err)
		}
		b := make([]byte, at.Len)
		if err := j.ReadAt(b, at, 0); err != nil || b[at.Len-1] != 'x' || len(b) != i+1 {
			t.Fatal(err, b)
		}
	}
	if err := j.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Log(fs.String())
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j, err = Open(Options{FS: fs, Dir: "j", FileSize: 1000})
	if err != nil {
		t.Fatal(err)
	}
	n := Seq(40)
	if err := j.Replay(n, 0, func(r Record) error {
		if r.Seq != n || len(r.Payload) != int(r.Seq) {
			t.Fatal(r)
		}
		n++
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Log(n, j.Last(), j.Synced())
	if err := j.Trim(60); err != nil {
		t.Fatal(err)
	}
	t.Log(fs.String())
	if seq, _, err := j.Append(1, 0); err != nil || seq != 101 {
		t.Fatal(seq, err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
}
