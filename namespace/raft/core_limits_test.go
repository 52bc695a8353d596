package raft

import (
	"testing"
	"time"
)

// Rule 22: the election timeout is at least a second.
func TestAnElectionIsNotHeldBeforeASecondOfSilence(t *testing.T) {
	var o Options
	o.setDefaults()
	if d := electionTicks * o.Tick; d < time.Second {
		t.Errorf("an election after %v", d)
	}
}
