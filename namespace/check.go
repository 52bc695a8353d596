package namespace

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/cairnfs/cairn/namespace/namespacepb"
	"github.com/cockroachdb/pebble/v2"
)

// Check is the sum of what every command keeps true: each name leads to an inode
// and each inode is counted by its names, directories form one tree, and the
// counters, attribute sums and history agree with what they describe.

// Problem is something that Check found wrong.
type Problem struct {
	Ino  Ino // the inode concerned, 0 if it is none
	Text string
}

func (p Problem) String() string {
	if p.Ino == 0 {
		return p.Text
	}
	return fmt.Sprintf("inode %d: %s", p.Ino, p.Text)
}

// Check reads the whole namespace, as of one instant and beside other work, and
// reports everything that is not as it must be. It needs some 100 bytes of memory
// per inode. An error says that it could not finish.
func (s *State) Check(ctx context.Context, report func(Problem)) error {
	if err := s.begin(); err != nil {
		return err
	}
	c := checker{
		ctx: ctx, s: s, report: report, db: s.db.NewSnapshot(),
		meta: s.meta, snapshots: s.snapshots, inodes: make(map[Ino]*census),
	}
	s.mu.RUnlock()
	defer c.db.Close()
	for _, step := range []func() error{
		c.countInodes, c.countEntries, c.countXattrs, c.checkPatches, c.checkOrphans, c.checkInodes,
		c.checkTree, c.checkHistory, c.checkPins, c.checkSnapshots, c.checkTimes, c.checkLocks,
	} {
		if err := step(); err != nil {
			return fmt.Errorf("check namespace: %w", err)
		}
	}
	return nil
}

type checker struct {
	ctx       context.Context
	s         *State
	report    func(Problem)
	db        *pebble.Snapshot
	meta      meta
	snapshots []uint64
	inodes    map[Ino]*census
}

// census is what an inode says of itself and what was found.
type census struct {
	mode, nlink             uint32
	size                    int64
	parent                  Ino
	xattrNames, xattrValues uint32
	patches                 Patches
	version                 uint64

	names, subdirs          int64
	entries                 int64
	foundParent             Ino
	foundNames, foundValues uint32
	orphan                  bool
	rooted                  bool
}

func (c *checker) problem(ino Ino, format string, args ...any) {
	c.report(Problem{ino, fmt.Sprintf(format, args...)})
}

// each calls fn for all keys with the tag.
func (c *checker) each(tag byte, fn func(key, value []byte)) error {
	n := 0
	return scan(c.db, tagKey(nil, tag), func(key, value []byte) (bool, error) {
		if n++; n%1024 == 0 {
			if err := c.ctx.Err(); err != nil {
				return false, err
			}
		}
		fn(key, value)
		return true, nil
	})
}

func (c *checker) countInodes() error {
	var sum Stats
	err := c.each(tagInode, func(key, value []byte) {
		number, rest, ok := splitNumberKey(key)
		if !ok || len(rest) > 0 {
			c.problem(0, "inode key %x", key)
			return
		}
		r, err := decodeInode(Ino(number), value)
		if err != nil {
			c.problem(Ino(number), "%v", err)
			return
		}
		c.checkRecord(&r)
		sum.add(r.counts(), 1)
		c.inodes[r.ino] = &census{
			mode: r.mode, nlink: r.nlink, size: r.size, parent: r.parent,
			xattrNames: r.xattrNames, xattrValues: r.xattrValues, patches: r.patches, version: r.version,
		}
	})
	if sum != c.meta.stats {
		c.problem(0, "counters say %+v, found %+v", c.meta.stats, sum)
	}
	if root := c.inodes[RootIno]; root == nil || root.mode&TypeMask != TypeDir || root.parent != RootIno || root.nlink < 2 {
		c.problem(RootIno, "no root directory")
	}
	return err
}

// checkRecord looks at what an inode says of itself.
func (c *checker) checkRecord(r *record) {
	if r.ino == 0 || r.ino >= c.meta.nextIno {
		c.problem(r.ino, "number was not given out, next is %d", c.meta.nextIno)
	}
	if r.began > c.meta.applied || r.generation > c.meta.applied || r.version > c.meta.applied {
		c.problem(r.ino, "is of a command after %d", c.meta.applied)
	}
	content := Content{Inline: r.inline, Root: r.root, TreeSize: r.treeSize, Length: r.contentLen, Holes: r.holes, Folded: r.folded}
	switch r.typ() {
	case TypeRegular:
		if err := content.check(r.size); err != nil {
			c.problem(r.ino, "%v", err)
		}
		return
	case TypeSymlink:
		if r.target == "" || r.size != int64(len(r.target)) {
			c.problem(r.ino, "symbolic link of size %d with target %q", r.size, r.target)
		}
	case TypeDir, TypeFIFO, TypeSocket, TypeChar, TypeBlock:
	default:
		c.problem(r.ino, "mode %#o", r.mode)
	}
	if content.Length != 0 || content.Root.Defined() {
		c.problem(r.ino, "content in an inode of mode %#o", r.mode)
	}
}

func (c *checker) countEntries() error {
	return c.each(tagDentry, func(key, value []byte) {
		parent, hash, name, ok := splitDentryTail(key[1:])
		d, err := decodeDentry(value)
		if !ok || err != nil {
			c.problem(0, "entry %x: %v", key, err)
			return
		}
		if want, _ := c.s.hashName(string(name)); hash != want || checkName(string(name)) != nil {
			c.problem(parent, "entry %q is at %#x instead of %#x", name, hash, want)
		}
		dir, n := c.inodes[parent], c.inodes[d.ino]
		switch {
		case dir == nil || dir.mode&TypeMask != TypeDir:
			c.problem(parent, "entry %q in what is no directory", name)
			return
		case n == nil:
			c.problem(parent, "entry %q leads to inode %d, which does not exist", name, d.ino)
			return
		case n.mode&TypeMask != d.typ:
			c.problem(parent, "entry %q has type %#o, its inode %d mode %#o", name, d.typ, d.ino, n.mode)
		case d.began > c.meta.applied:
			c.problem(parent, "entry %q is of a command after %d", name, c.meta.applied)
		}
		dir.entries++
		n.names++
		n.foundParent = parent
		if d.typ == TypeDir {
			dir.subdirs++
		}
	})
}

func (c *checker) countXattrs() error {
	return c.each(tagXattr, func(key, value []byte) {
		ino, name, ok := splitXattrTail(key[1:])
		data, _, err := decodeXattr(value)
		if !ok || err != nil {
			c.problem(ino, "attribute %x: %v", key, err)
			return
		}
		n := c.inodes[ino]
		if n == nil {
			c.problem(ino, "attribute %q of what does not exist", name)
			return
		}
		if isACL(string(name)) {
			if err := checkStoredACL(n.mode, string(name), data); err != nil {
				c.problem(ino, "attribute %q: %v", name, err)
			}
		}
		n.foundNames += uint32(len(name) + 1)
		n.foundValues += uint32(len(data))
	})
}

func (c *checker) checkOrphans() error {
	return c.each(tagOrphan, func(key, _ []byte) {
		ino, _, _ := splitNumberKey(key)
		if n := c.inodes[Ino(ino)]; n != nil {
			n.orphan = true
		} else {
			c.problem(Ino(ino), "orphan does not exist")
		}
	})
}

// checkInodes compares what inodes say with what was found.
func (c *checker) checkInodes() error {
	for ino, n := range c.inodes {
		isDir := n.mode&TypeMask == TypeDir
		links := n.names
		if isDir {
			links = 2 + n.subdirs
			if n.nlink == 0 && n.names == 0 {
				links = n.entries // a removed directory has none
			}
			if n.entries != n.size {
				c.problem(ino, "directory says %d entries, found %d", n.size, n.entries)
			}
			names := int64(1)
			if ino == RootIno || n.nlink == 0 {
				names = 0
			}
			if n.names != names {
				c.problem(ino, "directory has %d names instead of %d", n.names, names)
			} else if names == 1 && n.foundParent != n.parent {
				c.problem(ino, "directory says it is in %d, found in %d", n.parent, n.foundParent)
			}
		}
		if int64(n.nlink) != links {
			c.problem(ino, "says %d links, found %d", n.nlink, links)
		}
		if n.orphan != (n.nlink == 0) {
			c.problem(ino, "has %d links, listed as an orphan: %t", n.nlink, n.orphan)
		}
		if n.foundNames != n.xattrNames || n.foundValues != n.xattrValues {
			c.problem(ino, "says %d+%d bytes of attributes, found %d+%d", n.xattrNames, n.xattrValues, n.foundNames, n.foundValues)
		}
	}
	return nil
}

// checkTree follows every directory up to the root.
func (c *checker) checkTree() error {
	if root := c.inodes[RootIno]; root != nil {
		root.rooted = true
	}
	var path []*census
	for ino, n := range c.inodes {
		if n.mode&TypeMask != TypeDir || n.nlink == 0 {
			continue
		}
		path = path[:0]
		for n != nil && !n.rooted && len(path) <= len(c.inodes) {
			path = append(path, n)
			n = c.inodes[n.parent]
		}
		if n == nil || !n.rooted {
			c.problem(ino, "directory is not below the root")
		}
		// Even if not: it has been reported once.
		for _, n := range path {
			n.rooted = true
		}
	}
	return nil
}

func (c *checker) checkHistory() error {
	values := 0
	var lastTail []byte
	var lastEnded uint64
	// current says that what is current must not overlap with the last value.
	current := func() {
		if lastTail == nil {
			return
		}
		value, ok, err := get(c.db, append([]byte{space}, lastTail...))
		if err == nil && ok {
			var began uint64
			if began, err = beganOf(lastTail, value); err == nil && began < lastEnded {
				c.problem(0, "value of %q began at %d, the one before ended at %d", lastTail, began, lastEnded)
			}
		}
		if err != nil {
			c.problem(0, "value of %q: %v", lastTail, err)
		}
	}
	err := c.each(tagHistory, func(key, value []byte) {
		values++
		tail, ended, ok := splitHistoryKey(key)
		if !ok {
			c.problem(0, "history key %x", key)
			return
		}
		if !bytes.Equal(tail, lastTail) {
			current()
			lastTail, lastEnded = slices.Clone(tail), 0
		}
		began, err := beganOf(tail, value)
		if err != nil {
			c.problem(0, "history of %q: %v", tail, err)
		} else if began >= ended || began < lastEnded || ended > c.meta.applied {
			c.problem(0, "history of %q from %d to %d, the one before ended at %d", tail, began, ended, lastEnded)
		}
		if err == nil && tail[0] == tagInode && c.readable(began, ended) {
			c.checkPastPatches(tail, value)
		}
		lastEnded = ended
	})
	if err != nil {
		return err
	}
	current()
	listed, err := c.countListed()
	if listed != values {
		c.problem(0, "%d values of history, %d are listed for trimming", values, listed)
	}
	return err
}

// readable reports whether a value of history is still shown. What is not goes bit by
// bit, and what it refers to may go first.
func (c *checker) readable(began, ended uint64) bool {
	_, kept := snapshotOf(c.snapshots, began, ended)
	return kept || ended > c.meta.trimmed
}

// countListed counts the history values that trimming will find.
func (c *checker) countListed() (int, error) {
	listed := 0
	check := func(list, tail []byte, ended uint64) {
		listed++
		if _, ok, err := get(c.db, historyKey(nil, tail, ended)); err != nil || !ok {
			c.problem(0, "key %x lists no value of history (%v)", list, err)
		}
	}
	err := c.each(tagEnded, func(key, _ []byte) {
		if ended, tail, ok := splitNumberKey(key); ok {
			check(key, tail, ended)
		}
	})
	if err != nil {
		return 0, err
	}
	err = c.each(tagKept, func(key, _ []byte) {
		snapshot, tail, ended, ok := splitKeptKey(key)
		if !ok {
			c.problem(0, "key %x", key)
			return
		}
		check(key, tail, ended)
		if _, live := slices.BinarySearch(c.snapshots, snapshot); live {
			return
		}
		if _, dropped, err := get(c.db, numberKey(nil, tagDropped, snapshot)); err != nil || !dropped {
			c.problem(0, "history is kept by snapshot %d, which does not exist (%v)", snapshot, err)
		}
	})
	return listed, err
}

func (c *checker) checkPins() error {
	return c.each(tagPin, func(key, value []byte) {
		var m namespacepb.Pin
		if err := unmarshal(value, &m); err != nil {
			c.problem(0, "pin %x: %v", key, err)
		} else if _, err := pinCID(key); err != nil {
			c.problem(0, "pin %x: %v", key, err)
		}
	})
}

func (c *checker) checkSnapshots() error {
	found, err := loadSnapshots(c.db)
	if err == nil && !slices.Equal(found, c.snapshots) {
		c.problem(0, "snapshots %d, known %d", found, c.snapshots)
	}
	return err
}

// checkLocks sees that what is locked, and who waits, belongs to open sessions.
func (c *checker) checkLocks() error {
	sessions, err := loadSessions(c.db)
	if err != nil {
		return err
	}
	err = c.each(tagLocks, func(key, value []byte) {
		ino, _, _ := splitNumberKey(key)
		held, err := decodeLocks(value)
		if err != nil || len(held) == 0 {
			c.problem(Ino(ino), "%d locks: %v", len(held), err)
		}
		var last Lock
		for _, l := range held {
			if sessions[l.Session] == nil {
				c.problem(Ino(ino), "locked by session %d, which is over", l.Session)
			}
			if l.Kind == LockTurn && l.Ticket <= last.Ticket || l.Ticket > c.meta.applied {
				c.problem(Ino(ino), "turn %d is behind turn %d", l.Ticket, last.Ticket)
			}
			last = l
		}
	})
	return firstError(err, c.each(tagWait, func(key, _ []byte) {
		if session, id, ok := splitWaitKey(key); !ok || sessions[session] == nil {
			c.problem(0, "wait %d of session %d, which is over", id, session)
		}
	}))
}

// checkTimes also looks at the positions that only trimming uses.
func (c *checker) checkTimes() error {
	if c.meta.trimmed > c.meta.applied || c.meta.swept > c.meta.trimmed {
		c.problem(0, "history trimmed to %d, swept to %d, applied %d", c.meta.trimmed, c.meta.swept, c.meta.applied)
	}
	last := uint64(0)
	return c.each(tagTime, func(key, value []byte) {
		index, err := decodeIndex(value)
		if err != nil || index <= last || index > c.meta.applied {
			c.problem(0, "time %x leads to command %d after %d (%v)", key, index, last, err)
		}
		last = index
	})
}
