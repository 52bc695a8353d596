package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairnfs/cairn/p2p"
	"github.com/cairnfs/cairn/p2p/rpc"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// serve answers the connections of a new listener and returns what opens one.
func serve(t testing.TB, h p2p.Handler, limits rpc.Limits) rpc.Open {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	tasks.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			tasks.Go(func() { _ = rpc.Serve(ctx, c, "client", h.Lending(), limits, new(rpc.Memory)) })
		}
	})
	t.Cleanup(func() { stop(); l.Close(); tasks.Wait() })
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}
}

func newClient(t testing.TB, open rpc.Open) *rpc.Client {
	c := rpc.NewClient("server", open, new(rpc.Memory))
	t.Cleanup(func() { c.Close() })
	return c
}

func echo(_ context.Context, _ p2p.PeerID, req []byte) ([]byte, error) { return req, nil }

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func TestAnswersOfAllSizesArriveWhole(t *testing.T) {
	c := newClient(t, serve(t, echo, rpc.Limits{}))
	ctx := within(t)
	for _, size := range []int{0, 1, 100, 64<<10 - 1, 64 << 10, 64<<10 + 1, 128 << 10, 256 << 10, 256<<10 + 1, 4 << 20, p2p.MaxMessage} {
		req := make([]byte, size)
		for i := range req {
			req[i] = byte(rand.Uint32())
		}
		a, b := rand.IntN(size+1), rand.IntN(size+1)
		got, err := c.Call(ctx, req[:min(a, b)], nil, req[min(a, b):max(a, b)], req[max(a, b):])
		if err != nil || !bytes.Equal(got, req) {
			t.Fatalf("%d bytes: %d bytes back, %v", size, len(got), err)
		}
	}
}

func TestManyCallersShareOneStream(t *testing.T) {
	var opened atomic.Int32
	open := serve(t, echo, rpc.Limits{})
	c := newClient(t, func(ctx context.Context) (io.ReadWriteCloser, error) {
		opened.Add(1)
		return open(ctx)
	})
	ctx := within(t)
	var tasks sync.WaitGroup
	for i := range 300 { // several times what may be outstanding
		tasks.Go(func() {
			req := bytes.Repeat([]byte{byte(i)}, i*300)
			for range 5 {
				got, err := c.Call(ctx, req)
				if err != nil || !bytes.Equal(got, req) {
					t.Errorf("caller %d: %d bytes, %v", i, len(got), err)
				}
			}
		})
	}
	tasks.Wait()
	if n := opened.Load(); n != 1 {
		t.Errorf("%d streams", n)
	}
}

// Rule 22: at most 64 requests are outstanding on a stream.
func TestNoMoreThan64RequestsAreAnsweredAtATime(t *testing.T) {
	var running, most atomic.Int32
	arrived, release := make(chan struct{}, 200), make(chan struct{})
	c := newClient(t, serve(t, func(context.Context, p2p.PeerID, []byte) ([]byte, error) {
		n := running.Add(1)
		defer running.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		arrived <- struct{}{}
		<-release
		return nil, nil
	}, rpc.Limits{}))
	ctx := within(t)
	var tasks sync.WaitGroup
	for range 200 {
		tasks.Go(func() {
			if _, err := c.Call(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	for range rpc.MaxOutstanding {
		<-arrived
	}
	close(release)
	tasks.Wait()
	if n := most.Load(); n != rpc.MaxOutstanding {
		t.Errorf("%d handlers at once", n)
	}
}

func TestErrorsOfTheHandlerArriveAsText(t *testing.T) {
	c := newClient(t, serve(t, func(context.Context, p2p.PeerID, []byte) ([]byte, error) {
		return nil, errors.New("no: " + strings.Repeat("x", 1<<20))
	}, rpc.Limits{}))
	_, err := c.Call(within(t))
	var remote *p2p.RemoteError
	if !errors.As(err, &remote) || remote.Peer != "server" || !strings.HasPrefix(remote.Text, "no: xxx") || len(remote.Text) > 4<<10 {
		t.Errorf("%.100v", err)
	}
}

func TestMessagesBeyondTheLimitFailAloneAndLeaveTheStream(t *testing.T) {
	c := newClient(t, serve(t, func(_ context.Context, _ p2p.PeerID, req []byte) ([]byte, error) {
		return append(req, 1), nil
	}, rpc.Limits{}))
	ctx := within(t)
	full := make([]byte, p2p.MaxMessage)
	if _, err := c.Call(ctx, full, []byte{1}); !errors.Is(err, p2p.ErrTooLarge) {
		t.Errorf("request: %v", err)
	}
	if _, err := c.Call(ctx, full); !errors.Is(err, p2p.ErrTooLarge) {
		t.Errorf("answer: %v", err)
	}
	if _, err := c.Call(ctx); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestACallerThatLeavesEndsTheHandlersContext(t *testing.T) {
	started, ended := make(chan struct{}, 1), make(chan struct{})
	var opened atomic.Int32
	open := serve(t, func(ctx context.Context, _ p2p.PeerID, req []byte) ([]byte, error) {
		if len(req) == 0 {
			return []byte("other"), nil
		}
		started <- struct{}{}
		<-ctx.Done()
		close(ended)
		return make([]byte, 1<<20), nil
	}, rpc.Limits{})
	c := newClient(t, func(ctx context.Context) (io.ReadWriteCloser, error) { opened.Add(1); return open(ctx) })
	ctx, cancel := context.WithCancel(within(t))
	go func() { <-started; cancel() }()
	if _, err := c.Call(ctx, []byte("wait")); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the handler's context goes on")
	}
	if got, err := c.Call(within(t)); err != nil || string(got) != "other" {
		t.Errorf("afterwards: %q, %v", got, err)
	}
	if n := opened.Load(); n != 1 {
		t.Errorf("%d streams", n)
	}
}

// Callers leave at random moments while large messages are on their way in both
// directions; those who stay get their own answers, on the same stream.
func TestCallersThatLeaveDoNotDisturbOthers(t *testing.T) {
	var opened atomic.Int32
	open := serve(t, echo, rpc.Limits{})
	c := newClient(t, func(ctx context.Context) (io.ReadWriteCloser, error) { opened.Add(1); return open(ctx) })
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var tasks sync.WaitGroup
	for i := range 80 {
		tasks.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(i)))
			for range 20 {
				req := bytes.Repeat([]byte{byte(i)}, r.IntN(600<<10))
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(r.IntN(4000))*time.Microsecond)
				if i%4 == 0 {
					ctx = within(t)
				}
				got, err := c.Call(ctx, req)
				cancel()
				if err == nil && !bytes.Equal(got, req) || err != nil && ctx.Err() == nil {
					t.Errorf("caller %d: %d bytes for %d, %v", i, len(got), len(req), err)
				}
				clear(req) // the pieces may be used again
			}
		})
	}
	tasks.Wait()
	if n := opened.Load(); n != 1 {
		t.Errorf("%d streams", n)
	}
}

func TestABrokenStreamFailsWhatIsOutstandingAndTheNextCallOpensAnother(t *testing.T) {
	var streams []net.Conn
	started := make(chan struct{}, 10)
	open := serve(t, func(ctx context.Context, _ p2p.PeerID, req []byte) ([]byte, error) {
		if len(req) > 0 {
			started <- struct{}{}
			<-ctx.Done()
		}
		return nil, nil
	}, rpc.Limits{})
	c := newClient(t, func(ctx context.Context) (io.ReadWriteCloser, error) {
		s, err := open(ctx)
		streams = append(streams, s.(net.Conn))
		return s, err
	})
	ctx := within(t)
	failed := make(chan error, 10)
	for range 10 {
		go func() { _, err := c.Call(ctx, []byte{1}); failed <- err }()
	}
	for range 10 {
		<-started
	}
	streams[0].Close()
	for range 10 {
		if err := <-failed; !errors.Is(err, p2p.ErrUnreachable) {
			t.Errorf("outstanding: %v", err)
		}
	}
	if _, err := c.Call(ctx); err != nil || len(streams) != 2 {
		t.Errorf("afterwards: %v, %d streams", err, len(streams))
	}
}

func TestAPeerThatCannotBeReachedOrRefusesIsToldApart(t *testing.T) {
	refusal := &p2p.RemoteError{Peer: "server", Text: "not served"}
	for _, cause := range []error{errors.New("no route"), context.DeadlineExceeded, refusal} {
		c := newClient(t, func(context.Context) (io.ReadWriteCloser, error) { return nil, cause })
		_, err := c.Call(within(t))
		if cause == refusal && err != cause || cause != refusal && !errors.Is(err, p2p.ErrUnreachable) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: %v", cause, err)
		}
	}
}

func TestACallEndsWithItsContextWhileTheStreamIsBeingOpened(t *testing.T) {
	c := newClient(t, func(ctx context.Context) (io.ReadWriteCloser, error) { <-ctx.Done(); return nil, ctx.Err() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestAClosedClientFailsCallsThatWaitAndLaterOnes(t *testing.T) {
	started := make(chan struct{})
	c := newClient(t, serve(t, func(ctx context.Context, _ p2p.PeerID, _ []byte) ([]byte, error) {
		close(started)
		<-ctx.Done()
		return nil, nil
	}, rpc.Limits{}))
	failed := make(chan error)
	go func() { _, err := c.Call(within(t)); failed <- err }()
	<-started
	c.Close()
	if err := <-failed; !errors.Is(err, p2p.ErrUnreachable) {
		t.Errorf("waiting: %v", err)
	}
	if _, err := c.Call(within(t)); !errors.Is(err, p2p.ErrUnreachable) {
		t.Errorf("later: %v", err)
	}
}

func TestServeReturnsWhenItsContextEnds(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- rpc.Serve(ctx, b, "client", p2p.Handler(echo).Lending(), rpc.Limits{}, nil) }()
	stop()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// BenchmarkCall measures round trips with large answers over loopback TCP.
func BenchmarkCall(b *testing.B) {
	for _, size := range []int{0, 64 << 10, 1 << 20, 4 << 20} {
		for _, callers := range []int{1, 8} {
			b.Run(fmt.Sprintf("%dKiB/%d", size>>10, callers), func(b *testing.B) {
				answer := make([]byte, size)
				c := newClient(b, serve(b, func(context.Context, p2p.PeerID, []byte) ([]byte, error) { return answer, nil }, rpc.Limits{}))
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.SetParallelism(callers)
				if callers == 1 {
					for b.Loop() {
						if _, err := c.Call(b.Context()); err != nil {
							b.Fatal(err)
						}
					}
					return
				}
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, err := c.Call(context.Background()); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}

// A handler that has its memory back while it is being sent would send something else.
func TestAHandlerIsToldOnceWhenItsAnswerIsNotNeededAnyMore(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var given, back, twice atomic.Int32
	handler := func(context.Context, p2p.PeerID, []byte) ([]byte, func(), error) {
		answer := bytes.Repeat([]byte{7}, 300<<10)
		given.Add(1)
		var told atomic.Bool
		return answer, func() {
			if !told.CompareAndSwap(false, true) {
				twice.Add(1)
			}
			clear(answer)
			back.Add(1)
		}, nil
	}
	served := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = rpc.Serve(context.Background(), c, "client", handler, rpc.Limits{}, new(rpc.Memory))
		}
		served <- err
	}()
	c := rpc.NewClient("server", func(ctx context.Context) (io.ReadWriteCloser, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", l.Addr().String())
	}, nil)
	want := bytes.Repeat([]byte{7}, 300<<10)
	var tasks sync.WaitGroup
	for i := range 60 {
		tasks.Go(func() {
			ctx, cancel := context.WithCancel(within(t))
			defer cancel()
			if i%3 == 0 { // some leave while the answer is made, waits, or is under way
				time.AfterFunc(time.Duration(i)*100*time.Microsecond, cancel)
			}
			if got, err := c.Call(ctx); err == nil && !bytes.Equal(got, want) {
				t.Error("an answer has other bytes")
			} else if err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	tasks.Wait()
	for range 20 { // and some answers are lost with the stream
		tasks.Go(func() { _, _ = c.Call(within(t)) })
	}
	c.Close()
	tasks.Wait()
	<-served
	if given.Load() != back.Load() || twice.Load() > 0 {
		t.Errorf("%d answers, %d given back, %d of them again", given.Load(), back.Load(), twice.Load())
	}
}
