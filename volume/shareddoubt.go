package volume

import (
	"slices"

	"github.com/cairnfs/cairn/namespace"
)

// Commands about the content of a file of which nobody knows what became of them. The
// answer did not come in time; the command may have been carried out, or be yet, or
// never. Until that is known what was written stays here, and is named once more. Those
// that name content build on the same version, so one of them counts at most: which one,
// the session and the size tell, and that it was no change of size. Once the namespace has
// another version without that any was carried out, none will be. What was appended must
// not come again then. A node that takes over a snapshot sees what became of a file and not
// by which commands: what may or may not be an append of its own is given up.

// maxDoubts is how many doubts about a file are kept. Of those that would leave it with
// the same size the first one is enough, so it takes as many attempts with something
// appended in between.
const maxDoubts = 1024

// doubt is a command about the content of a file from when it is proposed until its
// outcome is known.
type doubt struct {
	session namespace.SessionID
	size    int64 // of the file then
	tail    int64 // where what it appends begins, which ends at size; -1: nothing
	names   bool  // content; else it sets the size
	// Counts of writes and of attributes set as of the command.
	touched, later uint64
	lost           bool   // nobody waits for it any more
	landed         uint64 // the version that it made; 0: none as far as is known
	unseen         bool   // it may be part of a snapshot
}

// naming returns the doubt about naming what is frozen, which gives the file a size.
// Called with move held.
func (f *file) naming(size int64) *doubt {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := &doubt{size: size, tail: f.frozenTail, names: true, touched: f.frozenTouched, later: f.frozenLater}
	f.proposed(d)
	return d
}

// sizing is naming for a change of size, which names nothing that was written.
func (f *file) sizing(size int64) *doubt {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := &doubt{size: size, tail: -1}
	f.proposed(d)
	return d
}

// proposed takes note of d before it can be carried out. Called with mu held.
func (f *file) proposed(d *doubt) {
	if d.session = f.v.shared().Session(); d.session == 0 {
		d.session = f.under // it is about to end, or goes on
	}
	same := func(o *doubt) bool {
		return o.session == d.session && o.size == d.size && o.tail == d.tail && o.names == d.names
	}
	if len(f.doubts) < maxDoubts && !slices.ContainsFunc(f.doubts, same) {
		f.doubts = append(f.doubts, d)
	}
}

// doubted is called when d has failed. If nothing is known of its outcome the doubt
// stays, and ends when Observe sees the command or another one succeeds.
func (f *file) doubted(d *doubt, res namespace.Result) {
	f.mu.Lock()
	d.lost = true
	if res.Err != nil {
		f.doubts = slices.DeleteFunc(f.doubts, func(o *doubt) bool { return o == d })
	}
	landed := d.landed != 0
	f.mu.Unlock()
	if landed {
		f.news.add()
		f.v.tell([]Event{{Ino: f.ino, Content: true}})
	}
}

// certain ends all doubts: a command has succeeded, and those before it will not.
func (f *file) certain() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.doubts = nil
}

func (f *file) inDoubt() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.doubts) > 0
}

// skipped takes note that commands were carried out which nobody was told of.
func (f *file) skipped() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.doubts {
		d.unseen = true
	}
}

// undecidable reports whether what was appended here may be part of content of the
// given version, or not.
func (f *file) undecidable(version uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return version != f.committed.Version && slices.ContainsFunc(f.doubts, func(d *doubt) bool {
		return d.unseen && d.landed == 0 && d.tail >= 0
	})
}

// observed takes note of a change of content. waited says that it is by a command that
// somebody here waits for, who knows all about it; late, that it is by one of this node's
// for which nobody waits any more.
func (f *file) observed(c *namespace.Change, n *namespace.InodeChange, own bool) (waited, late bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.doubts {
		if c.Session != 0 && d.session == c.Session && d.size == n.Size && d.names == n.Named && d.landed == 0 {
			d.landed = c.Index
			return !d.lost, d.lost
		}
	}
	return false, own
}

// resolve ends the doubts that content of the given version leaves none about. If what
// was carried out is all that was written here, nothing is left of it, else not what it
// appended. The rest is named once more. Called with mu held.
func (f *file) resolve(version uint64) {
	for _, d := range f.doubts {
		if d.landed != 0 && d.landed <= version {
			f.forgetNamed(d)
		}
	}
	if version != f.committed.Version {
		f.doubts = slices.DeleteFunc(f.doubts, func(d *doubt) bool { return d.landed <= version })
	}
}

// forgetNamed forgets of what was written here what d has named. Called with mu held.
func (f *file) forgetNamed(d *doubt) {
	if !d.names {
		return
	}
	if f.touched == d.touched && f.later.n == d.later {
		f.dirty.clear(0, maxSize)
		f.later = later{n: f.later.n}
		f.changed, f.under, f.tail, f.first, f.err = false, 0, -1, 0, nil
		return
	}
	if d.tail < 0 {
		return
	}
	f.dirty.clear(d.tail, d.size)
	f.tail = -1
	if end, ok := f.dirty.end(); ok && end > d.size {
		f.tail = d.size
	}
}
