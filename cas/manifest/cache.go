package manifest

import (
	"container/list"
	"context"
	"errors"
	"math/bits"
	"sync"

	"github.com/cairnfs/cairn/cas"
)

// Sizes of caches in bytes.
const (
	defaultCache = 32 << 20
	privateCache = 4 << 20 // of a Reader or Writer that was given none
)

// Cache keeps what reading files needs again: decoded inner nodes (a quarter of
// its size) and verified leaves (the rest), the most recently used ones. Readers
// share one, so that its size bounds the memory that all of them take. Leaves lie
// in buffers that are used again; what is being read at the moment counts in
// addition. Its methods may be called from any number of goroutines.
type Cache struct {
	nodes   lru[*node]
	leaves  lru[*leaf]
	buffers buffers
}

// leaf is a verified raw block.
type leaf struct {
	data []byte
	buf  *[]byte // what data lies in, as a rule; goes back to the buffers
}

// NewCache returns a Cache of the given size in bytes; 0 stands for 32 MiB.
func NewCache(size int64) *Cache {
	if size <= 0 {
		size = defaultCache
	}
	c := &Cache{}
	c.nodes.limit = size / 4
	c.leaves.limit = size - size/4
	c.leaves.free = func(l *leaf) { c.buffers.put(l.buf) }
	return c
}

// buffers hands out buffers for blocks, by powers of two. What is not in use
// belongs to the garbage collector.
type buffers struct {
	pools [21]sync.Pool // pools[i] has buffers of 1<<i bytes, up to MaxBlockSize
}

func (b *buffers) get(n int64) *[]byte {
	class := bits.Len64(uint64(max(n, 1) - 1))
	if p, ok := b.pools[class].Get().(*[]byte); ok {
		return p
	}
	p := make([]byte, 1<<class)
	return &p
}

func (b *buffers) put(p *[]byte) { b.pools[bits.Len(uint(len(*p)-1))].Put(p) }

// lru keeps the values used last, up to a total cost of limit. Each value is
// loaded once, however many goroutines ask for it at the same time, and freed
// when it is neither kept nor in use.
type lru[V any] struct {
	limit int64
	free  func(V) // may be nil

	mu    sync.Mutex
	used  int64
	items map[cas.CID]*item[V]
	order list.List // of *item[V] that are loaded, the last used in front
}

type item[V any] struct {
	key   cas.CID
	ready chan struct{} // closed when value or err is set
	value V
	err   error
	cost  int64
	refs  int // users, and the lru itself as long as it has the item
	place *list.Element
}

// peek returns the item if it is there and loaded, else nil. The caller releases
// it.
func (c *lru[V]) peek(key cas.CID) *item[V] {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.items[key]
	if it == nil || it.place == nil {
		return nil
	}
	it.refs++
	c.order.MoveToFront(it.place)
	return it
}

// get returns the item, loading it if need be. The caller releases it. If
// another caller's context ends while that one loads, get tries itself.
func (c *lru[V]) get(ctx context.Context, key cas.CID, load func() (V, int64, error)) (*item[V], error) {
	for {
		c.mu.Lock()
		it := c.items[key]
		if it == nil {
			it = &item[V]{key: key, ready: make(chan struct{}), refs: 2}
			if c.items == nil {
				c.items = make(map[cas.CID]*item[V])
			}
			c.items[key] = it
			c.mu.Unlock()
			it.value, it.cost, it.err = load()
			c.loaded(it)
			if it.err != nil {
				return nil, it.err
			}
			return it, nil
		}
		it.refs++
		if it.place != nil {
			c.order.MoveToFront(it.place)
		}
		c.mu.Unlock()
		select {
		case <-it.ready:
		case <-ctx.Done():
			c.release(it)
			return nil, ctx.Err()
		}
		if it.err == nil {
			return it, nil
		}
		foreign := errors.Is(it.err, context.Canceled) || errors.Is(it.err, context.DeadlineExceeded)
		if ctx.Err() != nil || !foreign {
			return nil, it.err
		}
	}
}

// loaded lets others see the result of loading it, keeps it if it is a value,
// and drops what has become too much.
func (c *lru[V]) loaded(it *item[V]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer close(it.ready)
	if it.err != nil {
		delete(c.items, it.key) // there is no value to free
		return
	}
	c.used += it.cost
	it.place = c.order.PushFront(it)
	for c.used > c.limit {
		last := c.order.Back().Value.(*item[V])
		c.order.Remove(last.place)
		delete(c.items, last.key)
		c.used -= last.cost
		last.place = nil
		c.unref(last)
	}
}

func (c *lru[V]) release(it *item[V]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unref(it)
}

// unref is called with mu held. An item that failed to load has no value, and
// one whose loading is not over has the reference of the lru.
func (c *lru[V]) unref(it *item[V]) {
	if it.refs--; it.refs == 0 && it.err == nil && c.free != nil {
		c.free(it.value)
	}
}
