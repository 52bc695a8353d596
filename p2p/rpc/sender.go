package rpc

import (
	"io"
	"slices"
	"sync"
)

// outgoing is a frame to be sent. Its fields belong to the sender once it is put.
type outgoing struct {
	header
	pieces [][]byte // the payload, size bytes in all
	sent   func()   // if not nil, called when the sender needs the pieces no more

	stage stage
	left  uint32 // bytes not yet in the buffer
}

type stage uint8

const (
	waiting stage = iota
	underWay
	gone // wholly in the buffer, or withdrawn
)

// sender writes the frames of one direction of a stream, from one goroutine (run).
// Payloads are copied chunk by chunk into a buffer that stays in the processor's
// cache, which costs little and buys three things: frames that are there at the
// same time leave in one write, the caller has its pieces back without waiting for
// the network, and a frame can be withdrawn while the network stalls.
//
// The queue is bounded by those who put: see Client and Serve.
type sender struct {
	mu     sync.Mutex
	ready  sync.Cond
	queue  []*outgoing
	now    *outgoing // under way, not yet wholly in the buffer
	closed bool
}

func newSender() *sender {
	s := &sender{}
	s.ready.L = &s.mu
	return s
}

// put queues a frame. After close it is lost.
func (s *sender) put(f *outgoing) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	f.left = f.size
	s.queue = append(s.queue, f)
	s.ready.Signal()
}

// withdraw has the rest of a frame not sent, and returns how far it had come:
// waiting, nothing of it will be seen; underWay, the peer will see it withdrawn;
// gone, it is too late. Its pieces are not read any more when this returns.
func (s *sender) withdraw(f *outgoing) stage {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := f.stage
	switch {
	case at == waiting:
		if i := slices.Index(s.queue, f); i >= 0 {
			s.queue = slices.Delete(s.queue, i, i+1)
		}
		f.stage = gone
	case at == underWay:
		f.pieces = nil // next finds it so
	}
	return at
}

// close ends run. Frames not yet written are lost.
func (s *sender) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.queue, s.now = nil, nil
	s.ready.Signal()
}

// run writes frames until close, or until a write fails.
func (s *sender) run(w io.Writer) error {
	var buf []byte
	var sent []func()
	for {
		var ok bool
		buf, sent, ok = s.fill(buf, sent[:0])
		for _, f := range sent {
			f()
		}
		clear(sent)
		if !ok {
			return nil
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
}

// fill waits for frames and gathers what is to be written next: at least a chunk
// if there is as much, at most two and their headers. done are the callbacks of
// the frames that are now wholly in the buffer.
func (s *sender) fill(buf []byte, sent []func()) (b []byte, done []func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	buf = buf[:0]
	for s.now == nil && len(s.queue) == 0 && !s.closed {
		if cap(buf) > chunkSize/4 {
			buf = nil // an idle stream keeps no memory
		}
		s.ready.Wait()
	}
	if s.closed {
		return nil, sent, false
	}
	for len(buf) < chunkSize && (s.now != nil || len(s.queue) > 0) {
		f := s.now
		if f == nil {
			f = s.queue[0]
			s.queue[0] = nil
			s.queue = s.queue[1:]
			f.stage = underWay
			s.now = f
		}
		buf = f.next(buf)
		if f.stage == gone {
			s.now = nil
			if f.sent != nil {
				sent = append(sent, f.sent)
			}
		}
	}
	return buf, sent, true
}

// next appends the next chunk and what stands before it.
func (f *outgoing) next(buf []byte) []byte {
	n := min(f.left, chunkSize)
	buf = slices.Grow(buf, headerSize+int(n))
	switch {
	case f.left == f.size:
		buf = f.header.append(buf)
	case f.pieces == nil:
		f.stage = gone
		return append(buf, withdrawn)
	default:
		buf = append(buf, goesOn)
	}
	f.left -= n
	for n > 0 {
		piece := f.pieces[0]
		take := min(n, uint32(len(piece)))
		buf = append(buf, piece[:take]...)
		n -= take
		if int(take) == len(piece) {
			f.pieces = f.pieces[1:]
		} else {
			f.pieces[0] = piece[take:]
		}
	}
	if f.left == 0 {
		f.stage, f.pieces = gone, nil
	}
	return buf
}
