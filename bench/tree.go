package bench

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// A source tree that is the same wherever it is made, but for a seed that makes
// its content new. Its shape is like that of the Go toolchain's own sources: one
// entry in ten is a directory, they are nested about as deep, and some hold
// hundreds of files and most a few. Sizes are log-normal with a median of 2 KiB
// and a mean of about 9.

const (
	treeMedian = 2 << 10 // bytes of a file
	treeSigma  = 1.75    // of the logarithm of sizes
	treeMax    = 1 << 20 // bytes of the largest file
	treeDepth  = 9
)

// treeEntry is a directory or a file of a tree.
type treeEntry struct {
	name string // path within the tree
	dir  bool
	size int64
}

// newTree returns n entries in the order of their names as bytes, so that a
// directory is before what is in it.
func newTree(n int) []treeEntry {
	rnd := rand.New(rand.NewPCG(uint64(n), 0))
	dirs := []string{""}
	entries := make([]treeEntry, 0, n)
	for i := range n {
		parent := dirs[int(float64(len(dirs))*math.Pow(rnd.Float64(), 1.5))]
		name := path.Join(parent, word(rnd)+"_"+word(rnd))
		if i%10 == 0 && strings.Count(parent, "/") < treeDepth-1 {
			name += fmt.Sprint(i)
			dirs = append(dirs, name)
			entries = append(entries, treeEntry{name: name, dir: true})
		} else {
			size := treeMedian * math.Exp(treeSigma*rnd.NormFloat64())
			entries = append(entries, treeEntry{name: name + fmt.Sprint(i) + ".go", size: int64(min(size, treeMax))})
		}
	}
	slices.SortFunc(entries, func(a, b treeEntry) int { return strings.Compare(a.name, b.name) })
	return entries
}

// writeTree makes a tar file of the entries. Their content is text that nothing
// with another seed has.
func writeTree(w io.Writer, entries []treeEntry, seed uint64) error {
	buffered := bufio.NewWriterSize(w, pieceSize)
	out := tar.NewWriter(buffered)
	c := newText(seed)
	off := int64(0)
	for _, e := range entries {
		h := &tar.Header{
			Typeflag: tar.TypeReg, Name: e.name, Size: e.size, Mode: 0o644,
			Uid: os.Geteuid(), Gid: os.Getegid(), ModTime: time.Unix(1<<30, 0),
		}
		if e.dir {
			h.Typeflag, h.Name, h.Mode = tar.TypeDir, e.name+"/", 0o755
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if err := c.copyTo(out, off, e.size); err != nil {
			return err
		}
		off += e.size
	}
	return errors.Join(out.Close(), buffered.Flush())
}
