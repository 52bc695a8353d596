package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const fileSuffix = ".segment"

func fileName(segment uint32) string { return fmt.Sprintf("%010d%s", segment, fileSuffix) }

// listSegments returns the numbers of the segments in dir in order.
func listSegments(vf vfs.FS, dir string) ([]uint32, error) {
	names, err := vf.List(dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint32
	for _, name := range names {
		digits, ok := strings.CutSuffix(name, fileSuffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 32)
		if err != nil || n == 0 || name != fileName(uint32(n)) {
			continue
		}
		numbers = append(numbers, uint32(n))
	}
	slices.Sort(numbers)
	return numbers, nil
}

// maxOpenFiles is how many segments are kept open for reading.
const maxOpenFiles = 128

// files are the segments open for reading. One that has not been used for a while
// makes room for another; it is closed when its last reader is done.
type files struct {
	fs  vfs.FS
	dir string

	mu   sync.RWMutex
	open map[uint32]*openFile // nil when closed
}

type openFile struct {
	vfs.File
	name string
	used atomic.Bool  // since the last look for one to close
	refs atomic.Int32 // readers, and one for being in files.open
}

func (f *files) init(vf vfs.FS, dir string) {
	f.fs, f.dir, f.open = vf, dir, make(map[uint32]*openFile)
}

func (f *files) path(segment uint32) string { return f.fs.PathJoin(f.dir, fileName(segment)) }

// acquire returns the segment, to be given back to release. A segment that does
// not exist is fs.ErrNotExist.
func (f *files) acquire(segment uint32) (*openFile, error) {
	f.mu.RLock()
	file, ok := f.open[segment]
	if ok {
		file.refs.Add(1)
		if !file.used.Load() {
			file.used.Store(true)
		}
	}
	f.mu.RUnlock()
	if ok {
		return file, nil
	}
	return f.add(segment)
}

func (f *files) add(segment uint32) (*openFile, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.open == nil {
		return nil, ErrClosed
	}
	file, ok := f.open[segment]
	if !ok {
		opened, err := f.fs.Open(f.path(segment))
		if err != nil {
			return nil, err
		}
		for len(f.open) >= maxOpenFiles {
			f.evict()
		}
		file = &openFile{File: opened, name: fileName(segment)}
		file.refs.Store(1)
		f.open[segment] = file
	}
	file.refs.Add(1)
	return file, nil
}

// evict drops a file that was not used since the last time, or any.
func (f *files) evict() {
	var victim uint32
	for segment, file := range f.open {
		victim = segment
		if !file.used.Swap(false) {
			break
		}
	}
	file := f.open[victim]
	delete(f.open, victim)
	f.release(file)
}

// remove deletes a segment. Readers that have it open are not disturbed; its space
// comes back when the last of them is done.
func (f *files) remove(segment uint32) error {
	if err := f.fs.Remove(f.path(segment)); err != nil && !missing(err) {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if file, ok := f.open[segment]; ok {
		delete(f.open, segment)
		f.release(file)
	}
	return nil
}

func (f *files) release(file *openFile) {
	if file.refs.Add(-1) == 0 {
		_ = file.Close() // only read from: nothing can be lost
	}
}

func (f *files) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, file := range f.open {
		f.release(file)
	}
	f.open = nil
	return nil
}

func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
