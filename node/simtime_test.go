//go:build simulation

package node

import (
	"testing"
	"testing/synctest"
	_ "unsafe" // for go:linkname
)

// Time in a simulation goes on when all goroutines wait (testing/synctest). Who waits
// for a mutex does not count there, since its holder may be outside. Here it must: a
// file is locked while a majority is waited for, and others want that file meanwhile.
// Nobody outside holds a mutex of the simulation, so the runtime is told that those
// who wait for one wait for time, too. That takes a reference which the linker
// refuses unless it is called with -checklinkname=0, and fails to link, or below,
// with a runtime that calls things otherwise.

//go:linkname isIdleInSynctest runtime.isIdleInSynctest
var isIdleInSynctest [64]bool

//go:linkname waitReasonStrings runtime.waitReasonStrings
var waitReasonStrings [64]string

// inVirtualTime runs fn where waiting takes no time.
func inVirtualTime(t *testing.T, fn func(*testing.T)) {
	missing := map[string]bool{"sync.Mutex.Lock": true, "sync.RWMutex.RLock": true, "sync.RWMutex.Lock": true}
	for i := 0; len(missing) > 0; i++ {
		if i == 40 { // the runtime has some more
			t.Fatalf("this version of Go does not know %v", missing)
		}
		if why := waitReasonStrings[i]; missing[why] {
			isIdleInSynctest[i] = true
			delete(missing, why)
		}
	}
	synctest.Test(t, fn)
}
