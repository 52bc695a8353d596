package volume

import (
	"cmp"
	"slices"
	"sort"

	"github.com/cairnfs/cairn/namespace"
)

// What the lock table tells of itself if the volume is shared, and how that differs
// from what the node holds in the cluster.

// span is a range in one mode.
type span struct {
	start, end uint64
	mode       namespace.LockMode
}

// strongest returns for each byte that is locked the strongest mode in which it is,
// in order.
func (t *lockTable) strongest(s lockSpace, how claiming) []span {
	type edge struct {
		at    uint64
		write bool
		step  int
	}
	var edges []edge
	t.mu.Lock()
	if f := t.files[s]; f != nil {
		for owner, locks := range f.owners {
			if how.without && owner == how.owner {
				continue
			}
			for _, h := range locks {
				edges = append(edges, edge{h.start, h.write, 1}, edge{h.end + 1, h.write, -1})
			}
		}
	}
	t.mu.Unlock()
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	var (
		spans []span
		depth [2]int // readers and writers
	)
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			if edges[i].write {
				depth[1] += edges[i].step
			} else {
				depth[0] += edges[i].step
			}
		}
		mode := namespace.Unlocked
		switch {
		case depth[1] > 0:
			mode = namespace.Exclusive
		case depth[0] > 0:
			mode = namespace.Shared
		}
		if i < len(edges) {
			spans = appendSpan(spans, span{at, edges[i].at - 1, mode})
		}
	}
	return spans
}

// appendSpan adds a span behind the others, of which it may be the continuation.
// What is unlocked is left out.
func appendSpan(spans []span, s span) []span {
	if s.mode == namespace.Unlocked {
		return spans
	}
	return joinSpan(spans, s)
}

func joinSpan(spans []span, s span) []span {
	if n := len(spans); n > 0 && spans[n-1].mode == s.mode && spans[n-1].end+1 == s.start {
		spans[n-1].end = s.end
		return spans
	}
	return append(spans, s)
}

// modeAt returns the mode of a byte.
func modeAt(spans []span, at uint64) namespace.LockMode {
	i := sort.Search(len(spans), func(i int) bool { return spans[i].end >= at })
	if i < len(spans) && spans[i].start <= at {
		return spans[i].mode
	}
	return namespace.Unlocked
}

// differ returns, within [from, to], what of need is more than the node has, and what
// it has more than it needs, in the mode it needs. With again all is to be said anew.
func differ(need, have []span, from, to uint64, again bool) (more, less []span) {
	cuts := []uint64{from, to + 1}
	for _, s := range slices.Concat(need, have) {
		for _, at := range []uint64{s.start, s.end + 1} {
			if from < at && at <= to {
				cuts = append(cuts, at)
			}
		}
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	for i, at := range cuts[:len(cuts)-1] {
		n, h := modeAt(need, at), modeAt(have, at)
		s := span{at, cuts[i+1] - 1, n}
		switch {
		case n > h || again && n == h && n != namespace.Unlocked:
			more = joinSpan(more, s)
		case n < h || again && n == h:
			less = joinSpan(less, s)
		}
	}
	return more, less
}

// heldIn returns what the owner of r holds of its range.
func (t *lockTable) heldIn(r *lockRequest) []heldLock {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[r.space]
	if f == nil {
		return nil
	}
	var held []heldLock
	for _, h := range f.owners[r.Owner] {
		if h.start <= r.End && r.Start <= h.end {
			h.start, h.end = max(h.start, r.Start), min(h.end, r.End)
			held = append(held, h)
		}
	}
	return held
}

// restore puts back what the owner of r held before r was granted, unless he has lost
// that meanwhile.
func (t *lockTable) restore(r *lockRequest, before []heldLock) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[r.space]
	if f == nil {
		return
	}
	defer t.tidy(f)
	locks := f.owners[r.Owner]
	i := firstFrom(locks, r.Start)
	if i == len(locks) || locks[i].start > r.Start || locks[i].end < r.End || locks[i].write != r.Write || locks[i].via != r.via {
		return
	}
	undo := *r
	// Nobody is woken in between, who might take what is put back.
	_, err := t.replace(f, &undo, false)
	for _, h := range before {
		if err == nil {
			undo.Start, undo.End, undo.Write, undo.PID, undo.via = h.start, h.end, h.write, h.pid, h.via
			_, err = t.replace(f, &undo, true)
		}
	}
	t.wake(f)
}

// holds reports whether a lock of ino was taken through via.
func (t *lockTable) holds(ino namespace.Ino, via *lockPath) bool {
	found := false
	for _, flock := range []bool{false, true} {
		t.each(lockSpace{ino, flock}, func(h heldLock) { found = found || h.via == via })
	}
	return found
}

// each calls fn for the locks of a space, with the table locked.
func (t *lockTable) each(s lockSpace, fn func(heldLock)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.files[s]; f != nil {
		for _, locks := range f.owners {
			for _, h := range locks {
				fn(h)
			}
		}
	}
}

// spaces returns those in which something is locked.
func (t *lockTable) spaces() []lockSpace {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []lockSpace
	for s, f := range t.files {
		if f.held > 0 {
			all = append(all, s)
		}
	}
	return all
}

// expire takes away all locks. The files through which they were taken know.
func (t *lockTable) expire() {
	for _, s := range t.spaces() {
		t.expireSpace(s)
	}
}

func (t *lockTable) expireSpace(s lockSpace) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.files[s]
	if f == nil {
		return
	}
	defer t.tidy(f)
	for owner, locks := range f.owners {
		for _, h := range locks {
			h.via.lose()
		}
		t.drop(f, owner, func(heldLock) bool { return true })
	}
	t.wake(f)
}
