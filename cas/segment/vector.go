package segment

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeVector writes the pieces one after the other at the given offset of a file.
func writeVector(fd uintptr, pieces [][]byte, offset int64) error {
	for len(pieces) > 0 {
		n, err := unix.Pwritev(int(fd), pieces, offset)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("pwritev", err)
		}
		offset += int64(n)
		for len(pieces) > 0 && n >= len(pieces[0]) {
			n -= len(pieces[0])
			pieces = pieces[1:]
		}
		if n > 0 {
			pieces[0] = pieces[0][n:]
		}
	}
	return nil
}
