package volume

import (
	"context"
	"errors"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/gc"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/namespace"
)

// Blocks that nothing refers to are collected (see cas/gc). What files of a volume
// need and no name refers to yet is kept by promises of the stores: blocks of streams
// that are being written, trees of which a range was copied, and what records in the
// journal refer to. A file remembers the step of the collection at which the oldest
// of its promises was given, and the command that names its content says so. A round
// has all of them renewed first (Renew), so that no command comes too late. One that
// does all the same, because the node was cut off, is refused with ErrPromise; then
// what it names is looked for and promised again.

// maxRenewals is how often a command is proposed again after ErrPromise: once is
// enough unless rounds follow each other within the time that it takes to renew.
const maxRenewals = 10

// promises is what a file relies upon. Guarded by file.mu.
type promises struct {
	oldest uint64               // step of the oldest promise
	any    bool                 // there is any
	logged map[cas.CID]struct{} // trees that records refer to which a restart replays
}

// rely notes that what is stored from now on for the file, or was found to have a name
// not before the given step, is relied upon. Called with mu held.
func (f *file) rely(step uint64) {
	if p := &f.promises; !p.any || step < p.oldest {
		p.oldest, p.any = step, true
	}
}

// relyNow is rely before something is stored. Called without mu.
func (f *file) relyNow() {
	step := f.v.step()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rely(step)
}

func (v *Volume) step() uint64 { return v.o.State.Collection().Step }

// logs notes that a record of the journal refers to e's tree. Called with mu held.
func (f *file) logs(e extent) {
	if e.kind != shared || f.v.Shared() {
		return
	}
	if f.logged == nil {
		f.logged = make(map[cas.CID]struct{})
	}
	f.logged[e.tree.Root().CID] = struct{}{}
}

// Renew has all blocks that files here rely upon promised again. On return commands of
// the present step, and of the one before it, are accepted. What cannot be found is
// logged: a file of which something is lost fails when it is named. Other errors say
// that it must be tried again.
func (v *Volume) Renew(ctx context.Context) error {
	step := v.step()
	v.awaitCopies()
	for _, f := range v.relying() {
		err := f.renew(ctx, step)
		if lost(err) {
			v.o.Logger.Error("content that is not named yet has lost blocks", "inode", f.ino, "err", err)
			err = nil
		}
		v.release(f)
		if err != nil {
			return err
		}
	}
	return nil
}

// awaitCopies returns when what is being copied belongs to a file.
func (v *Volume) awaitCopies() {
	v.copying.Lock()
	defer v.copying.Unlock()
}

// lost reports whether err says that a block is nowhere.
func lost(err error) bool {
	return errors.Is(err, gc.ErrMissing) || errors.Is(err, cas.ErrNotFound) || errors.Is(err, cas.ErrCorrupt)
}

// relying returns the files that rely on promises, each to be released.
func (v *Volume) relying() []*file {
	v.mu.Lock()
	defer v.mu.Unlock()
	var list []*file
	for _, f := range v.files {
		f.mu.Lock()
		if f.promises.any {
			f.opens++
			list = append(list, f)
		}
		f.mu.Unlock()
	}
	return list
}

func (f *file) renew(ctx context.Context, step uint64) error {
	f.move.Lock() // nothing is half-way between the layers
	roots, stream, unfinished := f.reliesOn()
	f.move.Unlock()
	if err := gc.Renew(ctx, f.v.o.Store, f.v.o.Store, roots); err != nil {
		return err
	}
	if stream != nil {
		if err := gc.Renew(ctx, stream.blocks, stream.blocks, unfinished); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.promises.oldest = max(f.promises.oldest, step)
	return nil
}

// reliesOn returns the trees that the file relies upon, and the parts of that which is
// being streamed. Called with move held.
func (f *file) reliesOn() (roots []cas.CID, s *stream, unfinished []cas.CID) {
	if s = f.base.stream; s != nil {
		s.mu.Lock()
		unfinished = s.w.Parts()
		s.mu.Unlock()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.logged {
		roots = append(roots, c)
	}
	for _, layer := range []*extents{&f.dirty, &f.frozen} {
		layer.each(0, maxSize, func(e extent) bool {
			if e.kind == shared {
				roots = append(roots, e.tree.Root().CID)
			}
			return true
		})
	}
	return roots, s, unfinished
}

// proposeAt is that of the volume, for commands that name content of the file.
func (f *file) proposeAt(ctx context.Context, now int64, ops ...namespace.Op) (namespace.Result, error) {
	f.mu.Lock()
	promised := f.promises.oldest
	f.mu.Unlock()
	for try := 0; ; try++ {
		res, err := f.v.proposeCommand(ctx, &namespace.Command{Time: now, Ops: ops, Promised: promised})
		if !errors.Is(err, namespace.ErrPromise) || try == maxRenewals {
			return res, err
		}
		promised = f.v.step()
		for _, op := range ops {
			c, ok := op.(*namespace.SetContent)
			if !ok || !c.Content.Root.Defined() {
				continue
			}
			err := gc.Renew(ctx, f.v.o.Store, f.v.o.Store, []cas.CID{c.Content.Root})
			if lost(err) && f.overtaken() {
				err = namespace.ErrConflict // it builds on what is there no longer
			}
			if err != nil {
				return res, err
			}
		}
	}
}

// overtaken reports whether others have named content since the file's was.
func (f *file) overtaken() bool {
	n, err := f.v.o.State.Inode(f.ino)
	return err == nil && n.Version != f.committed.Version
}

// copyFrom calls put with the content that src is known by, such that it is relied
// upon from then on. It returns false if src cannot be brought to have a name for all
// of its content at any moment, because others write it all the time.
func (f *file) copyFrom(ctx context.Context, src *file, put func(b base, size int64) error) (bool, error) {
	for range maxRenewals {
		b, size, err := src.stored(ctx)
		if err != nil {
			return false, err
		}
		if done, err := f.copyNamed(ctx, src, b, size, put); done || err != nil {
			return done, err
		}
	}
	return false, nil
}

// copyNamed is copyFrom for content that src had a moment ago. Renew waits for it, so
// that content is either relied upon when a round has promises renewed, or has a name
// at some time after that began.
func (f *file) copyNamed(_ context.Context, src *file, b base, size int64, put func(base, int64) error) (bool, error) {
	v := f.v
	v.copying.RLock()
	defer v.copying.RUnlock()
	step := v.step()
	if n, err := v.o.State.Inode(src.ino); err != nil || n.Content.Root != b.root.CID {
		return false, err
	}
	f.mu.Lock()
	f.rely(step)
	f.mu.Unlock()
	return true, put(b, size)
}

var _ gc.Renewer = (*waiting)(nil)

// Renew counts what waits as stored: it is stored later, and promised then.
func (s *waiting) Renew(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	waits := make([]bool, len(cids))
	s.mu.Lock()
	for i, c := range cids {
		waits[i] = s.find(c) != nil
	}
	s.mu.Unlock()
	has, err := gc.Promise(ctx, s.Store, cids...)
	for i := range has {
		has[i] = has[i] || waits[i]
	}
	return has, err
}

// basis is what the content of a file is read from.
type basis struct {
	reader *manifest.Reader
	stream *stream
}

func (f *file) basis() basis {
	f.mu.Lock()
	defer f.mu.Unlock()
	return basis{f.base.reader, f.base.stream}
}
