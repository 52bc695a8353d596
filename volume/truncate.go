package volume

import (
	"context"
	"fmt"
	"slices"

	"github.com/cairnfs/cairn/namespace"
)

// A change of size is a command and costs no block: the namespace's inode, and
// the base of an open file, say how much of their tree counts. The journal has a
// record of it as well, if it has others of the file, so that a restart that
// puts written ranges back cuts them where they were cut.

// setSize truncates or extends the file. by is who does it, and must still be allowed to
// when it is done; nil if anybody may.
func (f *file) setSize(ctx context.Context, size int64, killPriv bool, by *Handle) error {
	f.move.Lock()
	defer f.move.Unlock()
	if f.v.Shared() {
		return f.setSizeShared(ctx, size, killPriv, by)
	}
	f.mu.Lock()
	streaming := f.base.stream != nil
	f.mu.Unlock()
	if streaming && size > 0 {
		if err := f.commit(ctx); err != nil {
			return err
		}
	}
	if err := f.nameLater(ctx); err != nil {
		return err
	}
	if err := f.v.checkLow(); err != nil {
		return err // before the journal has a record that says otherwise
	}
	// A crash must not keep the new size and lose what was written before. What is
	// cut off anyway may rest on a stream that has no name.
	if size > 0 {
		if err := f.record(false); err != nil {
			return err
		}
	}
	now := f.v.now()
	f.mu.Lock()
	live := f.first != 0
	if live {
		// The record goes first: should the command be lost, a restart
		// still cuts the extents, and what they cover of the base.
		rec := rangeRecord{Ino: f.ino, Off: size, Mtime: now, Truncate: true, First: true}
		seq, _, err := f.v.appendRange(&rec, nil)
		if err != nil {
			f.mu.Unlock()
			return fmt.Errorf("journal inode %d: %w", f.ino, err)
		}
		f.recorded(seq)
	}
	f.mu.Unlock()
	res, err := f.v.propose(ctx, &namespace.Truncate{Ino: f.ino, Size: size, KillPriv: killPriv})
	if err != nil && !(live && noSpace(err)) {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		// The record cannot be taken back, so the file is what a restart would make
		// of it, until a commit names that.
		f.touch(now)
		f.cutUnnamed(size)
		if killPriv {
			return err
		}
		return nil
	}
	f.committed = res.Inodes[0]
	f.cut(size)
	f.mtime, f.ctime = f.committed.Mtime, f.committed.Ctime
	return nil
}

// cutUnnamed is cut by a record alone. What a stream puts in place of what was cut has
// no name then.
func (f *file) cutUnnamed(size int64) {
	f.cut(size)
	f.committed.Content.Length = f.base.length
}

// cut applies a change of size to the layers. Called with mu held.
func (f *file) cut(size int64) {
	before := f.dirty.mem
	f.dirty.clear(size, maxSize)
	f.v.mem.Add(f.dirty.mem - before)
	if size == 0 {
		f.base = base{}
	}
	f.base.length = min(f.base.length, size)
	if f.base.inline != nil {
		f.base.inline = slices.Clip(f.base.inline[:f.base.length])
	}
	if f.base.patches != nil {
		kept := f.base.patches.snapshot()
		kept.clear(size, maxSize)
		f.base.patches = &kept
	}
	f.size = size
	if f.dirty.empty() && f.base.stream == nil && f.first == 0 && f.later.mask == 0 {
		// With records a commit is needed to tell a restart to pass them over,
		// and attributes may have been set meanwhile.
		f.changed = false
	}
}
