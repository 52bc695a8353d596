package namespace

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2"
)

// Ops on inodes by number: attributes, content, extended attributes, reaping.

// CapabilityAttr is the extended attribute that holds a file's capabilities, which are
// privileges like setuid.
const CapabilityAttr = "security.capability"

// check says whether c can be the content of a file of the given size.
func (c *Content) check(size int64) error {
	bad := ""
	switch {
	case size < 0:
		bad = "negative size"
	case c.Length < 0 || c.Length > size:
		bad = "length beyond the size"
	case len(c.Inline) > MaxInline:
		bad = "too much inline content"
	case c.Root.Defined():
		if len(c.Inline) > 0 {
			bad = "both inline content and a root"
		} else if c.TreeSize < c.Length {
			bad = "length beyond the tree"
		} else if c.Holes < 0 || c.Holes > c.TreeSize {
			bad = "holes beyond the tree"
		}
	case c.TreeSize != 0 || c.Holes != 0:
		bad = "size of no tree"
	case c.Length != int64(len(c.Inline)):
		bad = "length is not that of the inline content"
	}
	if bad != "" {
		return fmt.Errorf("%w: content with %s", ErrInvalid, bad)
	}
	return nil
}

// file loads a regular file.
func (t *txn) file(ino Ino) (*stagedInode, error) {
	n, err := t.inode(ino)
	switch {
	case err != nil:
		return nil, err
	case n.isDir():
		return nil, ErrIsDir
	case n.typ() != TypeRegular:
		return nil, fmt.Errorf("%w: not a regular file", ErrInvalid)
	}
	return n, nil
}

func (t *txn) setAttr(op *SetAttr) (*stagedInode, error) {
	n, err := t.inode(op.Ino)
	if err != nil {
		return nil, err
	}
	if op.Mask&^attrAll != 0 {
		return nil, fmt.Errorf("%w: attribute mask %#x", ErrInvalid, op.Mask)
	}
	if typ := op.Mode & TypeMask; op.Mask&AttrMode != 0 && (op.Mode&^(TypeMask|modeBits) != 0 || typ != 0 && typ != n.typ()) {
		return nil, fmt.Errorf("%w: mode %#o", ErrInvalid, op.Mode)
	}
	if op.Mask&AttrAccessed != 0 && op.Atime > n.atime {
		t.touch(n)
		n.atime = op.Atime
	}
	if op.Mask&^AttrAccessed != 0 {
		t.change(n)
	}
	if op.Mask&AttrMode != 0 {
		n.mode = n.typ() | op.Mode&modeBits
		if err := t.followMode(n); err != nil {
			return nil, err
		}
	}
	if op.Mask&AttrUID != 0 {
		n.uid = op.UID
	}
	if op.Mask&AttrGID != 0 {
		n.gid = op.GID
	}
	if op.Mask&AttrAtime != 0 {
		n.atime = op.Atime
	}
	if op.Mask&AttrMtime != 0 {
		n.mtime, n.mtimeAt = op.Mtime, t.now // a later write wins, an earlier one that is committed late does not
	}
	if op.KillPriv {
		return n, t.killPriv(n)
	}
	return n, nil
}

func (t *txn) truncate(op *Truncate) (*stagedInode, error) {
	n, err := t.file(op.Ino)
	switch {
	case err != nil:
		return nil, err
	case op.Size < 0:
		return nil, fmt.Errorf("%w: negative size", ErrInvalid)
	}
	if err := t.turn(n.ino); err != nil {
		return nil, err
	}
	t.change(n)
	n.mtime, n.mtimeAt = t.now, 0
	if op.Size != n.size {
		if op.Size < n.size {
			if err := t.cutPatches(n, op.Size); err != nil {
				return nil, err
			}
		}
		n.size, n.version = op.Size, t.index
		n.cut(op.Size)
	}
	if op.KillPriv {
		return n, t.killPriv(n)
	}
	return n, nil
}

// cut limits the content to its first size bytes. A tree of which nothing counts
// any more is let go.
func (r *record) cut(size int64) {
	if size >= r.contentLen {
		return
	}
	r.contentLen = size
	if int64(len(r.inline)) > size {
		r.inline = bytes.Clone(r.inline[:size])
	}
	if size == 0 {
		r.setContent(&Content{Folded: r.folded})
	}
}

func (t *txn) setContent(op *SetContent) (*stagedInode, error) {
	n, err := t.file(op.Ino)
	if err != nil {
		return nil, err
	}
	if err := t.turn(n.ino); err != nil {
		return nil, err
	}
	if op.Ino != Created && op.Base != n.version {
		return nil, fmt.Errorf("%w: base %d, have %d", ErrConflict, op.Base, n.version)
	}
	if err := op.Content.check(op.Size); err != nil {
		return nil, err
	}
	t.touch(n)
	if err := t.dropPatches(n, t.index); err != nil {
		return nil, err
	}
	n.setContent(&op.Content)
	n.size, n.version, n.named = op.Size, t.index, true
	if op.Mtime != 0 {
		n.wrote(op.Mtime, op.Ino == Created)
	}
	if op.KillPriv {
		return n, t.killPriv(n)
	}
	return n, nil
}

// wrote sets the times to that of a write, unless they were set later; of a new
// inode always.
func (a *attrs) wrote(at int64, isNew bool) {
	set := a.mtimeAt
	if set == 0 {
		set = a.mtime
	}
	if at > set || isNew {
		a.mtime, a.mtimeAt = at, 0
	}
	a.ctime = max(a.ctime, at)
}

// KillPriv returns the mode that is left of a file's when a write or chown takes
// privileges away: no setuid, and no setgid if the group may execute.
func KillPriv(mode uint32) uint32 {
	mode &^= modeSetUID
	if mode&modeGroupExec != 0 {
		mode &^= modeSetGID
	}
	return mode
}

// killPriv takes away the privileges that a file confers.
func (t *txn) killPriv(n *stagedInode) error {
	if n.isDir() {
		return nil
	}
	if mode := KillPriv(n.mode); mode != n.mode {
		t.change(n)
		n.mode = mode
	}
	if n.xattrNames == 0 {
		return nil
	}
	v, err := t.xattr(n, CapabilityAttr)
	if err != nil || v.value == nil {
		return err
	}
	return t.putXattr(n, v, CapabilityAttr, nil)
}

// xattr loads an extended attribute, which need not exist.
func (t *txn) xattr(n *stagedInode, name string) (*stagedValue, error) {
	return t.value(xattrKey(nil, n.ino, name))
}

func checkXattrName(name string) error {
	switch {
	case len(name) > MaxName:
		return ErrNameTooLong
	case name == "" || strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%w: attribute name %q", ErrInvalid, name)
	}
	return nil
}

func (t *txn) setXattr(op *SetXattr) (*stagedInode, error) {
	n, err := t.inode(op.Ino)
	if err != nil {
		return nil, err
	}
	if err := checkXattrName(op.Name); err != nil {
		return nil, err
	}
	if op.Flag&^(XattrCreate|XattrReplace) != 0 {
		return nil, fmt.Errorf("%w: attribute flags %#x", ErrInvalid, op.Flag)
	}
	if len(op.Value) > MaxXattr {
		return nil, ErrAttrTooLarge
	}
	v, err := t.xattr(n, op.Name)
	switch {
	case err != nil:
		return nil, err
	case v.value != nil && op.Flag&XattrCreate != 0:
		return nil, ErrExist
	case v.value == nil && op.Flag&XattrReplace != 0:
		return nil, ErrNoAttr
	case isACL(op.Name):
		return n, t.setACL(n, op)
	}
	value := op.Value
	if value == nil {
		value = []byte{}
	}
	return n, t.putXattr(n, v, op.Name, value)
}

func (t *txn) removeXattr(op *RemoveXattr) (*stagedInode, error) {
	n, err := t.inode(op.Ino)
	if err != nil {
		return nil, err
	}
	if err := checkXattrName(op.Name); err != nil {
		return nil, err
	}
	if isACL(op.Name) {
		return n, t.putACL(n, op.Name, nil)
	}
	v, err := t.xattr(n, op.Name)
	if err != nil {
		return nil, err
	}
	if v.value == nil {
		return nil, ErrNoAttr
	}
	return n, t.putXattr(n, v, op.Name, nil)
}

// putXattr sets the attribute to value, or removes it if value is nil, and keeps
// the inode's account of them.
func (t *txn) putXattr(n *stagedInode, v *stagedValue, name string, value []byte) error {
	names, values := n.xattrNames, n.xattrValues
	if v.value != nil {
		old, _, err := decodeXattr(v.value)
		if err != nil {
			return t.fail(fmt.Errorf("inode %d, attribute %q: %w", n.ino, name, err))
		}
		names -= uint32(len(name) + 1)
		values -= uint32(len(old))
	}
	v.value = nil
	if value != nil {
		names += uint32(len(name) + 1)
		values += uint32(len(value))
		if names > MaxXattrList || names+values > MaxXattrBytes {
			return ErrAttrSpace
		}
		v.value = bytes.Clone(t.s.enc.encodeXattr(value, t.index))
	}
	t.change(n)
	n.xattrNames, n.xattrValues = names, values
	return nil
}

func (t *txn) reap(op *Reap) (*stagedInode, error) {
	n, err := t.inode(op.Ino)
	if err != nil {
		return nil, err
	}
	if n.nlink > 0 {
		return nil, fmt.Errorf("%w: inode %d has names", ErrInvalid, n.ino)
	}
	// write removes the stored attributes; what this command did to them is
	// no longer of interest.
	prefix := xattrKey(nil, n.ino, "")
	for _, v := range t.values.all {
		if bytes.HasPrefix(v.key, prefix) {
			v.value = v.old
		}
	}
	n.alive, n.dirty, n.patch = false, true, nil
	t.meta.patches -= uint64(n.patches.Cost)
	return n, nil
}

// writeReapedXattrs removes the stored attributes of n.
func (t *txn) writeReapedXattrs(b *pebble.Batch, n *stagedInode) error {
	prefix := xattrKey(nil, n.ino, "")
	it, err := t.s.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return err
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := t.writeHistory(b, it.Key(), value); err != nil {
			return err
		}
		if err := b.Delete(it.Key(), nil); err != nil {
			return err
		}
	}
	return it.Error()
}
