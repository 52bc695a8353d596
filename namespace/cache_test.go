package namespace

import (
	"testing"
)

// checkCache compares all that the cache holds with the database.
func checkCache(t testing.TB, s *State) {
	t.Helper()
	var enc encoder
	tails := int64(0)
	for ino := range s.cache.inodes.at {
		e, tail, _ := s.cache.inode(ino)
		r, ok, err := loadInode(s.db, ino)
		if err != nil || !ok || string(enc.encodeInode(&record{e.attrs, tail})) != string(enc.encodeInode(&r)) {
			t.Fatalf("cached inode %+v, stored %+v (%v)", *e, r, err)
		}
		if e.known == 0 {
			continue
		}
		if err := s.ReadDir(ino, 0, func(d Dentry) bool {
			k := nameKey{parent: ino}
			k.hash, k.check = s.hashName(d.Name)
			if s.cache.dentries.get(k) == nil && k.hash <= e.known {
				t.Fatalf("directory %d is known up to %#x, but entry %+v is not cached", ino, e.known, d)
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	for ino, tail := range s.cache.tails {
		if tails += tail.cost(); s.cache.inodes.get(ino) == nil {
			t.Fatalf("tail of inode %d, which is not cached", ino)
		}
	}
	if tails != s.cache.tailBytes {
		t.Fatalf("%d bytes of tails, counted %d", tails, s.cache.tailBytes)
	}
	entries := make(map[nameKey]Ino)
	if err := scan(s.db, tagKey(nil, tagDentry), func(key, value []byte) (bool, error) {
		parent, hash, name, _ := splitDentryTail(key[1:])
		d, err := decodeDentry(value)
		_, check := s.hashName(string(name))
		entries[nameKey{parent, hash, check}] = d.ino
		return true, err
	}); err != nil {
		t.Fatal(err)
	}
	for k := range s.cache.dentries.at {
		if d := s.cache.dentries.get(k); entries[k] != d.ino {
			t.Fatalf("cached entry %+v of %+v, stored %d", *d, k, entries[k])
		}
	}
	if len(s.cache.inodes.at) > int(s.cache.inodes.limit) || len(s.cache.dentries.at) > int(s.cache.dentries.limit) {
		t.Fatalf("%d inodes and %d entries cached", len(s.cache.inodes.at), len(s.cache.dentries.at))
	}
}

func TestClockIsAMapOfBoundedSize(t *testing.T) {
	r := newRand(t)
	var evicted []int
	var c clock[int, int]
	c.init(50, func(k int) { evicted = append(evicted, k) })
	have := make(map[int]int)
	for i := range 20_000 {
		k := r.IntN(120)
		switch r.IntN(4) {
		case 0:
			c.remove(k)
			delete(have, k)
		case 1:
			*c.put(k) = i
			have[k] = i
		default:
			v := c.get(k)
			if want, ok := have[k]; ok != (v != nil) || ok && *v != want {
				t.Fatalf("key %d: %v, want %d, %t", k, v, want, ok)
			}
		}
		for _, k := range evicted {
			if _, ok := have[k]; !ok {
				t.Fatalf("key %d was evicted, but it was not there", k)
			}
			delete(have, k)
		}
		evicted = evicted[:0]
		if len(c.at) != len(have) || len(have) > 50 {
			t.Fatalf("%d keys, want %d", len(c.at), len(have))
		}
	}
}

func TestClockKeepsWhatIsUsed(t *testing.T) {
	var c clock[int, int]
	c.init(2*chunkSlots, func(int) {})
	*c.put(-1) = 1
	for k := range 100_000 {
		c.put(k)
		if k%chunkSlots == 0 && c.get(-1) == nil {
			t.Fatalf("a value in use was evicted after %d others", k)
		}
	}
}

// Inline content is bounded by bytes, not only by the number of inodes.
func TestTheCacheBoundsTheBytesOfContent(t *testing.T) {
	f := newFixture(t, Options{CacheBytes: 100 << 10})
	content := inline(string(make([]byte, MaxInline)))
	for i := range 100 {
		f.do(&Create{Parent: RootIno, Name: string(rune('a' + i)), Mode: TypeRegular, Content: &content, Size: MaxInline})
		if f.s.cache.tailBytes > 100<<10 {
			t.Fatalf("%d bytes cached", f.s.cache.tailBytes)
		}
	}
	if f.s.cache.tailBytes < 90<<10 {
		t.Errorf("only %d bytes cached", f.s.cache.tailBytes)
	}
	checkCache(t, f.s)
	for ino := range Ino(100) {
		if n := f.inode(ino + 2); len(n.Content.Inline) != MaxInline {
			t.Errorf("%+v", n)
		}
	}
	checkCache(t, f.s)
}
