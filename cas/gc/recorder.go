package gc

import (
	"sync"
	"sync/atomic"

	"github.com/cairnfs/cairn/cas"
)

// DefaultRecords is how many promises a Recorder keeps, unless told otherwise: they
// take 180 MiB at most.
const DefaultRecords = 8 << 20

const shards = 64

// Recorder knows which blocks a store has promised to keep since it was started. It
// costs next to nothing while it is not recording. Its methods may be called from any
// number of goroutines.
type Recorder struct {
	limit  int64
	on     atomic.Bool
	n      atomic.Int64
	failed atomic.Bool // too many
	shards [shards]struct {
		sync.Mutex
		set Set
	}
}

// NewRecorder returns a Recorder of at most limit promises; 0 means DefaultRecords.
func NewRecorder(limit int) *Recorder {
	if limit == 0 {
		limit = DefaultRecords
	}
	return &Recorder{limit: int64(limit)}
}

// Promised is told of each block that the store promises to keep, before it says so.
func (r *Recorder) Promised(c cas.CID) {
	if !r.on.Load() {
		return
	}
	key := Key(c)
	shard := &r.shards[key%shards]
	shard.Lock()
	defer shard.Unlock()
	if !r.on.Load() || r.failed.Load() || !shard.set.Add(key) {
		return
	}
	if r.n.Add(1) > r.limit {
		r.failed.Store(true)
	}
}

// Has reports whether the block was promised since Start. If not all promises are
// known, any may have been.
func (r *Recorder) Has(c cas.CID) bool {
	key := Key(c)
	shard := &r.shards[key%shards]
	shard.Lock()
	defer shard.Unlock()
	return !r.on.Load() || r.failed.Load() || shard.set.Has(key)
}

// Complete reports whether all promises since Start are known.
func (r *Recorder) Complete() bool { return r.on.Load() && !r.failed.Load() }

// Start begins to record, unless it does already.
func (r *Recorder) Start() { r.on.Store(true) }

// Stop ends it and forgets everything.
func (r *Recorder) Stop() {
	if !r.on.Swap(false) {
		return
	}
	for i := range r.shards {
		shard := &r.shards[i]
		shard.Lock()
		shard.set = Set{}
		shard.Unlock()
	}
	r.n.Store(0)
	r.failed.Store(false)
}
