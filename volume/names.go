package volume

import (
	"context"
	"errors"
	"syscall"

	"github.com/cairnfs/cairn/namespace"
)

// Operations on names and attributes. The namespace decides them; the volume
// adds who asks, what open files know better, and which inodes must outlive
// their last name.

// CIDAttr is the extended attribute that holds a regular file's CID.
const CIDAttr = "user.cairn.cid"

// Lookup returns what name in directory parent stands for. "." and ".." are
// names as well.
func (v *Volume) Lookup(ctx context.Context, parent namespace.Ino, name string) (Attr, error) {
	switch name {
	case ".": // of a file handle, when nothing else knows the inode
		a, err := v.GetAttr(ctx, parent)
		if err == nil && a.Nlink == 0 {
			return Attr{}, namespace.ErrNotFound
		}
		return a, err
	case "..":
		dir, err := v.o.State.Inode(parent)
		if err != nil {
			return Attr{}, err
		}
		return v.GetAttr(ctx, dir.Parent)
	}
	n, err := v.o.State.Lookup(parent, name)
	if errors.Is(err, namespace.ErrNotFound) && v.Shared() {
		n, err = v.lookupAgain(ctx, parent, name)
	}
	if err != nil {
		return Attr{}, err
	}
	v.noteName(n.Ino, name)
	if n.Mode&syscall.S_IFMT == syscall.S_IFREG {
		return v.GetAttr(ctx, n.Ino)
	}
	a := attrOf(&n)
	v.accesses.lay(&a)
	return a, nil
}

// GetAttr returns the attributes of ino.
func (v *Volume) GetAttr(_ context.Context, ino namespace.Ino) (Attr, error) {
	// The file comes first. The other way round it could be committed and
	// forgotten in between, and what was written to it would be in neither.
	f := v.acquireIfPresent(ino)
	if f != nil {
		defer v.release(f)
		if err := f.fresh(context.Background()); err != nil {
			return Attr{}, err
		}
	}
	n, err := v.o.State.Inode(ino)
	if err != nil {
		return Attr{}, err
	}
	a := attrOf(&n)
	if f != nil {
		f.attr(&a)
		a.Outdated = f.outdated()
	}
	v.accesses.lay(&a)
	return a, nil
}

// Path returns a path that leads to ino, for messages; it may not find one.
func (v *Volume) Path(ino namespace.Ino) (string, bool) { return v.o.State.Path(ino) }

// SetAttr changes the attributes that s.Valid names and returns all.
func (v *Volume) SetAttr(ctx context.Context, ino namespace.Ino, s SetAttr) (Attr, error) {
	return v.setAttrs(ctx, ino, s, nil)
}

// SetAttr is that of the volume, for the file that is open, as ftruncate(2) does it: who
// may not write through the handle any more may not change the size either.
func (h *Handle) SetAttr(ctx context.Context, s SetAttr) (Attr, error) {
	return h.f.v.setAttrs(ctx, h.f.ino, s, h)
}

func (v *Volume) setAttrs(ctx context.Context, ino namespace.Ino, s SetAttr, by *Handle) (Attr, error) {
	if s.Valid&SetSize != 0 {
		if s.Size < 0 {
			return Attr{}, namespace.ErrInvalid
		}
		f, err := v.acquire(ino)
		if err != nil {
			return Attr{}, err
		}
		err = f.setSize(context.WithoutCancel(ctx), s.Size, s.KillPriv, by)
		v.release(f)
		if err != nil {
			return Attr{}, err
		}
	}
	if s.Valid&^SetSize != 0 || s.KillPriv && s.Valid&SetSize == 0 {
		if err := v.setAttr(ctx, ino, s); err != nil {
			return Attr{}, err
		}
	}
	return v.GetAttr(ctx, ino)
}

func (v *Volume) setAttr(ctx context.Context, ino namespace.Ino, s SetAttr) error {
	if s.Valid&SetAtime != 0 {
		v.accesses.forget(ino)
	}
	op := &namespace.SetAttr{
		Ino: ino, Mode: s.Mode, UID: s.UID, GID: s.GID, Atime: s.Atime, Mtime: s.Mtime, KillPriv: s.KillPriv,
	}
	for _, m := range []struct {
		from SetAttrMask
		to   namespace.AttrMask
	}{
		{SetMode, namespace.AttrMode}, {SetUID, namespace.AttrUID}, {SetGID, namespace.AttrGID},
		{SetAtime, namespace.AttrAtime}, {SetMtime, namespace.AttrMtime},
	} {
		if s.Valid&m.from != 0 {
			op.Mask |= m.to
		}
	}
	f := v.acquireIfPresent(ino)
	if f == nil {
		_, err := v.propose(ctx, op)
		return err
	}
	defer v.release(f)
	if done, err := f.postpone(s); done || err != nil {
		return err
	}
	if s.Valid&SetMtime == 0 {
		if err := v.nameLater(ctx, ino); err != nil {
			return err
		}
		_, err := v.propose(ctx, op)
		return err
	}
	// A time that is set must not be overtaken by a commit that carries the
	// time of an earlier write.
	f.move.Lock()
	defer f.move.Unlock()
	if err := f.nameLater(ctx); err != nil {
		return err
	}
	res, err := v.propose(ctx, op)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.mtime, f.ctime = s.Mtime, res.Inodes[0].Ctime
	f.mu.Unlock()
	return nil
}

// KillPriv takes setuid, setgid and capabilities away from ino, as a write by
// anybody but root does.
func (v *Volume) KillPriv(ctx context.Context, ino namespace.Ino) error {
	a, err := v.GetAttr(ctx, ino)
	if err != nil {
		return err
	}
	if a.Mode&(syscall.S_ISUID|syscall.S_ISGID) == 0 {
		if !a.HasXattrs {
			return nil
		}
		// A write by one who may not set privileges is no rare thing.
		if _, err := v.o.State.Xattr(ino, namespace.CapabilityAttr); err != nil {
			if errors.Is(err, namespace.ErrNoAttr) {
				err = nil
			}
			return err
		}
	}
	return v.setAttr(ctx, ino, SetAttr{KillPriv: true})
}

func (v *Volume) create(ctx context.Context, op *namespace.Create) (namespace.Inode, error) {
	if err := v.checkRoom(); err != nil {
		return namespace.Inode{}, err
	}
	res, err := v.propose(ctx, op)
	if err != nil {
		return namespace.Inode{}, err
	}
	return res.Inodes[0], nil
}

// Mkdir makes a directory. mode is permissions, before the caller's umask, as
// it is in Mknod and Create.
func (v *Volume) Mkdir(ctx context.Context, parent namespace.Ino, name string, mode uint32, c Caller) (Attr, error) {
	n, err := v.create(ctx, &namespace.Create{
		Parent: parent, Name: name, Mode: mode&^syscall.S_IFMT | syscall.S_IFDIR, Umask: c.Umask, UID: c.UID, GID: c.GID,
	})
	return attrOf(&n), err
}

// Mknod makes a file of the type that is in mode.
func (v *Volume) Mknod(ctx context.Context, parent namespace.Ino, name string, mode, rdev uint32, c Caller) (Attr, error) {
	if mode&syscall.S_IFMT == 0 {
		mode |= syscall.S_IFREG
	}
	n, err := v.create(ctx, &namespace.Create{
		Parent: parent, Name: name, Mode: mode, Umask: c.Umask, Rdev: rdev, UID: c.UID, GID: c.GID,
	})
	v.noteName(n.Ino, name)
	return attrOf(&n), err
}

// Symlink makes a symbolic link to target.
func (v *Volume) Symlink(ctx context.Context, parent namespace.Ino, name, target string, c Caller) (Attr, error) {
	n, err := v.create(ctx, &namespace.Create{
		Parent: parent, Name: name, Mode: syscall.S_IFLNK | 0o777, Target: target, UID: c.UID, GID: c.GID,
	})
	return attrOf(&n), err
}

// Create makes a regular file that does not exist yet and opens it.
func (v *Volume) Create(ctx context.Context, parent namespace.Ino, name string, mode, flags uint32, c Caller) (Attr, *Handle, error) {
	defer v.making.begin(v.o.State.NextIno())()
	n, err := v.create(ctx, &namespace.Create{
		Parent: parent, Name: name, Mode: mode&^syscall.S_IFMT | syscall.S_IFREG, Umask: c.Umask, UID: c.UID, GID: c.GID,
	})
	if err != nil {
		return Attr{}, nil, err
	}
	v.noteName(n.Ino, name)
	h, err := v.open(ctx, n.Ino, flags&^syscall.O_TRUNC)
	if err != nil {
		return Attr{}, nil, err
	}
	return attrOf(&n), h, nil
}

// Tmpfile makes a regular file without a name and opens it. Link may give it one;
// else it goes when it is closed.
func (v *Volume) Tmpfile(ctx context.Context, parent namespace.Ino, mode, flags uint32, c Caller) (Attr, *Handle, error) {
	if err := v.checkRoom(); err != nil {
		return Attr{}, nil, err
	}
	defer v.making.begin(v.o.State.NextIno())()
	res, err := v.propose(ctx, &namespace.Create{
		Parent: parent, Unnamed: true, Mode: mode&^syscall.S_IFMT | syscall.S_IFREG, Umask: c.Umask, UID: c.UID, GID: c.GID,
	})
	if err != nil {
		return Attr{}, nil, err
	}
	v.orphaned(res, nil)
	h, err := v.open(ctx, res.Orphan, flags&^syscall.O_TRUNC)
	if err != nil {
		return Attr{}, nil, err
	}
	return attrOf(&res.Inodes[0]), h, nil
}

// Open opens a regular file. The caller has checked permissions. O_TRUNC,
// O_APPEND, O_SYNC and O_DSYNC in flags count.
//
// If the volume is shared, what other nodes named before the call is seen. When no
// majority can be reached, opening for reading goes on with what is here. ErrWouldBlock
// says that the file is one that only one node may have open at a time, and another
// has.
func (v *Volume) Open(ctx context.Context, ino namespace.Ino, flags uint32) (*Handle, error) {
	if c := v.shared(); c != nil {
		if err := c.Barrier(ctx); err != nil && flags&(syscall.O_ACCMODE|syscall.O_TRUNC) != syscall.O_RDONLY {
			return nil, err
		}
	}
	return v.open(ctx, ino, flags)
}

// open is Open of an inode about which nothing is to be learned from other nodes.
func (v *Volume) open(ctx context.Context, ino namespace.Ino, flags uint32) (*Handle, error) {
	f, err := v.acquire(ino)
	if err != nil {
		return nil, err
	}
	if v.Shared() {
		return v.openShared(ctx, f, flags)
	}
	if flags&syscall.O_TRUNC != 0 {
		if err := f.setSize(context.WithoutCancel(ctx), 0, false, nil); err != nil {
			v.release(f)
			return nil, err
		}
	}
	h := f.handle(flags)
	h.keep = true
	return h, nil
}

// Link gives ino another name.
func (v *Volume) Link(ctx context.Context, ino, parent namespace.Ino, name string) (Attr, error) {
	if err := v.checkRoom(); err != nil {
		return Attr{}, err
	}
	if err := v.nameLater(ctx, ino); err != nil {
		return Attr{}, err
	}
	if _, err := v.propose(ctx, &namespace.Link{Ino: ino, Parent: parent, Name: name}); err != nil {
		return Attr{}, err
	}
	v.noteName(ino, name)
	v.adopted(ino)
	return v.GetAttr(ctx, ino)
}

// named reports whether ino has a name by now. What orphaned and adopted were told
// may have been undone by a command that was ordered later and told of earlier.
// Called with v.mu held.
func (v *Volume) named(ino namespace.Ino) bool {
	n, err := v.o.State.Inode(ino)
	return err == nil && n.Nlink > 0
}

// adopted notes that ino has a name, maybe after having had none.
func (v *Volume) adopted(ino namespace.Ino) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, was := v.orphans[ino]; was && v.named(ino) {
		delete(v.orphans, ino)
	}
	if f := v.files[ino]; f != nil {
		v.adopt(f)
	}
}

// Unlink removes a name of anything but a directory. An inode without a name
// lives on until it is closed and forgotten.
func (v *Volume) Unlink(ctx context.Context, parent namespace.Ino, name string) error {
	res, err := v.propose(ctx, &namespace.Unlink{Parent: parent, Name: name})
	v.orphaned(res, err)
	return err
}

// Rmdir removes an empty directory.
func (v *Volume) Rmdir(ctx context.Context, parent namespace.Ino, name string) error {
	res, err := v.propose(ctx, &namespace.Rmdir{Parent: parent, Name: name})
	v.orphaned(res, err)
	return err
}

// Flags of Rename, as in renameat2(2).
const (
	RenameNoReplace = 1
	RenameExchange  = 2
)

// Rename moves a name, replacing what the new name stands for unless flags say
// otherwise.
func (v *Volume) Rename(ctx context.Context, parent namespace.Ino, name string, newParent namespace.Ino, newName string, flags uint32) error {
	if flags&^(RenameNoReplace|RenameExchange) != 0 || flags == RenameNoReplace|RenameExchange {
		return namespace.ErrInvalid
	}
	err := v.nameLaterOf(ctx, parent, name)
	if err == nil && flags == RenameExchange {
		err = v.nameLaterOf(ctx, newParent, newName)
	}
	if err != nil {
		return err
	}
	res, err := v.propose(ctx, &namespace.Rename{
		Parent: parent, Name: name, NewParent: newParent, NewName: newName,
		NoReplace: flags == RenameNoReplace, Exchange: flags == RenameExchange,
	})
	v.orphaned(res, err)
	if err == nil {
		v.noteName(res.Inodes[0].Ino, newName)
	}
	return err
}

// orphaned notes the inode that lost its last name, if res says so.
func (v *Volume) orphaned(res namespace.Result, err error) {
	if err != nil || res.Orphan == 0 {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.named(res.Orphan) {
		return
	}
	v.orphans[res.Orphan] = false
	if f := v.files[res.Orphan]; f != nil {
		f.mu.Lock()
		f.orphan = true
		f.mu.Unlock()
		v.forgetIfIdle(f)
	}
}

// Forget says that the kernel no longer knows ino. It touches memory only. An
// inode without a name is reaped some time after.
func (v *Volume) Forget(ino namespace.Ino) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.orphans[ino]; ok {
		v.orphans[ino] = true
	}
}

// Readlink returns the target of a symbolic link.
func (v *Volume) Readlink(_ context.Context, ino namespace.Ino) (string, error) {
	n, err := v.o.State.Inode(ino)
	if err != nil {
		return "", err
	}
	if n.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		return "", namespace.ErrInvalid
	}
	return n.Target, nil
}

// ReadDir calls fn for the entries of a directory after cookie, 0 to begin,
// until fn returns false. Entries that exist all the while come exactly once.
func (v *Volume) ReadDir(_ context.Context, ino namespace.Ino, cookie uint64, fn func(namespace.Dentry) bool) error {
	if !v.Shared() {
		return v.o.State.ReadDir(ino, cookie, fn)
	}
	return v.o.State.ReadDir(ino, cookie, func(d namespace.Dentry) bool {
		v.noteName(d.Ino, d.Name)
		return fn(d)
	})
}

// SyncDir returns when every change of names made before is durable.
func (v *Volume) SyncDir(ctx context.Context, _ namespace.Ino) error { return v.o.Log.Sync(ctx) }

// GetXattr returns the value of an extended attribute. CIDAttr of a regular
// file is its CID in text form; asking for it stores and commits the content.
func (v *Volume) GetXattr(ctx context.Context, ino namespace.Ino, name string) ([]byte, error) {
	if name != CIDAttr {
		return v.o.State.Xattr(ino, name)
	}
	f, err := v.acquire(ino)
	if errors.Is(err, ErrNotRegular) {
		return nil, namespace.ErrNoAttr
	}
	if err != nil {
		return nil, err
	}
	defer v.release(f)
	c, err := f.cid(context.WithoutCancel(ctx))
	if err != nil {
		return nil, err
	}
	return []byte(c.String()), nil
}

// SetXattr sets an extended attribute. flags are XATTR_CREATE (1) and
// XATTR_REPLACE (2). killSetGID says that the caller, if it is an access control
// list that he sets, is not of the inode's group.
func (v *Volume) SetXattr(ctx context.Context, ino namespace.Ino, name string, value []byte, flags uint32, killSetGID bool) error {
	if name == CIDAttr {
		return ErrReserved
	}
	if err := errors.Join(v.checkRoom(), v.nameLater(ctx, ino)); err != nil {
		return err
	}
	_, err := v.propose(ctx, &namespace.SetXattr{
		Ino: ino, Name: name, Value: value, Flag: namespace.XattrFlag(flags), KillSetGID: killSetGID,
	})
	return err
}

// ListXattr returns the names of the extended attributes; CIDAttr, which cannot
// be copied, is not among them.
func (v *Volume) ListXattr(_ context.Context, ino namespace.Ino) ([]string, error) {
	return v.o.State.Xattrs(ino)
}

// RemoveXattr removes an extended attribute.
func (v *Volume) RemoveXattr(ctx context.Context, ino namespace.Ino, name string) error {
	if name == CIDAttr {
		return ErrReserved
	}
	_, err := v.propose(ctx, &namespace.RemoveXattr{Ino: ino, Name: name})
	return err
}

// StatFS is what statfs(2) says, sizes in units of BlockSize bytes.
type StatFS struct {
	BlockSize             uint32
	Blocks, Free, Avail   uint64
	Files, FreeFiles, Max uint64
}

// StatFS says how full the volume is: the disk that the blocks are on.
func (v *Volume) StatFS(context.Context) (StatFS, error) {
	const blockSize, inodes = 4096, 1 << 40 // inodes cost no fixed space
	u, err := v.o.Usage()
	if err != nil {
		return StatFS{}, err
	}
	st := v.o.State.Stats()
	used := uint64(st.Files + st.Dirs)
	return StatFS{
		BlockSize: blockSize, Blocks: u.Total / blockSize, Free: u.Free / blockSize, Avail: u.Avail / blockSize,
		Files: inodes, FreeFiles: inodes - used, Max: 255,
	}, nil
}
