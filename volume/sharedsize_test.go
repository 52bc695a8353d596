package volume

import (
	"bytes"
	"context"
	"syscall"
	"testing"

	"github.com/cairnfs/cairn/namespace"
)

// Rule 8: what is appended while the file is truncated overwrites nothing that other
// nodes appended before.
func TestAnAppendDuringATruncationOverwritesNothing(t *testing.T) {
	for _, size := range []int{50, 110, 1000} {
		h := newHub(t, 2)
		a, b := h.nodes[0], h.nodes[1]
		start := bytes.Repeat([]byte("s"), 100)
		a.createFile("file", start)
		app := a.openFile("file", syscall.O_WRONLY|syscall.O_APPEND)
		other := b.openFile("file", syscall.O_WRONLY|syscall.O_APPEND)
		a.proposing = func(c *namespace.Command) {
			if _, ok := c.Ops[0].(*namespace.Truncate); ok {
				a.proposing = nil
				a.put(app, []byte("from a"), 0)
				b.put(other, []byte("from the other"), 0)
				b.closeFile(other)
			}
		}
		_, err := a.SetAttr(t.Context(), app.Ino(), SetAttr{Valid: SetSize, Size: int64(size)})
		a.must(err)
		a.closeFile(app)
		want := overlay(append(start, "from the other"...), nil, size)[:size]
		want = append(want, "from a"...)
		a.shows("file", want)
		b.shows("file", want)
	}
}

// What a node streams while a truncation waits for its turn is kept, as far as the file
// goes then.
func TestAStreamDuringATruncationIsKept(t *testing.T) {
	for _, size := range []int{1 << 20, 8 << 20} {
		h := newHub(t, 2)
		a, b := h.nodes[0], h.nodes[1]
		a.createFile("file", nil)
		f := a.openFile("file", syscall.O_RDWR)
		ino := f.Ino()
		turn := h.append(&namespace.TakeTurn{Session: b.Session(), Ino: ino})
		a.must(a.Barrier(t.Context()))
		done := make(chan error, 1)
		go func() {
			_, err := a.SetAttr(context.Background(), ino, SetAttr{Valid: SetSize, Size: int64(size)})
			done <- err
		}()
		a.untilWaiting()
		content := pattern(3<<20, 1)
		a.put(f, content, 0)
		eventually(t, "a stream", func() bool { return f.f.basis().stream != nil })
		h.append(&namespace.TakeTurn{Session: b.Session(), Ino: ino, Leave: uint64(turn)})
		a.must(<-done)
		a.closeFile(f)
		want := overlay(content, nil, size)[:size]
		a.shows("file", want)
		b.shows("file", want)
	}
}
