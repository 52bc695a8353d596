package namespace

import (
	"strings"
)

// The model's ops. They work on a copy of the model, which is dropped if one
// fails.

func (m *model) get(ino Ino) (*modelInode, error) {
	if ino == Created {
		if m.created == 0 {
			return nil, ErrInvalid
		}
		ino = m.created
	}
	if n := m.inodes[ino]; n != nil {
		return n, nil
	}
	return nil, ErrNotFound
}

func (m *model) changed(now int64, n *modelInode) *modelInode {
	m.touched[n.Ino] = true
	n.Ctime = now
	return n
}

// slot returns the directory of a name that an op may change.
func (m *model) slot(parent Ino, name string) (*modelInode, error) {
	dir, err := m.get(parent)
	switch {
	case err != nil:
		return nil, err
	case !dir.IsDir():
		return nil, ErrNotDir
	case dir.Nlink == 0:
		return nil, ErrNotFound
	case len(name) > 255:
		return nil, ErrNameTooLong
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return nil, ErrInvalid
	}
	return dir, nil
}

func (m *model) victim(parent Ino, name string) (dir, n *modelInode, err error) {
	if dir, err = m.slot(parent, name); err != nil {
		return nil, nil, err
	}
	ino, ok := dir.entries[name]
	if !ok {
		return nil, nil, ErrNotFound
	}
	return dir, m.inodes[ino], nil
}

// set changes what a name leads to, nil meaning nothing, and all that follows for
// the directory.
func (m *model) set(now int64, dir *modelInode, name string, to *modelInode) {
	if old, ok := dir.entries[name]; ok && m.inodes[old].IsDir() {
		dir.Nlink--
	}
	delete(dir.entries, name)
	if to != nil {
		dir.entries[name] = to.Ino
		if to.IsDir() {
			dir.Nlink++
			to.Parent = dir.Ino
		}
	}
	m.changed(now, dir)
	dir.Size, dir.Mtime, dir.MtimeSet, dir.Version = int64(len(dir.entries)), now, 0, m.applied
}

func (m *model) unlinked(now int64, n *modelInode) {
	m.changed(now, n).Nlink--
	if n.IsDir() {
		n.Nlink = 0
	}
	if n.Nlink == 0 {
		m.orphaned = n.Ino
	}
}

// below says whether directory ino is above or equal to dir.
func (m *model) below(ino Ino, dir *modelInode) bool {
	for dir.Ino != ino && dir.Ino != RootIno {
		dir = m.inodes[dir.Parent]
	}
	return dir.Ino == ino
}

func (m *model) do(now int64, op Op) (Ino, error) {
	switch op := op.(type) {
	case *Create:
		return m.create(now, op)
	case *Link:
		n, err := m.get(op.Ino)
		if err != nil {
			return 0, err
		}
		dir, err := m.slot(op.Parent, op.Name)
		if err != nil {
			return 0, err
		}
		switch _, there := dir.entries[op.Name]; {
		case there:
			return 0, ErrExist
		case n.IsDir():
			return 0, ErrPerm
		}
		if m.orphaned == n.Ino {
			m.orphaned = 0
		}
		m.changed(now, n).Nlink++
		m.set(now, dir, op.Name, n)
		return n.Ino, nil
	case *Unlink:
		dir, n, err := m.victim(op.Parent, op.Name)
		if err == nil && n.IsDir() {
			err = ErrIsDir
		}
		if err != nil {
			return 0, err
		}
		m.set(now, dir, op.Name, nil)
		m.unlinked(now, n)
		return n.Ino, nil
	case *Rmdir:
		dir, n, err := m.victim(op.Parent, op.Name)
		switch {
		case err != nil:
			return 0, err
		case !n.IsDir():
			return 0, ErrNotDir
		case len(n.entries) > 0:
			return 0, ErrNotEmpty
		}
		m.set(now, dir, op.Name, nil)
		m.unlinked(now, n)
		return n.Ino, nil
	case *Rename:
		return m.rename(now, op)
	case *Reap:
		n, err := m.get(op.Ino)
		if err == nil && n.Nlink > 0 {
			err = ErrInvalid
		}
		if err != nil {
			return 0, err
		}
		delete(m.inodes, n.Ino)
		return n.Ino, nil
	case *Pin, *Unpin, *Snapshot, *DropSnapshot, *TrimHistory:
		return 0, m.doRoot(op)
	}
	return m.doInode(now, op)
}

func (m *model) create(now int64, op *Create) (Ino, error) {
	name := op.Name
	if op.Unnamed {
		name = "a valid one"
	}
	dir, err := m.slot(op.Parent, name)
	if err != nil {
		return 0, err
	}
	if op.Unnamed && (op.Name != "" || op.Mode&TypeMask != TypeRegular) {
		return 0, ErrInvalid
	}
	if _, there := dir.entries[name]; there {
		return 0, ErrExist
	}
	n := &modelInode{entries: map[string]Ino{}, xattrs: map[string]string{}}
	n.Inode = Inode{
		Ino: m.next, Generation: m.applied, Version: m.applied, Mode: op.Mode, Nlink: 1, UID: op.UID, GID: op.GID,
		Atime: now, Mtime: now, Ctime: now, Btime: now, Target: op.Target,
	}
	m.next++
	if dir.Mode&0o2000 != 0 {
		n.GID = dir.GID
	}
	switch n.Type() {
	case TypeDir:
		n.Nlink = 2
		n.Mode |= dir.Mode & 0o2000
	case TypeSymlink:
		n.Mode, n.Size = n.Mode|0o777, int64(len(op.Target))
	case TypeRegular:
		n.Size = op.Size
		if op.Content != nil {
			n.Content = *op.Content
		}
	}
	n.inherit(dir.xattrs[ACLDefault], op.Umask)
	m.inodes[n.Ino] = n
	m.created = n.Ino
	if op.Unnamed {
		n.Nlink, m.orphaned = 0, n.Ino
		return n.Ino, nil
	}
	m.set(now, dir, op.Name, n)
	return n.Ino, nil
}

func (m *model) rename(now int64, op *Rename) (Ino, error) {
	if op.NoReplace && op.Exchange {
		return 0, ErrInvalid
	}
	dir, n, err := m.victim(op.Parent, op.Name)
	if err != nil {
		return 0, err
	}
	newDir, err := m.slot(op.NewParent, op.NewName)
	if err != nil {
		return 0, err
	}
	other := m.inodes[newDir.entries[op.NewName]]
	switch {
	case other != nil && op.NoReplace:
		return 0, ErrExist
	case n.IsDir() && m.below(n.Ino, newDir):
		return 0, ErrLoop
	case other == nil && op.Exchange:
		return 0, ErrNotFound
	case other == n:
		return n.Ino, nil
	case op.Exchange && other.IsDir() && m.below(other.Ino, dir):
		return 0, ErrLoop
	case other == nil || op.Exchange:
	case n.IsDir() && !other.IsDir():
		return 0, ErrNotDir
	case !n.IsDir() && other.IsDir():
		return 0, ErrIsDir
	case len(other.entries) > 0:
		return 0, ErrNotEmpty
	}
	m.set(now, dir, op.Name, nil)
	m.set(now, newDir, op.NewName, nil)
	m.set(now, newDir, op.NewName, n)
	m.changed(now, n)
	if other != nil {
		m.replaced = other.Ino
		if op.Exchange {
			m.set(now, dir, op.Name, other)
			m.changed(now, other)
		} else {
			m.unlinked(now, other)
		}
	}
	return n.Ino, nil
}

func (m *model) doInode(now int64, op Op) (Ino, error) {
	var ino Ino
	var kill bool
	switch op := op.(type) {
	case *SetAttr:
		ino, kill = op.Ino, op.KillPriv
	case *Truncate:
		ino, kill = op.Ino, op.KillPriv
	case *SetContent:
		ino, kill = op.Ino, op.KillPriv
	case *PatchContent:
		ino = op.Ino
	case *FoldContent:
		ino = op.Ino
	case *SetXattr:
		ino = op.Ino
	case *RemoveXattr:
		ino = op.Ino
	}
	n, err := m.get(ino)
	if err != nil {
		return 0, err
	}
	switch op := op.(type) {
	case *SetAttr:
		m.setAttr(now, n, op)
	case *SetXattr:
		_, there := n.xattrs[op.Name]
		if there && op.Flag == XattrCreate {
			return 0, ErrExist
		}
		if !there && op.Flag == XattrReplace {
			return 0, ErrNoAttr
		}
		if isACL(op.Name) {
			return n.Ino, m.setACL(now, n, op)
		}
		m.changed(now, n).xattrs[op.Name] = string(op.Value)
	case *RemoveXattr:
		if _, there := n.xattrs[op.Name]; !there {
			if isACL(op.Name) {
				return n.Ino, nil
			}
			return 0, ErrNoAttr
		}
		delete(m.changed(now, n).xattrs, op.Name)
	default:
		if n.IsDir() {
			return 0, ErrIsDir
		}
		if n.Type() != TypeRegular {
			return 0, ErrInvalid
		}
		if err := m.write(now, n, op); err != nil {
			return 0, err
		}
	}
	if kill && !n.IsDir() {
		mode := n.Mode &^ 0o4000
		if mode&0o010 != 0 {
			mode &^= 0o2000
		}
		if _, caps := n.xattrs[CapabilityAttr]; caps || mode != n.Mode {
			delete(m.changed(now, n).xattrs, CapabilityAttr)
			n.Mode = mode
		}
	}
	return n.Ino, nil
}

// inherit applies the default list of the directory, "" for none, or the umask.
func (n *modelInode) inherit(def string, umask uint32) {
	switch {
	case n.Type() == TypeSymlink:
	case def == "":
		n.Mode &^= umask
	default:
		if n.IsDir() {
			n.xattrs[ACLDefault] = def
		}
		perms, exact := mustACL(def).perms()
		n.Mode &= perms | ^uint32(0o777)
		if !exact {
			n.xattrs[ACLAccess] = withPerms(def, n.Mode)
		}
	}
}

func (m *model) setACL(now int64, n *modelInode, op *SetXattr) error {
	if n.Type() == TypeSymlink {
		return ErrNotSupported
	}
	list, err := decodeACL(op.Value)
	if err != nil {
		return ErrInvalid
	}
	if list == nil {
		if _, there := n.xattrs[op.Name]; there {
			delete(m.changed(now, n).xattrs, op.Name)
		}
		return nil
	}
	if op.Name == ACLDefault && !n.IsDir() {
		return ErrAccess
	}
	m.changed(now, n).xattrs[op.Name] = string(op.Value)
	if op.Name == ACLDefault {
		return nil
	}
	perms, exact := list.perms()
	if exact {
		delete(n.xattrs, op.Name)
	}
	n.Mode = n.Mode&^0o777 | perms
	if op.KillSetGID {
		n.Mode &^= 0o2000
	}
	return nil
}

func mustACL(value string) acl {
	a, err := decodeACL([]byte(value))
	if err != nil {
		panic(err)
	}
	return a
}

func withPerms(value string, mode uint32) string {
	a := mustACL(value)
	a.setPerms(mode)
	return string(a.encode())
}

func (m *model) setAttr(now int64, n *modelInode, op *SetAttr) {
	if op.Mask&AttrAccessed != 0 && op.Atime > n.Atime {
		m.touched[n.Ino] = true
		n.Atime = op.Atime
	}
	if op.Mask&^AttrAccessed != 0 {
		m.changed(now, n)
	}
	if op.Mask&AttrMode != 0 {
		n.Mode = n.Type() | op.Mode&0o7777
		if stored, ok := n.xattrs[ACLAccess]; ok {
			n.xattrs[ACLAccess] = withPerms(stored, n.Mode)
		}
	}
	if op.Mask&AttrUID != 0 {
		n.UID = op.UID
	}
	if op.Mask&AttrGID != 0 {
		n.GID = op.GID
	}
	if op.Mask&AttrAtime != 0 {
		n.Atime = op.Atime
	}
	if op.Mask&AttrMtime != 0 {
		n.Mtime, n.MtimeSet = op.Mtime, now
	}
}

func (m *model) write(now int64, n *modelInode, op Op) error {
	switch op := op.(type) {
	case *Truncate:
		if op.Size < 0 {
			return ErrInvalid
		}
		m.changed(now, n)
		n.Mtime, n.MtimeSet = now, 0
		if op.Size == n.Size {
			return nil
		}
		if op.Size < n.Size {
			n.cut(m.applied, op.Size)
		}
		n.Size, n.Version = op.Size, m.applied
		if c := &n.Content; op.Size < c.Length {
			c.Length = op.Size
			c.Inline = c.Inline[:min(len(c.Inline), int(op.Size))]
			if op.Size == 0 {
				*c = Content{Folded: c.Folded}
			}
		}
	case *SetContent:
		if op.Ino != Created && op.Base != n.Version {
			return ErrConflict
		}
		m.touched[n.Ino] = true
		n.Content, n.Size, n.Version = op.Content, op.Size, m.applied
		n.layOver(nil)
		n.wrote(op.Mtime, op.Ino == Created)
	case *PatchContent:
		return m.patch(now, n, op)
	case *FoldContent:
		if n.Patches.First == 0 || op.Below != n.Patches.Below || op.UpTo < n.Patches.First || op.UpTo < op.Below || op.UpTo > n.Version {
			return ErrConflict
		}
		n.Content = op.Content // history shows it, too
		var left []modelPatch
		for _, p := range n.patches {
			if p.number > op.UpTo {
				left = append(left, p)
			}
		}
		n.layOver(left)
		if len(left) > 0 {
			n.Patches.Below = m.applied
		}
	}
	return nil
}

func (n *modelInode) wrote(at int64, isNew bool) {
	if at == 0 {
		return
	}
	set := n.Mtime
	if n.MtimeSet != 0 {
		set = n.MtimeSet
	}
	if at > set || isNew {
		n.Mtime, n.MtimeSet = at, 0
	}
	n.Ctime = max(n.Ctime, at)
}

func (m *model) doRoot(op Op) error {
	switch op := op.(type) {
	case *Pin:
		m.pins[op.CID] = op.Name
	case *Unpin:
		if _, ok := m.pins[op.CID]; !ok {
			return ErrNotFound
		}
		delete(m.pins, op.CID)
	case *Snapshot:
		if _, ok := m.snapshots[op.Name]; ok {
			return ErrExist
		}
		m.snapshots[op.Name] = m.applied
	case *DropSnapshot:
		if _, ok := m.snapshots[op.Name]; !ok {
			return ErrNotFound
		}
		delete(m.snapshots, op.Name)
	case *TrimHistory:
		if m.trimming {
			return ErrInvalid
		}
		m.trimming = true
		limit := min(op.Index, m.applied-1)
		if op.Time > 0 {
			limit = max(limit, m.indexAt(op.Time))
		}
		m.trimmed = max(m.trimmed, limit)
	}
	return nil
}
