package manifest

import (
	"context"
	"errors"
	"io"
	"math"
	"sync"

	"github.com/cairnfs/cairn/cas"
)

// Limits of a Writer.
const (
	maxBatch    = 64        // blocks per Put
	batchBytes  = 1 << 20   // a Put is due as soon as it has so many bytes
	minAside    = 512 << 10 // bytes that are worth a goroutine of their own
	firstBuffer = 64 << 10  // of ReadFrom, grows to readChunks chunks
	readChunks  = 4         // ReadFrom's buffer holds so many chunks of maximal length
)

// errFinished is what a Writer answers after Finish.
var errFinished = errors.New("manifest: writer is finished")

// Writer builds the tree of a file from its bytes, given in order. What has been
// written stays readable (ReadAt) and the tree can be had at any time (Snapshot).
//
// Leaves are cut out of the caller's or ReadFrom's buffer without copying, and
// are stored, in groups of up to 64, before the call that completed them
// returns. Only the chunk under way, at most Params.Max bytes, is kept. Blocks are
// durable after the next Sync of the store.
//
// A Writer must not be used from several goroutines at once, except for ReadAt
// calls beside each other. After an error from the store, or a context that ended
// meanwhile, blocks may be missing: every later call returns that error.
type Writer struct {
	store Store
	tree  tree

	// The content is what the tree holds, followed by zeros bytes of zero,
	// followed by buf[head:tail], which is shorter than Params.Max. Both lie
	// after the last cut, and at most one of them is not empty.
	buf        []byte
	head, tail int
	zeros      int64

	// batch are leaves not yet stored, batched is their size in bytes. They
	// may refer to buf[:head] and to what the caller gave.
	batch   []cas.Block
	batched int
	// putting answers when the Put under way has ended, nil if there is none.
	// It may refer to spare: the other buffer, and the other batch.
	putting    chan error
	spare      []byte
	spareBatch []cas.Block
	size       int64
	err        error

	holes      holes
	holeStored bool   // whether the leaf of zeros was put by this writer
	inHoles    int64  // bytes in such leaves
	taken      ranges // of the old file at hand: subtrees that were taken whole

	once sync.Once // for src
	src  source
}

// NewWriter returns a Writer of an empty file. If f is unusable, every call fails
// with ErrFormat.
func NewWriter(store Store, f Format) *Writer {
	s, err := f.shape()
	return &Writer{store: store, tree: tree{shape: s, put: store}, holes: holes{shape: &s}, err: err}
}

// Reset makes w one of an empty file again, in the same Format. Its buffers are
// kept: for many small files that is what a Writer costs.
func (w *Writer) Reset() {
	if errors.Is(w.err, ErrFormat) {
		return
	}
	levels := w.tree.levels
	for i := range levels {
		levels[i] = group{links: levels[i].links[:0]}
	}
	*w = Writer{
		store: w.store,
		tree:  tree{shape: w.tree.shape, put: w.store, levels: levels[:0], buf: w.tree.buf},
		buf:   w.buf,
		batch: w.batch[:0],
		spare: w.spare, spareBatch: w.spareBatch,
		holes: w.holes,
	}
}

// Size returns how many bytes were written.
func (w *Writer) Size() int64 { return w.size }

// pending returns the bytes of the chunk under way.
func (w *Writer) pending() []byte { return w.buf[w.head:w.tail] }

// idle reports whether the last byte was the last of a chunk.
func (w *Writer) idle() bool { return w.head == w.tail && w.zeros%int64(w.tree.maxChunk) == 0 }

// extend accounts for n bytes more.
func (w *Writer) extend(n int64) error {
	if n > math.MaxInt64-w.size {
		return ErrFileTooLarge
	}
	w.size += n
	return nil
}

// fail remembers an error that leaves w without some of its blocks.
func (w *Writer) fail(err error) error {
	if err != nil && w.err == nil {
		w.err = err
		_ = w.await() // the caller's bytes are used no longer
	}
	return err
}

// Write appends p. It keeps no reference to p. Errors: ErrFileTooLarge, with
// nothing written, or the store's.
func (w *Writer) Write(ctx context.Context, p []byte) error {
	if w.err != nil {
		return w.err
	}
	if err := w.extend(int64(len(p))); err != nil {
		return err
	}
	return w.fail(w.write(ctx, p))
}

func (w *Writer) write(ctx context.Context, p []byte) error {
	if err := w.materialise(ctx); err != nil {
		return err
	}
	p, err := w.complete(ctx, p)
	if err != nil {
		return err
	}
	for long := len(p) >= w.tree.maxChunk; long; {
		n := w.tree.chunker.Cut(p)
		if !w.final(n, len(p)) {
			break
		}
		if err := w.emit(ctx, p[:n]); err != nil {
			return err
		}
		p = p[n:]
	}
	if err := w.flush(ctx); err != nil {
		return err
	}
	return w.keep(ctx, p)
}

// complete ends the chunk under way with bytes from p and returns the rest of p.
// If p is too short to be sure of the end, it is all kept.
func (w *Writer) complete(ctx context.Context, p []byte) ([]byte, error) {
	for w.head < w.tail {
		have := w.tail - w.head
		if have+len(p) < w.tree.maxChunk {
			return nil, w.keep(ctx, p)
		}
		n := w.tree.chunker.Cut(w.pending())
		if !w.final(n, have) {
			if err := w.keep(ctx, p[:w.tree.maxChunk-have]); err != nil {
				return nil, err
			}
			n = w.tree.chunker.Cut(w.pending())
		}
		if err := w.emit(ctx, w.buf[w.head:w.head+n]); err != nil {
			return nil, err
		}
		w.head += n
		if n >= have {
			w.head, w.tail = 0, 0 // flushed before buf is written again
			return p[n-have:], nil
		}
	}
	return p, nil
}

// keep appends p to the chunk under way.
func (w *Writer) keep(ctx context.Context, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if err := w.reserve(ctx, len(p), 0); err != nil {
		return err
	}
	w.tail += copy(w.buf[w.tail:], p)
	return nil
}

// reserve makes room for n more bytes in buf, which gets at least the given
// length if it has to be replaced.
func (w *Writer) reserve(ctx context.Context, n, length int) error {
	if len(w.buf)-w.tail >= n {
		return nil
	}
	if err := w.push(ctx); err != nil {
		return err
	}
	to, have := w.buf, w.tail-w.head
	if w.putting != nil {
		to, w.spare = w.spare, w.buf
	}
	if len(to) < max(have+n, length) {
		to = make([]byte, max(have+n, min(2*len(w.buf), 2*w.tree.maxChunk), length))
	}
	w.head, w.tail, w.buf = 0, copy(to, w.pending()), to
	return nil
}

// emit makes a leaf of data, which must not change before the next flush.
func (w *Writer) emit(ctx context.Context, data []byte) error {
	if len(w.batch) == maxBatch || w.batched >= batchBytes {
		if err := w.push(ctx); err != nil {
			return err
		}
	}
	b, err := cas.NewBlock(cas.Raw, data)
	if err != nil {
		return err
	}
	w.batch, w.batched = append(w.batch, b), w.batched+len(data)
	n := int64(len(data))
	return w.addLeaf(ctx, link{b.CID(), n, n})
}

// addLeaf adds a leaf that is stored, or will be.
func (w *Writer) addLeaf(ctx context.Context, l link) error {
	if l.size == int64(w.tree.maxChunk) && l.cid == w.holes.leaf().cid {
		w.inHoles += l.size
	}
	return w.tree.add(ctx, 0, l, 1)
}

// push begins to store the leaves cut so far, when those before are stored. What
// follows is cut and hashed meanwhile: storing takes half as long as that, so a
// stream gains a third on two processors.
func (w *Writer) push(ctx context.Context) error {
	if err := w.await(); err != nil || len(w.batch) == 0 {
		return err
	}
	batch := w.batch
	if w.batched < minAside {
		w.batch, w.batched = batch[:0], 0
		defer clear(batch) // lets go of the caller's bytes
		return w.store.Put(ctx, batch...)
	}
	w.batch, w.spareBatch, w.batched = w.spareBatch[:0], batch, 0
	done := make(chan error, 1)
	w.putting = done
	go func() {
		err := w.store.Put(ctx, batch...)
		clear(batch)
		done <- err
	}()
	return nil
}

// await waits for the Put under way.
func (w *Writer) await() error {
	if w.putting == nil {
		return nil
	}
	err := <-w.putting
	w.putting = nil
	return err
}

// flush stores the leaves cut so far.
func (w *Writer) flush(ctx context.Context) error {
	if err := w.push(ctx); err != nil {
		return err
	}
	return w.await()
}

// ReadFrom appends all of r and returns how many bytes that were. An error of r
// itself leaves w usable, with what was read before it. Other errors: as Write.
func (w *Writer) ReadFrom(ctx context.Context, r io.Reader) (int64, error) {
	if w.err != nil {
		return 0, w.err
	}
	if err := w.materialise(ctx); err != nil {
		return 0, w.fail(err)
	}
	var total int64
	for empty := 0; ; {
		if w.tail == len(w.buf) {
			if err := w.makeRoom(ctx); err != nil {
				return total, w.fail(err)
			}
		}
		n, err := r.Read(w.buf[w.tail:])
		if tooLarge := w.extend(int64(n)); tooLarge != nil {
			n, err = 0, tooLarge
		}
		w.tail += n
		total += int64(n)
		if empty++; n > 0 {
			empty = 0
		} else if err == nil && empty == 100 {
			err = io.ErrNoProgress
		}
		if err == nil {
			continue
		}
		if storeErr := w.cut(ctx); storeErr != nil {
			return total, w.fail(storeErr)
		}
		if storeErr := w.flush(ctx); storeErr != nil {
			return total, w.fail(storeErr)
		}
		if err == io.EOF {
			err = nil
		}
		return total, err
	}
}

// makeRoom cuts what is in the full buffer and makes room for reading more.
func (w *Writer) makeRoom(ctx context.Context) error {
	if err := w.cut(ctx); err != nil {
		return err
	}
	return w.reserve(ctx, 1, min(max(4*len(w.buf), firstBuffer), readChunks*w.tree.maxChunk))
}

// final reports whether a cut after n of the have bytes there are holds whatever
// follows them.
func (w *Writer) final(n, have int) bool { return n < have || n == w.tree.maxChunk }

// cut makes leaves of what is pending as long as their ends are final.
func (w *Writer) cut(ctx context.Context) error {
	for {
		if ok, err := w.cutOne(ctx); err != nil || !ok {
			return err
		}
	}
}

// cutOne makes a leaf of the first chunk of what is pending, if its end is final.
func (w *Writer) cutOne(ctx context.Context) (bool, error) {
	n := w.tree.chunker.Cut(w.pending())
	if n == 0 || !w.final(n, w.tail-w.head) {
		return false, nil
	}
	err := w.emit(ctx, w.buf[w.head:w.head+n])
	w.head += n
	return err == nil, err
}

// Snapshot stores what is missing for the tree of everything written so far and
// returns its root, the same that Finish would return now. The writer goes on
// unchanged. It costs hashing less than one chunk of maximal length and one node
// per level, and one Put.
func (w *Writer) Snapshot(ctx context.Context) (Root, error) {
	if w.err != nil {
		return Root{}, w.err
	}
	if err := errors.Join(w.flush(ctx), w.settle(ctx)); err != nil {
		return Root{}, w.fail(err)
	}
	rest := w.pending()
	if w.zeros > 0 {
		rest = make([]byte, w.zeros)
	}
	var leaves []link
	var blocks []cas.Block
	for len(rest) > 0 {
		n := w.tree.chunker.Cut(rest)
		b, err := cas.NewBlock(cas.Raw, rest[:n])
		if err != nil {
			return Root{}, w.fail(err)
		}
		blocks = append(blocks, b)
		leaves = append(leaves, link{b.CID(), int64(n), int64(n)})
		rest = rest[n:]
	}
	root, err := w.tree.seal(ctx, leaves, blocks)
	if err != nil {
		return Root{}, w.fail(err)
	}
	return Root{root.cid, w.size, w.inHoles}, nil
}

// Parts returns CIDs from which all blocks are reached that the tree of what was
// written so far consists of, but for those that Write or Snapshot has not stored yet.
func (w *Writer) Parts() []cas.CID {
	var parts []cas.CID
	for i := range w.tree.levels {
		for _, l := range w.tree.levels[i].links {
			if n := len(parts); n == 0 || parts[n-1] != l.cid {
				parts = append(parts, l.cid)
			}
		}
	}
	return parts
}

// Finish stores the rest of the tree and returns its root: all its blocks have
// been put, none is durable before the store's Sync. After that w takes nothing
// but Reset, Size and ReadAt.
func (w *Writer) Finish(ctx context.Context) (Root, error) {
	root, err := w.Snapshot(ctx)
	if err == nil {
		w.err = errFinished
	}
	return root, err
}

// ReadAt reads what was written so far, finished or not, as io.ReaderAt does:
// it returns io.EOF if fewer than len(p) bytes follow off.
func (w *Writer) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if w.err != nil && !errors.Is(w.err, errFinished) {
		return 0, w.err
	}
	if off < 0 {
		return 0, errNegativeOffset
	}
	w.once.Do(func() { w.src = newSource(w.store, nil) })
	n := 0
	for i := len(w.tree.levels) - 1; i >= 0; i-- {
		g := &w.tree.levels[i]
		if off >= g.size {
			off -= g.size
			continue
		}
		k, err := w.src.readLinks(ctx, g.links, p[n:], off)
		n += k
		if err != nil {
			return n, err
		}
		off = 0
	}
	if k := int(min(w.zeros-off, int64(len(p)-n))); k > 0 { // of zeros
		clear(p[n : n+k])
		n, off = n+k, off+int64(k)
	}
	if off -= w.zeros; off < int64(w.tail-w.head) {
		n += copy(p[n:], w.pending()[max(off, 0):])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
