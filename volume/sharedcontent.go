package volume

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
)

// Content of files that other nodes write, too.
//
// A file in memory builds on the content of one version of its inode. What was
// written here since then lies above it, as dirty ranges and as the part of a stream
// behind its beginning. When another node has named newer content, the file is
// rebased: the newer content becomes the base, and the ranges written here stay above
// it. A clean file has none, so it just shows the newer content. Observe marks the
// file, and whoever uses it next rebases it; a commit that comes too late is refused
// with ErrConflict, rebases and tries again (sharedturn.go).
//
// Ranges keep their place, so writes of two nodes to different ranges both survive,
// and where they overlap the last commit wins. What was appended with O_APPEND has no
// place but the end: it is a tail of the file that moves with a rebase.

// randomPause is how long to wait before a conflict is tried again, so that nodes
// that meet do not meet again.
func randomPause(try int) time.Duration {
	return rand.N(min(time.Millisecond<<min(try, 5), 20*time.Millisecond))
}

// sharing is what a file of a shared volume knows besides.
type sharing struct {
	news    news          // the namespace may have other content
	refill  refill        // of the kernel's pages
	version atomic.Uint64 // of committed, 0: not known
	folding atomic.Bool   // its patches will be folded soon
	losses  atomic.Uint64 // how often what was written was given up
	fenced  atomic.Int64  // handles that have lost locks

	// Guarded by mu.
	under      namespace.SessionID // under which it was written what is not committed
	tail       int64               // where what was appended begins; -1: nothing was
	frozenTail int64               // the same of what is frozen
	// Counts of writes and of attributes set when it was frozen.
	frozenTouched, frozenLater uint64
	condemned                  bool // what is not committed must not be any more
	doubts                     []*doubt
}

// news says whether there is anything to take over. It counts, so that there still is
// while somebody does: who looks meanwhile is to wait for that and not to go on with
// what was before.
type news struct{ come, taken atomic.Uint64 }

func (n *news) any() bool { return n.taken.Load() != n.come.Load() }

func (n *news) add() { n.come.Add(1) }

// fresh takes over what other nodes have named, if Observe said that there is
// anything.
func (f *file) fresh(ctx context.Context) error {
	if !f.news.any() {
		return nil
	}
	f.move.Lock()
	defer f.move.Unlock()
	if !f.news.any() { // another reader has seen to it
		return nil
	}
	return f.refresh(ctx)
}

// takeOver is fresh for those who have made sure that the namespace is, and do not
// rely on Observe.
func (f *file) takeOver(ctx context.Context) error {
	n, err := f.v.o.State.Inode(f.ino)
	if err == nil && n.Version == f.version.Load() {
		return f.fresh(ctx)
	}
	f.move.Lock()
	defer f.move.Unlock()
	return f.refresh(ctx)
}

// refresh compares with the namespace. Called with move held.
func (f *file) refresh(ctx context.Context) error {
	come := f.news.come.Load()
	f.mu.Lock()
	condemned := f.condemned
	f.mu.Unlock()
	if condemned {
		return f.giveUp(ctx)
	}
	n, patches, err := f.v.o.State.Patches(f.ino)
	if f.inDoubt() {
		f.v.o.State.Told() // what of it is ours
	}
	switch {
	case errors.Is(err, namespace.ErrNotFound) && f.base.below != unread:
		err = nil // reaped; what is here may be read to the end
	case err == nil && n.Version == f.committed.Version && n.Patches.Below == f.base.below:
		f.attrsNamed(n)
	case err == nil && f.undecidable(n.Version):
		f.condemn()
		return f.giveUp(ctx)
	case err == nil:
		err = f.rebase(ctx, n, patches)
	}
	if err == nil {
		f.news.taken.Store(come)
	}
	return err
}

// attrsNamed takes note of n, which may be newer than what the file builds on.
// Called with move held.
func (f *file) attrsNamed(n namespace.Inode) {
	if f.v.Shared() {
		n.Version, n.Content, n.Size = f.committed.Version, f.committed.Content, f.committed.Size
		n.Patches = f.committed.Patches
	}
	f.buildOn(n)
}

func (f *file) buildOn(n namespace.Inode) {
	f.committed = n
	f.version.Store(n.Version)
}

// rebase puts what was written here over the content of n and its patches. Called
// with move held and nothing frozen.
func (f *file) rebase(ctx context.Context, n namespace.Inode, patches []namespace.Range) error {
	own, err := f.streamed(ctx)
	if err != nil {
		return fmt.Errorf("rebase inode %d: %w", f.ino, err)
	}
	f.mu.Lock()
	before := f.dirty.mem
	f.lift(own)
	f.resolve(n.Version)
	moved := f.tail >= 0 && f.moveTail(n.Size)
	f.v.mem.Add(f.dirty.mem - before)
	f.stand(n, patches)
	f.mu.Unlock()
	if moved {
		f.v.tell([]Event{{Ino: f.ino, Content: true}})
	}
	return nil
}

// stand makes n and its patches what the file builds on. Called with move and mu held.
func (f *file) stand(n namespace.Inode, patches []namespace.Range) {
	f.base = f.v.patchedBase(n, patches)
	f.folded = max(f.folded, journal.Seq(n.Content.Folded))
	f.buildOn(n)
	end, _ := f.dirty.end()
	f.size = max(n.Size, end)
	if !f.changed {
		f.mtime, f.ctime = n.Mtime, n.Ctime
	}
}

// streamed returns what was written here and has moved into a stream, as a part of
// its tree.
func (f *file) streamed(ctx context.Context) (extent, error) {
	b := f.base
	if b.stream == nil || b.from == b.length {
		return extent{}, nil
	}
	root, err := b.stream.snapshot(ctx)
	if err != nil {
		return extent{}, err
	}
	return extent{off: b.from, n: b.length - b.from, kind: shared, tree: f.v.reader(root), pos: b.from}, nil
}

// lift puts what streamed has returned back beneath what was written since. Called with
// mu held.
func (f *file) lift(own extent) {
	if own.n > 0 {
		lower := f.v.noExtents()
		lower.add(own)
		f.dirty.under(&lower)
	}
}

// moveTail moves what was appended to the end of a file of the given size, over
// which lies what else was written here, and reports whether it was elsewhere. Called
// with mu held.
func (f *file) moveTail(size int64) bool {
	records := f.dirty.overlapping(f.tail, maxSize)
	f.dirty.clear(f.tail, maxSize)
	end, _ := f.dirty.end()
	delta := max(size, end) - f.tail
	for _, e := range records {
		e = e.slice(max(e.off, f.tail), e.end())
		e.off += delta
		f.dirty.add(e)
	}
	f.tail += delta
	return delta != 0
}

// place returns with mu held when n bytes may be written at off, or appended. The
// tail is one piece that holds nothing but what was appended, so that it can be
// moved: what would end it is written after it was committed. by is who writes, and
// must still be allowed to once mu is held; nil if that was looked at.
func (f *file) place(ctx context.Context, off, n int64, atEnd bool, by *Handle) error {
	c := f.v.shared()
	if c == nil {
		f.mu.Lock()
		return nil
	}
	if c.Session() == 0 {
		return namespace.ErrSession
	}
	if err := f.fresh(ctx); err != nil {
		return err
	}
	for {
		f.mu.Lock()
		if by != nil {
			if err := by.alive(); err != nil {
				f.mu.Unlock()
				return err
			}
		}
		if atEnd && f.tail < 0 {
			f.tail = f.size
		}
		if atEnd || f.fits(off, off+n) {
			return nil
		}
		f.mu.Unlock()
		f.move.Lock()
		err := f.commit(ctx)
		f.move.Unlock()
		if err != nil {
			return err
		}
	}
}

// fits reports whether a write leaves the tail what it is, and what is being named of
// it what it was. Called with mu held.
func (f *file) fits(off, end int64) bool {
	tail := f.tail
	if f.frozenTail >= 0 {
		tail = f.frozenTail
	}
	return tail < 0 || end <= tail || f.frozenTail < 0 && len(f.doubts) == 0 && off >= tail && end <= f.size
}

// commitShared is commit of a file that others write, too. Called with move held,
// which others may have had meanwhile.
func (f *file) commitShared(ctx context.Context) error { return f.retry(ctx, f.commitOnce) }

// retry calls commit, which is commitOnce or patchOnce, until it builds on what the
// namespace has. Called with move held, which others may have had meanwhile.
func (f *file) retry(ctx context.Context, commit func(context.Context) error) error {
	if f.news.any() {
		if err := f.refresh(ctx); err != nil {
			return err
		}
	}
	if f.clean() {
		err := commit(ctx)
		if !errors.Is(err, namespace.ErrConflict) && !errors.Is(err, namespace.ErrTurn) {
			return err
		}
		// Something was written meanwhile.
	}
	return f.inTurn(ctx, func() error { return commit(ctx) })
}

// nameShared proposes a change of the content, after which the file has the given size
// and content. Called with move held.
func (f *file) nameShared(ctx context.Context, op namespace.Op, size int64, c namespace.Content) error {
	d := f.naming(size)
	res, err := f.nameWith(ctx, op)
	if err != nil {
		f.doubted(d, res)
		return fmt.Errorf("name the content of inode %d: %w", f.ino, err)
	}
	f.certain()
	n := res.Inodes[len(res.Inodes)-1]
	if n.Version != res.Index { // the inode as it is by now
		n.Version, n.Content, n.Size = res.Index, c, size
		f.news.add()
	}
	f.v.seen.advance(f.ino, f.committed.Version, n.Version)
	f.buildOn(n)
	return nil
}

// secureShared is secure: what others are to see after a loss of power must be named.
func (f *file) secureShared(ctx context.Context) error {
	if err := f.retry(ctx, f.patchOnce); err != nil {
		return err
	}
	return f.nameLater(ctx)
}

// flush commits. A file that is gone needs none.
func (f *file) flush(ctx context.Context) error {
	f.move.Lock()
	defer f.move.Unlock()
	if err := f.secureShared(ctx); err != nil && !errors.Is(err, namespace.ErrNotFound) {
		return err
	}
	return nil
}

// setSizeShared is setSize. Called with move held, which others may have meanwhile.
func (f *file) setSizeShared(ctx context.Context, size int64, killPriv bool, by *Handle) error {
	if err := f.secureShared(ctx); err != nil {
		return err
	}
	var (
		res namespace.Result
		own extent
	)
	err := f.inTurn(ctx, func() (err error) {
		if own, err = f.streamed(ctx); err != nil {
			return err
		}
		if by != nil {
			if err := by.alive(); err != nil {
				return err
			}
		}
		d := f.sizing(size)
		if res, err = f.v.propose(ctx, &namespace.Truncate{Ino: f.ino, Size: size, KillPriv: killPriv}); err != nil {
			f.doubted(d, res)
		}
		return err
	})
	if err != nil {
		return err
	}
	n, patches := res.Inodes[0], []namespace.Range(nil)
	if n.Patches.First != 0 {
		if n, patches, err = f.v.o.State.Patches(f.ino); err != nil {
			f.news.add()
			return err
		}
	}
	switch cut := size > 0 && size < f.committed.Size; {
	case n.Version > res.Index:
		f.news.add()
	case !cut && !f.news.any():
		// Else the kernel may not have known of what was cut, and keep it behind the end.
		f.v.seen.advance(f.ino, f.committed.Version, n.Version)
	}
	if f.truncated(n, patches, own, size) {
		f.v.tell([]Event{{Ino: f.ino, Content: true}})
	}
	return nil
}

// truncated makes n and its patches what the file builds on once it was given a size.
// own is what was streamed meanwhile. What was appended meanwhile comes after, so that
// it is not in the way of what others appended; it reports whether that moved it.
// Called with move held.
func (f *file) truncated(n namespace.Inode, patches []namespace.Range, own extent, size int64) (moved bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.dirty.mem
	f.lift(own)
	f.resolve(n.Version)
	f.doubts = nil
	if f.tail < 0 {
		f.dirty.clear(size, maxSize)
	} else {
		f.dirty.clear(size, f.tail)
		moved = f.moveTail(n.Size)
	}
	f.v.mem.Add(f.dirty.mem - before)
	f.stand(n, patches)
	f.mtime, f.ctime = n.Mtime, n.Ctime
	if f.dirty.empty() && f.later.mask == 0 {
		f.changed, f.under = false, 0
	}
	return moved
}

// openShared is open of a file that others may write.
func (v *Volume) openShared(ctx context.Context, f *file, flags uint32) (*Handle, error) {
	h := f.handle(flags)
	err := f.takeOver(ctx)
	if err == nil {
		h.losses = f.losses.Load()
		err = h.openSole(ctx)
	}
	if err == nil && flags&syscall.O_TRUNC != 0 {
		if err = f.setSize(context.WithoutCancel(ctx), 0, false, nil); err != nil {
			h.releaseSole()
		}
	}
	if err != nil {
		v.release(f)
		return nil, err
	}
	h.version = f.version.Load()
	h.keep = v.seen.is(f.ino, h.version)
	return h, nil
}
