package namespace

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

var stepsFlag = flag.Int("steps", 300, "commands of each run of the model test")

// generator makes commands that are mostly sensible, from few enough names that
// they get into each other's way.
type generator struct {
	*rand.Rand
	m   *model
	now int64
}

func (g *generator) name() string { return fmt.Sprintf("n%d", g.IntN(9)) }

// ino picks an inode, now and then one that does not exist.
func (g *generator) ino(want func(*modelInode) bool) Ino {
	if g.IntN(40) == 0 {
		return g.m.next + 1
	}
	var of []Ino
	for ino, n := range g.m.inodes {
		if want == nil || want(n) {
			of = append(of, ino)
		}
	}
	if len(of) == 0 {
		return RootIno
	}
	slices.Sort(of)
	return of[g.IntN(len(of))]
}

func (g *generator) dir() Ino {
	if g.IntN(30) == 0 {
		return g.ino(nil)
	}
	return g.ino(func(n *modelInode) bool { return n.IsDir() && n.Nlink > 0 })
}

// target picks a directory and mostly a name that is in it.
func (g *generator) target() (Ino, string) {
	dir := g.dir()
	if n := g.m.inodes[dir]; n != nil && len(n.entries) > 0 && g.IntN(10) > 0 {
		names := slices.Sorted(maps.Keys(n.entries))
		return dir, names[g.IntN(len(names))]
	}
	return dir, g.name()
}

func (g *generator) file() Ino {
	if g.IntN(30) == 0 {
		return g.ino(nil)
	}
	return g.ino(func(n *modelInode) bool { return n.Type() == TypeRegular })
}

func (g *generator) content() (Content, int64) {
	var c Content
	switch g.IntN(4) {
	case 0:
	case 1:
		c = inline(fmt.Sprintf("%0*d", 1+g.IntN(60), g.Uint32()))
	default:
		c = tree(1 + g.Int64N(1000))
		c.Length = 1 + g.Int64N(c.TreeSize)
		c.Folded = g.Uint64N(5)
	}
	return c, c.Length + g.Int64N(2)*g.Int64N(50)
}

func (g *generator) command() *Command {
	g.now += g.Int64N(25 * second)
	cmd := &Command{Time: g.now}
	if g.IntN(10) == 0 {
		cmd.Time -= g.Int64N(200 * second) // clocks are not monotonic
	}
	if g.IntN(8) == 0 {
		c, size := g.content()
		dir := g.dir()
		cmd.Ops = []Op{
			&Create{Parent: dir, Name: g.name(), Mode: TypeRegular | 0o644, UID: 1},
			&SetContent{Ino: Created, Content: c, Size: size, Mtime: cmd.Time - 3},
			&SetXattr{Ino: Created, Name: "user.a", Value: []byte("x")},
		}
		return cmd
	}
	for range 1 + g.IntN(2)*g.IntN(3) {
		cmd.Ops = append(cmd.Ops, g.op())
	}
	return cmd
}

func (g *generator) op() Op {
	flags := func(n int) bool { return g.IntN(n) == 0 }
	remove := 4
	if len(g.m.inodes) > 50 {
		remove = 14 // do not let it grow without end
	}
	switch n := g.IntN(60 + 2*remove); {
	case n < 14:
		op := &Create{Parent: g.dir(), Name: g.name(), Umask: g.Uint32N(0o1000), UID: g.Uint32N(9), GID: g.Uint32N(9)}
		op.Mode = []uint32{TypeRegular, TypeDir, TypeDir, TypeSymlink, TypeFIFO}[g.IntN(5)] | g.Uint32N(0o10000)
		switch {
		case op.Mode&TypeMask == TypeSymlink:
			op.Target = "to/" + g.name()
		case op.Mode&TypeMask == TypeRegular && flags(2):
			c, size := g.content()
			op.Content, op.Size = &c, size
		}
		if flags(8) {
			op.Name, op.Unnamed = "", true
		}
		return op
	case n < 18:
		return &Link{Ino: g.ino(func(n *modelInode) bool { return !n.IsDir() }), Parent: g.dir(), Name: g.name()}
	case n < 30:
		p, name := g.target()
		np, newName := g.dir(), g.name()
		if flags(2) {
			np, newName = g.target()
		}
		return &Rename{Parent: p, Name: name, NewParent: np, NewName: newName, NoReplace: flags(8), Exchange: flags(4)}
	case n < 36:
		return &SetAttr{Ino: g.ino(nil), Mask: AttrMask(g.IntN(int(attrAll) + 1)), Mode: g.Uint32N(0o10000),
			UID: g.Uint32N(9), GID: g.Uint32N(9), Atime: g.now - 5, Mtime: g.now - g.Int64N(100*second), KillPriv: flags(2)}
	case n < 40:
		return &Truncate{Ino: g.file(), Size: g.Int64N(900) * g.Int64N(2), KillPriv: flags(3)}
	case n < 43:
		if flags(2) {
			return g.patch()
		}
		return g.fold()
	case n < 45:
		c, size := g.content()
		op := &SetContent{Ino: g.file(), Content: c, Size: size, KillPriv: flags(3)}
		if n := g.m.inodes[op.Ino]; n != nil && !flags(6) {
			op.Base = n.Version
		}
		if flags(2) {
			op.Mtime = g.now - g.Int64N(60*second)
		}
		return op
	case n < 48:
		return g.setACL()
	case n < 50:
		name := []string{"user.a", "user.b", "user.bb", CapabilityAttr}[g.IntN(4)]
		return &SetXattr{Ino: g.ino(nil), Name: name, Value: []byte(g.name())[:g.IntN(3)], Flag: XattrFlag(g.IntN(6) / 2 % 3)}
	case n < 52:
		return &RemoveXattr{Ino: g.ino(nil), Name: []string{"user.a", "user.b", "user.bb", ACLAccess, ACLDefault}[g.IntN(5)]}
	case n < 53:
		return &Pin{CID: cas.Sum(cas.Raw, []byte{byte(g.IntN(4))}), Name: g.name()}
	case n < 54:
		return &Unpin{CID: cas.Sum(cas.Raw, []byte{byte(g.IntN(4))})}
	case n < 55:
		return &Snapshot{Name: g.name()}
	case n < 56:
		return &DropSnapshot{Name: g.name()}
	case n < 57:
		if flags(2) {
			return &TrimHistory{Index: g.m.applied - min(g.m.applied, g.Uint64N(80))}
		}
		return &TrimHistory{Time: g.now - g.Int64N(1000*second)}
	case n < 60:
		return &Reap{Ino: g.ino(func(n *modelInode) bool { return n.Nlink == 0 })}
	case n < 60+remove:
		p, name := g.target()
		return &Unlink{Parent: p, Name: name}
	default:
		p, name := g.target()
		return &Rmdir{Parent: p, Name: name}
	}
}

// setACL sets a list, mostly one that can be.
func (g *generator) setACL() Op {
	op := &SetXattr{Ino: g.ino(nil), Name: ACLAccess, Value: randomACL(g.Rand).encode(), KillSetGID: g.IntN(3) == 0}
	if g.IntN(2) == 0 {
		op.Name = ACLDefault
		if g.IntN(4) > 0 {
			op.Ino = g.dir()
		}
	}
	if g.IntN(8) == 0 {
		op.Value = op.Value[:g.IntN(len(op.Value))]
	}
	return op
}

// run drives a State and the model with the same commands.
type run struct {
	*testing.T
	g    *generator
	fs   vfs.FS
	db   *pebble.DB
	s    *State
	m    *model
	o    Options
	logs []*Command
}

func newRun(t *testing.T, r *rand.Rand, o Options) *run {
	fs := vfs.NewMem()
	x := &run{T: t, fs: fs, db: openPebble(t, fs), m: newModel(), o: o}
	t.Cleanup(func() { x.db.Close() })
	x.g = &generator{Rand: r, m: x.m, now: 1_700_000_000 * second}
	x.open()
	return x
}

func (x *run) open() {
	s, err := Open(x.db, x.o)
	if err != nil {
		x.Fatal(err)
	}
	x.s = s
}

// step applies one command to both and compares the results.
func (x *run) step() {
	x.Helper()
	cmd := x.g.command()
	index := x.m.applied + 1 + uint64(x.g.IntN(2))
	x.logs = append(x.logs, cmd)
	got, err := x.s.Apply(index, cmd)
	if err != nil {
		x.Fatalf("command %d: %v", index, err)
	}
	next, inodes, want := x.m.apply(index, cmd)
	for i := index - 1; next.worlds[i].inodes == nil; i-- {
		next.worlds[i] = next.worlds[x.m.lastWorld(i)]
	}
	describe := func() string {
		s := fmt.Sprintf("command %d at %d:", index, cmd.Time)
		for _, op := range cmd.Ops {
			s += fmt.Sprintf("\n  %T %+v", op, op)
		}
		return s
	}
	if !errors.Is(got.Err, want) || want == nil && got.Err != nil {
		x.Fatalf("%s\nerror %v, want %v", describe(), got.Err, want)
	}
	x.m, x.g.m = next, next
	if want != nil {
		return
	}
	if got.Orphan != next.orphaned || got.Replaced != next.replaced {
		x.Fatalf("%s\norphan %d, replaced %d, want %d, %d", describe(), got.Orphan, got.Replaced, next.orphaned, next.replaced)
	}
	for i, n := range inodes {
		n.Began = got.Inodes[i].Began // decided at the end by the model
		if got.Inodes[i].Ino != n.Ino || n.Mode != 0 && !sameInode(got.Inodes[i], n) {
			x.Fatalf("%s\nop %d: %+v, want %+v", describe(), i, got.Inodes[i], n)
		}
	}
}

// lastWorld is the last index before i that a command had.
func (m *model) lastWorld(i uint64) uint64 {
	for m.worlds[i].inodes == nil {
		i--
	}
	return i
}

// compare reads everything there is now.
func (x *run) compare() {
	x.Helper()
	m := x.m
	x.compareWorld(reader{x.s.Inode, x.s.Lookup, x.s.ReadDir, x.s.Xattr, x.s.Xattrs, x.s.Patches}, m.world, func(ino Ino) (Inode, []modelPatch, bool) {
		n := m.inodes[ino]
		if n == nil {
			return Inode{}, nil, false
		}
		return n.Inode, n.patches, true
	})
	var orphans []Ino
	for _, ino := range slices.Sorted(maps.Keys(m.inodes)) {
		if m.inodes[ino].Nlink == 0 {
			orphans = append(orphans, ino)
		}
	}
	if got, err := x.s.Orphans(); err != nil || !slices.Equal(got, orphans) {
		x.Fatalf("orphans %v, %v; want %v", got, err, orphans)
	}
	if got := x.s.Stats(); got != m.stats() {
		x.Fatalf("counters %+v, want %+v", got, m.stats())
	}
	pins, snapshots := map[cas.CID]string{}, map[string]uint64{}
	if err := x.s.Pins(func(p PinInfo) bool { pins[p.CID] = p.Name; return true }); err != nil || !maps.Equal(pins, m.pins) {
		x.Fatalf("pins %v, %v; want %v", pins, err, m.pins)
	}
	if err := x.s.Snapshots(func(s SnapshotInfo) bool { snapshots[s.Name] = s.Index; return true }); err != nil || !maps.Equal(snapshots, m.snapshots) {
		x.Fatalf("snapshots %v, %v; want %v", snapshots, err, m.snapshots)
	}
	checkCache(x, x.s)
	checkState(x, x.s)
	if x.Failed() {
		x.FailNow()
	}
}

// compareAsOf reads everything there was at some earlier index.
func (x *run) compareAsOf(index uint64) {
	x.Helper()
	v := x.s.At(index)
	if !x.m.readable(index) {
		if _, err := v.Inode(RootIno); !errors.Is(err, ErrTrimmed) {
			x.Fatalf("as of %d, trimmed to %d: %v", index, x.m.trimmed, err)
		}
		return
	}
	x.compareWorld(reader{v.Inode, v.Lookup, v.ReadDir, v.Xattr, v.Xattrs, v.Patches}, x.m.worlds[index], func(ino Ino) (Inode, []modelPatch, bool) {
		return x.m.versionAt(ino, index)
	})
}

type reader struct {
	inode   func(Ino) (Inode, error)
	lookup  func(Ino, string) (Inode, error)
	readDir readDir
	xattr   func(Ino, string) ([]byte, error)
	xattrs  func(Ino) ([]string, error)
	patches func(Ino) (Inode, []Range, error)
}

func (x *run) compareWorld(r reader, w world, version func(Ino) (Inode, []modelPatch, bool)) {
	x.Helper()
	inode := func(ino Ino) (Inode, bool) {
		n, _, ok := version(ino)
		return n, ok
	}
	for ino := Ino(1); ino <= x.m.next; ino++ {
		want, patches, ok := version(ino)
		if again, ranges, err := r.patches(ino); ok && (err != nil || !sameInode(again, want) || layers(ranges) != modelLayers(patches)) {
			x.Fatalf("inode %d with patches is %+v, %v\n%s\nwant %+v\n%s", ino, again, err, layers(ranges), want, modelLayers(patches))
		}
		got, err := r.inode(ino)
		if ok != (err == nil) || !ok && !errors.Is(err, ErrNotFound) || !sameInode(got, want) {
			x.Fatalf("inode %d is %+v, %v\nwant %+v, %t", ino, got, err, want, ok)
		}
	}
	for ino, n := range w.inodes {
		if n.IsDir() {
			x.compareDir(r, n, inode)
		}
		names, err := r.xattrs(ino)
		if want := slices.Sorted(maps.Keys(n.xattrs)); err != nil || !slices.Equal(names, want) {
			x.Fatalf("inode %d has attributes %q, %v; want %q", ino, names, err, want)
		}
		for name, want := range n.xattrs {
			if got, err := r.xattr(ino, name); err != nil || string(got) != want {
				x.Fatalf("inode %d, attribute %q: %q, %v; want %q", ino, name, got, err, want)
			}
		}
		if _, err := r.xattr(ino, "user.none"); !errors.Is(err, ErrNoAttr) {
			x.Fatalf("inode %d, attribute that is not there: %v", ino, err)
		}
	}
}

func (x *run) compareDir(r reader, dir *modelInode, inode func(Ino) (Inode, bool)) {
	x.Helper()
	got := map[string]Ino{}
	for _, d := range readPages(x.T, r.readDir, dir.Ino, 1+x.g.IntN(20), nil) {
		got[d.Name] = d.Ino
		if n, _ := inode(d.Ino); n.Type() != d.Type {
			x.Fatalf("directory %d: %+v leads to %+v", dir.Ino, d, n)
		}
	}
	if !maps.Equal(got, dir.entries) {
		x.Fatalf("directory %d lists %v, want %v", dir.Ino, got, dir.entries)
	}
	for i := range 9 {
		name := fmt.Sprintf("n%d", i)
		want, _ := inode(dir.entries[name])
		if got, err := r.lookup(dir.Ino, name); want.Ino == 0 && !errors.Is(err, ErrNotFound) || !sameInode(got, want) {
			x.Fatalf("lookup of %q in %d: %+v, %v; want %+v", name, dir.Ino, got, err, want)
		}
	}
}

func TestStateCannotBeToldFromTheModel(t *testing.T) {
	for name, o := range map[string]Options{
		"large caches": {},
		"tiny caches":  {CacheInodes: 3, CacheDentries: 4, CacheBytes: 200},
		"mixed caches": {CacheInodes: 20, CacheDentries: 8, CacheBytes: 500},
		"collisions":   {CacheInodes: 50, CacheDentries: 50, hashMask: 7},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRand(t)
			x := newRun(t, r, o)
			for i := range *stepsFlag {
				x.step()
				switch r.IntN(40) {
				case 0:
					x.compare()
				case 1:
					x.compareAsOf(r.Uint64N(x.m.applied + 1))
				case 2:
					x.compareAsOf(x.m.applied - min(x.m.applied, r.Uint64N(60)))
				case 3:
					if all := slices.Sorted(maps.Values(x.m.snapshots)); len(all) > 0 {
						x.compareAsOf(all[r.IntN(len(all))])
					}
				case 5:
					x.open()
				case 6:
					if at := x.g.now - r.Int64N(1000*second); x.m.indexAt(at) >= x.m.trimmed {
						if got, err := x.s.IndexAt(at); err != nil || got != x.m.indexAt(at) {
							t.Fatalf("index at %d is %d, %v; want %d", at, got, err, x.m.indexAt(at))
						}
					}
				case 7:
					// Pebble reads tables very slowly under the race detector.
					if i > *stepsFlag*4/5 {
						x.reopenDatabase()
					}
				}
			}
			x.compare()
			for index := range x.m.applied {
				if x.m.readable(index) && r.IntN(60) == 0 {
					x.compareAsOf(index)
				}
			}
		})
	}
}

// reopenDatabase goes through the disk.
func (x *run) reopenDatabase() {
	x.Helper()
	if err := x.db.Flush(); err != nil {
		x.Fatal(err)
	}
	if err := x.db.Close(); err != nil {
		x.Fatal(err)
	}
	x.db = openPebble(x, x.fs)
	x.open()
}

// Rule 5: what is stored follows from the log alone.
func TestTheSameLogGivesTheSameBytesWhateverTheCaches(t *testing.T) {
	r := newRand(t)
	x := newRun(t, r, Options{CacheInodes: 5, CacheDentries: 5, HashKey: [16]byte{1}})
	other := newRun(t, r, Options{HashKey: [16]byte{1}})
	for range *stepsFlag {
		x.step()
		cmd := x.logs[len(x.logs)-1]
		if r.IntN(100) == 0 {
			x.compare() // fills the one cache, not the other
			other.open()
		}
		data, err := cmd.AppendBinary(nil)
		if err != nil {
			t.Fatal(err)
		}
		var decoded Command
		if err := decoded.UnmarshalBinary(data); err != nil {
			t.Fatal(err)
		}
		if _, err := other.s.Apply(x.m.applied, &decoded); err != nil {
			t.Fatal(err)
		}
	}
	if d := diff(dump(t, x.db), dump(t, other.db)); d != "" {
		t.Fatal(d)
	}
}
