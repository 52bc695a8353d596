//go:build linux

package mount

import "time"

// Bounds of what is remembered of the kernel's names. Beyond them the oldest marks,
// and any edges, are forgotten: what hangs on them is as right as the kernel's own
// copies are, which other nodes' changes reach some milliseconds late.
const (
	maxEdges = 1 << 19
	maxMarks = 1 << 16
	maxClimb = 1 << 10 // directories looked at above one inode
)

// markFor is for how long after a name has changed an open may arrive that found
// its file by the old one.
const markFor = 10 * time.Second

// edge is a name in a directory as it was handed out to the kernel. changed is the
// number of the event by which another node made it lead elsewhere, 0 if none did.
type edge struct {
	parent  uint64
	name    string
	child   uint64
	changed uint64
}

// edges are the names by which the kernel may find inodes, in both directions, and
// marks on inodes that have lost one to another node.
type edges struct {
	down  map[uint64]map[string]*edge // by parent and name
	up    map[uint64][]*edge          // by child
	n     int
	marks map[uint64]mark
	order []marked // of marks, the oldest first
}

type mark struct {
	seq uint64
	at  time.Time
}

type marked struct{ ino, seq uint64 }

func (t *edges) get(parent uint64, name string) *edge { return t.down[parent][name] }

// add notes that name in parent leads to child.
func (t *edges) add(parent uint64, name string, child uint64) {
	if e := t.get(parent, name); e != nil {
		if e.child == child {
			e.changed = 0
			return
		}
		t.remove(e)
	}
	if t.n >= maxEdges {
		t.evict()
	}
	if t.down == nil {
		t.down, t.up = make(map[uint64]map[string]*edge), make(map[uint64][]*edge)
	}
	e := &edge{parent: parent, name: name, child: child}
	names := t.down[parent]
	if names == nil {
		names = make(map[string]*edge)
		t.down[parent] = names
	}
	names[name] = e
	t.up[child] = append(t.up[child], e)
	t.n++
}

func (t *edges) remove(e *edge) {
	names := t.down[e.parent]
	if names[e.name] != e {
		return
	}
	if delete(names, e.name); len(names) == 0 {
		delete(t.down, e.parent)
	}
	up := t.up[e.child]
	for i, o := range up {
		if o == e {
			up[i] = up[len(up)-1]
			up[len(up)-1] = nil
			up = up[:len(up)-1]
			break
		}
	}
	if len(up) == 0 {
		delete(t.up, e.child)
	} else {
		t.up[e.child] = up
	}
	t.n--
}

// evict removes any edge.
func (t *edges) evict() {
	for _, names := range t.down {
		for _, e := range names {
			t.remove(e)
			return
		}
	}
}

// forget removes all about an inode that the kernel has forgotten.
func (t *edges) forget(ino uint64) {
	for _, e := range t.down[ino] {
		t.remove(e)
	}
	for up := t.up[ino]; len(up) > 0; up = t.up[ino] {
		t.remove(up[len(up)-1])
	}
	delete(t.marks, ino)
}

// change notes that event seq made a name lead elsewhere, if it was handed out.
func (t *edges) change(parent uint64, name string, seq uint64, at time.Time) {
	if e := t.get(parent, name); e != nil {
		e.changed = seq
		t.mark(e.child, seq, at)
	}
}

// mark notes that ino may have been found by a name that event seq changed.
func (t *edges) mark(ino, seq uint64, at time.Time) {
	if t.marks == nil {
		t.marks = make(map[uint64]mark)
	}
	t.marks[ino] = mark{seq, at}
	t.order = append(t.order, marked{ino, seq})
	if len(t.order) > maxMarks {
		if old := t.order[0]; t.marks[old.ino].seq == old.seq {
			delete(t.marks, old.ino)
		}
		t.order = t.order[1:] // append moves it before long
	}
}

// delivered notes that the kernel has dropped a name because of events up to seq.
func (t *edges) delivered(parent uint64, name string, seq uint64) {
	if e := t.get(parent, name); e != nil && e.changed != 0 && e.changed <= seq {
		t.remove(e)
	}
}

// lost returns the newest mark on ino and on all that lies above it, 0 if there is
// none. Marks count no more that are older than markFor at the given time, unless
// they are above seq.
func (t *edges) lost(ino, seq uint64, at time.Time) uint64 {
	if len(t.marks) == 0 {
		return 0
	}
	var newest uint64
	seen := map[uint64]bool{ino: true}
	for list := []uint64{ino}; len(list) > 0 && len(seen) <= maxClimb; {
		ino, list = list[len(list)-1], list[:len(list)-1]
		if m, ok := t.marks[ino]; ok && (m.seq > seq || at.Sub(m.at) <= markFor) {
			newest = max(newest, m.seq)
		}
		for _, e := range t.up[ino] {
			if !seen[e.parent] {
				seen[e.parent] = true
				list = append(list, e.parent)
			}
		}
	}
	return newest
}

// move notes that this kernel has renamed something.
func (t *edges) move(parent uint64, name string, newParent uint64, newName string, exchange bool) {
	from, to := t.get(parent, name), t.get(newParent, newName)
	if from == to { // both unknown, or one name
		return
	}
	if from != nil {
		t.remove(from)
	}
	if to != nil {
		t.remove(to)
	}
	if from != nil {
		t.add(newParent, newName, from.child)
	}
	if to != nil && exchange {
		t.add(parent, name, to.child)
	}
}

// callers are the threads that were told to look names up again, at most maxCallers.
// Of each it is known that the kernel's names agreed with the events up to seen
// when it was told, and until it has opened something, what it was told of and what
// it has looked up since.
type callers map[uint32]*retrying

const maxCallers = 4 << 10

type retrying struct {
	seen   uint64
	again  bool // told, and has not opened anything since
	inos   [8]uint64
	looked uint // how many were put into inos, which goes round
}

// tell notes that the caller is told about ino, or about a name if ino is 0.
func (c *callers) tell(caller uint32, ino, seen uint64) {
	if *c == nil {
		*c = make(callers)
	}
	r := (*c)[caller]
	if r == nil {
		if len(*c) >= maxCallers {
			c.evict()
		}
		r = new(retrying)
		(*c)[caller] = r
	}
	*r = retrying{seen: max(seen, r.seen), again: true}
	r.add(ino)
}

func (r *retrying) add(ino uint64) {
	r.inos[r.looked%uint(len(r.inos))] = ino
	r.looked++
}

// evict forgets one caller, rather one that is done.
func (c *callers) evict() {
	tries := 0
	for caller, r := range *c {
		if tries++; !r.again || tries > 16 {
			delete(*c, caller)
			return
		}
	}
}

// lookedUp notes that the caller was answered with ino.
func (c callers) lookedUp(caller uint32, ino uint64) {
	if r := c[caller]; r != nil && r.again {
		r.add(ino)
	}
}

// retries reports whether the caller opens ino because he was told to look again.
// It counts once.
func (c callers) retries(caller uint32, ino uint64) bool {
	r := c[caller]
	if r == nil || !r.again {
		return false
	}
	r.again = false
	for _, o := range r.inos {
		if o == ino {
			return true
		}
	}
	return false
}

// seen returns up to which event the caller cannot have met old names.
func (c callers) seen(caller uint32) uint64 {
	if r := c[caller]; r != nil {
		return r.seen
	}
	return 0
}
