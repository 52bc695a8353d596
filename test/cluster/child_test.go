//go:build linux

package cluster

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Processes of their own are this binary again, told by its environment what to do.
const childVar = "CAIRN_CLUSTER_CHILD"

// child does the work of a process that a test has started, and exits; in any other
// process it does nothing.
func child() {
	order, isChild := os.LookupEnv(childVar)
	if !isChild {
		return
	}
	words := strings.Split(order, "\t")
	var err error
	switch words[0] {
	case "count":
		times, _ := strconv.Atoi(words[3]) // 0 does nothing, which the test notices
		err = count(words[1], words[2], times)
	case "cross":
		err = cross(words[1], words[2], words[3])
	default:
		err = fmt.Errorf("there is no child %q", words[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// startChild starts a process that does something; its result comes later.
func startChild(t testing.TB, words ...string) func() error {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), self)
	c.Env = append(os.Environ(), childVar+"="+strings.Join(words, "\t"))
	done := make(chan error, 1)
	go func() {
		out, err := c.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%v: %w: %s", words, err, out)
		}
		done <- err
	}()
	return func() error { return <-done }
}

// lock takes or drops the lock of a file, of one of the kinds there are.
func lock(f *os.File, kind string, how int16) error {
	for {
		err := tryLock(f, kind, how)
		if err != syscall.EINTR {
			return err
		}
	}
}

func tryLock(f *os.File, kind string, how int16) error {
	if kind == "flock" {
		flock := map[int16]int{unix.F_WRLCK: unix.LOCK_EX, unix.F_RDLCK: unix.LOCK_SH, unix.F_UNLCK: unix.LOCK_UN}
		return unix.Flock(int(f.Fd()), flock[how])
	}
	cmd := map[string]int{"fcntl": unix.F_SETLKW, "ofd": unix.F_OFD_SETLKW}[kind]
	return unix.FcntlFlock(f.Fd(), cmd, &unix.Flock_t{Type: how, Whence: io.SeekStart})
}

// count adds 1 to the number in a file, so many times, each under a lock. The file
// stays open: the lock is what makes others' numbers visible.
func count(path, kind string, times int) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for range times {
		if err := lock(f, kind, unix.F_WRLCK); err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		buf := make([]byte, 32)
		n, err := f.ReadAt(buf, 0)
		if err != nil && err != io.EOF {
			return err
		}
		number, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(fmt.Appendf(nil, "%8d\n", number+1), 0); err != nil {
			return err
		}
		if err := lock(f, kind, unix.F_UNLCK); err != nil {
			return fmt.Errorf("unlock: %w", err)
		}
		time.Sleep(time.Millisecond) // so that the others get their turn
	}
	return f.Close()
}

// deadlockTime is when a process has been told of a deadlock, at the latest. On a machine
// that does little else it takes 0.2 to 0.3 s.
const deadlockTime = 5 * time.Second

// cross locks one byte of a file, and when another process has locked another one, that
// as well.
func cross(path, mine, other string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	lockByte := func(at string) error {
		start, err := strconv.ParseInt(at, 10, 64)
		if err != nil {
			return err
		}
		return unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: start, Len: 1})
	}
	if err := lockByte(mine); err != nil {
		return fmt.Errorf("lock %s: %w", mine, err)
	}
	if err := os.WriteFile(path+".locked-"+mine, nil, 0o644); err != nil {
		return err
	}
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		f, err := os.Open(path + ".locked-" + other)
		if err == nil {
			f.Close()
			break
		}
		if time.Since(start) > callTime {
			return fmt.Errorf("the other process has not locked %s: %w", other, err)
		}
	}
	begun := time.Now()
	err = lockByte(other)
	switch took := since(begun); {
	case err != nil && took > deadlockTime:
		return fmt.Errorf("lock %s: told only after %v: %s", other, took, "that would be a deadlock")
	case err != nil:
		return fmt.Errorf("lock %s: after %v: %w", other, took, err)
	}
	return nil
}
