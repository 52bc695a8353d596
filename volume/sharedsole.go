package volume

import (
	"context"
	"errors"
	"syscall"

	"github.com/cairnfs/cairn/namespace"
)

// Files that programs share in memory. What one node maps another does not see, so
// only one node has such a file open for writing: it holds a LockOwner meanwhile. On
// another node opening it fails, for reading as well, with which SQLite would make do
// and read what is outdated. It says that it cannot open the database then.

// soleHold is a file that this node alone has open for writing.
type soleHold struct {
	opens   int
	session namespace.SessionID
}

// openSole claims the file for this node if it is one of those.
func (h *Handle) openSole(ctx context.Context) error {
	v, ino := h.f.v, h.f.ino
	if !v.node.named(ino) {
		return nil
	}
	session := v.shared().Session()
	if h.flags&syscall.O_ACCMODE == syscall.O_RDONLY {
		return v.soleElsewhere(ino, session)
	}
	if session == 0 {
		return namespace.ErrSession
	}
	t := &v.node.sole
	t.Lock()
	defer t.Unlock()
	hold := t.held[ino]
	if hold == nil || hold.opens == 0 || hold.session != session {
		if err := v.setSole(ctx, ino, session, namespace.Exclusive); err != nil {
			if errors.Is(err, namespace.ErrLocked) {
				return ErrWouldBlock
			}
			return err
		}
		if err := h.f.takeOver(ctx); err != nil {
			return err
		}
	}
	if hold == nil {
		if t.held == nil {
			t.held = make(map[namespace.Ino]*soleHold)
		}
		hold = &soleHold{}
		t.held[ino] = hold
	}
	hold.opens++
	hold.session, h.sole = session, session
	return nil
}

// soleElsewhere returns ErrWouldBlock if another node has the file open for writing.
func (v *Volume) soleElsewhere(ino namespace.Ino, session namespace.SessionID) error {
	held, err := v.o.State.Locks(ino)
	for _, l := range held {
		if l.Kind == namespace.LockOwner && l.Session != session {
			return ErrWouldBlock
		}
	}
	return err
}

func (v *Volume) setSole(ctx context.Context, ino namespace.Ino, session namespace.SessionID, mode namespace.LockMode) error {
	_, err := v.propose(ctx, &namespace.LockRange{
		Session: session, Ino: ino, Kind: namespace.LockOwner, End: MaxLockEnd, Mode: mode,
	})
	return err
}

// releaseSole ends the part of the handle in it.
func (h *Handle) releaseSole() {
	if h.sole == 0 {
		return
	}
	v, t := h.f.v, &h.f.v.node.sole
	t.Lock()
	defer t.Unlock()
	h.sole = 0
	hold := t.held[h.f.ino]
	if hold.opens--; hold.opens > 0 {
		return
	}
	if err := v.endSole(context.Background(), h.f, hold); err != nil {
		v.o.Logger.Warn("a file is given to other nodes later", "inode", h.f.ino, "err", err)
		return
	}
	delete(t.held, h.f.ino)
}

// endSole gives the file back, unless the session has ended, with which it went.
func (v *Volume) endSole(ctx context.Context, f *file, hold *soleHold) error {
	switch v.shared().Session() {
	case hold.session:
	case 0:
		return namespace.ErrSession // it may go on
	default:
		return nil
	}
	if err := f.flush(ctx); err != nil {
		return err
	}
	return v.setSole(ctx, f.ino, hold.session, namespace.Unlocked)
}

// lowerSole tries again what could not be given back.
func (v *Volume) lowerSole(ctx context.Context) error {
	t := &v.node.sole
	t.Lock()
	defer t.Unlock()
	var failed error
	for ino, hold := range t.held {
		if hold.opens > 0 {
			continue
		}
		f, err := v.acquire(ino)
		if err == nil {
			err = v.endSole(ctx, f, hold)
			v.release(f)
		}
		if err != nil && !errors.Is(err, namespace.ErrNotFound) {
			failed = err
			continue
		}
		delete(t.held, ino)
	}
	return failed
}
