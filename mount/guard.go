//go:build linux

package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
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
	if len(args) != 2 || strings.Trim(args[0], "0123456789") != "" || args[0] == "" {
		return errors.New("guard of a mount: no connection")
	}
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
	return abort(args[0], args[1])
}

// abort ends the connection with the given number, which is mounted on path.
func abort(number, path string) error {
	m, mounted := mountAt(path)
	if mounted && m.device != "0:"+number {
		return nil // another one by now
	}
	err := os.WriteFile("/sys/fs/fuse/connections/"+number+"/abort", []byte("1"), 0)
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// It has ended by itself, or there is no such directory: then only root can.
	if !mounted {
		return nil
	}
	err = unix.Unmount(path, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, syscall.EBUSY) {
		return nil // it is in use, but answers every call with an error
	}
	return err
}
