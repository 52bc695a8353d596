package namespace

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// A node that is too far behind to be given commands is given the namespace
// itself: all keys and values of the key space as of one command, history, sessions
// and outcomes included, and nothing else of the database, which holds the node's
// own blocks. They travel in chunks: for each key, in ascending order, its length
// as a uvarint, the key without the key space, the length of the value, the value.
// The receiver writes them into a table beside the database, which takes the place
// of the key space at once, or not at all.

// MaxChunk is how long a chunk is, in bytes, unless a single value exceeds it.
const MaxChunk = 1 << 20

// Export is the namespace as of one command. It is used by one goroutine.
type Export struct {
	at       Position
	applied  uint64
	snapshot *pebble.Snapshot
	it       *pebble.Iterator
}

// Export returns the namespace as it is now. The caller closes it.
func (s *State) Export() (*Export, error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	e := &Export{at: s.meta.position, applied: s.meta.applied, snapshot: s.db.NewSnapshot()}
	s.mu.RUnlock()
	it, err := e.snapshot.NewIter(&pebble.IterOptions{LowerBound: []byte{space}, UpperBound: []byte{space + 1}})
	if err != nil {
		return nil, errors.Join(err, e.snapshot.Close())
	}
	e.it = it
	it.First()
	return e, nil
}

// Position returns the place in the group's log.
func (e *Export) Position() Position { return e.at }

// Group returns the configuration of the group, as State.Group.
func (e *Export) Group() ([]byte, error) {
	value, ok, err := get(e.snapshot, tagKey(nil, tagGroup))
	if err != nil || !ok || len(value) == 0 {
		return nil, err
	}
	return value[1:], nil
}

// Next appends the next chunk to buf, nothing after the last.
func (e *Export) Next(buf []byte) ([]byte, error) {
	for begin := len(buf); e.it.Valid() && len(buf)-begin < MaxChunk; e.it.Next() {
		value, err := e.it.ValueAndErr()
		if err != nil {
			return nil, err
		}
		key := e.it.Key()[1:]
		buf = append(binary.AppendUvarint(buf, uint64(len(key))), key...)
		buf = append(binary.AppendUvarint(buf, uint64(len(value))), value...)
	}
	return buf, e.it.Error()
}

// Close gives the export up.
func (e *Export) Close() error { return errors.Join(e.it.Close(), e.snapshot.Close()) }

// Import is a namespace that is being received.
type Import struct {
	fs   vfs.FS
	path string
	w    *sstable.Writer
	last []byte
	keys int
}

// Import begins to receive a namespace, in a file at path, which nobody else uses.
// Nothing changes before Install. One of Install and Abort must follow.
func (s *State) Import(fs vfs.FS, path string) (*Import, error) {
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	w := sstable.NewWriter(objstorageprovider.NewFileWritable(f), sstable.WriterOptions{TableFormat: s.db.TableFormat()})
	return &Import{fs: fs, path: path, w: w}, nil
}

// Add takes a chunk. ErrCorrupt says that it is none, or not the next one.
func (i *Import) Add(chunk []byte) error {
	field := func() []byte {
		n, used := binary.Uvarint(chunk)
		if used <= 0 || n > uint64(len(chunk)-used) {
			chunk = nil
			return nil
		}
		value := chunk[used : used+int(n)]
		chunk = chunk[used+int(n):]
		return value
	}
	for len(chunk) > 0 {
		tail := field()
		if len(tail) == 0 || len(chunk) == 0 {
			return fmt.Errorf("%w: chunk of a received namespace", ErrCorrupt)
		}
		rest := len(chunk)
		value := field()
		if len(chunk) >= rest || value == nil {
			return fmt.Errorf("%w: chunk of a received namespace", ErrCorrupt)
		}
		key := append([]byte{space}, tail...)
		if bytes.Compare(key, i.last) <= 0 {
			return fmt.Errorf("%w: keys of a received namespace are not in order", ErrCorrupt)
		}
		if err := i.w.Set(key, value); err != nil {
			return err
		}
		i.last = key
		i.keys++
	}
	return nil
}

// Abort drops what was received.
func (i *Import) Abort() error { return errors.Join(i.w.Close(), i.fs.Remove(i.path)) }

// Install puts what was received in place of the namespace, durably. Errors are
// those of Apply; but ErrCorrupt leaves the State as it was.
func (s *State) Install(i *Import) error {
	if err := i.w.Close(); err != nil {
		return errors.Join(err, i.fs.Remove(i.path))
	}
	if i.keys == 0 {
		return errors.Join(fmt.Errorf("%w: received namespace is empty", ErrCorrupt), i.fs.Remove(i.path))
	}
	s.order.Lock()
	defer s.order.Unlock()
	if s.failed != nil {
		return s.failed
	}
	s.mu.Lock()
	err := s.install(i)
	index := s.meta.applied
	s.mu.Unlock()
	if err != nil {
		return s.fail(err)
	}
	s.tellAll(index)
	return nil
}

func (s *State) install(i *Import) error {
	span := pebble.KeyRange{Start: []byte{space}, End: []byte{space + 1}}
	// Without a flush before it, Pebble keeps the table beside memtables that
	// are older, and with no log of its own would lose it with them.
	if _, err := s.db.IngestAndExcise(context.Background(), []string{i.path}, nil, nil, span); err != nil {
		return err
	}
	if err := s.db.Flush(); err != nil {
		return err
	}
	format, ok, err := get(s.db, tagKey(nil, tagFormat))
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("%w: received namespace has no format", ErrCorrupt)
	}
	was := s.meta.applied
	if err := s.load(format); err != nil {
		return err
	}
	s.cache.clear(max(was+1, s.meta.applied))
	return nil
}
