//go:build !linux

package bench

import (
	"errors"

	"golang.org/x/sys/unix"
)

func dropCache(int) error { return errors.ErrUnsupported }

func adviseRandom(int) error { return errors.ErrUnsupported }

func datasync(fd int) error { return unix.Fsync(fd) }

func syncDisk(string) error { return unix.Sync() }
