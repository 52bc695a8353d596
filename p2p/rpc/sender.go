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
	sent   func()   // if not nil, called when the sender, which was not told to withdraw it, needs the pieces no more

	stage stage
	left  uint32 // bytes not yet in the buffer
}

type stage uint8

const (
	waiting stage = iota
	underWay
	gone // wholly in the buffer, or withdrawn
)

// maxWrite is the most that is written at once, in bytes: almost a chunk of small
// frames, and a whole one.
const maxWrite = 2*chunkSize + headerSize

// sender writes the frames of one direction of a stream, from one goroutine (run).
// Payloads are copied chunk by chunk into a buffer that stays in the processor's
// cache, which costs little and buys three things: frames that are there at the
// same time leave in one write, the caller has its pieces back without waiting for
// the network, and a frame can be withdrawn while the network stalls.
//
// The queue is bounded by those who put: see Client and Serve.
type sender struct {
	memory *Memory // of the buffer

	mu     sync.Mutex
	ready  sync.Cond
	queue  []*outgoing
	now    *outgoing // under way, not yet wholly in the buffer
	closed bool
}

func newSender(memory *Memory) *sender {
	s := &sender{memory: memory}
	s.ready.L = &s.mu
	return s
}

// put queues a frame and returns true; after close it does nothing.
func (s *sender) put(f *outgoing) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	f.left = f.size
	s.queue = append(s.queue, f)
	s.ready.Signal()
	return true
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
	lost := s.queue
	if s.now != nil {
		lost = append(lost, s.now)
	}
	s.closed = true
	s.queue, s.now = nil, nil
	s.ready.Signal()
	s.mu.Unlock()
	for _, f := range lost {
		if f.sent != nil {
			f.sent()
		}
	}
}

// run writes frames until close, or until a write fails.
func (s *sender) run(w io.Writer) error {
	var buf []byte
	defer func() { s.memory.Put(buf) }()
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
		if cap(buf) >= reused { // an idle stream keeps little memory
			s.memory.Put(buf)
			buf = nil
		}
		s.ready.Wait()
	}
	if s.closed {
		return buf, sent, false
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
		if n := len(buf) + headerSize + int(min(f.left, chunkSize)); n > cap(buf) && n >= reused {
			larger := append(s.memory.get(maxWrite)[:0], buf...)
			s.memory.Put(buf)
			buf = larger
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
