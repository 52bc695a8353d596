package namespace

import (
	"context"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/namespace/namespacepb"
)

// Blocks that nothing refers to are collected in rounds, and a round has steps that
// are commands, so that nodes agree on what came before which:
//
//	idle    nothing happens
//	record  stores begin to record which blocks they promise to keep, by storing
//	        one or by saying that they have it
//	renew   whoever relies on earlier promises, for content that has no name yet,
//	        has them given again
//	sweep   each node marks what can be reached from names, history and pins as of
//	        some command of this step, and forgets the blocks that are neither
//	        marked nor recorded; then the round ends
//
// Whoever leads begins a step when all sessions have done what the one before it
// asks. So a node may be one step behind another, never two.
//
// A block that has no name at the mark and gets one later is safe because the
// promise for it counts: it was given in the step of renewing or later, when every
// store that sweeps had been recording, or else the command that names it is refused
// (Honours). One that had a name and loses it is safe because whoever has seen the
// name may rely on it until the next renewal: from the beginning of renew to the end
// of the round no name is forgotten. What is overwritten moves to history (shows),
// and history is not trimmed (keep).

// Phase is a kind of step.
type Phase int

// The phases, in their order.
const (
	Idle Phase = iota
	Recording
	Renewing
	Sweeping
	phases
)

func (p Phase) String() string { return [...]string{"idle", "record", "renew", "sweep"}[p] }

// Collection says how far the collection of blocks is.
type Collection struct {
	Step    uint64 // grows by one with each step; 0 in a namespace without a round
	Began   uint64 // index of the command that began the step
	Renewed uint64 // index of the command that last began a step of renewing
	Time    int64  // log time at which the last round ended, 0 if none has
}

// Phase returns what kind of step it is.
func (c Collection) Phase() Phase { return Phase(c.Step % uint64(phases)) }

// Round returns how many rounds have ended.
func (c Collection) Round() uint64 { return c.Step / uint64(phases) }

// Honours reports whether all blocks are kept that were promised in the given step or
// later, and that a command names now: no sweep has begun that may not know of them.
func (c Collection) Honours(promised uint64) bool {
	sweep := c.Step
	if c.Phase() != Sweeping {
		sweep = c.Round() * uint64(phases) // one more than the last one
		if sweep == 0 {
			return true
		}
		sweep--
	}
	return promised+1 >= sweep
}

// shows reports whether a value that began at the given index, and is current, must
// be kept when it is overwritten: it may have been relied upon without a promise.
// Values that begin while blocks are swept hold promises that are recorded.
func (c Collection) shows(began uint64) bool {
	return c.Phase() == Renewing || c.Phase() == Sweeping && began < c.Began
}

// remembers reports whether no name is forgotten now, so that content is not folded
// either, which takes a name from what was below without leaving it to history.
func (c Collection) remembers() bool { return c.Phase() == Renewing || c.Phase() == Sweeping }

// keep limits what a trim of history removes.
func (c Collection) keep(limit uint64) uint64 {
	if c.remembers() {
		return min(limit, c.Renewed)
	}
	return limit
}

// NextStep takes the collection to Step from the step before it, ErrStep if it is at
// another.
type NextStep struct{ Step uint64 }

func (op *NextStep) encode(p *namespacepb.Op) {
	p.Kind = &namespacepb.Op_NextStep{NextStep: &namespacepb.NextStep{Step: op.Step}}
}

func (t *txn) nextStep(op *NextStep) error {
	c := &t.collect
	if op.Step != c.Step+1 {
		return fmt.Errorf("%w: %d, not the one before %d", ErrStep, c.Step, op.Step)
	}
	v, err := t.value(tagKey(nil, tagCollect))
	if err != nil {
		return err
	}
	c.Step, c.Began = op.Step, t.index
	switch c.Phase() {
	case Renewing:
		c.Renewed = t.index
	case Idle:
		c.Time = t.logTime
	}
	v.value = marshalRecord(&namespacepb.Collection{Step: c.Step, Began: c.Began, Renewed: c.Renewed, Time: c.Time})
	return nil
}

func loadCollection(db pebble.Reader) (Collection, error) {
	value, ok, err := get(db, tagKey(nil, tagCollect))
	if err != nil || !ok {
		return Collection{}, err
	}
	var m namespacepb.Collection
	if err := unmarshal(value, &m); err != nil {
		return Collection{}, fmt.Errorf("collection: %w", err)
	}
	return Collection{Step: m.Step, Began: m.Began, Renewed: m.Renewed, Time: m.Time}, nil
}

// Collection returns how far the collection of blocks is.
func (s *State) Collection() Collection {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.collect
}

// Roots is all content that the namespace refers to, as of one command. It is used by
// one goroutine.
type Roots struct {
	Collection Collection
	Applied    uint64

	snapshots []uint64
	db        *pebble.Snapshot
}

// Roots returns the content as of now. The caller closes it.
func (s *State) Roots() (*Roots, error) {
	if err := s.begin(); err != nil {
		return nil, err
	}
	defer s.mu.RUnlock()
	return &Roots{Collection: s.collect, Applied: s.meta.applied, snapshots: s.snapshots, db: s.db.NewSnapshot()}, nil
}

// Close gives the roots up.
func (r *Roots) Close() error { return r.db.Close() }

// Root is content that is referred to: by an inode, now or in history, or by a pin.
type Root struct {
	CID cas.CID
	Ino Ino    // 0: a pin
	Pin string // its name
}

// Each calls fn for all content: that of inodes, with or without a name, that of
// history which is not trimmed, and that of pins. Content that several refer to comes
// several times. History that ended before the given log time is left out unless a
// snapshot shows it, as a trim would; 0 leaves out nothing.
func (r *Roots) Each(ctx context.Context, before int64, fn func(Root) error) error {
	var limit uint64
	if before > 0 {
		var err error
		if limit, err = indexAt(r.db, before); err != nil {
			return err
		}
	}
	content := func(tail, value []byte, ended uint64) error {
		ino, _, ok := splitNumberKey(append([]byte{space}, tail...))
		if !ok {
			return fmt.Errorf("%w: inode key %x", ErrCorrupt, tail)
		}
		n, err := decodeInode(Ino(ino), value)
		if err != nil || !n.root.Defined() {
			return err
		}
		if ended != 0 && ended <= limit {
			if _, kept := snapshotOf(r.snapshots, n.began, ended); !kept {
				return nil
			}
		}
		return fn(Root{CID: n.root, Ino: n.ino})
	}
	each := func(prefix []byte, fn func(key, value []byte) error) error {
		n := 0
		return scan(r.db, prefix, func(key, value []byte) (bool, error) {
			if n++; n%1024 == 0 {
				if err := ctx.Err(); err != nil {
					return false, err
				}
			}
			return true, fn(key, value)
		})
	}
	err := each(tagKey(nil, tagInode), func(key, value []byte) error { return content(key[1:], value, 0) })
	if err != nil {
		return err
	}
	err = each([]byte{space, tagHistory, tagInode}, func(key, value []byte) error {
		tail, ended, ok := splitHistoryKey(key)
		if !ok {
			return fmt.Errorf("%w: history key %x", ErrCorrupt, key)
		}
		return content(tail, value, ended)
	})
	if err != nil {
		return err
	}
	return each(tagKey(nil, tagPin), func(key, value []byte) error {
		var m namespacepb.Pin
		if err := unmarshal(value, &m); err != nil {
			return fmt.Errorf("pin: %w", err)
		}
		c, err := pinCID(key)
		if err != nil {
			return err
		}
		return fn(Root{CID: c, Pin: string(m.Name)})
	})
}
