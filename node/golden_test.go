package node

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace"
)

// unpack makes a store of an archive in testdata.
func unpack(t *testing.T, name string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "store")
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.Clean("/"+h.Name))
		if h.FileInfo().IsDir() {
			err = os.MkdirAll(path, 0o700)
		} else {
			var data []byte
			if data, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(path, data, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Rule 5: stores that a program of version 1 has made, of a node on its own and of the
// first of a cluster, open with all they hold and are at the latest version then.
func TestStoresOfVersion1Open(t *testing.T) {
	const hello = "bafkr4ieojr6bxgo37viopkkrqx7k2xxbish2sbfc7xlxr2xv6ln72yu2te"
	cid, err := cas.ParseCID(hello)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"version1.tar.gz", "version1-member.tar.gz"} {
		dir := unpack(t, name)
		n := openMember(t, Options{Dir: dir})
		b, err := n.Get(t.Context(), cid, nil)
		if err != nil || string(b.Data()) != "hello\n" {
			t.Errorf("%s: %v", name, err)
		}
		if s, err := n.Status(t.Context()); err != nil || s.Pins.Count != 1 {
			t.Errorf("%s: %+v, %v", name, s.Pins, err)
		}
		eventually(t, name+" is at the latest version", func() bool { return n.state.Version() == namespace.Version })
		write(t, n.Volume(), "new", []byte("x"))
		n.close(t)
		again := openMember(t, Options{Dir: dir})
		if v := again.state.Version(); v != namespace.Version {
			t.Errorf("%s: version %d after a restart", name, v)
		}
		again.close(t)
	}
}
