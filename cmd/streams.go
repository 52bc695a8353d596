package cmd

import (
	"context"
	"errors"
	"io"
	"syscall"
)

// output is standard output. It tells a reader that has gone from every other
// broken pipe, such as that to a node.
type output struct{ io.Writer }

func (o *output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		err = errReaderGone
	}
	return n, err
}

// inputBuffer is the size of each of the two buffers of an input, in bytes.
const inputBuffer = 256 << 10

// input reads from something that may never answer, such as a terminal, and ends
// with its context all the same. It reads ahead.
type input struct {
	ctx    context.Context
	filled chan piece
	empty  chan []byte
	now    piece // being handed out; its buffer is buf
	buf    []byte
}

type piece struct {
	data []byte
	err  error
}

// newInput returns a reader of r. If the context ends first, a goroutine remains
// until r answers.
func newInput(ctx context.Context, r io.Reader) *input {
	in := &input{ctx: ctx, filled: make(chan piece, 2), empty: make(chan []byte, 2)}
	in.empty <- make([]byte, inputBuffer)
	in.empty <- make([]byte, inputBuffer)
	go func() {
		for {
			select {
			case buf := <-in.empty:
				n, err := r.Read(buf)
				in.filled <- piece{buf[:n], err}
				if err != nil {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return in
}

func (in *input) Read(p []byte) (int, error) {
	for len(in.now.data) == 0 && in.now.err == nil {
		if in.buf != nil {
			in.empty <- in.buf
			in.buf = nil
		}
		select {
		case in.now = <-in.filled:
			in.buf = in.now.data[:cap(in.now.data)]
		case <-in.ctx.Done():
			return 0, in.ctx.Err()
		}
	}
	if len(in.now.data) == 0 {
		return 0, in.now.err
	}
	n := copy(p, in.now.data)
	in.now.data = in.now.data[n:]
	return n, nil
}
