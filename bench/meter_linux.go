package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
)

// resetPeakRSS makes the kernel forget how much memory the process had (proc(5),
// clear_refs).
func resetPeakRSS() error { return resetPeakRSSOf(os.Getpid()) }

// resetPeakRSSOf is resetPeakRSS of another process.
func resetPeakRSSOf(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0)
}

// peakRSS returns the most memory that the process has had since, in bytes.
func peakRSS() (int64, error) { return peakRSSOf(os.Getpid()) }

// peakRSSOf is peakRSS of another process.
func peakRSSOf(pid int) (int64, error) {
	name := fmt.Sprintf("/proc/%d/status", pid)
	status, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(status) {
		// VmHWM:	   12345 kB
		if f := bytes.Fields(line); len(f) == 3 && string(f[0]) == "VmHWM:" {
			kib, err := strconv.ParseInt(string(f[1]), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s: no line VmHWM", name)
}

// cpuSecondsOf returns the user and system time so far of another process, in steps
// of 10 ms.
func cpuSecondsOf(pid int) (float64, error) {
	const ticks = 100 // a second, on every machine that Go runs on
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name of the program, in parentheses, may contain anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const utime, stime = 11, 12
	if len(fields) <= stime {
		return 0, fmt.Errorf("process %d: %q", pid, stat)
	}
	user, userErr := strconv.ParseUint(string(fields[utime]), 10, 64)
	system, systemErr := strconv.ParseUint(string(fields[stime]), 10, 64)
	return float64(user+system) / ticks, errors.Join(userErr, systemErr)
}
