package namespace

import (
	"strconv"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairnfs/cairn/p2p"
)

// benchState is set up as in a node: bloom filters, a 32 MiB memtable.
func benchState(b *testing.B, o Options) *fixture {
	p := &pebble.Options{FS: vfs.NewMem(), DisableWAL: true, Logger: quiet{}, MemTableSize: 32 << 20}
	for i := range p.Levels {
		p.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	db, err := pebble.Open("db", p)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	s, err := Open(db, o)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	return &fixture{t: b, db: db, s: s, now: 1000 * second}
}

// apply is do at a pace of 100,000 commands a second of log time.
func (f *fixture) apply(cmd *Command) Result {
	f.index++
	f.now += second / 100_000
	cmd.Time = f.now
	r, err := f.s.Apply(f.index, cmd)
	if err != nil || r.Err != nil {
		f.t.Fatal(err, r.Err)
	}
	return r
}

func BenchmarkApplyCreate(b *testing.B) {
	f := benchState(b, Options{})
	dir := f.dir(RootIno, "dir")
	op := &Create{Parent: dir, Mode: TypeRegular | 0o644}
	cmd := &Command{Ops: []Op{op}}
	for i := 0; b.Loop(); i++ {
		op.Name = "file-" + strconv.Itoa(i)
		f.apply(cmd)
	}
}

func BenchmarkApplySetContent(b *testing.B) {
	f := benchState(b, Options{})
	var files [1024]Ino
	var versions [1024]uint64
	for i := range files {
		files[i] = f.file(RootIno, strconv.Itoa(i))
		versions[i] = f.index
	}
	op := &SetContent{Content: tree(1 << 20), Size: 1 << 20}
	cmd := &Command{Ops: []Op{op}}
	for i := 0; b.Loop(); i++ {
		op.Ino, op.Base, op.Mtime = files[i%1024], versions[i%1024], f.now
		f.apply(cmd)
		versions[i%1024] = f.index
	}
}

func BenchmarkApplyUnlinkAndReap(b *testing.B) {
	f := benchState(b, Options{})
	create := &Create{Parent: RootIno, Mode: TypeRegular | 0o644}
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		create.Name = strconv.Itoa(i)
		ino := f.apply(&Command{Ops: []Op{create}}).Inodes[0].Ino
		b.StartTimer()
		f.apply(&Command{Ops: []Op{&Unlink{Parent: RootIno, Name: create.Name}}})
		f.apply(&Command{Ops: []Op{&Reap{Ino: ino}}})
	}
}

func BenchmarkEncodeCreate(b *testing.B) {
	cmd := &Command{Time: 1e18, Ops: []Op{&Create{Parent: 12345, Name: "some-file-name.go", Mode: TypeRegular | 0o644, UID: 1000, GID: 1000}}}
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		var err error
		if buf, err = cmd.AppendBinary(buf[:0]); err != nil {
			b.Fatal(err)
		}
	}
}

// benchTree has n files in the root, all in sorted tables.
func benchTree(b *testing.B, n int) (*fixture, []string) {
	f := benchState(b, Options{})
	names := make([]string, n)
	for i := range names {
		names[i] = "file-" + strconv.Itoa(i)
		f.apply(&Command{Ops: []Op{&Create{Parent: RootIno, Name: names[i], Mode: TypeRegular | 0o644}}})
	}
	if err := f.db.Flush(); err != nil {
		b.Fatal(err)
	}
	return f, names
}

func BenchmarkLookupCached(b *testing.B) {
	f, names := benchTree(b, 100_000)
	for i := 0; b.Loop(); i++ {
		if _, err := f.s.Lookup(RootIno, names[i%len(names)]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkInodeCached(b *testing.B) {
	f, names := benchTree(b, 100_000)
	for i := 0; b.Loop(); i++ {
		if _, err := f.s.Inode(Ino(2 + i%len(names))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLookupUncached(b *testing.B) {
	f, names := benchTree(b, 100_000)
	f.reopen(Options{CacheInodes: 2, CacheDentries: 2})
	for i := 0; b.Loop(); i++ {
		if _, err := f.s.Lookup(RootIno, names[i*7919%len(names)]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadDir(b *testing.B) {
	f, names := benchTree(b, 10_000)
	for b.Loop() {
		n := 0
		if err := f.s.ReadDir(RootIno, 0, func(Dentry) bool { n++; return true }); err != nil || n != len(names) {
			b.Fatal(n, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(names)), "ns/entry")
}

func BenchmarkLookupAsOf(b *testing.B) {
	f, names := benchTree(b, 100_000)
	v := f.s.At(f.index / 2)
	for i := 0; b.Loop(); i++ {
		if _, err := v.Lookup(RootIno, names[i%(len(names)/2-1)]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkEndSession is of a session with so many locks, beside another's.
func BenchmarkEndSession(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 50_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			f := benchState(b, Options{})
			f.do(&FoundCluster{ID: testCluster, First: storageMember("a")})
			f.do(&AddInvite{ID: InviteID{1}, Expires: 1 << 62, Uses: 1, Role: p2p.RoleStorage})
			f.do(&Redeem{Invite: InviteID{1}, Member: storageMember("b")})
			other := f.open("b")
			inos := make([]Ino, n)
			for i := range inos {
				inos[i] = f.file(RootIno, strconv.Itoa(i))
				f.do(&LockRange{Session: other, Ino: inos[i], Kind: LockFile, End: 9, Mode: Shared})
			}
			for b.Loop() {
				b.StopTimer()
				session := f.open("a")
				for _, ino := range inos {
					f.do(&LockRange{Session: session, Ino: ino, Kind: LockRecord, End: 9, Mode: Exclusive})
				}
				b.StartTimer()
				f.do(&EndSession{Session: session})
			}
		})
	}
}
