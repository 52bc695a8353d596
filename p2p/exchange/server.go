// Package exchange is the block protocol, /cairn/blocks/1: which blocks a node
// has, sending them, taking them, and making them durable, many at once. A peer is
// a cas.Store.
//
// Blocks travel as they are stored, compressed or not, and whoever receives one
// verifies it before anything else is done with it: a node that sends other bytes
// than it was asked for is found out, not believed. "Have" and "put" concern the
// durable store of a node only, never what it caches.
//
// Every answer carries the number of the run of the node, its boot. Blocks that
// were put are durable after a sync that is answered in the same run; a node that
// was started again in between may have lost them.
package exchange

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"log/slog"
	"sync"

	"golang.org/x/sync/semaphore"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/p2p"
)

// Protocol is the name of the protocol.
const Protocol p2p.Protocol = "/cairn/blocks/1"

// serverBytes bounds the memory for blocks of requests and for answers that carry
// blocks, of all peers together; further requests wait. Those that wait are bounded for
// each peer by the transport.
const serverBytes = 64 << 20

// peerBytes is the most of it that one peer has: a peer that asks for much, or does
// not take what it asked for, leaves room for the others.
const peerBytes = 16 << 20

var errStopped = errors.New("node is stopping")

// Local is the durable store of a node.
type Local interface {
	cas.Store
	// Stored reads a block as it is stored, not verified.
	Stored(ctx context.Context, c cas.CID, buf []byte) (segment.Stored, error)
}

// Peeker is a Local that can say which blocks it has without promising to keep them.
type Peeker interface {
	Peek(ctx context.Context, cids ...cas.CID) ([]bool, error)
}

var (
	_ Local  = (*segment.Store)(nil)
	_ Peeker = (*segment.Store)(nil)
)

// ServerOptions say what Serve serves. Local is required.
type ServerOptions struct {
	Local Local
	// Cache is asked for blocks that are wanted and not in Local; may be nil.
	Cache cas.Getter
	// Epoch is that of the members which this node knows; nil confirms nothing.
	Epoch func() uint64
	// Promise is told of blocks before it is answered that they are here; may be
	// nil.
	Promise func([]cas.CID)
	// Boot is the number of this run, different each time; 0 draws one.
	Boot uint64
	// Logger is told when the local store fails; nil is slog.Default().
	Logger *slog.Logger
}

type server struct {
	o       ServerOptions
	room    room
	recycle func([]byte) // takes the memory of requests back
	answers sync.Pool    // of *[]byte with room for the largest answer with blocks

	mu      sync.Mutex // over stopped and Add of running
	stopped context.Context
	running sync.WaitGroup
}

// Serve answers the requests that come in over t until stop is called, which returns
// when those under way have ended, so that the stores can be closed.
func Serve(t p2p.Transport, o ServerOptions) (stop func()) {
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	for o.Boot == 0 {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		o.Boot = binary.LittleEndian.Uint64(b[:])
	}
	stopped, cancel := context.WithCancel(context.Background())
	s := &server{o: o, stopped: stopped, recycle: func([]byte) {}}
	s.room.init()
	s.answers.New = func() any {
		b := make([]byte, maxAnswer)
		return &b
	}
	if r, ok := t.(p2p.Recycler); ok {
		s.recycle = r.Recycle
		r.HandleLending(Protocol, s.handle)
	} else {
		t.Handle(Protocol, func(ctx context.Context, from p2p.PeerID, req []byte) ([]byte, error) {
			answer, sent, err := s.handle(ctx, from, req)
			if sent != nil { // when it really is, s is not told
				answer = bytes.Clone(answer)
				sent()
			}
			return answer, err
		})
	}
	return func() {
		t.Handle(Protocol, nil)
		s.mu.Lock()
		cancel()
		s.mu.Unlock()
		s.running.Wait()
	}
}

// room is the memory for requests and answers with blocks.
type room struct {
	all *semaphore.Weighted // serverBytes

	mu    sync.Mutex
	peers map[p2p.PeerID]*semaphore.Weighted // peerBytes each; of members, there are few
}

func (r *room) init() {
	r.all = semaphore.NewWeighted(serverBytes)
	r.peers = make(map[p2p.PeerID]*semaphore.Weighted)
}

// taken is what a request has of the room.
type taken struct {
	all, share *semaphore.Weighted
	n          int64
}

// shrink gives back all but n bytes.
func (t *taken) shrink(n int64) {
	if back := t.n - n; back > 0 {
		t.n = n
		t.all.Release(back)
		t.share.Release(back)
	}
}

func (t *taken) release() { t.shrink(0) }

// acquire waits for n bytes of a peer's share, and then of all.
func (r *room) acquire(ctx context.Context, peer p2p.PeerID, n int64) (*taken, error) {
	r.mu.Lock()
	share := r.peers[peer]
	if share == nil {
		share = semaphore.NewWeighted(peerBytes)
		r.peers[peer] = share
	}
	r.mu.Unlock()
	if err := share.Acquire(ctx, n); err != nil {
		return nil, err
	}
	if err := r.all.Acquire(ctx, n); err != nil {
		share.Release(n)
		return nil, err
	}
	return &taken{r.all, share, n}, nil
}

// begin counts a request as running, unless the server is stopped.
func (s *server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped.Err() != nil {
		return false
	}
	s.running.Add(1)
	return true
}

// handle is a p2p.LendingHandler.
func (s *server) handle(ctx context.Context, from p2p.PeerID, req []byte) (answer []byte, sent func(), err error) {
	if !s.begin() {
		return nil, nil, errStopped
	}
	defer s.running.Done()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.stopped, cancel)()
	r, err := parseRequest(req)
	if err != nil {
		return nil, nil, err
	}
	switch r.op {
	case opHave:
		answer, err = s.have(ctx, &r)
	case opWant:
		return s.want(ctx, from, &r)
	case opPut:
		answer, err = s.put(ctx, from, &r)
		s.recycle(req) // no store keeps what it is given
	case opConfirm:
		answer, err = s.confirm(ctx, from, &r)
	default:
		answer, err = appendAnswer(nil, opSync, s.o.Boot, len(r.cids)), s.o.Local.Sync(ctx)
	}
	return answer, nil, err
}

func (s *server) have(ctx context.Context, r *request) ([]byte, error) {
	ask := s.o.Local.Has
	if peeker, ok := s.o.Local.(Peeker); ok && r.flags&flagPeek != 0 {
		ask = peeker.Peek
	} else {
		s.promise(r.cids)
	}
	has, err := ask(ctx, r.cids...)
	if err != nil {
		return nil, err
	}
	b := appendAnswer(make([]byte, 0, answerHead+len(has)), opHave, s.o.Boot, len(has))
	for _, h := range has {
		if h {
			b = append(b, byte(statusYes))
		} else {
			b = append(b, byte(statusNo))
		}
	}
	return b, nil
}

// want sends the blocks that are held, until the answer is full. The answer's memory is
// used for another when it was sent, and takes up room until then: a peer may be slow to
// take it.
func (s *server) want(ctx context.Context, from p2p.PeerID, r *request) (answer []byte, sent func(), err error) {
	size := int64(min(len(r.cids)*cas.MaxBlockSize, MaxPayload+cas.MaxBlockSize))
	room, err := s.room.acquire(ctx, from, size)
	if err != nil {
		return nil, nil, err
	}
	memory := s.answers.Get().(*[]byte)
	sent = func() {
		s.answers.Put(memory)
		room.release()
	}
	if answer, err = s.gather(ctx, r, (*memory)[:0]); err != nil {
		sent()
		return nil, nil, err
	}
	room.shrink(int64(len(answer)))
	return answer, sent, nil
}

// gather appends the answer to a want, at most maxAnswer bytes.
func (s *server) gather(ctx context.Context, r *request, b []byte) ([]byte, error) {
	b = appendAnswer(b, opWant, s.o.Boot, len(r.cids))
	payload := 0
	for _, c := range r.cids {
		if payload >= MaxPayload {
			b = append(b, byte(statusLater))
			continue
		}
		var free []byte
		if cap(b)-len(b) > entryHead {
			free = b[len(b)+entryHead : cap(b)]
		}
		block, err := s.read(ctx, c, r.flags&flagCheck != 0, free)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, cas.ErrNotFound):
			b = append(b, byte(statusNo))
		case errors.Is(err, cas.ErrCorrupt):
			b = append(b, byte(statusCorrupt))
		case err != nil:
			s.o.Logger.Error("block cannot be read for a peer", "cid", c, "err", err)
			b = append(b, byte(statusFailed))
		case payload > 0 && payload+len(block.Payload) > MaxPayload:
			b = append(b, byte(statusLater))
		default:
			payload += len(block.Payload)
			b = appendForm(append(b, byte(statusYes)), &block)
			// If the payload was read to where it belongs, this moves nothing.
			b = append(b, block.Payload...)
		}
	}
	return b, nil
}

// read returns a block as it is to be sent; check has it verified, by which the
// local store notices damage.
func (s *server) read(ctx context.Context, c cas.CID, check bool, buf []byte) (segment.Stored, error) {
	var stored segment.Stored
	var err error
	if check {
		var b cas.Block
		if b, err = s.o.Local.Get(ctx, c, nil); err == nil {
			return segment.Plain(b), nil
		}
	} else if stored, err = s.o.Local.Stored(ctx, c, buf); err == nil {
		return stored, nil
	}
	if s.o.Cache != nil {
		if b, cacheErr := s.o.Cache.Get(ctx, c, nil); cacheErr == nil {
			return segment.Plain(b), nil
		}
	}
	return stored, err
}

// put stores those of the blocks that are what their CIDs name.
func (s *server) put(ctx context.Context, from p2p.PeerID, r *request) ([]byte, error) {
	size := int64(0)
	for i := range r.blocks {
		size += int64(r.blocks[i].Raw)
	}
	// Blocks that compress well may be much larger than the message; not all of
	// them are there at once.
	size = min(size, MaxPayload+cas.MaxBlockSize)
	room, err := s.room.acquire(ctx, from, size)
	if err != nil {
		return nil, err
	}
	defer room.release()

	s.promise(r.cids)
	head := appendAnswer(make([]byte, 0, answerHead+len(r.blocks)), opPut, s.o.Boot, len(r.blocks))
	b := head[:answerHead+len(r.blocks)]
	of := b[answerHead:]
	batch := make([]cas.Block, 0, len(r.blocks))
	bytes := 0
	flush := func(upTo int) error {
		err := s.store(ctx, batch, r.cids[:upTo], of[:upTo])
		clear(batch)
		batch, bytes = batch[:0], 0
		return err
	}
	for i := range r.blocks {
		of[i] = byte(statusYes)
		block, err := r.blocks[i].Block(nil)
		if err != nil {
			of[i] = byte(statusCorrupt)
			s.o.Logger.Warn("peer sent a block that is not what its CID names", "peer", from, "cid", r.cids[i])
			continue
		}
		// At most so much is decompressed at once.
		if batch, bytes = append(batch, block), bytes+len(block.Data()); bytes >= MaxPayload {
			if err := flush(i + 1); err != nil {
				return nil, err
			}
		}
	}
	if err := flush(len(of)); err != nil {
		return nil, err
	}
	if r.flags&flagSync != 0 {
		if err := s.o.Local.Sync(ctx); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// store puts the batch; where that fails, it looks which of the blocks are there.
func (s *server) store(ctx context.Context, batch []cas.Block, cids []cas.CID, of []byte) error {
	err := s.o.Local.Put(ctx, batch...)
	if err == nil {
		return nil
	}
	why := statusFailed
	if errors.Is(err, cas.ErrNoSpace) {
		why = statusFull
	} else {
		s.o.Logger.Error("block of a peer cannot be stored", "err", err)
	}
	has, err := s.o.Local.Has(ctx, cids...)
	if err != nil {
		return err
	}
	for i := range of {
		if of[i] == byte(statusYes) && !has[i] {
			of[i] = byte(why)
		}
	}
	return nil
}
