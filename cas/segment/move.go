package segment

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/index"
)

// move appends the blocks of a segment, in order of offset, where others are
// appended, as they are stored.
func (r *compactor) move(ctx context.Context, entries []index.Entry) error {
	if len(entries) == 0 {
		return nil
	}
	if r.group == nil {
		r.group = &group{headers: make([]byte, groupBlocks*headerSize), moved: true}
		r.buf = make([]byte, 0, groupBytes+cas.MaxBlockSize)
	}
	for i := range entries {
		if err := r.read(&entries[i]); err != nil {
			return err
		}
		if g := r.group; len(g.records) == groupBlocks || len(r.buf) >= int(min(groupBytes, r.s.o.SegmentSize/2)) {
			if err := r.append(ctx); err != nil {
				return err
			}
		}
	}
	return r.append(ctx)
}

// read adds a block to the group if it can be read and is what it should be.
func (r *compactor) read(e *index.Entry) error {
	s, at := r.s, e.At
	refuse := func(why error) error {
		if !s.left(&e.Hash, at) {
			s.o.Logger.Error("block cannot be moved", "hash", cas.NewCID(cas.Codec(at.Codec), e.Hash), "segment", fileName(at.Segment), "offset", at.Offset, "err", why)
		}
		return nil
	}
	damaged := func() error {
		s.table.suspect(&e.Hash, at)
		return refuse(cas.ErrCorrupt)
	}
	h := header{codec: at.Codec, compression: at.Compression, stored: at.Stored, raw: at.Raw, hash: e.Hash}
	if !h.plausible() {
		return damaged()
	}
	payload := r.buf[len(r.buf):][:at.Stored]
	err := s.readPayload(payload, at)
	switch {
	case errors.Is(err, ErrClosed):
		return err
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || missing(err):
		return damaged()
	case err != nil:
		return refuse(err)
	}
	var intact bool
	if r.raw, intact = h.verify(payload, r.raw); !intact {
		return damaged()
	}
	r.buf = r.buf[:len(r.buf)+len(payload)]
	r.group.records = append(r.group.records, record{header: h, payload: payload, was: at})
	return nil
}

// append writes the group and empties it. Only this and Delete change what the index
// says of a block that is not in the table, so that settling keeps it; and the tail's
// lock keeps blocks out of the table.
func (r *compactor) append(ctx context.Context) error {
	s, g := r.s, r.group
	defer func() {
		g.reset()
		r.buf = r.buf[:0]
	}()
	if len(g.records) == 0 {
		return ctx.Err()
	}
	if err := s.waitForRoom(ctx); err != nil {
		return err
	}
	n, err := s.replace(g)
	if err != nil {
		return noSpace(err)
	}
	r.bytes += n
	r.done.Moved += n
	return r.pace(ctx, n)
}

// replace writes those blocks of the group that are where they were read.
func (s *Store) replace(g *group) (written int64, err error) {
	s.moving.Lock()
	defer s.moving.Unlock()
	s.settling.Lock()
	defer s.settling.Unlock()
	there := g.records[:0]
	for i := range g.records {
		r := &g.records[i]
		at, ok, err := s.ix.Block(&r.hash)
		if err != nil {
			return 0, err
		}
		if ok && at == r.was {
			there = append(there, *r)
		}
	}
	s.tail.Lock()
	defer s.tail.Unlock()
	g.records = there[:0]
	for i := range there {
		r := &there[i]
		if _, where, _ := s.table.find(&r.hash); where == unknown {
			g.records = append(g.records, *r)
			written += r.size()
		}
	}
	if len(g.records) == 0 {
		return 0, nil
	}
	return written, s.write(g)
}

// pace waits as long as n bytes may take, unless space is short.
func (r *compactor) pace(ctx context.Context, n int64) error {
	if r.rate <= 0 || r.s.short() {
		return ctx.Err()
	}
	timer := time.NewTimer(time.Duration(float64(n) / float64(r.rate) * float64(time.Second)))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
