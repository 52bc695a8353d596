package volume

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/cairnfs/cairn/namespace"
)

// What happens when the node's session ends. Others may have the locks by then that
// this node's programs believe in, and may have read what was not named in time. So
// handles with locks fail from then on, and what was written and not named goes to a
// file for a person to look at, while the file shows what the namespace has. So does
// an append that may have been named or not (shareddoubt.go).

const (
	recoverPiece = 1 << 20
	// recoverMax is how much of a file is saved: one of holes has no end.
	recoverMax = 64 << 30
)

// SessionEnded says that the node's session is over, before commands are proposed
// under another. All locks are gone. What was written and not named yet is given to
// Options.Recover. Handles that had locks, and those of files with such bytes, fail
// with namespace.ErrSession until they are closed; others go on.
func (v *Volume) SessionEnded() {
	v.locks.expire()
	v.forgetWaits()
	v.node.sessionEnded()
	v.mu.Lock()
	var lost []*file
	for _, f := range v.files {
		if f.condemn() {
			f.opens++
			lost = append(lost, f)
		}
	}
	v.mu.Unlock()
	for _, f := range lost {
		f.move.Lock()
		if err := f.refresh(context.Background()); err != nil {
			v.o.Logger.Error("cannot give up what was written", "inode", f.ino, "err", err)
		}
		f.move.Unlock()
		v.release(f)
	}
}

// condemn says that what is not committed must not be, and reports whether there is
// anything.
func (f *file) condemn() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.changed && f.dirty.empty() && f.frozen.empty() && f.base.stream == nil {
		return false
	}
	if !f.condemned {
		f.condemned = true
		f.losses.Add(1)
		f.news.add()
	}
	return true
}

// expire returns ErrSession if what is not committed was written under a session
// that has ended, and gives it up. Called with move held.
func (f *file) expire(ctx context.Context) error {
	now := f.v.shared().Session()
	f.mu.Lock()
	condemned, under := f.condemned, f.under
	f.mu.Unlock()
	switch {
	case condemned:
	case under == 0 || under == now:
		return nil
	case now == 0:
		return namespace.ErrSession // SessionEnded follows, unless it goes on
	}
	f.condemn()
	return errors.Join(namespace.ErrSession, f.giveUp(ctx))
}

// giveUp saves what was written and not committed, and forgets it. Called with move
// held and nothing frozen.
func (f *file) giveUp(ctx context.Context) error {
	come := f.news.come.Load()
	if !f.clean() {
		if err := f.save(ctx); err != nil {
			f.v.o.Logger.Error("what was written could not be saved", "inode", f.ino, "err", err)
		}
	}
	n, patches, err := f.v.o.State.Patches(f.ino)
	if errors.Is(err, namespace.ErrNotFound) {
		n, patches, err = f.committed, f.base.patches.ranges(), nil
	}
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.v.mem.Add(-f.dirty.mem)
	f.dirty = f.v.noExtents()
	f.changed, f.condemned, f.under, f.tail, f.first, f.err = false, false, 0, -1, 0, nil
	f.later = later{n: f.later.n + 1}
	f.doubts = nil
	f.stand(n, patches)
	f.mu.Unlock()
	f.v.seen.forget(f.ino)
	f.news.taken.Store(come)
	f.v.tell([]Event{{Ino: f.ino, Content: true}})
	return nil
}

// save writes the file, as programs here saw it, to a recovery file. What cannot be
// read, because it is on other nodes, is zeros there.
func (f *file) save(ctx context.Context) error {
	name, ok := f.v.o.State.Path(f.ino)
	if !ok {
		name = "unnamed"
	}
	name = fmt.Sprintf("%d-%s", f.ino, strings.ReplaceAll(path.Base(name), "/", "_"))
	f.mu.Lock()
	size := f.size
	f.mu.Unlock()
	f.v.o.Logger.Warn("what was written to a file cannot be named any more", "inode", f.ino, "saved as", name, "bytes", size, "saved", f.v.o.Recover != nil)
	if f.v.o.Recover == nil {
		return nil
	}
	w, err := f.v.o.Recover(name)
	if err != nil {
		return err
	}
	p := make([]byte, recoverPiece)
	for off := int64(0); off < min(size, recoverMax) && err == nil; off += recoverPiece {
		piece := p[:min(recoverPiece, size-off)]
		if _, rerr := f.read(ctx, piece, off); rerr != nil {
			f.v.o.Logger.Error("saved without what cannot be read", "inode", f.ino, "offset", off, "err", rerr)
			f.ownBytes(ctx, piece, off)
		}
		_, err = w.Write(piece)
	}
	return errors.Join(err, w.Close())
}

// ownBytes fills p with what was written here from off on, and zeros.
func (f *file) ownBytes(ctx context.Context, p []byte, off int64) {
	f.mu.Lock()
	dirty := f.dirty.snapshot()
	f.mu.Unlock()
	clear(p)
	for _, e := range dirty.overlapping(off, off+int64(len(p))) {
		e = e.slice(max(e.off, off), min(e.end(), off+int64(len(p))))
		into := p[e.off-off : e.end()-off]
		if err := f.v.readExtent(ctx, e, into); err != nil {
			clear(into)
		}
	}
}

// alive returns ErrSession if nothing must be changed through the handle any more.
func (h *Handle) alive() error {
	c := h.f.v.shared()
	if c == nil {
		return nil
	}
	h.arrived()
	if h.losses != h.f.losses.Load() || h.sole != 0 && h.sole != c.Session() {
		return namespace.ErrSession
	}
	return h.trusted(c)
}

// kept returns ErrSession if what was written through the handle may have been given
// up. Ask after it was committed: if the session ended meanwhile, there may have been
// nothing left to commit.
func (h *Handle) kept() error {
	if h.f.v.Shared() && h.losses != h.f.losses.Load() {
		return namespace.ErrSession
	}
	return nil
}

// trusted returns ErrSession if locks were taken through the handle that others may
// have by now.
func (h *Handle) trusted(c Cluster) error {
	l := &h.locks
	if l.lost.Load() {
		return namespace.ErrSession
	}
	s := l.session.Load()
	if s == 0 || s == uint64(c.Session()) {
		return nil
	}
	if h.f.v.locks.holds(h.f.ino, l) {
		if c.Session() != 0 { // else it may go on
			l.lose()
		}
		return namespace.ErrSession
	}
	l.session.CompareAndSwap(s, 0)
	return nil
}

// beforeRead makes sure that what is read next is neither outdated nor a secret of a
// lock that is lost.
func (h *Handle) beforeRead(ctx context.Context) error {
	c := h.f.v.shared()
	if c == nil {
		return nil
	}
	h.arrived()
	if err := h.trusted(c); err != nil {
		return err
	}
	return h.f.fresh(ctx)
}
