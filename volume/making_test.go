package volume

import (
	"math"
	"testing"

	"github.com/cairnfs/cairn/namespace"
)

// Rule 10: what is being created is not reaped, and does not keep what was removed
// before it began, however many creations follow each other without a pause.
func TestOnlyNumbersThatCreationsMayGetAreHeld(t *testing.T) {
	var m making
	if m.from() != math.MaxUint64 {
		t.Error("nothing is being created")
	}
	first, again, second := m.begin(5), m.begin(5), m.begin(9)
	for _, c := range []struct {
		end  func()
		want namespace.Ino
	}{{first, 5}, {again, 9}, {second, math.MaxUint64}} {
		c.end()
		if got := m.from(); got != c.want {
			t.Errorf("from %d, want %d", got, c.want)
		}
	}
}
