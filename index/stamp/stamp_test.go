package stamp

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func random() io.Reader { return rand.NewChaCha8([32]byte{1}) }

func put(t *testing.T, vf vfs.FS, name, text string) {
	t.Helper()
	f, err := vf.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestANewStoreGetsAnIDAndKeepsItThroughPowerLoss(t *testing.T) {
	vf := vfs.NewCrashableMem()
	id, err := Open(vf, "a/b/c", "things", 3, random())
	if err != nil || id == (ID{}) {
		t.Fatalf("Open = %x, %v", id, err)
	}
	crashed := vf.CrashClone(vfs.CrashCloneCfg{})
	again, err := Open(crashed, "a/b/c", "things", 3, nil)
	if err != nil || again != id {
		t.Fatalf("after the crash: %x, %v; want %x", again, err, id)
	}
}

func TestAHalfMadeStoreIsMadeAgain(t *testing.T) {
	vf := vfs.NewMem()
	if err := vf.MkdirAll("d", 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, vf, "d/"+tempName, "cairn thi")
	if _, err := Open(vf, "d", "things", 1, random()); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsNotOursIsRefusedUntouched(t *testing.T) {
	good := line("things", 1, ID{7})
	rotten := strings.Replace(good, "things", "thinks", 1)
	for _, c := range []struct {
		name, file, text string
		is               error
	}{
		{"files without stamp", "photo.jpg", "jpeg", ErrForeign},
		{"another kind", fileName, line("notes", 1, ID{7}), ErrForeign},
		{"bit rot", fileName, rotten, ErrDamaged},
		{"not a stamp", fileName, "hello\n", ErrDamaged},
		{"empty stamp", fileName, "", ErrDamaged},
		{"no id", fileName, line("things", 1, ID{}), ErrDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			vf := vfs.NewMem()
			if err := vf.MkdirAll("d", 0o755); err != nil {
				t.Fatal(err)
			}
			put(t, vf, "d/"+c.file, c.text)
			before := vf.String()
			if _, err := Open(vf, "d", "things", 1, random()); !errors.Is(err, c.is) {
				t.Errorf("error %v, want %v", err, c.is)
			}
			if vf.String() != before {
				t.Errorf("the directory changed:\n%s\nwas:\n%s", vf.String(), before)
			}
		})
	}
}

func TestANewerVersionIsRefusedUntouchedEvenIfItsStampSaysMore(t *testing.T) {
	more := "cairn things 9 to-be-defined and more "
	for _, text := range []string{line("things", 9, ID{7}), withSum(more)} {
		vf := vfs.NewMem()
		if err := vf.MkdirAll("d", 0o755); err != nil {
			t.Fatal(err)
		}
		put(t, vf, "d/"+fileName, text)
		before := vf.String()
		var newer *VersionError
		if _, err := Open(vf, "d", "things", 2, random()); !errors.As(err, &newer) || newer.Found != 9 || newer.Supported != 2 {
			t.Errorf("error %v, want a VersionError of 9", err)
		}
		if vf.String() != before {
			t.Errorf("the directory changed:\n%s", vf.String())
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(line("things", 1, ID{1}))
	f.Add("cairn things 1")
	f.Add(withSum("cairn things 1 xyz "))
	f.Fuzz(func(t *testing.T, text string) {
		kind, version, id, ok := parse(text)
		if !ok || (id == ID{}) {
			return
		}
		k, v, i, ok := parse(line(kind, version, id))
		if !ok || k != kind || v != version || !bytes.Equal(i[:], id[:]) {
			t.Errorf("%q reads as %q %d %x, which does not round-trip", text, kind, version, id)
		}
	})
}
