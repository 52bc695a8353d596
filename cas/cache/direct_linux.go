//go:build linux

package cache

import (
	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// setDirect has writes to a file go to the disk without a copy in the kernel's memory,
// if its file system can.
func setDirect(f vfs.File) error {
	fd := f.Fd()
	if fd == vfs.InvalidFd {
		return unix.EINVAL
	}
	flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0)
	if err != nil {
		return err
	}
	_, err = unix.FcntlInt(fd, unix.F_SETFL, flags|unix.O_DIRECT)
	return err
}
