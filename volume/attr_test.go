package volume

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A smaller size makes a kernel drop pages, so it must not appear in between. The
// test holds the lock that GetAttr needs to find the file, and has the file
// committed and forgotten before it lets go.
func TestAFileNeverLooksShorterWhileItIsCommittedAndForgotten(t *testing.T) {
	r := openRig(t, vfs.NewCrashableMem(), 0)
	h := r.create("file")
	ino := h.Ino()
	h.Release()
	for i := range int64(200) {
		h := r.open(ino)
		r.write(h, []byte("x"), i)
		r.mu.Lock()
		size := make(chan int64)
		go func() {
			a, err := r.GetAttr(context.Background(), ino)
			if err != nil {
				t.Error(err)
			}
			size <- a.Size
		}()
		runtime.Gosched()
		if err := h.f.settle(t.Context()); err != nil {
			t.Error(err)
		}
		h.f.opens--
		r.forgetIfIdle(h.f)
		r.mu.Unlock()
		if n := <-size; n != i+1 {
			t.Fatalf("%d bytes, but %d were written", n, i+1)
		}
	}
	r.close()
}

// The times of a write that is not committed yet and of a utimens come in the
// order in which they happened, however far off the time is that was set.
func TestTimesThatWereSetLastUntilTheNextWrite(t *testing.T) {
	for _, set := range []int64{1, time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()} {
		r := openRig(t, vfs.NewCrashableMem(), 0)
		h := r.create("file")
		expect := func(when string, isSet bool) {
			t.Helper()
			a, err := r.GetAttr(t.Context(), h.Ino())
			r.must(err)
			if (a.Mtime == set) != isSet {
				t.Errorf("%s: mtime %d, and %d was set", when, a.Mtime, set)
			}
			if a.Ctime > r.now() {
				t.Errorf("%s: ctime %d is yet to come", when, a.Ctime)
			}
		}
		r.write(h, []byte("before"), 0)
		_, err := r.SetAttr(t.Context(), h.Ino(), SetAttr{Valid: SetMtime, Mtime: set})
		r.must(err)
		expect("set while dirty", true)
		r.must(h.Flush(t.Context()))
		expect("set, then committed", true)
		_, err = r.SetAttr(t.Context(), h.Ino(), SetAttr{Valid: SetMode, Mode: 0o600})
		r.must(err)
		expect("chmod", true)
		r.write(h, []byte("after"), 0)
		expect("written", false)
		r.must(h.Flush(t.Context()))
		expect("written and committed", false)
		h.Release()
		r.close()
	}
}
