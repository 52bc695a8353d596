package volume

import "testing"

// What was read before all pages were dropped is gone; what is read while they are may
// have come after.
func TestWhatIsReadWhilePagesAreDroppedMayBeThere(t *testing.T) {
	var r refill
	r.begin()
	r.reading(0, 10)
	r.end()
	if !r.written(5, 1) {
		t.Error("what was read while pages were dropped is not there")
	}
	r.begin()
	r.reading(0, 10)
	r.begin()
	r.end()
	r.end()
	if !r.written(5, 1) {
		t.Error("what was read since the first of two that drop at once is not there")
	}
	r.begin()
	r.end()
	r.reading(0, 10)
	r.begin()
	r.reading(100, 10)
	r.end()
	if r.written(5, 1) {
		t.Error("what was dropped since is there")
	}
}

// Ranges beyond the limit count as one with those between.
func TestRangesThatWereReadAreForgottenByNobody(t *testing.T) {
	for _, n := range []int64{1, maxByteRanges, maxByteRanges + 1, 3 * maxByteRanges} {
		for i := range n {
			var r refill
			r.drops()
			for j := range n {
				r.reading(j*100, 10)
			}
			if !r.written(i*100+5, 1) {
				t.Errorf("range %d of %d is forgotten", i, n)
			}
		}
	}
	var r refill
	r.drops()
	for j := range int64(maxByteRanges) {
		r.reading(j*100, 10)
	}
	if len(r.read) != maxByteRanges || r.written(50, 40) {
		t.Error("what lies between is taken for read")
	}
}
