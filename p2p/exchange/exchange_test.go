package exchange

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/klauspost/compress/s2"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/cas/segment"
	"github.com/cairnfs/cairn/index"
	"github.com/cairnfs/cairn/p2p"
)

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// remote is a peer whose store can be damaged.
type remote struct {
	Peer
	*local
}

func (r remote) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	return r.Peer.Get(ctx, c, buf)
}
func (r remote) Put(ctx context.Context, blocks ...cas.Block) error {
	return r.Peer.Put(ctx, blocks...)
}
func (r remote) Has(ctx context.Context, cids ...cas.CID) ([]bool, error) {
	return r.Peer.Has(ctx, cids...)
}
func (r remote) Sync(ctx context.Context) error { return r.Peer.Sync(ctx) }

func TestAPeerKeepsTheContractOfAStore(t *testing.T) {
	castest.Run(t, func(t testing.TB) cas.Store {
		l := new(local)
		p, _ := serve(t, l, nil)
		return remote{p, l}
	})
}

func TestAPeerWithAStoreOnDiskKeepsTheContract(t *testing.T) {
	castest.Run(t, func(t testing.TB) cas.Store {
		p, _ := serve(t, onDisk(t), nil)
		return p
	})
}

func onDisk(t testing.TB) *segment.Store {
	t.Helper()
	fs := vfs.NewMem()
	ix, err := index.Open(index.Options{FS: fs, Dir: "index", Logger: quiet(), CacheBytes: 1 << 20, MemTableBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	s, err := segment.Open(segment.Options{FS: fs, Dir: "blocks", Index: ix, Reserve: -1, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), ix.Close()); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestBlocksTravelCompressedAsTheyAreStored(t *testing.T) {
	from, to := onDisk(t), onDisk(t)
	b, err := cas.NewBlock(cas.DagPB, bytes.Repeat([]byte("all work and no play "), 5000))
	if err != nil {
		t.Fatal(err)
	}
	if err := from.Put(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	stored, err := from.Stored(t.Context(), b.CID(), nil)
	if err != nil {
		t.Fatal(err)
	}
	p, w := serve(t, to, nil)
	size := 0
	handler := w.handler
	w.answer = func(req []byte) ([]byte, error) {
		answer, err := handler(context.Background(), "client", req)
		size += len(req) + len(answer)
		return answer, err
	}
	errs, boot, err := p.PutStored(t.Context(), []segment.Stored{stored}, true)
	if err != nil || errs[0] != nil || boot != 7 {
		t.Fatal(errs, boot, err)
	}
	got, err := p.Get(t.Context(), b.CID(), nil)
	if err != nil || !bytes.Equal(got.Data(), b.Data()) {
		t.Fatal(err)
	}
	if size > len(b.Data())/4 {
		t.Errorf("%d bytes of text took %d bytes there and back", len(b.Data()), size)
	}
}

// getEach calls each for what GetMany says of every CID.
func getEach(ctx context.Context, p Peer, cids []cas.CID, each func(cas.CID, cas.Block, error) error) error {
	return p.GetMany(ctx, cids, func(came Parcel) error {
		for i, b := range came.Blocks {
			if err := each(cids[i], b, came.Errs[i]); err != nil {
				return err
			}
		}
		cids = cids[len(came.Blocks):]
		return nil
	})
}

func TestGetManyReturnsEveryBlockInOrderWithinTheLimitOfAMessage(t *testing.T) {
	l := new(local)
	p, w := serve(t, l, nil)
	var cids []cas.CID
	for i := range uint64(2500) { // more than go into a message, by number
		b := castest.Block(t, i, 10)
		if i%100 == 0 { // and by size
			b = castest.Block(t, i, 700_000)
		}
		if i%7 != 3 {
			if err := l.Put(t.Context(), b); err != nil {
				t.Fatal(err)
			}
		}
		cids = append(cids, b.CID())
	}
	l.Corrupt(t, cids[8])
	n := 0
	err := getEach(t.Context(), p, cids, func(c cas.CID, b cas.Block, err error) error {
		i := n
		n++
		switch {
		case c != cids[i]:
			t.Errorf("block %d comes out of order", i)
		case i == 8:
			if !errors.Is(err, cas.ErrCorrupt) {
				t.Errorf("the damaged one: %v", err)
			}
		case i%7 == 3:
			if !errors.Is(err, cas.ErrNotFound) {
				t.Errorf("block %d: %v", i, err)
			}
		case err != nil || b.CID() != c:
			t.Errorf("block %d: %v", i, err)
		}
		return nil
	})
	if err != nil || n != len(cids) {
		t.Errorf("%d blocks: %v", n, err)
	}
	if w.calls < 4 || w.calls > 20 {
		t.Errorf("%d requests", w.calls)
	}
	stop := errors.New("enough")
	if err := getEach(t.Context(), p, cids, func(cas.CID, cas.Block, error) error { return stop }); err != stop {
		t.Errorf("the error of each: %v", err)
	}
}

func TestHaveDoesNotCountTheCacheAndWantDoes(t *testing.T) {
	var cache mem.Store
	b := castest.Block(t, 1, 1000)
	if err := cache.Put(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	p, _ := serve(t, new(local), &cache)
	if has, err := p.Has(t.Context(), b.CID()); err != nil || has[0] {
		t.Errorf("Has = %v, %v", has, err)
	}
	if _, err := p.Get(t.Context(), b.CID(), nil); err != nil {
		t.Error(err)
	}
}

func TestDamageOnThePeersDiskIsNoticedThereAndIsNoLie(t *testing.T) {
	l := new(local)
	p, _ := serve(t, l, nil)
	b := castest.Block(t, 1, 1000)
	if err := l.Put(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	l.Corrupt(t, b.CID())
	_, err := p.Get(t.Context(), b.CID(), nil)
	if !errors.Is(err, cas.ErrCorrupt) || errors.Is(err, ErrBadMessage) {
		t.Errorf("Get: %v", err)
	}
	if has, err := p.Has(t.Context(), b.CID()); err != nil || has[0] {
		t.Errorf("afterwards the peer has it: %v, %v", has, err)
	}
}

func TestAPeerThatLiesIsFoundOutAndNamed(t *testing.T) {
	b := castest.Block(t, 1, 1000)
	other := castest.Block(t, 2, 1000)
	honest := func(s segment.Stored) []byte {
		return append(appendForm(append(appendAnswer(nil, opWant, 1, 1), byte(statusYes)), &s), s.Payload...)
	}
	good := honest(segment.Plain(b))
	bomb := segment.Plain(b)
	bomb.Compression, bomb.Payload = 1, []byte{0xff, 0xff, 0xff, 0x7f, 0}
	for name, answer := range map[string][]byte{
		"other bytes":          honest(segment.Plain(other)),
		"nothing":              nil,
		"cut short":            good[:len(good)-1],
		"one byte more":        append(slices.Clone(good), 0),
		"another version":      append([]byte{2}, good[1:]...),
		"another operation":    append([]byte{1, opHave}, good[2:]...),
		"a decompression bomb": honest(bomb),
		"a status unheard of":  append(appendAnswer(nil, opWant, 1, 1), 99),
		"come back later":      append(appendAnswer(nil, opWant, 1, 1), byte(statusLater)),
	} {
		p, w := serve(t, new(local), nil)
		w.answer = func([]byte) ([]byte, error) { return answer, nil }
		got, err := p.Get(t.Context(), b.CID(), nil)
		var block *cas.BlockError
		if !errors.Is(err, cas.ErrCorrupt) || !errors.Is(err, ErrBadMessage) || !errors.As(err, &block) ||
			!strings.Contains(block.Where, "server") || block.CID != b.CID() || got.CID().Defined() {
			t.Errorf("%s: %v", name, err)
		}
		err = getEach(t.Context(), p, []cas.CID{b.CID()}, func(_ cas.CID, _ cas.Block, err error) error { return err })
		if !errors.Is(err, ErrBadMessage) {
			t.Errorf("%s: GetMany: %v", name, err)
		}
		if _, err := p.Has(t.Context(), b.CID()); !errors.Is(err, ErrBadMessage) && name != "another operation" {
			t.Errorf("%s: Has: %v", name, err)
		}
		if err := p.Put(t.Context(), b); !errors.Is(err, ErrBadMessage) {
			t.Errorf("%s: Put: %v", name, err)
		}
		if err := p.Sync(t.Context()); !errors.Is(err, ErrBadMessage) {
			t.Errorf("%s: Sync: %v", name, err)
		}
	}
}

func TestWhatIsNotWhatItsCIDNamesIsNotStored(t *testing.T) {
	l := new(local)
	p, _ := serve(t, l, nil)
	good, bad := segment.Plain(castest.Block(t, 1, 1000)), segment.Plain(castest.Block(t, 2, 1000))
	bad.Payload = castest.Bytes(3, 1000)
	errs, _, err := p.PutStored(t.Context(), []segment.Stored{bad, good, bad}, false)
	if err != nil {
		t.Fatal(err)
	}
	if !errors.Is(errs[0], cas.ErrCorrupt) || errs[1] != nil || !errors.Is(errs[2], cas.ErrCorrupt) || l.Len() != 1 {
		t.Errorf("%v; %d stored", errs, l.Len())
	}
}

// Rule 22: what is decompressed has at most the length that is stated, which is at
// most that of a block.
func TestABlockThatExpandsToMoreThanItStatesIsRefused(t *testing.T) {
	l := new(local)
	p, _ := serve(t, l, nil)
	block, err := cas.NewBlock(cas.Raw, make([]byte, 100_000))
	if err != nil {
		t.Fatal(err)
	}
	bomb := segment.Stored{CID: block.CID(), Compression: 1, Payload: s2.Encode(nil, block.Data())}
	for _, raw := range []int{100_000, 99_999, len(bomb.Payload)} {
		bomb.Raw = raw
		errs, _, err := p.PutStored(t.Context(), []segment.Stored{bomb}, false)
		if err != nil {
			t.Fatal(err)
		}
		if right := raw == len(block.Data()); right != (errs[0] == nil) || !right && !errors.Is(errs[0], cas.ErrCorrupt) {
			t.Errorf("%d bytes, stated as %d: %v", len(block.Data()), raw, errs[0])
		}
	}
}

func TestAFullPeerSaysWhichBlocksItTook(t *testing.T) {
	for _, cause := range []error{cas.ErrNoSpace, io.ErrUnexpectedEOF} {
		l := &local{limit: 2, putErr: cause}
		p, _ := serve(t, l, nil)
		var blocks []segment.Stored
		for i := range uint64(4) {
			blocks = append(blocks, segment.Plain(castest.Block(t, i, 100)))
		}
		errs, _, err := p.PutStored(t.Context(), blocks, false)
		if err != nil {
			t.Fatal(err)
		}
		want := ErrPeerFailed
		if cause == cas.ErrNoSpace {
			want = cas.ErrNoSpace
		}
		if errs[0] != nil || errs[1] != nil || !errors.Is(errs[2], want) || !errors.Is(errs[3], want) {
			t.Errorf("%v", errs)
		}
		if err := p.Put(t.Context(), castest.Block(t, 9, 10)); !errors.Is(err, want) {
			t.Errorf("Put: %v", err)
		}
	}
}

func TestPutWithSyncMakesDurableBeforeTheAnswer(t *testing.T) {
	l := new(local)
	p, _ := serve(t, l, nil)
	b := []segment.Stored{segment.Plain(castest.Block(t, 1, 100))}
	if _, _, err := p.PutStored(t.Context(), b, false); err != nil || l.syncs != 0 {
		t.Errorf("without: %d syncs, %v", l.syncs, err)
	}
	if _, _, err := p.PutStored(t.Context(), b, true); err != nil || l.syncs != 1 {
		t.Errorf("with: %d syncs, %v", l.syncs, err)
	}
	if boot, err := p.SyncRun(t.Context()); err != nil || l.syncs != 2 || boot != 7 {
		t.Errorf("sync: %d syncs, boot %d, %v", l.syncs, boot, err)
	}
}

func TestAPeerThatCannotBeReachedIsNamed(t *testing.T) {
	p := Peer{ID: "nowhere", Transport: new(wire)}
	_, err := p.Get(t.Context(), cas.Sum(cas.Raw, nil), nil)
	if !errors.Is(err, p2p.ErrUnreachable) || !strings.Contains(err.Error(), "nowhere") {
		t.Error(err)
	}
}

// waiting is a store whose Sync waits for its context.
type waiting struct {
	local
	entered chan struct{}
	ended   atomic.Bool
}

func (w *waiting) Sync(ctx context.Context) error {
	close(w.entered)
	<-ctx.Done()
	w.ended.Store(true)
	return ctx.Err()
}

func TestStopWaitsForRequestsUnderWayAndRefusesOthers(t *testing.T) {
	l := &waiting{entered: make(chan struct{})}
	w := new(wire)
	stop := Serve(w, ServerOptions{Local: l, Logger: quiet()})
	p := Peer{ID: "server", Transport: w}
	late := w.handler
	done := make(chan error)
	go func() { done <- p.Sync(context.Background()) }()
	<-l.entered
	stop()
	if !l.ended.Load() {
		t.Error("stop has not waited")
	}
	var remote *p2p.RemoteError
	if err := <-done; !errors.As(err, &remote) {
		t.Errorf("the request under way: %v", err)
	}
	if _, err := late(t.Context(), "client", requests(t)[3]); err == nil {
		t.Error("a request that was late is answered")
	}
	if err := p.Sync(t.Context()); !errors.Is(err, p2p.ErrUnreachable) {
		t.Errorf("afterwards: %v", err)
	}
}

// requests are good requests of every kind.
func requests(t testing.TB) [][]byte {
	cids := []cas.CID{cas.Sum(cas.Raw, []byte("a")), cas.Sum(cas.DagPB, nil)}
	var all [][]byte
	for _, op := range []byte{opHave, opWant} {
		b := appendRequest(nil, op, flagCheck, len(cids))
		for _, c := range cids {
			b = appendCID(b, c)
		}
		all = append(all, b)
	}
	b := appendRequest(nil, opPut, flagSync, 3)
	for i := range 3 {
		s := segment.Plain(castest.Block(t, uint64(i), i*50))
		b = append(appendForm(appendCID(b, s.CID), &s), s.Payload...)
	}
	return append(all, b, appendRequest(nil, opSync, 0, 0))
}

func TestRequestsOutOfRangeAreRefused(t *testing.T) {
	for name, b := range map[string][]byte{
		"too many blocks":      append(appendRequest(nil, opHave, 0, MaxBlocks+1), make([]byte, (MaxBlocks+1)*cidSize)...),
		"no operation":         appendRequest(nil, 0, 0, 0),
		"an unknown operation": appendRequest(nil, 9, 0, 0),
		"more than there is":   appendRequest(nil, opHave, 0, 5),
		"a codec unheard of":   append(appendRequest(nil, opHave, 0, 1), make([]byte, cidSize)...),
		"sync of something":    append(appendRequest(nil, opSync, 0, 0), 1),
		"a version to come":    {2, opSync, 0, 0, 0},
		"nothing":              nil,
	} {
		if _, err := parseRequest(b); !errors.Is(err, ErrBadMessage) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// 5 MiB of blocks in one message.
	b := appendRequest(nil, opPut, 0, 5)
	s := segment.Stored{CID: cas.Sum(cas.Raw, nil), Raw: cas.MaxBlockSize, Payload: make([]byte, cas.MaxBlockSize)}
	for range 5 {
		b = append(appendForm(appendCID(b, s.CID), &s), s.Payload...)
	}
	if _, err := parseRequest(b); !errors.Is(err, ErrBadMessage) {
		t.Errorf("too many bytes: %v", err)
	}
	for _, b := range requests(t) {
		if _, err := parseRequest(b); err != nil {
			t.Errorf("a good request: %v", err)
		}
	}
}

// FuzzRequest: a request is refused or written again as the same bytes.
func FuzzRequest(f *testing.F) {
	for _, b := range requests(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err != nil {
			if !errors.Is(err, ErrBadMessage) {
				t.Fatal(err)
			}
			return
		}
		again := appendRequest(nil, r.op, r.flags, len(r.cids))
		for i, c := range r.cids {
			again = appendCID(again, c)
			if r.op == opPut {
				again = append(appendForm(again, &r.blocks[i]), r.blocks[i].Payload...)
			}
		}
		if !bytes.Equal(again, b) {
			t.Fatalf("%x is read as %x", b, again)
		}
	})
}

// FuzzServer: no request makes a node fail, or store anything but blocks.
func FuzzServer(f *testing.F) {
	for _, b := range requests(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l := new(local)
		_, w := serve(t, l, nil)
		answer, err := w.handler(t.Context(), "client", b)
		if err == nil && (len(answer) < answerHead || answer[1] != b[1]) {
			t.Fatalf("answer %x", answer)
		}
	})
}

// FuzzAnswer: no answer makes the one who asked fail, or take wrong bytes.
func FuzzAnswer(f *testing.F) {
	b := castest.Block(f, 1, 100)
	s := segment.Plain(b)
	f.Add(append(appendForm(append(appendAnswer(nil, opWant, 1, 1), byte(statusYes)), &s), s.Payload...))
	f.Add(append(appendAnswer(nil, opHave, 1, 1), byte(statusYes)))
	f.Add(append(appendAnswer(nil, opPut, 1, 1), byte(statusFull)))
	f.Add(appendAnswer(nil, opSync, 1, 0))
	f.Fuzz(func(t *testing.T, answer []byte) {
		w := &wire{answer: func([]byte) ([]byte, error) { return answer, nil }}
		p := Peer{ID: "server", Transport: w}
		if got, err := p.Get(t.Context(), b.CID(), nil); err == nil && !bytes.Equal(got.Data(), b.Data()) {
			t.Fatal("wrong bytes")
		}
		_ = getEach(t.Context(), p, []cas.CID{b.CID()}, func(_ cas.CID, got cas.Block, err error) error {
			if err == nil && !bytes.Equal(got.Data(), b.Data()) {
				t.Fatal("wrong bytes")
			}
			return nil
		})
		_, _ = p.Has(t.Context(), b.CID())
		_ = p.Put(t.Context(), b)
		_ = p.Sync(t.Context())
	})
}

func TestManyPeersAskAtOnce(t *testing.T) {
	l := new(local)
	p, _ := serve(t, l, nil)
	rng := rand.New(rand.NewPCG(1, 1))
	done := make(chan error, 16)
	for i := range cap(done) {
		seed := rng.Uint64()
		go func() {
			var blocks []cas.Block
			for k := range uint64(10) {
				b, err := cas.NewBlock(cas.Raw, castest.Bytes(seed+k, 300_000))
				if err != nil {
					done <- err
					return
				}
				blocks = append(blocks, b)
			}
			if err := p.Put(context.Background(), blocks...); err != nil {
				done <- err
				return
			}
			_, err := p.Get(context.Background(), blocks[i%10].CID(), nil)
			done <- err
		}()
	}
	for range cap(done) {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
