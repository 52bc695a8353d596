package bench

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// resetPeakRSS makes the kernel forget how much memory the process had (proc(5),
// clear_refs).
func resetPeakRSS() error {
	return os.WriteFile("/proc/self/clear_refs", []byte("5"), 0)
}

// peakRSS returns the most memory that the process has had since, in bytes.
func peakRSS() (int64, error) {
	const name = "/proc/self/status"
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
