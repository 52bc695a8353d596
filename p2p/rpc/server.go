package rpc

import (
	"context"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/cairnfs/cairn/p2p"
)

// Limits bound what a peer may ask of Serve. The zero value of a field is its
// largest: p2p.MaxMessage and MaxOutstanding.
type Limits struct {
	Request    int // bytes of a request
	Concurrent int // requests being answered at the same time
	// Room is where large requests lie from before they are read until their handlers
	// have returned, in bytes; several streams may share it. While there is none for
	// the next one, nothing more of the stream is read. Nil is without end.
	Room *semaphore.Weighted
}

func (l Limits) orLargest() Limits {
	if l.Request <= 0 || l.Request > p2p.MaxMessage {
		l.Request = p2p.MaxMessage
	}
	if l.Concurrent <= 0 || l.Concurrent > MaxOutstanding {
		l.Concurrent = MaxOutstanding
	}
	return l
}

// Serve answers the requests that a peer sends over a stream until the stream
// ends, the peer breaks the rules or a limit, or parent ends. It closes the stream and
// returns when the last handler has, nil if the peer ended the stream between two
// frames. The context of a handler ends with the stream and when the peer cancels.
// Large requests lie in memory, which may be nil.
func Serve(parent context.Context, stream io.ReadWriteCloser, from p2p.PeerID, handler p2p.LendingHandler, limits Limits, memory *Memory) error {
	ctx, stop := context.WithCancel(parent)
	s := &server{
		ctx:     ctx,
		from:    from,
		handler: handler,
		limits:  limits.orLargest(),
		memory:  memory,
		out:     newSender(memory),
		running: make(map[uint32]*running),
	}
	closed := make(chan struct{})
	context.AfterFunc(ctx, func() {
		defer close(closed)
		s.out.close()
		_ = stream.Close() // ends the reads and writes under way
	})
	var writer sync.WaitGroup
	writer.Go(func() {
		if s.out.run(stream) != nil {
			stop() // the reader says why
		}
	})
	err := s.receive(stream)
	ended := parent.Err()
	stop()
	<-closed
	writer.Wait()
	s.handlers.Wait()
	if ended != nil {
		return ended
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// server is a stream being served.
type server struct {
	ctx      context.Context
	from     p2p.PeerID
	handler  p2p.LendingHandler
	limits   Limits
	memory   *Memory
	out      *sender // one frame for each of running at most
	handlers sync.WaitGroup

	mu      sync.Mutex
	running map[uint32]*running // by id, until the answer is in the sender's buffer
}

// running is a request that has not been answered.
type running struct {
	cancel    context.CancelFunc
	cancelled bool
	answer    *outgoing // nil while the handler runs
	sent      func()    // of the handler; nil if there is none, or it was called
}

// done tells the handler that its answer is not needed any more.
func (r *running) done() {
	if r.sent != nil {
		r.sent()
		r.sent = nil
	}
}

func (s *server) receive(stream io.Reader) error {
	d := newDecoder(stream, s.limits.Request, s.memory)
	for {
		h, err := d.header()
		if err != nil {
			return err
		}
		switch h.kind {
		case kindRequest:
			err = s.request(d, h)
		case kindCancel:
			s.cancel(h.id)
		default:
			err = fmt.Errorf("%w: kind %d from a client", errProtocol, h.kind)
		}
		if err != nil {
			return err
		}
	}
}

// request reads a request and starts its handler.
func (s *server) request(d *decoder, h header) error {
	s.mu.Lock()
	used, n := s.running[h.id] != nil, len(s.running)
	s.mu.Unlock()
	if used || n >= s.limits.Concurrent {
		return fmt.Errorf("%w: request %d beside %d others, at most %d", errProtocol, h.id, n, s.limits.Concurrent)
	}
	leave, err := s.enter(h.size)
	if err != nil {
		return err
	}
	req, whole, err := d.payload(h.size)
	if err != nil || !whole {
		leave()
		return err
	}
	ctx, cancel := context.WithCancel(s.ctx)
	r := &running{cancel: cancel}
	s.mu.Lock()
	s.running[h.id] = r
	s.mu.Unlock()
	s.handlers.Go(func() {
		defer cancel()
		answer, sent, err := s.handler(ctx, s.from, req)
		leave()
		s.answer(h.id, r, answer, sent, err)
	})
	return nil
}

// enter waits until there is room for a request, which leave gives back.
func (s *server) enter(size uint32) (leave func(), err error) {
	room := s.limits.Room
	if room == nil || size < reused {
		return func() {}, nil
	}
	if err := room.Acquire(s.ctx, int64(size)); err != nil {
		return nil, err
	}
	return func() { room.Release(int64(size)) }, nil
}

// answer queues what a handler returned.
func (s *server) answer(id uint32, r *running, answer []byte, sent func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.sent = sent; r.cancelled || err != nil || len(answer) > p2p.MaxMessage {
		r.done()
	}
	switch {
	case r.cancelled:
		s.put(id, r, kindFailure, nil)
	case err != nil:
		text := err.Error()
		s.put(id, r, kindFailure, []byte(text[:min(len(text), maxText)]))
	case len(answer) > p2p.MaxMessage:
		s.put(id, r, kindTooLarge, nil)
	default:
		s.put(id, r, kindAnswer, answer)
	}
}

// put queues the frame that ends a request. s.mu is held.
func (s *server) put(id uint32, r *running, k kind, payload []byte) {
	r.answer = &outgoing{
		header: header{size: uint32(len(payload)), id: id, kind: k},
		pieces: [][]byte{payload},
		// The id is free before the last of the answer is written, so that the
		// client, which may use it again then, is never taken for a liar.
		sent: func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.running, id)
			r.done()
		},
	}
	if !s.out.put(r.answer) {
		r.done()
	}
}

// cancel ends a request whose caller has gone.
func (s *server) cancel(id uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.running[id]
	if r == nil || r.cancelled {
		return // answered, while this was on its way
	}
	r.cancelled = true
	r.cancel()
	if r.answer == nil {
		return
	}
	at := s.out.withdraw(r.answer)
	if at != gone {
		r.done()
	}
	if at == waiting {
		s.put(id, r, kindFailure, nil)
	}
}
