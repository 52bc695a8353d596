package cmd

import (
	"os"

	"golang.org/x/sys/unix"
)

// duplicate makes the file descriptor fd refer to f.
func duplicate(f *os.File, fd int) error { return unix.Dup3(int(f.Fd()), fd, 0) }
