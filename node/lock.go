package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lockName is the file whose lock makes its holder the owner of the data
// directory. It says who that is: the process id, a line break, the command.
const lockName = "LOCK"

// InUseError says that another process has the store open.
type InUseError struct {
	Dir     string
	PID     int    // 0 if the holder has not said
	Command string // what the holder runs; may be empty
}

func (e *InUseError) Error() string {
	s := fmt.Sprintf("store %s is in use by ", e.Dir)
	if e.PID == 0 {
		return s + "another process"
	}
	s += fmt.Sprintf("process %d", e.PID)
	if e.Command != "" {
		s += " (" + e.Command + ")"
	}
	return s
}

// lock is the ownership of a data directory. It ends with the process.
type lock struct{ file *os.File }

// acquireLock makes this process the owner of dir, or fails with *InUseError.
// command is for those who find the directory in use.
func acquireLock(dir, command string) (*lock, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := readHolder(f)
		err = errors.Join(err, f.Close())
		if errors.Is(err, unix.EWOULDBLOCK) {
			holder.Dir = dir
			return nil, holder
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	text := fmt.Sprintf("%d\n%s\n", os.Getpid(), strings.ReplaceAll(command, "\n", " "))
	if err := errors.Join(f.Truncate(0), writeAt(f, text)); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
	}
	return &lock{f}, nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// maxHolder bounds what is read of a lock file.
const maxHolder = 4 << 10

// readHolder reads who holds the lock. Whoever has just taken it may not have
// written that yet.
func readHolder(f *os.File) *InUseError {
	buf := make([]byte, maxHolder)
	n, _ := f.ReadAt(buf, 0)
	pid, command, _ := strings.Cut(string(buf[:n]), "\n")
	holder := &InUseError{Command: strings.TrimSpace(command)}
	if id, err := strconv.Atoi(pid); err == nil && id > 0 {
		holder.PID = id
	}
	return holder
}

// release ends the ownership. The file stays: removing it would let two
// processes lock two files of the same name.
func (l *lock) release() error { return l.file.Close() }

// Holder returns who has the store in dir open, with PID 0 if nobody has.
func Holder(dir string) InUseError {
	f, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return InUseError{Dir: dir}
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return InUseError{Dir: dir} // the lock just taken ends with f
	}
	holder := readHolder(f)
	holder.Dir = dir
	return *holder
}
