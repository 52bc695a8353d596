package namespace

import (
	"math"
	"sync/atomic"
)

// The cache holds inodes and directory entries as of the last applied command.
// Apply brings it up to date under the same lock under which it commits, so the
// cache and the database never disagree about what they both know.
//
// A reader that misses reads the database without the lock, and may fill in
// what it found only if no command has changed it meanwhile: stamps keep the index
// of the last change, per stripe of inode numbers (an entry goes by its directory).
//
// Of a directory, entryCache.known says up to which cookie all entries are held.
// A name below it that is not in the cache does not exist, so creating a file in
// a directory that is new or was listed asks nothing of the database.

const (
	defaultCacheInodes   = 256 << 10
	defaultCacheDentries = 512 << 10
	defaultCacheBytes    = 64 << 20
	stampStripes         = 1 << 10
	tailOverhead         = 64 // bytes that a map entry costs besides its content, about
	allKnown             = math.MaxUint64
)

type inodeEntry struct {
	attrs
	known uint64 // entries of this directory with a cookie up to this one are all cached
}

// nameKey stands for a name in a directory (see hashName).
type nameKey struct {
	parent      Ino
	hash, check uint64
}

type cache struct {
	inodes    clock[Ino, inodeEntry]
	tails     map[Ino]tail // of cached inodes that have one
	tailBytes int64
	maxBytes  int64
	dentries  clock[nameKey, dentry]
	stamps    [stampStripes]uint64
}

func (c *cache) init(o Options) {
	c.maxBytes = o.CacheBytes
	c.tails = make(map[Ino]tail)
	c.inodes.init(o.CacheInodes, c.dropTail)
	c.dentries.init(o.CacheDentries, func(k nameKey) {
		if e := c.inodes.get(k.parent); e != nil {
			e.known = 0
		}
	})
}

// clear forgets everything. Nobody who began to read before may fill in what was
// found: index is above all that the State had applied.
func (c *cache) clear(index uint64) {
	c.dentries.init(int(c.dentries.limit), c.dentries.evicted)
	c.inodes.init(int(c.inodes.limit), c.inodes.evicted)
	c.tails, c.tailBytes = make(map[Ino]tail), 0
	for i := range c.stamps {
		c.stamps[i] = index
	}
}

// changed notes that the command with that index changed ino.
func (c *cache) changed(ino Ino, index uint64) { c.stamps[ino%stampStripes] = index }

// current reports whether ino, as read after the command with that index, is still
// what it was.
func (c *cache) current(ino Ino, index uint64) bool { return c.stamps[ino%stampStripes] <= index }

// inode returns a cached inode.
func (c *cache) inode(ino Ino) (*inodeEntry, tail, bool) {
	e := c.inodes.get(ino)
	if e == nil {
		return nil, tail{}, false
	}
	if !e.hasTail() {
		return e, tail{}, true
	}
	return e, c.tails[ino], true
}

// entry returns a directory entry, with inode number 0 if the name is known not to
// exist. It reports whether the cache can tell.
func (c *cache) entry(k nameKey) (dentry, bool) {
	if d := c.dentries.get(k); d != nil {
		return *d, true
	}
	dir := c.inodes.get(k.parent)
	return dentry{}, dir != nil && k.hash <= dir.known
}

// hasTail reports whether the inode has inline content or a target.
func (a *attrs) hasTail() bool {
	return a.typ() == TypeSymlink || a.contentLen > 0 && !a.root.Defined()
}

func (c *cache) dropTail(ino Ino) {
	if t, ok := c.tails[ino]; ok {
		c.tailBytes -= t.cost()
		delete(c.tails, ino)
	}
}

func (t tail) cost() int64 { return int64(len(t.inline)+len(t.target)) + tailOverhead }

// putInode caches a record and returns its entry. What is known of a directory's
// entries stays.
func (c *cache) putInode(r *record) *inodeEntry {
	e := c.inodes.put(r.ino)
	if e.ino != r.ino {
		e.known = 0
	} else if e.hasTail() {
		c.dropTail(r.ino)
	}
	e.attrs = r.attrs
	if r.hasTail() {
		c.tails[r.ino] = r.tail
		c.tailBytes += r.tail.cost()
		for ino := range c.tails {
			if c.tailBytes <= c.maxBytes {
				break
			}
			if ino != r.ino {
				c.removeInode(ino)
			}
		}
	}
	return e
}

func (c *cache) removeInode(ino Ino) {
	c.dropTail(ino)
	c.inodes.remove(ino)
}

// clock is a map of bounded size that forgets what has not been used for long
// (the CLOCK approximation of LRU): a hit sets a mark, which readers can do side
// by side; the hand takes marks away and evicts what has none. Slots live in
// chunks without pointers. get may run beside get; all else needs an exclusive
// lock.
type clock[K comparable, V any] struct {
	at      map[K]int32
	chunks  [][]slot[K, V]
	used    int32 // slots ever handed out
	free    []int32
	hand    int32
	limit   int32
	evicted func(K) // told of evictions, not of removals
}

type slot[K comparable, V any] struct {
	key    K
	val    V
	marked uint32
}

const chunkSlots = 1 << 10

func (c *clock[K, V]) init(limit int, evicted func(K)) {
	*c = clock[K, V]{at: make(map[K]int32), limit: int32(max(1, min(limit, math.MaxInt32/2))), evicted: evicted}
}

func (c *clock[K, V]) slot(i int32) *slot[K, V] { return &c.chunks[i/chunkSlots][i%chunkSlots] }

// get returns the value, nil if there is none. It is valid until the next put
// or remove.
func (c *clock[K, V]) get(k K) *V {
	i, ok := c.at[k]
	if !ok {
		return nil
	}
	s := c.slot(i)
	if atomic.LoadUint32(&s.marked) == 0 {
		atomic.StoreUint32(&s.marked, 1)
	}
	return &s.val
}

// put returns the value of k to be set; of a new key it is zero.
func (c *clock[K, V]) put(k K) *V {
	if v := c.get(k); v != nil {
		return v
	}
	i := c.take()
	s := c.slot(i)
	*s = slot[K, V]{key: k}
	c.at[k] = i
	return &s.val
}

// take finds a slot, at the limit by evicting.
func (c *clock[K, V]) take() int32 {
	if n := len(c.free); n > 0 {
		i := c.free[n-1]
		c.free = c.free[:n-1]
		return i
	}
	if c.used < c.limit {
		if int(c.used) == len(c.chunks)*chunkSlots {
			c.chunks = append(c.chunks, make([]slot[K, V], min(chunkSlots, c.limit-c.used)))
		}
		c.used++
		return c.used - 1
	}
	for {
		i := c.hand
		c.hand = (c.hand + 1) % c.used
		s := c.slot(i)
		if atomic.LoadUint32(&s.marked) != 0 {
			atomic.StoreUint32(&s.marked, 0)
			continue
		}
		delete(c.at, s.key)
		c.evicted(s.key)
		return i
	}
}

// remove forgets k.
func (c *clock[K, V]) remove(k K) {
	i, ok := c.at[k]
	if !ok {
		return
	}
	delete(c.at, k)
	c.free = append(c.free, i)
}
