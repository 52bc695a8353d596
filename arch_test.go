// Package cairn_test holds what is true of the project as a whole.
package cairn_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/cairnfs/cairn/"

// layers says on which layer each package lies. A package may import packages
// of lower layers only, so that every one of them can be understood, tested and
// replaced without knowing what is built on it. ARCHITECTURE.md says what each
// of them is.
var layers = map[string]int{
	"chunker": 0,
	"cas":     0,
	"p2p":     0,

	"index":         1,
	"index/journal": 1,
	"index/stamp":   0,
	"test/fsx":      0,
	"cas/mem":       1,
	"cas/castest":   1,

	"p2p/rpc":        1,
	"p2p/memnet":     1,
	"p2p/invite":     1,
	"p2p/placement":  1,
	"p2p/membership": 1,
	"p2p/host":       2,

	"cas/segment":  2,
	"cas/manifest": 2,

	"namespace":             3,
	"namespace/namespacepb": 2,
	"cas/tree":              3,

	"cas/cache":    3,
	"cas/gc":       3,
	"p2p/exchange": 3,
	"p2p/replica":  4,

	"namespace/solo": 4,
	"namespace/raft": 4,
	"volume":         4,

	"mount": 5,

	"node/control": 5,
	"node":         6,

	"test/posix":   0,
	"test/cluster": 0,

	"bench":     7,
	"cmd":       8,
	"cmd/cairn": 9,
}

// testOnly are packages that only tests may import, from any layer.
var testOnly = map[string]bool{"cas/castest": true, "cas/mem": true, "p2p/memnet": true, "test/fsx": true, "test/posix": true}

// TestImportsGoDownTheLayers reads the imports of every Go file, whatever its
// build constraints.
func TestImportsGoDownTheLayers(t *testing.T) {
	seen := make(map[string]bool)
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && file != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		pkg := path.Dir(filepath.ToSlash(file))
		layer, ok := layers[pkg]
		if !ok {
			t.Errorf("%s: package %s has no layer: add it to the table and to ARCHITECTURE.md", file, pkg)
			return nil
		}
		seen[pkg] = true
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			to, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			if testOnly[to] {
				t.Errorf("%s imports %s, which is for tests", file, to)
			}
			if below, ok := layers[to]; !ok || below >= layer {
				t.Errorf("%s (layer %d) imports %s (layer %d): imports go downwards", file, layer, to, below)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range layers {
		if !seen[pkg] {
			t.Errorf("package %s is in the table but not in the tree", pkg)
		}
	}
}
