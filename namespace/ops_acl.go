package namespace

import "fmt"

// What ops do about access control lists (see acl). They are ordinary attributes
// in the x keys, but two rules tie them to the mode, in the same command: an
// inode's mode always shows the permission bits of its access ACL, and an access
// ACL that the mode can express is not stored.

func isACL(name string) bool { return name == ACLAccess || name == ACLDefault }

// acl loads a list, nil if the inode has none.
func (t *txn) acl(n *stagedInode, name string) (acl, error) {
	if n.xattrNames == 0 {
		return nil, nil
	}
	v, err := t.xattr(n, name)
	if err != nil || v.value == nil {
		return nil, err
	}
	value, _, err := decodeXattr(v.value)
	if err != nil {
		return nil, t.fail(fmt.Errorf("inode %d, attribute %q: %w", n.ino, name, err))
	}
	list, err := decodeACL(value)
	if err != nil {
		return nil, t.fail(fmt.Errorf("%w: inode %d, attribute %q: %w", ErrCorrupt, n.ino, name, err))
	}
	return list, nil
}

// putACL stores the list, or removes what is stored if it is nil.
func (t *txn) putACL(n *stagedInode, name string, list acl) error {
	v, err := t.xattr(n, name)
	if err != nil {
		return err
	}
	if list == nil {
		if v.value == nil {
			return nil
		}
		return t.putXattr(n, v, name, nil)
	}
	return t.putXattr(n, v, name, list.encode())
}

// inherit completes the mode of a new inode, which is as its creator asked for,
// by what holds for the directory: its default ACL, or else the umask.
func (t *txn) inherit(dir, n *stagedInode, umask uint32) error {
	if n.typ() == TypeSymlink {
		return nil
	}
	list, err := t.acl(dir, ACLDefault)
	if err != nil {
		return err
	}
	if list == nil {
		n.mode &^= umask
		return nil
	}
	if n.isDir() {
		if err := t.putACL(n, ACLDefault, list); err != nil {
			return err
		}
	}
	granted, exact := list.perms()
	granted &= n.mode
	n.mode = n.mode&^modePerms | granted
	if exact {
		return nil
	}
	list.setPerms(granted)
	return t.putACL(n, ACLAccess, list)
}

// setACL is setXattr of a list. One without entries is removed.
func (t *txn) setACL(n *stagedInode, op *SetXattr) error {
	list, err := decodeACL(op.Value)
	switch {
	case n.typ() == TypeSymlink:
		return fmt.Errorf("%w: access control list of a symbolic link", ErrNotSupported)
	case err != nil:
		return err
	case list == nil:
		return t.putACL(n, op.Name, nil)
	case op.Name == ACLDefault && !n.isDir():
		return fmt.Errorf("%w: default access control list of what is no directory", ErrAccess)
	case op.Name == ACLDefault:
		return t.putACL(n, ACLDefault, list)
	}
	perms, exact := list.perms()
	t.change(n)
	n.mode = n.mode&^modePerms | perms
	if op.KillSetGID {
		n.mode &^= modeSetGID
	}
	if exact {
		list = nil
	}
	return t.putACL(n, ACLAccess, list)
}

// followMode brings the access ACL, if one is stored, in line with the mode.
func (t *txn) followMode(n *stagedInode) error {
	list, err := t.acl(n, ACLAccess)
	if err != nil || list == nil {
		return err
	}
	if perms, _ := list.perms(); perms == n.mode&modePerms {
		return nil
	}
	list.setPerms(n.mode)
	return t.putACL(n, ACLAccess, list)
}

// checkStoredACL says what is wrong with a stored list of an inode of that mode.
func checkStoredACL(mode uint32, name string, value []byte) error {
	list, err := decodeACL(value)
	switch typ := mode & TypeMask; {
	case err != nil:
		return err
	case list == nil:
		return fmt.Errorf("%w: access control list without entries", ErrInvalid)
	case typ == TypeSymlink || name == ACLDefault && typ != TypeDir:
		return fmt.Errorf("%w: access control list of an inode of mode %#o", ErrInvalid, mode)
	case name == ACLDefault:
		return nil
	}
	if perms, exact := list.perms(); exact || perms != mode&modePerms {
		return fmt.Errorf("%w: access control list for %#o of an inode of mode %#o", ErrInvalid, perms, mode)
	}
	return nil
}
