package bench

import (
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

// sample is what one run of a measurement took.
type sample struct {
	bytes, ops int64 // one of them is 0
	seconds    float64
	cpu        float64 // seconds of this process and the client
	rss        int64   // bytes, highest of this process
}

// each returns the seconds per byte or operation.
func (s sample) each() float64 { return s.seconds / float64(s.bytes+s.ops) }

// measure runs f and says what it took. Bytes and ops are the caller's to set.
func measure(f func() error) (sample, error) {
	// Memory that earlier measurements have left behind must not count.
	debug.FreeOSMemory()
	if err := resetPeakRSS(); err != nil {
		return sample{}, err
	}
	cpu, start := cpuSeconds(), time.Now()
	if err := f(); err != nil {
		return sample{}, err
	}
	s := sample{seconds: time.Since(start).Seconds(), cpu: cpuSeconds() - cpu}
	var err error
	s.rss, err = peakRSS()
	return s, err
}

// cpuSeconds returns the user and system time of this process so far.
func cpuSeconds() float64 {
	var u unix.Rusage
	// It fails for a wrong address or an unknown selector only.
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
