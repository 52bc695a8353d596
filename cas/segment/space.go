package segment

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/cas"
)

// A disk that is full to the last byte would stop the journal and the index, and
// with them even the deletes that could make room. Blocks therefore stop at a
// reserve. For the case that someone else fills the disk there is the ballast: a
// file of a few MiB in the directory that may be deleted at any time, by
// ReleaseBallast or by hand, and is made again by the next Open that finds space.
const (
	minReserve        = 1 << 30
	reserveFraction   = 50 // of the disk
	ballastSize       = 8 << 20
	ballastName       = "BALLAST"
	spaceCheckedEvery = 4 << 20
)

// available returns how many bytes blocks may still take up; those that are moved, by
// which more space comes back than they take, up to half of the reserve. A file system
// that cannot tell is taken to be large.
func (s *Store) available(moved bool) (int64, error) {
	u, err := s.o.FS.GetDiskUsage(s.o.Dir)
	if errors.Is(err, vfs.ErrUnsupported) {
		return spaceCheckedEvery, nil
	}
	if err != nil {
		return 0, err
	}
	reserve := s.o.Reserve
	switch {
	case reserve < 0:
		reserve = 0
	case reserve == 0:
		reserve = max(minReserve, int64(u.TotalBytes/reserveFraction))
	}
	if moved {
		reserve /= 2
	}
	return int64(u.AvailBytes) - reserve, nil
}

// checkSpace says whether there is space for need more bytes; tail is locked. It
// asks the file system once for every 4 MiB, and every time when space is short.
func (s *Store) checkSpace(need int64, moved bool) error {
	t := &s.tail
	if t.budget >= need {
		return nil
	}
	free, err := s.available(moved)
	if err != nil {
		return fmt.Errorf("disk usage: %w", err)
	}
	if moved && free >= need {
		t.budget = need // the next who asks looks again
		return nil
	}
	t.budget = min(free, spaceCheckedEvery)
	if t.budget < need {
		t.budget = 0
		return cas.ErrNoSpace
	}
	return nil
}

// makeBallast makes the ballast file if there is space for it. It is a precaution
// only, so that it is no error if it cannot be made.
func (s *Store) makeBallast() {
	free, err := s.available(false)
	if err != nil || free < 2*ballastSize {
		return
	}
	if _, err := s.o.FS.Stat(s.ballast()); err == nil {
		return
	}
	f, err := s.o.FS.OpenReadWrite(s.ballast(), vfs.WriteCategoryUnspecified)
	if err == nil {
		err = errors.Join(f.Preallocate(0, ballastSize), f.Close())
	}
	if err != nil {
		s.o.Logger.Warn("no ballast file", "err", errors.Join(err, s.ReleaseBallast()))
	}
}

// ReleaseBallast deletes the ballast file, which gives a full disk a few MiB to
// work with. It is no error if there is none.
func (s *Store) ReleaseBallast() error {
	if err := s.o.FS.Remove(s.ballast()); err != nil && !missing(err) {
		return err
	}
	return nil
}

func (s *Store) ballast() string { return s.o.FS.PathJoin(s.o.Dir, ballastName) }
