package membership

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/cairnfs/cairn/p2p"
)

// A stream of memberlist carries one question and one answer: the caller says all
// it has to say, then listens; the other side listens, answers and closes. That is
// a request. What the caller writes is kept until it reads, and then goes out; what
// the other side writes is kept until it closes, and then is the answer.

// errExchangeTooLarge says that more than maxExchange bytes were written.
var errExchangeTooLarge = fmt.Errorf("exchange is larger than %d bytes", maxExchange)

// DialAddressTimeout returns the asking side of an exchange. Nothing is sent yet.
func (c *carrier) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	to := p2p.PeerID(a.Name)
	if !c.registry.has(to) {
		return nil, errNotMember
	}
	if c.ctx.Err() != nil {
		return nil, errClosed
	}
	ctx, cancel := context.WithCancel(c.ctx)
	return &asking{
		ends:     ends{local: addr(c.net.Self()), remote: addr(to)},
		carrier:  c,
		to:       to,
		ctx:      ctx,
		cancel:   cancel,
		deadline: time.Now().Add(timeout),
	}, nil
}

// ends are the two addresses of an exchange.
type ends struct{ local, remote net.Addr }

func (e ends) LocalAddr() net.Addr  { return e.local }
func (e ends) RemoteAddr() net.Addr { return e.remote }

// asking is the side of an exchange that asks: writes, then reads. Only Close may
// be called while another call runs.
type asking struct {
	ends
	carrier *carrier
	to      p2p.PeerID
	ctx     context.Context
	cancel  func()

	deadline time.Time // the zero time is none
	question []byte
	answer   *bytes.Reader // nil until asked
	err      error         // why there is no answer
}

// Write adds to the question, up to the first Read.
func (a *asking) Write(b []byte) (int, error) {
	switch {
	case a.ctx.Err() != nil:
		return 0, net.ErrClosed
	case a.answer != nil:
		return 0, errors.New("exchange has been asked already")
	case len(a.question)+len(b) > maxExchange:
		return 0, errExchangeTooLarge
	}
	a.question = append(a.question, b...)
	return len(b), nil
}

// Read reads the answer. The first asks for it, and gives up at the deadline that
// is set then, or after the time for an exchange.
func (a *asking) Read(b []byte) (int, error) {
	if a.answer == nil {
		a.answer = bytes.NewReader(nil)
		a.ask()
	}
	if a.err != nil {
		return 0, a.err
	}
	return a.answer.Read(b)
}

func (a *asking) ask() {
	ctx, cancel := context.WithTimeout(a.ctx, a.carrier.exchangeTimeout)
	defer cancel()
	if !a.deadline.IsZero() {
		ctx, cancel = context.WithDeadline(ctx, a.deadline)
		defer cancel()
	}
	answer, err := a.carrier.call(ctx, a.to, []byte{kindExchange}, a.question)
	a.question = nil
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		a.err = os.ErrDeadlineExceeded // a net.Error that is a timeout
	case err != nil:
		a.err = err
	case len(answer) > maxExchange:
		a.err = errExchangeTooLarge
	default:
		a.answer.Reset(answer)
	}
}

func (a *asking) Close() error {
	a.cancel()
	return nil
}

func (a *asking) SetDeadline(t time.Time) error {
	a.deadline = t
	return nil
}

func (a *asking) SetReadDeadline(t time.Time) error { return a.SetDeadline(t) }
func (a *asking) SetWriteDeadline(time.Time) error  { return nil } // Write does not wait

// serveExchange hands the question to memberlist and returns what it writes.
func (c *carrier) serveExchange(ctx context.Context, from p2p.PeerID, question []byte) ([]byte, error) {
	select {
	case c.exchanges <- struct{}{}:
		defer func() { <-c.exchanges }()
	default:
		return nil, errBusy
	}
	timeout := time.NewTimer(c.exchangeTimeout)
	defer timeout.Stop()

	s := &answering{
		ends:     ends{local: addr(c.net.Self()), remote: addr(from)},
		question: bytes.NewReader(question),
		closed:   make(chan struct{}),
	}
	handOver, closed := (chan<- net.Conn)(c.streams), (<-chan struct{})(nil)
	for {
		select {
		case handOver <- s:
			handOver, closed = nil, s.closed
		case <-closed:
			return s.answer.Bytes(), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-c.ctx.Done():
			return nil, errClosed
		case <-timeout.C:
			return nil, os.ErrDeadlineExceeded
		}
	}
}

// answering is the side of an exchange that answers. Nothing on it waits, so
// deadlines mean nothing.
type answering struct {
	ends
	question *bytes.Reader
	answer   bytes.Buffer // the asker's once closed is

	closing sync.Once
	closed  chan struct{}
}

func (s *answering) Read(b []byte) (int, error) { return s.question.Read(b) }

func (s *answering) Write(b []byte) (int, error) {
	select {
	case <-s.closed:
		return 0, net.ErrClosed
	default:
	}
	if s.answer.Len()+len(b) > maxExchange {
		return 0, errExchangeTooLarge
	}
	return s.answer.Write(b)
}

func (s *answering) Close() error {
	s.closing.Do(func() { close(s.closed) })
	return nil
}

func (s *answering) SetDeadline(time.Time) error      { return nil }
func (s *answering) SetReadDeadline(time.Time) error  { return nil }
func (s *answering) SetWriteDeadline(time.Time) error { return nil }
