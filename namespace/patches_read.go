package namespace

import (
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// Reads of patches: what lies above a file's content, now and in history.

// MayPatch reports whether PatchContent and FoldContent may be proposed: all who apply
// the log must know them. A node that is alone has no use for them.
func (s *State) MayPatch() bool { return s.View() != nil && s.Version() >= since(&PatchContent{}) }

// PatchBytes returns what all patches of current content take.
func (s *State) PatchBytes() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return int64(s.meta.patches)
}

// Patches returns an inode and, as of the same command, the bytes of its patches in
// the order in which they lie above its content, the lowest first. They are within the
// inode's size. ErrNotFound if there is none.
func (s *State) Patches(ino Ino) (Inode, []Range, error) {
	if err := s.begin(); err != nil {
		return Inode{}, nil, err
	}
	if e, tail, ok := s.cache.inode(ino); ok && e.patches.First == 0 {
		defer s.mu.RUnlock()
		return e.inode(tail), nil, nil
	}
	snapshot := s.db.NewSnapshot()
	s.mu.RUnlock()
	defer snapshot.Close()
	r, ok, err := loadInode(snapshot, ino)
	if err == nil && !ok {
		err = ErrNotFound
	}
	if err != nil {
		return Inode{}, nil, err
	}
	ranges, err := loadPatches(snapshot, &r, false)
	return r.inode(r.tail), ranges, err
}

// Patches is State.Patches as of the view's instant.
func (v View) Patches(ino Ino) (Inode, []Range, error) {
	db, err := v.open()
	if err != nil {
		return Inode{}, nil, err
	}
	defer db.Close()
	r, err := v.inode(db, ino)
	if err != nil {
		return Inode{}, nil, err
	}
	ranges, err := loadPatches(db, &r, true)
	return r.inode(r.tail), ranges, err
}

// Patched calls fn for each inode with patches, and the log time of the newest one,
// until it returns false.
func (s *State) Patched(fn func(ino Ino, newest int64) bool) error {
	if err := s.begin(); err != nil {
		return err
	}
	s.mu.RUnlock()
	prefix := tagKey(nil, tagPatch)
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return err
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		ino, _, ok := splitPatchTail(it.Key()[1:])
		if !ok {
			return fmt.Errorf("%w: patch key %x", ErrCorrupt, it.Key())
		}
		it.SeekLT(patchKey(nil, ino+1, 0))
		value, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		m, _, err := decodePatch(value)
		if err != nil {
			return err
		}
		if !fn(ino, m.Time) {
			return nil
		}
	}
	return it.Error()
}

// storedPatch is a patch and its number.
type storedPatch struct {
	number uint64
	value  []byte
}

// loadPatches reads the patches that r refers to; of a value of history some may have
// gone to history, too.
func loadPatches(db pebble.Reader, r *record, past bool) ([]Range, error) {
	p := &r.patches
	if p.First == 0 {
		return nil, nil
	}
	var found []storedPatch
	err := eachPatch(db, r.ino, p.First, r.version, func(number uint64, _, value []byte) error {
		found = append(found, storedPatch{number, slices.Clone(value)})
		return nil
	})
	if err == nil && past {
		found, err = pastPatches(db, r, found)
	}
	if err == nil && len(found) != int(p.Count) {
		err = fmt.Errorf("%w: inode %d has %d patches, found %d", ErrCorrupt, r.ino, p.Count, len(found))
	}
	if err != nil {
		return nil, err
	}
	return flatten(found, p.Cut)
}

// pastPatches adds those that have gone to history to found.
func pastPatches(db pebble.Reader, r *record, found []storedPatch) ([]storedPatch, error) {
	it, err := db.NewIter(&pebble.IterOptions{
		LowerBound: append([]byte{space, tagHistory}, patchKey(nil, r.ino, r.patches.First)[1:]...),
		UpperBound: append([]byte{space, tagHistory}, patchKey(nil, r.ino, r.version+1)[1:]...),
	})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	for it.First(); it.Valid(); it.Next() {
		tail, _, ok := splitHistoryKey(it.Key())
		_, number, isPatch := splitPatchTail(tail)
		if !ok || !isPatch {
			return nil, fmt.Errorf("%w: history key %x", ErrCorrupt, it.Key())
		}
		value, err := it.ValueAndErr()
		if err != nil {
			return nil, err
		}
		found = append(found, storedPatch{number, slices.Clone(value)})
	}
	slices.SortFunc(found, func(a, b storedPatch) int { return int(int64(a.number - b.number)) })
	return found, it.Error()
}

// flatten returns the ranges of patches as they are after all cuts.
func flatten(patches []storedPatch, cut int64) ([]Range, error) {
	var ranges []Range
	limit := func(size int64) {
		if size == 0 {
			return
		}
		kept := ranges[:0]
		for _, r := range ranges {
			if r.Off < size {
				r.Data = r.Data[:min(int64(len(r.Data)), size-r.Off)]
				kept = append(kept, r)
			}
		}
		ranges = kept
	}
	for _, p := range patches {
		m, more, err := decodePatch(p.value)
		if err != nil {
			return nil, err
		}
		limit(int64(m.Cut))
		ranges = append(ranges, more...)
	}
	limit(cut)
	return ranges, nil
}
