package raft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/cairnfs/cairn/namespace"
	"github.com/cairnfs/cairn/p2p"
)

// Raft's message that a snapshot is to be taken carries none: whoever gets it asks
// the sender for its namespace, a chunk at a time, and hands the message on to raft
// when it has all of it, with the place that the namespace really has.

// protocolSnapshot carries requests of a version byte, and the number of an export,
// 0 for a new one. The answer to that is a header, a raftpb.Message whose Index is
// the number, whose Snapshot says the place and whose Context is the group; to all
// others the next chunk, at the end nothing.
const protocolSnapshot p2p.Protocol = "/cairn/snapshot/1"

const (
	maxExports       = 4
	snapshotPatience = 20 * time.Second // without a request
	catchUpPatience  = 2 * time.Minute  // without an entry more, once all was sent, and as long as that took: it is to be installed
)

// exports are the namespaces that are being sent, or were just now.
type exports struct {
	mu    sync.Mutex
	last  uint64
	open  map[uint64]*export
	ended bool
}

type export struct {
	peer   p2p.PeerID
	member uint64 // number of the peer in the group
	began  time.Time

	// Under the mutex of exports.
	used     time.Time // when it was of use
	patience time.Duration
	sent     bool   // as a whole
	match    uint64 // what of the log the member had when it was of use

	mu     sync.Mutex // never held for longer than a chunk takes to be read
	e      *namespace.Export
	closed bool
}

func (x *exports) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ended = true
	var errs []error
	for id, e := range x.open {
		delete(x.open, id)
		errs = append(errs, e.close())
	}
	return errors.Join(errs...)
}

// drop closes exports that are not asked for any more, and, with peer, all of one
// peer.
func (x *exports) drop(peer p2p.PeerID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, e := range x.open {
		if e.peer == peer || time.Since(e.used) > e.patience {
			delete(x.open, id)
			_ = e.close() // of something only read
		}
	}
}

// finish takes note that a peer has all of an export. It stays until the peer has
// caught up, or might have.
func (x *exports) finish(e *export) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e.sent, e.patience = true, catchUpPatience+time.Since(e.began)
	_ = e.close() // of something only read
}

// release drops exports that were sent to members that have caught up by now, or if
// progress is nil, because this node does not lead and keeps nothing for them.
func (x *exports) release(progress map[uint64]peerProgress) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for id, e := range x.open {
		p := progress[e.member]
		switch {
		case !e.sent:
		case progress == nil || p.caught:
			delete(x.open, id)
		case p.match > e.match:
			e.match, e.used = p.match, time.Now()
		}
	}
}

// any reports whether there are any.
func (x *exports) any() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.open) > 0
}

// sending returns how many there are of which not all was sent. x.mu is held.
func (x *exports) sending() (n int) {
	for _, e := range x.open {
		if !e.sent {
			n++
		}
	}
	return n
}

func (l *Log) handleSnapshot(ctx context.Context, from p2p.PeerID, req []byte) ([]byte, error) {
	if len(req) != 9 || req[0] != formatVersion {
		return nil, namespace.ErrVersion
	}
	raftID := uint64(0)
	if v := l.o.State.View(); v != nil && v.Member(from) != nil {
		raftID = v.Member(from).Raft
	}
	l.do(ctx, func() {
		if _, waiting := l.snapshots[raftID]; waiting {
			l.snapshots[raftID] = l.o.Clock() + snapshotPatience
		}
	})
	x := &l.exports
	id := binary.BigEndian.Uint64(req[1:])
	if id == 0 {
		answer, err := l.newExport(ctx, from, raftID)
		if err != nil { // it is offered again soon
			l.do(ctx, func() {
				delete(l.snapshots, raftID)
				l.core.rn.ReportSnapshot(raftID, raft.SnapshotFailure)
			})
		}
		return answer, err
	}
	x.mu.Lock()
	e := x.open[id]
	if e != nil && e.peer == from {
		e.used = time.Now()
	} else {
		e = nil
	}
	x.mu.Unlock()
	if e == nil {
		return nil, errNoExport
	}
	chunk, err := e.next()
	if err == nil && len(chunk) == 0 {
		x.finish(e)
		l.do(ctx, func() {
			delete(l.snapshots, raftID)
			l.core.rn.ReportSnapshot(raftID, raft.SnapshotFinish)
		})
	}
	return chunk, err
}

var errNoExport = errors.New("this snapshot is not offered any more")

// next returns the next chunk.
func (e *export) next() ([]byte, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, errNoExport
	}
	return e.e.Next(nil)
}

func (e *export) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	return e.e.Close()
}

// export begins to send the namespace, and returns what the receiver is to know of
// it. It is called by the run loop: between the commands of an entry, the namespace
// is at no place that the log can go on from.
func (l *Log) export() (*namespace.Export, *raftpb.Message, error) {
	if !l.store.whole(l.o.State.Position()) {
		return nil, nil, errors.New("this node has only just started")
	}
	e, err := l.o.State.Export()
	if err != nil {
		return nil, nil, err
	}
	group, err := e.Group()
	if err == nil && len(group) == 0 {
		err = errors.New("this node has no names yet")
	}
	if err != nil {
		return nil, nil, errors.Join(err, e.Close())
	}
	at := e.Position()
	return e, &raftpb.Message{
		Type: raftpb.MsgSnap.Enum(), Context: group,
		Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: proto.Uint64(at.Entry), Term: proto.Uint64(at.Term)}},
	}, nil
}

func (l *Log) newExport(ctx context.Context, from p2p.PeerID, member uint64) ([]byte, error) {
	x := &l.exports
	x.drop(from)
	var e *namespace.Export
	var header *raftpb.Message
	err := error(ErrClosed)
	if !l.do(ctx, func() { e, header, err = l.export() }) {
		return nil, ErrClosed
	}
	if err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.ended || x.sending() >= maxExports {
		return nil, errors.Join(errors.New("too many snapshots are being sent"), e.Close())
	}
	x.last++
	header.Index = proto.Uint64(x.last)
	answer, err := encode(header)
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	if x.open == nil {
		x.open = make(map[uint64]*export)
	}
	now := time.Now()
	x.open[x.last] = &export{e: e, peer: from, member: member, began: now, used: now, patience: snapshotPatience}
	return answer, nil
}

// fetch gets the namespace of the sender of m and hands both to the core.
func (l *Log) fetch(m *raftpb.Message, from p2p.PeerID) {
	if !l.fetching.CompareAndSwap(false, true) {
		return
	}
	l.running.Go(func() {
		defer l.fetching.Store(false)
		in, header, err := l.download(l.stopped, from)
		if err != nil {
			if l.stopped.Err() == nil {
				l.o.Logger.Warn("cannot get the names from another node; it is tried again", "peer", from, "err", err)
			}
			return
		}
		meta := header.GetSnapshot().GetMetadata()
		handed := l.do(l.stopped, func() {
			at := namespace.Position{Entry: meta.GetIndex(), Term: meta.GetTerm(), Commands: 1 << 31}
			if err := l.core.receive(m, in, at, header.GetContext()); err != nil {
				l.o.Logger.Warn("snapshot refused", "peer", from, "err", err)
			}
		})
		if !handed {
			_ = in.Abort() // the process ends
			return
		}
		// What was received is installed before the run loop takes another call.
		// Until then the file is in use, and must not be received anew.
		l.do(l.stopped, func() {})
	})
}

func (l *Log) download(ctx context.Context, from p2p.PeerID) (*namespace.Import, *raftpb.Message, error) {
	ask := func(id uint64) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, snapshotPatience)
		defer cancel()
		return l.o.Transport.Call(ctx, from, protocolSnapshot, binary.BigEndian.AppendUint64([]byte{formatVersion}, id))
	}
	answer, err := ask(0)
	if err != nil {
		return nil, nil, err
	}
	var header raftpb.Message
	if err := decode(answer, &header); err != nil {
		return nil, nil, err
	}
	if header.GetSnapshot().GetMetadata().GetIndex() == 0 || len(header.GetContext()) == 0 {
		return nil, nil, fmt.Errorf("header of a snapshot: %w", namespace.ErrCorrupt)
	}
	in, err := l.o.State.Import(l.o.FS, l.o.FS.PathJoin(l.o.Dir, "names.received"))
	if err != nil {
		return nil, nil, err
	}
	for {
		chunk, err := ask(header.GetIndex())
		if err == nil && len(chunk) > 0 {
			err = in.Add(chunk)
		}
		if err != nil {
			return nil, nil, errors.Join(err, in.Abort())
		}
		if len(chunk) == 0 {
			return in, &header, nil
		}
	}
}

// forgetSnapshots tells raft of members that do not ask for theirs, and forgets those that
// are not needed any more.
func (l *Log) forgetSnapshots() {
	now := l.o.Clock()
	for id, until := range l.snapshots {
		if now > until {
			delete(l.snapshots, id)
			l.core.rn.ReportSnapshot(id, raft.SnapshotFailure)
		}
	}
	l.exports.drop("")
	if l.exports.any() {
		l.exports.release(l.progress())
	}
}
