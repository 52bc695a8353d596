package gc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/cairnfs/cairn/cas"
)

// Local is the store that is swept.
type Local interface {
	// List appends to page[:0] at most limit CIDs of blocks held whose hash is
	// greater than after, in order of hash; fewer only at the end.
	List(ctx context.Context, after [cas.HashSize]byte, limit int, page []cas.CID) ([]cas.CID, error)
	// Delete forgets those of the blocks that are held and for which unless is
	// false. It is asked while no promise about the block is given.
	Delete(ctx context.Context, cids []cas.CID, unless func(cas.CID) bool) (deleted int, freed int64, err error)
}

// Defaults of Options.
const (
	DefaultMarks = 24 << 20
	DefaultRate  = 200_000
)

// Options say what a Sweeper works with. Without a comment they are required.
type Options struct {
	// Roots calls each for all content that is referred to, with a name for it
	// that people understand.
	Roots func(ctx context.Context, each func(root cas.CID, name string) error) error
	// Get reads inner nodes, wherever they are.
	Get   cas.Getter
	Local Local
	// Keep says that a block stays although nothing refers to it.
	Keep func(cas.CID) bool
	// DryRun has nothing deleted; freed bytes are not known then.
	DryRun bool
	// Marks bounds the blocks that are marked at a time, and with them the
	// memory: 22 bytes for each, 8 while there are few. With more, parts of all
	// blocks are swept one after the other, for each of which inner nodes are read
	// again. 0 means DefaultMarks, half a GiB at most.
	Marks int
	// Rate bounds the blocks that are looked at per second, so that other work
	// finds the disk free; 0 means DefaultRate, less than 0 no bound.
	Rate int
	// Progress is told of what was done so far; may be nil.
	Progress func(Result)
}

// Result is what a Sweeper did.
type Result struct {
	Marked  int64 // blocks that are referred to, as far as they were counted
	Nodes   int64 // inner nodes that were read for that
	Checked int64 // blocks of the local store that were looked at
	Deleted int64 // blocks; with DryRun, that would have been
	Freed   int64 // bytes as stored
}

// RootError says that content which is referred to could not be marked, so that
// nothing was deleted that it might refer to. It unwraps to the cause, which names the
// block.
type RootError struct {
	Name string
	CID  cas.CID
	Err  error
}

func (e *RootError) Error() string {
	return fmt.Sprintf("content of %s (%v) cannot be read, so nothing is collected: %v", e.Name, e.CID, e.Err)
}

func (e *RootError) Unwrap() error { return e.Err }

// sweepPage is how many blocks are looked at, and deleted, at a time.
const sweepPage = 512

// errManyMarks ends a mark that takes too much memory.
var errManyMarks = errors.New("too many marks")

// Sweeper is one sweep of a store.
type Sweeper struct {
	o    Options
	res  Result
	pace pace
	page []cas.CID
	dead []cas.CID

	mu       sync.RWMutex // over what follows, which only Run changes
	marked   Set
	from, to uint64 // the part of all keys that is marked
	complete bool
}

// NewSweeper returns a Sweeper.
func NewSweeper(o Options) *Sweeper {
	if o.Marks <= 0 {
		o.Marks = DefaultMarks
	}
	if o.Rate == 0 {
		o.Rate = DefaultRate
	}
	if o.Progress == nil {
		o.Progress = func(Result) {}
	}
	return &Sweeper{o: o, pace: pace{perSecond: o.Rate}}
}

// Run deletes all blocks of the local store that nothing refers to. Nothing is deleted
// before all content was gone through. It fails with *RootError if some cannot be.
func (s *Sweeper) Run(ctx context.Context) (Result, error) {
	// Blocks are divided by their first bits into parts that can be marked.
	for from, width := uint64(0), uint64(math.MaxUint64); ; {
		to := from + min(width, math.MaxUint64-from)
		err := s.mark(ctx, from, to)
		if errors.Is(err, errManyMarks) && width > 1 {
			width /= 2
			continue
		}
		if err == nil {
			err = s.part(ctx, from, to)
		}
		if err != nil || to == math.MaxUint64 {
			return s.res, err
		}
		from = to + 1
	}
}

// Dead reports whether the block is about to be deleted, as far as is known.
func (s *Sweeper) Dead(c cas.CID) bool {
	key := Key(c)
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.complete && s.from <= key && key <= s.to && !s.marked.Has(key) && !s.o.Keep(c)
}

// mark goes through all content and marks blocks with keys from from to to.
func (s *Sweeper) mark(ctx context.Context, from, to uint64) error {
	s.mu.Lock()
	s.marked, s.from, s.to, s.complete = Set{}, from, to, false
	s.mu.Unlock()
	w := Walker{Get: s.o.Get}
	err := s.o.Roots(ctx, func(root cas.CID, name string) error {
		err := w.Walk(ctx, root, func(c cas.CID) error {
			if key := Key(c); from <= key && key <= to && s.marked.Add(key) && s.marked.Len() > s.o.Marks {
				return errManyMarks
			}
			return nil
		})
		if err == nil || errors.Is(err, errManyMarks) || ctx.Err() != nil {
			return err
		}
		return &RootError{Name: name, CID: root, Err: err}
	})
	s.res.Nodes += int64(w.Nodes())
	if err == nil {
		s.mu.Lock()
		s.complete = true
		s.mu.Unlock()
		s.res.Marked += int64(s.marked.Len())
		s.o.Progress(s.res)
	}
	return err
}

// part deletes what is not marked of the blocks with keys from from to to.
func (s *Sweeper) part(ctx context.Context, from, to uint64) error {
	after := hashBefore(from)
	for {
		var err error
		if s.page, err = s.o.Local.List(ctx, after, sweepPage, s.page); err != nil {
			return err
		}
		s.dead = s.dead[:0]
		for _, c := range s.page {
			after = c.Hash()
			key := KeyOf(&after)
			if key > to {
				break
			}
			// A block of which nothing comes before it is looked at, too.
			if s.res.Checked++; key >= from && !s.marked.Has(key) && !s.o.Keep(c) {
				s.dead = append(s.dead, c)
			}
		}
		if err := s.forget(ctx); err != nil {
			return err
		}
		if len(s.page) < sweepPage || KeyOf(&after) > to {
			return nil
		}
		if err := s.pace.wait(ctx, len(s.page)); err != nil {
			return err
		}
	}
}

// forget deletes what was found dead.
func (s *Sweeper) forget(ctx context.Context) error {
	if len(s.dead) == 0 {
		return ctx.Err()
	}
	if s.o.DryRun {
		s.res.Deleted += int64(len(s.dead))
		return ctx.Err()
	}
	n, freed, err := s.o.Local.Delete(ctx, s.dead, s.o.Keep)
	s.res.Deleted += int64(n)
	s.res.Freed += freed
	s.o.Progress(s.res)
	return err
}

// hashBefore returns the greatest hash that is less than all whose key is at least
// the given one, for List; of key 0 the hash of zeros, which no block has.
func hashBefore(key uint64) (h [cas.HashSize]byte) {
	if key == 0 {
		return h
	}
	for i := range h {
		h[i] = 0xff
	}
	key--
	for i := range 8 {
		h[i] = byte(key >> (56 - 8*i))
	}
	return h
}

// pace spreads work over time.
type pace struct {
	perSecond int
	next      time.Time
}

// wait returns when n more units may be begun.
func (p *pace) wait(ctx context.Context, n int) error {
	if p.perSecond <= 0 {
		return ctx.Err()
	}
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(n) * time.Second / time.Duration(p.perSecond))
	delay := p.next.Sub(now)
	if delay < 5*time.Millisecond {
		return ctx.Err()
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
