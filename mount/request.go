//go:build linux

package mount

import (
	"context"
	"time"
)

// The kernel interrupts a request when the process that waits for it gets a
// signal, any signal: a timer, the exit of a child, and in Go programs the
// scheduler's own. Programs expect EINTR from a file system on disk nowhere, not
// even with a handler installed, so answering it is right only where the wait
// can be for something further away than the disk. Among the operations here
// that is reading. The others run to their end with context.Background, as on a
// local file system; besides, a write or rename that was given up halfway could
// not say so truthfully.

// interruptible is a request's interrupt as a context. It is one pointer, so
// that making one allocates nothing.
type interruptible <-chan struct{}

var _ context.Context = interruptible(nil)

func (c interruptible) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c interruptible) Done() <-chan struct{}       { return c }
func (c interruptible) Value(any) any               { return nil }

func (c interruptible) Err() error {
	select {
	case <-c:
		return context.Canceled
	default:
		return nil
	}
}
