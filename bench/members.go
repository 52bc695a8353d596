package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairnfs/cairn/mount"
	"github.com/cairnfs/cairn/node/control"
)

// How long nodes may take to do what they are started for.
const (
	startTime  = 60 * time.Second // to mount, or to join
	groupTime  = 90 * time.Second // all of them together to take part in ordering changes
	settleTime = 60 * time.Second // to copy what was written
	pollPause  = 20 * time.Millisecond
)

// anyPort is where nodes listen.
const anyPort = "127.0.0.1:0"

// member is a process of this program that serves a mount.
type member struct {
	name  string
	store string // its data directory
	dir   string // its mount point
	cmd   *exec.Cmd
	ctl   *control.Client
	ended bool
}

// program returns a command that runs this program as a node.
func (r *rig) program(ctx context.Context, name string, args ...string) (*exec.Cmd, error) {
	program := r.o.Program
	if program == "" {
		var err error
		if program, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, program, args...)
	// What the terminal sends is for this process, which ends the others in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	log, err := os.OpenFile(r.logOf(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	cmd.Stderr = log
	r.atEnd(log.Close)
	return cmd, nil
}

func (r *rig) logOf(name string) string { return filepath.Join(r.dir, name+".log") }

// failedNode adds what a node has said last to the error of starting it.
func (r *rig) failedNode(name string, err error) error {
	const tail = 1 << 10
	said, _ := os.ReadFile(r.logOf(name)) // it is an explanation at best
	said = said[max(0, len(said)-tail):]
	return fmt.Errorf("%s: %w %s", name, err, bytes.TrimSpace(said))
}

// startMember starts a node, which joins with the token if it is not empty, and
// returns when it has mounted. close of the rig ends it.
func (r *rig) startMember(ctx context.Context, name, token string) (_ *member, err error) {
	m := &member{name: name, store: filepath.Join(r.dir, name), dir: filepath.Join(r.dir, name+"-mount")}
	defer func() {
		if err != nil {
			err = r.failedNode(name, err)
		}
	}()
	starting, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	if token != "" {
		join, err := r.program(starting, name, "join", "--dir", m.store, "--listen", anyPort, "--name", name, "-")
		if err != nil {
			return nil, err
		}
		join.Stdin = strings.NewReader(token)
		if err := join.Run(); err != nil {
			return nil, fmt.Errorf("join: %w", err)
		}
	}
	// Not ended with ctx, but by close, which has to unmount as well.
	args := []string{"mount", "--dir", m.store, "--listen", anyPort, "--name", name, "--log-level", "error", "--", m.dir}
	if m.cmd, err = r.program(context.WithoutCancel(ctx), name, args...); err != nil {
		return nil, err
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	r.atEnd(m.end)
	if err := awaitLine(starting, out, "mounted "); err != nil {
		return nil, err
	}
	m.ctl, err = control.Dial(ctx, m.store)
	return m, err
}

// awaitLine waits for a line that begins so.
func awaitLine(ctx context.Context, from io.Reader, prefix string) error {
	found := make(chan error, 1)
	go func() {
		line, err := bufio.NewReader(from).ReadString('\n')
		if err == nil && !strings.HasPrefix(line, prefix) {
			err = fmt.Errorf("said %q instead of %q", line, prefix)
		}
		found <- err
	}()
	select {
	case err := <-found:
		return err
	case <-ctx.Done():
		return ctx.Err() // close of the rig ends the process, and so the goroutine
	}
}

// end kills the node, of whose files nothing is kept, and unmounts what it leaves.
func (m *member) end() error {
	err := m.kill()
	if m.ctl != nil {
		err = errors.Join(err, m.ctl.Close())
	}
	if unmountErr := mount.Unmount(m.dir, true); unmountErr != nil && isMounted(m.dir) {
		err = errors.Join(err, unmountErr)
	}
	return err
}

// kill ends the process at once and waits for its end.
func (m *member) kill() error {
	if m.ended {
		return nil
	}
	m.ended = true
	err := m.cmd.Process.Kill()
	var exit *exec.ExitError
	if waitErr := m.cmd.Wait(); !errors.As(waitErr, &exit) {
		err = errors.Join(err, waitErr)
	}
	return err
}

// isMounted reports whether a directory is another file system than its parent, or
// one whose server is gone.
func isMounted(dir string) bool {
	var own, parent unix.Stat_t
	if err := unix.Stat(dir, &own); err != nil {
		return !errors.Is(err, unix.ENOENT)
	}
	return unix.Stat(filepath.Dir(dir), &parent) == nil && own.Dev != parent.Dev
}

// cpuOf returns the processor time of all.
func cpuOf(ms []*member) (float64, error) {
	total := 0.0
	for _, m := range ms {
		cpu, err := cpuSecondsOf(m.cmd.Process.Pid)
		if err != nil {
			return 0, err
		}
		total += cpu
	}
	return total, nil
}

// movedBy returns the bytes that all have sent to others, and what they have stored. A
// node that belongs to no cluster sends nothing.
func movedBy(ctx context.Context, ms []*member) (sent, stored int64, err error) {
	for _, m := range ms {
		s, err := m.ctl.Status(ctx)
		if err != nil {
			return 0, 0, err
		}
		if s.Node != nil {
			sent += s.Node.SentBytes
		}
		stored += s.Store.StoredBytes
	}
	return sent, stored, nil
}

// poll calls ready until it says yes.
func poll(ctx context.Context, limit time.Duration, what string, ready func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("waited %v in vain for %s", limit, what))
	defer cancel()
	for {
		ok, err := ready(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pollPause):
		}
	}
}
