package namespace

import (
	"github.com/cockroachdb/pebble/v2"
)

// Reads of the current state: from the cache if they can, else from one instant
// of the database, so that what a read combines belongs together.

// begin starts a read: it takes the lock for reading unless the State has failed.
func (s *State) begin() error {
	s.mu.RLock()
	if s.failed != nil {
		defer s.mu.RUnlock()
		return s.failed
	}
	return nil
}

// Inode returns the inode, also of an orphan. ErrNotFound if there is none.
func (s *State) Inode(ino Ino) (Inode, error) {
	if err := s.begin(); err != nil {
		return Inode{}, err
	}
	if e, tail, ok := s.cache.inode(ino); ok {
		defer s.mu.RUnlock()
		return e.inode(tail), nil
	}
	applied := s.meta.applied
	s.mu.RUnlock()
	r, err := s.readInode(s.db, ino, applied)
	if err != nil {
		return Inode{}, err
	}
	return r.inode(r.tail), nil
}

// readInode reads an inode from the database, not before the command with index
// applied, and caches it.
func (s *State) readInode(db pebble.Reader, ino Ino, applied uint64) (record, error) {
	r, ok, err := loadInode(db, ino)
	if err != nil {
		return record{}, err
	}
	if !ok {
		return record{}, ErrNotFound
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cache.current(ino, applied) {
		s.cache.putInode(&r)
	}
	return r, nil
}

// Lookup returns the inode that name refers to in the directory parent. Errors:
// ErrNotFound, ErrNotDir, ErrNameTooLong; "." and ".." are ErrInvalid.
func (s *State) Lookup(parent Ino, name string) (Inode, error) {
	if err := checkName(name); err != nil {
		return Inode{}, err
	}
	k := nameKey{parent: parent}
	k.hash, k.check = s.hashName(name)
	if err := s.begin(); err != nil {
		return Inode{}, err
	}
	c := &s.cache
	dir, _, haveDir := c.inode(parent)
	d, haveEntry := c.entry(k)
	var n *inodeEntry
	switch {
	case haveDir && !dir.isDir():
		s.mu.RUnlock()
		return Inode{}, ErrNotDir
	case haveDir && haveEntry && d.ino == 0:
		s.mu.RUnlock()
		return Inode{}, ErrNotFound
	case haveDir && haveEntry:
		var t tail
		if n, t, _ = c.inode(d.ino); n != nil {
			defer s.mu.RUnlock()
			return n.inode(t), nil
		}
	}
	applied, snapshot := s.meta.applied, s.db.NewSnapshot()
	s.mu.RUnlock()
	defer snapshot.Close()
	return s.readLookup(snapshot, applied, k, name, haveDir, haveEntry, d)
}

// readLookup is Lookup from an instant of the database, not before the command
// with index applied, but for what the cache had.
func (s *State) readLookup(db pebble.Reader, applied uint64, k nameKey, name string, haveDir, haveEntry bool, d dentry) (Inode, error) {
	if !haveDir {
		dir, err := s.readInode(db, k.parent, applied)
		if err != nil {
			return Inode{}, err
		}
		if !dir.isDir() {
			return Inode{}, ErrNotDir
		}
	}
	if !haveEntry {
		var err error
		if d, err = loadEntry(db, dentryKey(nil, k.parent, k.hash, name)); err != nil {
			return Inode{}, err
		}
		if d.ino == 0 {
			return Inode{}, ErrNotFound
		}
		s.mu.Lock()
		if s.cache.current(k.parent, applied) {
			*s.cache.dentries.put(k) = d
		}
		s.mu.Unlock()
	}
	r, err := s.readInode(db, d.ino, applied)
	if err != nil {
		return Inode{}, err
	}
	return r.inode(r.tail), nil
}

// ReadDir calls fn for the entries of a directory after the cookie, 0 being the
// start, in the order of cookies, until fn returns false, which refuses the
// entry. All that one call delivers is of one instant; entries that neither come
// nor go between calls are delivered exactly once. Errors: ErrNotFound, ErrNotDir.
func (s *State) ReadDir(parent Ino, after uint64, fn func(Dentry) bool) error {
	dir, err := s.Inode(parent)
	if err != nil {
		return err
	}
	if !dir.IsDir() {
		return ErrNotDir
	}
	if after >= maxCookie {
		return nil
	}
	if err := s.begin(); err != nil {
		return err
	}
	applied := s.meta.applied
	it, err := s.db.NewIter(&pebble.IterOptions{
		LowerBound: dentryKey(nil, parent, after+1, ""),
		UpperBound: dentryKey(nil, parent+1, 0, ""),
	})
	s.mu.RUnlock()
	if err != nil {
		return err
	}
	defer it.Close()

	p := pager{fn: fn}
	learned := lesson{parent: parent, after: after, applied: applied}
	for it.First(); it.Valid(); it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		name, hash, d, err := decodeEntry(it.Key()[1:], value)
		if err != nil {
			return err
		}
		if !p.add(Dentry{Name: name, Ino: d.ino, Type: d.typ, Cookie: hash}) {
			s.learn(&learned, hash-1)
			return nil
		}
		learned.add(s, name, hash, d)
	}
	if err := it.Error(); err != nil {
		return err
	}
	p.flush()
	s.learn(&learned, allKnown)
	return nil
}

// decodeEntry reads a directory entry from its key's tail and its value.
func decodeEntry(tail, value []byte) (name string, hash uint64, d dentry, err error) {
	_, hash, raw, ok := splitDentryTail(tail)
	if !ok {
		return "", 0, dentry{}, ErrCorrupt
	}
	d, err = decodeDentry(value)
	return string(raw), hash, d, err
}

// pager hands entries on with those of the same cookie together, so that each
// says how many of them follow.
type pager struct {
	fn    func(Dentry) bool
	group []Dentry
}

// add takes the next entry. It returns false if fn has refused an earlier one.
func (p *pager) add(d Dentry) bool {
	if len(p.group) > 0 && p.group[0].Cookie != d.Cookie && !p.flush() {
		return false
	}
	p.group = append(p.group, d)
	return true
}

func (p *pager) flush() bool {
	for i, d := range p.group {
		d.More = len(p.group) - 1 - i
		if !p.fn(d) {
			return false
		}
	}
	p.group = p.group[:0]
	return true
}

// lesson is what a listing may teach the cache: all entries of parent with
// cookies from after on, as they were when the command applied had been.
type lesson struct {
	parent  Ino
	after   uint64
	applied uint64
	keys    []nameKey
	entries []dentry
	tooLong bool
}

func (l *lesson) add(s *State, name string, hash uint64, d dentry) {
	if len(l.keys) >= int(s.cache.dentries.limit)/2 {
		l.tooLong = true // it would only push out itself
		return
	}
	_, check := s.hashName(name)
	l.keys = append(l.keys, nameKey{l.parent, hash, check})
	l.entries = append(l.entries, d)
}

// learn caches the entries listed, which are all up to the given cookie.
func (s *State) learn(l *lesson, upTo uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.tooLong || !s.cache.current(l.parent, l.applied) {
		return
	}
	// known first: if the entries evict each other it is taken back.
	if dir := s.cache.inodes.get(l.parent); dir != nil && l.after <= dir.known {
		dir.known = max(dir.known, upTo)
	}
	for i, k := range l.keys {
		*s.cache.dentries.put(k) = l.entries[i]
	}
}

// Xattr returns the value of an extended attribute, which the caller may keep.
// Errors: ErrNotFound, ErrNoAttr.
func (s *State) Xattr(ino Ino, name string) ([]byte, error) {
	if any, err := s.hasXattrs(ino); !any {
		if err == nil {
			err = ErrNoAttr
		}
		return nil, err
	}
	value, ok, err := get(s.db, xattrKey(nil, ino, name))
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, ErrNoAttr
	}
	value, _, err = decodeXattr(value)
	return value, err
}

// Xattrs returns the names of an inode's extended attributes. ErrNotFound if
// there is no such inode.
func (s *State) Xattrs(ino Ino) ([]string, error) {
	if any, err := s.hasXattrs(ino); !any {
		return nil, err
	}
	var names []string
	prefix := xattrKey(nil, ino, "")
	err := scan(s.db, prefix, func(key, _ []byte) (bool, error) {
		names = append(names, string(key[len(prefix):]))
		return true, nil
	})
	return names, err
}

// hasXattrs spares the many inodes without attributes a read of the database.
func (s *State) hasXattrs(ino Ino) (bool, error) {
	if err := s.begin(); err != nil {
		return false, err
	}
	e, _, ok := s.cache.inode(ino)
	applied := s.meta.applied
	if ok {
		defer s.mu.RUnlock()
		return e.xattrNames > 0, nil
	}
	s.mu.RUnlock()
	r, err := s.readInode(s.db, ino, applied)
	return r.xattrNames > 0, err
}

// Orphans returns all inodes without a name, in the order of their numbers.
func (s *State) Orphans() ([]Ino, error) {
	var orphans []Ino
	err := s.scan(tagKey(nil, tagOrphan), func(key, _ []byte) (bool, error) {
		ino, _, ok := splitNumberKey(key)
		if !ok {
			return false, ErrCorrupt
		}
		orphans = append(orphans, Ino(ino))
		return true, nil
	})
	return orphans, err
}

// scan calls fn for each key with the prefix, as of one instant.
func (s *State) scan(prefix []byte, fn func(key, value []byte) (bool, error)) error {
	if err := s.begin(); err != nil {
		return err
	}
	s.mu.RUnlock()
	return scan(s.db, prefix, fn)
}
