package volume

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/cairnfs/cairn/index/journal"
)

// model is a map of written bytes, one by one.
type model struct {
	bytes   [400]byte
	written [400]bool
}

func (m *model) write(p []byte, off int64) {
	copy(m.bytes[off:], p)
	for i := range p {
		m.written[off+int64(i)] = true
	}
}

func (m *model) clear(from, to int64) {
	for i := from; i < to; i++ {
		m.written[i] = false
	}
}

// TestExtentsHoldExactlyWhatWasWritten applies random writes and cuts to an
// extent map and to one byte at a time. Extents with a record are never changed
// in place: their bytes are compared with what was recorded.
func TestExtentsHoldExactlyWhatWasWritten(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		var (
			m        extents
			want     model
			records  = make(map[journal.Seq][]byte)
			lastSeq  journal.Seq
			fileSize = int64(len(want.bytes))
		)
		for range 200 {
			off := rnd.Int64N(fileSize)
			n := rnd.Int64N(min(40, fileSize-off)) + 1
			switch rnd.IntN(6) {
			case 0:
				m.clear(off, off+n)
				want.clear(off, off+n)
			case 1: // record all that is loose
				for _, e := range m.all() {
					if e.seq == 0 {
						lastSeq++
						records[lastSeq] = bytes.Clone(e.mem)
						m.remove(e)
						e.seq, e.pos = lastSeq, 0
						m.add(e)
					}
				}
			default:
				p := make([]byte, n)
				for i := range p {
					p[i] = byte(rnd.Uint32())
				}
				m.write(p, off)
				want.write(p, off)
			}
			check(t, seed, &m, &want, records)
		}
	}
}

func check(t *testing.T, seed uint64, m *extents, want *model, records map[journal.Seq][]byte) {
	t.Helper()
	var covered [400]bool
	var mem, all, loose, end int64
	for _, e := range m.all() {
		if e.off < end || e.n <= 0 {
			t.Fatalf("seed %d: extent [%d,%d) after one that ends at %d", seed, e.off, e.end(), end)
		}
		end = e.end()
		if !bytes.Equal(e.mem, want.bytes[e.off:e.end()]) {
			t.Fatalf("seed %d: wrong bytes in [%d,%d)", seed, e.off, e.end())
		}
		if e.seq != 0 && !bytes.Equal(records[e.seq][e.pos:e.pos+e.n], e.mem) {
			t.Fatalf("seed %d: [%d,%d) differs from its record", seed, e.off, e.end())
		}
		for i := e.off; i < e.end(); i++ {
			covered[i] = true
		}
		mem, all = mem+int64(cap(e.mem)), all+e.n
		if e.seq == 0 {
			loose += e.n
		}
	}
	if covered != want.written {
		t.Fatalf("seed %d: the wrong bytes are covered", seed)
	}
	if mem != m.mem || all != m.bytes || loose != m.loose {
		t.Fatalf("seed %d: counts are %d %d %d, want %d %d %d", seed, m.mem, m.bytes, m.loose, mem, all, loose)
	}
}

// TestOlderExtentsComeBackBeneathNewerOnes is what happens when moving bytes
// down fails.
func TestOlderExtentsComeBackBeneathNewerOnes(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var lower, upper extents
		var want model
		fill := func(m *extents) {
			for range rnd.IntN(8) {
				p := bytes.Repeat([]byte{byte(rnd.Uint32())}, rnd.IntN(50)+1)
				off := rnd.Int64N(int64(len(want.bytes) - len(p)))
				m.write(p, off)
				want.write(p, off)
			}
		}
		fill(&lower)
		fill(&upper)
		upper.under(&lower)
		check(t, seed, &upper, &want, nil)
	}
}

func TestRunEndsAtTheFirstGap(t *testing.T) {
	var m extents
	m.write([]byte("abc"), 10)
	m.put(extent{off: 13, n: 2, mem: []byte("de"), seq: 7})
	m.write([]byte("f"), 16)
	if run := m.run(10); len(run) != 2 || run[1].end() != 15 {
		t.Errorf("run from 10: %v", run)
	}
	if run := m.run(11); len(run) != 0 {
		t.Errorf("run from the middle of an extent: %v", run)
	}
	if m.oldest() != 7 {
		t.Errorf("oldest record is %d", m.oldest())
	}
}

func TestManySmallAppendsAreOneExtent(t *testing.T) {
	var m extents
	for i := range 1000 {
		m.write([]byte("0123456789"), int64(10*i))
	}
	if n := m.byEnd.Len(); n != 1 {
		t.Errorf("1000 appends made %d extents", n)
	}
}
