package volume

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cairnfs/cairn/namespace"
)

// Times of access. Whoever mounts with relatime tells of reads by Accessed; the
// times are kept here, shown at once, and brought into the namespace together, with
// the background work. They are of this node: it is the reading node's kernel that
// shows them, and a crash loses the latest.

const (
	// maxAccesses bounds the times that wait; those of further files are not kept.
	maxAccesses = 64 << 10
	// accessEvery is after which time a read counts although the file did not
	// change since the last one, as with relatime of mount(8).
	accessEvery = 24 * time.Hour
)

// accesses are the inodes that were read, and when.
type accesses struct {
	mu sync.Mutex
	at map[namespace.Ino]int64 // nanoseconds since 1970
}

// Accessed notes that ino is being read, if by the rules of relatime that is worth
// knowing: the time of the last access is not after that of the last change, or a
// day old.
func (v *Volume) Accessed(ino namespace.Ino) {
	a, err := v.GetAttr(context.Background(), ino)
	now := v.now()
	if err != nil || a.Atime > a.Mtime && a.Atime > a.Ctime && now-a.Atime < int64(accessEvery) {
		return
	}
	v.accesses.mu.Lock()
	defer v.accesses.mu.Unlock()
	if v.accesses.at == nil {
		v.accesses.at = make(map[namespace.Ino]int64)
	}
	if len(v.accesses.at) < maxAccesses {
		v.accesses.at[ino] = now
	}
}

// lay puts the time of an access that waits over a.
func (s *accesses) lay(a *Attr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.at[a.Ino]; ok {
		a.Atime = max(a.Atime, t)
	}
}

// forget drops a time that waits, because another one is being set.
func (s *accesses) forget(ino namespace.Ino) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.at, ino)
}

// nameAccesses brings the times that wait into the namespace.
func (v *Volume) nameAccesses(ctx context.Context) error {
	v.accesses.mu.Lock()
	inos := slices.Collect(maps.Keys(v.accesses.at))
	v.accesses.mu.Unlock()
	for _, ino := range inos {
		if err := v.nameAccess(ctx, ino); err != nil {
			return err
		}
	}
	return nil
}

// nameAccess is that of one inode. The lock is held all the while, so that a time
// which is set comes after it, and not in between.
func (v *Volume) nameAccess(ctx context.Context, ino namespace.Ino) error {
	if v.Shared() {
		return v.nameAccessShared(ctx, ino)
	}
	v.accesses.mu.Lock()
	defer v.accesses.mu.Unlock()
	t, ok := v.accesses.at[ino]
	if !ok {
		return nil
	}
	_, err := v.propose(ctx, &namespace.SetAttr{Ino: ino, Mask: namespace.AttrAccessed, Atime: t})
	if err != nil && !errors.Is(err, namespace.ErrNotFound) {
		return err
	}
	delete(v.accesses.at, ino)
	return nil
}
