//go:build !linux

package bench

import "golang.org/x/sys/unix"

// resetPeakRSS does nothing: outside Linux the highest figure since the start of
// the process is all there is.
func resetPeakRSS() error { return nil }

func peakRSS() (int64, error) {
	var u unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_SELF, &u)
	return int64(u.Maxrss), err
}
