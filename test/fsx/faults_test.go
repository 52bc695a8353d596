//go:build linux

package fsx

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A tester that finds nothing wrong with a wrong file system is worthless. These
// tests do to files what a wrong file system would do.

// flip changes the byte at off.
func flip(t *testing.T, path string, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x10
	if _, err := f.WriteAt(b[:], off); err != nil {
		t.Fatal(err)
	}
}

// wantFound runs a test in which fault is called after each operation until it
// returns true, and all bytes are compared every so many operations. It wants a
// failure by then that says want, how to replay, and what was done.
func wantFound(t *testing.T, want string, every int, fault func(operation string, f *file) bool) {
	t.Helper()
	tester := newTester(Options{Dir: inMemory(t), Seed: 5, Ops: 3000, Refused: allocation, Replay: "replay this"})
	tester.every = every
	at := -1
	tester.disturb = func(operation string, f *file) {
		if at < 0 && tester.op > 500 && fault(operation, f) {
			at = tester.op
		}
	}
	err := tester.run(t.Context())
	if err == nil {
		t.Fatalf("fault after operation %d was not found", at)
	}
	for _, want := range []string{want, "replay this", "seed 5", "the last operations"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the failure does not say %q: %v", want, err)
		}
	}
	if found := tester.op - at; at < 0 || found > every {
		t.Errorf("fault after operation %d was found after operation %d: %v", at, tester.op, err)
	}
}

func TestOneWrongByteIsFound(t *testing.T) {
	wantFound(t, "the first wrong byte is at ", comparedAt, func(_ string, f *file) bool {
		if f.model.size < 1000 {
			return false
		}
		flip(t, f.path, 777)
		return true
	})
}

func TestAFaultOfOneOperationIsFound(t *testing.T) {
	for _, op := range operations {
		switch op.name {
		case "open and truncate", "make anew": // leave the file empty
			t.Run(op.name, func(t *testing.T) {
				wantFound(t, "has 0x1 bytes, want 0x0", 1, func(operation string, f *file) bool {
					return operation == op.name && os.WriteFile(f.path, []byte("x"), 0) == nil
				})
			})
		default:
			t.Run(op.name, func(t *testing.T) {
				wantFound(t, "the first wrong byte is at ", 1, func(operation string, f *file) bool {
					if operation != op.name || f.model.size == 0 {
						return false
					}
					flip(t, f.path, f.model.size/2)
					return true
				})
			})
		}
	}
}

func TestALostWriteIsFound(t *testing.T) {
	before := make(map[string][]byte)
	wantFound(t, "", comparedAt, func(operation string, f *file) bool {
		was := before[f.path]
		if operation == "write" && int64(len(was)) == f.model.size && f.model.difference(was, 0) >= 0 {
			if err := os.WriteFile(f.path, was, 0); err != nil {
				t.Fatal(err)
			}
			return true
		}
		now := make([]byte, f.model.size)
		f.model.read(now, 0)
		before[f.path] = now
		return false
	})
}

func TestAWrongSizeIsFoundAtOnce(t *testing.T) {
	wantFound(t, " bytes, want ", comparedAt, func(_ string, f *file) bool {
		if f.model.size < 1000 {
			return false
		}
		if err := os.Truncate(f.path, f.model.size-1); err != nil {
			t.Fatal(err)
		}
		return true
	})
}

func TestWhatARemountLosesIsFound(t *testing.T) {
	dir := inMemory(t)
	err := Run(t.Context(), Options{Dir: dir, Seed: 2, Ops: 20 * remountOneIn, Refused: allocation, Remount: func() error {
		if st, err := os.Stat(dir + "/fsx-a"); err == nil && st.Size() > 0 {
			flip(t, dir+"/fsx-a", st.Size()-1)
		}
		return nil
	}})
	if err == nil || !strings.Contains(err.Error(), "remount: fsx-a") {
		t.Errorf("a byte that changes while the file system is not mounted: %v", err)
	}
}

func TestAMappingThatEndsEarlyIsFound(t *testing.T) {
	tester := newTester(Options{Dir: inMemory(t), Seed: 4, Ops: 2000, Refused: allocation})
	tester.disturb = func(_ string, f *file) {
		tester.disturb = nil
		if err := os.Truncate(f.path, 0); err != nil {
			t.Fatal(err)
		}
		f.model.size = windowSize
		_ = f.window[windowSize-1] // SIGBUS
	}
	if err := tester.run(t.Context()); err == nil || !strings.Contains(err.Error(), "the last operations") {
		t.Errorf("access beyond the end of a mapped file: %v", err)
	}
}

// TestWrongAnswersOnHolesAreFound walks over a file with data in its second and
// fourth page, of five.
func TestWrongAnswersOnHolesAreFound(t *testing.T) {
	m := newModel()
	m.write([]byte("data"), 4096+5)
	m.write([]byte("data"), 3*4096+5)
	m.resize(5 * 4096)
	// known returns an lseek of a file that knows of data in some pages.
	known := func(data string) func(int64, int) (int64, error) {
		return func(off int64, whence int) (int64, error) {
			if off >= m.size {
				return 0, unix.ENXIO
			}
			for page := off / 4096; page < 5; page++ {
				if (data[page] == 'D') == (whence == unix.SEEK_DATA) {
					return max(off, page*4096), nil
				}
			}
			if whence == unix.SEEK_DATA {
				return 0, unix.ENXIO
			}
			return m.size, nil
		}
	}
	for data, right := range map[string]bool{
		".D.D.": true, "DDDDD": true, ".DDD.": true, "DD.D.": true, ".D.DD": true,
		"...D.": false, ".D...": false, ".....": false, "D..D.": false, "D.D.D": false,
	} {
		for off := int64(0); off <= 4097; off += 4097 {
			if err := walk(m, off, known(data)); (err == nil) != right {
				t.Errorf("data in %q, from %d: %v", data, off, err)
			}
		}
	}
	for what, seek := range map[string]func(int64, int) (int64, error){
		"stays where it is": func(off int64, _ int) (int64, error) { return off, nil },
		"goes back":         func(off int64, _ int) (int64, error) { return off - 1, nil },
		"goes too far":      func(off int64, _ int) (int64, error) { return m.size + 1, nil },
		"fails":             func(int64, int) (int64, error) { return 0, unix.EIO },
	} {
		if err := walk(m, 4096, seek); err == nil {
			t.Errorf("lseek that %s is not found", what)
		}
	}
}
