package volume

import (
	"context"
	"syscall"

	"github.com/cairnfs/cairn/namespace"
)

// Programs that copy files write one and then set its owner, times and mode while
// it is still open, each with a call of its own. The close that follows names the
// content; it names these attributes with the same command. Until then they are
// kept here, and whoever asks sees them at once.

// later are attributes that were set and that the next command about the file will
// name. Guarded by file.mu.
type later struct {
	mask           namespace.AttrMask // which of the fields count
	mode, uid, gid uint32
	atime, mtime   int64
	at             int64  // when the last of them was set
	n              uint64 // counts the calls
}

// postpone keeps s for later if the file is about to be committed anyway, and
// reports whether it did. If the file has extended attributes they may have a say
// in what a change of mode means, so it does not.
func (f *file) postpone(s SetAttr) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.changed || f.orphan || f.base.reader != nil || f.err != nil {
		return false, nil
	}
	// With mu held, so that no mode is missed that is being named just now: it is
	// in f.later until it is there.
	n, err := f.v.o.State.Inode(f.ino)
	if err != nil || n.HasXattrs {
		return false, err
	}
	l := &f.later
	was := n.Mode &^ syscall.S_IFMT
	if l.mask&namespace.AttrMode != 0 {
		was = l.mode
	}
	mode := was
	if s.Valid&SetMode != 0 {
		mode = s.Mode &^ syscall.S_IFMT
	}
	if s.KillPriv {
		mode = namespace.KillPriv(mode)
	}
	if s.Valid == 0 && mode == was {
		return true, nil
	}
	if mode != was {
		l.mask, l.mode = l.mask|namespace.AttrMode, mode
	}
	if s.Valid&SetUID != 0 {
		l.mask, l.uid = l.mask|namespace.AttrUID, s.UID
	}
	if s.Valid&SetGID != 0 {
		l.mask, l.gid = l.mask|namespace.AttrGID, s.GID
	}
	if s.Valid&SetAtime != 0 {
		l.mask, l.atime = l.mask|namespace.AttrAtime, s.Atime
	}
	if s.Valid&SetMtime != 0 {
		l.mask, l.mtime = l.mask|namespace.AttrMtime, s.Mtime
		f.mtime = s.Mtime
	}
	l.at = max(f.v.now(), f.ctime)
	f.ctime = l.at
	l.n++
	return true, nil
}

// lay puts the attributes over a.
func (l *later) lay(a *Attr) {
	if l.mask&namespace.AttrMode != 0 {
		a.Mode = a.Mode&syscall.S_IFMT | l.mode
	}
	if l.mask&namespace.AttrUID != 0 {
		a.UID = l.uid
	}
	if l.mask&namespace.AttrGID != 0 {
		a.GID = l.gid
	}
	if l.mask&namespace.AttrAtime != 0 {
		a.Atime = l.atime
	}
}

// nameWith proposes ops together with the attributes that wait. The command's
// time, which becomes the ctime, is that at which they were set.
func (f *file) nameWith(ctx context.Context, ops ...namespace.Op) (namespace.Result, error) {
	f.mu.Lock()
	l, ctime := f.later, f.ctime
	f.mu.Unlock()
	if l.mask == 0 {
		return f.proposeAt(ctx, f.v.now(), ops...)
	}
	n, err := f.v.o.State.Inode(f.ino)
	if err != nil {
		return namespace.Result{}, err
	}
	ops = append(ops, &namespace.SetAttr{
		Ino: f.ino, Mask: l.mask, Mode: l.mode, UID: l.uid, GID: l.gid, Atime: l.atime, Mtime: l.mtime,
	})
	res, err := f.proposeAt(ctx, max(ctime, n.Ctime), ops...)
	if err != nil {
		return res, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.later.n == l.n {
		f.later = later{n: l.n}
	}
	return res, nil
}

// nameLater brings the attributes that wait, if there are any, into the namespace.
// Called with move held.
func (f *file) nameLater(ctx context.Context) error {
	f.mu.Lock()
	none := f.later.mask == 0
	f.mu.Unlock()
	if none {
		return nil
	}
	res, err := f.nameWith(ctx)
	if err == nil {
		f.attrsNamed(res.Inodes[0])
	}
	return err
}

// nameLater is that of the file of ino, if it is in use.
func (v *Volume) nameLater(ctx context.Context, ino namespace.Ino) error {
	f := v.acquireIfPresent(ino)
	if f == nil {
		return nil
	}
	defer v.release(f)
	f.mu.Lock()
	none := f.later.mask == 0
	f.mu.Unlock()
	if none {
		return nil
	}
	f.move.Lock()
	defer f.move.Unlock()
	return f.nameLater(ctx)
}

// nameLaterOf is nameLater of what name stands for, which is about to have another name:
// a restart must not find that and miss who may read the file.
func (v *Volume) nameLaterOf(ctx context.Context, parent namespace.Ino, name string) error {
	n, err := v.o.State.Lookup(parent, name)
	if err != nil {
		return nil // whoever asks for the change is told
	}
	return v.nameLater(ctx, n.Ino)
}
