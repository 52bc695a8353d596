package rpc

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/cairnfs/cairn/p2p"
)

func frame(size, id uint32, k kind, payload ...byte) []byte {
	return append(header{size: size, id: id, kind: k}.append(nil), payload...)
}

// memory returns the bytes allocated by f.
func memory(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestAHeaderThatClaims4GiBIsRefusedWithoutMemory(t *testing.T) {
	for _, k := range []kind{kindRequest, kindAnswer, kindFailure, kindTooLarge, kindCancel} {
		var err error
		used := memory(func() {
			_, err = newDecoder(bytes.NewReader(frame(1<<32-1, 1, k)), p2p.MaxMessage, nil).header()
		})
		if !errors.Is(err, errProtocol) || used > 1<<20 {
			t.Errorf("kind %d: %v, %d bytes allocated", k, err, used)
		}
	}
}

func TestMemoryForAPayloadGrowsWithTheBytesThatCome(t *testing.T) {
	d := newDecoder(bytes.NewReader(frame(p2p.MaxMessage, 1, kindRequest, 1, 2, 3)), p2p.MaxMessage, nil)
	h, err := d.header()
	if err != nil {
		t.Fatal(err)
	}
	used := memory(func() { _, _, err = d.payload(h.size) })
	if !errors.Is(err, io.ErrUnexpectedEOF) || used > 2*believed {
		t.Errorf("%v, %d bytes allocated", err, used)
	}
}

func TestServeEndsTheStreamsOfLiars(t *testing.T) {
	waits := func(ctx context.Context, _ p2p.PeerID, _ []byte) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }
	var many []byte
	for id := range uint32(MaxOutstanding + 1) {
		many = append(many, frame(0, id, kindRequest)...)
	}
	for name, c := range map[string]struct {
		send []byte
		want error
	}{
		"4 GiB":                      {frame(1<<32-1, 1, kindRequest), errProtocol},
		"a byte too much":            {frame(1001, 1, kindRequest), errProtocol},
		"an unknown kind":            {frame(0, 1, 77), errProtocol},
		"an answer":                  {frame(0, 1, kindAnswer), errProtocol},
		"a cancel with a payload":    {frame(1, 1, kindCancel, 1), errProtocol},
		"an id twice":                {append(frame(0, 1, kindRequest), frame(0, 1, kindRequest)...), errProtocol},
		"one request too many":       {many, errProtocol},
		"half a header":              {frame(0, 1, kindRequest)[:5], io.ErrUnexpectedEOF},
		"half a payload":             {frame(10, 1, kindRequest, 1, 2), io.ErrUnexpectedEOF},
		"a cancel of nothing":        {frame(0, 9, kindCancel), nil},
		"nothing":                    {nil, nil},
		"a request, and then leaves": {frame(2, 1, kindRequest, 1, 2), nil},
	} {
		client, server := tcp(t)
		done := make(chan error, 1)
		go func() {
			done <- Serve(t.Context(), server, "liar", p2p.Handler(waits).Lending(), Limits{Request: 1000}, nil)
		}()
		if _, err := client.Write(c.send); err != nil {
			t.Fatal(err)
		}
		if err := client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestABadByteBetweenChunksEndsTheStream(t *testing.T) {
	b := frame(2*chunkSize, 1, kindRequest, make([]byte, 2*chunkSize)...)
	b = append(b, 0)
	b[headerSize+chunkSize] = 2
	client, server := tcp(t)
	go client.Write(b)
	if err := Serve(t.Context(), server, "liar", nil, Limits{}, nil); !errors.Is(err, errProtocol) {
		t.Error(err)
	}
}

func TestAClientBreaksTheStreamOfAServerThatLies(t *testing.T) {
	for name, answer := range map[string][]byte{
		"4 GiB":            frame(1<<32-1, 0, kindAnswer),
		"a wrong id":       frame(0, 12345, kindAnswer),
		"a request":        frame(0, 0, kindRequest),
		"a cancel":         frame(0, 0, kindCancel),
		"an unknown kind":  frame(0, 0, 0),
		"a long failure":   frame(maxText+1, 0, kindFailure),
		"a long too large": frame(1, 0, kindTooLarge),
	} {
		client, server := tcp(t)
		go func() {
			_, _ = io.CopyN(io.Discard, server, headerSize)
			_, _ = server.Write(answer)
			_, _ = io.Copy(io.Discard, server)
		}()
		c := NewClient("liar", func(context.Context) (io.ReadWriteCloser, error) { return client, nil }, nil)
		if _, err := c.Call(t.Context()); !errors.Is(err, p2p.ErrUnreachable) {
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
	}
}

func TestAnAnswerToHalfARequestLeavesThePiecesToTheCaller(t *testing.T) {
	client, server := tcp(t)
	go func() {
		_, _ = io.CopyN(io.Discard, server, headerSize)
		_, _ = server.Write(frame(1, 0, kindAnswer, 7))
		_, _ = io.Copy(io.Discard, server)
	}()
	c := NewClient("liar", func(context.Context) (io.ReadWriteCloser, error) { return client, nil }, nil)
	defer c.Close()
	req := make([]byte, p2p.MaxMessage)
	if got, err := c.Call(t.Context(), req); err != nil || !bytes.Equal(got, []byte{7}) {
		t.Errorf("%v, %v", got, err)
	}
	clear(req) // a race if the sender still reads it
}

// A peer that neither reads nor writes holds nobody beyond their deadline, though
// a request of 8 MiB is stuck in the middle.
func TestASilentPeerHoldsNobodyBeyondTheirDeadline(t *testing.T) {
	client, server := net.Pipe()
	defer server.Close()
	c := NewClient("liar", func(context.Context) (io.ReadWriteCloser, error) { return client, nil }, nil)
	defer c.Close()
	req := make([]byte, p2p.MaxMessage)
	for range 2 * MaxOutstanding {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, err := c.Call(ctx, req); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		cancel()
		clear(req)
	}
}

// The server learns that a request was withdrawn and never sees it.
func TestARequestWithdrawnHalfwayNeverReachesTheHandler(t *testing.T) {
	client, server := net.Pipe()
	c := NewClient("server", func(context.Context) (io.ReadWriteCloser, error) { return client, nil }, nil)
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { _, err := c.Call(ctx, make([]byte, p2p.MaxMessage)); left <- err }()
	first := make([]byte, headerSize)
	if _, err := io.ReadFull(server, first); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	h := header{size: binary.LittleEndian.Uint32(first), id: 0, kind: kindRequest}
	rest := struct {
		io.Reader
		io.Writer
		io.Closer
	}{io.MultiReader(bytes.NewReader(h.append(nil)), server), server, server}
	var seen [][]byte
	served := make(chan error, 1)
	go func() {
		served <- Serve(t.Context(), rest, "client", func(_ context.Context, _ p2p.PeerID, req []byte) ([]byte, func(), error) {
			seen = append(seen, req)
			return req, nil, nil
		}, Limits{}, nil)
	}()
	if got, err := c.Call(t.Context(), []byte("next")); err != nil || string(got) != "next" {
		t.Fatalf("%q, %v", got, err)
	}
	c.Close()
	<-served
	if len(seen) != 1 || string(seen[0]) != "next" {
		t.Errorf("%d requests arrived", len(seen))
	}
}

func tcp(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// FuzzDecoder feeds the decoder anything. What it returns was in the input, and
// nothing is larger than the limit.
func FuzzDecoder(f *testing.F) {
	f.Add(frame(3, 1, kindRequest, 1, 2, 3))
	f.Add(frame(1<<32-1, 1, kindAnswer))
	f.Add(append(frame(chunkSize+1, 1, kindRequest, make([]byte, chunkSize)...), 1, 9))
	f.Add(append(frame(chunkSize+1, 1, kindRequest, make([]byte, chunkSize)...), 0))
	f.Fuzz(func(t *testing.T, in []byte) {
		const limit = believed + 2*chunkSize
		d := newDecoder(bytes.NewReader(in), limit, nil)
		twin := &decoder{r: bufio.NewReader(bytes.NewReader(in)), max: limit} // skips what d reads
		total := 0
		for {
			h, err := d.header()
			h2, err2 := twin.header()
			if h != h2 || (err == nil) != (err2 == nil) {
				t.Fatalf("reading and skipping differ: %v %v, %v %v", h, h2, err, err2)
			}
			if err != nil {
				return
			}
			p, whole, err := d.payload(h.size)
			if err2 := twin.skip(h.size); (err == nil) != (err2 == nil) {
				t.Fatalf("reading and skipping differ: %v, %v", err, err2)
			}
			if err != nil {
				return
			}
			if whole && len(p) != int(h.size) || len(p) > limit {
				t.Fatalf("%d bytes for a size of %d", len(p), h.size)
			}
			if total += headerSize + len(p); total > len(in) {
				t.Fatalf("%d bytes from %d", total, len(in))
			}
		}
	})
}

// FuzzServe feeds a server anything; it returns, and its handlers see nothing
// beyond the limits.
func FuzzServe(f *testing.F) {
	f.Add(append(frame(3, 1, kindRequest, 1, 2, 3), frame(0, 1, kindCancel)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		stream := struct {
			io.Reader
			io.Writer
			io.Closer
		}{bytes.NewReader(in), io.Discard, io.NopCloser(nil)}
		_ = Serve(t.Context(), stream, "liar", func(_ context.Context, _ p2p.PeerID, req []byte) ([]byte, func(), error) {
			if len(req) > 100 {
				t.Errorf("a request of %d bytes", len(req))
			}
			return req, nil, nil
		}, Limits{Request: 100, Concurrent: 3}, nil)
	})
}
