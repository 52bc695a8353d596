package node

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/gc"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/index/journal"
	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/namespace/raft"
	"github.com/cairnfs/cairn/namespace/solo"
)

// A node begins alone and may be in a cluster later, while it runs: then another
// log orders its commands and another store has its blocks. What is built on the
// two does not notice.

// ordering is the node's log: solo's until there is a group.
type ordering struct {
	solo *solo.Log
	// secure makes the blocks of trees durable on as many nodes as a command needs
	// that names them.
	secure func(ctx context.Context, cmd *namespace.Command) error
	failed chan error // holds the first error after which nothing can be changed

	offline bool // a member that takes no part: nothing is ordered

	mu    sync.RWMutex // held for reading while solo is used
	group *raft.Log
}

var _ namespace.Log = (*ordering)(nil)

// cluster returns the group's log, nil if there is none.
func (o *ordering) cluster() *raft.Log {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.group
}

func (o *ordering) Propose(ctx context.Context, cmd *namespace.Command) (namespace.Result, error) {
	o.mu.RLock()
	group := o.group
	if group == nil {
		defer o.mu.RUnlock()
		if o.offline {
			return namespace.Result{}, ErrOffline
		}
		res, err := o.solo.Propose(ctx, cmd)
		o.watch(ctx, err)
		return res, err
	}
	o.mu.RUnlock()
	// Data first, then name.
	if err := o.secure(ctx, cmd); err != nil {
		return namespace.Result{}, err
	}
	return group.Propose(ctx, cmd)
}

func (o *ordering) Sync(ctx context.Context) error {
	o.mu.RLock()
	group := o.group
	if group == nil {
		defer o.mu.RUnlock()
		err := o.solo.Sync(ctx)
		o.watch(ctx, err)
		return err
	}
	o.mu.RUnlock()
	return group.Sync(ctx)
}

func (o *ordering) watch(ctx context.Context, err error) {
	if err == nil || ctx.Err() != nil || errors.Is(err, solo.ErrTooLarge) ||
		errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return
	}
	o.fail(err)
}

func (o *ordering) fail(err error) {
	select {
	case o.failed <- err:
	default:
	}
}

// checkpoint returns the first record of the journal, at most keep, that the log
// needs once the index has been flushed.
func (o *ordering) checkpoint(keep journal.Seq) (journal.Seq, error) {
	group := o.cluster()
	if group == nil {
		o.solo.Applied() // waits until commands that are in the journal are in the index
		return keep, nil
	}
	needed, err := group.Checkpoint()
	return min(keep, needed), err
}

// storage is the node's store: the disk's, or the cluster's.
type storage struct {
	current atomic.Pointer[cas.Store]
	fetch   atomic.Pointer[func(context.Context, []cas.CID)]
}

var (
	_ cas.Store           = (*storage)(nil)
	_ gc.Renewer          = (*storage)(nil)
	_ manifest.Prefetcher = (*storage)(nil)
)

func (s *storage) use(store cas.Store) { s.current.Store(&store) }

func (s *storage) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	return (*s.current.Load()).Get(ctx, c, buf)
}

func (s *storage) Put(ctx context.Context, blocks ...cas.Block) error {
	return (*s.current.Load()).Put(ctx, blocks...)
}

func (s *storage) Has(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	return (*s.current.Load()).Has(ctx, cids...)
}

// Renew is gc.Renewer's.
func (s *storage) Renew(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	return gc.Promise(ctx, *s.current.Load(), cids...)
}

func (s *storage) Sync(ctx context.Context) error { return (*s.current.Load()).Sync(ctx) }

// ahead is how far ahead of a reader blocks of other nodes are fetched, in bytes.
const ahead = 12 << 20

// Ahead is manifest.Prefetcher's.
func (s *storage) Ahead() int64 {
	if s.fetch.Load() == nil {
		return 0
	}
	return ahead
}

// Prefetch has blocks fetched that will be read soon, if they are elsewhere.
func (s *storage) Prefetch(ctx context.Context, cids []cas.CID) {
	if fetch := s.fetch.Load(); fetch != nil {
		(*fetch)(ctx, cids)
	}
}
