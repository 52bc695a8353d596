package volume

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"
)

// Rule 6: what is written over an append while that is being named is not taken for a
// part of it.
func TestAWriteOverAnAppendThatIsBeingNamedIsKept(t *testing.T) {
	h := newHub(t, 2)
	a, b := h.nodes[0], h.nodes[1]
	want := pattern(100_000, 1)
	a.createFile("file", want)
	app, rw := a.openFile("file", syscall.O_WRONLY|syscall.O_APPEND), a.openFile("file", syscall.O_RDWR)
	a.put(app, []byte("append"), 0)
	stall := make(chan struct{})
	h.blocks.stall.Store(&stall)
	a.setDeaf(true)
	flushed := make(chan error, 1)
	go func() { flushed <- app.Flush(context.Background()) }()
	eventually(t, "a commit", func() bool {
		app.f.mu.Lock()
		defer app.f.mu.Unlock()
		return app.f.frozenTail >= 0
	})
	wrote := make(chan error, 1)
	go func() {
		_, err := rw.Write(context.Background(), []byte("P"), 100_002)
		wrote <- err
	}()
	select {
	case err := <-wrote:
		wrote <- err
	case <-time.After(50 * time.Millisecond): // it waits for the commit
	}
	h.blocks.stall.Store(nil)
	close(stall)
	if err := <-flushed; !errors.Is(err, errNoMajority) {
		t.Fatalf("a flush without an answer: %v", err)
	}
	err := <-wrote
	a.setDeaf(false)
	want = append(want, "append"...)
	if err == nil {
		want[100_002] = 'P'
	} else if !errors.Is(err, errNoMajority) {
		t.Fatal(err)
	}
	a.closeFile(app)
	a.closeFile(rw)
	a.shows("file", want)
	b.shows("file", want)
}
