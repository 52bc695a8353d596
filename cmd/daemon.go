package cmd

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// A daemon is this program started again in a session of its own. It inherits a
// pipe on which it writes the line "mounted PATH" when the mount is ready, and
// until then the terminal's stderr, so that it can say itself why it fails.

// The hidden flags of mount: the number of the pipe's file descriptor, and what
// the mount is to show as its device.
const (
	readyFlag  = "ready-fd"
	sourceFlag = "source"
)

// The log of a daemon, in the data directory. When a daemon starts and finds it
// larger than maxLog, the old one is kept beside it.
const (
	logName = "cairn.log"
	maxLog  = 16 << 20
)

// exitError is the end of another process, which has said why.
type exitError struct{ code int }

func (e *exitError) Error() string { return "" }

// startDaemon starts the daemon and returns when it is ready or has failed.
func (m *mounter) startDaemon(ctx context.Context) error {
	exe, err := os.Executable()
	if err != nil {
		return errors.Join(errNoDaemon, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return errors.Join(errNoDaemon, err)
	}
	defer r.Close()
	child := exec.Command(exe, m.daemonArgs()...)
	child.Args[0] = programName // whatever the file is called
	child.Dir = "/"             // so that no other file system is kept in use
	child.Stderr = os.Stderr
	child.ExtraFiles = []*os.File{w} // number 3
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = child.Start()
	if err = errors.Join(err, w.Close()); err != nil {
		return errors.Join(errNoDaemon, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = child.Process.Signal(syscall.SIGTERM) })
	defer stop()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err == nil {
		_, err = io.WriteString(m.Out, line)
		return errors.Join(err, child.Process.Release())
	}
	err = child.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return &exitError{exit.ExitCode()}
	}
	return errors.Join(errors.New("daemon ended before the mount was ready"), err)
}

// daemonArgs returns the arguments that make the daemon do what this process was
// asked for.
func (m *mounter) daemonArgs() []string {
	args := []string{"mount", "--dir", m.dir, "--" + readyFlag, "3", "--log-level", m.logLevel, "-o", m.options.String()}
	if m.options.Source != "" {
		args = append(args, "--"+sourceFlag, m.options.Source)
	}
	if m.reserve > 0 {
		args = append(args, "--reserve", strconv.FormatInt(int64(m.reserve), 10))
	}
	return slices.Concat(args, m.online.args(), []string{"--", m.options.Mountpoint})
}

// moveToLog turns standard input, output and error of this process, whatever
// writes to them, from the terminal to the log.
func (m *mounter) moveToLog() error {
	path := filepath.Join(m.dir, logName)
	if info, err := os.Stat(path); err == nil && info.Size() > maxLog {
		if err := os.Rename(path, path+".old"); err != nil {
			return err
		}
	}
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	return errors.Join(
		duplicate(null, int(os.Stdin.Fd())),
		duplicate(log, int(os.Stdout.Fd())),
		duplicate(log, int(os.Stderr.Fd())))
}
