package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ClientArg is the argument that makes the program a client; see the package
// documentation.
const ClientArg = "bench-client"

// request is one thing for the client to do and to measure. The protocol is
// JSON: request, response, request, … until its standard input ends.
type request struct {
	Op    string // one that serve knows
	Path  string
	From  string // the file to take from
	Size  int64  // bytes of the file
	Count int64  // operations
	Files int64  // in the directory
	Seed  uint64 // of the content, the choice of places, or the names
}

// done is what an operation did.
type done struct {
	Bytes, Ops int64   // one of them is 0
	P50, P99   float64 // seconds; see sample
	Note       string  // what a reader of the figure should know
}

type response struct {
	done
	Seconds, CPU float64
	Error        string // empty if it went well
}

// client is the running child process.
type client struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	send *json.Encoder
	recv *json.Decoder
	err  bytes.Buffer // its standard error; to be read after end
	end  func() error // ends it and returns how it ended
}

// waitDelay is how long the end of what a killed client has started is waited for.
const waitDelay = 5 * time.Second

// startClient starts command, by default this program. When ctx ends it is killed,
// and whatever it has started with it.
func startClient(ctx context.Context, command []string) (*client, error) {
	if len(command) == 0 {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		command = []string{self, ClientArg}
	}
	c := &client{cmd: exec.CommandContext(ctx, command[0], command[1:]...)}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.cmd.Cancel = func() error { return unix.Kill(-c.cmd.Process.Pid, unix.SIGKILL) }
	c.cmd.WaitDelay = waitDelay
	c.cmd.Stderr = &c.err
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.send, c.recv = json.NewEncoder(c.in), json.NewDecoder(out)
	c.end = sync.OnceValue(func() error { return errors.Join(c.in.Close(), c.cmd.Wait()) })
	return c, c.cmd.Start()
}

// do has the client do what req says.
func (c *client) do(req request) (response, error) {
	var resp response
	err := c.send.Encode(req)
	if err == nil {
		err = c.recv.Decode(&resp)
	}
	switch {
	case err != nil:
		err = errors.Join(err, c.end())
		return response{}, fmt.Errorf("client (does the program call ServeClient?): %w %s", err, bytes.TrimSpace(c.err.Bytes()))
	case resp.Error != "":
		return response{}, fmt.Errorf("client: %s %s: %s", req.Op, req.Path, resp.Error)
	}
	return resp, nil
}

// measure is do with its cost in both processes. The time is the client's, since
// passing the request is not part of it.
func (c *client) measure(req request) (sample, error) {
	var resp response
	s, err := measure(func() (err error) {
		resp, err = c.do(req)
		return err
	})
	if err != nil {
		return sample{}, err
	}
	s.bytes, s.ops, s.seconds = resp.Bytes, resp.Ops, resp.Seconds
	s.p50, s.note = resp.P50, resp.Note
	s.cpu += resp.CPU
	return s, nil
}

// ServeClient does what requests on in ask for and answers on out, until in ends.
// A program that was started with ClientArg calls it with its standard input and
// output, and exits.
func ServeClient(in io.Reader, out io.Writer) error {
	recv, send := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var req request
		if err := recv.Decode(&req); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := send.Encode(serve(req)); err != nil {
			return err
		}
	}
}

func serve(req request) response {
	op := operation(req.Op)
	if op == nil {
		return response{Error: "no such operation"}
	}
	var d done
	s, err := measure(func() (err error) {
		d, err = op(req)
		return err
	})
	if err != nil {
		return response{Error: err.Error()}
	}
	return response{done: d, Seconds: s.seconds, CPU: s.cpu}
}
