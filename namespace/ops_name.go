package namespace

import (
	"fmt"
	"strings"
)

// Ops on names: create, link, unlink, rmdir, rename. The rules are those of the
// manual pages of the system calls, as far as the kernel leaves them to a
// filesystem under default_permissions.

// checkName says whether name may be created or removed.
func checkName(name string) error {
	switch {
	case len(name) > MaxName:
		return ErrNameTooLong
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("%w: name %q", ErrInvalid, name)
	}
	return nil
}

// name loads the directory and the entry that an op speaks of.
func (t *txn) name(parent Ino, name string) (*stagedInode, *stagedEntry, error) {
	dir, err := t.dir(parent)
	if err != nil {
		return nil, nil, err
	}
	if err := checkName(name); err != nil {
		return nil, nil, err
	}
	e, err := t.entry(dir, name)
	return dir, e, err
}

// existing is name for a name that must exist; it also loads its inode.
func (t *txn) existing(parent Ino, name string) (dir *stagedInode, e *stagedEntry, n *stagedInode, err error) {
	if dir, e, err = t.name(parent, name); err != nil {
		return nil, nil, nil, err
	}
	if !e.exists() {
		return nil, nil, nil, ErrNotFound
	}
	n, err = t.target(e)
	return dir, e, n, err
}

// target loads the inode of an entry. There is one, or the records are broken.
func (t *txn) target(e *stagedEntry) (*stagedInode, error) {
	n, err := t.inode(e.ino)
	if err == ErrNotFound {
		err = t.fail(fmt.Errorf("%w: entry %q of %d has no inode %d", ErrCorrupt, e.name, e.key.parent, e.ino))
	}
	return n, err
}

// point makes the entry refer to n.
func (t *txn) point(e *stagedEntry, n *stagedInode) {
	e.dentry = dentry{ino: n.ino, typ: n.typ(), began: t.index}
}

func (t *txn) create(op *Create) (*stagedInode, error) {
	if op.Unnamed {
		return t.createUnnamed(op)
	}
	dir, e, err := t.name(op.Parent, op.Name)
	if err != nil {
		return nil, err
	}
	if e.exists() {
		return nil, ErrExist
	}
	if err := op.check(); err != nil {
		return nil, err
	}
	if op.Mode&TypeMask == TypeDir {
		if err := addLink(dir); err != nil {
			return nil, err
		}
	}
	n, err := t.newIn(dir, op)
	if err != nil {
		return nil, err
	}
	t.point(e, n)
	t.changeEntries(dir, 1)
	return n, nil
}

// createUnnamed makes a file that is an orphan from its birth.
func (t *txn) createUnnamed(op *Create) (*stagedInode, error) {
	dir, err := t.dir(op.Parent)
	if err != nil {
		return nil, err
	}
	if err := op.check(); err != nil {
		return nil, err
	}
	if op.Name != "" || op.Mode&TypeMask != TypeRegular {
		return nil, fmt.Errorf("%w: name %q, mode %#o for a file without a name", ErrInvalid, op.Name, op.Mode)
	}
	n, err := t.newIn(dir, op)
	if err != nil {
		return nil, err
	}
	n.nlink = 0
	t.result.Orphan = n.ino
	return n, nil
}

// newIn makes the inode that op describes, as it comes about in dir.
func (t *txn) newIn(dir *stagedInode, op *Create) (*stagedInode, error) {
	n := t.newStagedInode()
	n.alive, n.dirty = true, true
	n.ino = t.meta.nextIno
	t.meta.nextIno++
	n.generation, n.version = t.index, t.index
	n.began, n.beganTime = t.index, t.logTime
	n.mode, n.uid, n.gid, n.nlink = op.Mode, op.UID, op.GID, 1
	n.atime, n.mtime, n.ctime, n.btime = t.now, t.now, t.now, t.now
	if dir.mode&modeSetGID != 0 {
		n.gid = dir.gid
	}
	switch n.typ() {
	case TypeDir:
		n.nlink, n.parent = 2, dir.ino
		n.mode |= dir.mode & modeSetGID
	case TypeRegular:
		n.size = op.Size
		if op.Content != nil {
			n.setContent(op.Content)
		}
	case TypeSymlink:
		n.mode |= 0o777
		n.target, n.size = strings.Clone(op.Target), int64(len(op.Target))
	case TypeChar, TypeBlock:
		n.rdev = op.Rdev
	}
	if err := t.inherit(dir, n, op.Umask); err != nil {
		return nil, err
	}
	t.created = n.ino
	return n, nil
}

// check says whether the op fits the type of what it creates.
func (op *Create) check() error {
	if op.Mode&^(TypeMask|modeBits) != 0 || op.Umask&^modePerms != 0 {
		return fmt.Errorf("%w: mode %#o, umask %#o", ErrInvalid, op.Mode, op.Umask)
	}
	typ := op.Mode & TypeMask
	if typ != TypeRegular && (op.Content != nil || op.Size != 0) || typ != TypeSymlink && op.Target != "" {
		return fmt.Errorf("%w: content for an inode of mode %#o", ErrInvalid, op.Mode)
	}
	switch typ {
	case TypeRegular:
		content := op.Content
		if content == nil {
			content = &Content{}
		}
		return content.check(op.Size)
	case TypeSymlink:
		if len(op.Target) > MaxTarget {
			return ErrNameTooLong
		}
		if op.Target == "" || strings.IndexByte(op.Target, 0) >= 0 {
			return fmt.Errorf("%w: target %q", ErrInvalid, op.Target)
		}
		return nil
	case TypeDir, TypeFIFO, TypeSocket, TypeChar, TypeBlock:
		return nil
	}
	return fmt.Errorf("%w: mode %#o", ErrInvalid, op.Mode)
}

// addLink counts another name of a file, or subdirectory of a directory.
func addLink(n *stagedInode) error {
	if n.nlink >= MaxLinks {
		return ErrTooManyLinks
	}
	n.nlink++
	return nil
}

func (t *txn) link(op *Link) (*stagedInode, error) {
	n, err := t.inode(op.Ino)
	if err != nil {
		return nil, err
	}
	dir, e, err := t.name(op.Parent, op.Name)
	switch {
	case err != nil:
		return nil, err
	case e.exists():
		return nil, ErrExist
	case n.isDir():
		return nil, ErrPerm
	}
	if err := addLink(n); err != nil {
		return nil, err
	}
	if t.result.Orphan == n.ino {
		t.result.Orphan = 0
	}
	t.change(n)
	t.point(e, n)
	t.changeEntries(dir, 1)
	return n, nil
}

func (t *txn) unlink(op *Unlink) (*stagedInode, error) {
	dir, e, n, err := t.existing(op.Parent, op.Name)
	if err != nil {
		return nil, err
	}
	if n.isDir() {
		return nil, ErrIsDir
	}
	e.dentry = dentry{}
	t.changeEntries(dir, -1)
	t.dropLink(n)
	return n, nil
}

func (t *txn) rmdir(op *Rmdir) (*stagedInode, error) {
	dir, e, n, err := t.existing(op.Parent, op.Name)
	switch {
	case err != nil:
		return nil, err
	case !n.isDir():
		return nil, ErrNotDir
	case n.size > 0:
		return nil, ErrNotEmpty
	}
	e.dentry = dentry{}
	t.changeEntries(dir, -1)
	dir.nlink--
	t.dropLink(n)
	return n, nil
}

// dropLink takes a name away from n; from an empty directory, its only one.
func (t *txn) dropLink(n *stagedInode) {
	t.change(n)
	if n.isDir() {
		n.nlink = 0
	} else {
		n.nlink--
	}
	if n.nlink == 0 {
		t.result.Orphan = n.ino
	}
}

func (t *txn) rename(op *Rename) (*stagedInode, error) {
	if op.NoReplace && op.Exchange {
		return nil, fmt.Errorf("%w: rename both without replacing and exchanging", ErrInvalid)
	}
	dir, e, n, err := t.existing(op.Parent, op.Name)
	if err != nil {
		return nil, err
	}
	newDir, newE, err := t.name(op.NewParent, op.NewName)
	if err != nil {
		return nil, err
	}
	if op.NoReplace && newE.exists() {
		return nil, ErrExist
	}
	if n.isDir() && newDir != dir {
		if err := t.checkLoop(n.ino, newDir); err != nil {
			return nil, err
		}
	}
	if !newE.exists() {
		if op.Exchange {
			return nil, ErrNotFound
		}
		return n, t.move(n, dir, e, newDir, newE)
	}
	if newE.ino == n.ino {
		return n, nil
	}
	other, err := t.target(newE)
	if err != nil {
		return nil, err
	}
	if op.Exchange {
		return n, t.exchange(n, dir, e, other, newDir, newE)
	}
	switch {
	case n.isDir() && !other.isDir():
		return nil, ErrNotDir
	case !n.isDir() && other.isDir():
		return nil, ErrIsDir
	case other.isDir() && other.size > 0:
		return nil, ErrNotEmpty
	}
	t.changeEntries(newDir, -1)
	if other.isDir() {
		newDir.nlink--
	}
	t.dropLink(other)
	t.result.Replaced = other.ino
	return n, t.move(n, dir, e, newDir, newE)
}

// move gives n the name newE instead of e.
func (t *txn) move(n, dir *stagedInode, e *stagedEntry, newDir *stagedInode, newE *stagedEntry) error {
	if n.isDir() && dir != newDir {
		if err := t.reparent(n, dir, newDir); err != nil {
			return err
		}
	}
	e.dentry = dentry{}
	t.point(newE, n)
	t.changeEntries(dir, -1)
	t.changeEntries(newDir, 1)
	t.change(n)
	return nil
}

// exchange swaps what e and otherE refer to.
func (t *txn) exchange(n, dir *stagedInode, e *stagedEntry, other, otherDir *stagedInode, otherE *stagedEntry) error {
	if other.isDir() && otherDir != dir {
		if err := t.checkLoop(other.ino, dir); err != nil {
			return err
		}
	}
	if dir != otherDir {
		// First down, then up: two directories may change places in
		// full directories.
		if n.isDir() {
			dir.nlink--
		}
		if other.isDir() {
			otherDir.nlink--
		}
		for _, m := range []struct{ n, to *stagedInode }{{n, otherDir}, {other, dir}} {
			if !m.n.isDir() {
				continue
			}
			if err := addLink(m.to); err != nil {
				return err
			}
			m.n.parent = m.to.ino
		}
	}
	t.point(e, other)
	t.point(otherE, n)
	t.changeEntries(dir, 0)
	t.changeEntries(otherDir, 0)
	t.change(n)
	t.change(other)
	t.result.Replaced = other.ino
	return nil
}

// reparent moves directory n below another one.
func (t *txn) reparent(n, from, to *stagedInode) error {
	if err := addLink(to); err != nil {
		return err
	}
	from.nlink--
	n.parent = to.ino
	return nil
}

// checkLoop fails if directory ino is dir or above it.
func (t *txn) checkLoop(ino Ino, dir *stagedInode) error {
	at, parent := dir.ino, dir.parent
	// No chain is longer than there are directories, the root and what this
	// command has created included.
	for left := t.meta.stats.Dirs + MaxOps + 2; ; left-- {
		if at == ino {
			return ErrLoop
		}
		if at == RootIno {
			return nil
		}
		if left == 0 {
			return t.fail(fmt.Errorf("%w: directory %d is not below the root", ErrCorrupt, dir.ino))
		}
		var err error
		at = parent
		if parent, err = t.parentOf(at); err != nil {
			return err
		}
	}
}

// parentOf returns the parent of a directory without staging it.
func (t *txn) parentOf(ino Ino) (Ino, error) {
	for _, n := range t.inodes[:t.nInodes] {
		if n.ino == ino {
			return n.parent, nil
		}
	}
	var r record
	ok, err := t.load(ino, &r)
	if err == nil && !ok {
		err = fmt.Errorf("%w: no directory %d", ErrCorrupt, ino)
	}
	if err != nil {
		return 0, t.fail(err)
	}
	return r.parent, nil
}
