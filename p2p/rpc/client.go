package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/cairnfs/cairn/p2p"
)

// Open returns a new stream to the peer. It gives up by itself after a while, and
// when ctx ends. A *p2p.RemoteError, the peer's refusal, is passed on as it is; any
// other error says that the peer cannot be reached. Close of the stream must end
// reads and writes that are under way.
type Open func(ctx context.Context) (io.ReadWriteCloser, error)

// Client asks one peer, over a stream that it opens when there is something to
// ask. A stream that breaks fails what is outstanding; the next call opens another.
type Client struct {
	peer   p2p.PeerID
	open   Open
	memory *Memory
	ctx    context.Context // ends with Close
	stop   context.CancelFunc

	mu      sync.Mutex
	conn    *conn    // nil if there is none
	opening *opening // not nil while one is being opened
}

// opening is a stream being opened, on behalf of whoever asks meanwhile.
type opening struct {
	done chan struct{} // closed when conn or err is set
	conn *conn
	err  error
}

// NewClient returns a client of a peer. Large answers lie in memory, which may be nil.
// Close must be called.
func NewClient(peer p2p.PeerID, open Open, memory *Memory) *Client {
	ctx, stop := context.WithCancel(context.Background())
	return &Client{peer: peer, open: open, memory: memory, ctx: ctx, stop: stop}
}

// Call sends a request, the pieces in order, and returns the answer, which is the
// caller's. The pieces may be used again on return, whatever it returns.
//
// Errors: p2p.ErrUnreachable, *p2p.RemoteError, p2p.ErrTooLarge, or the context's.
// Unless it is ErrTooLarge, the peer may have done what was asked.
func (c *Client) Call(ctx context.Context, req ...[]byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	size := 0
	for _, piece := range req {
		size += len(piece)
	}
	if size > p2p.MaxMessage {
		return nil, p2p.ErrTooLarge
	}
	conn, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	return conn.call(ctx, uint32(size), req)
}

// Close breaks the stream and fails all calls with p2p.ErrUnreachable, also later
// ones. It returns nil.
func (c *Client) Close() error {
	c.mu.Lock()
	c.stop()
	conn := c.conn
	c.mu.Unlock()
	if conn != nil {
		conn.fail(errors.New("closed"))
	}
	return nil
}

// Leave has the next call open another stream, if what says so of the present one.
// Calls under way end over that; it is not closed.
func (c *Client) Leave(what func(stream io.ReadWriteCloser) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil && what(c.conn.stream) {
		c.conn = nil
	}
}

// connect returns the stream, opening one if there is none that works.
func (c *Client) connect(ctx context.Context) (*conn, error) {
	c.mu.Lock()
	if c.ctx.Err() != nil {
		c.mu.Unlock()
		return nil, fmt.Errorf("%w: %s: closed", p2p.ErrUnreachable, c.peer.Short())
	}
	if c.conn != nil && !c.conn.isBroken() {
		defer c.mu.Unlock()
		return c.conn, nil
	}
	o := c.opening
	if o == nil {
		o = &opening{done: make(chan struct{})}
		c.opening = o
		go c.dial(o)
	}
	c.mu.Unlock()
	select {
	case <-o.done:
		return o.conn, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (c *Client) dial(o *opening) {
	stream, err := c.open(c.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.opening = nil
	defer close(o.done)
	if err == nil && c.ctx.Err() != nil {
		_ = stream.Close() // nothing was written to it
		err = c.ctx.Err()
	}
	if err == nil {
		o.conn = newConn(c.peer, stream, c.memory)
		c.conn = o.conn
		return
	}
	var refused *p2p.RemoteError
	if o.err = err; !errors.As(err, &refused) {
		o.err = fmt.Errorf("%w: %s: %v", p2p.ErrUnreachable, c.peer.Short(), err)
	}
}

// conn is a stream of the client and what is outstanding on it.
type conn struct {
	peer   p2p.PeerID
	stream io.ReadWriteCloser
	memory *Memory
	out    *sender // at most MaxOutstanding requests, and a cancel for each that left before
	slots  chan struct{}
	broken chan struct{} // closed by fail

	mu    sync.Mutex
	calls map[uint32]*call // by id; each has a slot
	next  uint32
	err   error // why it broke
}

// call is a request that has an id.
type call struct {
	done   chan struct{} // closed when answer or err is set
	answer []byte
	err    error
	left   bool // the caller has gone; the id is still in use
}

func newConn(peer p2p.PeerID, stream io.ReadWriteCloser, memory *Memory) *conn {
	c := &conn{
		peer:   peer,
		stream: stream,
		memory: memory,
		out:    newSender(memory),
		slots:  make(chan struct{}, MaxOutstanding),
		broken: make(chan struct{}),
		calls:  make(map[uint32]*call),
	}
	go func() {
		if err := c.out.run(stream); err != nil {
			c.fail(err)
		}
	}()
	go func() { c.fail(c.receive()) }()
	return c
}

func (c *conn) isBroken() bool {
	select {
	case <-c.broken:
		return true
	default:
		return false
	}
}

// fail breaks the stream. The first reason counts.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = fmt.Errorf("%w: %s: %v", p2p.ErrUnreachable, c.peer.Short(), err)
	close(c.broken)
	c.mu.Unlock()
	c.out.close()
	_ = c.stream.Close() // it is given up
}

func (c *conn) call(ctx context.Context, size uint32, req [][]byte) ([]byte, error) {
	select {
	case c.slots <- struct{}{}:
	case <-c.broken:
		return nil, c.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	id, call := c.begin()
	f := &outgoing{header: header{size: size, id: id, kind: kindRequest}, pieces: slices.Clone(req)}
	c.out.put(f)
	select {
	case <-call.done:
		c.out.withdraw(f) // an answer to half a request; the pieces are the caller's again
		return call.answer, call.err
	case <-c.broken:
		c.out.withdraw(f)
		select {
		case <-call.done: // before it broke
			return call.answer, call.err
		default:
			return nil, c.err
		}
	case <-ctx.Done():
		c.leave(id, call, f)
		return nil, ctx.Err()
	}
}

// begin gives a call, which has a slot, an id.
func (c *conn) begin() (uint32, *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.calls[c.next] != nil {
		c.next++
	}
	id := c.next
	c.next++
	call := &call{done: make(chan struct{})}
	c.calls[id] = call
	return id, call
}

// leave withdraws or cancels the request of a caller that has gone.
func (c *conn) leave(id uint32, call *call, f *outgoing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.out.withdraw(f)
	if c.calls[id] != call {
		return // answered just now
	}
	if at != gone {
		c.release(id)
		return
	}
	call.left = true
	c.out.put(&outgoing{header: header{id: id, kind: kindCancel}})
}

// release ends the use of an id and gives its slot to another. c.mu is held.
func (c *conn) release(id uint32) {
	delete(c.calls, id)
	<-c.slots
}

// receive hands out answers until the stream breaks, and returns why.
func (c *conn) receive() error {
	d := newDecoder(c.stream, p2p.MaxMessage, c.memory)
	for {
		h, err := d.header()
		if err != nil {
			return err
		}
		c.mu.Lock()
		call := c.calls[h.id]
		left := call != nil && call.left
		c.mu.Unlock()
		if call == nil || h.kind == kindRequest || h.kind == kindCancel {
			return fmt.Errorf("%w: kind %d for request %d", errProtocol, h.kind, h.id)
		}
		var payload []byte
		whole := true
		if left {
			err = d.skip(h.size)
		} else {
			payload, whole, err = d.payload(h.size)
		}
		if err != nil {
			return err
		}
		c.finish(h, call, payload, whole)
	}
}

// finish gives a call its result.
func (c *conn) finish(h header, call *call, payload []byte, whole bool) {
	switch {
	case !whole:
		call.err = &p2p.RemoteError{Peer: c.peer, Text: "answer withdrawn"}
	case h.kind == kindAnswer:
		call.answer = payload
	case h.kind == kindFailure:
		call.err = &p2p.RemoteError{Peer: c.peer, Text: string(payload)}
	default:
		call.err = p2p.ErrTooLarge
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.calls[h.id] == call { // else withdrawn meanwhile, and answered nevertheless
		c.release(h.id)
	}
	close(call.done)
}
