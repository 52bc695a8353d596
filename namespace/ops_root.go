package namespace

import (
	"fmt"
	"slices"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace/namespacepb"
	"github.com/cockroachdb/pebble/v2"
)

// Ops on what keeps content and history alive besides names: pins and snapshots.

func checkLabel(name string, mayBeEmpty bool) error {
	if len(name) > MaxLabel {
		return ErrNameTooLong
	}
	if name == "" && !mayBeEmpty {
		return fmt.Errorf("%w: empty name", ErrInvalid)
	}
	return nil
}

func (t *txn) pin(op *Pin) error {
	if !op.CID.Defined() {
		return fmt.Errorf("%w: no CID", ErrInvalid)
	}
	if err := checkLabel(op.Name, true); err != nil {
		return err
	}
	v, err := t.value(pinKey(nil, op.CID))
	if err != nil {
		return err
	}
	v.value = marshalRecord(&namespacepb.Pin{Name: []byte(op.Name), Time: t.now})
	return nil
}

func (t *txn) unpin(op *Unpin) error {
	v, err := t.value(pinKey(nil, op.CID))
	if err != nil {
		return err
	}
	if v.value == nil {
		return ErrNotFound
	}
	v.value = nil
	return nil
}

func (t *txn) snapshot(op *Snapshot) error {
	if err := checkLabel(op.Name, false); err != nil {
		return err
	}
	v, err := t.value(snapshotKey(nil, op.Name))
	switch {
	case err != nil:
		return err
	case v.value != nil:
		return ErrExist
	case len(t.snapshots) >= MaxSnapshots:
		return fmt.Errorf("%w: more than %d snapshots", ErrInvalid, MaxSnapshots)
	}
	v.value = marshalRecord(&namespacepb.Snapshot{Index: t.index, Time: t.logTime})
	t.snapshots = append(slices.Clip(t.snapshots), t.index)
	return nil
}

func (t *txn) dropSnapshot(op *DropSnapshot) error {
	v, err := t.value(snapshotKey(nil, op.Name))
	if err != nil {
		return err
	}
	if v.value == nil {
		return ErrNotFound
	}
	info, err := decodeSnapshot(op.Name, v.value)
	if err != nil {
		return t.fail(err)
	}
	i, ok := slices.BinarySearch(t.snapshots, info.Index)
	if !ok {
		return t.fail(fmt.Errorf("%w: snapshot %q is not in the list", ErrCorrupt, op.Name))
	}
	t.snapshots = slices.Delete(slices.Clone(t.snapshots), i, i+1)
	v.value = nil
	if _, again := slices.BinarySearch(t.snapshots, info.Index); again {
		return nil
	}
	dropped, err := t.value(numberKey(nil, tagDropped, info.Index))
	if err != nil {
		return err
	}
	dropped.value = []byte{formatVersion}
	return nil
}

// PinInfo is a pinned CID.
type PinInfo struct {
	CID  cas.CID
	Name string
	Time int64 // of the command that pinned it, in nanoseconds since 1970
}

// SnapshotInfo is a snapshot: the instant after the command with that index.
type SnapshotInfo struct {
	Name  string
	Index uint64
	Time  int64 // log time, in nanoseconds since 1970
}

// Pins calls fn for each pin until it returns false.
func (s *State) Pins(fn func(PinInfo) bool) error {
	return s.scan(tagKey(nil, tagPin), func(key, value []byte) (bool, error) {
		var m namespacepb.Pin
		if err := unmarshal(value, &m); err != nil {
			return false, fmt.Errorf("pin: %w", err)
		}
		c, err := pinCID(key)
		if err != nil {
			return false, err
		}
		return fn(PinInfo{CID: c, Name: string(m.Name), Time: m.Time}), nil
	})
}

// Snapshots calls fn for each snapshot, in the order of names, until it returns
// false.
func (s *State) Snapshots(fn func(SnapshotInfo) bool) error {
	return s.scan(tagKey(nil, tagSnapshot), func(key, value []byte) (bool, error) {
		info, err := decodeSnapshot(string(key[2:]), value)
		return err == nil && fn(info), err
	})
}

func decodeSnapshot(name string, value []byte) (SnapshotInfo, error) {
	var m namespacepb.Snapshot
	if err := unmarshal(value, &m); err != nil {
		return SnapshotInfo{}, fmt.Errorf("snapshot %q: %w", name, err)
	}
	return SnapshotInfo{Name: name, Index: m.Index, Time: m.Time}, nil
}

// loadSnapshots returns the indexes of all snapshots, ascending.
func loadSnapshots(db pebble.Reader) (indexes []uint64, err error) {
	err = scan(db, tagKey(nil, tagSnapshot), func(key, value []byte) (bool, error) {
		info, err := decodeSnapshot(string(key[2:]), value)
		indexes = append(indexes, info.Index)
		return err == nil, err
	})
	slices.Sort(indexes)
	return indexes, err
}

// scan calls fn for each key with the prefix until it returns false. Key and
// value are valid during the call.
func scan(db pebble.Reader, prefix []byte, fn func(key, value []byte) (bool, error)) error {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return err
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if more, err := fn(it.Key(), value); !more || err != nil {
			return err
		}
	}
	return it.Error()
}
