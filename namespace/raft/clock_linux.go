package raft

import (
	"time"

	"golang.org/x/sys/unix"
)

// newClock returns the time since the machine was started, also while it sleeps.
func newClock() func() time.Duration {
	return func() time.Duration {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
			panic("no boot time: " + err.Error()) // every kernel since 2.6.39 has it
		}
		return time.Duration(ts.Nano())
	}
}
