//go:build !linux

package bench

import (
	"errors"

	"golang.org/x/sys/unix"
)

// resetPeakRSS does nothing: outside Linux the highest figure since the start of
// the process is all there is.
func resetPeakRSS() error { return nil }

func peakRSS() (int64, error) {
	var u unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_SELF, &u)
	return int64(u.Maxrss), err
}

// Of other processes nothing is known outside Linux, where there are no mounts either.

func resetPeakRSSOf(int) error { return errors.ErrUnsupported }

func peakRSSOf(int) (int64, error) { return 0, errors.ErrUnsupported }

func cpuSecondsOf(int) (float64, error) { return 0, errors.ErrUnsupported }
