package volume

import (
	"errors"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cairnfs/cairn/cas"
)

// A disk that fills up must keep some space for what makes space again: deletes are
// commands, and commands are in the journal and the index. So new content and new
// names stop while there is some left, in whatever form they would be stored; blocks
// do by themselves, but small files are kept in their inodes. When there is hardly any
// left, everything stops.

// roomEvery is how long an answer about the disk is good for. A disk does not take
// more in that time than is kept.
const roomEvery = 50 * time.Millisecond

// room remembers how full the disk is.
type room struct {
	asked     atomic.Int64 // when, nanoseconds since 1970
	full, low atomic.Bool
}

// checkRoom returns ErrNoSpace if nothing new is to be stored.
func (v *Volume) checkRoom() error {
	v.askRoom()
	if v.room.full.Load() {
		return cas.ErrNoSpace
	}
	return nil
}

// checkLow returns ErrNoSpace if not even a delete is to be stored, which takes space
// in the index for what it removes, as history. When the index cannot be written,
// commands would wait for that without end.
func (v *Volume) checkLow() error {
	v.askRoom()
	if v.room.low.Load() {
		return cas.ErrNoSpace
	}
	return nil
}

func (v *Volume) askRoom() {
	now, asked := v.o.Now().UnixNano(), v.room.asked.Load()
	if now >= asked && now-asked < int64(roomEvery) || !v.room.asked.CompareAndSwap(asked, now) {
		return
	}
	u, err := v.o.Usage()
	v.room.full.Store(err == nil && u.Avail == 0) // what cannot tell is taken to have space
	v.room.low.Store(err == nil && u.Low)
}

// noSpace reports whether err says that a disk is full.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, cas.ErrNoSpace)
}
