package segment

import (
	"sync"

	"github.com/cairnfs/cairn/index"
)

// The table holds the blocks that are appended but not yet in the index, together
// with the end of what was appended, which changes with it: at any moment, every
// block before the end is in the table or in the index.
//
// Entries are added to one half. To retire them, the halves change roles, and when
// the entries of the old half are in the index, it is emptied. Its size is
// bounded: at so many fresh blocks or bytes the halves change, and if the other
// half is still not empty then, or at twice as many, Put waits.
const (
	maxFreshBlocks = 16 << 10
	maxFreshBytes  = 64 << 20
)

// maxSuspects bounds the blocks remembered as damaged.
const maxSuspects = 4096

// slot is a block in the table. was is the location that the index has for it, and
// that turned out to be damaged; it is zero for a block that is new.
type slot struct{ at, was index.Location }

type table struct {
	mu       sync.RWMutex
	end      uint64 // mark
	fresh    map[index.Hash]slot
	retiring map[index.Hash]slot
	bytes    int64  // of the records in fresh
	maxBytes int64  // of them
	turned   uint64 // end when the halves changed roles
	epoch    uint64 // how often a half has been emptied
	room     chan struct{}

	// gone are blocks that Delete is taking out of the index: whatever that
	// says of them, they are not held.
	gone map[index.Hash]struct{}

	// suspects are blocks that Get found damaged, and where. Put stores them
	// again.
	suspects map[index.Hash]index.Location
}

func (t *table) init(maxBytes int64) {
	if t.maxBytes = maxBytes; maxBytes == 0 {
		t.maxBytes = maxFreshBytes
	}
	t.fresh = make(map[index.Hash]slot)
	t.retiring = make(map[index.Hash]slot)
	t.gone = make(map[index.Hash]struct{})
	t.suspects = make(map[index.Hash]index.Location)
	t.room = make(chan struct{})
}

func (t *table) mark() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.end
}

func (t *table) setMark(end uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = end
}

// whereabouts is what the table knows of a block.
type whereabouts int

const (
	unknown whereabouts = iota // the index knows
	inTable
	deleted // whatever the index says
)

// find returns where the block lies if it is in the table. The epoch tells a later
// find whether the block may have left the table since, or the store.
func (t *table) find(hash *index.Hash) (at index.Location, where whereabouts, epoch uint64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	in, ok := t.fresh[*hash]
	if !ok && len(t.retiring) > 0 {
		in, ok = t.retiring[*hash]
	}
	if ok {
		return in.at, inTable, t.epoch
	}
	if len(t.gone) > 0 {
		if _, gone := t.gone[*hash]; gone {
			return in.at, deleted, t.epoch
		}
	}
	return in.at, unknown, t.epoch
}

// add enters records that were written one after the other from the given offset.
func (t *table) add(records []record, segment uint32, offset int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range records {
		r := &records[i]
		was := r.was
		if was != (index.Location{}) {
			delete(t.suspects, r.hash)
			if in, ok := t.fresh[r.hash]; ok {
				was = in.was // the damaged one was not in the index yet
			}
		}
		t.fresh[r.hash] = slot{at: r.at(segment, offset), was: was}
		offset += r.size()
		t.bytes += r.size()
	}
	t.end = mark(segment, offset)
}

// full says whether it is time to retire, and whether Put has to wait for that:
// until the returned channel is closed.
func (t *table) full() (retire, wait bool, room <-chan struct{}) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	retire = len(t.fresh) >= maxFreshBlocks || t.bytes >= t.maxBytes
	late := len(t.fresh) >= 2*maxFreshBlocks || t.bytes >= 2*t.maxBytes
	return retire, late || retire && len(t.retiring) > 0, t.room
}

// turn changes the roles of the halves and appends what is to be retired to
// entries. Everything before the returned mark is among them or in the index. If
// retiring failed the last time, it returns the same once more.
func (t *table) turn(entries []index.Entry) (_ []index.Entry, upTo uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.retiring) == 0 {
		t.fresh, t.retiring = t.retiring, t.fresh
		t.bytes, t.turned = 0, t.end
	}
	return appendEntries(entries, t.retiring), t.turned
}

// entries returns all that is in the table; of a block that is in both halves the
// later place first.
func (t *table) entries() []index.Entry {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return appendEntries(appendEntries(nil, t.fresh), t.retiring)
}

func appendEntries(entries []index.Entry, half map[index.Hash]slot) []index.Entry {
	for hash, in := range half {
		entries = append(entries, index.Entry{Hash: hash, At: in.at, Was: in.was})
	}
	return entries
}

// retired empties the old half: its entries are in the index now.
func (t *table) retired() {
	t.mu.Lock()
	clear(t.retiring)
	t.epoch++
	t.mu.Unlock()
	t.signal()
}

// signal makes those who wait for room look again.
func (t *table) signal() {
	t.mu.Lock()
	defer t.mu.Unlock()
	close(t.room)
	t.room = make(chan struct{})
}

// suspect remembers that the block is damaged where it lies.
func (t *table) suspect(hash *index.Hash, at index.Location) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.suspects) < maxSuspects {
		t.suspects[*hash] = at
	}
}

// suspected says whether the block is known to be damaged where it lies.
func (t *table) suspected(hash *index.Hash, at index.Location) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.suspects) > 0 && t.suspects[*hash] == at
}

// forget makes a block gone until forgotten is called, unless it is in the table or
// gone already.
func (t *table) forget(hash *index.Hash) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, fresh := t.fresh[*hash]
	_, retiring := t.retiring[*hash]
	_, gone := t.gone[*hash]
	if fresh || retiring || gone {
		return false
	}
	t.gone[*hash] = struct{}{}
	delete(t.suspects, *hash)
	t.epoch++
	return true
}

// forgotten says that the index does not know what is gone any more.
func (t *table) forgotten() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.gone)
}
