//go:build linux

package mount

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// locker is a process that opens files and locks them as it is told to. Locks
// belong to processes, and waiting for one must not hold up the process that
// serves the mount, so every test of locks is done by such processes.
type locker struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
	tid int // of the thread that makes the system calls
}

func startLocker(t *testing.T, dir string) *locker {
	t.Helper()
	l := &locker{t: t}
	l.cmd, l.in, l.out = startTalkingChild(t, "lock", dir)
	t.Cleanup(l.kill)
	if _, err := fmt.Sscan(l.do("tid"), &l.tid); err != nil {
		t.Fatal(err)
	}
	return l
}

// startLockers starts n of them.
func startLockers(t *testing.T, dir string, n int) (list []*locker) {
	t.Helper()
	for range n {
		list = append(list, startLocker(t, dir))
	}
	return list
}

// kill ends it by kill -9 and returns when it is gone.
func (l *locker) kill() {
	_ = l.cmd.Process.Kill()
	_ = l.cmd.Wait()
}

// do has it do something and returns what came of it: "ok", or the name of the
// error.
func (l *locker) do(command string) string {
	l.t.Helper()
	l.tell(command)
	return l.answer()
}

// want is do, and fails the test unless what came of it is as wanted.
func (l *locker) want(command, want string) {
	l.t.Helper()
	if got := l.do(command); got != want {
		l.t.Fatalf("%s: %s, want %s", command, got, want)
	}
}

// waits has it do something that must wait, and returns when it does.
func (l *locker) waits(command string) {
	l.t.Helper()
	l.tell("wait " + command)
	if got := l.answer(); got != "waiting" {
		l.t.Fatalf("%s: %s", command, got)
	}
	for {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/stat", l.cmd.Process.Pid, l.tid))
		ok(l.t, err)
		_, state, found := strings.Cut(string(stat), ") ")
		if found && (state[0] == 'S' || state[0] == 'D') {
			return
		}
		runtime.Gosched()
	}
}

func (l *locker) wantAnswer(want string) {
	l.t.Helper()
	if got := l.answer(); got != want {
		l.t.Fatalf("%s, want %s", got, want)
	}
}

func (l *locker) tell(command string) {
	l.t.Helper()
	_, err := fmt.Fprintln(l.in, command)
	ok(l.t, err)
}

func (l *locker) answer() string {
	l.t.Helper()
	line, err := l.out.ReadString('\n')
	if err != nil {
		l.t.Fatalf("the locker has ended: %v", err)
	}
	return strings.TrimSpace(line)
}

// lockAsTold is the life of a locker.
func lockAsTold(dir string) error {
	runtime.LockOSThread()
	if err := interruptible(unix.SIGUSR1); err != nil {
		return err
	}
	ready()
	p := lockerProcess{dir: dir, files: make(map[string]int)}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		command := in.Text()
		if rest, waits := strings.CutPrefix(command, "wait "); waits {
			fmt.Println("waiting")
			command = rest
		}
		answer, err := p.do(strings.Fields(command))
		var errno unix.Errno
		switch {
		case errors.As(err, &errno):
			answer = unix.ErrnoName(errno)
		case err != nil:
			answer = err.Error()
		case answer == "":
			answer = "ok"
		}
		fmt.Println(answer)
	}
	return nil
}

type lockerProcess struct {
	dir   string
	files map[string]int // descriptors by the names that the test gives them
	child *exec.Cmd      // has inherited a descriptor
	tie   io.Closer      // by which it lives
}

// do obeys:
//
//	open FD FILE r|rw        dup FD FD2       close FD
//	lock FD r|w START LEN    unlock FD START LEN    get FD r|w START LEN
//	ofd FD r|w START LEN     ofdget FD r|w START LEN
//	flock FD sh|ex|un
//	fork FD, unfork          a child inherits the descriptor, and ends
//
// With "!" after lock, ofd and flock the call waits. LEN 0 is up to the end.
func (p *lockerProcess) do(words []string) (string, error) {
	arg := func(i int) string {
		if i < len(words) {
			return words[i]
		}
		return ""
	}
	fd, known := p.files[arg(1)]
	switch verb, wait := strings.CutSuffix(arg(0), "!"); verb {
	case "tid":
		return fmt.Sprint(unix.Gettid()), nil
	case "open":
		flags := unix.O_RDONLY
		if arg(3) == "rw" {
			flags = unix.O_RDWR | unix.O_CREAT
		}
		fd, err := unix.Open(filepath.Join(p.dir, arg(2)), flags|unix.O_CLOEXEC, 0o644)
		p.files[arg(1)] = fd
		return "", err
	case "write":
		return "", os.WriteFile(filepath.Join(p.dir, arg(1)), []byte(arg(2)), 0o644)
	case "rename":
		return "", os.Rename(filepath.Join(p.dir, arg(1)), filepath.Join(p.dir, arg(2)))
	case "unlink":
		return "", unix.Unlink(filepath.Join(p.dir, arg(1)))
	case "unfork":
		return "", errors.Join(p.tie.Close(), p.child.Wait())
	default:
		if !known {
			return "", fmt.Errorf("no file %q to %s", arg(1), verb)
		}
		return p.doOn(fd, verb, wait, arg)
	}
}

func (p *lockerProcess) doOn(fd int, verb string, wait bool, arg func(int) string) (string, error) {
	choose := func(now, waiting int) int {
		if wait {
			return waiting
		}
		return now
	}
	switch verb {
	case "dup":
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		p.files[arg(2)] = dup
		return "", err
	case "close":
		delete(p.files, arg(1))
		return "", unix.Close(fd)
	case "fork":
		return "", p.fork(fd)
	case "lock":
		return lockRange(fd, choose(unix.F_SETLK, unix.F_SETLKW), arg(2), arg(3), arg(4))
	case "unlock":
		return lockRange(fd, unix.F_SETLK, "u", arg(2), arg(3))
	case "get":
		return lockRange(fd, unix.F_GETLK, arg(2), arg(3), arg(4))
	case "ofd":
		return lockRange(fd, choose(unix.F_OFD_SETLK, unix.F_OFD_SETLKW), arg(2), arg(3), arg(4))
	case "ofdget":
		return lockRange(fd, unix.F_OFD_GETLK, arg(2), arg(3), arg(4))
	case "flock":
		how := map[string]int{"sh": unix.LOCK_SH, "ex": unix.LOCK_EX, "un": unix.LOCK_UN}[arg(2)]
		return "", unix.Flock(fd, how|choose(unix.LOCK_NB, 0))
	}
	return "", fmt.Errorf("cannot %q", verb)
}

// lockRange calls fcntl(2). For a question the answer is "free", or kind, start
// and length of a lock and, for F_GETLK, whose it is. For F_OFD_GETLK the kernel
// says that on a local disk only.
func lockRange(fd, cmd int, kind, start, length string) (string, error) {
	lk := unix.Flock_t{Type: map[string]int16{"r": unix.F_RDLCK, "w": unix.F_WRLCK, "u": unix.F_UNLCK}[kind]}
	if _, err := fmt.Sscan(start+" "+length, &lk.Start, &lk.Len); err != nil {
		return "", err
	}
	err := unix.FcntlFlock(uintptr(fd), cmd, &lk)
	if err != nil || cmd != unix.F_GETLK && cmd != unix.F_OFD_GETLK {
		return "", err
	}
	switch lk.Type {
	case unix.F_UNLCK:
		return "free", nil
	case unix.F_RDLCK:
		kind = "r"
	default:
		kind = "w"
	}
	answer := fmt.Sprint(kind, " ", lk.Start, " ", lk.Len)
	if cmd == unix.F_GETLK {
		answer += fmt.Sprint(" of ", lk.Pid)
	}
	return answer, nil
}

// fork starts a child that has fd as well, until unfork.
func (p *lockerProcess) fork(fd int) error {
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	inherited := os.NewFile(uintptr(dup), "inherited")
	defer inherited.Close()
	p.child = exec.Command("cat")
	p.child.ExtraFiles = []*os.File{inherited}
	if p.tie, err = p.child.StdinPipe(); err != nil {
		return err
	}
	return p.child.Start()
}

// interruptible makes sig end a system call that waits, with EINTR. Go itself
// installs its handlers so that calls go on.
func interruptible(sig unix.Signal) error {
	signal.Notify(make(chan os.Signal, 1), sig)
	var action struct {
		handler, flags, restorer uintptr
		mask                     uint64
	}
	const restart, maskSize = 0x10000000, 8 // SA_RESTART
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&action)), maskSize, 0, 0); errno != 0 {
		return errno
	}
	action.flags &^= restart
	if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&action)), 0, maskSize, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
