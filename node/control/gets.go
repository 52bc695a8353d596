package control

import (
	"context"
	"io"
	"sync"

	"github.com/cairnfs/cairn/cas"
)

// A request costs both sides about as much as hashing the block that it brings.
// Whoever reads a large file has several Gets under way, so those that come while
// a request is under way travel together in the next one.

// maxAsking is how many requests for blocks are under way at a time: while one is
// being answered, the next is collected.
const maxAsking = 2

// getCall is a Get that waits for its block.
type getCall struct {
	ctx  context.Context
	cid  cas.CID
	buf  []byte
	done chan struct{} // closed when the rest is set

	block cas.Block
	err   error
}

// gets collects the Gets of a client.
type gets struct {
	mu      sync.Mutex
	waiting []*getCall // bounded by the number of callers
	asking  int        // requests under way
}

// Get asks the node for the block and verifies it again.
func (c *Client) Get(ctx context.Context, cid cas.CID, buf []byte) (cas.Block, error) {
	if err := ctx.Err(); err != nil {
		return cas.Block{}, err
	}
	if !cid.Defined() { // there is no such CID to ask for
		return cas.Block{}, &cas.BlockError{Op: "get", CID: cid, Err: cas.ErrNotFound}
	}
	call := &getCall{ctx: ctx, cid: cid, buf: buf, done: make(chan struct{})}
	g := &c.gets
	g.mu.Lock()
	g.waiting = append(g.waiting, call)
	if g.asking < maxAsking {
		g.asking++
		go c.ask()
	}
	g.mu.Unlock()
	// Not before done: until then the answer may be on its way into buf.
	<-call.done
	return call.block, call.err
}

// ask sends requests until nothing is waiting.
func (c *Client) ask() {
	g := &c.gets
	for {
		g.mu.Lock()
		calls := g.waiting[:min(len(g.waiting), maxGet)]
		if g.waiting = g.waiting[len(calls):]; len(calls) == 0 {
			g.waiting = nil
			g.asking--
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
		c.getAll(calls)
	}
}

// getAll answers calls with one request. If one of several is cancelled, the
// others are asked for again one by one.
func (c *Client) getAll(calls []*getCall) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var ask []byte
	for _, call := range calls {
		stop := context.AfterFunc(call.ctx, cancel)
		defer stop()
		ask = call.cid.Append(ask)
	}
	answered, err := c.readAll(ctx, ask, calls)
	for _, call := range calls[answered:] {
		switch {
		case call.ctx.Err() != nil:
			call.err = call.ctx.Err()
		case ctx.Err() != nil && len(calls) > 1:
			c.getAll([]*getCall{call})
			continue
		default:
			call.err = err
		}
		close(call.done)
	}
}

// readAll sends the request and hands out the answers. It returns how many calls
// have been answered, and why not the others.
func (c *Client) readAll(ctx context.Context, ask []byte, calls []*getCall) (answered int, err error) {
	resp, err := c.send(ctx, "blocks/get", ask)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	for i, call := range calls {
		tag, data, err := readEntry(resp.Body, call.buf)
		if err != nil {
			return i, unavailable(ctx, err)
		}
		call.block, call.err = entryBlock(call.cid, tag, data)
		close(call.done)
	}
	_, _ = io.Copy(io.Discard, resp.Body) // to its end, so that the connection is used again
	return len(calls), nil
}
