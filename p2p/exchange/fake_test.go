package exchange

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/p2p"
)

// wire is a network of two nodes in memory: "client" asks "server".
type wire struct {
	mu      sync.Mutex
	handler p2p.Handler
	calls   int
	// answer, if set, answers instead.
	answer func(req []byte) ([]byte, error)
}

func (w *wire) Self() p2p.PeerID { return "client" }

func (w *wire) Handle(_ p2p.Protocol, h p2p.Handler) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.handler = h
}

func (w *wire) Call(ctx context.Context, to p2p.PeerID, p p2p.Protocol, req ...[]byte) ([]byte, error) {
	if to != "server" || p != Protocol {
		return nil, p2p.ErrUnreachable
	}
	w.mu.Lock()
	h, answer := w.handler, w.answer
	w.calls++
	w.mu.Unlock()
	b := bytes.Join(req, nil)
	if len(b) > p2p.MaxMessage {
		return nil, p2p.ErrTooLarge
	}
	if answer != nil {
		return answer(b)
	}
	if h == nil {
		return nil, p2p.ErrUnreachable
	}
	a, err := h(ctx, "client", b)
	if err != nil {
		return nil, &p2p.RemoteError{Peer: to, Text: err.Error()}
	}
	if len(a) > p2p.MaxMessage {
		return nil, p2p.ErrTooLarge
	}
	return bytes.Clone(a), nil
}

// local is a store in memory whose blocks can be damaged, as segment.Store is one
// on disk.
type local struct {
	mem.Store
	mu      sync.Mutex
	damaged map[cas.CID]bool
	known   map[cas.CID]bool // damaged, and noticed
	putErr  error
	limit   int // blocks, if not 0
	syncs   int
}

func (l *local) is(c cas.CID) (damaged, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.damaged[c], l.known[c]
}

func (l *local) Corrupt(_ testing.TB, c cas.CID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.damaged == nil {
		l.damaged, l.known = make(map[cas.CID]bool), make(map[cas.CID]bool)
	}
	l.damaged[c] = true
}

func (l *local) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	if damaged, _ := l.is(c); damaged {
		l.mu.Lock()
		l.known[c] = true
		l.mu.Unlock()
		return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Err: cas.ErrCorrupt}
	}
	return l.Store.Get(ctx, c, buf)
}

func (l *local) Has(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	has, err := l.Store.Has(ctx, cids...)
	for i := range has {
		if _, known := l.is(cids[i]); known {
			has[i] = false
		}
	}
	return has, err
}

func (l *local) Put(ctx context.Context, blocks ...cas.Block) error {
	for _, b := range blocks {
		if l.limit > 0 && l.Len() >= l.limit {
			return &cas.BlockError{Op: "put", CID: b.CID(), Err: l.putErr}
		}
		if err := l.Store.Put(ctx, b); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (l *local) Stored(ctx context.Context, c cas.CID, buf []byte) (segment.Stored, error) {
	damaged, known := l.is(c)
	if known {
		return segment.Stored{}, &cas.BlockError{Op: "get", CID: c, Err: cas.ErrNotFound}
	}
	b, err := l.Store.Get(ctx, c, buf)
	if err != nil {
		return segment.Stored{}, err
	}
	if damaged {
		b.Data()[0] ^= 1 // a copy
	}
	return segment.Plain(b), nil
}

func (l *local) Sync(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.syncs++
	return ctx.Err()
}

// serve returns a peer that serves the store.
func serve(t testing.TB, l Local, cache cas.Getter) (Peer, *wire) {
	t.Helper()
	w := new(wire)
	Serve(w, ServerOptions{Local: l, Cache: cache, Boot: 7, Logger: quiet()})
	return Peer{ID: "server", Transport: w}, w
}
