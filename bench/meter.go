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
	p50        float64 // seconds that half of the operations do not exceed; 0 if they were not timed one by one
	p99        float64 // seconds that 99 of 100 operations do not exceed, likewise
	wire       int64   // bytes that nodes have sent one another
	stored     int64   // bytes that nodes have stored
	note       string
}

// each returns the seconds per byte or operation, those of the median if it is
// known.
func (s sample) each() float64 {
	if s.p50 > 0 {
		return s.p50
	}
	return s.seconds / float64(s.bytes+s.ops)
}

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

// cpuSeconds returns the user and system time so far of this process and of those
// of its children that have ended.
func cpuSeconds() float64 {
	total := int64(0)
	for _, who := range [...]int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		// It fails for a wrong address or an unknown selector only.
		_ = unix.Getrusage(who, &u)
		total += u.Utime.Nano() + u.Stime.Nano()
	}
	return float64(total) / 1e9
}
