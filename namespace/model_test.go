package namespace

import (
	"maps"
	"slices"

	"github.com/cairnfs/cairn/cas"
)

// model is the namespace once more, as plainly as it can be said: maps, copied
// for every command, with all that was ever true kept. The State is right if it
// cannot be told from the model.
type model struct {
	world
	next      Ino
	applied   uint64
	logTime   int64
	trimmed   uint64
	pins      map[cas.CID]string
	snapshots map[string]uint64
	times     []instant

	past     map[Ino][]version // overwritten inodes
	worlds   map[uint64]world  // by index
	latest   uint64            // snapshot before the command under way
	touched  map[Ino]bool      // by the command under way
	trimming bool              // as well
	created  Ino
	orphaned Ino
	replaced Ino
}

// world is what a reader sees at one instant.
type world struct{ inodes map[Ino]*modelInode }

type modelInode struct {
	Inode
	beganTime int64
	entries   map[string]Ino
	xattrs    map[string]string
	patches   []modelPatch // never changed in place
}

// modelPatch is what the content is laid over with, or cut to.
type modelPatch struct {
	number uint64
	ranges []Range // nil: cut
	size   int64
	cost   uint32
}

type version struct {
	Inode
	patches []modelPatch
	ended   uint64
}

type instant struct {
	time  int64
	index uint64
}

func newModel() *model {
	m := &model{
		world: world{map[Ino]*modelInode{}}, next: RootIno + 1,
		pins: map[cas.CID]string{}, snapshots: map[string]uint64{},
		past: map[Ino][]version{}, worlds: map[uint64]world{},
	}
	m.inodes[RootIno] = &modelInode{
		Inode:   Inode{Ino: RootIno, Mode: TypeDir | 0o755, Nlink: 2, Parent: RootIno},
		entries: map[string]Ino{}, xattrs: map[string]string{},
	}
	m.worlds[0] = m.copyWorld()
	return m
}

func (w world) copyWorld() world {
	c := world{make(map[Ino]*modelInode, len(w.inodes))}
	for ino, n := range w.inodes {
		d := *n
		d.entries, d.xattrs = maps.Clone(n.entries), maps.Clone(n.xattrs)
		c.inodes[ino] = &d
	}
	return c
}

// apply returns the model after the command, or the same and an error. The
// result holds the inodes after each op.
func (m *model) apply(index uint64, cmd *Command) (*model, []Inode, error) {
	n := *m
	n.world = m.copyWorld()
	n.pins, n.snapshots = maps.Clone(m.pins), maps.Clone(m.snapshots)
	n.touched, n.trimming, n.created, n.orphaned, n.replaced = map[Ino]bool{}, false, 0, 0, 0
	n.applied, n.logTime = index, max(m.logTime, cmd.Time)
	n.latest = slices.Max(append(slices.Collect(maps.Values(m.snapshots)), 0))
	var results []Inode
	for _, op := range cmd.Ops {
		ino, err := n.do(cmd.Time, op)
		if err != nil {
			m.applied = index
			m.worlds[index] = m.world
			return m, nil, err
		}
		result := Inode{Ino: ino} // all that is left of a reaped one
		if i := n.inodes[ino]; i != nil {
			i.HasXattrs = len(i.xattrs) > 0
			result = i.Inode
		}
		results = append(results, result)
	}
	n.settle(m)
	if len(n.times) == 0 || n.times[len(n.times)-1].time/timeStep != n.logTime/timeStep {
		n.times = append(slices.Clip(n.times), instant{n.logTime, index})
	}
	n.worlds[index] = n.copyWorld()
	return &n, results, nil
}

// settle decides, for each inode that was touched, whether its last version stays
// visible.
func (m *model) settle(old *model) {
	for ino, was := range old.inodes {
		now := m.inodes[ino]
		keep := now == nil
		if now != nil && m.touched[ino] {
			keep = m.logTime-was.beganTime >= coalesce || m.latest >= was.Began && len(old.snapshots) > 0
			if keep {
				now.Began, now.beganTime = m.applied, m.logTime
			}
		}
		if keep {
			m.past[ino] = append(m.past[ino], version{was.Inode, was.patches, m.applied})
		}
	}
	for ino, now := range m.inodes {
		if old.inodes[ino] == nil {
			now.Began, now.beganTime = m.applied, m.logTime
		}
	}
}

// versionAt is the inode, with its patches, as a reader as of an index sees it.
func (m *model) versionAt(ino Ino, index uint64) (Inode, []modelPatch, bool) {
	for _, v := range m.past[ino] {
		if v.Began <= index && index < v.ended {
			return v.Inode, v.patches, true
		}
	}
	n := m.inodes[ino]
	if n == nil || n.Began > index {
		return Inode{}, nil, false
	}
	return n.Inode, n.patches, true
}

// readable says whether the history of an index must still be there.
func (m *model) readable(index uint64) bool {
	return index >= m.trimmed || slices.Contains(slices.Collect(maps.Values(m.snapshots)), index)
}

func (m *model) indexAt(time int64) (index uint64) {
	for _, i := range m.times {
		if i.time <= time {
			index = i.index
		}
	}
	return index
}

func (m *model) stats() (s Stats) {
	for ino, n := range m.inodes {
		switch {
		case n.Nlink == 0 || ino == RootIno:
		case n.IsDir():
			s.Dirs++
		default:
			s.Files++
			if n.Type() == TypeRegular {
				s.LogicalBytes += n.Size
			}
		}
	}
	return s
}
