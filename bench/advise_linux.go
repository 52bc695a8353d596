package bench

import (
	"errors"

	"golang.org/x/sys/unix"
)

// dropCache makes the kernel forget what it has cached of a file that is not
// dirty.
func dropCache(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) }

// adviseRandom turns read-ahead off.
func adviseRandom(fd int) error { return unix.Fadvise(fd, 0, 0, unix.FADV_RANDOM) }

func datasync(fd int) error { return unix.Fdatasync(fd) }

// syncDisk writes what the file system of dir has not written yet.
func syncDisk(dir string) error {
	f, err := openRaw(dir, unix.O_RDONLY)
	if err != nil {
		return err
	}
	return errors.Join(f.fail("syncfs", unix.Syncfs(f.fd)), f.Close())
}
