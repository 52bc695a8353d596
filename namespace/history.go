package namespace

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// History. A value that is overwritten or removed by the command with index
// "ended" moves to a history key that sorts by that index (see keys.go). Every
// value stores the index at which it began, and is what a reader as of T sees if
// began <= T < ended; so such a reader takes the first history value that ended
// after T, else the current one, and finds nothing if that began after T.
//
// Directory entries and attributes are kept exactly. Inodes are kept once a
// minute (see touch, and touchPatched), because many change with every write; but
// what Reap removes is always kept. Patches are kept as long as an inode refers to
// them.
//
// Trimming goes by the e keys, oldest end first. A value that a snapshot shows
// moves on to a k key, under the latest such snapshot, and is looked at again
// only when that is dropped: the cost of trimming follows what is removed, not
// what is kept.

const (
	coalesce = int64(time.Minute) // of log time
	timeStep = int64(time.Minute) // of log time between entries of the time index
)

// pinned reports whether a snapshot shows a value that began at the given index
// and is still current.
func (t *txn) pinned(began uint64) bool {
	n := len(t.s.snapshots)
	return n > 0 && t.s.snapshots[n-1] >= began
}

// writeHistory keeps the value that key had until now. key may be t.keyBuf.
func (t *txn) writeHistory(b *pebble.Batch, key, value []byte) error {
	tail := key[1:]
	t.histBuf = historyKey(t.histBuf[:0], tail, t.index)
	if err := b.Set(t.histBuf, value, nil); err != nil {
		return err
	}
	t.histBuf = endedKey(t.histBuf[:0], tail, t.index)
	return b.Set(t.histBuf, nil, nil)
}

// beganOf reads the beginning of a stored value of the kind that its key's tail
// says.
func beganOf(tail, value []byte) (uint64, error) {
	switch tail[0] {
	case tagInode:
		r, err := decodeInode(0, value)
		return r.began, err
	case tagDentry:
		d, err := decodeDentry(value)
		return d.began, err
	case tagXattr:
		_, began, err := decodeXattr(value)
		return began, err
	case tagPatch:
		_, number, ok := splitPatchTail(tail)
		if !ok {
			return 0, fmt.Errorf("%w: patch key %x", ErrCorrupt, tail)
		}
		return number, nil
	}
	return 0, fmt.Errorf("%w: history of a key with tag %#x", ErrCorrupt, tail[0])
}

// trim is what a TrimHistory op removes and moves.
type trim struct {
	run         bool // at most once a command
	delete, set [][]byte
	looked      int // values looked at, at most MaxTrim
}

func (m *trim) write(b *pebble.Batch) error {
	for _, key := range m.delete {
		if err := b.Delete(key, nil); err != nil {
			return err
		}
	}
	for _, key := range m.set {
		if err := b.Set(key, nil, nil); err != nil {
			return err
		}
	}
	return nil
}

func (t *txn) trimHistory(op *TrimHistory) error {
	if t.trim.run {
		return fmt.Errorf("%w: history trimmed twice in a command", ErrInvalid)
	}
	t.trim.run = true
	// What this very command ends is not yet in the database, so the limit
	// is the command before it.
	limit := min(op.Index, t.index-1)
	if op.Time > 0 {
		at, err := indexAt(t.s.db, op.Time)
		if err != nil {
			return t.fail(err)
		}
		limit = max(limit, at)
	}
	limit = t.collect.keep(limit)
	t.meta.trimmed = max(t.meta.trimmed, limit)
	if err := t.trimEnded(); err != nil {
		return t.fail(err)
	}
	if err := t.trimDropped(); err != nil {
		return t.fail(err)
	}
	if err := t.trimTimes(); err != nil {
		return t.fail(err)
	}
	t.result.More = t.trim.looked >= MaxTrim
	return nil
}

// trimEnded looks at the values that ended up to the limit. It begins where it
// stopped the last time, or it would pass over ever more keys that it has
// removed and that the database has not yet forgotten.
func (t *txn) trimEnded() error {
	lower, upper := numberKey(nil, tagEnded, t.meta.swept), numberKey(nil, tagEnded, t.meta.trimmed+1)
	return t.look(lower, upper, func(key []byte) error {
		ended, tail, ok := splitNumberKey(key)
		if !ok {
			return fmt.Errorf("%w: key %x", ErrCorrupt, key)
		}
		t.meta.swept = ended
		return t.trimValue(tail, ended)
	})
}

// trimDropped looks at the values that only dropped snapshots kept.
func (t *txn) trimDropped() error {
	return scan(t.s.db, tagKey(nil, tagDropped), func(key, _ []byte) (bool, error) {
		snapshot, _, ok := splitNumberKey(key)
		if !ok {
			return false, fmt.Errorf("%w: key %x", ErrCorrupt, key)
		}
		prefix := numberKey(nil, tagKept, snapshot)
		err := t.look(prefix, after(prefix), func(key []byte) error {
			_, tail, ended, ok := splitKeptKey(key)
			if !ok {
				return fmt.Errorf("%w: key %x", ErrCorrupt, key)
			}
			return t.trimValue(tail, ended)
		})
		if err != nil || t.trim.looked >= MaxTrim {
			return false, err
		}
		t.trim.delete = append(t.trim.delete, slices.Clone(key))
		return true, nil
	})
}

// look calls fn for each key in the range, as far as the bound of a command goes,
// and removes it.
func (t *txn) look(lower, upper []byte, fn func(key []byte) error) error {
	it, err := t.s.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	defer it.Close()
	for it.First(); it.Valid() && t.trim.looked < MaxTrim; it.Next() {
		t.trim.looked++
		key := slices.Clone(it.Key())
		if err := fn(key); err != nil {
			return err
		}
		t.trim.delete = append(t.trim.delete, key)
	}
	return it.Error()
}

// trimValue removes a value of history, or leaves it to the latest snapshot that
// shows it.
func (t *txn) trimValue(tail []byte, ended uint64) error {
	key := historyKey(nil, tail, ended)
	if len(t.snapshots) > 0 {
		value, ok, err := get(t.s.db, key)
		if err == nil && !ok {
			err = fmt.Errorf("%w: no history value %x", ErrCorrupt, key)
		}
		if err != nil {
			return err
		}
		began, err := beganOf(tail, value)
		if err != nil {
			return err
		}
		if snapshot, kept := snapshotOf(t.snapshots, began, ended); kept {
			t.trim.set = append(t.trim.set, keptKey(nil, tail, snapshot, ended))
			return nil
		}
	}
	t.trim.delete = append(t.trim.delete, key)
	return nil
}

// snapshotOf returns the latest of the snapshots, which ascend, that shows a value.
func snapshotOf(snapshots []uint64, began, ended uint64) (snapshot uint64, ok bool) {
	i, _ := slices.BinarySearch(snapshots, ended)
	if i == 0 || snapshots[i-1] < began {
		return 0, false
	}
	return snapshots[i-1], true
}

// trimTimes removes the entries of the time index that lead to where nothing can
// be read any more.
func (t *txn) trimTimes() error {
	var last []byte
	return scan(t.s.db, tagKey(nil, tagTime), func(key, value []byte) (bool, error) {
		index, err := decodeIndex(value)
		if err != nil || index > t.meta.trimmed {
			return false, err
		}
		if last != nil {
			t.trim.delete = append(t.trim.delete, last)
		}
		last = slices.Clone(key)
		return len(t.trim.delete) < 2*MaxTrim, nil
	})
}

// indexAt returns the index of the last command in the time index that is not
// later than the given log time, 0 if there is none.
func indexAt(db pebble.Reader, at int64) (uint64, error) {
	if at < 0 {
		return 0, nil
	}
	it, err := db.NewIter(&pebble.IterOptions{
		LowerBound: tagKey(nil, tagTime),
		UpperBound: numberKey(nil, tagTime, uint64(at)+1),
	})
	if err != nil {
		return 0, err
	}
	defer it.Close()
	if !it.Last() {
		return 0, it.Error()
	}
	value, err := it.ValueAndErr()
	if err != nil {
		return 0, err
	}
	return decodeIndex(value)
}

// decodeIndex reads a value of the time index.
func decodeIndex(value []byte) (uint64, error) {
	if len(value) == 9 && value[0] == formatVersion {
		return binary.BigEndian.Uint64(value[1:]), nil
	}
	if len(value) > 0 && value[0] != formatVersion {
		return 0, fmt.Errorf("%w: %d of a time", ErrVersion, value[0])
	}
	return 0, fmt.Errorf("%w: time of %d bytes", ErrCorrupt, len(value))
}
