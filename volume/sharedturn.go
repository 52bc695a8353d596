package volume

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/cairnfs/cairn/namespace"
)

// Turns of nodes that write one file at the same time. A node tries to change content
// as if it were alone, since it nearly always is. If others come first it lays what it
// has over theirs and tries again, and after maxRefusals, or at once if others have had
// to, it queues (see namespace.TakeTurn): until its turn comes it stores and proposes
// nothing, then nobody can come first. So a slow node is not passed over by fast ones.
//
// A node that dies leaves the queue with its session. One that lives and does not use
// its turn is put out by those behind it.

const (
	// maxRefusals is how often others may come first before a node queues.
	maxRefusals = 3
	// defaultTurnTime is how long a node may take when its turn has come: enough to
	// store what it had not before it queued, which is mostly little. Who is put out
	// goes on from there with its next turn.
	defaultTurnTime = 20 * time.Second
)

// inTurn has do change the content in the namespace, again when others came first.
// Called with move held, which others have while this one waits for its turn.
func (f *file) inTurn(ctx context.Context, do func() error) (err error) {
	var ticket uint64
	defer func() {
		// If an outcome is unknown there may be no majority: others see to it.
		if ticket != 0 && !f.inDoubt() {
			f.v.leaveTurn(ctx, f.ino, ticket)
		}
	}()
	for refused := 0; ; refused++ {
		if refused >= maxRefusals && f.v.o.State.MayQueue() || f.v.othersFirst(f.ino) {
			f.move.Unlock()
			ticket, err = f.v.awaitTurn(ctx, f.ino)
			f.move.Lock()
			if err != nil {
				return err
			}
		} else if refused > 0 {
			time.Sleep(f.v.o.pause(refused - 1))
		}
		if refused > 0 || ticket != 0 || f.news.any() {
			if err := f.refresh(ctx); err != nil {
				return err
			}
		}
		if err := f.expire(ctx); err != nil {
			return err
		}
		switch err = do(); {
		case errors.Is(err, namespace.ErrTurn):
			refused = maxRefusals
		case !errors.Is(err, namespace.ErrConflict):
			return err
		}
	}
}

// othersFirst reports whether it is another node's turn.
func (v *Volume) othersFirst(ino namespace.Ino) bool {
	queue, err := v.o.State.Turns(ino)
	return err == nil && len(queue) > 0 && queue[0].Session != v.shared().Session()
}

// awaitTurn queues and returns when it is this node's turn, or another thread has
// used that.
func (v *Volume) awaitTurn(ctx context.Context, ino namespace.Ino) (ticket uint64, err error) {
	c := v.shared()
	session := c.Session()
	var (
		first namespace.Turn
		since time.Time // when it was seen to be first
	)
	for {
		if session == 0 || c.Session() != session {
			return ticket, namespace.ErrSession
		}
		moved, stop := v.node.watch(ino)
		queue, err := v.o.State.Turns(ino)
		at := slices.IndexFunc(queue, func(t namespace.Turn) bool { return t.Session == session })
		switch {
		case err != nil || at < 0 && ticket != 0:
			stop()
			return ticket, err
		case at < 0:
			stop()
			if _, err := v.propose(ctx, &namespace.TakeTurn{Session: session, Ino: ino}); err != nil {
				return 0, err
			}
			continue
		case at == 0:
			stop()
			return queue[0].Ticket, nil
		}
		ticket = queue[at].Ticket
		if queue[0] != first {
			first, since = queue[0], time.Now()
		}
		// Who is next has the first put out; those behind in case it does not.
		left := time.Until(since.Add(v.o.turnTime * time.Duration(at)))
		if left <= 0 {
			stop()
			v.o.Logger.Warn("another node does not use its turn to write a file, it is put at the end", "inode", ino, "session", first.Session)
			if _, err := v.propose(ctx, &namespace.TakeTurn{Session: first.Session, Ino: ino, Leave: first.Ticket}); err != nil {
				return ticket, err
			}
			continue
		}
		late := time.NewTimer(left)
		select {
		case <-moved:
		case <-late.C:
		case <-ctx.Done():
			err = ctx.Err()
		}
		late.Stop()
		stop()
		if err != nil {
			return ticket, err
		}
	}
}

// leaveTurn leaves the queue, unless the turn was used, with which it ended.
func (v *Volume) leaveTurn(ctx context.Context, ino namespace.Ino, ticket uint64) {
	session := v.shared().Session()
	queue, err := v.o.State.Turns(ino)
	if err == nil && slices.Contains(queue, namespace.Turn{Session: session, Ticket: ticket}) {
		_, err = v.propose(ctx, &namespace.TakeTurn{Session: session, Ino: ino, Leave: ticket})
	}
	if err != nil {
		v.o.Logger.Debug("others wait for a turn that is not used", "inode", ino, "err", err)
	}
}
