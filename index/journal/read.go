package journal

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

const fileSuffix = ".journal"

// fileName names a file by its first record, in decimal and so that names sort.
func fileName(first uint64) string { return fmt.Sprintf("%020d%s", first, fileSuffix) }

func (j *Journal) path(first uint64) string { return j.o.FS.PathJoin(j.o.Dir, fileName(first)) }

// listFiles returns the files in dir in order.
func listFiles(vf vfs.FS, dir string) ([]file, error) {
	names, err := vf.List(dir)
	if err != nil {
		return nil, err
	}
	var files []file
	for _, name := range names {
		digits, ok := strings.CutSuffix(name, fileSuffix)
		if !ok {
			continue
		}
		first, err := strconv.ParseUint(digits, 10, 64)
		if err != nil || first == 0 || name != fileName(first) {
			continue
		}
		info, err := vf.Stat(vf.PathJoin(dir, name))
		if err != nil {
			return nil, err
		}
		files = append(files, file{first: Seq(first), size: info.Size()})
	}
	slices.SortFunc(files, func(a, b file) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	return files, nil
}

// ReadAt fills p with bytes [off, off+len(p)) of the payload at the given place,
// whether it is durable or still in the buffer. It does not check the record's
// checksum, which covers the payload as a whole; Replay does.
//
// Errors: ErrTrimmed, ErrRange, ErrClosed, else the I/O error.
func (j *Journal) ReadAt(p []byte, at Location, off int64) error {
	if off < 0 || at.Offset < headerSize || off+int64(len(p)) > at.Len {
		return ErrRange
	}
	pos := at.Offset + off
	j.mu.Lock()
	i := slices.IndexFunc(j.files, func(f file) bool { return uint64(f.first) == at.File })
	switch {
	case j.closed:
		j.mu.Unlock()
		return ErrClosed
	case i < 0:
		j.mu.Unlock()
		return ErrTrimmed
	case pos+int64(len(p)) > j.files[i].size:
		j.mu.Unlock()
		return ErrRange
	}
	if i == len(j.files)-1 {
		if inFile := max(0, min(j.written-pos, int64(len(p)))); inFile < int64(len(p)) {
			copy(p[inFile:], j.buf[pos+inFile-j.written:])
			p = p[:inFile]
		}
	}
	j.mu.Unlock()
	if len(p) == 0 {
		return nil
	}
	return j.readers.readAt(p, at.File, pos)
}

// Trim deletes files whose records are all durable and older than keep. Their
// payloads can no longer be read.
func (j *Journal) Trim(keep Seq) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.usable(); err != nil {
		return err
	}
	keep = min(keep, j.synced+1)
	for len(j.files) > 1 && j.files[1].first <= keep {
		first := uint64(j.files[0].first)
		j.readers.forget(first)
		if err := j.o.FS.Remove(j.path(first)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("trim journal: %w", err)
		}
		j.files = j.files[1:]
	}
	return nil
}

// maxReaders is how many files are kept open for reading.
const maxReaders = 16

// readers are the files open for reading, by number. A read holds mu shared, so
// that no file is closed under it.
type readers struct {
	fs  vfs.FS
	dir string

	mu    sync.RWMutex
	files map[uint64]vfs.File // nil when closed
}

func (r *readers) init(vf vfs.FS, dir string) {
	r.fs, r.dir, r.files = vf, dir, make(map[uint64]vfs.File)
}

func (r *readers) readAt(p []byte, number uint64, off int64) error {
	for {
		r.mu.RLock()
		if f, ok := r.files[number]; ok {
			_, err := f.ReadAt(p, off)
			r.mu.RUnlock()
			return err
		}
		r.mu.RUnlock()
		if err := r.open(number); err != nil {
			return err
		}
	}
}

// open adds a file, in the place of an arbitrary other one if there are many.
func (r *readers) open(number uint64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.files == nil {
		return ErrClosed
	}
	if _, ok := r.files[number]; ok {
		return nil
	}
	f, err := r.fs.Open(r.fs.PathJoin(r.dir, fileName(number)))
	if errors.Is(err, fs.ErrNotExist) {
		return ErrTrimmed
	}
	if err != nil {
		return err
	}
	for old, g := range r.files {
		if len(r.files) < maxReaders {
			break
		}
		delete(r.files, old)
		if err := g.Close(); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	r.files[number] = f
	return nil
}

// forget closes a file that is about to be deleted.
func (r *readers) forget(number uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f, ok := r.files[number]; ok {
		delete(r.files, number)
		_ = f.Close() // only read from: nothing can be lost
	}
}

func (r *readers) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var err error
	for _, f := range r.files {
		err = errors.Join(err, f.Close())
	}
	r.files = nil
	return err
}
