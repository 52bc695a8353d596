package raft

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is the time since the machine was started, also while it sleeps.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic("no boot time: " + err.Error()) // of a constant of every kernel since 2.6.39
	}
	return time.Duration(ts.Nano())
}
