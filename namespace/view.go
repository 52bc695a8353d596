package namespace

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

var errStop = errors.New("enough entries")

// View reads the namespace as it was after one command. It holds no resources
// and stays usable until its instant is trimmed. Every method fails with
// ErrTrimmed then, and with ErrInvalid if the command has not been applied yet.
//
// Inodes are those of a command at most a minute of log time later, if they
// changed within it, or ten if they were patched all the time (see history.go): their number of links and their content
// may be ahead of the directory entries, which are exact.
type View struct {
	s     *State
	index uint64
}

// At returns the namespace as it was after the command with the given index.
func (s *State) At(index uint64) View { return View{s, index} }

// IndexAt returns the index of a command not later than the given log time (in
// nanoseconds since 1970) and at most about a minute before it, 0 if history
// does not go back so far.
func (s *State) IndexAt(time int64) (uint64, error) {
	if err := s.begin(); err != nil {
		return 0, err
	}
	s.mu.RUnlock()
	return indexAt(s.db, time)
}

// open returns one instant of the database in which the view can be read.
func (v View) open() (*pebble.Snapshot, error) {
	if err := v.s.begin(); err != nil {
		return nil, err
	}
	defer v.s.mu.RUnlock()
	if v.index > v.s.meta.applied {
		return nil, fmt.Errorf("%w: as of command %d, have %d", ErrInvalid, v.index, v.s.meta.applied)
	}
	if v.index < v.s.meta.trimmed {
		if _, ok := slices.BinarySearch(v.s.snapshots, v.index); !ok {
			return nil, ErrTrimmed
		}
	}
	return v.s.db.NewSnapshot(), nil
}

// get returns the value that key had.
func (v View) get(db pebble.Reader, key []byte) ([]byte, error) {
	tail := key[1:]
	it, err := db.NewIter(&pebble.IterOptions{
		LowerBound: historyKey(nil, tail, v.index+1),
		UpperBound: after(append(append([]byte{space, tagHistory}, tail...), 0)),
	})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	var value []byte
	ok := it.First()
	if ok {
		value = slices.Clone(it.Value())
	} else if err = it.Error(); err == nil {
		value, ok, err = get(db, key)
	}
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, ErrNotFound
	}
	began, err := beganOf(tail, value)
	if err != nil {
		return nil, err
	}
	if began > v.index {
		return nil, ErrNotFound
	}
	return value, nil
}

// Inode is State.Inode as of the view's instant.
func (v View) Inode(ino Ino) (Inode, error) {
	db, err := v.open()
	if err != nil {
		return Inode{}, err
	}
	defer db.Close()
	r, err := v.inode(db, ino)
	return r.inode(r.tail), err
}

func (v View) inode(db pebble.Reader, ino Ino) (record, error) {
	value, err := v.get(db, inodeKey(nil, ino))
	if err != nil {
		return record{}, err
	}
	return decodeInode(ino, value)
}

// dir fails unless ino is a directory.
func (v View) dir(db pebble.Reader, ino Ino) error {
	r, err := v.inode(db, ino)
	if err == nil && !r.isDir() {
		err = ErrNotDir
	}
	return err
}

// Lookup is State.Lookup as of the view's instant.
func (v View) Lookup(parent Ino, name string) (Inode, error) {
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	db, err := v.open()
	if err != nil {
		return Inode{}, err
	}
	defer db.Close()
	if err := v.dir(db, parent); err != nil {
		return Inode{}, err
	}
	hash, _ := v.s.hashName(name)
	value, err := v.get(db, dentryKey(nil, parent, hash, name))
	if err != nil {
		return Inode{}, err
	}
	d, err := decodeDentry(value)
	if err != nil {
		return Inode{}, err
	}
	r, err := v.inode(db, d.ino)
	return r.inode(r.tail), err
}

// ReadDir is State.ReadDir as of the view's instant.
func (v View) ReadDir(parent Ino, after uint64, fn func(Dentry) bool) error {
	db, err := v.open()
	if err != nil {
		return err
	}
	defer db.Close()
	if err := v.dir(db, parent); err != nil || after >= maxCookie {
		return err
	}
	p := pager{fn: fn}
	err = v.each(db, dentryKey(nil, parent, after+1, "")[1:], dentryKey(nil, parent+1, 0, "")[1:], func(tail, value []byte) error {
		name, hash, d, err := decodeEntry(tail, value)
		if err != nil {
			return err
		}
		if !p.add(Dentry{Name: name, Ino: d.ino, Type: d.typ, Cookie: hash}) {
			return errStop
		}
		return nil
	})
	if err == nil {
		p.flush()
	}
	if err == errStop {
		err = nil
	}
	return err
}

// Xattr is State.Xattr as of the view's instant.
func (v View) Xattr(ino Ino, name string) ([]byte, error) {
	db, err := v.open()
	if err != nil {
		return nil, err
	}
	defer db.Close()
	if _, err := v.inode(db, ino); err != nil {
		return nil, err
	}
	value, err := v.get(db, xattrKey(nil, ino, name))
	if err == ErrNotFound {
		err = ErrNoAttr
	}
	if err != nil {
		return nil, err
	}
	value, _, err = decodeXattr(value)
	return value, err
}

// Xattrs is State.Xattrs as of the view's instant.
func (v View) Xattrs(ino Ino) ([]string, error) {
	db, err := v.open()
	if err != nil {
		return nil, err
	}
	defer db.Close()
	if _, err := v.inode(db, ino); err != nil {
		return nil, err
	}
	var names []string
	prefix := xattrKey(nil, ino, "")[1:]
	err = v.each(db, prefix, after(prefix), func(tail, _ []byte) error {
		names = append(names, string(tail[len(prefix):]))
		return nil
	})
	return names, err
}

// each calls fn for the values that the keys with tails in [lower, upper) had, in
// the order of keys. Both arguments are valid during the call. As the values of a
// key follow each other, at most one of them has begun and not ended.
func (v View) each(db pebble.Reader, lower, upper []byte, fn func(tail, value []byte) error) error {
	now, err := db.NewIter(&pebble.IterOptions{
		LowerBound: append([]byte{space}, lower...),
		UpperBound: append([]byte{space}, upper...),
	})
	if err != nil {
		return err
	}
	defer now.Close()
	past, err := db.NewIter(&pebble.IterOptions{
		LowerBound: append([]byte{space, tagHistory}, lower...),
		UpperBound: append([]byte{space, tagHistory}, upper...),
	})
	if err != nil {
		return err
	}
	defer past.Close()
	now.First()
	past.First()
	for now.Valid() || past.Valid() {
		at := now
		tail := []byte(nil)
		if now.Valid() {
			tail = now.Key()[1:]
		}
		if past.Valid() {
			old, ended, ok := splitHistoryKey(past.Key())
			if !ok {
				return fmt.Errorf("%w: history key %x", ErrCorrupt, past.Key())
			}
			if tail == nil || bytes.Compare(old, tail) <= 0 {
				if ended <= v.index {
					past.Next()
					continue
				}
				at, tail = past, old
			}
		}
		if err := v.visit(at, tail, fn); err != nil {
			return err
		}
		at.Next()
	}
	return errors.Join(past.Error(), now.Error())
}

// visit calls fn for the value that it is at if that had begun.
func (v View) visit(it *pebble.Iterator, tail []byte, fn func(tail, value []byte) error) error {
	value, err := it.ValueAndErr()
	if err != nil {
		return err
	}
	began, err := beganOf(tail, value)
	if err != nil || began > v.index {
		return err
	}
	return fn(tail, value)
}
