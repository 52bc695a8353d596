package namespace

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// An access control list (ACL) of POSIX 1003.1e says who may do what with an
// inode, as the mode does, but also names users and groups. Linux hands it
// around as the value of two extended attributes. The access ACL is about the
// inode itself. The default ACL, of directories only, is what new inodes in it
// begin with.
//
// The permission bits of the mode are a view of the access ACL: those of the
// owner and of others are entries of it, those of the group are the mask if the
// list has one, else the owning group. The mask limits all entries but the
// owner's and others', so that a program which knows modes only can neither give
// nor overlook a permission. A list without a mask says what the mode says, and
// is kept as the mode alone. All that is said here is arithmetic; who may do what
// is the kernel's to check.
//
// The format of a value, least significant byte first: 4 bytes of version, then
// for each entry 2 bytes of tag, 2 of permissions, 4 of user or group.

// The attributes that are access control lists.
const (
	ACLAccess  = "system.posix_acl_access"
	ACLDefault = "system.posix_acl_default"
)

const (
	aclVersion    = 2
	aclHeaderSize = 4
	aclEntrySize  = 8
	// maxACL is the size of the longest value, in bytes. Kernels read no more
	// than a page, and refuse access to an inode whose list is longer.
	maxACL = 4096
)

// aclTag says whom an entry is about.
type aclTag uint16

// The tags, with the values of Linux, in the order that they have in a list.
const (
	aclOwner       aclTag = 1 << iota // the owner of the inode
	aclUser                           // the user of the entry's id
	aclOwningGroup                    // the group of the inode
	aclGroup                          // the group of the entry's id
	aclMask                           // the most that users, groups and owning group get
	aclOther                          // all others
	aclEnd

	aclNamed    = aclUser | aclGroup
	aclRequired = aclOwner | aclOwningGroup | aclOther
)

// aclNoID is the id of entries that have none.
const aclNoID = 1<<32 - 1

// aclEntry is a line of an ACL.
type aclEntry struct {
	tag  aclTag
	perm uint16 // 4 read, 2 write, 1 execute
	id   uint32 // of aclUser and aclGroup, else aclNoID
}

// acl is a list that check accepts. No list at all is nil.
type acl []aclEntry

// decodeACL reads an attribute's value, which may hold no entries: that is no
// list. Errors: ErrInvalid, ErrAttrTooLarge, ErrNotSupported for another version.
func decodeACL(b []byte) (acl, error) {
	switch {
	case len(b) == 0:
		return nil, nil
	case len(b) < aclHeaderSize:
		return nil, fmt.Errorf("%w: access control list of %d bytes", ErrInvalid, len(b))
	case len(b) > maxACL:
		return nil, fmt.Errorf("%w: access control list of %d bytes", ErrAttrTooLarge, len(b))
	}
	if v := binary.LittleEndian.Uint32(b); v != aclVersion {
		return nil, fmt.Errorf("%w: access control list of version %d", ErrNotSupported, v)
	}
	b = b[aclHeaderSize:]
	if len(b)%aclEntrySize != 0 {
		return nil, fmt.Errorf("%w: access control list ends within an entry", ErrInvalid)
	}
	if len(b) == 0 {
		return nil, nil
	}
	a := make(acl, 0, len(b)/aclEntrySize)
	for ; len(b) > 0; b = b[aclEntrySize:] {
		e := aclEntry{
			tag:  aclTag(binary.LittleEndian.Uint16(b)),
			perm: binary.LittleEndian.Uint16(b[2:]),
			id:   binary.LittleEndian.Uint32(b[4:]),
		}
		if e.tag&aclNamed == 0 {
			e.id = aclNoID
		}
		a = append(a, e)
	}
	return a, a.check()
}

// encode is the inverse of decodeACL.
func (a acl) encode() []byte {
	b := make([]byte, 0, aclHeaderSize+len(a)*aclEntrySize)
	b = binary.LittleEndian.AppendUint32(b, aclVersion)
	for _, e := range a {
		b = binary.LittleEndian.AppendUint16(b, uint16(e.tag))
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// check says whether a is a list: entries in the order of their tags, those of
// owner, owning group and others once each, and a mask if it names anybody. As in
// Linux, ids may come in any order and twice; the first one counts.
func (a acl) check() error {
	var last, seen aclTag
	for _, e := range a {
		if bits.OnesCount16(uint16(e.tag)) != 1 || e.tag >= aclEnd || e.perm > 7 || e.tag&aclNamed != 0 && e.id == aclNoID {
			return fmt.Errorf("%w: access control entry %+v", ErrInvalid, e)
		}
		if e.tag < last || e.tag == last && e.tag&aclNamed == 0 {
			return fmt.Errorf("%w: access control entry %+v in the wrong place", ErrInvalid, e)
		}
		last, seen = e.tag, seen|e.tag
	}
	required := aclRequired
	if seen&aclNamed != 0 {
		required |= aclMask
	}
	if missing := required &^ seen; missing != 0 {
		return fmt.Errorf("%w: access control list lacks entries %#x", ErrInvalid, missing)
	}
	return nil
}

// classes returns the entries that the three digits of a mode stand for.
func (a acl) classes() (owner, group, other *aclEntry) {
	for i := range a {
		switch a[i].tag {
		case aclOwner:
			owner = &a[i]
		case aclOwningGroup, aclMask: // the mask comes last
			group = &a[i]
		case aclOther:
			other = &a[i]
		}
	}
	return owner, group, other
}

// perms returns the permission bits of the mode that goes with the list, and
// whether they say all that the list says.
func (a acl) perms() (perms uint32, exact bool) {
	owner, group, other := a.classes()
	return uint32(owner.perm)<<6 | uint32(group.perm)<<3 | uint32(other.perm), group.tag == aclOwningGroup
}

// setPerms is chmod: it changes the list so that perms are its permission bits.
func (a acl) setPerms(perms uint32) {
	owner, group, other := a.classes()
	owner.perm, group.perm, other.perm = uint16(perms>>6&7), uint16(perms>>3&7), uint16(perms&7)
}
