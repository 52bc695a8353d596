package gc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cairnfs/cairn/cas"
	"github.com/cairnfs/cairn/cas/castest"
	"github.com/cairnfs/cairn/cas/manifest"
	"github.com/cairnfs/cairn/cas/mem"
	"github.com/cairnfs/cairn/chunker"
)

// file stores a file of random bytes in small chunks.
func file(t testing.TB, s cas.Store, seed byte, size int) manifest.Root {
	t.Helper()
	c := smallChunks(t)
	w := manifest.NewWriter(s, manifest.Format{Chunker: c, MinLinks: 2, AvgLinks: 8, MaxLinks: 32})
	p := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(p)
	if err := w.Write(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	root, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// reach returns all that can be reached from root, by a walk that remembers nothing.
func reach(t testing.TB, s cas.Store, root cas.CID, into map[[32]byte]bool) {
	t.Helper()
	into[root.Hash()] = true
	links, err := manifest.Links(t.Context(), s, root)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range links {
		reach(t, s, c, into)
	}
}

func rootsOf(roots ...manifest.Root) func(context.Context, func(cas.CID, string) error) error {
	return func(_ context.Context, each func(cas.CID, string) error) error {
		for i, r := range roots {
			if err := each(r.CID, fmt.Sprint("file ", i)); err != nil {
				return err
			}
		}
		return nil
	}
}

func none(cas.CID) bool { return false }

// Rule 16: exactly what roots lead to is left, in however many parts it is marked.
func TestASweepLeavesWhatRootsLeadTo(t *testing.T) {
	for _, marks := range []int{0, 1000, 100, 7} {
		t.Run(fmt.Sprint(marks), func(t *testing.T) {
			s := new(mem.Store)
			kept := []manifest.Root{file(t, s, 1, 500_000), file(t, s, 2, 100), file(t, s, 3, 90_000)}
			live := make(map[[32]byte]bool)
			for _, r := range kept {
				reach(t, s, r.CID, live)
			}
			file(t, s, 1, 300_000) // shares its beginning
			file(t, s, 4, 200_000)
			promised := castest.Block(t, 5, 100)
			if err := s.Put(t.Context(), promised); err != nil {
				t.Fatal(err)
			}
			before := s.Len()
			o := Options{
				Roots: rootsOf(kept...), Get: s, Local: s, Marks: marks, Rate: -1,
				Keep: func(c cas.CID) bool { return c.Hash() == promised.CID().Hash() },
			}
			dry := o
			dry.DryRun = true
			would, err := NewSweeper(dry).Run(t.Context())
			if err != nil || s.Len() != before {
				t.Fatalf("a dry run left %d of %d blocks, %v", s.Len(), before, err)
			}
			res, err := NewSweeper(o).Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if want := int64(before - len(live) - 1); res.Deleted != want || would.Deleted != want || res.Freed == 0 {
				t.Errorf("deleted %+v, the dry run %+v, want %d", res, would, want)
			}
			if res.Marked != int64(len(live)) {
				t.Errorf("marked %d blocks, there are %d", res.Marked, len(live))
			}
			live[promised.CID().Hash()] = true
			left, err := s.List(t.Context(), [32]byte{}, before, nil)
			if err != nil || len(left) != len(live) {
				t.Errorf("%d blocks left, want %d: %v", len(left), len(live), err)
			}
			for _, c := range left {
				if !live[c.Hash()] {
					t.Errorf("%v is left", c)
				}
			}
		})
	}
}

// lossy is a store that has lost a block.
type lossy struct {
	cas.Store
	lost cas.CID
}

func (s lossy) Get(ctx context.Context, c cas.CID, buf []byte) (cas.Block, error) {
	if c == s.lost {
		return cas.Block{}, &cas.BlockError{Op: "get", CID: c, Err: cas.ErrCorrupt}
	}
	return s.Store.Get(ctx, c, buf)
}

// Rule 16: one manifest that cannot be read ends the sweep before anything is deleted,
// and the error names the content and the block.
func TestAManifestThatCannotBeReadEndsTheSweep(t *testing.T) {
	s := new(mem.Store)
	good, bad := file(t, s, 1, 100_000), file(t, s, 2, 100_000)
	file(t, s, 3, 100_000)
	links, err := manifest.Links(t.Context(), s, bad.CID)
	if err != nil {
		t.Fatal(err)
	}
	before := s.Len()
	_, err = NewSweeper(Options{Roots: rootsOf(good, bad), Get: lossy{s, links[1]}, Local: s, Keep: none}).Run(t.Context())
	var root *RootError
	var block *cas.BlockError
	if !errors.As(err, &root) || root.Name != "file 1" || root.CID != bad.CID || !errors.As(err, &block) || block.CID != links[1] {
		t.Errorf("error %v, want one that names file 1 and %v", err, links[1])
	}
	if s.Len() != before {
		t.Errorf("%d of %d blocks left", s.Len(), before)
	}
}

// Rule 16: a block that is stored again, or found, while it is being deleted stays, and
// whoever was told that it is there finds it.
func TestAPromiseThatIsGivenDuringASweepIsKept(t *testing.T) {
	for seed := range byte(20) {
		s, r := new(mem.Store), NewRecorder(0)
		s.Touched = r.Promised
		garbage := file(t, s, seed, 200_000)
		live := make(map[[32]byte]bool)
		reach(t, s, garbage.CID, live)
		all, err := s.List(t.Context(), [32]byte{}, len(live), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Start()
		var wg sync.WaitGroup
		told := make([]bool, len(all))
		wg.Go(func() {
			for _, i := range rand.New(rand.NewPCG(1, uint64(seed))).Perm(len(all)) {
				has, err := s.Has(context.Background(), all[i])
				if err != nil {
					t.Error(err)
				}
				told[i] = has[0]
			}
		})
		res, err := NewSweeper(Options{Roots: rootsOf(), Get: s, Local: s, Keep: r.Has, Rate: -1}).Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		has, err := s.Has(t.Context(), all...)
		if err != nil {
			t.Fatal(err)
		}
		for i := range all {
			if told[i] && !has[i] {
				t.Fatalf("%v was promised and is gone", all[i])
			}
		}
		if int(res.Deleted)+s.Len() != len(all) {
			t.Errorf("%d deleted, %d left of %d", res.Deleted, s.Len(), len(all))
		}
	}
}

// Rule 16: a recorder that has more to record than it may says of every block that it
// was promised, so that nothing is deleted on its word.
func TestARecorderThatIsFullKeepsEverything(t *testing.T) {
	r := NewRecorder(10)
	block := func(i int) cas.CID { return cas.Sum(cas.Raw, fmt.Append(nil, i)) }
	if !r.Has(block(0)) || r.Complete() {
		t.Error("nothing is known before the start")
	}
	r.Start()
	for i := range 10 {
		r.Promised(block(i))
		r.Promised(block(i))
	}
	if !r.Has(block(9)) || r.Has(block(10)) || !r.Complete() {
		t.Error("10 promises do not fit")
	}
	r.Promised(block(10))
	if !r.Has(block(11)) || r.Complete() {
		t.Error("11 promises fit")
	}
	r.Stop()
	r.Start()
	if r.Has(block(9)) || !r.Complete() {
		t.Error("what was recorded before a stop counts")
	}
}

func TestRenewNamesWhatIsMissing(t *testing.T) {
	s := new(mem.Store)
	root := file(t, s, 1, 300_000)
	if err := Renew(t.Context(), s, s, []cas.CID{root.CID, root.CID}); err != nil {
		t.Fatal(err)
	}
	links, err := manifest.Links(t.Context(), s, root.CID)
	if err != nil {
		t.Fatal(err)
	}
	for len(links) > 0 && links[0].Codec() != cas.Raw {
		if links, err = manifest.Links(t.Context(), s, links[0]); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := s.Delete(t.Context(), links[:1], nil); err != nil {
		t.Fatal(err)
	}
	var block *cas.BlockError
	if err := Renew(t.Context(), s, s, []cas.CID{root.CID}); !errors.Is(err, ErrMissing) || !errors.As(err, &block) || block.CID != links[0] {
		t.Errorf("a leaf is gone: %v", err)
	}
}

func TestASetHasWhatWasAdded(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var s Set
	model := make(map[uint64]bool)
	for range 200_000 {
		key := rnd.Uint64N(150_000) << (rnd.UintN(2) * 40)
		if was := model[key]; s.Has(key) != was || s.Add(key) == was {
			t.Fatalf("key %d: was there %v", key, was)
		}
		model[key] = true
	}
	if s.Len() != len(model) || s.Has(150_001) {
		t.Errorf("%d keys, want %d", s.Len(), len(model))
	}
}

// BenchmarkMark measures what marking costs for each block, of a file of 64 MiB in small
// chunks, which has as many inner nodes for its leaves as one of 4 GiB has.
func BenchmarkMark(b *testing.B) {
	s := new(mem.Store)
	w := manifest.NewWriter(s, manifest.Format{Chunker: smallChunks(b)})
	p := make([]byte, 64<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(p)
	if err := w.Write(b.Context(), p); err != nil {
		b.Fatal(err)
	}
	root, err := w.Finish(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	marked := int64(0)
	for b.Loop() {
		sweeper := NewSweeper(Options{Roots: rootsOf(root), Get: s, Local: s, Keep: none})
		if err := sweeper.mark(b.Context(), 0, 1<<64-1); err != nil {
			b.Fatal(err)
		}
		marked = sweeper.res.Marked
		b.ReportMetric(float64(8*len(sweeper.marked.slots))/float64(marked), "bytes/block")
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(marked), "ns/block")
}

func smallChunks(t testing.TB) *chunker.Chunker {
	t.Helper()
	c, err := chunker.New(chunker.Params{Algorithm: chunker.DefaultParams().Algorithm, Min: 256, Avg: 1024, Max: 4096})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
