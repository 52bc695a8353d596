//go:build linux

package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A process that is killed while one of its threads tells the kernel of a changed
// name may never end: that thread waits for the lock of the directory, which a
// program holds that waits for an answer of this process, and as long as there is
// the thread the kernel believes that there will be one. Only whoever aborts the
// connection frees them all. So a mount has a guard: a process that the kernel
// signals when the mount's has been killed, and that does just that.

// guard is the guard's end of the mount.
type guard struct {
	quit  io.WriteCloser
	ended chan struct{}
}

// guardReady is what a guard prints when it is one.
const guardReady = "ready\n"

// startGuard starts program as the guard of the mount at path and returns when it is
// one.
func startGuard(program, path string) (*guard, error) {
	m, ok := mountAt(path)
	if !ok {
		return nil, ErrNotMounted
	}
	_, minor, ok := strings.Cut(m.device, ":")
	if !ok {
		return nil, fmt.Errorf("device %q of a mount", m.device)
	}
	cmd := exec.Command(program, GuardArg, minor, path)
	cmd.Dir = "/"
	// A session of its own: what ends this process in order is not for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
	quit, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, quit.Close())
	}
	g := &guard{quit: quit, ended: make(chan struct{})}
	started := make(chan error)
	go func() {
		defer close(g.ended)
		// The signal comes when the thread ends that started the guard, so
		// this one stays until the guard has gone.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			// Before it listens to signals, one would end it.
			_, err = io.ReadFull(out, make([]byte, len(guardReady)))
			err = errors.Join(err, out.Close())
		}
		started <- err
		if cmd.Process != nil {
			_ = cmd.Wait() // it has nothing to say
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(err, quit.Close())
	}
	return g, nil
}

// dismiss ends the guard: the mount has ended in order.
func (g *guard) dismiss() {
	_, _ = io.WriteString(g.quit, "quit")
	_ = g.quit.Close() // it may have been killed
	<-g.ended
}

// RunGuard is a guard's life; args are those after GuardArg, in and out its standard
// input and output. It returns when the mount has ended, in order or not.
func RunGuard(args []string, in io.Reader, out io.Writer) error {
	return runGuard("/sys/fs/fuse/connections", args, in, out)
}

// runGuard is RunGuard where the kernel's file system of FUSE connections, if it is
// mounted, is at control.
func runGuard(control string, args []string, in io.Reader, out io.Writer) error {
	if len(args) != 2 || strings.Trim(args[0], "0123456789") != "" || args[0] == "" {
		return errors.New("guard of a mount: no connection")
	}
	c, err := openConnection(control, args[0], args[1])
	if err != nil {
		return err
	}
	defer c.close()
	killed := make(chan os.Signal, 1)
	signal.Notify(killed, syscall.SIGTERM)
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	if _, err := io.WriteString(out, guardReady); err != nil {
		return err
	}
	dismissed := make(chan bool, 1)
	go func() {
		text, _ := io.ReadAll(io.LimitReader(in, 16))
		dismissed <- string(text) == "quit"
	}()
	select {
	case <-killed:
	case inOrder := <-dismissed:
		if inOrder {
			return nil
		}
	}
	return c.abort()
}

// connection is what the kernel has for a mount.
type connection struct {
	device, path string
	// ends ends it, whatever is written there; nil: only who may unmount can. The file
	// is open from when there is the connection, since afterwards the kernel gives
	// its number to another one, maybe of another program.
	ends *os.File
}

// openConnection returns the connection with the given number, mounted on path.
func openConnection(control, number, path string) (*connection, error) {
	ends, err := os.OpenFile(filepath.Join(control, number, "abort"), os.O_WRONLY, 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
		return nil, err
	}
	return &connection{device: "0:" + number, path: path, ends: ends}, nil
}

func (c *connection) close() {
	if c.ends != nil {
		_ = c.ends.Close() // nothing is left to be written
	}
}

// abort ends the connection, if there still is one.
func (c *connection) abort() error {
	if c.ends != nil {
		_, err := c.ends.WriteString("1")
		return err
	}
	if m, mounted := mountAt(c.path); !mounted || m.device != c.device {
		return nil // it has ended by itself
	}
	err := unix.Unmount(c.path, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, syscall.EBUSY) {
		return nil // it is in use, but answers every call with an error
	}
	return err
}
