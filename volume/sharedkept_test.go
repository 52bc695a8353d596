package volume

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/cairnfs/cairn/namespace"
)

// Rule 7: a close or fsync that was under way when the session ended, and finds that
// what it was to make durable has been given up, says so.
func TestASyncThatTheEndOfTheSessionOvertakesFails(t *testing.T) {
	syncs := map[string]func(*Handle) error{
		"flush": func(h *Handle) error { return h.Flush(context.Background()) },
		"fsync": func(h *Handle) error { return h.Fsync(context.Background(), false) },
	}
	for name, sync := range syncs {
		t.Run(name, func(t *testing.T) {
			h := newHub(t, 2)
			m := h.nodes[0]
			m.createFile("file", []byte("before"))
			f := m.openFile("file", syscall.O_RDWR)
			defer f.Release()
			m.put(f, []byte("AFTER"), 0)
			file := f.f
			file.move.Lock() // as the one who folds it has it
			done := make(chan error, 1)
			go func() { done <- sync(f) }()
			time.Sleep(20 * time.Millisecond) // if it waits for move only later, it fails all the more
			ended := make(chan struct{})
			go func() { defer close(ended); m.loseSession() }()
			eventually(t, "what was written is to be given up", func() bool { return file.losses.Load() > 0 })
			file.move.Unlock()
			if err := <-done; !errors.Is(err, namespace.ErrSession) {
				t.Errorf("returned %v", err)
			}
			<-ended
			m.newSession()
			m.shows("file", []byte("before"))
		})
	}
}
